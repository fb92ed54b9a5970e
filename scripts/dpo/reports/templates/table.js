// Tables that are sorted by a click on a column and filtered by the settings in it. Without scripts
// they are tables as any other.
"use strict";
(() => {
  const LISTED = 12; // values of a setting; of more, text is looked for

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  const text = (row, at) => row.cells[at].textContent.trim();

  // By number where there are any: what has none comes last, whichever way is up.
  function sort(table, at, down) {
    const rows = [...table.tBodies[0].rows];
    const value = (row) => row.cells[at].dataset.value;
    const known = rows.some((row) => value(row) !== undefined);
    const is = (row) => (known ? value(row) !== undefined : text(row, at) !== "");
    const order = (a, b) =>
      is(b) - is(a) ||
      (down ? -1 : 1) *
        (known ? Number(value(a)) - Number(value(b)) : text(a, at).localeCompare(text(b, at), undefined, { numeric: true }));
    table.tBodies[0].append(...rows.sort(order));
    [...table.tHead.rows[0].cells].forEach((head, of) => {
      if (of === at) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }

  function sortable(table) {
    [...table.tHead.rows[0].cells].forEach((head, at) => {
      const button = element("button", { type: "button" }, head.textContent);
      // The highest first: of most numbers it is what one looks for.
      button.addEventListener("click", () => sort(table, at, head.getAttribute("aria-sort") !== "descending"));
      head.replaceChildren(button);
    });
  }

  function filterable(table) {
    const rows = [...table.tBodies[0].rows];
    const told = element("output", {});
    const fields = [...table.tHead.rows[0].cells].flatMap((head, at) => {
      if (!("setting" in head.dataset)) return [];
      const values = [...new Set(rows.map((row) => text(row, at)))];
      const listed = values.length <= LISTED;
      const options = () => [element("option", { value: "" }, "all"), ...values.map((v) => element("option", { value: `=${v}` }, v))];
      const field = listed ? element("select", {}, ...options()) : element("input", { type: "search", size: 8 });
      field.setAttribute("aria-label", head.textContent);
      field.addEventListener("input", apply);
      const fits = (row) => !field.value || (listed ? text(row, at) === field.value.slice(1) : text(row, at).includes(field.value));
      return [{ label: element("label", {}, head.textContent, " ", field), fits }];
    });
    function apply() {
      rows.forEach((row) => (row.hidden = !fields.every((field) => field.fits(row))));
      const shown = rows.filter((row) => !row.hidden).length;
      told.textContent = shown < rows.length ? `${shown} of ${rows.length}` : "";
    }
    if (fields.length && rows.length > 1)
      table.parentElement.before(element("div", { className: "filters" }, "Only ", ...fields.map((field) => field.label), told));
  }

  document.querySelectorAll("table.sortable").forEach((table) => {
    filterable(table);
    sortable(table);
  });
})();
