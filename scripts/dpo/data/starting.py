"""A recipe to start from, by the model, the data and this machine, with numbers that were published
for a model of that size."""

import math
from pathlib import Path

import torch
from datasets import IterableDataset
from peft.utils import CONFIG_NAME
from transformers import AutoModelForCausalLM

from dpo.core.refusal import Refusal
from dpo.core.terminal import visible
from dpo.data.fits import check_rows
from dpo.data.formats import telling
from dpo.data.formats.columns import described, mapping_of, renamed
from dpo.data.formats.layouts import renders
from dpo.data.formats.parts import told
from dpo.data.formats.telling import SEEN
from dpo.data.reading import paired
from dpo.data.sources.load import Rows, load
from dpo.models import trust
from dpo.models.chat_template import bundled_templates
from dpo.models.config_check import check_weights
from dpo.models.model_files import check_config, check_trainable, config_of, tokenizer_of
from dpo.recipe.arguments import LAYOUTS
from dpo.recipe.text import line, machine_keys, rounded, stated

# Parameters up to which, learning rate, pairs a device, and who published that rate for that size.
SIZES = (
    (1e9, 1e-6, 8, "as SmolLM2 360M in the alignment handbook"),
    (4e9, 1e-6, 4, "as SmolLM2 1.7B in the alignment handbook"),
    (20e9, 5e-7, 2, "as Zephyr 7B (arXiv 2310.16944) and Tulu 2 13B (arXiv 2311.10702)"),
    (math.inf, 2e-7, 1, "as Tulu 3 70B (arXiv 2411.15124)"),
)
BATCH = 32  # pairs a step: Zephyr's paper and Tulu 2
FEWEST = 10  # steps an epoch: of fewer pairs a step has fewer
MANY = 20_000  # pairs of which one epoch is enough: Zephyr 7B has 61,000, Tulu 3 more
ON_CPU = 4  # pairs at a time
GPU = 80  # GB, the kind that published runs of 7B and more had
BYTES = 20  # a parameter: weights, gradients, two moments and the reference, in float32


def parameters(model: str) -> int:
    """How many parameters a model has, by its configuration: no weights are read."""
    if Path(model, CONFIG_NAME).is_file():
        raise Refusal(
            f"MODEL: {model} is an adapter: name the base that its {CONFIG_NAME} names, and train "
            f"the adapter on with --model_name_or_path {model} --use_peft"
        )
    check_weights(model)
    trust.check_code(model, None, trusted=False)
    check_config(model)
    check_trainable(model, None, False, adapter=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(model)).num_parameters()


def has_chat_template(model: str) -> bool:
    """Whether a model's tokenizer brings one: no weights are read.

    Raises:
        Refusal: the tokenizer cannot be read, or is none to train with.
    """
    tokenizer = tokenizer_of(model)
    check_rows(config_of(model), tokenizer, model)
    if tokenizer.eos_token is None:
        raise Refusal(f"MODEL: the tokenizer of {model} has no eos_token: state one there")
    return bool(tokenizer.chat_template)


def count(source: Rows, layout: str, parts: dict[str, str]) -> int | None:
    """How many pairs a split has, by its rows; None if nobody says."""
    if isinstance(source.data, IterableDataset):  # of the hub, not fetched: its card may say
        found = (source.data.info.splits or {}).get(str(source.data.split))
        return found.num_examples if found and layout != "scored" else None
    return len(paired(source, parts)[0].data) if layout == "scored" else len(source.data)


def data_of(name: str, mapping: dict[str, str], chat: bool) -> tuple[list[str], int | None]:
    """The recipe's lines about its data, and how many pairs there are to train on, None if nobody
    says.

    Args:
        mapping: our names of columns to theirs.
        chat: whether the model has a chat template.

    Raises:
        Refusal: the data cannot be read, hold no preferences, or are too few.
    """
    found = load(name, streaming=not Path(name).exists())
    splits = {str(split): rows for split, rows in found.items()}
    train = next((split for split in splits if split.startswith("train")), next(iter(splits)))
    tests = [s for s in splits if s != train and s.startswith(("test", "val", "eval", "dev"))]
    source = renamed(splits[train], mapping)
    rows = source.first(SEEN)
    if not rows:
        raise Refusal(f"DATASET: {source.name} has no rows")
    layout, parts = told(rows)
    if layout is None:
        print(visible("\n".join([f"{source.name} has these columns:", *described(rows)])))
        why = telling.refusal(source.name, rows, "make new … COLUMNS=")
        raise Refusal(f"DATASET: {why}")
    telling.check(source.name, layout, parts, rows)
    for split in tests[:1]:
        telling.reading_of(renamed(splits[split], mapping), None)
    print(f"{name}: {layout}, {LAYOUTS[layout]}; splits {', '.join(splits)}")
    print(visible("".join(f"{note}\n" for note in source.notes)), end="")
    if not chat and isinstance(rows[0].get(parts.get("chosen")), list):
        print(
            "The data are messages, and the model has no chat template: state chat_template_path, "
            f"a .jinja file, a model's folder or one of {', '.join(bundled_templates())}"
        )
    pairs = count(source, layout, parts)
    lines = [stated("dataset_name", name)]
    if mapping:
        lines.append(stated("column_mapping", mapping))
    if train != "train":
        lines.append(stated("dataset_train_split", train))
    if chat and renders(rows, layout):
        remark = "plain text becomes messages of the chat template; explicit: as it is"
        lines.append(line("preference_layout", "question", remark))
    if tests:
        if tests[0] != "test":
            lines.append(stated("dataset_test_split", tests[0]))
    elif pairs is None:
        lines.append(line("test_split_size", "0.05", "no split is held out yet:"))
    elif pairs < 2:
        why = "fewer than two pairs in it: one to train on and one to hold out is the least"
        raise Refusal(f"DATASET: {name} has one split, and {why}")
    else:
        share = 0.1 if pairs < 400 else 0.05 if pairs <= MANY else round(1000 / pairs, 4)
        held = max(int(pairs * share), 1)
        remark = f"no split is held out yet: {held} pairs"
        lines.append(line("test_split_size", f"{share:g}", remark))
        pairs -= held
    return lines, pairs


