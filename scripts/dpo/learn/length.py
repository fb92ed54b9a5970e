"""What is learned where the better answer is always longer, and which loss holds length back.

Pairs are made of the answers that the embedded default's own pairs were made of: of each prompt the
two that differ most in score, of those of which the better one is longer by GAP tokens or more. So
score and length are confounded: nothing in the pairs says which of the two is preferred.

`sigmoid` (the paper's loss) trains on them; `sigmoid_norm`, whose log-ratios are means over the
tokens of an answer (without a reference: SimPO, Meng et al. 2024, arXiv 2405.14734; with one:
Tülu 3, Lambert et al. 2024, arXiv 2411.15124); and `sigmoid` with `ld_alpha`, which weighs what
the longer answer has beyond the length of the shorter one (Liu et al. 2024, arXiv 2409.06411).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dpo.core import files
from dpo.core.machine import measuring_device
from dpo.core.stats import bootstrap, mean_at_equal_length
from dpo.evaluation import generations, measure, prompts
from dpo.evaluation.contestants import Contestant, reference_of
from dpo.evaluation.judges import judging
from dpo.learn import along, pictures, printed, runs
from dpo.recipe.flags import overridden
from dpo.reports.frontier_page import markdown

MINUTES = 17
GAP = 8  # tokens
LD_ALPHA = 0.5  # 1 is sigmoid; at 0 what is beyond that length counts for nothing
MAX_NEW_TOKENS = 160  # four times the longest answer of the pairs, for growth to be seen
SPLITS = ("train", "test")
SETS = (*along.SETS, "dataset_name", "loss_type", "ld_alpha", "seed")
# As the results have them: how they are named and printed.
METRICS = {
    "tokens": ("answer, tokens", ".1f"),
    "finished": ("ended by themselves", ".0%"),
    "reward": ("true reward", "+.3f"),
    "gain": ("reward over the reference", "+.3f"),
    "gain_at_length": ("the same, at equal length", "+.3f"),
    "kl": ("KL, nats a sequence", ".2f"),
}


@dataclass
class Size:
    """Seeds, steps, pairs of each split (None: all), and held-out prompts that are answered."""

    seeds: tuple[int, ...] = (1, 2, 3)
    steps: int = 12
    pairs: int | None = None
    prompts: int = 32


SMALL = Size(seeds=(1, 2), steps=2, pairs=16, prompts=4)


def pair_of(row: dict[str, Any]) -> dict[str, Any] | None:
    """The pair of a prompt's scored answers whose better one is longer by GAP tokens or more, and
    has most over the other in score; the first such pair, and None if there is none."""
    whole = [answer for answer in row["answers"] if answer["why"] is None]
    pairs = [(a, b) for a in whole for b in whole if a["tokens"] >= b["tokens"] + GAP]
    if not (pairs := [(a, b) for a, b in pairs if a["score"] > b["score"]]):
        return None
    chosen, rejected = max(pairs, key=lambda pair: pair[0]["score"] - pair[1]["score"])
    return {
        "prompt": row["prompt"],
        "chosen": [{"role": "assistant", "content": chosen["text"]}],
        "rejected": [{"role": "assistant", "content": rejected["text"]}],
        "vader_chosen": chosen["score"],
        "vader_rejected": rejected["score"],
        "tokens": [chosen["tokens"], rejected["tokens"]],
    }


def write_data(candidates: Path, into: Path, most: int | None) -> dict[str, dict[str, Any]]:
    """Write the pairs of both splits. Returns of each how many there are, and the mean length and
    score of both sides."""
    about, rows = {}, files.read_lines(candidates)
    into.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        found = [pair for row in rows if row["split"] == split and (pair := pair_of(row))][:most]
        tokens = np.array([pair.pop("tokens") for pair in found]).mean(axis=0)
        sides = ("chosen", "rejected")
        scores = {side: np.mean([pair[f"vader_{side}"] for pair in found]) for side in sides}
        files.write_lines(into / f"{split}.jsonl", found)
        about[split] = {
            "pairs": len(found),
            "tokens": dict(zip(scores, map(float, tokens), strict=True)),
            "score": {side: float(score) for side, score in scores.items()},
        }
    return about


def ways(beta: float, tokens: float) -> dict[str, list[str]]:
    """Flags of each way to train, by its name.

    Args:
        beta: of `sigmoid`.
        tokens: mean length of the answers. β of `sigmoid_norm` is `beta` times that: an answer of
            that length then has the same reward under both.
    """
    norm = round(beta * tokens, 1)
    return {
        "sigmoid": [],
        "sigmoid_norm": ["--loss_type=sigmoid_norm", f"--beta={norm}"],
        "sigmoid, ld_alpha": [f"--ld_alpha={LD_ALPHA}"],
    }


def measure_policy(
    who: Contestant, reference: Contestant, asked: list, device: str
) -> dict[str, Any]:
    """What a policy answers beside its reference, with intervals over prompts: METRICS; of the
    reference `reward` and `tokens`; and how often it wins, by length-controlled win rate too."""
    settings = generations.Settings(1, measure.TEMPERATURE, MAX_NEW_TOKENS, measure.SEED)
    found = measure.measure(who, reference, reference, asked, None, settings, device)
    judged = measure.judged(found, judging.by_known_reward(measure.comparisons(asked, found)))
    both = np.array([generations.lengths(rows) for rows in (found.policy, found.against)])
    rewards = np.array([judged["rewards"][side] for side in ("policy", "against")])
    counted = generations.measure(found.policy, found.against)
    assert found.kl
    return {
        "tokens": counted["mean_tokens"]["policy"],
        "reward": judged["reward"]["policy"],
        "gain": judged["reward"]["difference"],
        "gain_at_length": asdict(mean_at_equal_length(rewards, both.astype(float))),
        "kl": found.kl["nats_per_sequence"],
        "finished": counted["finished"]["policy"],
        "longer": asdict(bootstrap((both[0] - both[1]).mean(axis=1))),
        "win_rate": judged["win_rate"],
        "length_controlled_win_rate": judged["length_controlled_win_rate"],
        "reference": {
            "tokens": counted["mean_tokens"]["against"],
            "reward": judged["reward"]["against"],
        },
    }


def run(into: Path, docs: Path, small: bool, given: list[str]) -> list[Path]:
    """Train and measure every run that is not there yet, seed by seed, then write the results.

    Args:
        into: of the runs, and of the pairs that they train on.
        docs: of the results.
        given: flags for every run, which may say that it computes in another precision.

    Returns:
        What was written.
    """
    given = overridden(runs.PRECISION, given)
    size, data = SMALL if small else Size(), into / "data"
    flags = [*given, *along.flags_of(size.steps, size.steps)]
    base = runs.recipe_of(given)
    about = write_data(Path(base.script.dataset_name) / "candidates.jsonl", data, size.pairs)
    recipe = runs.recipe_of([*given, f"--dataset_name={data}"])
    asked = prompts.each_once(prompts.of_pairs(prompts.held_out_pairs(recipe)), size.prompts)
    reference, device = reference_of(recipe), measuring_device()
    settings = {"prompts": len(asked), "max_new_tokens": MAX_NEW_TOKENS, "gap": GAP}
    mean = float(np.mean([*about["train"]["tokens"].values()]))
    trained = ways(recipe.training.beta, mean)
    found, reports = [], []
    for seed in size.seeds:
        for name, own in trained.items():
            each = overridden(flags, [f"--dataset_name={data}", *own])
            folder = into / name.replace(", ", "-")
            one = runs.run_of(folder, {"seed": seed}, each)
            (point,) = along.measured(
                one, each, settings, lambda who: measure_policy(who, reference, asked, device)
            )
            runs.remove_weights(one.folder)
            reports.append(runs.report_of(one.folder))
            found.append({"way": name, "seed": seed} | point)
    results = over_seeds(size.seeds, [*trained], found) | {
        "settings": {
            "recipe": runs.RECIPE,
            **asdict(size),
            "prompts_asked": len(asked),
            "batch": recipe.training.per_device_train_batch_size,
            "beta": recipe.training.beta,
            "ways": trained,
            "gap": GAP,
            "temperature": measure.TEMPERATURE,
            "max_new_tokens": MAX_NEW_TOKENS,
            "given": given,
        },
        "data": about,
        "reference": found[-1]["reference"],
        "made": runs.made_by() | {"minutes": runs.minutes(reports, found)},
    }
    results |= {"claims": claims(results)}
    return pictures.write("length", results, table(results), draw(results), docs)


def over_seeds(
    seeds: Sequence[int], names: Sequence[str], found: list[dict[str, Any]]
) -> dict[str, Any]:
    """What runs come to over seeds: `points`, each way to train, and `to_sigmoid`, how it differs
    from that, paired by seed; and the `runs` themselves, their intervals over prompts."""

    def of(way: str) -> list[dict[str, float]]:
        mine = {each["seed"]: each for each in found if each["way"] == way}
        return [{name: mine[seed][name]["mean"] for name in METRICS} for seed in seeds]

    points = [{"way": way} | runs.over_seeds(of(way), metrics=METRICS) for way in names]
    less = [{"way": way} | runs.over_seeds(of(way), of(names[0]), METRICS) for way in [*names][1:]]
    return {"runs": found, "points": points, "to_sigmoid": less}


def claims(results: dict[str, Any]) -> dict[str, float]:
    """Every number that a page may print of the results, by what it is, rounded as it is printed;
    of the first seed's runs too, whose intervals are over prompts."""
    found = {}
    for split, about in results["data"].items():
        for kind, form in (("tokens", ".1f"), ("score", ".2f")):
            for side, value in about[kind].items():
                found[f"{split}, {kind} of {side}"] = float(format(value, form))
    found |= printed.claims("reference", results["reference"], METRICS)
    for part in ("points", "to_sigmoid"):
        for point in results[part]:
            found |= printed.claims(f"{part}, {point['way']}", point, METRICS)
    for one in results["runs"]:
        found |= printed.claims(f"{one['way']}, seed {one['seed']}", one, METRICS)
    return found


