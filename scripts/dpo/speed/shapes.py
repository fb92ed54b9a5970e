"""Shapes of models whose speed is measured with random weights: it does not depend on what a model
knows."""

from pathlib import Path

from dpo.core.refusal import Refusal
from dpo.plan.shapes import known

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
)


def sized(*sizes: int) -> dict[str, int]:
    """Sizes, in the order of SIZES, as a configuration takes them."""
    return dict(zip(SIZES, sizes, strict=True))


NAMES = ("HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.1-8B")
SHAPES = {name.rpartition("/")[2]: known()[name] for name in NAMES}


def check_there(model: str) -> None:
    """Raises Refusal if there is no shape of that name, and no folder."""
    if model not in SHAPES and not Path(model).is_dir():
        raise Refusal(f"no model {model}: one of {', '.join(SHAPES)}, or a folder")
