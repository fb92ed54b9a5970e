"""A model must have a row for every token of its tokenizer, and positions for the longest pair."""

import math

import pyarrow.compute as pc
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dpo.core.refusal import Refusal
from dpo.data import schema
from dpo.models import adapters, model_files
from dpo.recipe.parse import Recipe


def positions(config: PreTrainedConfig) -> float | None:
    """The longest row that a model was made for, with what its RoPE is stretched by; None if the
    configuration names none."""
    config = config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if not longest:
        return None
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *ropes.values()):
        if isinstance(rope, dict) and rope.get("factor"):
            original = rope.get("original_max_position_embeddings") or longest
            longest = max(longest, original * rope["factor"])
    return longest


def check_room(config: PreTrainedConfig, prompt: int, new: int, name: str) -> None:
    """See that a model has a position for each token of a prompt and its answer. What has RoPE goes
    on beyond those that it was made for, which is said.

    Args:
        prompt, new: tokens of the longest prompt, and of an answer at most.

    Raises:
        Refusal: it has too few.
    """
    longest = positions(config)
    if not longest or prompt + new <= longest:
        return
    said = f"{name} has {longest:.0f} positions, and a prompt of {prompt} tokens is answered by up "
    said += f"to {new}"
    if getattr(config.get_text_config(), "rope_parameters", None):
        print(f"{said}: it was not made for what lies beyond")
        return
    less = f"give --max_new_tokens {longest - prompt:.0f}"
    raise Refusal(f"{said}: {less if longest > prompt else 'leave such prompts out'}")


def check_rows(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str, highest: int = 0
) -> None:
    """Refuse a tokenizer with tokens that have no row in the model's embedding. Special ones that
    nothing uses are aside: Gemma 3 1B, which reads no images, has one for them.

    Args:
        highest: the highest token that occurs in the data.

    Raises:
        Refusal: there are such tokens.
    """
    rows = config.get_text_config().vocab_size
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    special -= {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    if highest >= rows or {*range(rows, len(tokenizer))} - special:
        raise Refusal(
            f"{name} has {rows} rows in its embedding and its tokenizer {len(tokenizer)} tokens: "
            "give the tokenizer that it was trained with, or resize_token_embeddings and train them"
        )


def highest_token(pairs: Dataset) -> int:
    table = pairs.select_columns(schema.IDS).with_format("arrow")[:]
    columns = (table[name].combine_chunks().flatten() for name in schema.IDS)
    highest = pc.max  # pyright: ignore[reportAttributeAccessIssue]  made as it loads
    return max(highest(column).as_py() or 0 for column in columns)


def check(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *pairs: Dataset | IterableDataset | None
) -> None:
    """Refuse tokens and lengths that the model, or a reference of its own, does not have, before
    they are loaded.

    Args:
        pairs: tokenised; of a stream `max_length` is the longest there may be.

    Raises:
        Refusal: the embedding is smaller than the tokenizer, or a pair longer than the model's
            positions; the pad token is none of its tokens; or no whole batch is there.
    """
    name, args = recipe.model.model_name_or_path, recipe.training
    adapter = adapters.config_of(name, recipe.model.model_revision)
    base = adapter.base_model_name_or_path if adapter else name
    revision = adapter.revision if adapter else recipe.model.model_revision
    how = recipe.init | {"revision": revision, "trust_remote_code": args.trust_remote_code}
    configs = {base: model_files.config_of(base, **how)}
    if recipe.run.ref_model_name_or_path is not None:
        own, how["revision"] = recipe.reference
        configs[f"the reference {own}"] = model_files.config_of(own, **how)
    known = [rows for rows in pairs if isinstance(rows, Dataset) and len(rows)]
    highest = max(map(highest_token, known), default=0)
    for each, config in configs.items():
        # An adapter may bring an embedding of its own.
        if each != base or not getattr(adapter, "modules_to_save", None):
            check_rows(config, tokenizer, each, highest)
    if args.pad_token is not None and args.pad_token not in tokenizer.get_vocab():
        raise Refusal(
            f"{recipe.place('pad_token')}: pad_token is {args.pad_token}: the tokenizer of {name} "
            "has no such token: leave it out, or give one of its special tokens"
        )
    batch = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and isinstance(pairs[0], Dataset) and len(pairs[0]) < batch:
        raise Refusal(
            f"{recipe.place('dataloader_drop_last')}: dataloader_drop_last is True: there are "
            f"{len(pairs[0])} pairs to train on, fewer than the {batch} of one batch, and nothing "
            "would be left: leave it out, or lower per_device_train_batch_size"
        )
    if isinstance(pairs[0], Dataset):
        say_short(recipe, len(pairs[0]))
    bounded = [rows for rows in pairs if args.max_length or isinstance(rows, Dataset)]
    longest = max((schema.longest_row(rows, args.max_length) for rows in bounded), default=0)
    for each, config in configs.items():
        if (room := positions(config)) and longest > room:
            raise Refusal(
                f"max_length is {args.max_length} and the longest pair {int(longest)} tokens: "
                f"{each} has {int(room)} positions: give --max_length {int(room)} or less"
            )


def steps_of(recipe: Recipe, pairs: int) -> int:
    """How many steps a run on so many pairs has."""
    args = recipe.training
    an_epoch = math.ceil(pairs / recipe.global_batch)
    return args.max_steps if args.max_steps > 0 else math.ceil(an_epoch * args.num_train_epochs)


def say_short(recipe: Recipe, pairs: int) -> None:
    """Say where a run is too short for what the recipe states: its batch, or its warmup."""
    args, batch, say = recipe.training, recipe.global_batch, PartialState().print
    steps = steps_of(recipe, pairs)
    if pairs < batch:
        say(f"   train  {pairs} pairs, fewer than the {batch} of a step: each step has them all")
    if (warmup := args.get_warmup_steps(steps)) >= steps and args.warmup_steps >= 1:
        say(
            f"   train  warmup_steps {warmup}, and the run has {steps}: the learning rate never "
            f"reaches {args.learning_rate:g}: give fewer, or a share of the run such as 0.1"
        )
