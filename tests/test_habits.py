"""The files that GitHub and pre-commit read say what the rest of the repository says."""

import re

import pytest
import yaml

from support.place import ROOT

REQUIREMENTS = (ROOT / "requirements.txt").read_text()
FILES = [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_parses(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_the_workflow_runs_targets_that_there_are():
    text = (ROOT / ".github/workflows/tests.yml").read_text()
    (job,) = yaml.safe_load(text)["jobs"].values()
    words = " ".join(job["strategy"]["matrix"]["run"]).split()
    asked = {word for word in words if word != "make" and re.fullmatch(r"[a-z][a-z-]+", word)}
    makefile = (ROOT / "Makefile").read_text()
    assert asked <= {*re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE)}
    tests = {*re.findall(r"^(test[a-z-]*):", makefile, flags=re.MULTILINE)}
    assert tests - asked == {"test-gemma", "test-trl"}, "these two take what CI has not"
    for used in re.findall(r"uses: (.*)", text):
        assert re.fullmatch(r"\S+@[0-9a-f]{40}  # v[\d.]+", used), f"{used}: pin a commit"


def test_what_is_pinned_can_constrain_what_is_optional():
    """make evaluate SUITE= installs lm-eval beside it; pip takes no constraint with an extra."""
    lines = [line.split("#")[0].strip() for line in REQUIREMENTS.splitlines()]
    for line in filter(None, lines):
        assert re.fullmatch(r"(--\S+ \S+|[\w.-]+==[\w.+]+( ?;.*)?)", line), line


def test_ruff_is_one_version():
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert f"\nruff=={hook['rev'].removeprefix('v')}\n" in REQUIREMENTS


def test_the_version_is_one():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest[1] == cited
