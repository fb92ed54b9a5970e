"""The ways in which a recipe can be trained on given GPUs, what each needs, and which one to take.
What is learned is the same in all of them."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedConfig

from dpo.models import adapters
from dpo.models.flops import windows
from dpo.plan.arithmetic import disk, lengths, memory, peak, processor
from dpo.plan.arithmetic import reference as of_its_own
from dpo.plan.arithmetic.bounds import BOUNDED, STATEFUL, bound, each_token
from dpo.plan.arithmetic.counted import How, Kept, Pairs, kept, without_weights
from dpo.plan.arithmetic.hours import Cost, Run, cost
from dpo.plan.arithmetic.lengths import Lengths
from dpo.plan.arithmetic.memory import ZERO, Setting
from dpo.plan.arithmetic.reference import Reference
from dpo.plan.cards import Card
from dpo.plan.choice import SURE, Option, first_of
from dpo.prefix_sharing import backbone
from dpo.recipe.parse import Recipe, share_batch
from dpo.training.batching import COMPOSITION_MATTERS

ALONE, SEVERAL = ("single_gpu",), ("ddp", "zero1", "zero2", "zero3", "fsdp2")
ALONE_ON_CPU, SEVERAL_ON_CPU = ("cpu",), ("ddp",)
OFFLOADED = "zero3_offload"


class Planned:
    """A recipe, its model and its data, for any number of GPUs.

    Args:
        recipe: as parsed for one process.
        config: of its model.
        found: how long its pairs are.
        card, price: what it runs on, and what an hour of one costs.
        utilisation: of the card's peak, the share that training reaches (hours.py).
        note: where the configuration is from, if not from the model itself.
        reference: configuration of the reference, where it is a model of its own.
    """

    def __init__(
        self,
        recipe: Recipe,
        config: PreTrainedConfig,
        found: Lengths,
        card: Card,
        price: float | None,
        utilisation: float,
        note: str | None,
        reference: PreTrainedConfig | None = None,
    ):
        self.note = note
        self.each: float | None = None  # bytes of a token where a micro-batch cannot be counted
        self.recipe, self.config, self.lengths = recipe, config, found
        self.card, self.price, self.utilisation = card, price, utilisation
        args, own = recipe.training, recipe.model
        self.adapter = adapters.planned(own)
        self.half = bool(args.bf16 or args.fp16)
        self.loaded = getattr(torch, str(own.dtype).removeprefix("torch."), torch.float32)
        # Others keep as much as SDPA, and cannot be looked at where they are not installed.
        self.attention = "eager" if own.attn_implementation == "eager" else None
        self.model: Any = without_weights(config, attention=self.attention)
        if len(windows(self.model)) < config.get_text_config().num_hidden_layers:
            self.add(STATEFUL)
        self.shared = recipe.run.share_prefix and backbone.obstacle(self.model) is None
        self.sizes = memory.sizes_of(
            self.model, self.adapter, own.load_in_4bit, own.use_bnb_nested_quant
        )
        bits = own.load_in_4bit, own.use_bnb_nested_quant
        self.reference = reference and of_its_own.made(reference, self.attention, *bits)
        self.scores = self.reference and self.reference.model
        if card.on_cpu:
            processor.libraries()  # before anything is counted in this process
        self.counted, self.priced = functools.cache(self.count), functools.cache(self.price_of)

    def add(self, said: str) -> None:
        self.note = f"{self.note}; {said}" if self.note else said

    def steps(self) -> int:
        args = self.recipe.training
        if args.max_steps > 0:
            return args.max_steps
        return math.ceil(self.lengths.rows * args.num_train_epochs / self.recipe.global_batch)

    def count(self, micro: int, how: How) -> tuple[Pairs, Kept]:
        """The longest micro-batch, and what it needs."""
        several = self.steps() * self.recipe.global_batch // micro
        pairs = lengths.longest(self.lengths.pairs, micro, several, how.shared)
        if self.each is None:
            try:
                return pairs, kept(self.config, pairs, how)
            except Exception:  # of an architecture that does what no tensor without data can
                self.each = each_token(self.config, how)
                self.add(BOUNDED.format(self.each))
        return pairs, bound(self.config, pairs, how, self.each)

    def setting(
        self, config: str, live: bool, checkpointing: bool, gpus: int, accumulates: bool
    ) -> Setting:
        """How a way to train computes and shards; `accumulates` as Setting has it."""
        rounded = self.half and (config in ZERO or config == "fsdp2")
        how = How(
            torch.bfloat16 if rounded else self.loaded,
            self.half and not rounded,
            checkpointing,
            self.shared,
            on_gpu=not self.card.on_cpu,
            attention=self.attention,
            adapter=self.adapter,
            quantized=self.recipe.model.load_in_4bit,
            dropout=not self.recipe.training.disable_dropout,
        )
        optim = getattr(self.recipe.training.optim, "value", self.recipe.training.optim)
        return Setting(config, gpus, live, accumulates, optim, how, self.half, self.loaded)

    def option(
        self, config: str, live: bool, checkpointing: bool, gpus: int, micro: int, accumulation: int
    ) -> Option:
        setting = self.setting(config, live, checkpointing, gpus, accumulation > 1)
        pairs, found = self.counted(micro, setting.how)
        setting = replace(setting, live=self.beside(live, gpus) if self.card.on_cpu else live)
        alone = replace(setting, live=setting.live and self.reference is None)
        if self.card.on_cpu:
            drawn = processor.after(self.config, self.lengths, self.loaded.itemsize)
            terms = processor.terms(self.sizes, alone, found, pairs, drawn)
        else:
            terms = peak.terms(self.sizes, alone, found, pairs)
        machine, stands = memory.machine(self.sizes, alone), memory.standing(self.sizes, alone)
        if self.reference is not None:
            stands["reference"] = setting.live * of_its_own.stands(self.reference, setting)
            machine += of_its_own.machine(self.reference, setting)
            terms = self.with_reference(self.reference, setting, terms, pairs)
        spent = self.priced(config, gpus, live, checkpointing, micro)
        each = disk.checkpoint(self.sizes, setting, self.recipe.training.save_only_model)
        how = config, live, checkpointing, micro, accumulation
        return Option(*how, terms, machine, spent, stands, each)

    def with_reference(
        self, own: Reference, setting: Setting, terms: dict[str, float], pairs: Pairs
    ) -> dict[str, float]:
        """Terms at the peak beside a reference of its own, from those without one."""
        if self.card.on_cpu:
            return terms | {"reference": setting.live * of_its_own.stands(own, setting)}
        if not setting.live:
            args = self.recipe.training
            size = args.precompute_ref_batch_size or args.per_device_eval_batch_size
            batches = math.ceil(self.lengths.rows / size)
            pairs = lengths.longest(self.lengths.pairs, size, batches, setting.how.shared)
        return of_its_own.at_peak(own, self.sizes, setting, terms, pairs)

    def beside(self, live: bool, processes: int) -> bool:
        """Whether on a CPU a reference is ever there beside the policy (training/waiting.py)."""
        args = self.recipe.training
        exact = not self.half and self.loaded == torch.float32 and processes == 1
        waits = exact and self.shared and args.precompute_ref_batch_size is None
        own = self.adapter is None or self.reference is not None
        return own and bool(live or waits or self.lengths.held_out)

    def price_of(self, config: str, gpus: int, *way: Any) -> Cost:
        """What a run comes to; `way` as `run` has it."""
        return self.costs(self.run(*way), config, gpus, self.price)

    def costs(self, run: Run, config: str, gpus: int, price: float | None = None) -> Cost:
        """What a run of this recipe, or some of it, comes to under a config."""
        sent = memory.streamed(self.sizes, config)
        how = config, price, self.utilisation, self.scores, sent
        return cost(self.model, run, self.card, gpus, *how)

    def step_seconds(self, way: Option, gpus: int, scores: bool = False) -> float | None:
        """Seconds of a training step, without evaluations; None where the card's speed is not
        known. With `scores`, a reference that is not live scores its pairs within it."""
        batch = self.recipe.global_batch
        once = {"pairs": batch, "rows": batch * scores, "held_out": 0, "evaluations": 0, "steps": 1}
        run = replace(self.run(way.live, way.checkpointing, way.micro), **once)
        return self.costs(run, way.config, gpus).seconds

    def run(self, live: bool, checkpointing: bool, micro: int) -> Run:
        """What is computed from the first step to the last."""
        args, found, evaluations = self.recipe.training, self.lengths, 0
        if found.held_out:
            every = (args.eval_steps or 1) if args.eval_strategy == "steps" else self.steps()
            every = every * self.steps() if every < 1 else every
            evaluations = 1 + self.steps() // max(int(every), 1)
        return Run(
            found.pairs,
            self.steps() * self.recipe.global_batch,
            found.rows,
            micro,
            self.shared,
            checkpointing,
            not live,
            found.held_out,
            evaluations,
            args.per_device_eval_batch_size,
            self.steps(),
            self.adapter is not None,
        )

    def on(self, card: Card) -> Planned:
        """The same on another card: what has been counted stays."""
        other = copy.copy(self)
        other.card, other.priced = card, functools.cache(other.price_of)
        return other

    def reaching(self, utilisation: float) -> Planned:
        """The same at another utilisation."""
        other = self.on(self.card)
        other.utilisation = utilisation
        return other

    def ways(self, processes: int, offload: bool) -> list[tuple[str, bool, bool]]:
        """Launch config, live reference and checkpointing, in all ways that the recipe leaves."""
        recipe, args = self.recipe, self.recipe.training
        given = {*recipe.stated, *recipe.flags}
        lives, checks = (True, False), (False, True)
        if "precompute_ref_log_probs" in given or args.sync_ref_model:
            lives = (not args.precompute_ref_log_probs,)
        elif self.adapter is not None and self.reference is None:
            lives = (False,)  # the base is its own reference
        if "gradient_checkpointing" in given:
            checks = (args.gradient_checkpointing,)
        if self.card.on_cpu:
            configs = SEVERAL_ON_CPU if processes > 1 else ALONE_ON_CPU
        else:
            configs = (SEVERAL if processes > 1 else ALONE) + (OFFLOADED,) * offload
        found = []
        for config in configs:
            scores = lives
            if self.scores_as_it_goes(config):
                scores = filter(None, lives) if "precompute_ref_log_probs" in given else (True,)
            found += itertools.product((config,), scores, checks)
        return found

    def scores_as_it_goes(self, config: str) -> bool:
        """Whether no reference can be scored beforehand: until training begins FSDP has an
        adapter's base on no GPU (trainer.stays_live)."""
        return config == "fsdp2" and self.adapter is not None and self.reference is None

    def options(self, gpus: int, nodes: int, offload: bool = True) -> list[Option]:
        """All ways on so many GPUs of so many machines, with the most pairs at a time that fit."""
        found, processes = [], gpus * nodes
        for way in self.ways(processes, offload):
            sizes = micro_batches(self.recipe, processes)
            stand = memory.standing(self.sizes, self.setting(*way, processes, False)).values()
            full = sum(stand) > SURE * self.card.memory  # however few pairs
            tried = (self.option(*way, processes, *s) for s in (sizes[-1:] if full else sizes))
            least = first_of(tried, SURE * self.card.memory)
            found.append(replace(least, machine=least.machine * gpus))
        return found

    def as_it_goes(self, gpus: int, nodes: int) -> dict[str, Option]:
        """What each launch config needs, with all else as the recipe has it."""
        processes, args = gpus * nodes, self.recipe.training
        own = self.adapter is None or self.reference is not None
        own &= not args.precompute_ref_log_probs
        size = micro_batches(self.recipe, processes)[0]
        configs = {config for config, *_ in self.ways(processes, offload=True)}
        configs |= {*(() if self.card.on_cpu else SEVERAL)}  # of one process too
        found = {}
        for config in sorted(configs):
            way = config, own or self.scores_as_it_goes(config), args.gradient_checkpointing
            option = self.option(*way, processes, *size)
            found[config] = replace(option, machine=option.machine * gpus)
        return found

    def least(self, gpus: int, nodes: int, machine: float) -> float:
        """The least bytes on a GPU that any way needs that a machine of so many bytes holds, with
        as few pairs at a time as can be."""
        processes = gpus * nodes
        size = micro_batches(self.recipe, processes)[-1]
        found = [self.option(*way, processes, *size) for way in self.ways(processes, machine > 0)]
        return min(each.peak for each in found if each.machine * gpus <= SURE * machine)


def micro_batches(recipe: Recipe, processes: int) -> list[tuple[int, int]]:
    """Pairs at a time and micro-batches of a step that make the recipe's global batch, the largest
    first; only one where the loss goes by which pairs come together.

    Raises:
        Refusal: so many processes cannot share it.
    """
    args = recipe.training
    micro, accumulation = share_batch(
        args.per_device_train_batch_size, args.gradient_accumulation_steps, processes
    )
    if COMPOSITION_MATTERS & {*args.loss_type}:
        return [(micro, accumulation)]
    share = micro * accumulation
    return [(n, share // n) for n in range(micro, 0, -1) if share % n == 0]
