"""FLOPs of a whole run as it is computed, and the hours and money that they come to."""

from dataclasses import astuple, dataclass

import numpy as np
from transformers import PreTrainedModel

from dpo.models.flops import Pass, over_pairs, pass_over
from dpo.plan.cards import Card

# Of what a card's data sheet says of dense products, the share that a run's own products reach
# where they are what takes the time. Measured on one H200 (docs/gpu.md#plans): 0.29 of all that is
# computed, 16 pairs of a 1.7B at a time with checkpointing. Published of DPO of 7B on many H100s,
# in useful FLOPs: 0.225 (OLMo 2 7B on 16, open-instruct's PR 1466) and 0.32 (its PR 1720, packed).
UTILISATION = 0.25
# What else takes time. A GPU's kernels are started one by one, while it computes what was started
# before: the longer of the two counts. In small models and micro-batches that is the starting, and
# a 1.7B takes no longer than a 0.6B. All from the rows of the 0.6B there, on two machines, between
# what these say: 4.3 and 5.9 ms, 2.0 and 1.8, 1.5 to 1.8 and 1.4 to 1.5, 58 and 49 ms.
LAYER = 0.005  # seconds to start a layer of a micro-batch, forward and backward
ADAPTED = 1.9  # times that, with an adapter on all of its products
FORWARD = 0.5  # of that, without a backward pass
STEP = 0.05  # seconds of an optimizer's step, with what is logged
PADDED = 2e-6  # seconds a token and layer, where prompts are twice and rows padded: one machine
# Of the speed of GPUs that each hold the whole model, what is left where they gather weights, or
# have them in the machine's memory. Assumed, not measured.
SPEED = {"zero3": 0.9, "fsdp2": 0.9, "zero3_offload": 0.4}
# Times that starting a layer takes what it takes without sharding. ZeRO-2 and 3 of one process are
# measured (docs/gpu.md#plans: 1.3 and 1.6, and 4.8), the others assumed to be like them.
SLOWER = {"zero1": 1.4, "zero2": 1.4, "zero3": 4.5, "zero3_offload": 4.5, "fsdp2": 1.4}
BUS = 25e9  # bytes a second to a GPU, PCIe 4 × 16 at four fifths of what it is named for: assumed
MIDDLING = 165.2e12  # FLOPs a second, an RTX 4090's: a card of which no speed is known


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
        steps: of the optimizer.
        adapter: is trained in place of the weights.
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
    steps: float = 0
    adapter: bool = False


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
        wide = padded(run, batch)
        seen = float(run.lengths[:, 1:].sum())
        whole = pass_over(model, float(wide.sum()), seen, lambda window: float((wide**2).sum()))
    return Pass(*(part / count for part in astuple(whole)))


def padded(run: Run, batch: int) -> np.ndarray:
    """Tokens of each row, two a pair, in micro-batches of so many pairs drawn at random and padded
    to their longest row, shape (2n,)."""
    prompt, *answers = np.random.default_rng(0).permutation(run.lengths).T
    count = len(run.lengths)
    longest = np.maximum.reduceat(prompt + np.maximum(*answers), range(0, count, batch))
    return np.repeat(longest, 2 * batch)[: 2 * count].astype(float)


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
    config: str = "ddp",
    price: float | None = None,
    utilisation: float = UTILISATION,
    reference: PreTrainedModel | None = None,
    sent: float = 0,
) -> Cost:
    """What a run comes to on so many GPUs, in half precision.

    Optimizer steps on a CPU, 4-bit weights and slow networks make it longer; nothing of that is in
    it, nor what evaluations sample, nor loading and saving.

    Args:
        config: of accelerate_configs/.
        price: of a GPU for an hour.
        reference: as `flops` has it.
        sent: bytes of weights that a GPU gets from the machine's memory in every micro-batch.
    """
    found = flops(model, run, reference)
    layers, passes = model.config.get_text_config().num_hidden_layers, started(run)
    reached = utilisation * SPEED.get(config, 1)
    computed = sum(found.values()) / (card.flops or MIDDLING) / reached
    each = LAYER * SLOWER.get(config, 1) * (ADAPTED if run.adapter else 1)
    starting = passes * layers * each
    busy = max(computed, starting) + passes * sent / BUS  # of all GPUs together
    if not run.shared:
        tokens = padded(run, run.micro_batch).sum() / len(run.lengths) * run.micro_batch
        busy += passes * layers * tokens * PADDED
    seconds = busy / gpus + run.steps * STEP
    if card.flops is None:
        return Cost(found, None, None, None, seconds)
    hours = seconds * gpus / 3600
    paid = None if price is None else hours * price
    return Cost(found, seconds, hours, paid, seconds)
