"""What wrong labels cost, and whether a loss that knows of them helps.

Chosen and rejected are swapped in a share of the training pairs of the embedded default; held-out
pairs stay as they are. Each of `sigmoid` (the paper's loss), `robust` (Chowdhury et al. 2024, arXiv
2403.00409, told the share that is swapped) and `ipo` (Azar et al. 2023, arXiv 2310.12036) trains on
them, with several seeds. Where nothing is swapped `robust` is `sigmoid`, and is not run again.

The embedded labels are themselves drawn from Bradley-Terry, so that some go against the score
before any is swapped. `sigmoid` and `robust` assume that right labels are drawn so; noise is what
comes on top, and `robust` is told the share that is swapped.
"""

import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dpo.core import files
from dpo.learn import pictures, printed, runs
from dpo.learn.runs import METRICS
from dpo.recipe.flags import overridden
from dpo.reports.frontier_page import markdown

MINUTES = 120
LOSSES = ("sigmoid", "robust", "ipo")
FLIP_SEED = 0
TOKENS = 25  # mean length of the pairs' answers
SPLITS = ("train", "test")
COLUMNS = (("chosen", "rejected"), ("vader_chosen", "vader_rejected"))
SETS = (*runs.SETS, "dataset_name", "loss_type", "label_smoothing", "seed")


@dataclass
class Size:
    """Shares of training pairs that are swapped, losses, seeds, steps, held-out pairs (None: all),
    and how many of their prompts are answered."""

    rates: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)
    losses: tuple[str, ...] = LOSSES
    seeds: tuple[int, ...] = (1, 2, 3)
    steps: int = 40
    held_out: int | None = None
    prompts: int = 128


SMALL = Size((0.0, 0.3), ("sigmoid", "robust"), seeds=(1, 2), steps=2, held_out=8, prompts=4)


