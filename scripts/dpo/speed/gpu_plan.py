"""A plan's memory and time beside what a card's are (make check-gpu)."""

import itertools
import json
import math
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from dpo.core.environment import Launch, finding_us
from dpo.plan import cards
from dpo.plan.arithmetic import lengths, memory, peak
from dpo.plan.arithmetic.counted import kept
from dpo.plan.arithmetic.hours import UTILISATION, Run
from dpo.plan.arithmetic.lengths import Lengths
from dpo.plan.cards import Card
from dpo.plan.options import Planned
from dpo.runs.launch import ONE_PROCESS, accelerated
from dpo.speed import gpu_runs, planned_cases
from dpo.speed.gpu_checks import WITHIN, Job, Row, judged, skipped
from dpo.speed.planned_cases import (
    CASES,
    FOUND,
    KEPT,
    MIDDLE,
    UNTIMED,
    Case,
    config_of,
    is_live,
    recipe_of,
)
from dpo.speed.workload import LENGTHS, typical_lengths
from dpo.training.batching import deal

TIME = 0.3  # of what a plan says, a step may be longer or shorter
STEPS, FEW = 10, 3  # of each case, and where it is tried on a CPU
SHORTER = 8  # times, there
NOT_OF_TENSORS = ("CUDA", "slack")  # terms of a plan that no tensor has

Tokens = np.ndarray  # of prompt, chosen and rejected, shape (micro-batches, pairs, 3)


