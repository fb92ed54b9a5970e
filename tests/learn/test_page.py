"""What pages say was measured by `make learn` is what docs/learn/*.json holds."""

import importlib
import json
import re
from pathlib import Path

import pytest

import learn as command
from dpo.learn import noise
from support.docs import DOCS, PAGES, blocks
from support.place import ROOT

LEARN = ROOT / "docs/learn"
PAGE = ROOT / "docs/learn.md"
SIGNS = {"": abs, "+": float, "-": float.__neg__, "−": float.__neg__}


def cited(text: str, page: Path, folder: Path) -> list[str]:
    """The names of the JSON files of a folder that a text links, which stands on this page."""
    targets = [page.parent / target for target in re.findall(r"\]\(([^)#\s]+\.json)\)", text)]
    return [path.stem for path in targets if path.resolve().parent == folder.resolve()]


def unclaimed(text: str, claims: list[float]) -> list[str]:
    """The numbers of a text with a decimal point that are no claim, rounded as they are printed. A
    number that has a sign is held to it."""
    found = []
    text = re.sub(r"\]\([^)]*\)", "]", text)  # where links lead says nothing
    for sign, number in re.findall(r"(?<![\w.])([+−-]?)(\d+\.\d+)", text):
        form = f".{len(number.partition('.')[2])}f"
        if format(float(number), form) not in {format(SIGNS[sign](v), form) for v in claims}:
            found.append(sign + number)
    return found


def wrong(text: str, page: Path, folder: Path) -> list[str]:
    """What is said on a page in the name of a JSON file of a folder, and is not in it: in sections
    that link one, of any level, tables that its experiment does not make so and that have a number
    which is not claimed; in paragraphs that link one, such numbers."""
    found = []
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE):
        held = {
            name: json.loads((folder / f"{name}.json").read_text())
            for name in cited(section, page, folder)
        }
        made = [importlib.import_module(f"dpo.learn.{n}").table(r) for n, r in held.items()]
        for part in (part.strip() for part in section.split("\n\n") if part.strip()):
            table = part[0] == "|"
            of = [*held] if table else cited(part, page, folder)
            claims = [float(v) for name in of for v in held[name]["claims"].values()]
            if of and not (table and any(part in each for each in made)):
                found += unclaimed(part, claims)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_a_page_says_is_what_was_measured(page):
    assert wrong(page.read_text(), page, LEARN) == []


def test_what_was_measured_is_said_and_shown():
    written = {path.stem for path in LEARN.glob("*.json")}
    assert written == {*cited(PAGE.read_text(), PAGE, LEARN)}, "said nowhere, or not there"
    for name in written:
        assert (LEARN / f"{name}.png").stat().st_size < 120_000
        assert f"](learn/{name}.png)" in DOCS


@pytest.mark.parametrize("at, to", [("a.md", "learn/"), ("guides/a.md", "../learn/")])
def test_a_page_that_says_otherwise_is_found_out(at, to, tmp_path):
    point = {"mean": 0.5123, "low": -0.4, "high": 0.6}
    metrics = dict.fromkeys(noise.METRICS, point)
    results = {
        "points": [{"rate": 0.3, "loss": "ipo", **metrics}],
        "to_sigmoid": [],
        "to_clean": [],
    }
    results |= {"ceiling": 0.9, "reference": {}, "labels": {}}
    folder = tmp_path / "learn"
    folder.mkdir()
    (tmp_path / "guides").mkdir()
    (folder / "noise.json").write_text(json.dumps(results | {"claims": noise.claims(results)}))
    first = noise.table(results).split("\n\n")[0]
    said = f"With `ipo` it is 0.51, from −0.400 ([all]({to}noise.json))."
    mine = "| loss | reward |\n|---|---|\n| ipo | +0.51 (-0.4 to +0.6) |"
    parts = ("# A", "9.99 stands elsewhere.", "### B", said, first, mine, "## C", "| 9.99 |")
    right = "\n\n".join(parts)

    def found(text: str) -> list[str]:
        return wrong(text, tmp_path / at, folder)

    assert found(right) == []
    assert found(right.replace("0.51,", "0.52,")) == ["0.52"]
    assert found(right.replace("−0.400 (", "+0.400 (")) == ["+0.400"]
    assert found(right.replace("| 30% | ipo | +0.512", "| 30% | ipo | +0.513")) == ["+0.513"]
    assert found(right.replace("+0.51 (", "+0.57 (")) == ["+0.57"]
    assert found(right.replace("## C", "C")) == ["9.99"]  # it is of the section then
    assert found(right.replace(f"{to}noise.json", "other/noise.json")) == []


def test_the_page_lists_every_experiment_with_its_time():
    listed = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    stated = {name: (float(minutes), shows) for name, minutes, shows in listed}
    assert [*stated.items()] == [*command.experiments().items()]
    assert any("make learn WHAT=" in text for text in blocks("bash"))


def test_the_labels_are_as_wrong_as_the_page_says(tmp_path):
    size = noise.Size()
    labels = noise.write_data(ROOT / "recipes/data/sentiment", tmp_path, size)
    shares = [f"{100 * each['against_score']:.1f}" for each in labels.values()]
    text = " ".join(PAGE.read_text().split())
    assert f"{labels['0%']['pairs'] * float(shares[0]) / 100:.0f} of the 501 go against" in text
    assert f"against the score: {shares[0]}%" in text
    assert f"{shares[1]}, {shares[2]} and {shares[3]}% of the labels then go against" in text
    assert f"A run has {size.steps} steps of 8 pairs" in text
    assert f"sees {8 * size.steps} of the 501 pairs" in text
