"""What autograd keeps of a model's forward pass, for tests of what plans count."""

import torch
from peft import get_peft_model
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from dpo.plan.arithmetic.counted import How, batch_of
from dpo.prefix_sharing import backbone
from dpo.prefix_sharing.plan import SharedPrefixes


def saved(config, pairs, how: How) -> int:
    """Bytes that autograd keeps of a forward pass with data, weights left out."""
    model = AutoModelForCausalLM.from_config(config, dtype=how.dtype)
    if how.adapter:
        get_peft_model(model, how.adapter)
    model.train()
    if how.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if how.adapter:
            model.enable_input_require_grads()
    ids, mask = batch_of(pairs)
    given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if how.shared:
        backbone.share_prefixes(model)
        given["shared_prefixes"] = SharedPrefixes.of(ids, mask)
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    found = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            found[storage._cdata] = storage
        return tensor

    def held(layer, args, kwargs):  # for the backward pass, whatever autograd does
        for each in tree_leaves(kwargs):
            if isinstance(each, torch.Tensor):
                keep(each)

    for layer in model.modules():
        if how.checkpointing and isinstance(layer, GradientCheckpointingLayer):
            layer.register_forward_pre_hook(held, with_kwargs=True)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=how.autocast):
        hidden = model.base_model(**given).last_hidden_state
    keep(hidden)
    for mask in given["shared_prefixes"].masks.values() if how.shared else ():
        keep(mask)  # which the batch holds, whatever autograd does
    return sum(storage.nbytes() for storage in found.values())
