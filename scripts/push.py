"""Send a finished run's policy to the hub: `make push` runs this.

    make push RUN=outputs/smollm2-sentiment HUB=my-name/my-model
    make push RUN=outputs/a HUB=my-name/my-model ARGS="--merged"    # of an adapter, with its base
    make push RUN=outputs/a/exports/full-nf4 HUB=my-name/my-model   # what make export has made

Weights as safetensors, configuration, tokenizer with its chat template, a model's own code, and the
card. No checkpoint, no log, no row of the data. The repository is made private, and nothing goes to
a public one unless --public says so. What is there already is not sent again: the same command goes
on after an outage. The token is the one of `hf auth login`, or HF_TOKEN.
"""

import argparse

import dpo  # noqa: F401  first, that no library speaks
from dpo.core.terminal import guarded, parser_of


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, prog="push.py", allow_abbrev=False)
    add = parser.add_argument
    add("--run", required=True, help="a run: folder, or name under outputs/; or an export's folder")
    add("--hub", default="", help="org/name (default: the recipe's hub_model_id)")
    add("--merged", action="store_true", help="of an adapter: send it as one with its base")
    add("--public", action="store_true", help="everybody may have it")
    return parser.parse_args()


@guarded
def main() -> None:
    args = arguments()
    from dpo.use import push  # late: what is misspelt is answered at once

    name = push.send(args.run, args.hub, merged=args.merged, public=args.public)
    print(f"Next: its card, README.md, says how it is used; hf download {name} brings it here")


if __name__ == "__main__":
    main()
