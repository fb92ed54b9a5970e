"""A plan as it is asked for: a recipe, flags, GPUs; and what to change where nothing fits."""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedConfig

from dpo.core.environment import Launch
from dpo.core.refusal import Refusal
from dpo.models import adapters, model_files
from dpo.plan import cards, shapes
from dpo.plan.arithmetic import lengths
from dpo.plan.arithmetic.hours import UTILISATION
from dpo.plan.auto import without
from dpo.plan.cards import Card
from dpo.plan.choice import SURE, Option, best
from dpo.plan.options import Planned, micro_batches
from dpo.recipe.hub_names import check_reachable, looks_local
from dpo.recipe.parse import FOLDER, Recipe, parse
from dpo.recipe.validate import check_values

LORA = ("--use_peft", "true", "--lora_target_modules", "all-linear")
FOUR_BITS = (*LORA, "--load_in_4bit", "true")
MACHINES = [(1, 1, name) for name in ("RTX-4090", "L40S", "H100-80GB")]
MACHINES += [(gpus, nodes, "H100-80GB") for gpus, nodes in ((2, 1), (4, 1), (8, 1), (8, 2))]
MACHINES += [(8, nodes, "H100-80GB") for nodes in (4, 8, 16)]
THIS = "this machine's"
MAIN = "10.0.0.1:29500"  # stands for an address of the first machine
ELSEWHERE = "H100-80GB"  # what is planned for where there is no GPU and none is named


