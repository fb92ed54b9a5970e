"""Runs beside each other, from what their folders hold: which ones, and what differs between
them."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dpo.recipe.arguments import decides
from dpo.recipe.parse import make_parser
from dpo.reports import results, run_report
from dpo.runs import metrics, output_folder
from dpo.runs.output_folder import RUNS, settings_of

PLACES = {"output_dir", "run_name", "recipe"}  # no setting
LONGEST_NAME = 60  # characters


@dataclass
class Compared:
    """A run as it is compared.

    `name` says what differs from the others, `differs` holds it by key, and `seed` is the one that
    only training is drawn by. `report` and
    `evaluations` are empty for a run that has not come so far; `entries` are its lines of
    metrics.jsonl.
    """

    folder: Path
    settings: dict[str, Any]
    report: dict[str, Any]
    entries: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]
    name: str = ""
    differs: dict[str, str] = field(default_factory=dict)
    seed: str = ""

    @cached_property
    def curves(self) -> dict[str, list[dict]]:
        if self.entries:
            return run_report.curves(self.entries)
        return self.report.get("curves", {"train": [], "held_out": []})

    @property
    def state(self) -> str:
        """How far it came. A run that failed and one that was killed leave the same behind."""
        if self.report:
            return "finished"
        step = f"step {self.entries[-1]['step']}" if self.entries else "step 0"
        if output_folder.going_on(self.folder):
            return f"going on, {step}"
        if (self.folder / output_folder.TRAINED).is_file():
            return "trained, not evaluated"
        log = self.folder.with_name(f"{self.folder.name}.log")  # a sweep's
        return f"not finished, {step}" + (f": see {log}" if log.is_file() else "")


def read(folder: Path) -> Compared:
    found = sorted(folder.glob("evaluations/*/evaluation.json"))
    evaluations = {path.parent.name: results.read(path) for path in found}
    finished = results.read(folder / output_folder.REPORT)
    return Compared(folder, settings_of(folder), finished, metrics.read(folder), evaluations)


def collect(given: list[Path]) -> list[Compared]:
    """The runs, each named by the settings in which it differs from the others."""
    runs = [read(folder) for folder in given]
    defaults = vars(make_parser().parse_known_args([])[0])
    stating = dict.fromkeys(key for run in runs for key in run.settings if key not in PLACES)
    values = {key: [run.settings.get(key, defaults.get(key)) for run in runs] for key in stating}
    keys = [key for key, each in values.items() if any(value != each[0] for value in each)]
    keys.sort(key=lambda key: not decides(key))  # what decides what is learned comes first
    for at, run in enumerate(runs):
        run.seed = plain(run.settings.get("seed", defaults["seed"]))
        run.differs = {key: plain(values[key][at]) for key in keys}
        run.name = " ".join(f"{key}={run.differs[key]}" for key in keys if decides(key))
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1 or not 0 < len(run.name) <= LONGEST_NAME:
            run.name = str(run.folder).removeprefix(f"{RUNS}/")
    return runs


def seeds_alone(runs: list[Compared]) -> bool:
    """Whether nothing that decides what is learned differs but the seed: the best of such is the
    luckiest."""
    return {key for key in runs[0].differs if decides(key)} == {"seed"}


def plain(value: Any) -> str:
    """A value as a recipe would state it: `12`, `2e-05`, `sigmoid`."""
    if value is None:
        return "default"
    if isinstance(value, list):
        return "+".join(map(plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def surroundings(runs: list[Compared]) -> dict[str, list[str]]:
    """What else differs between finished runs, and could be the reason of a difference: versions,
    machine, data, code. By name, the value of each run; "" for one that has not finished."""
    facts = [_facts(run) if run.report else {} for run in runs]
    known = [*filter(None, facts)]
    return {
        key: [str(fact.get(key, "none")) if fact else "" for fact in facts]
        for key in dict.fromkeys(key for fact in known for key in fact)
        if any(fact.get(key) != known[0].get(key) for fact in known)
    }


def _facts(run: Compared) -> dict[str, Any]:
    data = run.report.get("data", {})
    rows, aside, left_out = (data.get(key, {}) for key in ("rows", "set_aside", "left_out"))
    return {
        **run.report.get("versions", {}),
        "machine": run.report.get("machine"),
        "code": run.report.get("commit") or "not known",
        "recipe": run.settings.get("recipe"),
        "data": data.get("name"),
        "held-out pairs": (run.report["pairs"] or {}).get("digest") or "not known",
        **{f"rows, {split}": count for split, count in rows.items()},
        **{f"set aside, {split}": sum(of.values()) for split, of in aside.items()},
        **{f"left out, {split}": sum(of.values()) for split, of in left_out.items()},
    }


def warnings(runs: list[Compared]) -> list[str]:
    """`surroundings` in words: the runs of each value by name, those of the commonest last."""
    lines = []
    for key, values in surroundings(runs).items():
        by_value: dict[str, list[str]] = {}
        for run, value in zip(runs, values, strict=True):
            by_value.setdefault(value, []).append(run.name)
        by_value.pop("", None)
        *few, (most, names) = sorted(by_value.items(), key=lambda item: len(item[1]))
        others = [(most, ["the others"] if len(names) > 1 else names)]
        said = "; ".join(f"{value} ({', '.join(names)})" for value, names in [*few, *others])
        lines.append(f"{key}: {said}")
    return lines
