"""A plan as it is asked for: a recipe, flags, GPUs; and what to change where nothing fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dpo.core.environment import Launch
from dpo.models import adapters
from dpo.plan import cards, lengths, shapes
from dpo.plan.cards import Card
from dpo.plan.hours import UTILISATION
from dpo.plan.options import Option, Planned, best, micro_batches
from dpo.recipe.parse import FOLDER, Recipe, parse
from dpo.recipe.validate import check_values

LORA = ("--use_peft", "true", "--lora_target_modules", "all-linear")
FOUR_BITS = (*LORA, "--load_in_4bit", "true")
ELSEWHERE = "H100-80GB"  # what is planned for where there is no GPU and none is named


@dataclass(frozen=True)
class Asked:
    """What a plan is for.

    Attributes:
        recipe, flags: a name, and flags as for train.py.
        gpus, nodes: GPUs of each machine, and machines.
        card, price, utilisation: of a GPU.
    """

    recipe: str
    flags: tuple[str, ...]
    gpus: int
    nodes: int
    card: Card
    price: float | None = None
    utilisation: float = UTILISATION

    def parsed(self, *more: str) -> Recipe:
        """The recipe as one process takes it, whatever machine this is."""
        words = ["--config", str(FOLDER / f"{self.recipe}.yaml"), *self.flags, *more]
        recipe = parse(words, Launch(processes=1, on_cpu=True))
        check_values(recipe)
        return recipe

    def planned(self, *more: str) -> Planned:
        """The recipe with its model's configuration and its data's lengths.

        Raises:
            Refusal: the recipe is none, or its model is not known and not to be reached.
        """
        recipe = self.parsed(*more)
        name, revision = recipe.model.model_name_or_path, recipe.model.model_revision
        known = name in shapes.KNOWN
        if not known and (adapter := adapters.config_of(name, revision)):
            name, revision = adapter.base_model_name_or_path, adapter.revision
        config = shapes.config_of(name, revision)
        found = lengths.of(recipe)
        return Planned(recipe, config, found, self.card, self.price, self.utilisation)

    def fits(self, planned: Planned, gpus: int, nodes: int) -> Option | None:
        limit = self.card.memory
        return best([*planned.options(gpus, nodes, limit)], limit)

    def batch_flags(self, option: Option, processes: int) -> list[str]:
        """Flags that have so many processes take the option's pairs at a time."""
        recipe = self.parsed()
        if micro_batches(recipe, processes)[0][0] == option.micro:
            return []
        return [
            *("--per_device_train_batch_size", str(option.micro)),
            *("--gradient_accumulation_steps", str(recipe.global_batch // option.micro)),
        ]

    def changes(self) -> Iterator[tuple[str, tuple[str, ...], int, int]]:
        """What may make it fit, one change after the other: in words, as flags, on how many GPUs of
        how many machines. The first ones change nothing that is learned."""
        recipe, given = self.parsed(), (self.gpus, self.nodes)
        yield "gradient_checkpointing", ("--gradient_checkpointing", "true"), *given
        yield "the reference scored beforehand", ("--precompute_ref_log_probs", "true"), *given
        length = recipe.training.max_length or 0
        for share in (0.75, 0.5, 0.25):
            cut = str(int(length * share))
            if length:
                yield f"max_length {cut}", ("--max_length", cut), *given
        if not recipe.model.use_peft:
            yield "LoRA", LORA, *given
        if not recipe.model.load_in_4bit:
            yield "an adapter on 4 bits (QLoRA)", FOUR_BITS, *given
        for times in (2, 4, 8, 16, 32, 64):
            gpus = self.gpus * times
            here, nodes = (gpus, self.nodes) if gpus <= 8 else (8, self.nodes * gpus // 8)
            if recipe.global_batch % (here * nodes) == 0:
                yield f"{here * nodes} GPUs", (), here, nodes

    def first_change(self) -> tuple[str, tuple[str, ...], int, int, Option] | None:
        """The first single change that makes it fit."""
        for words, flags, gpus, nodes in self.changes():
            if found := self.fits(self.planned(*flags), gpus, nodes):
                return words, flags, gpus, nodes, found
        return None


def card_of(gpu: str, memory: str) -> tuple[Card, str]:
    """The card that is planned for, and why this one.

    Raises:
        Refusal: it is not known.
    """
    if gpu or memory:
        return cards.card(gpu, memory), ""
    if found := cards.here():
        return found, "this machine's"
    return cards.card(ELSEWHERE), "no GPU is here, and none is named with GPU="
