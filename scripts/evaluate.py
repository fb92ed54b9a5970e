"""Did the model get better? `make evaluate` runs this.

    make evaluate RUN=outputs/smollm2-sentiment                  # policy against its reference
    make evaluate RUN=outputs/smollm2-sentiment JUDGE=vader      # and who wins, by a judge
    make evaluate RUN=outputs/a/checkpoint-100 AGAINST=outputs/b JUDGE=hand
    make evaluate RUN=outputs/a JUDGE=http://localhost:8000/v1 JUDGE_MODEL=my-judge
    make evaluate RUN=outputs/a SUITE=ifeval,gsm8k               # benchmarks, before and after

On held-out pairs: accuracy and margin of the implicit reward, also by length and by category. On
held-out prompts, or those of a file: both models answer with the same random numbers; lengths,
ends, variety, the policy's KL from its reference, and with a judge the win rate. Answers are kept
in cache/answers, and verdicts beside the evaluation: a second judge, or a second try, goes on from
there.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse
import datetime
import os
import re
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from dpo.core import files
from dpo.core.machine import device_name, versions
from dpo.core.refusal import Refusal
from dpo.core.terminal import guarded, visible
from dpo.evaluation import benchmarks, generations, measure, prompts
from dpo.evaluation.contestants import Contestant, find, reference_of
from dpo.evaluation.judges import judging
from dpo.evaluation.measure import SEED, TEMPERATURE
from dpo.recipe.arguments import positive
from dpo.reports import evaluation_page
from dpo.runs.output_folder import RUNS, run_folder


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--run", required=True, help="a run's folder, or any model's folder or hub name")
    add("--against", default="", help="another of these (default: what the run started from)")
    add("--judge", default="", help="vader, hand, an endpoint's URL, or a reward model")
    add("--judge_model", default="", help="the model that judges behind an endpoint")
    add("--judge_price", default="", help="dollars for a million tokens in and out: 0.15,0.60")
    add("--judge_parallel", type=positive, default=4, help="requests at a time (4)")
    add("--judge_timeout", type=float, default=60, help="seconds for a request (60)")
    add("--prompts", default="", help="a file of prompts (default: the recipe's held-out ones)")
    add("--limit", type=positive, default=200, help="at most so many prompts (200)")
    add("--samples", type=positive, default=1, help="answers to each prompt (1)")
    add("--temperature", type=float, default=TEMPERATURE, help=f"of sampling ({TEMPERATURE})")
    add("--max_new_tokens", type=positive, default=256, help="where an answer is cut (256)")
    add("--seed", type=int, default=SEED, help="of the answers")
    add("--skip-pairs", action="store_true", help="measure answers alone, no held-out pairs")
    add("--suite", default="", help="benchmarks of lm-eval: ifeval,gsm8k")
    add("--suite_tasks", default=None, help="a folder of benchmarks of your own, as lm-eval's")
    add("--suite_limit", type=positive, default=None, help="questions of each benchmark (all)")
    return parser.parse_args()


def prices(given: str) -> tuple[float, float] | None:
    if not given:
        return None
    try:
        into, out = map(float, given.split(","))
    except ValueError:
        raise Refusal(
            f"judge_price {given!r}: give two numbers, dollars for a million tokens in and out"
        ) from None
    return into, out


def folder_of(args: argparse.Namespace, policy: Contestant, against: Contestant) -> Path:
    """Where an evaluation lies: by what the policy was held against, on what, and the judge."""

    def short(name: str) -> str:
        return re.sub(r"[^\w.=,-]+", "-", name.removeprefix(f"{RUNS}/")).strip("-.")

    parts = [short(args.against) if args.against else "reference"]
    run = policy.recipe and run_folder(policy.name)
    if policy.recipe and not run:  # a checkpoint, which may be rotated away
        run = Path(policy.name).parent
        parts.insert(0, Path(policy.name).name)
    parts += [short(Path(args.prompts).stem)] if args.prompts else []
    parts += [short(part) for part in (args.judge, args.judge_model) if part]
    parts += ["suite"] if args.suite else []
    mine = run / "evaluations" if run else RUNS / "evaluations" / short(policy.name)
    return mine / "-".join(parts)


@guarded
def main() -> None:
    args = arguments()
    started = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    policy = find(args.run)
    if not args.against and not policy.recipe:
        raise Refusal(f"{args.run} is no run: name with AGAINST= what it is held against")
    reference = reference_of(policy.recipe) if policy.recipe else None
    against = find(args.against, policy) if args.against else reference
    recipe = policy.recipe or against.recipe
    price = prices(args.judge_price)
    if args.judge:
        judging.check(args.judge, args.judge_model or None)
    suite = args.suite.split(",") if args.suite else []
    if suite:
        benchmarks.check(suite, args.suite_tasks)
    held_out = prompts.held_out_pairs(recipe) if recipe else None
    if not args.prompts and held_out is None:
        raise Refusal("there are no held-out prompts: name a file of some with PROMPTS=")
    given = prompts.read(args.prompts) if args.prompts else prompts.of_pairs(held_out)
    asked = prompts.each_once(given, args.limit)
    for who in (policy, against):
        prompts.check(asked, who)
    settings = generations.Settings(args.samples, args.temperature, args.max_new_tokens, args.seed)

    # First, since a benchmark may not be had, and what it needs cannot be seen before.
    reached = benchmarks.beside(policy, against, suite, device, args.suite_tasks, args.suite_limit)
    how = (asked, held_out, settings, device)
    found = measure.measure(policy, reference or against, against, *how, skip_pairs=args.skip_pairs)
    folder = folder_of(args, policy, against)
    folder.mkdir(parents=True, exist_ok=True)
    verdicts = None
    if args.judge:
        verdicts = judging.judge(
            args.judge,
            measure.comparisons(asked, found),
            folder / "judgements.jsonl",
            model=args.judge_model or None,
            price=price,
            parallel=args.judge_parallel,
            timeout=args.judge_timeout,
            device=device,
        )
    lines = measure.lines_of(asked, found, verdicts)
    source = args.prompts or f"{recipe.name}, held out"
    results = {
        "policy": policy.name,
        "against": against.name,
        "recipe": recipe.name if recipe else None,
        "finished": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "machine": device_name(),
        "versions": versions(),
        **measure.results(source, asked, settings, found, verdicts, lines),
        "suite": reached,
        "seconds": time.monotonic() - started,
    }
    files.write_lines(folder / "answers.jsonl", lines)
    files.write_whole(folder / "evaluation.html", evaluation_page.page(results))
    files.write_json(folder / "evaluation.json", results)
    table = Table(title=visible(f"{policy.name} against {against.name}"), title_justify="left")
    for column in ("", "policy (95% interval)", ""):
        table.add_column(column)
    for row in evaluation_page.rows(results):
        table.add_row(*map(visible, row))
    Console().print(table)
    print(f"Written: {folder}/evaluation.html, evaluation.json and answers.jsonl")
    if not args.judge:
        print("Next: who wins? The same again with JUDGE=vader, hand, a reward model or a URL")
    else:
        print('Next: make compare RUNS="..." shows it beside other runs')


if __name__ == "__main__":
    main()
