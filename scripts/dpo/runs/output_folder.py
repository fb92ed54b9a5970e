"""A run's output folder: which ones there are, whose it is, and how far it got."""

import datetime
import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any, TextIO

import yaml

from dpo.core import files
from dpo.core.environment import Launch
from dpo.core.refusal import Refusal
from dpo.recipe.arguments import LENGTH, RunArguments
from dpo.recipe.hub_names import looks_local
from dpo.recipe.parse import Recipe, make_parser, read_yaml, resolve

RUNS = Path("outputs")
SETTINGS = "recipe.yaml"
BEGAN = "# begun on "  # its first line
REPORT = "report.json"
SPLIT_SEED = RunArguments.split_seed
FORMAT = 2  # of it and of evaluation.json; older ones bear no number
TRAINED = "trainer_state.json"  # beside the policy: training went to its end
LOCK = ".lock"
MANIFEST = "manifest.json"  # of a checkpoint, written last
MOVED_ASIDE = re.compile(r"\.\d{8}-\d{6}$")  # by --restart
QUARANTINE = "quarantine.jsonl"
DATA_PAGE = "data.html"
METRICS = "metrics.jsonl"
COMPLETIONS = "completions.jsonl"  # of the policy, at every evaluation
ALERTS = "alerts.jsonl"  # what the monitors have told so far
WANDB_ID = "wandb-run"
WANDB_PLACE = "wandb-project"  # entity/project, the entity empty where it is the login's own
WANDB_PATH = "wandb-path"  # entity/project/id, of a run that was online
HELD_OUT = "held_out.json"  # log-probabilities of the held-out pairs when training had ended
MEASURED = "measured.json"  # memory and speed of training, beside what its plan says
DRIFT = "drift.json"  # answers of the reference that the policy is held against


def run_folder(name: str) -> Path | None:
    """The folder of a run, given by its path or by its name under outputs/."""
    return next((f for f in (Path(name), RUNS / name) if (f / SETTINGS).is_file()), None)


def known_runs() -> str:
    """The runs that there are, for a message."""
    runs = sorted(str(path.parent) for path in RUNS.glob(f"**/{SETTINGS}"))
    return f"the runs here: {', '.join(runs) or 'none yet'}"


def measurements(folder: Path) -> dict[str, Any] | None:
    """What the run in `folder` has measured of itself; None where it has not, or the file is
    damaged."""
    try:
        found = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
        how, speed, plan = found["how"], found["speed"] or {}, found["plan"] or {"terms": {}}
        found["uncounted"].items()
        some = [how["card"]["memory"], found["steps"], *found["peak"].values(), *speed.values()]
        some += [how[name] for name in ("processes", "micro", "accumulation")]
        terms = [*found["terms"].values(), *plan["terms"].values()]
        sound = found["peak"] and min(some) > 0 and min(terms, default=0) >= 0
        return found if sound else None
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None


