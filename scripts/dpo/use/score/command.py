"""What `make score` does, in its order: the run, the file, scores, what they come to."""

import argparse
import re
import time
from itertools import repeat
from pathlib import Path
from typing import Any

from dpo.core.files import write_json, written_to
from dpo.core.machine import device_name, measuring_device, now, versions
from dpo.core.refusal import Refusal
from dpo.core.terminal import visible
from dpo.recipe.parse import Recipe
from dpo.runs.output_folder import day_of, lock
from dpo.use.run import Used, used
from dpo.use.score import rows, scoring, selecting, summary
from dpo.use.score.scoring import GOES_ON, SCORES, SUMMARY, Loaded, Scoring

NORM = "sigmoid_norm"  # compares means per token


def folder_of(args: argparse.Namespace, run: Used) -> Path:
    """Where the scores go, if TO= does not say: into the run, by what the file is called."""
    if args.to:
        return Path(args.to)
    stem = Path(args.file).name.split(".")[0] or "rows"
    name = re.sub(r"[^\w.=-]+", "-", "-".join(filter(None, (stem, args.split)))).strip("-.")
    name += "-per-token" * args.per_token + (f"-{args.max_length}" if args.max_length else "")
    return run.folder / "scores" / (name or "rows")


def check_loss(recipe: Recipe, per_token: bool) -> None:
    """Say where the run's loss compares something else than what is scored.

    Raises:
        Refusal: it has learned no reward.
    """
    kinds, divergence = {*recipe.training.loss_type}, recipe.training.f_divergence_type
    if kinds == {"sft"}:
        raise Refusal(
            f"{recipe.name} was trained with loss_type sft, which compares nothing with a "
            "reference: its policy implies no reward"
        )
    if NORM in kinds and not per_token:
        print(f"Its loss, {NORM}, compares means per token: --per_token scores by these")
    if divergence != "reverse_kl":
        print(f"Trained by {divergence}: the reward that is scored here is that of reverse_kl")


def settings_of(
    args: argparse.Namespace, run: Used, source: rows.Source, says: str
) -> dict[str, Any]:
    """All that decides the scores."""
    return {
        "format": 1,
        "digest": source.digest,
        "read": says,
        "policy": run.policy.digest(),
        "reference": run.reference.digest(),
        "beta": run.recipe.training.beta,
        "per_token": args.per_token,
        "max_length": args.max_length,
        "day": str(day_of(run.folder)),
        "machine": measuring_device(),
    }


def score(args: argparse.Namespace) -> tuple[Path, dict[str, Any], Path | None]:
    """Score a file as the arguments of score.py ask for.

    Returns the folder of the scores, what they come to, and the file of the pairs that were
    selected, if any were to be.

    Raises:
        Refusal: the run or the file is not as it must be, or no row can be scored.
    """
    started, device = time.monotonic(), measuring_device()
    run = used(args.run)
    check_loss(run.recipe, args.per_token)
    source = rows.source_of(args.file, args.split)
    rows.check_columns(source, args.by, "BY")
    how = args.preference_layout, args.column_mapping, args.max_length
    recipe = rows.as_asked(run.recipe, run.folder, *how)
    tokenizer = run.policy.tokenizer()
    reading = rows.read(source, recipe, tokenizer)
    print(visible("\n  ".join([f"{source.rows.name}: {reading.says}", *reading.notes])))
    if (args.select or args.by) and not reading.pairs:
        raise Refusal(
            f"SELECT= and BY= take pairs, and {args.file} holds prompts with completions of which "
            "none is called the better one"
        )
    folder = folder_of(args, run)
    scoring.claim(folder, settings_of(args, run, source, reading.says))
    with lock(folder):
        if scoring.finished(folder):
            print(f"All of it is scored already, in {folder}")
        else:
            policy, reference = (
                Loaded(who, who.load(device), device) for who in (run.policy, run.reference)
            )
            beta, pad = run.recipe.training.beta, tokenizer.pad_token_id
            by_both = Scoring(policy, reference, pad, beta, args.per_token)
            scoring.carry_out(folder, reading.given, source.count, by_both, reading.pairs)
        # Of long rows only what tells them apart: many are in memory together.
        named = rows.columns_of(source.rows, args.by) if args.by else repeat({})
        lines = zip(scoring.read_lines(folder), named, strict=False)
        found = {
            "format": 1,
            "run": str(run.folder),
            "file": args.file,
            "beta": run.recipe.training.beta,
            "per_token": args.per_token,
            **summary.summarise(lines, reading.pairs, args.by),
            "finished": now(),
            "machine": device_name(),
            "versions": versions(),
            "seconds": time.monotonic() - started,
        }
        with written_to(folder / SUMMARY, GOES_ON):
            write_json(folder / SUMMARY, found)
        if not found["scored"]:
            first = next(scoring.read_lines(folder), {"reason": "no rows", "detail": ""})
            raise Refusal(
                f"no row of {args.file} could be scored; the first as {first['reason']}: "
                f"{first['detail']}. {folder / SCORES} says so of each"
            )
        selected = None
        if args.select:
            which = iter(source.rows.data), args.select, args.largest
            selected, count = selecting.select(folder, *which)
            print(f"Selected: {count:,} of {found['scored']:,} pairs")
    return folder, found, selected
