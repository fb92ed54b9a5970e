"""What README and docs say can be done is done here, as they say it."""

import re
from pathlib import Path

import pytest

from dpo.data.lint import REASONS
from dpo.recipe.arguments import LAYOUTS
from support.commands import make
from support.docs import DEVELOPMENT, DOCS, ELSEWHERE, PAGES, README, blocks
from support.place import ROOT


def test_the_python_of_the_readme_runs(tiny_model):
    code, rule = blocks("python")
    exec(code.replace("outputs/smollm2-sentiment", str(tiny_model)), {})
    known = {}
    exec(rule, known)  # of docs/pairs.md
    right, wrong = (known["score"]("Two plus two?", said, {"answer": "4"}) for said in "45")
    assert right > wrong


def test_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    output = make().stdout
    assert max(map(len, output.splitlines())) <= 100
    for target in phony.split():
        assert f"  make {target} " in output, target
        assert re.search(rf"^make {target}( |$)", DEVELOPMENT, flags=re.MULTILINE), target


def test_the_docs_name_every_config():
    text = (ROOT / "docs/scaling.md").read_text()
    for path in (ROOT / "accelerate_configs").glob("*.yaml"):
        assert f"| `{path.stem}` |" in text, path


def test_the_docs_name_every_layout_and_every_reason():
    text = (ROOT / "docs/data.md").read_text()
    for name in LAYOUTS:
        assert f"| `{name}` |" in text, name
    for name, says in REASONS.items():
        assert f"| `{name}` | {says}" in text, name


def test_every_path_that_the_readme_names_is_there():
    made_by_a_run = ("outputs", "models", "cache", ".venv", "resolved.yaml")
    made_by_a_run += ("train/", "eval/", "evaluate/", "rule.py")  # what W&B shows, the reader has
    names = re.findall(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:md|txt|toml|yaml|py))`", README + DOCS)
    assert names
    for name in names:
        if not name.startswith(made_by_a_run):
            assert (ROOT / name).exists() or (ROOT / "scripts/dpo" / name).exists(), name


def anchors(page: Path) -> set[str]:
    """What a link into a page can name: its headings, as GitHub spells them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if not path.startswith("http"):
            there = page.parent / path if path else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def tree(text: str) -> list[str]:
    """The paths of a tree that is drawn by indentation, two blanks a level, a remark after each."""
    paths: list[str] = []
    above: list[str] = []
    for line in text.splitlines():
        name = line.split()[0]
        above[(len(line) - len(line.lstrip())) // 2 :] = [name]
        paths.append("".join(above))
    return paths


def test_the_tree_of_the_docs_is_the_tree():
    (drawn,) = [text for text in blocks("text") if text.startswith("recipes/")]
    paths = tree(drawn)
    assert len(paths) == len({*paths})
    for path in paths:
        assert (ROOT / path).exists(), path
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        assert path.name == "__init__.py" or name in paths, f"docs/development.md lacks {name}"


def test_the_readme_is_a_front_door():
    assert len(README.splitlines()) < 140
    for room in sorted((ROOT / "scripts/dpo").iterdir()):
        if room.is_dir() and room.name[0] != "_":
            assert f"`{room.name}/`" in README, room


def test_the_picture_of_the_readme_is_there():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).stat().st_size < 300_000


def test_the_tests_that_the_docs_name_are_there():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", DOCS)
    assert len(named) > 40
    for name in named:
        assert f"def {name}(" in tests, name


def test_the_tests_that_run_commands_elsewhere_are_there():
    files = {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert {*re.findall(r"test_\w+\.py", str(ELSEWHERE))} <= files
