"""What DPO does with answers that the model hardly ever writes, and what mends it."""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dpo.core.machine import measuring_device
from dpo.evaluation import measure
from dpo.evaluation.contestants import Contestant, reference_of
from dpo.learn import along, pictures, runs
from dpo.learn.improbable.capitals import SIDES, write_data
from dpo.learn.improbable.measuring import MAX_NEW_TOKENS, Held, measure_pairs, measure_policy
from dpo.learn.improbable.results import METRICS, changes, claims, draw, side_by_side, table
from dpo.models.sampling import said
from dpo.recipe.flags import overridden
from dpo.recipe.parse import Recipe

__all__ = ["MINUTES", "claims", "run", "table"]

MINUTES = 35
SEED = 1
SETS = ("dataset_name", "loss_type", "loss_weights", "seed")
WITH_SFT = ["--loss_type", "sigmoid", "sft", "--loss_weights", "1", "1"]
SIGMOID, BESIDE, BEFORE = "sigmoid", "sigmoid + sft", "sft, then sigmoid"


@dataclass
class Size:
    """Steps of each way, and of the SFT that is the beginning of one; at every so many of them
    policies are measured, on held-out pairs and on some of their prompts."""

    steps: int = 48
    sft: int = 16
    every: int = 16
    held_out: int = 48
    prompts: int = 48


SMALL = Size(steps=4, sft=2, every=2, held_out=4, prompts=4)


@dataclass
class Experiment:
    """What all runs share: where they and their pairs lie, what a user gives, and what they are
    measured by and on; and their reports, and what was measured of them."""

    into: Path
    size: Size
    given: list[str]
    device: str
    data: Path
    held: Held
    reports: list[dict[str, Any]] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)

    def asked(self) -> dict[str, Any]:
        """What decides what is measured of a policy, beside the policy."""
        counts = {"held_out": self.size.held_out, "prompts": self.size.prompts}
        return counts | {"max_new_tokens": MAX_NEW_TOKENS}

    def of_reference(self) -> dict[str, Any]:
        """What is measured of the reference."""
        path, asked = self.into / "reference.json", self.asked() | {"given": self.given}
        find = partial(measure_policy, self.held.reference, self.held, self.device)
        self.measured.append(runs.kept(path, asked, find))
        return self.measured[-1]

    def of_plain(self, plain: Held) -> dict[str, Any]:
        """What the reference gives the same pairs as they were before they were rewritten."""
        asked = {"held_out": self.size.held_out, "given": self.given}
        find = partial(measure_pairs, plain.reference, plain, self.device)
        self.measured.append(runs.kept(self.into / "plain.json", asked, find))
        return {side: self.measured[-1][side] for side in SIDES}

    def points(self, name: str, steps: int, own: list[str]) -> tuple[list[dict[str, Any]], Path]:
        """What is measured along a run, and its folder, which holds the weights that it ends with
        if it has just been trained."""
        flags = along.flags_of(steps, min(self.size.every, steps), self.given, SETS)
        flags = overridden(flags, [f"--dataset_name={self.data}", *own])
        one = runs.run_of(self.into / name, {"seed": SEED}, flags)

        def measure(who: Contestant) -> dict[str, Any]:
            return measure_policy(who, self.held, self.device)

        points = along.measured(one, flags, self.asked(), measure)
        self.reports.append(runs.report_of(one.folder))
        self.measured += points
        return points, one.folder


def held_out(base: Recipe, data: Path, size: Size, given: list[str], **write: Any) -> Held:
    """What policies are measured on, of pairs that are written here."""
    write_data(Path(base.script.dataset_name) / "candidates.jsonl", data, size.held_out, **write)
    recipe = runs.recipe_of([*given, f"--dataset_name={data}"])
    return Held.of(recipe, reference_of(base), size.prompts)


def trained(it: Experiment) -> dict[str, list[dict[str, Any]]]:
    """What is measured along each way, which all have trained on as many pairs at each step."""
    found = {}
    for name, at, own in ((SIGMOID, "sigmoid", []), (BESIDE, "with-sft", WITH_SFT)):
        found[name], folder = it.points(at, it.size.steps, own)
        runs.remove_weights(folder)
    first, start = it.points("sft", it.size.sft, ["--loss_type=sft"])
    own = [f"--model_name_or_path={start}"]
    second, folder = it.points("after-sft", it.size.steps - it.size.sft, own)
    for each in (start, folder):
        runs.remove_weights(each)
    found[BEFORE] = first + [point | {"step": point["step"] + it.size.sft} for point in second]
    return found


def run(into: Path, docs: Path, small: bool, given: list[str]) -> list[Path]:
    """Train and measure every run that is not there yet, then write the results.

    Pairs are made of the answers that the embedded default's own pairs were made of: of each prompt
    the best against the worst, both in capitals, which the reference finds improbable.
    DPO asks for a difference alone, so that the log-probability of the chosen answer may fall with
    that of the rejected one (likelihood displacement: Pal et al. 2024, arXiv 2402.13228; Razin et
    al. 2024, arXiv 2410.08847). Two mends: an SFT term beside the loss (Pang et al. 2024, arXiv
    2404.19733), and SFT on the chosen answers before, whose policy is then the reference too
    (Rafailov et al. 2023, section 4).

    Args:
        into: of the runs, and of the pairs that they train on.
        docs: of the results.
        given: flags for every run.

    Returns:
        What was written.
    """
    size, base = SMALL if small else Size(), runs.recipe_of(given)
    plain = held_out(base, into / "plain", size, given, write=str)
    held = held_out(base, into / "data", size, given)
    it = Experiment(into, size, given, measuring_device(), into / "data", held)
    as_they_were, before, tokens = it.of_plain(plain), it.of_reference(), held.tokens()
    ways = trained(it)
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
        "tokens": dict(zip(SIDES, tokens.mean(axis=1).tolist(), strict=True)),
        "plain": as_they_were,
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
