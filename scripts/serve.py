"""A finished run behind an OpenAI-compatible server on this machine. `make serve` runs this.

    make serve RUN=outputs/smollm2-sentiment
    make serve RUN=outputs/smollm2-sentiment PORT=8001 ARGS="--attn_implementation eager"

It becomes `vllm serve` where vLLM and a GPU are there, else `transformers serve`; what stands in
ARGS goes on to that. Before, it prints how to ask it. Ctrl-C ends it.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse
import os
import shlex
import sys

from dpo.core.terminal import at_once, guarded, parser_of
from dpo.recipe.arguments import positive
from dpo.runs import output_folder


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = parser_of(__doc__, prog="serve.py", allow_abbrev=False)
    parser.add_argument("--run", required=True, help="a finished run: folder, or name in outputs/")
    parser.add_argument("--port", type=positive, default=8000, help="where it listens (8000)")
    args, rest = parser.parse_known_args()
    output_folder.check_there(args.run)
    return args, rest


if __name__ == "__main__":  # --help, before what takes seconds to import
    at_once(arguments)


@guarded
def main() -> None:
    args, rest = arguments()
    from dpo.use import serving  # late: what is misspelt is answered at once
    from dpo.use.run import used

    run = used(args.run)
    folder = serving.served(run)
    serving.check_port(args.port)
    command = [*serving.command(folder, args.port, run.policy.trusted), *rest]
    tried = serving.tried(folder, args.port, run.conversational)
    print(f"When it listens, in another terminal:\n\n{tried}\n")
    print(f"Ctrl-C ends it. Starting: {shlex.join(command)}", flush=True)
    sys.stderr.flush()
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
