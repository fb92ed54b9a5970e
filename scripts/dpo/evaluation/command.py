"""An evaluation as `make evaluate` asks for it: one model held against another, and who wins."""

import argparse
import math
import re
import time
from pathlib import Path
from typing import Any

from dpo.core.machine import device_name, measuring_device, now, versions
from dpo.core.refusal import Refusal
from dpo.evaluation import benchmarks, generations, measure, prompts
from dpo.evaluation.contestants import Contestant, find, reference_of
from dpo.evaluation.judges import judging
from dpo.evaluation.judges.rule import is_rule
from dpo.evaluation.measure import SEED, TEMPERATURE
from dpo.runs.output_folder import RUNS, run_folder

MAX_NEW_TOKENS = 256  # of an answer, where nothing else is asked for
LIMIT = 200  # prompts, likewise


def prices(given: str) -> tuple[float, float] | None:
    if not given:
        return None
    try:
        into, out = map(float, given.split(","))
    except ValueError:
        into = out = math.nan
    if not (0 <= into < math.inf and 0 <= out < math.inf):
        why = "give two numbers, dollars for a million tokens in and out"
        raise Refusal(f"judge_price {given!r}: {why}")
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
    parts += [args.suite if args.suite in benchmarks.PUBLISHED else "suite"] * bool(args.suite)
    parts += ["answers"] * args.skip_pairs
    mine = run / "evaluations" if run else RUNS / "evaluations" / short(policy.name)
    return mine / "-".join(parts)


def evaluate(args: argparse.Namespace) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    """Measure what the arguments of evaluate.py ask for.

    Returns the folder that it goes to, a line for each prompt with both answers, and the results.

    Raises:
        Refusal: a model, the prompts, a judge or a benchmark is not as it must be.
    """
    started = time.monotonic()
    device = measuring_device()
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
    # Before the data, which take longer.
    given = prompts.read(args.prompts, is_rule(args.judge)) if args.prompts else None
    held_out = prompts.held_out_pairs(recipe) if recipe else None
    if given is None:
        if held_out is None:
            raise Refusal("there are no held-out prompts: name a file of some with PROMPTS=")
        given = prompts.of_pairs(held_out)
    folder = folder_of(args, policy, against)
    others = prompts.changed(held_out, folder.parents[1])
    asked = prompts.each_once(given, args.limit or LIMIT)
    for who in (policy, against):
        prompts.check(asked, who)
    temperature = TEMPERATURE if args.temperature is None else args.temperature
    seed = SEED if args.seed is None else args.seed
    cut = args.max_new_tokens or MAX_NEW_TOKENS
    settings = generations.Settings(args.samples, temperature, cut, seed)

    # First, since a benchmark may not be had, and what it needs cannot be seen before.
    reached = benchmarks.beside(policy, against, suite, device, args.suite_tasks, args.suite_limit)
    how = (asked, held_out, settings, device)
    found = measure.measure(policy, reference or against, against, *how, skip_pairs=args.skip_pairs)
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
    source = args.prompts or f"{recipe.name}, held out" + ", changed since it ended" * others
    results = {
        "policy": policy.name,
        "against": against.name,
        "recipe": recipe.name if recipe else None,
        "finished": now(),
        "machine": device_name(),
        "versions": versions(),
        **measure.results(source, asked, settings, found, verdicts, lines),
        "suite": reached,
        "seconds": time.monotonic() - started,
    }
    return folder, lines, results
