"""A model must have a row for every token of its tokenizer, and positions for the longest pair."""

from __future__ import annotations

from datasets import Dataset, IterableDataset
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from dpo import adapters, reference
from dpo.recipe import Recipe


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


def check_rows(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises SystemExit if a token of the tokenizer has no row in the model's embedding."""
    rows = config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise SystemExit(
            f"{name} has {rows} rows in its embedding and its tokenizer {len(tokenizer)} tokens: "
            "give the tokenizer that it was trained with, or resize_token_embeddings and train them"
        )


def check(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *pairs: Dataset | IterableDataset | None
) -> None:
    """Refuse tokens and lengths that the model does not have, before it is loaded.

    Args:
        pairs: tokenised; of a stream `max_length` is the longest there may be.

    Raises:
        SystemExit: the embedding is smaller than the tokenizer, or a pair longer than the model's
            positions.
    """
    name, args = recipe.model.model_name_or_path, recipe.training
    most, cut = args.max_length, (args.max_length, args.truncation_mode)
    adapter = adapters.config_of(name, recipe.model.model_revision)
    base = adapter.base_model_name_or_path if adapter else name
    revision = adapter.revision if adapter else recipe.model.model_revision
    trusted = args.trust_remote_code
    config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=trusted)
    if not (adapter and adapter.modules_to_save):  # which may be an embedding of its own
        check_rows(config, tokenizer, base)
    room, longest = positions(config), 0
    for rows in pairs:
        if isinstance(rows, IterableDataset):
            longest = max(longest, most or 0)
        elif rows is not None and len(rows):
            _, chosen, rejected = reference.cut_lengths(rows, *cut)
            longest = max(longest, chosen.max(), rejected.max())
    if room and longest > room:
        raise SystemExit(
            f"max_length is {most} and the longest pair {int(longest)} tokens: {base} has "
            f"{int(room)} positions: give --max_length {int(room)} or less"
        )
