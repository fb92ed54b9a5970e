"""Talk to a finished run: its policy and what it started from, side by side. `make chat` runs this.

    make chat RUN=outputs/smollm2-sentiment
    make chat RUN=outputs/smollm2-sentiment ARGS="--only policy --temperature 0"
    make chat RUN=outputs/smollm2-sentiment ARGS=--json < questions.txt > answers.jsonl

Both answer the same with the same random numbers. Over a pipe each line is a prompt of its own.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse
import io
import shlex
import sys
from functools import partial

from dpo.core.refusal import Refusal
from dpo.core.terminal import at_once, guarded, parser_of
from dpo.recipe.arguments import not_negative, positive
from dpo.runs import output_folder


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, prog="chat.py", allow_abbrev=False)
    add = parser.add_argument
    add("--run", required=True, help="a finished run: its folder, or its name in outputs/")
    add("--only", choices=("policy", "reference"), default=None, help="talk to one of them (both)")
    add("--temperature", type=not_negative, default=0.7, help="of sampling; 0 is greedy (0.7)")
    add("--max_new_tokens", type=positive, default=256, help="where an answer is cut (256)")
    add("--seed", type=partial(positive, least=0), default=0, help="of the answers (0)")
    add("--system", default="", help="what they are told first")
    add("--plain", action="store_true", help="ask in plain text, as a run on such data is anyway")
    add("--json", action="store_true", help="over a pipe: a line of JSON for each prompt")
    args = parser.parse_args()
    output_folder.check_there(args.run)
    if sys.stdin is None:
        raise Refusal("standard input is closed: give prompts, a line each")
    return args


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(arguments)


@guarded
def main() -> None:
    args = arguments()
    from dpo.core.machine import measuring_device  # late: what is misspelt is answered at once
    from dpo.use.chat.speakers import Drawing, Speaker
    from dpo.use.run import used

    run, device = used(args.run), measuring_device()
    both = {"policy": run.policy, "reference": run.reference}
    asked = [args.only] if args.only else both
    plain = args.plain or not run.conversational
    if plain and not args.plain:
        print("Trained on plain text: each line is asked as it stands, alone", file=sys.stderr)
    speakers = [Speaker(name, both[name], device, plain) for name in asked]
    how = Drawing(args.seed % 2**32, args.temperature, args.max_new_tokens)
    if sys.stdin.isatty():
        from dpo.use.chat.terminal import talk

        talk(speakers, how, args.system)
        print(f"Next: make export RUN={shlex.quote(str(run.folder))}")
        return
    from dpo.use.chat.piped import answer_lines

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    answer_lines(sys.stdin, speakers, how, args.system, args.json)


if __name__ == "__main__":
    main()