def measured(name: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a run, by its path or by its name under outputs/, and what it has measured.

    Raises:
        Refusal: there is none, it is no run, or it has measured nothing.
    """
    folder = run_folder(name)
    if folder is None:
        if Path(name).is_dir():
            raise Refusal(f"RUN={name} holds no run of this repository: it has no {SETTINGS}")
        raise Refusal(f"no run at RUN={name}; {known_runs()}")
    if (found := measurements(folder)) is None:
        raise Refusal(
            f"RUN={name} has measured nothing: it ended before its second step, is of a time when "
            f"runs did not, or {MEASURED} is damaged. "
            f"make plan RECIPE={settings_of(folder).get('recipe')} plans anew"
        )
    return folder, found


def check_there(name: str) -> None:
    """Raises Refusal if a run or a model of that name can only be a folder, and none is there."""
    # `outputs/x` looks like a hub name, and means a folder.
    local = looks_local(name) or Path(name).parts[:1] in ((str(RUNS),), ("models",))
    if local and not run_folder(name) and not Path(name).is_dir():
        raise Refusal(f"no run and no model at {name}; {known_runs()}")


def with_split_seed(settings: dict[str, Any], before: bool = False) -> dict[str, Any]:
    """The settings with the seed that draws the held-out pairs, where a share of them is: its
    default, or for a run of the time `before` there was a `split_seed`, its `seed`."""
    if settings.get("test_split_size") is None or "split_seed" in settings:
        return settings
    return settings | {"split_seed": settings.get("seed", SPLIT_SEED) if before else SPLIT_SEED}


def settings_of(folder: Path) -> dict[str, Any]:
    """What the run in `folder` states.

    Raises:
        Refusal: its recipe.yaml is none.
    """
    path = folder / SETTINGS
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        settings = None
    if not isinstance(settings, dict):
        raise Refusal(f"{path} holds no settings of a run: move that folder, or name others")
    return with_split_seed(settings, before=True)


def runs_of(recipe: str) -> list[Path]:
    """The folders of a recipe's runs, those of its sweep too; not those moved aside.

    Raises:
        Refusal: it has none.
    """
    found, others = [], set()
    for pattern in ("*", f"{recipe}-sweep/*"):
        for path in sorted(RUNS.glob(f"{pattern}/{SETTINGS}"), key=_by_number):
            name = settings_of(path.parent).get("recipe")
            if name != recipe:
                others.add(str(name))
            elif not MOVED_ASIDE.search(path.parent.name):
                found.append(path.parent)
    if not found:
        known = ", ".join(sorted(others)) or "none yet"
        raise Refusal(f"no run of RECIPE={recipe}; there are runs of: {known}")
    return found


def _by_number(path: Path) -> list[str | float]:
    """What a sweep's folders are sorted by: beta=0.5 before beta=5, and that before beta=10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", str(path))
    return [float(part) if at % 2 else part for at, part in enumerate(parts)]


def folders(names: list[str]) -> list[Path]:
    """The folders of runs, by path or by name under outputs/, each once.

    Raises:
        Refusal: one of them is no run.
    """
    found = []
    for name in names:
        folder = run_folder(name)
        if not folder:
            raise Refusal(f"no run at {name}; {known_runs()}")
        found.append(folder)
    return [*{folder.resolve(): folder for folder in reversed(found)}.values()][::-1]


def finished(folder: Path) -> bool:
    """Whether the run in `folder` went to its end: the report is what a run writes last."""
    return (folder / REPORT).is_file()


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The keys that two runs state differently, for a message: `beta (0.1, now 0.05)`."""
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    default = "its default"
    said = (f"{key} ({before.get(key, default)}, now {now.get(key, default)})" for key in keys)
    return ", ".join(said)


def recipe_of(folder: Path, launch: Launch | None = None) -> Recipe:
    """The recipe of the run in `folder`, as it was stated there; parsed for this process, or for
    one that was launched otherwise.

    Raises:
        Refusal: the folder holds no run.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise Refusal(f"{folder} holds no run of this repository: it has no {SETTINGS}")
    keys = with_split_seed(read_yaml(path), before=True)
    return resolve(make_parser(), path, keys.pop("recipe"), keys, [], launch)


def settings(recipe: Recipe) -> dict[str, Any]:
    """What the run's folder remembers of the recipe: everything stated, but what of an earlier run
    and of this one is to be kept; and what drew the held-out pairs."""
    now = ("restart", "keep")
    return with_split_seed({key: v for key, v in recipe.stated.items() if key not in now})


def further(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> str:
    """How a run goes on to another length, for a message; "" where more than that is other."""
    if any(before.get(key) != now.get(key) for key in {*before, *now} - {*LENGTH}):
        return ""
    whole = {int(p.parent.name[11:]): p.parent for p in folder.glob(f"checkpoint-*/{MANIFEST}")}
    how = f"another --output_dir, and --resume_from_checkpoint {whole[max(whole)]}" if whole else ""
    return f". For more steps: {how or 'it kept no checkpoint to go on from'}"


def day_of(folder: Path) -> datetime.date:
    """The day on which the run in `folder` began; today, where there is none. Some chat templates
    write it into every prompt (Llama 3.2's), and a run that goes on must have the same ones."""
    path = folder / SETTINGS
    first = path.read_text(encoding="utf-8").partition("\n")[0] if path.is_file() else ""
    if first.startswith(BEGAN):
        return datetime.date.fromisoformat(first.removeprefix(BEGAN))
    return datetime.date.today()


def unwritable(folder: Path, error: OSError) -> Refusal:
    """The line for an output folder that cannot be made, or written to."""
    why = "it is a file" if folder.is_file() else error.strerror
    return Refusal(f"cannot write the output folder {folder}: {why}: give another --output_dir")


def lock(folder: Path) -> TextIO:
    """Take an output folder for this process, until the file that is returned is closed.

    Raises:
        Refusal: a run that is still going on has it.
    """
    file = (folder / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise Refusal(
            f"{folder} belongs to a run that is going on (process {file.read().strip()}): wait for "
            "its end, or take another folder"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def going_on(folder: Path) -> bool:
    """Whether a run that is still going on has the folder."""
    if not (folder / LOCK).is_file():
        return False
    with (folder / LOCK).open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def claim(recipe: Recipe) -> TextIO | None:
    """Make the output folder this recipe's own, and write the resolved recipe into it.

    With `restart`, an earlier run that is there is moved aside first. Returns the folder's lock,
    None for a finished run, which is left as it is.

    Raises:
        Refusal: the folder cannot be written, belongs to a run that is going on, or holds the
            run of another recipe, a run with other settings, or files of no run.
    """
    folder = Path(recipe.training.output_dir)
    stated = ours = {"recipe": recipe.name, **settings(recipe)}
    try:
        if recipe.run.restart and (folder / SETTINGS).is_file():
            lock(folder).close()
            stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
            aside = folder.with_name(f"{folder.name}.{stamp}")
            folder.rename(aside)
            print(f"Moved the earlier run aside: {aside}")
        folder.mkdir(parents=True, exist_ok=True)
        foreign = {path.name for path in folder.iterdir()} - {QUARANTINE, DATA_PAGE, LOCK}
        if foreign and not (folder / SETTINGS).is_file():
            raise Refusal(
                f"{folder} holds files that are no run of this repository: give another "
                "--output_dir, or move them"
            )
        held = None if finished(folder) else lock(folder)
        if (folder / SETTINGS).is_file():
            theirs = settings_of(folder)
            # Until it has ended, a run may be carried out otherwise: less at a time where memory
            # ran out. One that made nothing worth keeping may be set right altogether.
            if not finished(folder):
                theirs, ours = recipe.learned(theirs), recipe.learned(ours)
            changed = differences(theirs, ours)
            if changed and (finished(folder) or [*folder.glob("**/*.safetensors")]):
                raise Refusal(
                    f"{folder} holds a run with other settings: {changed}. "
                    "Give another --output_dir, or --restart to move that run aside"
                    + (further(folder, theirs, ours) if finished(folder) else "")
                )
        if not finished(folder):
            text = yaml.safe_dump(stated, sort_keys=False, allow_unicode=True)
            files.write_whole(folder / SETTINGS, f"{BEGAN}{day_of(folder)}\n{text}")
    except OSError as error:
        raise unwritable(folder, error) from error
    return held
