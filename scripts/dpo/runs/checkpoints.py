"""Checkpoints that are complete or absent, and resumed only by a run that matches them.

A checkpoint is a folder `checkpoint-<step>`. transformers writes it file by file, so that a kill
leaves half of one under its final name. Here all processes write to a temporary folder beside it;
`finish` writes a manifest of every file with its size and hash, and renames the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo.core.files import follow_umask, write_whole
from dpo.core.hashing import digest_of
from dpo.core.refusal import Refusal
from dpo.recipe.arguments import LENGTH
from dpo.recipe.parse import Recipe
from dpo.runs.output_folder import MANIFEST, differences, finished

if TYPE_CHECKING:
    from accelerate import Accelerator

NAME = re.compile(r"checkpoint-\d+")
BESIDE, DELETED, BROKEN = ".writing", ".deleted-", "broken-"


def sharding(accelerator: Accelerator) -> str:
    """How a checkpoint of this run lies on disk, in words.

    ZeRO writes one shard a process, in another form at each stage. FSDP gathers all; its files have
    other names than those of a run that shards nothing.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin:
        return f"ZeRO-{plugin.zero_stage} on {accelerator.num_processes} processes"
    return "FSDP" if accelerator.is_fsdp2 else "no shards"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def named(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the newest first, whether whole or not. What a user has put
    beside them, such as checkpoint-4-good, is none."""
    found = (path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name))
    return sorted(filter(Path.is_dir, found), key=step_of, reverse=True)


def last_whole(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that was written to its end; its files are not read."""
    return next((path for path in named(folder) if (path / MANIFEST).is_file()), None)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def digests_in(files: list[Path], folder: Path, new: bool = False) -> dict[str, dict[str, Any]]:
    """Size and hash by name; of `new` files, just written, which are on the disk then."""

    def digest(path: Path) -> dict[str, Any]:
        if new:
            follow_umask(path)
            flush(path)
        return {"bytes": path.stat().st_size, "sha256": digest_of(path)}

    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
        digests = [*pool.map(digest, files)]
    return {str(path.relative_to(folder)): d for path, d in zip(files, digests, strict=True)}


def share_of(sizes: list[int], process: int, processes: int) -> list[int]:
    """The files, by their number, that are a process's to flush and to hash: the largest first,
    each to the process that has the least."""
    loads, owner = [0] * processes, {}
    for at in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
        owner[at] = min(range(processes), key=loads.__getitem__)
        loads[owner[at]] += sizes[at]
    return [at for at, whose in owner.items() if whose == process]


def flushed(beside: Path) -> dict[str, dict[str, Any]]:
    """The digests of the files in `beside`, all on the disk. Every process takes a share of them,
    side by side: one alone would take minutes over a large model, while the others wait."""
    from accelerate import PartialState  # late: the launcher tidies, and answers at once
    from accelerate.utils import broadcast_object_list, gather_object

    state, found = PartialState(), [([], [])]
    if state.is_main_process:  # another machine's view of a shared folder may be seconds old
        files = _files(beside)
        found = [([str(path) for path in files], [path.stat().st_size for path in files])]
    broadcast_object_list(found)
    names, sizes = found[0]
    mine = [Path(names[at]) for at in share_of(sizes, state.process_index, state.num_processes)]
    parts = [digests_in(mine, beside, new=True)]
    if state.num_processes > 1:
        parts = gather_object(parts)
    return {name: digest for part in parts for name, digest in part.items()}


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk and not only in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def finish(beside: Path, checkpoint: Path, about: dict[str, Any]) -> None:
    """Give a checkpoint that lies in `beside`, written by every process, its manifest and its name.
    Called by every process; the first one does what comes after the hashing.

    Args:
        about: what a run must agree with to go on from it, and what only this moment knows; of the
            first process.
    """
    from accelerate import PartialState  # late, as above

    digests = flushed(beside)
    if not PartialState().is_main_process:
        return
    content = about | {"step": step_of(checkpoint), "files": dict(sorted(digests.items()))}
    write_whole(beside / MANIFEST, json.dumps({"sha256": _seal(content), **content}, indent=1))
    if checkpoint.exists():  # of a run that went on from an earlier one
        delete(checkpoint)
    os.replace(beside, checkpoint)
    beside.parent.rmdir()
    flush(checkpoint.parent)


def delete(checkpoint: Path) -> None:
    """Take the name away first: what is half deleted is no checkpoint."""
    nameless = checkpoint.with_name(f"{DELETED}{checkpoint.name}")
    _remove(nameless)
    os.replace(checkpoint, nameless)
    _remove(nameless)


def _remove(path: Path) -> None:
    """Delete a folder, or a link to one, whose files somebody keeps elsewhere."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def sweep(folder: Path) -> None:
    """Remove what a kill left of a checkpoint that was being written or deleted."""
    for left in (*folder.glob(BESIDE), *folder.glob(f"{DELETED}*")):
        _remove(left)


def rotate(folder: Path, limit: int | None, best: str | None) -> None:
    """Keep the newest `limit` checkpoints, as transformers counts them: the newest and the best
    always. Called when the newest is whole."""
    if not limit or limit < 0:
        return
    whole = [path for path in named(folder) if (path / MANIFEST).is_file()]
    kept = {path.name for path in whole[:1]} | ({Path(best).name} if best else set())
    spare = [path for path in whole if path.name not in kept]
    for checkpoint in spare[max(limit - len(kept), 0) :]:
        delete(checkpoint)


def read(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        ValueError: it is not there or is damaged, in a few words.
    """
    try:
        content = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        seal = content.pop("sha256")
    except FileNotFoundError:
        raise ValueError(f"it has no {MANIFEST}, its writing was cut off") from None
    except (ValueError, AttributeError, KeyError):
        raise ValueError(f"{MANIFEST} cannot be read") from None
    if seal != _seal(content):
        raise ValueError(f"{MANIFEST} is not as it was written")
    return content


def checked(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all as they were written.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    manifest = read(checkpoint)
    written, there = manifest["files"], {str(p.relative_to(checkpoint)) for p in _files(checkpoint)}
    if missing := sorted(written.keys() - there):
        raise ValueError(f"{missing[0]} is missing")
    for name, digest in digests_in(_files(checkpoint), checkpoint).items():
        if name in written and digest != written[name]:
            raise ValueError(f"{name} is not as it was written")
    return manifest


def newest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` whose every file is as it was written. Newer ones that are
    broken are named, and set aside."""
    for checkpoint in named(folder):
        try:
            checked(checkpoint)
        except ValueError as wrong:
            aside = checkpoint.with_name(f"{BROKEN}{checkpoint.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(checkpoint, aside)
            print(f"{checkpoint} is broken: {wrong}. Set aside as {aside.name}")
        else:
            return checkpoint
    return None


def goes_further(manifest: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a run of settings `now` trains on where that of a manifest ended, by its steps or its
    epochs: transformers' defaults are none and 3."""
    before = manifest["settings"]
    if (steps := now.get("max_steps", -1)) > 0:
        return steps > manifest["step"]
    epochs = [each.get("num_train_epochs", 3) for each in (before, now)]
    return before.get("max_steps", -1) <= 0 and epochs[1] > epochs[0]


def check_fits(
    checkpoint: Path, about: dict[str, Any], other_processes: bool, given: bool = False
) -> None:
    """Refuse a checkpoint that this run cannot go on from as if it had not been interrupted.

    Args:
        about: this run's `processes`, `sharding`, `model`, `data`, `settings`, its `reference` if
            that is a model of its own and, where it matters to the loss, `micro_batches`.
        other_processes: the user allows another number of processes, where no shards forbid it.
        given: the user has named it: it may be of a run that is shorter than this one.

    Raises:
        Refusal: how the checkpoint and this run differ, and the choices.
    """
    manifest = read(checkpoint)

    def refuse(how: str, choice: str) -> None:
        raise Refusal(f"{checkpoint} {how}: {choice}, or train anew with --restart")

    if not manifest["optimizer"]:
        refuse("holds weights alone (save_only_model)", "start from them as a model")
    stated = [manifest["settings"], about["settings"]]
    if given and goes_further(manifest, about["settings"]):
        stated = [{k: v for k, v in each.items() if k not in LENGTH} for each in stated]
    if changed := differences(*stated):
        refuse(f"was written with other settings: {changed}", "give those again")
    for key in ("model", "reference", "data"):
        if manifest.get(key) != about.get(key):  # older ones have no reference of their own
            refuse(f"was written with other {key} than this run reads", "bring them back")
    before, now = manifest["sharding"], about["sharding"]
    if before != now:
        refuse(f"was written with {before}, and this run has {now}", "go on as it was written")
    before, now = manifest.get("micro_batches"), about["micro_batches"]
    if before is not None and before != now:
        how = f"{before} pairs a micro-batch, micro-batches and processes, and this run has {now}"
        refuse(f"was written with {how}: its loss depends on them", "give those again")
    before, now = manifest["processes"], about["processes"]
    if before != now and not other_processes:
        refuse(
            f"was written by {before} processes, and this run has {now}",
            f"run on {before}, or allow it with --other_processes (the batch stays the recipe's; "
            "sums are rounded and dropout is drawn otherwise)",
        )


def check_given(recipe: Recipe) -> None:
    """Refuse a `resume_from_checkpoint` that a run cannot go on from, as far as a look tells.

    Raises:
        Refusal: it is no checkpoint of a run here.
    """
    given, folder = recipe.training.resume_from_checkpoint, Path(recipe.training.output_dir)
    if given is None or (Path(given) / MANIFEST).is_file():
        return
    run = Path(given).parent
    other = run.resolve() != folder.resolve()
    if other and not recipe.run.restart and (finished(folder) or last_whole(folder)):
        return  # it is gone on from here
    there = [str(path) for path in (*named(Path(given)), *named(run))]
    wrong = "it is no checkpoint of a run here" if Path(given).is_dir() else "no folder is there"
    what = f"give {' or '.join(there)}" if there else "leave it out, and the run begins anew"
    if not there and finished(run):
        wrong = f"the run in {run} kept no checkpoint (--keep use, or none was saved)"
        what = f"start from its policy, with --model_name_or_path {run}"
    where = recipe.place("resume_from_checkpoint")
    raise Refusal(f"{where}: resume_from_checkpoint is {given}: {wrong}: {what}")
