"""The policy of a finished run as a folder that others load. `make export` runs this.

    make export RUN=outputs/smollm2-sentiment                  # all weights, or the adapter alone
    make export RUN=outputs/smollm2-sentiment DTYPE=bf16       # in another dtype
    make export RUN=outputs/lora MERGE=1 TO=released           # the adapter added to its base
    make export RUN=outputs/smollm2-sentiment GGUF=q8_0        # one file, for llama.cpp

Safetensors, the tokenizer with its chat template, and a generation config that ends answers where
the policy learned to. It is written beside, loaded there in plain transformers, held against the
run's policy (log-probabilities of held-out pairs, tokens of prompts, ends of sampled answers), and
only then put in its place, with what was found in export.json.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse

from dpo.core.refusal import Refusal
from dpo.core.terminal import at_once, guarded, parser_of
from dpo.runs import output_folder

DTYPES = {name: name for name in ("float32", "bfloat16", "float16")}
DTYPES |= {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "": ""}
OUTTYPES = ("f32", "f16", "bf16", "q8_0")  # of GGUF


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, prog="export.py", allow_abbrev=False)
    add = parser.add_argument
    add("--run", required=True, help="a finished run: its folder, or its name in outputs/")
    add("--merge", action="store_true", help="add the adapter to its base")
    add("--dtype", default="", help="float32, bfloat16 or float16 (that of the run's weights)")
    add("--gguf", default="", help="a GGUF file instead: f32, f16, bf16 or q8_0")
    add("--to", default="", help="folder (exports/<kind>-<dtype> in the run's own)")
    args = parser.parse_args()
    if args.dtype.lower() not in DTYPES:
        known = ", ".join(filter(None, DTYPES))
        raise Refusal(f"DTYPE={args.dtype} is no dtype of an export: choose from {known}")
    if args.gguf not in ("", *OUTTYPES):
        raise Refusal(f"GGUF={args.gguf} is not written here: choose from {', '.join(OUTTYPES)}")
    output_folder.check_there(args.run)
    return args


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(arguments)


@guarded
def main() -> None:
    args = arguments()
    from dpo.use.export.command import export  # late: what is misspelt is answered at once
    from dpo.use.export.said import say
    from dpo.use.run import used

    dtype = DTYPES[args.dtype.lower()]
    folder, about = export(used(args.run), args.merge, dtype, args.to, args.gguf)
    say(folder, about)


if __name__ == "__main__":
    main()
