"""Shapes of models whose speed is measured with random weights: it does not depend on what a model
knows."""

from pathlib import Path

from dpo.core.refusal import Refusal

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
)


def sized(*sizes: int) -> dict[str, int]:
    """Sizes, in the order of SIZES, as a configuration takes them."""
    return dict(zip(SIZES, sizes, strict=True))


LLAMA, QWEN3, TIED = {"model_type": "llama"}, {"model_type": "qwen3"}, {"tie_word_embeddings": True}
SHAPES = {
    "SmolLM2-135M": LLAMA | sized(49152, 576, 1536, 30, 9, 3, 64, 8192) | TIED,
    "Qwen3-0.6B": QWEN3 | sized(151936, 1024, 3072, 28, 16, 8, 128, 40960) | TIED,
    "Llama-3.1-8B": LLAMA | sized(128256, 4096, 14336, 32, 32, 8, 128, 8192),
}


def check_there(model: str) -> None:
    """Raises Refusal if there is no shape of that name, and no folder."""
    if model not in SHAPES and not Path(model).is_dir():
        raise Refusal(f"no model {model}: one of {', '.join(SHAPES)}, or a folder")