def batches_of(case: Case, shared: bool, small: bool) -> Tokens:
    """Pairs as long as UltraFeedback's in the order of training. The longest micro-batch ends the
    second step, when the optimizer's states are there and the gradients of another: what comes
    after it finds all memory taken, and waits for none."""
    steps, micro = FEW if small else STEPS, case.micro
    rows = typical_lengths(str(LENGTHS), steps * case.parts * micro, micro)
    rows = np.maximum(rows // SHORTER, 1) if small else rows
    tokens = rows.sum(axis=1) if shared else rows[:, 0] + rows[:, 1:].max(axis=1)

    def size(part: np.ndarray) -> float:
        return tokens[part].sum() if shared else tokens[part].max()

    found = []
    for step in np.split(np.arange(len(rows)), steps):
        order = deal([*step], tokens, micro) if shared else step  # as the trainer does
        found.append(np.reshape(order, (-1, micro)))
    longest = max(range(steps), key=lambda step: max(map(size, found[step])))
    found.insert(1, found.pop(longest))
    if not shared:
        found[1] = np.array(sorted(found[1], key=size))
    return rows[np.concatenate(found)]


def planned(case: Case, card: Card, job: Job) -> Planned:
    """The case as make plan takes it."""
    nothing = Lengths(np.zeros((0, 3), int), 0, 0, "")
    steps = FEW if job.small else STEPS
    anywhere = Launch(processes=1, on_cpu=True)  # as for any plan
    recipe = recipe_of(case, job.device, steps * case.parts, anywhere)
    return Planned(recipe, config_of(case, job.small), nothing, card, None, UTILISATION, None)


def predicted(plan: Planned, case: Case, batches: Tokens, on_gpu: bool) -> dict[str, Any]:
    """What the arithmetic of make plan says of these micro-batches, as `planned_cases.measured`
    has it, and the terms of the peak."""
    recipe = plan.recipe
    live, again = is_live(recipe), recipe.training.gradient_checkpointing
    setting = plan.setting(case.config, live, again, 1, case.parts > 1)
    setting = replace(setting, how=replace(setting.how, on_gpu=on_gpu))
    longest = lengths.longest_of(batches, plan.shared)
    terms = peak.terms(plan.sizes, setting, kept(plan.config, longest, setting.how), longest)
    stands = memory.standing(plan.sizes, setting)
    loaded = stands["policy"] + stands["reference"]
    timed = batches[UNTIMED * case.parts :].reshape(-1, 3)
    way = {"steps": len(batches) // case.parts - UNTIMED, "adapter": recipe.model.use_peft}
    run = Run(timed, len(timed), 0, case.micro, plan.shared, again, not live, **way)
    return {
        "loaded": loaded,
        "standing": loaded + stands["optimizer"],
        "peak": sum(size for name, size in terms.items() if name not in NOT_OF_TENSORS),
        "seconds": plan.costs(run, case.config, 1).seconds,
        "terms": terms,
    }


def peak_of(model: str, batches: Tokens, job: Job) -> float:
    """Bytes that the plan of full fine-tuning says of these micro-batches, each a step."""
    case = Case(model, model, KEPT, parts=1)
    plan = planned(case, Card("any", math.inf), job)
    return predicted(plan, case, batches, on_gpu=True)["peak"]


def process(cases: list[tuple[Case, Tokens]], job: Job) -> tuple[list[str], dict[str, str]]:
    """The command that measures cases of one launch config, and its environment."""
    on_cpu = job.device == "cpu"
    config = cases[0][0].config
    config = job.single if config in ONE_PROCESS else config
    asked = {"device": job.device, "small": job.small}
    asked["cases"] = [(asdict(case), batches.tolist()) for case, batches in cases]
    script = ["-m", planned_cases.__name__, json.dumps(asked)]
    command, environment = accelerated(script, config, 1, on_cpu)
    return command, finding_us(environment)


def findings(cases: list[tuple[Case, Tokens]], job: Job) -> Iterator[dict[str, Any]]:
    """What is measured of cases of one launch config, each as soon as it is known. They share a
    process; where it ends, the next case begins another."""
    left = [*cases]
    how: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    while left:
        command, environment = process(left, job)
        told, last = False, "it said nothing"
        with subprocess.Popen(command, env=environment, **how) as running:
            for line in running.stdout or ():
                print(line, end="", flush=True)
                last = line.strip() or last
                if line.startswith(FOUND):
                    left.pop(0)
                    found = json.loads(line.removeprefix(FOUND))
                    told = "error" in found
                    yield found
        if left and not told:
            left.pop(0)
            yield {"error": last}


def gb(size: float) -> str:
    return f"{size / 1e9:#.3g}"


def rows(case: Case, says: dict[str, Any], found: dict[str, Any], job: Job) -> Iterator[Row]:
    """A case's peak beside what was predicted of it, and on a GPU its time."""
    name = f"plan, {case.name}"
    if "error" in found:
        yield judged(name, False, found["error"])
        return
    both = {"plan": says, "run": found}

    def beside(part: str) -> tuple[str, float]:
        off = found[part] / says[part] - 1
        return f"{off:+.1%}", abs(off)

    off, far = beside("peak")
    told, bound = f"{gb(found['peak'])} GB at peak, {off}", f"{gb(says['peak'])} GB, ± {WITHIN:.0%}"
    if case.config in ONE_PROCESS:  # DeepSpeed has its buffers besides
        told += f"; {gb(found['loaded'])} loaded, {gb(found['standing'])} after step 1"
        bound += f"; {gb(says['loaded'])}, {gb(says['standing'])}"
    yield judged(f"{name}: memory", far <= WITHIN, told, bound, **both)
    if job.device == "cpu":
        return
    if says["seconds"] is None:
        yield skipped(f"{name}: time", "no speed is known of this card")
        return
    off, far = beside("seconds")
    took, takes = (each["seconds"] / (STEPS - UNTIMED) for each in (found, says))
    bound = f"{takes:.2g} s, ± {TIME:.0%}"
    yield judged(f"{name}: time", far <= TIME, f"{took:.2g} s a step, {off}", bound, **both)


def beside_itself(plan: Planned, says: dict[str, Any]) -> float:
    """Bytes while a model in 4 bits is made of one that is whole; 0 of others."""
    return plan.sizes.frozen * plan.loaded.itemsize + says["loaded"] if plan.sizes.quantized else 0


def plan(job: Job) -> Iterator[Row]:
    """Every case that the card holds. On a CPU they are small, and hold the plan of a CPU against
    what operations make."""
    on_gpu = job.device == "cuda"
    job = replace(job, small=job.small or not on_gpu)
    card = (cards.here() if on_gpu else None) or Card("a CPU", math.inf)
    ways = [case for case in CASES if not job.small or case.model != MIDDLE]  # as SMALL's, in small
    for config, cases in itertools.groupby(ways, key=lambda case: case.config):
        ready = []
        for case in cases:
            name = f"plan, {case.name}"
            if reason := gpu_runs.missing(
                job, "qlora" if "--load_in_4bit" in case.flags else config
            ):
                yield skipped(name, reason)
                continue
            plan = planned(case, card, job)
            batches = batches_of(case, plan.shared, job.small)
            says = predicted(plan, case, batches, on_gpu)
            needed = max(sum(says["terms"].values()), beside_itself(plan, says))
            if needed > card.memory:
                yield Row(name, "not run", f"needs {gb(needed)} GB of {gb(card.memory)}")
                continue
            ready.append((case, batches, says))
        found = findings([(case, batches) for case, batches, _ in ready], job)
        for (case, _, says), each in zip(ready, found, strict=True):
            yield from rows(case, says, each, job)
