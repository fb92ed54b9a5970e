"""What a micro-batch needs at the most, of a model of which it cannot be counted."""

from dataclasses import replace

import torch
from transformers import PreTrainedConfig

from dpo.plan.arithmetic.counted import DEEP, How, Kept, Pairs, of_depth, run

# Bytes a token, layer and hidden unit of a model of which nothing can be counted: Llama in float32
# keeps 98, a mixture of experts in bfloat16 102, Mamba 510 by the code without its kernels.
BOUND = 600
STATEFUL = "FLOPs are of weights alone in layers that carry a state from token to token"
BOUNDED = (
    "activations are a bound, of layers whose code cannot be counted at length: {:.0f} bytes a "
)
BOUNDED += "token, layer and hidden unit"
FEW = 64  # tokens of a row that is short enough to be counted


def each_token(config: PreTrainedConfig, how: How) -> float:
    """Bytes that a token needs in a layer of a model of which whole rows cannot be counted, for a
    hidden unit: by its first layers over a short row, else BOUND.

    With the loops of Mamba and RWKV rows of 32 to 128 tokens keep the same of each, to 1%.
    """
    text = config.get_text_config()
    # As keeps the most: one figure for all ways, which are compared.
    how = replace(how, dtype=torch.float32, autocast=False, checkpointing=False)
    try:
        saved, *_ = run(of_depth(config, DEEP - 1), ((FEW // 2,) * 3,), how)
    except Exception:  # whatever its code does not take
        return BOUND
    return saved / (2 * FEW * text.hidden_size * (DEEP - 1))


def bound(config: PreTrainedConfig, pairs: Pairs, how: How, each: float) -> Kept:
    """The most that `kept` may be, at so many bytes a token, layer and hidden unit: for a model
    that cannot be counted."""
    text = config.get_text_config()
    tokens = sum(map(sum, pairs)) if how.shared else 2 * len(pairs) * max(map(sum, pairs))
    layer = each * tokens * text.hidden_size
    saved = how.dtype.itemsize * tokens * text.hidden_size if how.checkpointing else layer
    return Kept(saved * text.num_hidden_layers, 0, 2 * layer)
