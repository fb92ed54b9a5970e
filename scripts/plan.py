"""What a recipe needs before it is paid for: memory, time and price, without a GPU or weights.

    make plan RECIPE=qwen-ultrafeedback                       # on this machine's GPUs, else one H100
    make plan RECIPE=zephyr-7b-ultrafeedback GPUS=8 GPU=A100-80GB PRICE=1.8
    make plan RECIPE=tulu-2-70b-ultrafeedback GPUS=8 NODES=4 MEMORY=80
    make plan RECIPE=qwen-ultrafeedback GPU=RTX-4090 ARGS="--max_length 4096"

Every way to train it on so many GPUs, each of which learns the same, with what it takes of a GPU's
memory term by term; the fastest that fits, and the command for it. Where none fits: which change
makes it fit.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse

from dpo.core.terminal import at_once, guarded, parser_of


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--recipe", default="smollm2-sentiment", help="a file in recipes/")
    add("--gpus", default="", help="on each machine (this machine's, else 1)")
    add("--nodes", default="1", help="machines (1)")
    add("--gpu", default="", help="which: H100-80GB, A100-40GB, RTX-4090, … (this machine's)")
    add("--memory", default="", help="GB of each, instead of a name")
    add("--price", type=float, help="of one GPU for an hour")
    add("--utilisation", type=float, help="of the GPU's peak, that training reaches")
    add("--json", action="store_true", help="print the plan as JSON, and nothing else")
    add("arguments", nargs="*", metavar="-- ARGS", help="flags for train.py")
    return parser.parse_args()


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(arguments)
