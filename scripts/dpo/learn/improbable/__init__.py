"""What DPO does with answers that the model hardly ever writes, and what mends it."""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dpo.core.machine import measuring_device
from dpo.evaluation import measure
from dpo.evaluation.contestants import Contestant, reference_of
from dpo.learn import along, pictures, runs
from dpo.learn.improbable.measuring import MAX_NEW_TOKENS, Held, measure_policy
from dpo.learn.improbable.results import (
    METRICS,
    changes,
    claims,
    draw,
    most_displaced,
    side_by_side,
    table,
)
from dpo.learn.improbable.styles import SIDES, STYLES, write_data
from dpo.models.sampling import said
from dpo.recipe.flags import overridden
from dpo.recipe.parse import Recipe

__all__ = ["MINUTES", "claims", "run", "table"]

MINUTES = 20
SEED = 1
SETS = ("dataset_name", "loss_type", "loss_weights", "seed")
WITH_SFT = ["--loss_type", "sigmoid", "sft", "--loss_weights", "1", "1"]
SIGMOID, BESIDE, BEFORE = "sigmoid", "sigmoid + sft", "sft, then sigmoid"


@dataclass
class Size:
    """Steps of each trial of a style, of each way, and of the SFT that is the beginning of one; at
    every so many of them policies are measured, on held-out pairs and on some of their prompts."""

    trial: int = 4
    steps: int = 12
    sft: int = 4
    every: int = 4
    held_out: int = 48
    prompts: int = 48


SMALL = Size(trial=2, steps=4, sft=2, every=2, held_out=4, prompts=4)


@dataclass
class Experiment:
    """What all runs share: where they lie, what a user gives, and what they are measured by; and
    their reports, and what was measured of them and of the reference."""

    into: Path
    size: Size
    given: list[str]
    device: str
    base: Recipe
    reports: list[dict[str, Any]] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)

    def held(self, style: str) -> Held:
        """What policies are measured on in a style, whose pairs are then written."""
        data = self.data(style)
        candidates = Path(self.base.script.dataset_name) / "candidates.jsonl"
        write_data(candidates, data, STYLES[style], self.size.held_out)
        recipe = runs.recipe_of([*self.given, f"--dataset_name={data}"])
        return Held.of(recipe, reference_of(self.base), STYLES[style], self.size.prompts)

    def data(self, style: str) -> Path:
        return self.into / "data" / style.replace(" ", "-")

    def asked_of(self, style: str, answers: bool) -> dict[str, Any]:
        """What decides what is measured of a policy, beside the policy."""
        asked = {"prompts": self.size.prompts, "max_new_tokens": MAX_NEW_TOKENS} if answers else {}
        return {"style": style, "held_out": self.size.held_out, **asked}

    def before(self, style: str, held: Held, answers: bool = True) -> dict[str, Any]:
        """What is measured of the reference."""
        path = self.into / f"reference-{self.data(style).name}{'' if answers else '-pairs'}.json"
        asked = self.asked_of(style, answers) | {"given": self.given}
        find = partial(measure_policy, held.reference, held, self.device, answers=answers)
        self.measured.append(runs.kept(path, asked, find))
        return self.measured[-1]

    def points(
        self, name: str, style: str, held: Held, steps: int, own: list[str], answers: bool = True
    ) -> tuple[list[dict[str, Any]], Path]:
        """What is measured along a run, and its folder, which holds the weights that it ends with
        if it has just been trained."""
        flags = along.flags_of(steps, min(self.size.every, steps), self.given, SETS)
        flags = overridden(flags, [f"--dataset_name={self.data(style)}", *own])
        one = runs.run_of(self.into / name, {"seed": SEED}, flags)

        def measure(who: Contestant) -> dict[str, Any]:
            return measure_policy(who, held, self.device, answers=answers)

        points = along.measured(one, flags, self.asked_of(style, answers), measure)
        self.reports.append(runs.report_of(one.folder))
        self.measured += points
        return points, one.folder


