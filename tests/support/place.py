"""Where tests run: the checkout as it was cloned, out of reach of what is in it since.

Imported before everything that reads the environment when it is imported.
"""

import atexit
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

EMBEDDED = Path("models/SmolLM2-135M-Instruct")


def users_own(checkout: Path) -> set[Path]:
    """Recipes that were not cloned, such as those of `make new`, and that `make shelf` has not put
    on the shelf; none without git."""
    listing = ["git", "-C", str(checkout), "ls-files", "--others", "-z", "recipes/*.yaml"]
    with suppress(FileNotFoundError):
        found = subprocess.run(listing, capture_output=True, text=True).stdout
        shelf = (checkout / "recipes/README.md").read_text(encoding="utf-8")
        names = (name for name in found.split("\0") if name)
        return {checkout / name for name in names if f"({Path(name).name})" not in shelf}
    return set()


def lay_out(checkout: Path, top: Path) -> None:
    """Link in `top` what the checkout was cloned with, and the embedded model.

    What runs, users and earlier tests have left in the checkout's outputs/, models/, cache/, wandb/
    and recipes/ is not there, and nothing that a test writes comes into the checkout.
    """
    (top / EMBEDDED).parent.mkdir(parents=True)
    (top / EMBEDDED).symlink_to(checkout / EMBEDDED)
    left_out = {line.strip("/") for line in (checkout / ".gitignore").read_text().split()}
    own = users_own(checkout)
    for path in checkout.iterdir():
        if path.name == "recipes":  # tests write some

            def left(folder: str, names: list[str]) -> set[str]:
                return {name for name in names if Path(folder, name) in own}

            shutil.copytree(path, top / "recipes", ignore=left)
        elif path.name not in {*left_out, ".git"}:
            (top / path.name).symlink_to(path)


def clear(folder: Path, made_by: int) -> None:
    if os.getpid() == made_by:  # and not one that it forked
        shutil.rmtree(folder, ignore_errors=True)


def place() -> Path:
    """The folder of this process and of all that it starts: `top` is where they run."""
    known = f"PLACE_OF_TESTS_{os.environ.get('PYTEST_XDIST_WORKER', '')}"  # one a worker
    if known not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="tests-"))
        lay_out(Path(__file__).resolve().parents[2], folder / "top")
        atexit.register(clear, folder, os.getpid())
        os.environ[known] = str(folder)
    return Path(os.environ[known])


ROOT = place() / "top"
EMBEDDED_MODEL = ROOT / EMBEDDED
os.environ["HF_HOME"] = str(place() / "huggingface")  # no token and no data of the user's
os.environ["WANDB_MODE"] = "offline"  # whatever key the machine has, tests send nothing
os.environ.setdefault("CXX", str(Path(__file__).resolve().with_name("c++.sh")))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are tiny, and workers share the cores
for name in ("ARGS", "MAKEFLAGS", "MAKELEVEL"):  # of `make test`, not of the makes that tests run
    os.environ.pop(name, None)
