"""How large the gradient of single pairs is along a run, and how much of that is their weight.

The gradient of a pair's loss is −β σ(r̂_l − r̂_w) (∇ log π(y_w | x) − ∇ log π(y_l | x)) (section 4
of the DPO paper, arXiv 2305.18290, "What does the DPO update do?"; derived in its appendix A.4).
So its norm is β, times the weight σ(r̂_l − r̂_w), times the norm of the difference. Here autograd
computes both norms, pair by pair, at the start and at checkpoints of a run of the embedded default
with a share of its training pairs swapped. Of a sample of these, half have the label that the score
gives them, and half were swapped and now go against the score.
"""

import random
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn.utils import get_total_norm
from tqdm import tqdm
from transformers import PreTrainedModel

from dpo.core import files
from dpo.core.machine import measuring_device
from dpo.core.stats import said, t_difference, t_interval
from dpo.data import dataset, schema
from dpo.data.sources.load import load_rows
from dpo.evaluation.contestants import Contestant, reference_of
from dpo.learn import along, noise, pictures, printed, runs
from dpo.losses import completion_logps, dpo_loss, gradient_weight, implicit_reward
from dpo.models.scoring import tensors
from dpo.recipe.parse import Recipe
from dpo.reports.frontier_page import markdown

MINUTES = 14
SIDES = ("right", "wrong")
SAMPLE_SEED = 0
SETS = (*along.SETS, "dataset_name", "seed", "use_peft")
# Of each pair at each checkpoint, and how they are printed.
METRICS = {
    "weight": ("weight", ".3f"),
    "loss": ("norm of the loss's gradient", ".2f"),
    "difference": ("norm of the difference's", ".1f"),
}


@dataclass
class Size:
    """The share of training pairs that is swapped, steps, steps between checkpoints, and pairs of
    the sample with a right label, and as many with a wrong one."""

    rate: float = 0.2
    steps: int = 48
    every: int = 12
    pairs: int = 12
    seed: int = 1


SMALL = Size(steps=2, every=1, pairs=2)


def write_data(base: Path, to: Path, rate: float) -> None:
    """Write the training pairs with this share of them swapped, and of each whether it is."""
    before = files.read_lines(base / "train.jsonl")
    after = noise.flipped(before, rate)
    to.mkdir(parents=True, exist_ok=True)
    both = zip(before, after, strict=True)
    files.write_lines(to / "train.jsonl", [row | {"swapped": row != was} for was, row in both])


def sample_of(rows: list[dict[str, Any]], count: int) -> dict[str, list[int]]:
    """Which rows are measured, by number: so many that were not swapped and whose chosen answer has
    the higher score (`right`), and as many that were and whose chosen answer has the lower one
    (`wrong`). All of different prompts; a fixed seed draws them."""
    found: dict[str, list[int]] = {side: [] for side in SIDES}
    prompts = set()
    for at in random.Random(SAMPLE_SEED).sample(range(len(rows)), len(rows)):
        row, prompt = rows[at], str(rows[at]["prompt"])
        better = row["vader_chosen"] - row["vader_rejected"]
        side = SIDES[row["swapped"]]
        agrees = better > 0 if side == "right" else better < 0
        if agrees and prompt not in prompts and len(found[side]) < count:
            found[side].append(at)
            prompts.add(prompt)
    return found


def rows_of(recipe: Recipe, sample: dict[str, list[int]], tokenizer: Any) -> list[list]:
    """(prompt ids, completion ids) of chosen and of rejected, of each pair of the sample, as the
    run is trained on them."""
    pairs: Any = dataset.prepare(recipe, load_rows(recipe), tokenizer)["train"].pairs
    some = pairs.select([at for side in SIDES for at in sample[side]])
    args = recipe.training
    rows = schema.pair_rows(some, args.max_length, args.truncation_mode)
    return [[*pair] for pair in zip(rows[: len(some)], rows[len(some) :], strict=True)]


