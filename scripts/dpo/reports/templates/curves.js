// Draws the curves of a page with uPlot, in the place of the pictures that stand there. What the
// page says of runs goes in as text alone, and nothing is asked of any network.
"use strict";
(() => {
  const DASHES = { solid: [], dashed: [7, 4], dotted: [2, 3] };
  const HEIGHT = 230;
  const PALE = 0.45;

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // A colour of style.css by its name, since a canvas does not know the page's variables.
  const color = (name) =>
    name.startsWith("--")
      ? getComputedStyle(document.documentElement).getPropertyValue(name).trim()
      : name;

  function swatch(series) {
    const key = element("i", { className: "swatch" });
    key.style.borderTop = `3px ${series.line} ${color(series.color)}`;
    return key;
  }

  function written(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < 1e6) return String(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  }

  // An exponential moving average that is not drawn to zero at its start; gaps stay gaps.
  function smoothed(values, weight) {
    let sum = 0;
    let counted = 0;
    return values.map((value) => {
      if (value === null) return null;
      sum = weight * sum + (1 - weight) * value;
      counted += 1;
      return sum / (1 - weight ** counted);
    });
  }

  function grouped(series) {
    const byKey = new Map();
    for (const each of series) byKey.set(each.key, [...(byKey.get(each.key) ?? []), each]);
    return byKey;
  }

  // The place of the measured point that is nearest to x.
  function nearest(xs, ys, x) {
    let best = null;
    for (let at = 0; at < xs.length; at += 1) {
      if (ys[at] === null) continue;
      if (best === null || Math.abs(xs[at] - x) <= Math.abs(xs[best] - x)) best = at;
      else break;
    }
    return best;
  }

  function explore(holder) {
    const data = JSON.parse(holder.querySelector("script").textContent);
    const every = data.panels.flatMap((panel) => panel.series);
    if (!every.length) return;
    const state = { hidden: new Set(), log: false, weight: 0, axis: data.axes[0], range: null };
    const plots = new Map();
    let active = null;
    let pending = 0;
    const isShown = (series) => !state.hidden.has(series.key);

    function extent() {
      const xs = every.filter(isShown).flatMap((series) => series.x[state.axis]);
      const [low, high] = xs.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]);
      return low < high ? [low, high] : [low - 1, high + 1];
    }

    // What uPlot is given for one of our lines: the line, its average, the edges of its band.
    function linesOf(panel, series, log) {
      const above = (values) => (log ? values.map((v) => (v > 0 ? v : null)) : values);
      const ink = color(series.color);
      const few = series.held_out || series.y.length < 3 || series.y.includes(null);
      const beside = panel.series.some((other) => other.held_out && other.key === series.key);
      const smooth = state.weight > 0 && !series.held_out;
      const style = { stroke: ink, dash: DASHES[series.line], points: { show: few, size: 5, fill: ink } };
      const pale = !series.held_out && (beside || smooth);
      const lines = [
        [series.y, { ...style, width: series.held_out ? 2 : 1.5, alpha: pale ? PALE : 1 }],
      ];
      if (smooth)
        lines.push([
          smoothed(series.y, state.weight),
          { ...style, width: 2, alpha: beside ? 0.7 : 1, points: { show: false } },
        ]);
      if (series.low)
        for (const edge of [series.high, series.low])
          lines.push([edge, { stroke: "transparent", points: { show: false }, band: ink }]);
      return lines.map(([values, how]) => [series.x[state.axis], above(values), how]);
    }

    function draw(panel) {
      const { plot, note } = panel.at;
      plots.get(panel)?.destroy();
      plots.delete(panel);
      const some = panel.series.filter(isShown);
      const values = some.flatMap((s) => [...s.y, ...(s.low ?? [])]).filter((v) => v !== null);
      const log = state.log && values.every((v) => v >= 0) && values.some((v) => v > 0);
      note.textContent =
        panel.y + (state.log && values.length && !log ? " (linear: there are values below 0)" : "");
      if (!some.length) return;
      const lines = some.flatMap((series) => linesOf(panel, series, log));
      const bands = lines.flatMap(([, , how], at) =>
        how.band && lines[at + 1]?.[2].band === how.band && !(lines[at - 1]?.[2].band)
          ? [{ series: [at + 1, at + 2], fill: `color-mix(in srgb, ${how.band} 20%, transparent)` }]
          : [],
      );
      const grid = { stroke: color("--line"), width: 1 };
      const axis = { stroke: color("--dim"), grid, ticks: grid, font: "12px system-ui, sans-serif" };
      const longest = (_, labels) => 16 + 7 * Math.max(0, ...(labels ?? []).map((l) => (l ?? "").length));
      const ticks = (_, values) => values.map((v) => (v === null ? "" : written(v)));
      plots.set(
        panel,
        new uPlot(
          {
            width: plot.clientWidth,
            height: HEIGHT,
            legend: { show: false },
            scales: {
              x: { time: false, range: () => state.range ?? extent() },
              y: log ? { distr: 3, range: (_, low, high) => uPlot.rangeLog(low, high, 10, false) } : {},
            },
            axes: [
              { ...axis, label: state.axis, labelSize: 20, size: 34, labelFont: axis.font, incrs: STEPS },
              { ...axis, size: longest, values: ticks },
            ],
            series: [{}, ...lines.map(([, , how]) => ({ ...how, spanGaps: false }))],
            bands,
            cursor: {
              y: false,
              drag: { x: true, y: false, setScale: false },
              points: { show: (_, at) => !lines[at - 1]?.[2].band },
              sync: { key: sync.key, setSeries: false, filters: { pub: (type) => /^mouse(move|leave)$/.test(type) } },
              bind: { dblclick: () => () => zoom(null) },
            },
            hooks: {
              setCursor: [(u) => u === plots.get(active) && read(u.cursor.left < 0 ? null : u.data[0][u.cursor.idx])],
              setSelect: [(u) => u.select.width > 4 && zoom([0, u.select.width].map((w) => u.posToVal(u.select.left + w, "x")))],
            },
          },
          uPlot.join(lines.map(([xs, ys]) => [xs, ys])),
          plot,
        ),
      );
    }

    function zoom(range) {
      state.range = range;
      later(redraw); // uPlot is still at work on the event
    }

    function later(work) {
      setTimeout(work, 0);
    }

    // The values of all lines that are shown at x; at their ends if x is null.
    function read(x) {
      cancelAnimationFrame(pending);
      pending = requestAnimationFrame(() => data.panels.forEach((panel) => readOne(panel, x)));
    }

    function readOne(panel, x) {
      const byKey = grouped(panel.series.filter(isShown));
      const lines = [...byKey].map(([key, every]) => {
        const said = every.map((series) => valueAt(series, x)).join("; ");
        return element("span", {}, swatch(every[0]), `${key} `, element("b", {}, said));
      });
      const where = x === null ? "last" : `${state.axis} ${written(x)}`;
      panel.at.readout.replaceChildren(element("span", { className: "dim" }, where), ...lines);
    }

    // The value that was measured nearest to x, and where that was if not there.
    function valueAt(series, x) {
      const xs = series.x[state.axis];
      const at = nearest(xs, series.y, x ?? Infinity) ?? 0;
      let said = `${series.name} ${written(series.y[at])}`.trim();
      if (series.low) said += ` (${written(series.low[at])} to ${written(series.high[at])})`;
      if (state.weight > 0 && !series.held_out)
        said += `, smoothed ${written(smoothed(series.y, state.weight)[at])}`;
      return x !== null && xs[at] !== x ? `${said} at ${written(xs[at])}` : said;
    }

    function redraw() {
      data.panels.forEach(draw);
      reset.disabled = state.range === null;
      read(null);
    }

    function alongByKey(panel, event) {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const u = plots.get(panel);
      if (!by || !u) return;
      event.preventDefault();
      active = panel;
      const xs = u.data[0];
      const from = u.cursor.idx ?? (by > 0 ? -1 : xs.length);
      const to = Math.min(Math.max(from + by, 0), xs.length - 1);
      u.setCursor({ left: u.valToPos(xs[to], "x"), top: HEIGHT / 3 });
    }

    function touched(panel, event) {
      const u = plots.get(panel);
      if (event.pointerType !== "touch" || !u) return;
      active = panel;
      const box = u.over.getBoundingClientRect();
      u.setCursor({ left: event.clientX - box.left, top: event.clientY - box.top });
    }

    const STEPS = [1, 2, 5].flatMap((n) => [...Array(8)].map((_, power) => n * 10 ** power)).sort((a, b) => a - b);
    const sync = uPlot.sync(`curves-${[...document.querySelectorAll(".curves")].indexOf(holder)}`);

    const panels = data.panels.map((panel) => {
      const note = element("small", {});
      const plot = element("div", { className: "plot", tabIndex: 0, role: "img" });
      plot.setAttribute("aria-label", `${panel.title}; the arrow keys read it point by point`);
      const readout = element("p", { className: "readout" });
      panel.at = { plot, note, readout };
      plot.addEventListener("pointerenter", () => (active = panel));
      plot.addEventListener("keydown", (event) => alongByKey(panel, event));
      for (const type of ["pointerdown", "pointermove"])
        plot.addEventListener(type, (event) => touched(panel, event));
      return element("figure", {}, element("figcaption", {}, panel.title, note), plot, readout);
    });

    const log = element("input", { type: "checkbox" });
    log.addEventListener("change", () => ((state.log = log.checked), redraw()));
    const slider = element("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: 0 });
    const weight = element("output", {}, "off");
    slider.addEventListener("input", () => {
      state.weight = Number(slider.value);
      weight.textContent = state.weight ? state.weight.toFixed(2) : "off";
      redraw();
    });
    const along = element("select", {}, ...data.axes.map((name) => element("option", {}, name)));
    along.addEventListener("change", () => {
      Object.assign(state, { axis: along.value, range: null });
      redraw();
    });
    const reset = element("button", { type: "button", disabled: true }, "whole run");
    reset.addEventListener("click", () => zoom(null));
    const keys = new Map(every.map((series) => [series.key, series]).reverse());
    const legend = [...new Set(every.map((series) => series.key))].map((key) => {
      const button = element("button", { type: "button" }, swatch(keys.get(key)), key);
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        state.hidden[state.hidden.has(key) ? "delete" : "add"](key);
        button.setAttribute("aria-pressed", String(!state.hidden.has(key)));
        redraw();
      });
      return button;
    });
    const axes = data.axes.length > 1 ? [element("label", {}, "along ", along)] : [];
    const thinned = data.thinned
      ? ` Long lines are thinned to ${data.thinned} points, the lowest and the highest of each stretch.`
      : "";
    const before = [...holder.childNodes];
    holder.replaceChildren(
      element(
        "div",
        { className: "controls" },
        element("label", {}, log, "log scale"),
        element("label", {}, "smoothing", slider, weight),
        ...axes,
        reset,
      ),
      element("p", { className: "legend" }, ...legend),
      element("div", { className: "panels" }, ...panels),
      element(
        "p",
        { className: "dim" },
        "Point at a curve for its values; drag along it to zoom, double-click for the whole. " +
          "Smoothing draws the exponential moving average of the lines without points; the values themselves stay, pale." +
          thinned,
      ),
    );
    try {
      redraw();
    } catch (error) {
      holder.replaceChildren(...before); // the pictures
      throw error;
    }
    let width = holder.clientWidth;
    new ResizeObserver(() => {
      if (holder.clientWidth !== width) {
        width = holder.clientWidth;
        redraw();
      }
    }).observe(holder);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      legend.forEach((button) => button.querySelector("i").replaceWith(swatch(keys.get(button.textContent))));
      redraw();
    });
  }

  document.querySelectorAll(".curves").forEach(explore);
})();
