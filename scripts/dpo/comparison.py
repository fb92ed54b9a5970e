"""Runs beside each other, from what their folders hold: what differs between them, and by how much
they differ in the end."""

from __future__ import annotations

import datetime
import functools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dpo import metrics, output, report
from dpo.arguments import decides
from dpo.contestants import RUNS, run_folder
from dpo.evaluation import accuracy
from dpo.intervals import Interval, bootstrap
from dpo.recipe import make_parser

MOVED_ASIDE = re.compile(r"\.\d{8}-\d{6}$")  # by --restart
PLACES = {"output_dir", "run_name", "recipe"}  # no setting


@dataclass
class Compared:
    """A run as it is compared.

    `name` says what differs from the others. `report` and `evaluations` are empty for a run that
    has not come so far; `entries` are its lines of metrics.jsonl.
    """

    folder: Path
    settings: dict[str, Any]
    report: dict[str, Any]
    entries: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]
    name: str = ""
    differs: dict[str, str] = field(default_factory=dict)

    @property
    def curves(self) -> dict[str, list[dict]]:
        if self.entries:
            return report.curves(self.entries)
        return self.report.get("curves", {"train": [], "held_out": []})

    @property
    def state(self) -> str:
        if self.report:
            return "finished"
        return f"not finished, step {self.entries[-1]['step']}" if self.entries else "not trained"


def runs_of(recipe: str) -> list[Path]:
    """The folders of a recipe's runs, those of its sweeps too; not those moved aside.

    Raises:
        SystemExit: it has none.
    """
    found, others = [], set()
    for settings in sorted(
        [*RUNS.glob(f"*/{output.SETTINGS}"), *RUNS.glob(f"*/*/{output.SETTINGS}")]
    ):
        name = yaml.safe_load(settings.read_text(encoding="utf-8")).get("recipe")
        if name != recipe:
            others.add(str(name))
        elif not MOVED_ASIDE.search(str(settings.parent)):
            found.append(settings.parent)
    if not found:
        raise SystemExit(
            f"no run of RECIPE={recipe}; there are runs of: {', '.join(sorted(others))}"
        )
    return found


def folders(names: list[str]) -> list[Path]:
    """The folders of runs, by path or by name under outputs/.

    Raises:
        SystemExit: one of them is no run.
    """
    found = []
    for name in names:
        folder = run_folder(name)
        if not folder:
            runs = sorted(str(path.parent) for path in RUNS.glob(f"**/{output.SETTINGS}"))
            known = ", ".join(runs) or "no run is here yet"
            raise SystemExit(f"RUNS: no run at {name}; the runs here: {known}")
        found.append(folder)
    return found


def read(folder: Path) -> Compared:
    def loaded(path: Path) -> dict:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    settings = yaml.safe_load((folder / output.SETTINGS).read_text(encoding="utf-8"))
    evaluations = {
        path.parent.name: loaded(path)
        for path in sorted(folder.glob("evaluations/*/evaluation.json"))
    }
    return Compared(
        folder, settings, loaded(folder / output.REPORT), metrics.read(folder), evaluations
    )


def collect(given: list[Path]) -> list[Compared]:
    """The runs, each named by the settings in which it differs from the others."""
    runs = [read(folder) for folder in given]
    keys = differing([run.settings for run in runs])
    for run in runs:
        run.differs = {key: str(_stated(run.settings, key)) for key in keys}
        learned = {key: value for key, value in run.differs.items() if decides(key)}
        stated = ", ".join(f"{key}={value}" for key, value in learned.items())
        run.name = stated if 0 < len(stated) <= 60 else str(run.folder).removeprefix(f"{RUNS}/")
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:  # the same run twice
            run.name = str(run.folder).removeprefix(f"{RUNS}/")
    return runs