def gradient_of(
    model: PreTrainedModel,
    rows: list[tuple[list[int], list[int]]],
    pad: int,
    beta: float,
    reference: list[float] | None = None,
) -> dict[str, Any]:
    """One pair under a model: `logps` of chosen and rejected in nats, the `weight`, and by autograd
    the norms of two gradients by all weights of the model, of the `loss` and of the `difference`
    log π(y_w | x) − log π(y_l | x).

    Args:
        rows: (prompt ids, completion ids) of chosen and of rejected.
        reference: their log-probabilities under the reference; None where the model is it.
    """
    logps = completion_logps(model, *(each.to(model.device) for each in tensors(rows, pad)))
    before = logps.detach() if reference is None else logps.new_tensor(reference)
    rewards = implicit_reward(logps, before, beta)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    sums = {"difference": logps[0] - logps[1], "loss": dpo_loss(*rewards)}
    norms = {}
    for name, value in sums.items():
        gradients = torch.autograd.grad(value, weights, retain_graph=name == "difference")
        norms[name] = get_total_norm(gradients).item()
        del gradients  # as large as the model
    weight = gradient_weight(*rewards.detach()).item()
    return {"logps": logps.tolist(), "weight": weight, **norms}


def gradients_of(
    who: Contestant, rows: list[list], beta: float, reference: list[list[float]] | None
) -> dict[str, Any]:
    """`gradient_of` of each pair of a sample."""
    device = measuring_device()
    pad, before = who.tokenizer().pad_token_id, reference or [None] * len(rows)
    with who.autocast(device):
        model = who.load(device)
        each = [
            gradient_of(model, pair, pad, beta, logps)
            for pair, logps in zip(tqdm(rows, desc=who.name, unit="pair"), before, strict=True)
        ]
    return {"pairs": each}


def run(into: Path, docs: Path, small: bool, given: list[str]) -> list[Path]:
    """Measure the sample at the start and along a run, then write the results.

    Args:
        into: of the run, and of the pairs that it trains on.
        docs: of the results.
        given: flags for the run.

    Returns:
        What was written.
    """
    size, data = SMALL if small else Size(), into / "data"
    flags = [*given, *along.flags_of(size.steps, size.every), f"--dataset_name={data}"]
    write_data(Path(runs.recipe_of(given).script.dataset_name), data, size.rate)
    sample = sample_of(files.read_lines(data / "train.jsonl"), size.pairs)
    run = runs.run_of(into, {"seed": size.seed}, flags)
    start, beta = reference_of(run.recipe), run.recipe.training.beta
    rows = rows_of(run.recipe, sample, start.tokenizer())

    asked = {"sample": sample, "given": given}
    find = partial(gradients_of, start, rows, beta, None)
    first = {"step": 0, **runs.kept(into / "reference.json", asked, find)}
    reference = [pair["logps"] for pair in first["pairs"]]

    def measure(who: Contestant) -> dict[str, Any]:
        return gradients_of(who, rows, beta, reference)

    found = [first, *along.measured(run, flags, {"sample": sample}, measure)]
    runs.remove_weights(run.folder)
    minutes = runs.minutes([runs.report_of(run.folder)], found)
    sides = [side for side in SIDES for _ in sample[side]]
    numbers = [number for side in SIDES for number in sample[side]]
    kinds = ("logps", *METRICS)
    points = [
        {"step": each["step"], "row": number, "side": side} | {kind: pair[kind] for kind in kinds}
        for each in found
        for number, side, pair in zip(numbers, sides, each["pairs"], strict=True)
    ]
    settings = {"recipe": runs.RECIPE, **asdict(size), "beta": beta}
    settings |= {"batch": run.recipe.training.per_device_train_batch_size, "given": given}
    settings |= {"sample_seed": SAMPLE_SEED, "flip_seed": noise.FLIP_SEED}
    results = summary(points, beta) | {"settings": settings, "pairs": points}
    results |= {"made": runs.made_by() | {"minutes": minutes}}
    results |= {"claims": claims(results)}
    return pictures.write("gradient", results, table(results), draw(results), docs)


