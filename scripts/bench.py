"""How much faster than stock TRL, and where it comes from: one step added at a time.

    make bench                                  # this machine: a GPU if there is one, else its CPU
    make bench MODEL=Qwen3-0.6B DEVICE=cuda     # one model
    make bench ARGS="--pairs 4 --lengths 50,50,50"

Every variant is a real trainer in a process of its own, so that peak memory is its own; all train
the same model on the same pairs in the same dtype, and they take turns, so that a machine that
slows down slows them all. Pairs are random tokens of real lengths: those of UltraFeedback
(recipes/data/ultrafeedback-lengths.csv, 1,200 pairs, Qwen's tokenizer), drawn so that prompts and
padding weigh what they weigh in the whole table. Steps are timed after a warm-up of the same kind,
without loading and scoring the reference before. Writes bench.json, .md, .png to outputs/bench.
"""

import argparse
from pathlib import Path

import dpo  # noqa: F401  first, that no library speaks
from dpo.core.terminal import guarded, parser_of
from dpo.recipe.arguments import positive
from dpo.speed import shapes


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], help="(a GPU if there is one)")
    add(
        "--model",
        nargs="+",
        help="SmolLM2-135M or another shape of speed/workload.py (random weights), or a model's "
        "folder; default: SmolLM2-135M on a CPU, all shapes on a GPU",
    )
    add("--pairs", nargs="+", type=positive, help="a micro-batch (4; GPU: 4 and 8)")
    add("--steps", type=positive, help="timed steps a turn (1; GPU: 10)")
    add("--rounds", type=positive, default=2, help="turns of every variant (2)")
    add(
        "--lengths",
        default="",
        help="a table of prompt, chosen and rejected tokens (UltraFeedback's), or three numbers: "
        "50,50,50",
    )
    add("--output", type=Path, default=Path("outputs/bench"), help="folder (outputs/bench)")
    return parser.parse_args()


@guarded
def main() -> None:
    args = arguments()
    for model in args.model or ():
        shapes.check_there(model)
    from dpo.speed import variants  # late: what is misspelt is answered at once

    print(f"Written: {', '.join(map(str, variants.compare(args)))}")


if __name__ == "__main__":
    main()
