"""A recipe's header: what it says of itself, and the numbers that a run of it is held against."""

import re
from dataclasses import dataclass
from pathlib import Path

from dpo.core.refusal import Refusal

SHOWN = ("Published", "Machine", "Reached")  # by the table of the shelf
FORM = "`name 0.735 (0.698 to 0.771)`, the mean and 95% interval of its report, by comma"
NUMBER = re.compile(r"([A-Za-z][\w /-]*?) ([+-]?[\d.]+) \(([+-]?[\d.]+) to ([+-]?[\d.]+)\)")
BETWEEN = re.compile(r"(?<=\)), ")


@dataclass(frozen=True)
class Number:
    """A result that a header states, with its 95% interval there."""

    words: str  # its name there
    value: str  # as it is written, which says how many digits are known
    low: float
    high: float
    digits: int  # after the point, of the finest of the three

    @property
    def name(self) -> str:
        """Its name as `results.headline` has it."""
        return self.words.lower().replace(" ", "_")


@dataclass(frozen=True)
class Expected:
    """What a recipe comes to with these flags, none for the recipe as it is."""

    flags: tuple[str, ...]
    numbers: tuple[Number, ...]


def fields(path: Path) -> dict[str, str]:
    """The fields of a recipe's header, and its first line as `title`.

    Raises:
        Refusal: one is missing that the table of the shelf shows, or stands twice; or a number is
            of no field.
    """
    text = path.read_text(encoding="utf-8").split("\n\n")[0]
    text = re.sub(r"\n#   ", " ", text)
    title, *lines = (line.removeprefix("# ") for line in text.splitlines() or [""])
    found = {"title": title}
    for line in lines:
        key, _, said = line.partition(": ")
        if not said and NUMBER.search(line):
            after = "more of a line stands below it after `#` and three blanks"
            raise Refusal(f"{path}: {line!r} in its header is of no `# Name: ...`; {after}")
        if key in found:
            raise Refusal(f"{path}: its header has the line `# {key}:` twice")
        found[key] = said
    for key in SHOWN:
        if key not in found:
            raise Refusal(f"{path}: its header has no line `# {key}: ...`, which the table shows")
    return found


def reached(said: dict[str, str]) -> str:
    """What was reached, without what is said beside it."""
    return said["Reached"].split(";")[0].removesuffix(".")


def expected(path: Path) -> list[Expected]:
    """The numbers of `# Reached:`, up to its first semicolon, and of each `# With --flag=value:`;
    empty where nothing was reached.

    Raises:
        Refusal: a number is not written so that it can be read.
    """
    said, found = fields(path), []
    lines = {"Reached": reached(said)} if re.search(r"\d", reached(said)) else {}
    lines |= {key: text.removesuffix(".") for key, text in said.items() if key.startswith("With ")}
    for key, text in lines.items():
        numbers = []
        for each in BETWEEN.split(text):
            if not (match := NUMBER.fullmatch(each)):
                raise Refusal(f"{path}: `# {key}:` says {each!r}: write {FORM}")
            digits = max(len(part.partition(".")[2]) for part in match.groups()[1:])
            try:
                low, high = float(match[3]), float(match[4])
                numbers.append(Number(match[1], match[2], low, high, digits))
                inside = low <= float(match[2]) <= high
            except ValueError:
                inside = False
            if not inside:
                raise Refusal(f"{path}: `# {key}:` says {each!r}: no number within an interval")
            if numbers[-1].name in {number.name for number in numbers[:-1]}:
                raise Refusal(f"{path}: `# {key}:` says {match[1]!r} twice")
        found.append(Expected(tuple(key.split()[1:]), tuple(numbers)))
    return found