def summary(points: list[dict[str, Any]], beta: float) -> dict[str, Any]:
    """What pairs come to: `points`, METRICS of each side at each step, means with Student's
    intervals over pairs; `apart`, by how much wrong ones weigh more than right ones, with Welch's
    interval; and `off`, the most by which a norm differs from β × weight × difference, as a share
    of it."""
    found: dict[str, Any] = {"points": [], "apart": []}
    for step in dict.fromkeys(each["step"] for each in points):
        weights = {}
        for side in SIDES:
            here = [p for p in points if (p["step"], p["side"]) == (step, side)]
            of = {name: np.array([each[name] for each in here]) for name in METRICS}
            weights[side] = of["weight"]
            means = {name: asdict(t_interval(values)) for name, values in of.items()}
            found["points"].append({"step": step, "side": side, **means})
        apart = t_difference(weights["wrong"], weights["right"])
        found["apart"].append({"step": step, "weight": asdict(apart)})
    off = (each["loss"] / expected(each, beta) - 1 for each in points)
    return found | {"off": max(map(abs, off))}


def expected(point: dict[str, Any], beta: float) -> float:
    """The norm of a pair's gradient as the equation has it."""
    return beta * point["weight"] * point["difference"]


def claims(results: dict[str, Any]) -> dict[str, float]:
    """Every number that a page may print of the results, by what it is, as it is printed."""
    found = {"off by at most, parts in a million": round(1e6 * results["off"], 1)}
    for point in results["points"]:
        found |= printed.claims(f"step {point['step']}, {point['side']}", point, METRICS)
    for point in results["apart"]:
        found |= printed.claims(f"step {point['step']}, wrong − right", point, METRICS)
    return found


def table(results: dict[str, Any]) -> str:
    """Each step and side, and beneath them how far their weights are apart, as Markdown."""
    rows = [["step", "label", *(name for name, _ in METRICS.values())]]
    for point in results["points"]:
        rows.append([str(point["step"]), point["side"], *printed.cells(point, METRICS)])
    apart = [["step", "weight, wrong − right"]]
    apart += [[str(p["step"]), said(p["weight"], "+.3f")] for p in results["apart"]]
    return markdown(rows) + "\n" + markdown(apart)


def draw(results: dict[str, Any]) -> Figure:
    """The norm of each pair's gradient against what the equation says, and against its weight; and
    the weights of both sides along the run."""
    figure, (equation, weighed, along) = pictures.panels(3)
    beta, last = results["settings"]["beta"], results["points"][-1]["step"]
    for at, side in enumerate(SIDES):
        mine = [p for p in results["pairs"] if p["side"] == side]
        style = {"color": pictures.COLORS[2 * at], "marker": pictures.MARKERS[at], "s": 12}
        norms, sizes = [p["loss"] for p in mine], [expected(p, beta) for p in mine]
        equation.scatter(sizes, norms, alpha=0.5, label=f"{side} label", **style)
        late = [p for p in mine if p["step"] == last]
        weighed.scatter([p["weight"] for p in late], [p["loss"] for p in late], **style)
        line = [p for p in results["points"] if p["side"] == side]
        steps = [p["step"] + 0.1 * (2 * at - 1) for p in line]  # beside each other
        pictures.line(along, steps, [p["weight"] for p in line], 2 * at, f"{side} label")
    ends = equation.get_xlim()
    equation.axline((ends[0], ends[0]), slope=1, color="#8a94a6", linewidth=0.8, linestyle=":")
    equation.set(title="gradient of a pair's loss, norm", xlabel="β · weight · norm of difference")
    weighed.set(title=f"the same, at step {last}", xlabel="weight σ(r̂_l − r̂_w)")
    along.axhline(0.5, color="#8a94a6", linewidth=0.8, linestyle=":")
    along.set(title="mean weight along the run", xlabel="step")
    along.set_xticks([*dict.fromkeys(p["step"] for p in results["points"])])
    equation.legend(frameon=False, fontsize=8)
    return figure