def differing(settings: list[dict[str, Any]]) -> list[str]:
    """The keys in which settings differ, in the order of the first that states them."""
    keys = dict.fromkeys(key for each in settings for key in each if key not in PLACES)
    return [
        key
        for key in keys
        if any(_stated(each, key) != _stated(settings[0], key) for each in settings)
    ]


@functools.cache
def _defaults() -> dict[str, Any]:
    return vars(make_parser().parse_known_args([])[0])


def _stated(settings: dict[str, Any], key: str) -> Any:
    return settings.get(key, _defaults().get(key))


def surroundings(runs: list[Compared]) -> dict[str, list[str]]:
    """What else differs, and could be the reason of a difference: versions, machine, data, code."""
    facts = []
    for run in runs:
        data = run.report.get("data", {})
        facts.append(
            {
                **run.report.get("versions", {}),
                "machine": run.report.get("machine"),
                "code": run.report.get("commit"),
                "data": data.get("name"),
                "rows": data.get("rows"),
                "set aside": data.get("set_aside"),
                "recipe": run.settings.get("recipe"),
            }
            if run.report
            else {}
        )
    known = [fact for fact in facts if fact]
    return {
        key: [str(fact.get(key, "")) for fact in facts]
        for key in (known[0] if known else {})
        if any(fact.get(key) != known[0].get(key) for fact in known)
    }


@dataclass
class Row:
    """A metric of every run: `values` as text, and how each differs from the first run, if that can
    be told pair by pair or prompt by prompt."""

    name: str
    values: list[str]
    differences: list[Interval | None]
    higher_is_better: bool | None = None

    def best(self) -> int | None:
        """The run that is better than the first one beyond noise, or the first one if all others
        are worse so; None where noise could be the reason."""
        if self.higher_is_better is None:
            return None
        sign = 1 if self.higher_is_better else -1
        others = [(at, d) for at, d in enumerate(self.differences) if at and d]
        better = [at for at, d in others if (d.low if sign > 0 else -d.high) > 0]
        if better:
            return max(better, key=lambda at: sign * self.differences[at].mean)
        worse = [at for at, d in others if (d.high if sign > 0 else -d.low) < 0]
        return 0 if others and len(worse) == len(self.values) - 1 else None


def rows(runs: list[Compared]) -> list[Row]:
    """All that is known of the runs in the end."""
    table = [Row("state", [run.state for run in runs], [None] * len(runs))]
    table += [_accuracy(runs), _margin(runs), _reward(runs)]
    table += [
        _plain(runs, "KL, nats a sequence", ("kl_nats_per_sequence",), ".2f"),
        _plain(runs, "KL, nats a token", ("kl_nats_per_token",), ".3f"),
        _plain(runs, "answer, tokens", ("mean_tokens", "after"), ".1f"),
        *_best(runs),
        *_evaluated(runs),
        Row("alerts", [_alerts(run) for run in runs], [None] * len(runs)),
        Row("minutes", [_minutes(run) for run in runs], [None] * len(runs)),
        _plain(runs, "peak memory, GB", ("peak_memory_gb",), ".1f"),
    ]
    return [row for row in table if row and any(row.values)]


def _paired(runs: list[Compared], values: list[np.ndarray | None]) -> list[Interval | None]:
    """The difference of each run's values from the first run's, paired; None where the pairs are
    not the same ones."""
    first = values[0]
    return [
        bootstrap(each - first)
        if at and each is not None and first is not None and each.shape == first.shape
        else None
        for at, each in enumerate(values)
    ]


def _margins(run: Compared) -> np.ndarray | None:
    margins = run.report.get("margins")
    return np.array(margins) if margins else None


def interval(of: dict, form: str, mean: str = "after") -> str:
    return f"{of[mean]:{form}} ({of['low']:{form}} to {of['high']:{form}})"


def _accuracy(runs: list[Compared]) -> Row:
    found = [run.report.get("preference_accuracy") for run in runs]
    values = [_margins(run) for run in runs]
    right = [None if margins is None else accuracy(margins) for margins in values]
    said = [interval(of, ".3f") if of else "" for of in found]
    return Row("held-out accuracy", said, _paired(runs, right), True)


