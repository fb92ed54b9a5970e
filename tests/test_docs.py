"""What README and docs say can be done is done here, as they say it."""

import re
from pathlib import Path

from dpo.data.lint import REASONS
from dpo.recipe.arguments import LAYOUTS
from support.commands import make
from support.docs import DOCS, README, blocks
from support.place import ROOT


def test_the_python_of_the_readme_runs(tiny_model):
    (code,) = blocks("python")
    exec(code.replace("outputs/smollm2-sentiment", str(tiny_model)), {})


def test_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    output = make().stdout
    for target in phony.split():
        assert f"  make {target} " in output, target
        assert f"make {target}" in README, target


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
    made_by_a_run = ("outputs", "models", "cache", ".venv")
    names = re.findall(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:md|txt|toml|yaml|py))`", README + DOCS)
    assert names
    for name in names:
        if not name.startswith(made_by_a_run):
            assert (ROOT / name).exists(), name


def test_the_layout_of_the_readme_is_the_layout():
    (tree,) = [text for text in blocks("text") if "recipes/" in text]
    for line in tree.splitlines():
        name = line.split()[0]
        places = (ROOT, ROOT / "scripts", ROOT / "scripts/dpo")
        assert any((place / name).exists() for place in places), name
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        if path.name != "__init__.py":
            assert path.name in tree, path


def test_the_picture_of_the_readme_is_there():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert Path(ROOT, picture).stat().st_size < 300_000


def test_the_tests_that_the_docs_name_are_there():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", DOCS)
    assert len(named) > 40
    for name in named:
        assert f"def {name}(" in tests, name
