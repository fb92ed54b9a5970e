"""What a run measures of itself, for its plan to stand beside: what is held and by what, the peak
of memory, and the seconds of a step. It looks on: no measurement ends a run, or changes what is
learned."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from dpo.core.files import write_json
from dpo.core.machine import peak_memory_gb
from dpo.core.refusal import one_line
from dpo.plan.cards import memory_here
from dpo.plan.measured import storages
from dpo.runs.output_folder import MEASURED, measurements
from dpo.training.stock import Declared

SHARDED = ("policy", "reference")  # that a process may have gathered for a moment beside its part
RELEASE = "_release_ipg_buffers"  # DeepSpeed's stage_1_and_2.py, at the end of a backward pass
LOOKED_AT = 2  # the step of this process in which there are an optimizer's states


class Measure(TrainerCallback):
    """Looks at what is held in the second step of this process, and writes that, the peak and the
    speed into the run's folder after that step, the 4th, 8th and so on, and the last."""

    def __init__(self, trainer: Declared):
        self.trainer = trainer
        self.begun = self.ended = 0  # steps of this process
        self.notes: list[dict[str, int]] = []
        self.uncounted: dict[str, str] = {}
        self.stack = ExitStack()

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun += 1
        if self.begun == LOOKED_AT:
            self.stack.enter_context(engine_noted(self.trainer, self.note))

    def note(self, *args, **kwargs) -> None:
        if self.begun == LOOKED_AT:
            found, failed = storages.held(self.trainer)
            self.notes.append(found)
            self.uncounted |= {name: one_line(error) for name, error in failed.items()}

    on_substep_end = on_pre_optimizer_step = note

    def on_step_end(self, args, state, control, **kwargs):
        self.stack.close()
        self.ended += 1
        if self.ended >= LOOKED_AT and not self.ended & (self.ended - 1):
            self.write()

    def on_train_end(self, args, state, control, **kwargs):
        if self.ended:
            self.write()

    def terms(self) -> dict[str, int]:
        """Bytes by what they are: the most that was noted; of weights that are sharded the least,
        when none is gathered beside its shard."""
        names = {name for note in self.notes for name in note} - self.uncounted.keys()
        how = {name: min if name in SHARDED else max for name in sorted(names)}
        return {name: pick(note.get(name, 0) for note in self.notes) for name, pick in how.items()}

    def write(self) -> None:
        """Called by all processes. What is written is of the one with the most."""
        trainer, mine = self.trainer, {"terms": self.terms(), "peak": peak()}
        names = [*storages.OWNERS, *mine["peak"]]
        row = [float((mine["terms"] | mine["peak"]).get(name, -1)) for name in names]
        device = trainer.accelerator.device
        rows = trainer.accelerator.gather(torch.tensor([row], dtype=torch.float64, device=device))
        if not trainer.is_world_process_zero():
            return
        most = dict(zip(names, rows.max(dim=0).values.tolist(), strict=True))
        steps, seconds, pairs = trainer.throughput.steady
        found = {
            "how": how_of(trainer),
            "steps": trainer.state.global_step,
            "terms": {name: most[name] for name in storages.OWNERS if most[name] >= 0},
            "uncounted": self.uncounted,
            "peak": {name: most[name] for name in mine["peak"]},
            "speed": None,
            "plan": json.loads(trainer.launch.plan) if trainer.launch.plan else None,
        }
        if steps:
            found["speed"] = {"steps": steps, "step_seconds": seconds / steps}
            found["speed"]["pairs_per_second"] = pairs / seconds
        folder = Path(trainer.args.output_dir)
        keep(folder, with_earlier(found, measurements(folder)))


def peak() -> dict[str, float]:
    """The most bytes that this process has had until now: on a GPU allocated and reserved, else
    resident in the machine's memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"allocated": float(allocated), "reserved": float(reserved)}
    return {"resident": peak_memory_gb() * 1e9}


@contextmanager
def engine_noted(trainer: Declared, note: Callable[[], None]) -> Iterator[None]:
    """Within, `note` is called where DeepSpeed has its gradients and what it sends them from: it
    steps, and lets go of them, within the backward pass."""

    def noting(method: Callable, *args, **kwargs):
        note()
        return method(*args, **kwargs)

    with ExitStack() as stack:
        engine = trainer.model_wrapped if trainer.is_deepspeed_enabled else None
        for owner, name in ((engine, "step"), (getattr(engine, "optimizer", None), RELEASE)):
            if hasattr(owner, name) and hasattr(owner, "__dict__"):
                vars(owner)[name] = partial(noting, getattr(owner, name))
                stack.callback(vars(owner).pop, name)
        yield


def config_of(trainer: Declared) -> str:
    """The launch config: launch.py's, or what accelerate was told where it was not launched so."""
    if trainer.launch.config:
        return trainer.launch.config
    if plugin := trainer.accelerator.state.deepspeed_plugin:
        offloads = plugin.deepspeed_config["zero_optimization"].get("offload_param")
        return f"zero{plugin.zero_stage}" + "_offload" * bool(offloads)
    if trainer.is_fsdp_enabled:
        return "fsdp2"
    alone = "cpu" if trainer.accelerator.device.type == "cpu" else "single_gpu"
    return alone if trainer.args.world_size == 1 else "ddp"


def how_of(trainer: Declared) -> dict[str, Any]:
    """What it takes to plan the run again as it was trained, beside its recipe."""
    args, device = trainer.args, trainer.accelerator.device
    card: dict[str, Any] = {"name": "cpu", "memory": memory_here()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        card = {"name": torch.cuda.get_device_name(device), "memory": properties.total_memory}
    return {
        "config": config_of(trainer),
        "processes": args.world_size,
        "micro": args.per_device_train_batch_size,
        "accumulation": args.gradient_accumulation_steps,
        "live": not trainer.precompute_ref_logps,
        "waits": getattr(trainer, "entry", None) is not None,  # pairs are scored within steps
        "checkpointing": args.gradient_checkpointing,
        "card": card,
    }


def with_earlier(found: dict[str, Any], earlier: dict[str, Any] | None) -> dict[str, Any]:
    """What was measured, with what the run's process before a kill had, if it ran the same way."""
    waits = found["how"]["waits"]  # no more where all has its score
    if not earlier or earlier["how"] | {"waits": waits} != found["how"]:
        return found
    kept = {name: found[name] or earlier[name] for name in ("terms", "uncounted", "speed", "plan")}
    most = {name: max(size, earlier["peak"][name]) for name, size in found["peak"].items()}
    how = found["how"] | {"waits": waits or earlier["how"]["waits"]}
    return found | kept | {"peak": most, "how": how}


def keep(folder: Path, found: dict[str, Any]) -> None:
    try:
        write_json(folder / MEASURED, found)
    except OSError as error:
        print(f"Not kept: what the run measured of itself ({one_line(error)})", flush=True)
