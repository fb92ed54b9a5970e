"""make compare on real runs."""

import json

from support.browser import DESKTOP, PHONE, fits, opened
from support.commands import make
from support.launched import made


def test_real_runs_are_compared_through_make(swept, tmp_path):
    folder, _, _ = swept
    names = f"RUNS={folder}/beta=0.1 {folder}/beta=0.3"
    result = make("compare", names, f"AGAINST={folder}/beta=0.3", f"OUTPUT={tmp_path}")
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Written: {tmp_path}/comparison.html" in result.stdout
    assert "Next: who wins? make evaluate RUN=" in result.stdout
    assert "held-out accuracy: all within noise of the highest, beta=0.3" in result.stdout
    assert "Not the settings alone" not in result.stdout
    head = next(line for line in result.stdout.splitlines() if "beta=0.1" in line)
    assert head.index("beta=0.3") < head.index("beta=0.1")
    report = json.loads((folder / "beta=0.1/report.json").read_text())
    assert len(report["pairs"]["digest"]) == 16
    for width in (PHONE, DESKTOP):
        with opened((tmp_path / "comparison.html").as_uri(), width) as page:
            assert page.errors == []
            assert fits(page) and page.locator(".curves canvas").count() == 7
            assert page.locator("table[data-what=run] tbody tr").count() == 2
            assert page.get_by_text("While they trained").is_visible()


def test_nothing_to_compare_is_one_line():
    result = made("compare", "RECIPE=none")
    assert result.returncode
    last = result.stderr.strip().splitlines()
    assert any(line.startswith("no run of RECIPE=none; there are runs of: ") for line in last)
    assert "Traceback" not in result.stderr
