"""docs/dpo.ipynb as it is committed, and its first cells where nothing is installed. A whole run
of it is in tests/make/test_make_notebook.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from support.notebook import PATH, code, printed, read, run
from support.place import ROOT

NOTEBOOK = read(ROOT / PATH)
SET_UP = "\n".join(cell.source for cell in code(NOTEBOOK)[:2])


def test_it_is_committed_as_it_ran():
    cells = code(NOTEBOOK)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        for output in cell.outputs:  # no error, no warning, and nothing that a machine is called by
            stream = output.output_type == "stream" and output.name == "stdout"
            assert stream or "image/png" in output.get("data", ()), cell.source
        assert "execution" not in cell.metadata
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr|content)\b", printed(cell))
    assert (ROOT / PATH).stat().st_size < 100_000


def test_it_has_pictures_where_reports_have_none(monkeypatch, tmp_path):
    """What writes a report's picture says for its whole process that none is shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    drawn = nbformat.v4.new_code_cell(
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    )
    found = run(nbformat.v4.new_notebook(cells=[drawn]), tmp_path)
    assert [o.output_type for o in found.cells[0].outputs] == ["display_data"]


def test_its_cells_are_short():
    for cell in NOTEBOOK.cells:
        assert len(cell.source.splitlines()) <= 20, cell.source


def test_it_has_a_picture_and_a_number_to_change():
    pictures = [
        o for cell in code(NOTEBOOK) for o in cell.outputs if "image/png" in o.get("data", ())
    ]
    assert len(pictures) == 1
    places = [n for n, cell in enumerate(code(NOTEBOOK)) if "BETA" in cell.source]
    assert re.match(r"BETA = [\d.]+\b", code(NOTEBOOK)[places[0]].source) and len(places) > 3


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path) -> Path:
    """Something to clone, with the folder by which the notebook knows the repository."""
    folder = tmp_path / "published"
    (folder / "scripts/dpo").mkdir(parents=True)
    (folder / "scripts/dpo/__init__.py").touch()
    git(tmp_path, "init", "--quiet", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=a")
    return folder


def set_up(repository: Path | str, folder: Path, then: str = "print(Path.cwd(), *sys.path[:2])"):
    """Run the first two cells in a folder, with a make that notes its words and writes what the
    real one would."""
    tools = folder / "tools"
    tools.mkdir(parents=True, exist_ok=True)
    installed = f".venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (tools / "make").write_text(
        f'#!/bin/sh\necho "$@" "$PIP_EXTRA_INDEX_URL" >> {tools}/log\n'
        f"mkdir -p models/SmolLM2-135M-Instruct {installed}\n"
        "touch models/SmolLM2-135M-Instruct/model.safetensors\n"
    )
    (tools / "make").chmod(0o755)
    source = SET_UP.replace('REPOSITORY = ""', f'REPOSITORY = "{repository}"')
    assert source != SET_UP or not repository
    given = {k: v for k, v in os.environ.items() if k not in ("VENV", "PIP_EXTRA_INDEX_URL")}
    given["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-c", f"{source}\n{then}"]
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True)


def test_it_fetches_and_installs_the_repository_once(repository, tmp_path):
    empty = tmp_path / "empty"
    for _ in range(2):  # the second time as after a restart of the kernel
        result = set_up(repository, empty)
        assert result.returncode == 0, result.stderr
        where, scripts, packages = result.stdout.split()
        assert Path(where) == empty / "dpo-recipes" and scripts == "scripts"
        assert packages.startswith(".venv/lib/python")
    (called,) = (empty / "tools/log").read_text().splitlines()
    what, python, packages = called.split()
    assert what == "install" and packages == "https://download.pytorch.org/whl/cpu"
    assert Path(python.removeprefix("PYTHON=")).samefile(sys.executable)


def test_it_fetches_nothing_where_the_repository_is(repository):
    (repository / "docs").mkdir()
    for folder in (repository, repository / "docs"):
        result = set_up("", folder)
        assert result.returncode == 0, result.stderr
        assert Path(result.stdout.split()[0]) == repository


def test_it_says_what_it_lacks(repository, tmp_path):
    assert "write the address that you clone from" in set_up("", tmp_path / "empty").stderr
    (repository / "models/SmolLM2-135M-Instruct").mkdir(parents=True)
    (repository / "models/SmolLM2-135M-Instruct/model.safetensors").touch()
    assert "take the Python of .venv as the kernel" in set_up("", repository).stderr
