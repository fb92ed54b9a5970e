"""FLOPs are those that torch counts, and what is not known is not claimed."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dpo.models import flops

SIZES = {
    **{"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
FEW = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "output_router_logits": False}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8}
ALONE = {"n_routed_experts": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
KINDS = {
    "llama": {},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 24},
    "gemma2": {"head_dim": 24, "sliding_window": 16},
    "gpt2": {},
    "gpt_neox": {},
    "olmo2": {},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 8, **FEW},
    "qwen2_moe": {"num_experts": 8, "shared_expert_intermediate_size": 48, **FEW},
    "olmoe": {"num_experts": 8, **FEW},
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 16},
    "deepseek_v3": FEW | LATENT | ALONE | {"v_head_dim": 20, "num_key_value_heads": 4},
}
TOKENS = 96


def small(kind: str, device: str = "cpu", **settings) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **(SIZES | KINDS.get(kind, {}) | settings))
    # Experts one after another, and attention by products: what torch counts.
    config._experts_implementation = "eager"
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def counted(model: PreTrainedModel) -> float:
    """What torch counts of forward and backward over one row, all of it scored."""
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(TOKENS)[None], use_cache=False).logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_that_torch_counts(kind):
    found = flops.pass_over(small(kind, "meta"), TOKENS, TOKENS, lambda window: TOKENS**2)
    assert found.training == pytest.approx(counted(small(kind)), rel=0.02)
    assert flops.counts_all(small(kind, "meta"))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weights_that_are_frozen_beside_an_adapter_have_no_gradient_counted(kind):
    layers = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}[kind]
    adapter = LoraConfig(r=4, target_modules=layers, fan_in_fan_out=kind == "gpt2")
    model, abstract = small(kind), small(kind, "meta")
    get_peft_model(model, adapter)
    get_peft_model(abstract, adapter)
    model.enable_input_require_grads()  # or the first layer's input would need none
    found = flops.pass_over(abstract, TOKENS, TOKENS, lambda window: TOKENS**2)
    assert found.training == pytest.approx(counted(model), rel=0.02)


def test_a_window_bounds_the_keys_of_its_layers():
    pair = np.array([[40, 30, 20]])
    wide, narrow = (
        flops.over_pairs(small("gemma2", "meta", sliding_window=window), pair).backbone
        for window in (1000, 16)
    )
    # Half of the layers; prompt + chosen is 70 tokens, prompt + rejected 60, the prompt 40 of both.
    keys = (70**2 + 60**2 - 40**2 - ((70**2 - 54**2) + (60**2 - 44**2) - (40**2 - 24**2))) / 2
    assert wide - narrow == 2 * 4 * 4 * 24 * keys


def test_what_is_multiplied_in_other_ways_is_not_claimed_to_be_counted():
    for kind in ("lfm2", "qwen3_next", "mamba", "jamba"):
        more = {"layer_types": ["conv", "full_attention"] * 2} if kind == "lfm2" else {}
        assert not flops.counts_all(small(kind, "meta", **more)), kind
    model = small("llama", "meta")
    model.model.layers[0].mlp.experts = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    assert not flops.counts_all(model)  # one by one: which of them a token meets is not known
