"""A model that computes the prompt of a pair once for both completions, and no padding. Exact.

The backbone runs on the packed row of a plan (plan.py), and its hidden states are handed back in
TRL's layout, so that TRL's head, losses and metrics neither know nor care.

The hook is in two places, both idle unless a batch brings `shared_prefixes` along: the forward of
the model's backbone (`share_prefixes`), and transformers' table of attention functions
(attention.py).
"""

import inspect
import types
import warnings

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dpo.prefix_sharing.attention import IMPLEMENTATIONS, teach
from dpo.prefix_sharing.plan import SharedPrefixes

SHARED_LAYERS = {"full_attention", "sliding_attention"}
OTHERWISE = "its layers attend otherwise than through transformers' table of attention functions"


def obstacle(model: PreTrainedModel) -> str | None:
    """Why prefixes cannot be shared in `model`, in a few words; None when they can."""
    config, backbone = model.config, model.base_model
    if not getattr(backbone, "shares_prefixes", True):
        return OTHERWISE  # as a batch has shown
    if len({*getattr(model, "hf_device_map", {}).values()}) > 1:
        return "its layers lie on several devices"  # accelerate hands each a plan of its own
    if config.get_text_config() is not config:
        return "it has more than one modality"
    others = set(getattr(config, "layer_types", None) or ()) - SHARED_LAYERS
    if others:
        return f"it has layers of {', '.join(sorted(others))}"
    inputs = inspect.signature(type(backbone).forward).parameters
    if backbone is model or "position_ids" not in inputs:
        return "its backbone takes no position ids"
    if not getattr(backbone, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    if getattr(backbone, "_is_stateful", False) or getattr(config, "alibi", False):
        return "its layers carry a state or a position bias from token to token"
    looks_ahead = any(getattr(module, "is_causal", True) is False for module in backbone.modules())
    if looks_ahead or getattr(config, "use_bidirectional_attention", None):
        return "its attention looks ahead"
    if config._attn_implementation not in IMPLEMENTATIONS:
        return f"its attention is {config._attn_implementation}, and not sdpa"
    return None


def share_prefixes(model: PreTrainedModel) -> None:
    """Let `model` compute shared prefixes once wherever a batch brings `shared_prefixes` along.

    Without them its forward is what it was, and so it is with them once the model has been seen to
    attend otherwise than by the plan. Twice on the same model is the same as once.

    Raises:
        ValueError: the model cannot share prefixes; `obstacle` says why.
    """
    if reason := obstacle(model):
        raise ValueError(f"{type(model).__name__} cannot share prefixes: {reason}")
    teach(model.config._attn_implementation)
    model.base_model.shares_prefixes = True
    model.base_model.forward = types.MethodType(_forward, model.base_model)


def _forward(
    self: PreTrainedModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    shared_prefixes: SharedPrefixes | None = None,
    **kwargs,
):
    # By its class, not by the method that stood here before: deepcopy would keep the old model.
    forward = type(self).forward
    if shared_prefixes is None or not self.shares_prefixes:
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    rows, width = input_ids.shape
    # Four dimensions pass through transformers' mask functions unchanged; attention itself goes by
    # the plan. None would have them guess packed rows from the position ids.
    packed = {
        "input_ids": input_ids.flatten()[shared_prefixes.fold][None],
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device),
        "position_ids": shared_prefixes.positions,
        "shared_prefixes": shared_prefixes,
    }
    shared_prefixes.attended = 0
    outputs = forward(self, **(kwargs | packed))
    if shared_prefixes.attended < self.config.num_hidden_layers:
        # Its layers do not go by the plan, which no rule of `obstacle` foresaw.
        self.shares_prefixes = False
        warnings.warn(f"{type(self).__name__}: {OTHERWISE}: no prefixes are shared", stacklevel=2)
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    hidden = outputs.last_hidden_state[0]
    outputs.last_hidden_state = hidden.index_select(0, shared_prefixes.unfold).view(rows, width, -1)
    if getattr(outputs, "router_logits", None) is not None:
        outputs.router_logits = tuple(
            layer.index_select(0, shared_prefixes.unfold) for layer in outputs.router_logits
        )
    return outputs