def trials_of(it: Experiment) -> dict[str, Any]:
    """Of every style what a few steps of `sigmoid` do to the log-probabilities of both sides."""
    found = {}
    for style in STYLES:
        held = it.held(style)
        before = it.before(style, held, answers=False)
        points, folder = it.points(
            f"try/{it.data(style).name}", style, held, it.size.trial, [], answers=False
        )
        runs.remove_weights(folder)
        shown = {side: before[side] for side in SIDES}
        found[style] = {"before": shown, **changes(points[-1], before, held.tokens())}
    return found


def trained(it: Experiment, style: str, held: Held) -> dict[str, list[dict[str, Any]]]:
    """What is measured along each way, which all have trained on as many pairs at each step."""
    found = {}
    for name, at, own in ((SIGMOID, "sigmoid", []), (BESIDE, "with-sft", WITH_SFT)):
        found[name], folder = it.points(at, style, held, it.size.steps, own)
        runs.remove_weights(folder)
    first, start = it.points("sft", style, held, it.size.sft, ["--loss_type=sft"])
    own = [f"--model_name_or_path={start}"]
    second, folder = it.points("after-sft", style, held, it.size.steps - it.size.sft, own)
    for each in (start, folder):
        runs.remove_weights(each)
    found[BEFORE] = first + [point | {"step": point["step"] + it.size.sft} for point in second]
    return found


def run(into: Path, docs: Path, small: bool, given: list[str]) -> list[Path]:
    """Train and measure every run that is not there yet, then write the results.

    Pairs are made of the answers that the embedded default's own pairs were made of: of each prompt
    the best against the worst, rewritten by a rule in a style that the reference finds improbable.
    DPO asks for a difference alone, so that the log-probability of the chosen answer may fall with
    that of the rejected one (likelihood displacement: Pal et al. 2024, arXiv 2402.13228; Razin et
    al. 2024, arXiv 2410.08847). Two mends: an SFT term beside the loss (Pang et al. 2024, arXiv
    2404.19733), and SFT on the chosen answers before, whose policy is then the reference too
    (Rafailov et al. 2023, section 4).

    Several styles are tried first, for a few steps each, and the one whose chosen answers lose most
    is gone on with: what is shown is what can happen, and not how often it does.

    Args:
        into: of the runs, and of the pairs that they train on.
        docs: of the results.
        given: flags for every run.

    Returns:
        What was written.
    """
    size, base = SMALL if small else Size(), runs.recipe_of(given)
    it = Experiment(into, size, given, measuring_device(), base)
    trials = trials_of(it)
    style = most_displaced(trials)
    held = it.held(style)
    before, tokens = it.before(style, held), held.tokens()
    ways = trained(it, style, held)
    last = {name: points[-1] for name, points in ways.items()}
    results = {
        "settings": {
            "recipe": runs.RECIPE,
            **asdict(size),
            "seed": SEED,
            "batch": base.training.per_device_train_batch_size,
            "beta": base.training.beta,
            "temperature": measure.TEMPERATURE,
            "max_new_tokens": MAX_NEW_TOKENS,
            "prompts_asked": len(held.asked),
            "held_out_pairs": len(tokens[0]),
            "given": given,
        },
        "styles": trials,
        "style": style,
        "tokens": dict(zip(SIDES, tokens.mean(axis=1).tolist(), strict=True)),
        "before": {k: v for k, v in before.items() if k in METRICS},
        "points": [
            {"way": name, "step": point["step"]}
            | {k: v for k, v in point.items() if k in METRICS}
            | {"change": changes(point, before, tokens)}
            for name, points in ways.items()
            for point in points
        ],
        "to_sigmoid": [
            {"way": name} | changes(point, last[SIGMOID], tokens)
            for name, point in last.items()
            if name != SIGMOID
        ],
        "answers": side_by_side([*map(said, held.asked)], before, last),
        "made": runs.made_by() | {"minutes": runs.minutes(it.reports, it.measured)},
    }
    results |= {"claims": claims(results)}
    return pictures.write("improbable", results, table(results), draw(results), docs)