def flipped(rows: list[dict[str, Any]], rate: float) -> list[dict[str, Any]]:
    """The rows, chosen and rejected and all that is said of them swapped in this share of them,
    rounded to whole rows.

    Which ones, a fixed seed draws: those of a lower rate are among those of a higher one.
    """
    order = random.Random(FLIP_SEED).sample(range(len(rows)), len(rows))
    wrong = {*order[: round(rate * len(rows))]}
    return [swapped(row) if at in wrong else row for at, row in enumerate(rows)]


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose columns of the chosen answer hold what those of the rejected one held."""
    return row | {one: row[other] for pair in COLUMNS for one, other in (pair, pair[::-1])}


def write_data(base: Path, into: Path, size: Size) -> dict[str, dict[str, Any]]:
    """Write, for each rate, a data set whose training pairs are swapped. Returns of each rate what
    its labels are: `pairs`, how many are `swapped`, and which share is `against_score`."""
    labels = {}
    rows = {split: files.read_lines(base / f"{split}.jsonl") for split in SPLITS}
    for rate in size.rates:
        train, to = flipped(rows["train"], rate), data_of(into, rate)
        to.mkdir(parents=True, exist_ok=True)
        files.write_lines(to / "train.jsonl", train)
        files.write_lines(to / "test.jsonl", rows["test"][: size.held_out])
        against = [row["vader_chosen"] < row["vader_rejected"] for row in train]
        labels[key(rate)] = {
            "pairs": len(train),
            "swapped": sum(a != b for a, b in zip(train, rows["train"], strict=True)),
            "against_score": sum(against) / len(against),
        }
    return labels


def key(rate: float) -> str:
    return f"{100 * rate:g}%"


def data_of(into: Path, rate: float) -> Path:
    return into / "data" / f"swapped-{100 * rate:g}"


def pairs_of(size: Size) -> list[tuple[float, str]]:
    """Every rate and loss; `robust` only where something is swapped."""
    return [(r, loss) for r in size.rates for loss in size.losses if r or loss != "robust"]


def flags_of(size: Size, given: list[str]) -> list[str]:
    """Flags of every run; `given` may say that it computes in another precision."""
    return [*overridden(runs.PRECISION, given), *runs.flags_of(size.steps, size.prompts)]


def own_flags(loss: str, rate: float, beta: float) -> list[str]:
    """Flags that a loss takes beside its type.

    `robust` is told the rate. TRL takes the margin of `ipo` a token, and its target is 1/(2β): with
    β times TOKENS it is, of an answer of this length, that of the paper's at β, which sums.
    """
    return {
        "sigmoid": [],
        "robust": [f"--label_smoothing={rate}"],
        "ipo": [f"--beta={beta * TOKENS:g}"],
    }[loss]


def run(into: Path, docs: Path, small: bool, given: list[str]) -> list[Path]:
    """Train and measure every run that is not there yet, then write the results. Seed by seed, so
    that what a break leaves is whole for the first seeds.

    Args:
        into: of the runs, and of the pairs that they train on.
        docs: of the results.
        given: flags for every run.

    Returns:
        What was written.
    """
    size = SMALL if small else Size()
    flags = flags_of(size, given)
    recipe = runs.recipe_of(flags)
    labels = write_data(Path(recipe.script.dataset_name), into, size)
    found, reports = [], []
    for seed in size.seeds:
        for rate, loss in pairs_of(size):
            own = [f"--dataset_name={data_of(into, rate)}"]
            own += own_flags(loss, rate, recipe.training.beta)
            each = overridden(flags, own)
            point = {"loss_type": loss, "seed": seed}
            one = runs.run_of(into / f"swapped-{100 * rate:g}", point, each)
            runs.train(one, each)
            runs.remove_weights(one.folder)
            reports.append(runs.report_of(one.folder))
            named = {"rate": rate, "loss": loss, "seed": seed}
            found.append(named | runs.numbers(reports[-1]))
    last = reports[-1]  # all are measured on the same pairs and prompts
    results = over_seeds(size, found) | {
        "settings": {
            "recipe": runs.RECIPE,
            **asdict(size),
            "batch": recipe.training.per_device_train_batch_size,
            "beta": recipe.training.beta,
            "answers_to_a_prompt": 1,
            "prompts_asked": last["prompts"]["count"],
            "held_out_pairs": last["pairs"]["count"],
            "flip_seed": FLIP_SEED,
            "given": given,
        },
        "labels": labels,
        "ceiling": last["pairs"]["ceiling"],
        "reference": runs.numbers(last, "against"),
        "made": runs.made_by() | {"minutes": runs.minutes(reports)},
    }
    results |= {"claims": claims(results)}
    return pictures.write("noise", results, table(results), draw(results), docs)


def over_seeds(size: Size, found: list[dict[str, Any]]) -> dict[str, Any]:
    """What runs come to over seeds: `points`, each rate and loss; `to_sigmoid`, the difference to
    that loss at the same rate, and `to_clean`, to the same loss where nothing is swapped, both
    paired by seed."""

    def of(rate: float, loss: str) -> list[dict[str, Any]]:
        loss = loss if rate else loss.replace("robust", "sigmoid")  # the same there
        here = {e["seed"]: e for e in found if (e["rate"], e["loss"]) == (rate, loss)}
        return [here[seed] for seed in size.seeds]

    parts: dict[str, list[dict[str, Any]]] = {"points": [], "to_sigmoid": [], "to_clean": []}
    for rate, loss in pairs_of(size):
        named, mine = {"rate": rate, "loss": loss}, of(rate, loss)
        parts["points"].append(named | runs.over_seeds(mine))
        if loss != "sigmoid":
            parts["to_sigmoid"].append(named | runs.over_seeds(mine, of(rate, "sigmoid")))
        if rate:
            parts["to_clean"].append(named | runs.over_seeds(mine, of(0.0, loss)))
    return {"runs": found, **parts}


def claims(results: dict[str, Any]) -> dict[str, float]:
    """Every number that a page may print of the results, by what it is, rounded as it is printed;
    shares of labels in percent."""
    found = {"ceiling": round(results["ceiling"], 3)}
    for name, value in results["reference"].items():
        found[f"reference, {name}"] = float(format(value, METRICS[name][1]))
    for rate, labels in results["labels"].items():
        found[f"labels against the score at {rate}"] = round(100 * labels["against_score"], 1)
    for part in ("points", "to_sigmoid", "to_clean"):
        for point in results[part]:
            of = f"{part}, {point['loss']} at {key(point['rate'])}"
            found |= printed.claims(of, point, METRICS)
    return found


def table(results: dict[str, Any]) -> str:
    """Every rate and loss, and beneath them the differences, as Markdown."""
    head = ["swapped", "loss", *(name for name, _ in METRICS.values())]

    def rows(part: str, words: str = "") -> list[list[str]]:
        return [
            [
                key(each["rate"]),
                f"{each['loss']}{words}",
                *printed.cells(each, METRICS, difference=bool(words)),
            ]
            for each in results[part]
        ]

    differences = [*rows("to_sigmoid", " − sigmoid"), *rows("to_clean", " − itself at 0%")]
    return markdown([head, *rows("points")]) + "\n" + markdown([head, *differences])


def draw(results: dict[str, Any]) -> Figure:
    """True reward, accuracy and KL over the share that is swapped, a line for each loss."""
    shown = ("reward", "accuracy", "kl")
    figure, axes = pictures.panels(len(shown))
    points = results["points"]
    for axis, name in zip(axes, shown, strict=True):
        for at, loss in enumerate(results["settings"]["losses"]):
            begins = "sigmoid" if loss == "robust" else loss  # where nothing is swapped
            mine = [p for p in points if p["loss"] == (loss if p["rate"] else begins)]
            x = [100 * p["rate"] + 0.6 * (at - 1) for p in mine]  # beside each other
            label = loss if loss != "robust" else "robust (at 0: sigmoid)"
            pictures.line(axis, x, [p[name] for p in mine], at, label)
        axis.set(xlabel="training labels swapped, %", title=METRICS[name][0])
        axis.set_xticks([100 * rate for rate in results["settings"]["rates"]])
    for axis, start in zip(axes, (results["reference"]["reward"], 0.5, 0), strict=True):
        axis.axhline(start, color="#8a94a6", linewidth=0.8, linestyle=":", label="before training")
    axes[1].legend(frameon=False, fontsize=8, loc="lower left")
    return figure
