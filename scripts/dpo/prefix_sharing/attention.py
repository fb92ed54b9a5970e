"""Attention of a packed row with shared prefixes (plan.py), on a CPU and on a GPU.

The packed row of a batch holds, pair by pair, prefix, chosen and rejected tokens. It is attended
to in two branches a pair: prefix and chosen, causally; then rejected, which sees the prefix and
itself.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dpo.core.stats import numerics
from dpo.prefix_sharing.plan import SharedPrefixes

IMPLEMENTATIONS = ("sdpa", "flash_attention_2", "flash_attention_3")
BENDING = ("softcap", "s_aux", "position_bias")  # options of attention functions that bend it


def teach(implementation: str) -> None:
    """Teach one of transformers' attention functions to go by the plan when there is one."""
    plain = ALL_ATTENTION_FUNCTIONS[implementation]
    if getattr(plain, "shares_prefixes", False):
        return

    def attention(module, query, key, value, attention_mask, shared_prefixes=None, **kwargs):
        if shared_prefixes is None:
            return plain(module, query, key, value, attention_mask, **kwargs)
        if _bends(module, kwargs):  # not counted: the batch is computed again, without the plan
            return plain(module, query, key, value, None, **kwargs)
        shared_prefixes.attended += 1
        window = kwargs.get("sliding_window")
        dtype = numerics(query)
        size = query.shape[-1]
        fits = key.shape == value.shape and size % 8 == 0 and size <= 256
        if fits and not kwargs.get("dropout") and uses_flash(query.device, dtype.itemsize < 4):
            return _flash(query, key, value, shared_prefixes, window, dtype, kwargs), None
        attend = _padded if query.device.type == "cuda" else _segments
        options = {name: kwargs.get(name) for name in ("dropout", "scaling")}
        return attend(module, query, key, value, shared_prefixes, window, options), None

    attention.shares_prefixes = True
    AttentionInterface.register(implementation, attention)


def uses_flash(device: torch.device, half: bool) -> bool:
    """FlashAttention computes in half precision on NVIDIA GPUs from Ampere on."""
    return half and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def backend(device: torch.device, half: bool) -> str:
    """What computes the attention of shared prefixes, for a line that says so."""
    if uses_flash(device, half):
        return "attention in one call of FlashAttention (varlen)"
    if device.type == "cuda":
        return "attention in one call of SDPA, branches padded"
    return "attention branch by branch (SDPA)"


def _bends(module: torch.nn.Module, options: dict) -> bool:
    """Whether a layer asks for what the plan does not know: more than a causal window, or, where
    its configuration calls it sliding, none."""
    window, kinds = options.get("sliding_window"), getattr(module.config, "layer_types", None)
    if any(options.get(name) is not None for name in BENDING):
        return True
    return bool(kinds) and (kinds[module.layer_idx] == "sliding_attention") != (window is not None)


def _segments(module, query, key, value, plan: SharedPrefixes, window, options) -> Tensor:
    """Attention branch by branch with SDPA: what wins on a CPU.

    Args:
        query: shape (1, heads, N, head size); key and value: (1, key heads, N, head size).

    Returns:
        Shape (1, N, heads, head size).
    """
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, columns = q.shape[2], k.shape[2]
        plain = rows == columns and (window is None or columns <= window)
        mask = None if plain else plan.mask(rows, columns, window, query.device)
        return sdpa(module, q, k, v, mask, **options)[0]

    # Split, not sliced: the gradient of a slice is as large as what it was cut from.
    sizes = [size for p, c, r in plan.lengths for size in (p + c, r)]
    parts = zip(*(states.split(sizes, dim=2) for states in (query, key, value)), strict=True)
    outputs = []
    for (prefix, _, rejected), own, other in zip(plan.lengths, parts, parts, strict=True):
        outputs.append(attend(*own))
        if not rejected:
            continue
        q, k, v = other
        q0, k0, v0 = (states[:, :, :prefix] for states in own)
        k, v = torch.cat([k0, k], dim=2), torch.cat([v0, v], dim=2)
        if rejected > prefix:
            # A causal square costs half of one with a mask: less than the rectangle, then.
            q = torch.cat([q0, q], dim=2)
        outputs.append(attend(q, k, v)[:, -rejected:])
    return torch.cat(outputs, dim=1)


def _padded(module, query, key, value, plan: SharedPrefixes, window, options) -> Tensor:
    """All branches in one call of SDPA, padded to the longest, for GPUs without FlashAttention:
    branch by branch they would start kernels for every pair and layer. Shapes as in `_segments`."""
    queries, keys, seen, back = plan.padded(window, query.device)

    def branches(states: Tensor, at: Tensor) -> Tensor:
        """(1, heads, N, head size) → (branches, heads, longest, head size)"""
        return states[0].index_select(1, at.flatten()).unflatten(1, at.shape).transpose(0, 1)

    sdpa, query = ALL_ATTENTION_FUNCTIONS["sdpa"], branches(query, queries)
    key, value = branches(key, keys), branches(value, keys)
    output = sdpa(module, query, key, value, seen, **options)[0]
    return output.flatten(0, 1).index_select(0, back)[None]


def _flash(query, key, value, plan: SharedPrefixes, window, dtype, kwargs) -> Tensor:
    """The same in one call of FlashAttention: its varlen form allows a branch more keys than
    queries, so keys and values are gathered branch by branch. Causal from the last key, so that
    a window is right by true positions. Shapes as in `_segments`."""
    output: Any = varlen_attn(
        query[0].transpose(0, 1).to(dtype),
        key[0].index_select(1, plan.visible).transpose(0, 1).to(dtype),
        value[0].index_select(1, plan.visible).transpose(0, 1).to(dtype),
        plan.queries,
        plan.keys,
        *plan.longest,
        scale=kwargs.get("scaling"),
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[None]
