"""That DPO finds the optimum, where all completions can be listed so that it is known.

A random model of a few words, three prompts, and nine completions of each. Every completion has a
reward, drawn from a standard normal; of every two completions of a prompt one is preferred as
often as Bradley and Terry's model says (equation 1 of the DPO paper, arXiv 2305.18290). What is
trained on these labels is held against π*(y | x) ∝ π_ref(y | x) exp(r(x, y) / β) (equation 4). The
labels say nothing of what lies outside the completions that were compared, so that distributions
are those over the nine; how much probability they have in all is told beside.
"""

import itertools
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from dpo.learn import listed, pictures, printed, runs
from dpo.learn.listed import COMPLETIONS, PROMPTS
from dpo.losses import dpo_loss, implicit_reward, optimal_logps
from dpo.recipe.flags import names_in
from dpo.reports.frontier_page import markdown

MINUTES = 2
POLICIES = ("π_ref", "π*", "π")
# Of each run, and how they are printed. Means over prompts.
METRICS = {
    "before": ("from π_ref to π*", ".3f"),
    "after": ("from π to π*", ".3f"),
    "kl_optimal": ("KL of π*, nats", ".2f"),
    "kl": ("KL of π, nats", ".2f"),
    "error": ("r̂ less r", ".3f"),
    "inside_before": ("π_ref on the nine", ".3f"),
    "inside": ("π on the nine", ".3f"),
}
# Likewise, of what is maximised and what is minimised.
REACHED = {
    **{f"objective_{name}": (f"objective of {name}", ".3f") for name in POLICIES},
    **{f"loss_{name}": (f"loss of {name}", ".3f") for name in ("π_ref", "r", "π")},
}
SETS = ("model_name_or_path", "seed", "num_train_epochs", "reference_cache")
ALL = METRICS | REACHED


@dataclass
class Size:
    """β, where none is given, seeds (each draws rewards and the model that it starts from), labels
    of each two completions of a prompt, and epochs on them."""

    betas: tuple[float, ...] = (0.5, 1.0, 2.0)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    labels: int = 40
    epochs: int = 5


SMALL = Size((0.5, 2.0), seeds=(1, 2), labels=8, epochs=2)


def tables(found: dict[str, Any]) -> list[torch.Tensor]:
    """Log-probabilities of reference and policy, and rewards, each of shape (3, 9)."""
    names = ("reference", "policy", "rewards")
    return [torch.tensor(found[name], dtype=torch.float64) for name in names]


def over_the_nine(found: dict[str, Any], beta: float) -> dict[str, torch.Tensor]:
    """Log-probabilities of π_ref, π* and π over the nine completions of each prompt, shape (3, 9);
    those of each prompt sum to 1."""
    reference, policy, rewards = tables(found)
    optimal = optimal_logps(reference, rewards, beta)
    policies = (reference.log_softmax(-1), optimal, policy.log_softmax(-1))
    return dict(zip(POLICIES, policies, strict=True))


def distances(found: dict[str, Any], beta: float, name: str) -> torch.Tensor:
    """Total variation between one of POLICIES and π*, of each prompt: the most by which the
    probability of any set of completions differs, shape (3,)."""
    policies = over_the_nine(found, beta)
    return (policies[name].exp() - policies["π*"].exp()).abs().sum(-1) / 2


def reached(found: dict[str, Any], beta: float, labels: int) -> dict[str, float]:
    """REACHED of a policy: the mean reward less β KL (equation 3) of each of POLICIES, and the loss
    (equation 7) of the labels under the implicit reward of π_ref and π, and under the reward itself
    as they were drawn from it. So many `labels` of every two completions."""
    reference, policy, rewards = tables(found)
    share = torch.tensor(listed.wins(rewards.numpy(), labels) / labels)
    logps = over_the_nine(found, beta)

    def objective(name: str) -> float:
        nats = logps[name] - logps["π_ref"]
        return (logps[name].exp() * (rewards - beta * nats)).sum(-1).mean().item()

    def loss(reward: torch.Tensor) -> float:
        first, second = (reward[:, side] for side in listed.TWO)
        both = share * dpo_loss(first, second) + (1 - share) * dpo_loss(second, first)
        return both.mean().item()

    implied = {"π_ref": torch.zeros_like(rewards), "r": rewards}
    implied |= {"π": implicit_reward(policy, reference, beta)}
    return {f"objective_{name}": objective(name) for name in POLICIES} | {
        f"loss_{name}": loss(reward) for name, reward in implied.items()
    }


