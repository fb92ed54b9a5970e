"""What DPO does with answers that the model hardly ever writes, and what mends it."""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dpo.core.machine import measuring_device
from dpo.evaluation import measure
from dpo.evaluation.contestants import Contestant, reference_of
from dpo.learn import along, pictures, runs
from dpo.learn.improbable.capitals import CAPITALS, PLAIN, SIDES, WRITES, write_data
from dpo.learn.improbable.measuring import MAX_NEW_TOKENS, Held, measure_policy
from dpo.learn.improbable.results import METRICS, changes, claims, draw, side_by_side, table
from dpo.models.sampling import said
from dpo.recipe.flags import overridden
from dpo.recipe.parse import Recipe

__all__ = ["MINUTES", "SETS", "claims", "run", "table"]

MINUTES = 18
SEED = 1
SETS = (*along.SETS, "dataset_name", "loss_type", "loss_weights", "seed")
WITH_SFT = ["--loss_type", "sigmoid", "sft", "--loss_weights", "1", "1"]
SIGMOID, BESIDE, BEFORE = "sigmoid", "sigmoid + sft", "sft, then sigmoid"


@dataclass
class Size:
    """Steps of each way, and of the SFT that is the beginning of one; at every so many of them
    policies are measured, on held-out pairs and on some of their prompts."""

    steps: int = 16
    sft: int = 8
    every: int = 8
    held_out: int = 32
    prompts: int = 32


SMALL = Size(steps=4, sft=2, every=2, held_out=4, prompts=4)


@dataclass
class Pairs:
    """Pairs that are written in one way: where they and the runs on them lie, what a user gives,
    and what policies are measured by and on; and the runs' reports, and what was measured."""

    into: Path
    size: Size
    given: list[str]
    held: Held
    reports: list[dict[str, Any]] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def written(cls, base: Recipe, into: Path, size: Size, given: list[str], name: str) -> "Pairs":
        """Write them, for the recipe that they are made of."""
        candidates, data = Path(base.script.dataset_name) / "candidates.jsonl", into / "data"
        write_data(candidates, data, size.held_out, WRITES[name])
        recipe = runs.recipe_of([*given, f"--dataset_name={data}"])
        return cls(into, size, given, Held.of(recipe, reference_of(base), size.prompts))

    def asked(self) -> dict[str, Any]:
        """What decides what is measured of a policy, beside the policy."""
        counts = {"held_out": self.size.held_out, "prompts": self.size.prompts}
        return counts | {"max_new_tokens": MAX_NEW_TOKENS}

    def of(self, who: Contestant) -> dict[str, Any]:
        return measure_policy(who, self.held, measuring_device())

    def of_reference(self) -> dict[str, Any]:
        """What is measured of the reference."""
        asked = self.asked() | {"given": self.given}
        find = partial(self.of, self.held.reference)
        self.measured.append(runs.kept(self.into / "reference.json", asked, find))
        return self.measured[-1]

    def points(self, name: str, steps: int, own: list[str]) -> tuple[list[dict[str, Any]], Path]:
        """What is measured along a run, and its folder, which holds the weights that it ends with
        if it has just been trained."""
        flags = [*self.given, *along.flags_of(steps, min(self.size.every, steps))]
        flags = overridden(flags, [f"--dataset_name={self.into / 'data'}", *own])
        one = runs.run_of(self.into / name, {"seed": SEED}, flags)
        points = along.measured(one, flags, self.asked(), self.of)
        self.reports.append(runs.report_of(one.folder))
        self.measured += points
        return points, one.folder

    def trained(self) -> dict[str, list[dict[str, Any]]]:
        """What is measured along DPO alone, and with an SFT term beside it."""
        found = {}
        for name, at, own in ((SIGMOID, "sigmoid", []), (BESIDE, "with-sft", WITH_SFT)):
            found[name], folder = self.points(at, self.size.steps, own)
            runs.remove_weights(folder)
        return found

    def trained_after_sft(self) -> list[dict[str, Any]]:
        """What is measured along SFT on the chosen answers and then DPO from there, which together
        train on as many pairs as the others."""
        first, start = self.points("sft", self.size.sft, ["--loss_type=sft"])
        own = [f"--model_name_or_path={start}"]
        second, folder = self.points("after-sft", self.size.steps - self.size.sft, own)
        for each in (start, folder):
            runs.remove_weights(each)
        return first + [point | {"step": point["step"] + self.size.sft} for point in second]


def run(into: Path, docs: Path, small: bool, given: list[str]) -> list[Path]:
    """Train and measure every run that is not there yet, then write the results.

    Pairs are made of the answers that the embedded default's own pairs were made of: of each prompt
    the best against the worst, once as they were and once in capitals, which the reference finds
    improbable. DPO asks for a difference alone, so that the log-probability of the chosen answer
    may fall with that of the rejected one (likelihood displacement: Pal et al. 2024, arXiv
    2402.13228; Razin et al. 2024, arXiv 2410.08847). Two mends: an SFT term beside the loss (Pang
    et al. 2024, arXiv 2404.19733), and, in capitals, SFT on the chosen answers before, whose policy
    is then the reference too (Rafailov et al. 2023, section 4).

    Args:
        into: of the runs, and of the pairs that they train on.
        docs: of the results.
        given: flags for every run, which may say that it computes in another precision.

    Returns:
        What was written.
    """
    given = overridden(runs.PRECISION, given)
    size, base = SMALL if small else Size(), runs.recipe_of(given)
    places = {PLAIN: into / "plain", CAPITALS: into / "capitals"}
    pairs = {n: Pairs.written(base, places[n], size, given, n) for n in WRITES}
    before = {name: each.of_reference() for name, each in pairs.items()}
    ways = {name: each.trained() for name, each in pairs.items()}
    ways[CAPITALS][BEFORE] = pairs[CAPITALS].trained_after_sft()
    tokens = {name: each.held.tokens() for name, each in pairs.items()}
    last = {name: {way: p[-1] for way, p in found.items()} for name, found in ways.items()}
    asked = pairs[CAPITALS].held.asked
    results = {
        "settings": {
            "recipe": runs.RECIPE,
            **asdict(size),
            "seed": SEED,
            "batch": base.training.per_device_train_batch_size,
            "beta": base.training.beta,
            "temperature": measure.TEMPERATURE,
            "max_new_tokens": MAX_NEW_TOKENS,
            "prompts_asked": len(asked),
            "held_out_pairs": len(tokens[CAPITALS][0]),
            "given": given,
        },
        "tokens": {
            name: dict(zip(SIDES, counts.mean(axis=1).tolist(), strict=True))
            for name, counts in tokens.items()
        },
        "before": {
            name: {k: v for k, v in found.items() if k in METRICS} for name, found in before.items()
        },
        "points": [
            {"pairs": name, "way": way, "step": point["step"]}
            | {k: v for k, v in point.items() if k in METRICS}
            | {"change": changes(point, before[name], tokens[name])}
            for name, found in ways.items()
            for way, points in found.items()
            for point in points
        ],
        "to_sigmoid": [
            {"pairs": name, "way": way} | changes(point, found[SIGMOID], tokens[name])
            for name, found in last.items()
            for way, point in found.items()
            if way != SIGMOID
        ],
        "answers": side_by_side([*map(said, asked)], before[CAPITALS], last[CAPITALS]),
        "made": runs.made_by()
        | {
            "minutes": runs.minutes(
                [r for each in pairs.values() for r in each.reports],
                [m for each in pairs.values() for m in each.measured],
            )
        },
    }
    results |= {"claims": claims(results)}
    return pictures.write("improbable", results, table(results), draw(results), docs)
