"""Make preference data of your own: answers to your prompts, judged and paired.

    make pairs PROMPTS=questions.txt JUDGE=vader                      # from the embedded model
    make pairs PROMPTS=questions.jsonl MODEL=Qwen/Qwen3-0.6B JUDGE=rule.py SAMPLES=8
    make pairs PROMPTS=owner/prompts RUN=outputs/a JUDGE=http://localhost:8000/v1 JUDGE_MODEL=...
    make pairs PROMPTS=questions.txt MODEL="big small"                # big's answer is the chosen

Each prompt is answered several times, a judge scores the answers, and two of them make a pair. The
folder is a data set in hub layout, with a card, and `make new DATASET=` takes it as it is. Answers
are kept in cache/answers as they come, and judgements in cache/judgements: the same command goes on
from there, and another judge samples nothing again.

PROMPTS is a file (.txt, .jsonl, .json, .csv, .parquet, packed or not), a folder or a data set of
the hub, or the name of a recipe. JUDGE is vader, a reward model, the URL of an OpenAI-compatible
endpoint, hand, or a rule: rule.py has `score(prompt, completion, row) -> float`.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse
import json
import os
import re
import shlex
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from dpo.core.environment import LAUNCHER, check_ranks, launched
from dpo.core.refusal import Refusal
from dpo.core.signals import EXIT_CODE, LEFT, SIGNALS
from dpo.core.terminal import at_once, guarded, parser_of
from dpo.pairs.picking import WAYS
from dpo.recipe.arguments import not_negative, positive
from dpo.recipe.hub_names import looks_local
from dpo.recipe.parse import FOLDER, choices, names
from dpo.runs import launch, output_folder

MODEL = "models/SmolLM2-135M-Instruct"
INTO = Path("outputs/pairs")
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".gz", ".bz2", ".xz", ".zst")
RULE = re.compile(r".+\.py(:\w+)?")


def options(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no object: {{"enable_thinking": false}}')
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share, from 0 to 1")
    return number


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__, prog="pairs.py", allow_abbrev=False)
    add = parser.add_argument
    add("--prompts", default="", help="a file, a folder, a data set of the hub, or a recipe")
    add("--prompts_split", default="", help="its split, where it has several")
    add("--skip", type=partial(positive, least=0), default=0, help="pass over so many prompts (0)")
    add("--first", type=positive, default=None, help="then take so many (all)")
    add("--model", nargs="*", default=[], help=f"models or runs, by folder or hub name ({MODEL})")
    add("--to", default="", help=f"folder ({INTO}/<the prompts' name>)")
    add("--judge", default="", help="vader, a reward model, an endpoint's URL, hand, or rule.py")
    add("--judge_model", default="", help="the model that judges behind an endpoint")
    add("--judge_price", default="", help="dollars for a million tokens in and out: 0.15,0.60")
    add("--judge_parallel", type=positive, default=4, help="requests at a time (4)")
    add("--judge_timeout", type=not_negative, default=60, help="seconds for a request (60)")
    add("--samples", type=positive, default=5, help="answers of each model to a prompt (5)")
    add("--temperature", type=not_negative, default=0.7, help="of sampling (0.7)")
    add("--top_p", type=share, default=1.0, help="of sampling: the likeliest tokens (1)")
    add("--max_new_tokens", type=positive, default=256, help="where an answer is cut (256)")
    seed = partial(positive, least=0)
    add("--seed", type=seed, nargs="+", default=[0], help="of the answers; with several, each (0)")
    add("--chat_template_kwargs", type=options, default=None, help='{"enable_thinking": false}')
    add("--pick", choices=WAYS, default="best-worst", help="which answers make a pair")
    add("--min_margin", type=not_negative, default=0, help="what two scores differ by at least (0)")
    most = {"type": partial(positive, least=0), "default": None}
    add("--max_length_difference", **most, help="tokens that two answers differ by at most (any)")
    add("--label_temperature", type=not_negative, default=1, help="of bradley-terry's labels (1)")
    add("--near_duplicate", type=share, default=0.9, help="words in common of no pair (0.9)")
    add("--test_size", type=not_negative, default=0.1, help="held out: share, or number (0.1)")
    add("--split_seed", type=seed, default=42, help="draws which prompts are held out (42)")
    add("--dtype", default="", help="of the models: bfloat16, float32 (their own)")
    add("--batch_size", type=positive, default=64, help="answers at a time (64)")
    add("--gpus", default="", help="processes that share the prompts (all GPUs)")
    add("--push", default="", help="org/name: send it to the hub, private")
    return parser.parse_args(given)


def check(args: argparse.Namespace) -> None:
    """What can be seen to be wrong before anything heavy is imported.

    Raises:
        Refusal: something is missing, or is not there.
    """
    if not args.prompts:
        known = ", ".join(names(FOLDER)[:3])
        raise Refusal(
            "PROMPTS= is missing: a file of prompts (.txt, .jsonl, .csv, …), a data set of the "
            f"hub, or the name of a recipe ({known}, …; make list)"
        )
    source = Path(args.prompts)
    if not source.exists() and args.prompts not in names(FOLDER):
        endings = (".txt", *ENDINGS)
        if looks_local(args.prompts, endings) or source.name.endswith(endings):
            raise Refusal(f"PROMPTS: no file {args.prompts}")
        if "/" not in args.prompts:
            near = choices(args.prompts, names(FOLDER))
            raise Refusal(f"PROMPTS: no file and no recipe {args.prompts!r}: {near}")
    args.model = [word for given in args.model for word in given.split()] or [MODEL]
    for name in args.model:
        output_folder.check_there(name)
    if len({*args.model}) < len(args.model):
        raise Refusal(f"MODEL: {' '.join(args.model)}: one stands there twice: name each once")
    if len({*args.seed}) < len(args.seed):
        raise Refusal("--seed: one stands there twice, and would give the same answers again")
    if not args.judge and len(args.model) == 1:
        raise Refusal(
            "JUDGE= is missing: vader (the known reward), a reward model's folder or hub name, the "
            "URL of an OpenAI-compatible endpoint, hand, or a rule of your own (rule.py); or give "
            'several models, MODEL="big small": then the biggest one\'s answer is the chosen'
        )
    answers = len(args.model) * len(args.seed) * args.samples
    if answers < 2:
        raise Refusal("SAMPLES=1 from one model gives one answer, and no pair: 2 or more")
    if not args.temperature and args.samples * len(args.seed) > 1:
        raise Refusal("temperature 0 gives the same answer each time: SAMPLES=1, of several models")
    if args.pick == "bradley-terry" and not args.label_temperature:
        raise Refusal("--label_temperature 0 draws nothing: take PICK=best-worst")
    if RULE.fullmatch(args.judge) and not Path(args.judge.split(":")[0]).is_file():
        raise Refusal(f"JUDGE: no file {args.judge}: a rule is a Python file with score(…)")
    if args.push and not re.fullmatch(r"[\w.-]+/[\w.-]+", args.push):
        raise Refusal(f"PUSH={args.push}: give the data set's name as org/name")
    launch.number_of(args.gpus)


def answer() -> None:
    check(arguments())


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(answer, alone=False)


def folder_of(args: argparse.Namespace) -> Path:
    """Where the pairs go, if TO= does not say: by what their prompts are called."""
    stem = Path(args.prompts).name.split(".")[0] or "prompts"
    return Path(args.to or INTO / re.sub(r"[^\w.-]+", "-", stem))


def several(args: argparse.Namespace) -> None:
    """Go on as several processes, where there are GPUs for them, or they are asked for."""
    config, processes, on_cpu = launch.choose("ddp", args.gpus)
    if processes == 1:
        return
    script = ["scripts/pairs.py", *sys.argv[1:]]
    command, environment = launch.accelerated(script, config, processes, on_cpu)
    print(shlex.join(command), flush=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until run() knows whom to tell
    raise SystemExit(launch.run(command, environment))


def leave_when_asked(told_in: Path | None, rank: int) -> None:
    """End at SIGTERM, SIGUSR1 or Ctrl-C: all that there is, is kept. Where a launcher waits, what
    is left there says so to it, and no failure does."""

    def leave(*_: Any) -> None:
        if told_in and told_in.is_dir():
            (told_in / LEFT).touch()
        if not rank:
            print("\nAsked to stop: the same command goes on from here", flush=True)
        os._exit(0 if told_in else EXIT_CODE)

    for number in SIGNALS:
        signal.signal(number, leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@partial(guarded, alone=False)
def main() -> None:
    args = arguments()
    check(args)
    if LAUNCHER not in os.environ:
        check_ranks()
        several(args)
    here = launched()
    processes = here.processes or 1
    leave_when_asked(here.told_in, here.rank)
    if processes > 1 and (seen := launch.visible_gpus(launch.gpus_here())):
        # Each has one for itself; vLLM takes the first that it sees.
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[here.local_rank]
    from dpo.pairs import begin  # late: what is misspelt is answered at once

    results = begin.begin(args, folder_of(args), here.rank, processes)
    if results is None:
        return
    folder = folder_of(args)
    if args.push:
        from dpo.pairs import push

        print(f"Sent: {push.push(folder, args.push)}")
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower()).strip("-._") or "mine"
    model, data = shlex.quote(args.model[-1]), shlex.quote(str(folder))
    print(f"Next: make new RECIPE={name} MODEL={model} DATASET={data}")


if __name__ == "__main__":
    main()