def numbers(found: dict[str, Any], beta: float) -> dict[str, float]:
    """METRICS of a policy. `error` is the root mean square of what the implicit reward is off by,
    both rewards less their mean over a prompt's completions, which labels say nothing of."""
    policies = over_the_nine(found, beta)
    reference, policy, rewards = tables(found)
    off = implicit_reward(policy, reference, beta) - rewards

    def kl(name: str) -> float:
        nats = policies[name] - policies["π_ref"]
        return (policies[name].exp() * nats).sum(-1).mean().item()

    return {
        "before": distances(found, beta, "π_ref").mean().item(),
        "after": distances(found, beta, "π").mean().item(),
        "kl_optimal": kl("π*"),
        "kl": kl("π"),
        "error": (off - off.mean(-1, keepdim=True)).square().mean().sqrt().item(),
        "inside_before": reference.exp().sum(-1).mean().item(),
        "inside": policy.exp().sum(-1).mean().item(),
    }


def run(into: Path, docs: Path, small: bool, given: list[str]) -> list[Path]:
    """Train every policy that is not there yet, seed by seed, then write the results.

    Args:
        into: of what was trained.
        docs: of the results.
        given: flags for every run.

    Returns:
        What was written.
    """
    size = SMALL if small else Size()
    if "beta" in names_in(given):
        size = replace(size, betas=(runs.recipe_of(given).training.beta,))
    found, shown, seconds, largest = [], [], 0.0, 0.0
    points = [*itertools.product(size.seeds, size.betas)]
    for seed, beta in tqdm(points, desc="Closed form", unit="run"):
        asked = {"beta": beta, "seed": seed, "labels": size.labels, "epochs": size.epochs}
        asked |= {"given": given}
        train = partial(listed.trained, into, beta, seed, size.labels, size.epochs, given)
        one = runs.kept(into / f"beta={beta:g},seed={seed}.json", asked, train)
        seconds += one["seconds"]
        largest = max(largest, distances(one, beta, "π").max().item())
        named = {"beta": beta, "seed": seed}
        found.append(named | numbers(one, beta) | reached(one, beta, size.labels))
        if seed == size.seeds[0]:
            policies = over_the_nine(one, beta)
            shown.append(
                {"beta": beta, "seed": seed, "prompt": PROMPTS[0], "completions": COMPLETIONS}
                | {"rewards": one["rewards"][0], "distance": distances(one, beta, "π")[0].item()}
                | {"before": distances(one, beta, "π_ref")[0].item()}
                | {name: logps[0].exp().tolist() for name, logps in policies.items()}
            )
    results = {
        "settings": {**asdict(size), "prompts": PROMPTS, "given": given},
        "points": [
            {"beta": b, **runs.over_seeds([e for e in found if e["beta"] == b], metrics=ALL)}
            for b in size.betas
        ],
        "largest": largest,
        "shown": shown,
        "runs": found,
        "made": runs.made_by() | {"minutes": seconds / 60},
    }
    results |= {"claims": claims(results)}
    return pictures.write("closed_form", results, table(results), draw(results), docs)


def claims(results: dict[str, Any]) -> dict[str, float]:
    """Every number that a page may print of the results, by what it is, as it is printed."""
    found = {"the largest distance of any prompt": round(results["largest"], 3)}
    for point in results["points"]:
        found |= printed.claims(f"β {point['beta']:g}", point, ALL)
    for each in results["shown"]:
        for name in ("before", "distance"):
            found[f"picture, β {each['beta']:g}, {name}"] = round(each[name], 3)
    return found


def table(results: dict[str, Any]) -> str:
    """Each β as Markdown: mean over seeds with Student's interval; METRICS, and then REACHED."""

    def of(metrics: printed.Metrics) -> str:
        rows = [["β", *(name for name, _ in metrics.values())]]
        for point in results["points"]:
            rows.append([f"{point['beta']:g}", *printed.cells(point, metrics)])
        return markdown(rows)

    return of(METRICS) + "\n" + of(REACHED)


def draw(results: dict[str, Any]) -> Figure:
    """The nine completions of one prompt, by their reward: π_ref and π* as bars, π as dots, a panel
    for each β."""
    shown = results["shown"]
    figure, axes = pictures.panels(len(shown), sharey=True)
    for axis, each in zip(axes, shown, strict=True):
        order = np.argsort(each["rewards"])
        x, policies = np.arange(len(order)), {s: np.array(each[s])[order] for s in POLICIES}
        axis.bar(x - 0.2, policies["π_ref"], 0.4, color="#c9d1d9", label="π_ref, before")
        axis.bar(x + 0.2, policies["π*"], 0.4, color="#9cc2ff", label="π*, closed form")
        axis.plot(x + 0.2, policies["π"], "o", color=pictures.COLORS[2], ms=4, label="π, trained")
        named = [f"{each['completions'][at]}\n{each['rewards'][at]:+.1f}" for at in order]
        axis.set_xticks(x, named, fontsize=6.5)
        axis.set_title(
            f"β = {each['beta']:g}: distance {each['before']:.3f} → {each['distance']:.3f}"
        )
        axis.title.set_fontsize(9)
        axis.set_xlabel("completion, and its reward r")
    axes[0].set_ylabel("probability among the nine")
    axes[0].legend(frameon=False, fontsize=8)
    return figure
