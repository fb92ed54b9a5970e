"""docs/dpo.ipynb, run cell by cell. As a command it writes the notebook's outputs anew:

python tests/support/notebook.py
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[2]
PATH = Path("docs/dpo.ipynb")


def read(path: Path) -> NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: NotebookNode) -> str:
    """What a cell has written, but for progress bars and warnings."""
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


def run(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run all cells from a folder, with this Python as the kernel, over sockets that are files and
    that no other user reaches. What is printed in pieces is put together again, and what depends on
    the hour is left out.

    Raises:
        CellExecutionError: a cell did not end well; the notebook has its output.
    """
    sockets = Config({"KernelManager": {"transport": "ipc"}})
    where = {"metadata": {"path": str(folder)}}
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    client = NotebookClient(notebook, config=sockets, resources=where, timeout=3600)
    client.execute(env=environment)  # reports, where a test has imported them, want no pictures
    for cell in code(notebook):
        cell.metadata.pop("execution", None)
        text, rest = printed(cell), [o for o in cell.outputs if o.output_type != "stream"]
        stream = [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
        cell.outputs = stream + rest
    return notebook


if __name__ == "__main__":
    found = run(read(ROOT / PATH), ROOT)
    nbformat.write(found, ROOT / PATH)
    sys.stdout.write("".join(map(printed, code(found))))