def _margin(runs: list[Compared]) -> Row:
    """Not better or worse: it is in units of β."""
    said = [interval(of, "+.3f") if (of := run.report.get("margin")) else "" for run in runs]
    return Row("held-out margin", said, [None] * len(runs))


def _reward(runs: list[Compared]) -> Row:
    found = [run.report.get("true_reward") for run in runs]
    said = [
        f"{of['after']:+.3f} (rise {of['difference']:+.3f}, {of['low']:+.3f} to {of['high']:+.3f})"
        if of
        else ""
        for of in found
    ]
    answers = [run.report.get("answers") for run in runs]
    means = [None if of is None else np.array(of["after"]).mean(axis=1) for of in answers]
    return Row("true reward", said, _paired(runs, means), True)


def _plain(runs: list[Compared], name: str, path: tuple[str, ...], form: str) -> Row:
    said = []
    for run in runs:
        value: Any = run.report
        for key in path:
            value = value.get(key) if value else None
        said.append("" if value is None else f"{value:{form}}")
    return Row(name, said, [None] * len(runs))


def _best(runs: list[Compared]) -> list[Row]:
    """The best of what was seen at evaluations along the run, and when."""

    def best(run: Compared, key: str, sign: int) -> str:
        points = [point for point in run.curves["held_out"] if point[key] is not None]
        if not points:
            return ""
        point = max(points, key=lambda point: sign * point[key])
        return f"{point[key]:.4f} at step {point['step']}"

    names = {"best held-out loss": ("loss", -1), "best held-out accuracy": ("accuracy", 1)}
    return [
        Row(name, [best(run, key, sign) for run in runs], [None] * len(runs))
        for name, (key, sign) in names.items()
    ]


def _evaluated(runs: list[Compared]) -> list[Row]:
    """Win rates and benchmarks of `make evaluate`, wherever a run has them."""
    table: dict[str, list[str]] = {}

    def put(name: str, at: int, said: str) -> None:
        table.setdefault(name, [""] * len(runs))[at] = said

    for at, run in enumerate(runs):
        for name, found in run.evaluations.items():
            if judge := found.get("judge"):
                put(f"win rate, {name}", at, interval(judge["win_rate"], ".3f", "mean"))
                if controlled := judge["length_controlled_win_rate"]:
                    said = interval(controlled, ".3f", "mean")
                    put(f"length-controlled, {name}", at, said)
            for task, measured in (found.get("suite") or {}).items():
                for metric, of in measured.items():
                    said = f"{of['policy']:.4f} (against {of['against']:.4f})"
                    put(f"{task}, {metric}", at, said)
    return [Row(name, said, [None] * len(runs)) for name, said in table.items()]


def _alerts(run: Compared) -> str:
    return ", ".join(f"{alert['kind']} ({alert['step']})" for alert in run.report.get("alerts", []))


def _minutes(run: Compared) -> str:
    return f"{sum(run.report['seconds'].values()) / 60:.1f}" if run.report else ""


def samples(runs: list[Compared]) -> list[dict[str, Any]]:
    """Prompts that all finished runs have answered: the prompt, what the reference said, and each
    run's answer, (name, text, reward)."""
    finished = [run for run in runs if run.report.get("samples")]
    of = [{row["prompt"]: row for row in run.report["samples"]} for run in finished]
    shared = [prompt for prompt in (of[0] if of else ()) if all(prompt in each for each in of)]
    return [
        {
            "prompt": prompt,
            "reference": (of[0][prompt]["before"], of[0][prompt]["reward_before"]),
            "answers": [
                (run.name, each[prompt]["after"], each[prompt]["reward_after"])
                for run, each in zip(finished, of, strict=True)
            ],
        }
        for prompt in shared
    ]


def today() -> str:
    return f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
