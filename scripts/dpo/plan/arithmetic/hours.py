"""FLOPs of a whole run as it is computed, and the hours and money that they come to."""

from dataclasses import astuple, dataclass

import numpy as np
from transformers import PreTrainedModel

from dpo.models.flops import Pass, over_pairs, pass_over
from dpo.plan.cards import Card

# Of what a card's data sheet says of dense products, the share that a run's own products reach
# beside all that is no product. Published of DPO of 7B on H100s, in useful FLOPs: 22.5% (OLMo 2 7B
# on 16, open-instruct's PR 1466) and 32% (its PR 1720, packed, another trainer than TRL's).
UTILISATION = 0.25
# Seconds that a layer of a micro-batch takes forward and backward whatever is in it: its kernels
# are started one by one. From one measurement on one H200 (docs/gpu.md), what UTILISATION leaves:
# Qwen3-0.6B, 28 layers, 4 pairs of 667 tokens, 24 pairs a second, 10.2 TFLOPs a micro-batch:
# (4 / 24 - 10.2 / 989 / 0.25) / 28 = 0.0045. There too the 135M default, 30 layers, 8 pairs of 80
# tokens, 50 to 59 a second in float32: no more than 0.0045 to 0.0053. The same pairs by stock TRL
# took 1.9 times what this says.
LAYER = 0.0045
BUS = 25e9  # bytes a second to a GPU, PCIe 4 × 16 at four fifths of what it is named for: assumed
MIDDLING = 165.2e12  # FLOPs a second, an RTX 4090's: a card of which no speed is known
FORWARD = 1 / 3  # of that, without a backward pass: as FLOPs are, not measured


@dataclass(frozen=True)
class Run:
    """What a run computes.

    Attributes:
        lengths: tokens of prompt, chosen and rejected of some of its pairs, as they are kept after
            cutting, in any order; shape (n, 3).
        pairs: trained on in all: rows × epochs, or steps × batch.
        rows: different ones among them.
        micro_batch: pairs that a process computes at once.
        shared: prompts go through the model once, and nothing is padded.
        checkpointing: the backward pass computes the backbone again.
        cached: the reference scores each row once, and not in each pass.
        held_out, evaluations: pairs of an evaluation, and how many of these there are.
        eval_batch: as `micro_batch`, where nothing is learned.
    """

    lengths: np.ndarray
    pairs: float
    rows: float
    micro_batch: int
    shared: bool
    checkpointing: bool
    cached: bool
    held_out: float = 0
    evaluations: float = 0
    eval_batch: int = 8


@dataclass(frozen=True)
class Cost:
    """What a run comes to.

    Attributes:
        flops: by what they are of, on all GPUs together.
        seconds: from the first batch to the last; None where the card's speed is not known.
        gpu_hours, price: of all GPUs; None likewise, or without a price.
        compared: seconds, of a middling card where the card's speed is not known: by these ways to
            train are told apart.
    """

    flops: dict[str, float]
    seconds: float | None
    gpu_hours: float | None
    price: float | None
    compared: float


def per_pair(model: PreTrainedModel, run: Run, batch: int) -> Pass:
    """FLOPs of a model over a pair of the run, on average, in micro-batches of so many drawn at
    random. Where prompts are not shared, rows are padded to the longest of a micro-batch and attend
    to every key of it. The output layer sees completions alone, as TRL's does on a GPU."""
    count = len(run.lengths)
    if run.shared:
        whole = over_pairs(model, run.lengths)
    else:
        prompt, *answers = np.random.default_rng(0).permutation(run.lengths).T
        longest = np.maximum.reduceat(prompt + np.maximum(*answers), range(0, count, batch))
        wide = np.repeat(longest, 2 * batch)[: 2 * count].astype(float)
        seen = float(sum(map(np.sum, answers)))
        whole = pass_over(model, float(wide.sum()), seen, lambda window: float((wide**2).sum()))
    return Pass(*(part / count for part in astuple(whole)))


def flops(
    model: PreTrainedModel, run: Run, reference: PreTrainedModel | None = None
) -> dict[str, float]:
    """FLOPs of a run by what they are of. What evaluations sample is not among them.

    Args:
        model: the policy on the meta device, an adapter on it where one is trained.
        reference: on the meta device, where it is a model of its own.
    """
    training = per_pair(model, run, run.micro_batch)
    same = run.shared or run.eval_batch == run.micro_batch
    scoring = training if same else per_pair(model, run, run.eval_batch)
    again = training.head + training.again * run.checkpointing  # TRL never keeps logits
    evaluated = scoring.backbone + scoring.head
    passes = run.held_out * run.evaluations
    if reference is not None:
        training_of_it = per_pair(reference, run, run.micro_batch)
        scoring = training_of_it if same else per_pair(reference, run, run.eval_batch)
    else:
        training_of_it = training
    score = scoring.backbone + scoring.head
    live = (training_of_it.backbone + training_of_it.head) * run.pairs + score * passes
    return {
        "policy": training.training * run.pairs,
        "recomputed": again * run.pairs,
        "reference": score * (min(run.rows, run.pairs) + run.held_out) if run.cached else live,
        "evaluation": evaluated * passes,
    }


def started(run: Run) -> float:
    """How many micro-batches a run computes on all GPUs, in the time of one forward and backward
    pass of the policy each."""
    scored = run.held_out * run.evaluations * (1 if run.cached else 2)
    scored += min(run.rows, run.pairs) + run.held_out if run.cached else 0
    once = 1 + FORWARD * run.checkpointing + FORWARD * (not run.cached)
    return once * run.pairs / run.micro_batch + FORWARD * scored / run.eval_batch


def cost(
    model: PreTrainedModel,
    run: Run,
    card: Card,
    gpus: int,
    price: float | None = None,
    utilisation: float = UTILISATION,
    reference: PreTrainedModel | None = None,
    sent: float = 0,
) -> Cost:
    """What a run comes to on so many GPUs, in half precision.

    Optimizer steps on a CPU, 4-bit weights and slow networks make it longer; nothing of that is in
    it, nor what evaluations sample, nor loading and saving.

    Args:
        price: of a GPU for an hour.
        reference: as `flops` has it.
        sent: bytes of weights that a GPU gets from the machine's memory in every micro-batch.
    """
    found = flops(model, run, reference)
    layers = model.config.get_text_config().num_hidden_layers
    computed = sum(found.values()) / (card.flops or MIDDLING) / utilisation
    each = layers * LAYER + sent / BUS
    busy = computed + started(run) * each  # of all GPUs together
    if card.flops is None:
        return Cost(found, None, None, None, busy / gpus)
    hours = busy / 3600
    paid = None if price is None else hours * price
    return Cost(found, busy / gpus, hours, paid, busy / gpus)
