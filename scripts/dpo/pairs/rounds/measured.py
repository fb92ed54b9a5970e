"""The policy of a round, measured against the start as `make evaluate` does it.

`python -m dpo.pairs.rounds.measured <folder of the rounds> <round>`: a process of its own, so that
its memory is free again when the next round trains.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dpo.core import files
from dpo.core.machine import measuring_device
from dpo.core.terminal import guarded
from dpo.evaluation import generations, measure
from dpo.evaluation.command import prices
from dpo.evaluation.contestants import policy_of, reference_of
from dpo.evaluation.judges import judging
from dpo.evaluation.measure import AT_ONCE, SEED
from dpo.models.sampling import Prompt
from dpo.pairs.rounds import begin
from dpo.pairs.rounds.plan import recipe_of

JUDGEMENTS = "judgements.jsonl"


def measured(into: Path, name: str) -> dict[str, Any]:
    """What the policy of a round is worth: `measure.results` of it against the start, from which
    its KL is too; and `preferred`, the judge's verdicts, shape (prompts, samples), None where it
    gave none."""
    found = begin.read(into)
    how = found["how"] | found["carried"]
    device = measuring_device()
    start = reference_of(recipe_of(how["recipe"], how["arguments"]))
    policy = policy_of(into / name)
    asked: list[Prompt] = [
        *map(json.loads, (into / begin.HELD_OUT).read_text("utf-8").splitlines())
    ]
    settings = generations.Settings(
        how["eval_samples"], how["temperature"], how["max_new_tokens"], SEED
    )
    # On a GPU vLLM answers, where it is installed.
    at_once = AT_ONCE if device == "cpu" else None
    answers = measure.measure(policy, start, start, asked, None, settings, device, at_once=at_once)
    verdicts = judging.judge(
        how["judge"],
        measure.comparisons(asked, answers),
        into / JUDGEMENTS,
        model=how["judge_model"] or None,
        price=prices(how["judge_price"]),
        parallel=how["judge_parallel"],
        timeout=how["judge_timeout"],
        device=device,
    )
    lines = measure.lines_of(asked, answers, verdicts)
    source = how["eval_prompts"] or f"{how['recipe']}, held out"
    preferred = verdicts.preferred.reshape(len(asked), settings.samples)
    return {
        "policy": policy.name,
        "against": start.name,
        **measure.results(source, asked, settings, answers, verdicts, lines),
        "preferred": np.where(np.isnan(preferred), np.array(None), preferred).tolist(),
    }


@guarded
def main() -> None:
    into, name = Path(sys.argv[1]), sys.argv[2]
    results = measured(into, name)
    found = begin.read(into)
    found["rounds"][name]["measured"] = results
    files.write_json(into / begin.ABOUT, found)


if __name__ == "__main__":
    main()
