"""docs/dpo.ipynb runs whole, as a reader runs it, and says what is committed of it."""

import copy
import re
import sys

import pytest

from support.notebook import PATH, code, printed, read, run
from support.place import ROOT

NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
# Lines of what was learned: a sum in another order has answers drawn otherwise.
LEARNED = re.compile(r" *(train|held-out) +step|before  true|after   true|change|KL |r̂ = |P\(")
NEAR = {"before": 0.02, "learned": 0.2}  # in the units of each; of what is over 1, a share of it


def far(committed: str, found: str, by: float) -> list[str]:
    """The numbers that differ by more; other words than were committed are a difference, too."""
    if NUMBER.sub("#", committed) != NUMBER.sub("#", found):
        return [f"{committed!r} became {found!r}"]
    pairs = zip(NUMBER.findall(committed), NUMBER.findall(found), strict=True)
    return [f"{a} → {b}" for a, b in pairs if abs(float(a) - float(b)) > by * max(1, abs(float(a)))]


@pytest.fixture(scope="module")
def again(request):
    """The cells as they are committed, and as they come out here."""
    committed = read(ROOT / PATH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VENV", sys.prefix)
        patch.chdir(ROOT)
        yield code(committed), code(run(copy.deepcopy(committed), ROOT))


def test_the_notebook_says_what_it_said(again):
    committed, found = again
    trained = next(n for n, cell in enumerate(committed) if "trainer.train()" in cell.source)
    for cell, now in zip(committed[:trained], found, strict=False):
        assert far(printed(cell), printed(now), NEAR["before"]) == []
    lines = [
        [
            line
            for cell in cells[trained:]
            for line in printed(cell).splitlines()
            if LEARNED.match(line)
        ]
        for cells in again
    ]
    assert len(lines[0]) > 15
    for line, now in zip(*lines, strict=True):
        assert far(line, now, NEAR["learned"]) == []
    assert [[o.output_type for o in c.outputs] for c in committed] == [
        [o.output_type for o in c.outputs] for c in found
    ]


def test_numbers_that_are_others_are_found_out():
    assert far("loss 0.50 at +1.0", "loss 0.51 at +1.1", 0.2) == []
    assert far("loss 0.50", "loss 0.75", 0.2) == ["0.50 → 0.75"]
    assert far("29.5 tokens", "31.5 tokens", 0.2) == [] and far("29.5", "39.5", 0.2)
    assert far("loss 0.50", "margin 0.50", 0.2)
