"""From the arguments of pairs.py to the work that is done: models found, prompts read, the folder
claimed."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo.core.machine import measuring_device
from dpo.core.refusal import Refusal
from dpo.evaluation.command import prices
from dpo.evaluation.contestants import find
from dpo.evaluation.generations import Settings
from dpo.evaluation.judges import endpoint, human
from dpo.evaluation.judges.judging import HAND
from dpo.evaluation.judges.rule import is_rule
from dpo.pairs import asked, command, push
from dpo.pairs import folder as pairs_folder
from dpo.pairs.answers import Asked
from dpo.pairs.command import Work
from dpo.pairs.picking import Picking
from dpo.pairs.scores import Judge
from dpo.runs import output_folder


def models_of(args: argparse.Namespace, device: str) -> list[Asked]:
    """The models that answer.

    Raises:
        Refusal: one cannot be found, or has no chat template.
    """
    found = []
    for name in args.model:
        who = find(name)
        who = replace(who, dtype=args.dtype) if args.dtype else who
        model = Asked(who, device, args.batch_size)
        if not model.tokenizer.chat_template:
            raise Refusal(
                f"{name} has no chat template, and prompts are put to it as messages: give a chat "
                "model, or a run whose recipe states chat_template_path"
            )
        found.append(model)
    return found


def judge_of(args: argparse.Namespace, models: list[Asked], device: str) -> Judge:
    """Who judges: checked, and not loaded yet.

    Raises:
        Refusal: there is no such judge, or it does not answer.
    """
    order = sorted(range(len(models)), key=lambda at: (models[at].size, -at))
    rungs = [float(order.index(at)) for at in range(len(models))]
    each = len(args.seed) * args.samples
    how = {"parallel": args.judge_parallel, "timeout": args.judge_timeout}
    how["price"] = prices(args.judge_price)
    if endpoint.is_url(args.judge):
        endpoint.check(args.judge, args.judge_model or None)
    elif args.judge == HAND:
        human.check()
    elif not args.judge:
        named = [models[at].who.name for at in reversed(order)]
        print(f"No judge: an answer of {' is chosen over one of '.join(named)}")
    rungs = [rung for rung in rungs for _ in range(each)]
    return Judge(args.judge, device, rungs, args.judge_model or None, how)


def begin(
    args: argparse.Namespace, folder: Path, rank: int, processes: int
) -> dict[str, Any] | None:
    """Make the pairs; None in the processes that only help.

    Raises:
        Refusal: something that was asked for is not there, or cannot be.
    """
    device = measuring_device()
    if args.push and not rank:
        push.check_push(args.push)
    models = models_of(args, device)
    judge = judge_of(args, models, device)
    how = (args.samples, args.temperature, args.max_new_tokens, args.seed[0], args.top_p)
    picking = Picking(
        args.pick,
        args.min_margin,
        args.max_length_difference,
        args.label_temperature,
        args.near_duplicate,
    )
    work = Work(models, Settings(*how), args.seed, judge, picking, folder, rank, processes)
    if rank:
        command.wait_for(folder / asked.FILE)
        return command.run(work, {}, 0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file" if folder.is_file() else error.strerror
        raise Refusal(f"TO: {folder} cannot be made: {why}: give another folder") from error
    pairs_folder.check_ours(folder)
    held = output_folder.lock(folder)
    for name in (asked.FILE, *pairs_folder.OURS):
        for left in folder.glob(f".{name}-*"):  # of a kill in the middle of a write
            left.unlink()
    of_prompts = {"split": args.prompts_split, "skip": args.skip, "first": args.first}
    of_prompts |= {"test_size": args.test_size, "split_seed": args.split_seed}
    work.found = asked.read(
        args.prompts,
        folder,
        models,
        **of_prompts,
        max_new_tokens=args.max_new_tokens,
        options=args.chat_template_kwargs,
        keep_rows=is_rule(args.judge),
    )
    stated = command.settings(work, args.prompts, of_prompts, args.chat_template_kwargs)
    pairs_folder.claim(folder, stated)
    results = command.run(work, stated, args.test_size)
    (folder / asked.FILE).unlink()
    held.close()
    return results