def recipe(name: str, model: str, dataset: str, columns: str = "") -> str:
    """The text of the recipe.

    Raises:
        Refusal: model or data cannot be found or read.
    """
    mapping = mapping_of(columns, "COLUMNS")
    size = parameters(model)
    data, count = data_of(dataset, mapping, has_chat_template(model))
    rate, pairs, why = next(entry[1:] for entry in SIZES if size <= entry[0])
    batch, epochs, every, logged, how_many = BATCH, 3, 100, 10, "nobody says how many pairs"
    if count is not None:
        while batch > 1 and count // batch < FEWEST:
            batch //= 2
        epochs = 1 if count > MANY else 3
        steps = math.ceil(count / batch) * epochs
        every, logged = rounded(steps / 5), min(rounded(steps / 30), 10)
        how_many = f"{steps:,} steps in all"
    pairs = min(pairs, batch, pairs if torch.cuda.is_available() else ON_CPU)
    times, memory = batch // pairs, size * BYTES / 1e9
    gpus = 2 ** math.ceil(math.log2(max(memory / (0.5 * GPU), 1)))  # half is left to activations
    where, shard = (f"{gpus} GPUs", " CONFIG=zero3") if gpus > 1 else ("one GPU", "")
    few = f"#   Of {BATCH} pairs there would be fewer than {FEWEST} steps an epoch: {batch} a step."
    few = f"{few}\n" * (batch < BATCH)
    header = f"""\
# {Path(model).name} on {Path(dataset).stem}.
# Source: ours. Learning rate {why}.
#   β is TRL's default, the batch that of Zephyr's paper and of Tulu 2.
{few}# Published: none.
# Machine: {where} of {GPU} GB, by arithmetic: {size / 1e9:.2f}B × {BYTES} bytes
#   (weights, gradients, two Adam moments, reference) = {memory:.0f} GB in all, and
#   activations.
# Batch: {pairs} pairs × {times} accumulated = {batch}, on any number of GPUs that
#   divides it.
# Reached: not run yet.
# Run: make train RECIPE={name}{shard}
"""
    lines = [
        header,
        "### Model",
        stated("model_name_or_path", model),
        line("use_peft", "false", "true: LoRA, at ten times the learning rate", "false"),
        "",
        "### Data",
        *data,
        line("max_length", "1024", "tokens of a pair's side; make data says what is cut", "1024"),
        "",
        "### DPO",
        line("beta", "0.1", "smaller lets the policy move further from the reference", "0.1"),
        "",
        "### Optimisation",
        line("learning_rate", f"{rate:.1e}".replace("e-0", "e-"), "of its peak", "1.0e-6"),
        line("warmup_steps", "0.1", "a tenth of all steps, as nearly all that are published"),
        line("per_device_train_batch_size", f"{pairs}", "lower it when memory runs out,", "8"),
        line("gradient_accumulation_steps", f"{times}", f"and raise this: {batch} a step", "1"),
        line("num_train_epochs", f"{epochs}", "1 where pairs are many (Zephyr 7B, Tulu 3)", "3"),
        *machine_keys(),
        "",
        "### Evaluation and output",
        "eval_strategy: steps",
        line("eval_steps", f"{every}", how_many),
        line("logging_steps", f"{logged}", "a line of the log each", "10"),
        f"save_steps: {every}",
        "save_total_limit: 1",
        "report_to: wandb",
        f"output_dir: outputs/{name}",
    ]
    return "\n".join(lines) + "\n"
