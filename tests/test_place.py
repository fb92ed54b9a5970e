"""No test depends on what is in the checkout besides what was cloned."""

import os
import subprocess
from pathlib import Path

import datasets
import pytest

from support.place import EMBEDDED, EMBEDDED_MODEL, ROOT, lay_out


def test_what_runs_have_left_is_out_of_reach(tmp_path):
    checkout = Path(__file__).resolve().parents[1]
    used, top = tmp_path / "used", tmp_path / "top"
    left = ("outputs/smollm2-sentiment/report.json", "models/mine/config.json", "wandb/run/x")
    left += ("cache/answers/x", "cache/reference/x", "cache/suites/x", ".venv/ready", ".git/x")
    cloned = ("recipes/smollm2-sentiment.yaml", "scripts/train.py", "README.md")
    for name in (*left, *cloned, f"{EMBEDDED}/config.json", ".gitignore"):
        (used / name).parent.mkdir(parents=True, exist_ok=True)
        (used / name).write_bytes(Path(checkout / ".gitignore").read_bytes())
    lay_out(used, top)
    assert not any((top / name).exists() for name in left)
    assert all((top / name).exists() for name in (*cloned, f"{EMBEDDED}/config.json"))


def test_a_users_own_recipe_is_held_to_no_test(tmp_path):
    """As `make new` writes one, until `make shelf` puts it on the shelf."""
    used, top = tmp_path / "used", tmp_path / "top"
    for name in (".gitignore", *(f"recipes/{name}.yaml" for name in ("theirs", "mine", "next"))):
        (used / name).parent.mkdir(parents=True, exist_ok=True)
        (used / name).touch()
    (used / "recipes/README.md").write_text("| [next](next.yaml) | a model |")
    for command in (["init", "--quiet"], ["add", ".gitignore", "recipes/theirs.yaml"]):
        subprocess.run(["git", "-C", used, *command], check=True)
    lay_out(used, top)
    there = sorted(path.name for path in (top / "recipes").iterdir())
    assert there == ["README.md", "next.yaml", "theirs.yaml"]


def test_that_is_where_tests_run():
    checkout = Path(__file__).resolve().parents[1]
    assert Path.cwd() == ROOT and not ROOT.is_relative_to(checkout)
    assert not any((ROOT / name).exists() for name in ("outputs", "cache", "wandb", ".git"))
    assert list(EMBEDDED_MODEL.parent.iterdir()) == [EMBEDDED_MODEL]
    assert Path(os.environ["HF_HOME"]).parent == ROOT.parent
    assert Path(datasets.config.HF_DATASETS_CACHE).is_relative_to(ROOT.parent)


@pytest.mark.parametrize("time", ["first", "second"])
def test_what_a_test_sets_ends_with_it(time):
    assert "SET_BY_A_TEST" not in os.environ
    os.environ["SET_BY_A_TEST"] = time
