"""Write a recipe to start from: `make new` runs this.

    make new RECIPE=my-recipe MODEL=Qwen/Qwen3-0.6B DATASET=path/to/pairs.jsonl

Looks at the model's size and at the data's columns and splits, and puts numbers that were published
for that size into recipes/<RECIPE>.yaml, each with where it comes from. Model and data are names of
the hub, or folders and files here.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse
import math
import re
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dpo import foreign
from dpo.layouts import LAYOUTS, detect
from dpo.output import write_whole
from dpo.reading import SEEN
from dpo.recipe import FOLDER
from dpo.sources import check_reachable, load_splits, looks_local
from dpo.terminal import guarded

# Parameters up to which, learning rate, pairs a device, and who published that rate for that size.
SIZES = (
    (1e9, 1e-6, 8, "as SmolLM2 360M in the alignment handbook"),
    (4e9, 1e-6, 4, "as SmolLM2 1.7B in the alignment handbook"),
    (20e9, 5e-7, 2, "as Zephyr 7B (arXiv 2310.16944) and Tulu 2 13B (arXiv 2311.10702)"),
    (math.inf, 2e-7, 1, "as Tulu 3 70B (arXiv 2411.15124)"),
)
BATCH = 32  # pairs a step: Zephyr's paper and Tulu 2
GPU = 80  # GB, the kind that published runs of 7B and more had
BYTES = 20  # a parameter: weights, gradients, two moments and the reference, in float32


def parameters(model: str) -> int:
    """How many parameters a model has, by its configuration: no weights are read."""
    if not Path(model).is_dir():
        if looks_local(model):
            raise SystemExit(f"MODEL: no model folder {model}")
        check_reachable(model, "model")
    foreign.check_code(model, None, trusted=False)
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def data_keys(name: str) -> list[str]:
    """The recipe's lines about its data.

    Raises:
        SystemExit: the data cannot be read, or hold no preferences.
    """
    splits = load_splits(name, streaming=not Path(name).exists())
    train = next((split for split in splits if split.startswith("train")), next(iter(splits)))
    tests = [split for split in splits if split.startswith(("test", "val", "eval", "dev"))]
    layout = detect([*islice(iter(splits[train].data), SEEN)])
    if layout is None:
        known = "; ".join(f"{name} ({says})" for name, says in LAYOUTS.items())
        raise SystemExit(f"DATASET: the columns of {splits[train].name} are none of {known}")
    print(f"{name}: {layout}, {LAYOUTS[layout]}; splits {', '.join(splits)}")
    lines = [f"dataset_name: {name}"]
    if train != "train":
        lines.append(f"dataset_train_split: {train}")
    if not tests:
        lines.append(line("test_split_size", "0.05", "no split is held out yet: a twentieth"))
    elif tests[0] != "test":
        lines.append(f"dataset_test_split: {tests[0]}")
    return lines


def line(key: str, value: str, remark: str, default: str = "") -> str:
    """A line of a recipe with its remark; one that would state the default is commented out."""
    stated = f"{key}: {value}"
    return f"{'# ' * (value == default)}{stated}".ljust(40) + f" # {remark}"


def recipe(name: str, model: str, dataset: str) -> str:
    """The text of the recipe.

    Raises:
        SystemExit: model or data cannot be found or read.
    """
    count = parameters(model)
    rate, pairs, why = next(size[1:] for size in SIZES if count <= size[0])
    accumulated, memory = BATCH // pairs, count * BYTES / 1e9
    gpus = 2 ** math.ceil(math.log2(max(memory / (0.5 * GPU), 1)))  # half is left to activations
    where, shard = (f"{gpus} GPUs", " CONFIG=zero3") if gpus > 1 else ("one GPU", "")
    lines = [
        f"# {Path(model).name} on {Path(dataset).stem}.",
        f"# Source: ours. Learning rate {why}.",
        "#   β and epochs are TRL's defaults, the batch is that of Zephyr's paper and of Tulu 2.",
        "# Published: none.",
        f"# Machine: {where} of {GPU} GB, by arithmetic: {count / 1e9:.2f}B × {BYTES} bytes",
        f"#   (weights, gradients, two Adam moments, reference) = {memory:.0f} GB in all, and",
        "#   activations.",
        f"# Batch: {pairs} pairs × {accumulated} accumulated = {BATCH}, on any number of GPUs that",
        "#   divides it.",
        "# Reached: not run yet.",
        f"# Run: make train RECIPE={name}{shard}",
        "",
        "### Model",
        f"model_name_or_path: {model}",
        line("use_peft", "false", "true: LoRA, at ten times the learning rate", "false"),
        "",
        "### Data",
        *data_keys(dataset),
        line("max_length", "1024", "tokens of a pair's side; make data says what is cut", "1024"),
        "",
        "### DPO",
        line("beta", "0.1", "smaller lets the policy move further from the reference", "0.1"),
        "",
        "### Optimisation",
        line("learning_rate", f"{rate:.1e}".replace("e-0", "e-"), "of its peak", "1.0e-6"),
        line("warmup_steps", "0.1", "a tenth of all steps, as nearly all that are published"),
        line("per_device_train_batch_size", f"{pairs}", "lower it when memory runs out,", "8"),
        line("gradient_accumulation_steps", f"{accumulated}", f"and raise this: {BATCH} a step"),
        line("num_train_epochs", "3", "1 where pairs are many (Zephyr 7B, Tulu 3)", "3"),
        "",
        "### Evaluation and output",
        "eval_strategy: steps",
        "eval_steps: 100",
        "save_steps: 100",
        "save_total_limit: 1",
        "report_to: wandb",
        f"output_dir: outputs/{name}",
    ]
    return "\n".join(lines) + "\n"


@guarded
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("recipe", "model", "dataset"):
        parser.add_argument(f"--{name}", default="", help=f"{name.upper()} of make new")
    args = parser.parse_args()
    for name, value in vars(args).items():
        if not value:
            raise SystemExit(
                f"{name.upper()}= is missing: make new RECIPE=my-recipe MODEL=Qwen/Qwen3-0.6B "
                "DATASET=path/to/pairs.jsonl"
            )
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", args.recipe):
        raise SystemExit(f"RECIPE={args.recipe}: a name has small letters, digits, points, dashes")
    path = FOLDER / f"{args.recipe}.yaml"
    if path.exists():
        raise SystemExit(f"{path} is there already: give another RECIPE=")
    write_whole(path, recipe(args.recipe, args.model, args.dataset))
    name = args.recipe
    print(f"Written: {path}\nNext: make data RECIPE={name}, then make train RECIPE={name}")


if __name__ == "__main__":
    main()
