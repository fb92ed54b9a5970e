"""The policy of a finished run as a folder that others load. `make export` runs this.

    make export RUN=outputs/smollm2-sentiment                  # all weights, or the adapter alone
    make export RUN=outputs/smollm2-sentiment DTYPE=bf16       # in another dtype
    make export RUN=outputs/lora MERGE=1 TO=released           # the adapter added to its base
    make export RUN=outputs/smollm2-sentiment QUANT=nf4        # 4 bits a weight, or int8
    make export RUN=outputs/smollm2-sentiment GGUF=q8_0        # one file, for llama.cpp
    make export RUN=outputs/lora QUANT=nf4 HUB=my-name/my-model  # and then to the hub, private

Safetensors, the tokenizer with its chat template, and a generation config that ends answers where
the policy learned to. It is written beside, loaded there in plain transformers, held against the
run's policy (log-probabilities of held-out pairs, tokens of prompts, ends of sampled answers), and
only then put in its place, with what was found in export.json and a card. What fails a check is
neither kept nor sent.
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
QUANTS = ("int8", "nf4")


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, prog="export.py", allow_abbrev=False)
    add = parser.add_argument
    add("--run", required=True, help="a finished run: its folder, or its name in outputs/")
    add("--merge", action="store_true", help="add the adapter to its base")
    add("--dtype", default="", help="float32, bfloat16 or float16 (that of the run's weights)")
    add("--quant", default="", help="quantised by bitsandbytes: int8, or nf4 with 4 bits; merged")
    add("--gguf", default="", help="a GGUF file instead: f32, f16, bf16 or q8_0; merged")
    add("--to", default="", help="folder (exports/<kind>-<dtype> in the run's own)")
    add("--hub", default="", help="org/name: send it to that model of the hub, private")
    add("--public", action="store_true", help="with --hub: everybody may have it")
    args = parser.parse_args()
    if args.dtype.lower() not in DTYPES:
        known = ", ".join(filter(None, DTYPES))
        raise Refusal(f"DTYPE={args.dtype} is no dtype of an export: choose from {known}")
    if args.gguf not in ("", *OUTTYPES):
        raise Refusal(
            f"GGUF={args.gguf} is not written here: choose from {', '.join(OUTTYPES)}. llama.cpp's "
            "llama-quantize makes others, such as q4_K_M, of an f16"
        )
    if args.quant not in ("", *QUANTS):
        raise Refusal(
            f"QUANT={args.quant} is not written here: choose from {', '.join(QUANTS)} (4 bits); "
            "GGUF= has formats of llama.cpp"
        )
    if len(given := [n for n in ("quant", "gguf", "dtype") if getattr(args, n)]) > 1:
        raise Refusal(f"{' and '.join(f'{n.upper()}=' for n in given)}: give one of them")
    if args.public and not args.hub:
        raise Refusal("--public goes with HUB=: without it nothing is sent")
    output_folder.check_there(args.run)
    return args


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(arguments)


@guarded
def main() -> None:
    args = arguments()
    from dpo.runs.publish import check_can_send  # late: what is misspelt is answered at once
    from dpo.use import push
    from dpo.use.export.command import export
    from dpo.use.export.said import following, say
    from dpo.use.run import used

    run = used(args.run)
    if args.hub:  # what would not be sent is said before it is made
        check_can_send(args.hub, "model")
        if not (args.merge or args.quant or args.gguf):
            push.check_base(run.folder, "MERGE=1")
    dtype = DTYPES[args.dtype.lower()]
    folder, about = export(run, args.merge, dtype, args.to, args.gguf, args.quant)
    say(folder, about)
    if args.hub:
        push.send(str(folder), args.hub, public=args.public)
    print(f"Next: {following(folder, about)}")


if __name__ == "__main__":
    main()