def table(results: dict[str, Any]) -> str:
    """Every way to train, and beneath them how each differs from `sigmoid`, as Markdown."""
    head = ["loss", *(name for name, _ in METRICS.values())]

    def rows(part: str, words: str = "") -> list[list[str]]:
        return [
            [f"{each['way']}{words}", *printed.cells(each, METRICS, difference=bool(words))]
            for each in results[part]
        ]

    less = rows("to_sigmoid", " − sigmoid")
    return markdown([head, *rows("points")]) + "\n" + markdown([head, *less])


def draw(results: dict[str, Any]) -> Figure:
    """Length of answers, and reward over the reference as it is and at equal length, each way a
    point with its interval over seeds."""
    figure, axes = pictures.panels(2)
    names = [point["way"] for point in results["points"]]
    shown = (("tokens",), ("gain", "gain_at_length"))
    for axis, metrics in zip(axes, shown, strict=True):
        for at, name in enumerate(metrics):
            x = [place + 0.16 * (at - (len(metrics) - 1) / 2) for place in range(len(names))]
            values = [point[name] for point in results["points"]]
            pictures.line(axis, x, values, at, METRICS[name][0], joined=False)
        axis.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
        axis.margins(x=0.2)
    before = results["reference"]["tokens"]["mean"]
    axes[0].axhline(before, color="#8a94a6", linewidth=0.8, linestyle=":", label="before training")
    axes[1].axhline(0, color="#8a94a6", linewidth=0.8, linestyle=":")
    for axis, title in zip(axes, ("answer, tokens", "true reward"), strict=True):
        axis.set(title=title)
        axis.legend(frameon=False, fontsize=8)
    return figure
