"""What a finished run keeps on the disk (`keep`): what is needed to use, evaluate and continue it,
or less.

Nothing heavy is imported: the launcher tidies too, and answers at once.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dpo.runs import checkpoints, output_folder

LINKING = ".linking-"  # a name that weights have in a checkpoint until they take the other's place


def keep(folder: Path, what: str, ours: bool = False) -> str:
    """Tidy a finished run, and say what it keeps. A kill at any moment leaves a policy and whole
    checkpoints, and the next call ends what it began.

    Args:
        what: a key of `recipe.arguments.KEEP`.
        ours: this process has the folder's lock; what another is at is left to that one.
    """
    if not ours and output_folder.going_on(folder):
        return f"{folder} is being tidied by another process"
    weights = sorted(folder.glob("*.safetensors"))
    problem = damage(folder, weights) if weights else "no policy is in it"
    try:
        if not problem:
            checkpoints.sweep(folder)
            tidy(folder, weights, what)
    except OSError as error:  # of another's, or one that takes no links: nothing was lost
        problem = error.strerror or type(error).__name__
    return said(folder, problem)


def damage(folder: Path, weights: list[Path]) -> str:
    """What a policy lacks, as far as names and headers tell; nothing where it is whole."""
    index, missing = folder / "model.safetensors.index.json", set[str]()
    if index.is_file():
        try:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            missing = {*shards} - {path.name for path in weights}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            missing = {index.name}
    for path in weights:
        try:
            with safe_open(path, "np"):
                pass
        except (OSError, SafetensorError):
            missing.add(path.name)
    return f"its policy is damaged ({', '.join(sorted(missing))})" if missing else ""


def tidy(folder: Path, weights: list[Path], what: str) -> None:
    """Delete checkpoints, or the second copy of `weights` in one."""
    if what == "use":
        spare = [*checkpoints.named(folder), *folder.glob(f"{checkpoints.BROKEN}*")]
        for path in weights if spare else ():
            checkpoints.flush(path)  # what is deleted next was on the disk, and this may not be
        for checkpoint in spare:
            checkpoints.delete(checkpoint)
        return
    step, best = None, "none"
    with suppress(OSError, ValueError, AttributeError, TypeError):  # it is none of ours
        state = json.loads((folder / output_folder.TRAINED).read_text(encoding="utf-8"))
        step, best = state.get("global_step"), Path(state.get("best_model_checkpoint") or best).name
    for name in {f"checkpoint-{step}", best}:  # all others have other weights
        with suppress(ValueError):  # it is not there, or is not whole
            link(folder / name, weights)


def link(checkpoint: Path, weights: list[Path]) -> None:
    """Let weights in a checkpoint that are those of the policy, byte for byte, be one file on the
    disk with them.

    Raises:
        ValueError: the checkpoint is not whole.
        OSError: the disk takes no links.
    """
    written = checkpoints.read(checkpoint)["files"]
    for left in checkpoint.glob(f"{LINKING}*"):
        left.unlink()
    there = [path for path in weights if path.name in written]
    there = [path for path in there if (checkpoint / path.name).is_file()]
    twice = [path for path in there if not path.samefile(checkpoint / path.name)]
    for name, digest in checkpoints.digests_in(twice, checkpoint.parent).items():
        if digest == written[name]:
            checkpoints.flush(checkpoint.parent / name)
            os.link(checkpoint.parent / name, checkpoint / f"{LINKING}{name}")
            os.replace(checkpoint / f"{LINKING}{name}", checkpoint / name)


def size_of(folder: Path, without: set[Path] | None = None) -> str:
    """What the files of a run take on the disk, but for those in folders of it, in words. One that
    has two names counts once."""
    paths = [path for path in folder.rglob("*") if not {*path.parents} & (without or set())]
    found = {(s.st_dev, s.st_ino): s.st_size for s in (p.stat() for p in paths if p.is_file())}
    size = sum(found.values())
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def said(folder: Path, problem: str) -> str:
    """What a finished run keeps, how large that is, and how to keep less."""
    there = checkpoints.named(folder)
    line = f"Kept: {size_of(folder)} in {folder}, " + ("no checkpoint" if not there else "")
    if there:
        line += there[0].name if len(there) == 1 else f"{len(there)} checkpoints"
        line += f" included; {size_of(folder, {*there})} without: the same command with --keep use"
    return line + (f". It could not be made smaller: {problem}" if problem else "")
