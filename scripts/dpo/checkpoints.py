"""Checkpoints: marked once every process has written its part, taken by runs that they fit."""

from __future__ import annotations

import json
from pathlib import Path

from accelerate import Accelerator, PartialState
from transformers import TrainerCallback

from dpo.output import write_whole

MARK = "whole.json"


def sharding(accelerator: Accelerator) -> str:
    """How a checkpoint of this run lies on disk, in words.

    ZeRO writes one shard a process, ZeRO-1 and 2 the same ones. FSDP gathers all; its files have
    other names than those of a run that shards nothing.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin:
        kind = "ZeRO-3" if plugin.zero_stage == 3 else "ZeRO-1 or 2"
        return f"{kind} on {accelerator.num_processes} processes"
    return "FSDP" if accelerator.is_fsdp2 else "no shards"


class MarkWhole(TrainerCallback):
    """Marks a checkpoint when all processes have come out of writing it. transformers has the first
    one write its last file while others may still be at theirs."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def on_save(self, args, state, control, **kwargs):
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
            write_whole(checkpoint / MARK, json.dumps({"sharding": sharding(self.accelerator)}))


def last_whole(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that was written to its end."""

    def step(path: Path) -> int:
        return int(path.name.removeprefix("checkpoint-"))

    for checkpoint in sorted(folder.glob("checkpoint-*[0-9]"), key=step, reverse=True):
        if (checkpoint / MARK).is_file():
            return checkpoint
        PartialState().print(f"{checkpoint} is not whole, its writing was cut off: passed over")
    return None


def check_fits(checkpoint: Path, accelerator: Accelerator) -> None:
    """Refuse a checkpoint that this run cannot go on from. One without a mark is not ours: it was
    named with --resume_from_checkpoint, and is left to transformers.

    Raises:
        SystemExit: its shards are those of another number of processes, or of another sharding.
    """
    mark, now = checkpoint / MARK, sharding(accelerator)
    written = json.loads(mark.read_text())["sharding"] if mark.is_file() else now
    if written != now:
        raise SystemExit(
            f"{checkpoint} was written with {written}, and this run has {now}: go on as it was "
            "written, or train anew with --restart"
        )
