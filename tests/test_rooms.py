"""Fourteen rooms, one direction of imports between them, and none too full to find one's way in."""

import ast
from pathlib import Path

import pytest

from dpo.data.reading import ROOMS

ROOT = Path(__file__).resolve().parents[1]
DPO = ROOT / "scripts" / "dpo"
# A room imports from those before it, and from itself; rooms of one line never from each other.
ORDER = (
    {"core"},
    {"losses", "prefix_sharing"},
    {"recipe"},
    {"runs"},
    {"models"},
    {"data"},
    {"training", "evaluation", "reports"},
    {"plan"},
    {"pairs"},
    {"speed"},
    {"learn"},
    {"use"},
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
MODULES = sorted(path for path in DPO.rglob("*.py") if path.parent != DPO or path.stem == "losses")


def room_of(module: str) -> str:
    return module.removeprefix("dpo.").split(".")[0]


def name_of(path: Path) -> str:
    parts = path.relative_to(DPO.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def imports_of(path: Path, *, types: bool = True) -> set[str]:
    """The modules of this repository that a file imports, in functions too; with `types`, for
    annotations alone too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not types:
        tree.body = [
            n for n in tree.body if "TYPE_CHECKING" not in ast.unparse(getattr(n, "test", n))
        ]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import says less than the whole name"
            for each in node.names:
                whole = f"{node.module}.{each.name}"
                is_file = (DPO.parent / f"{whole.replace('.', '/')}.py").is_file()
                found.add(whole if is_file else node.module)
    return {module for module in found if module.startswith("dpo.")}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_from_those_before_it(path):
    here = room_of(name_of(path))
    wrong = {
        module
        for module in imports_of(path)
        if room_of(module) != here and FLOOR[room_of(module)] >= FLOOR[here]
    }
    assert not wrong, f"{name_of(path)} is of {here} and imports {sorted(wrong)}"


def test_no_circle():
    imports = {name_of(path): imports_of(path, types=False) for path in MODULES}
    while leaves := {name for name, used in imports.items() if not used & imports.keys() - {name}}:
        imports = {name: used for name, used in imports.items() if name not in leaves}
    assert not imports, f"these import each other: {sorted(imports)}"


def test_every_folder_is_a_room_of_at_most_ten_files():
    folders = {path.parent for path in MODULES} - {DPO}
    assert {folder.relative_to(DPO).parts[0] for folder in folders} | {"losses"} == FLOOR.keys()
    assert len(FLOOR) - 1 == 14  # losses.py is a file
    for folder in folders:
        files = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(files) <= 10, f"{folder.name} has {len(files)}: {sorted(files)}"
        doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert doc and "\n" not in doc, f"{folder}: one line says what the room is for"
    longest = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert max(longest.values()) <= 300


def test_what_is_kept_of_data_goes_by_all_code_that_it_may_depend_on():
    used, found = {"dpo.data.reading"}, set()
    while new := used - found:
        found |= new
        paths = [DPO.parent / f"{name.replace('.', '/')}.py" for name in new]
        used |= {each for path in paths if path.is_file() for each in imports_of(path)}
    assert {room_of(module) for module in found} - {*ROOMS} <= {"losses"}  # which no row meets
