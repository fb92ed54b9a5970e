"""The job of make check-gpu, the rows of its table, and how they are written."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dpo.core.files import write_json, write_whole

JSON, TABLE = "check-gpu.json", "check-gpu.md"
WITHIN = 0.1  # of what a plan says, a peak


@dataclass
class Job:
    """What all parts of a check have in common.

    Attributes:
        device: "cuda", or "cpu" to try the parts.
        model, data: of the runs.
        folder: everything is written there.
        small: leaves out what takes long on a CPU.
    """

    device: str
    model: Path
    data: str
    folder: Path
    small: bool

    @property
    def single(self) -> str:
        """The launch config of one process that shards nothing."""
        return "single_gpu" if self.device == "cuda" else "cpu"

    @property
    def half(self) -> str:
        """What the short runs compute in: transformers allows bfloat16 on a GPU only."""
        return "bfloat16" if self.device == "cuda" else "float32"


@dataclass
class Row:
    """One line of the table: `outcome` is passed, failed, skipped or not run."""

    name: str
    outcome: str
    measured: str = ""
    bound: str = ""
    seconds: float = 0.0
    figures: dict = field(default_factory=dict)


def judged(name: str, good: bool, measured: str, bound: str = "", **figures) -> Row:
    return Row(name, "passed" if good else "failed", measured, bound, figures=figures)


def skipped(name: str, reason: str, bound: str = "", **figures) -> Row:
    return Row(name, "skipped", reason, bound, figures=figures)


def memory(name: str, job: Job, found: float, planned: float, low: bool = True) -> Row:
    """A peak as PyTorch's allocator counts what it has given out, beside what make plan says of it,
    both in GB; without `low` it may be as far below as it likes.

    On a CPU the peak is that of the process, libraries and all, and is not judged.
    """
    off = found / planned - 1
    says, bound = f"{found:.2f} GB at peak, {off:+.0%}", f"planned {planned:.2f} GB, "
    bound += f"{'±' if low else 'at most +'} {WITHIN:.0%}"
    good = off <= WITHIN and (not low or off >= -WITHIN)
    row = judged(name, good, says, bound, peak_gb=found, planned_gb=planned)
    if job.device == "cpu":
        row.outcome, row.measured = "skipped", f"{says}: judged on a GPU only"
    return row


def line(row: Row) -> str:
    """A row as it is told while the check goes on."""
    bound = f" ({row.bound})" if row.bound else ""
    return f"{row.outcome:>8}  {row.name}: {row.measured}{bound}, {row.seconds:.0f} s"


def counted(rows: list[Row]) -> str:
    outcomes = [row.outcome for row in rows]
    return ", ".join(f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes))


def table(results: dict) -> str:
    """The results in Markdown, fit for docs/gpu.md."""
    rows = [Row(**row) for row in results["rows"]]
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        f"{results['machine']}; {packages}; commit {results['commit'] or 'unknown'}, "
        f"{results['date']}: {counted(rows)}, in {results['minutes']:.1f} minutes.",
        "",
        "| check | outcome | measured | bound or prediction | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = (row.name, row.outcome, row.measured, row.bound or "–", f"{row.seconds:.0f}")
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def write(results: dict, folder: Path) -> None:
    write_json(folder / JSON, results)
    write_whole(folder / TABLE, table(results))


def append(row: Row, path: Path) -> None:
    """Add a row to what a part has found so far; a part that dies leaves those before it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")
