"""What docs/learn.md says was measured is what docs/learn/*.json holds."""

import importlib
import json
import re
from pathlib import Path

import learn as command
from dpo.learn import noise
from support.docs import blocks
from support.place import ROOT

PAGE = ROOT / "docs/learn.md"
CITED = re.compile(r"\]\(learn/(\w+)\.json\)")


def wrong(page: str, folder: Path) -> list[str]:
    """The tables, in sections of a page that name a JSON file of `folder`, that are not those which
    its experiment makes of it; and the numbers with a decimal point, in paragraphs that name one,
    that are not claimed in it, rounded as they are printed."""
    found = []
    for section in re.split(r"^## ", page, flags=re.MULTILINE):
        held = {
            name: json.loads((folder / f"{name}.json").read_text())
            for name in CITED.findall(section)
        }
        tables = [importlib.import_module(f"dpo.learn.{n}").table(r) for n, r in held.items()]
        parts = [part.strip() for part in section.split("\n\n") if part.strip()]
        if held:
            found += [p for p in parts if p[0] == "|" and not any(p in t for t in tables)]
        for part in parts:
            claimed = [v for name in CITED.findall(part) for v in held[name]["claims"].values()]
            text = re.sub(r"\]\([^)]*\)", "]", part)  # where links lead says nothing
            for number in re.findall(r"\d+\.\d+", text) if CITED.search(part) else ():
                places = len(number.partition(".")[2])
                if f"{float(number):.{places}f}" not in {f"{abs(v):.{places}f}" for v in claimed}:
                    found.append(number)
    return found


def test_what_the_page_says_is_what_was_measured():
    page = PAGE.read_text()
    assert wrong(page, ROOT / "docs/learn") == []
    written = {path.stem for path in (ROOT / "docs/learn").glob("*.json")}
    assert written == {*CITED.findall(page)}, (
        "what was measured and is said nowhere, or is not there"
    )
    for name in written:
        assert (ROOT / f"docs/learn/{name}.png").stat().st_size < 120_000
        assert f"](learn/{name}.png)" in page


def test_a_page_that_says_otherwise_is_found_out(tmp_path):
    point = {"mean": 0.5123, "low": 0.4, "high": 0.6}
    metrics = dict.fromkeys(noise.METRICS, point)
    results = {
        "points": [{"rate": 0.3, "loss": "ipo", **metrics}],
        "to_sigmoid": [],
        "to_clean": [],
    }
    results |= {"ceiling": 0.9, "reference": {}, "labels": {}}
    (tmp_path / "noise.json").write_text(json.dumps(results | {"claims": noise.claims(results)}))
    first = noise.table(results).split("\n\n")[0]
    said = "With `ipo` it is 0.51, from 0.400 ([all](learn/noise.json))."
    right = f"# A\n\n9.99 stands elsewhere.\n\n## B\n\n{said}\n\n{first}\n\n## C\n\n| a |\n"
    assert wrong(right, tmp_path) == []
    assert wrong(right.replace("0.51,", "0.52,"), tmp_path) == ["0.52"]
    (table,) = wrong(right.replace("| 30% | ipo | +0.512", "| 30% | ipo | +0.513"), tmp_path)
    assert table.startswith("| swapped |")


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