@dataclass(frozen=True)
class Asked:
    """What a plan is for.

    Attributes:
        recipe, flags: a name, and flags as for train.py.
        gpus, nodes: GPUs of each machine, and machines.
        card, price, utilisation: of a GPU.
        cpu_memory: bytes of each machine's own memory; None takes what one like it is likely to
            have.
    """

    recipe: str
    flags: tuple[str, ...]
    gpus: int
    nodes: int
    card: Card
    price: float | None = None
    utilisation: float = UTILISATION
    cpu_memory: float | None = None

    @property
    def machine(self) -> float:
        """Bytes of each machine's own memory."""
        return self.cpu_memory or cards.machine_of(self.card, self.gpus)

    @functools.cache  # noqa: B019  a plan asks a few times, and is made once
    def parsed(self) -> Recipe:
        """The recipe as one process takes it, whatever machine this is."""
        words = ["--config", str(FOLDER / f"{self.recipe}.yaml"), *self.flags]
        recipe = parse(words, Launch(processes=1, on_cpu=True))
        check_values(recipe)
        return recipe

    @functools.cache  # noqa: B019
    def planned(self) -> Planned:
        """The recipe with its model's configuration and its data's lengths.

        Raises:
            Refusal: the recipe is none, or its model is not known and not to be reached.
        """
        recipe = self.parsed()
        config, note = model_of(recipe)
        found = lengths.of(recipe)
        own = reference_of(recipe)
        how = self.card, self.price, self.utilisation, note, own
        return Planned(recipe, config, found, *how)

    def flags_of(self, option: Option, processes: int) -> list[str]:
        """What to add to the flags for this way; [] where the recipe goes so by itself."""
        recipe, words = self.parsed(), []
        args = recipe.training
        if option.checkpointing != args.gradient_checkpointing:
            words += ["--gradient_checkpointing", str(option.checkpointing).lower()]
        if option.live == args.precompute_ref_log_probs:
            words += ["--precompute_ref_log_probs", str(not option.live).lower()]
        if micro_batches(recipe, processes)[0][0] != option.micro:
            accumulation = str(recipe.global_batch // option.micro)
            words += ["--per_device_train_batch_size", str(option.micro)]
            words += ["--gradient_accumulation_steps", accumulation]
        return words

    def command(self, option: Option, more: list[str]) -> str:
        """The make line that trains so, on the first machine of several."""
        line = f"make train RECIPE={shlex.quote(self.recipe)} CONFIG={option.config}"
        line += f" GPUS={self.gpus}"
        if self.nodes > 1:
            line += f" NODES={self.nodes} NODE_RANK=0 MAIN={MAIN}"
        words = shlex.join([*without(self.flags, more[::2]), *more]).replace("$", "$$")  # make's
        quoted = shlex.quote(words) if re.search(r'["$`\\!]', words) else f'"{words}"'
        return line + (f" ARGS={quoted}" if words else "")

    def changed(self) -> Iterator[tuple[str, Asked]]:
        """What may make it fit, one change after the other, in words and as it is asked for then.
        The first ones change nothing that is learned."""
        recipe = self.parsed()

        def flags(*words: str) -> Asked:
            return replace(self, flags=(*without(self.flags, list(words[::2])), *words))

        yield "gradient_checkpointing", flags("--gradient_checkpointing", "true")
        yield "the reference scored beforehand", flags("--precompute_ref_log_probs", "true")
        for share in (0.75, 0.5, 0.25):
            if length := int((recipe.training.max_length or 0) * share):
                yield f"max_length {length}", flags("--max_length", str(length))
        half = bool(recipe.training.bf16) and not self.card.on_cpu and "dtype" not in recipe.stated
        rounded = ("--dtype", "bfloat16") * half  # nothing of the base is trained
        if not recipe.model.use_peft:
            yield "LoRA", flags(*LORA, *rounded)
        if not recipe.model.load_in_4bit:
            yield "an adapter on 4 bits (QLoRA)", flags(*FOUR_BITS)
        for times in () if self.card.on_cpu else (2, 4, 8, 16, 32, 64):
            gpus = self.gpus * times
            here, nodes = (gpus, self.nodes) if gpus <= 8 else (8, self.nodes * gpus // 8)
            if recipe.global_batch % (here * nodes) == 0:
                yield f"{here * nodes} GPUs", replace(self, gpus=here, nodes=nodes)

    def smallest(self) -> tuple[Planned, int, int, Option] | None:
        """The smallest of MACHINES that holds it with nothing offloaded, with GPUs and machines."""
        planned = self.planned()
        for gpus, nodes, name in MACHINES:
            if planned.recipe.global_batch % (gpus * nodes):
                continue
            there = planned.on(cards.CARDS[name])
            if there.least(gpus, nodes, machine=0) <= SURE * there.card.memory:
                options = there.options(gpus, nodes, offload=False)
                if found := best(options, there.card.memory):
                    return there, gpus, nodes, found
        return None

    def made_to_fit(self) -> tuple[str, Asked, Planned, Option] | None:
        """The first single change that makes it fit."""
        for words, asked in self.changed():
            # With more GPUs it is the same plan, and what it has counted stays.
            planned = self.planned() if asked.flags == self.flags else asked.planned()
            where = asked.gpus, asked.nodes
            if planned.least(*where, asked.machine) <= SURE * self.card.memory:
                found = best(planned.options(*where), self.card.memory, asked.machine)
                if found:
                    return words, asked, planned, found
        return None


def model_of(recipe: Recipe) -> tuple[PreTrainedConfig, str | None]:
    """The configuration of a recipe's model, or of the base of its adapter, and a note if it is not
    the model's own.

    Raises:
        Refusal: none is named, it is not known and not to be reached, or it is no causal language
            model.
    """
    name, revision = recipe.model.model_name_or_path, recipe.model.model_revision
    if not name:
        raise Refusal(f"{recipe.path}: no model is named: give its model_name_or_path")
    if is_asked(name) and (adapter := adapters.config_of(name, revision)):
        name, revision = adapter.base_model_name_or_path, adapter.revision
    trusted = recipe.training.trust_remote_code
    config, note = shapes.config_of(name, revision, trust_remote_code=trusted, **recipe.init)
    model_files.check_kind(name, config, trusted)
    return config, note


def reference_of(recipe: Recipe) -> PreTrainedConfig | None:
    """The configuration of a recipe's reference, where it is a model of its own.

    Raises:
        Refusal: it is not known and not to be reached.
    """
    if recipe.run.ref_model_name_or_path is None:
        return None
    trusted = recipe.training.trust_remote_code
    return shapes.config_of(*recipe.reference, trust_remote_code=trusted, **recipe.init)[0]


def is_asked(name: str) -> bool:
    """Whether a model can be looked at, as to whether it is an adapter: the hub's own client would
    try for half a minute. Those of the shelf are known."""
    if Path(name).is_dir() or name in shapes.known() or looks_local(name):
        return Path(name).is_dir()
    with contextlib.suppress(Refusal):
        check_reachable(name, "model")
        return True
    return False


def card_of(gpu: str, memory: str) -> tuple[Card, str]:
    """The card that is planned for, and why this one.

    Raises:
        Refusal: it is not known.
    """
    if gpu or memory:
        return cards.card(gpu, memory), THIS * (gpu.lower() == cards.CPU and not memory)
    if found := cards.here():
        return found, THIS
    return cards.card(ELSEWHERE), "no GPU is here, and none is named with GPU="
