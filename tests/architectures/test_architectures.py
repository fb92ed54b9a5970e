"""Prefix sharing on every causal language model of the pinned transformers, made small."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from trl.trainer.utils import add_fused_lm_head

from dpo.prefix_sharing.backbone import obstacle, share_prefixes
from support.tiny import EDGE_PAIRS, LOGPS, batch_of, scored

# Sizes by every name that configurations have for them: small, and apart from each other.
SMALL = {
    **dict.fromkeys(("vocab_size", "padded_vocab_size"), 97),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "top_k"), 2),
    **dict.fromkeys(("moe_intermediate_size",), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("sliding_window",), 5),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0),
    **dict.fromkeys(("hidden_dropout", "dropout", "activation_dropout"), 0.0),
}


def small_model(kind: str):
    """A small random model of one of transformers' architectures."""
    known = AutoConfig.for_model(kind)
    sizes = {key: value for key, value in SMALL.items() if hasattr(known, key)}
    torch.manual_seed(0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    if sum(parameter.numel() for parameter in model.parameters()) > 2e7:
        raise ValueError("still large")
    model = AutoModelForCausalLM.from_config(model.config).float().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    add_fused_lm_head(model)
    return model


def test_every_architecture_of_transformers_is_exact_or_refused():
    batch = batch_of(EDGE_PAIRS)
    exact, wrong, refused, unknown = [], {}, {}, {}
    for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        try:
            model = small_model(kind)
            plain, _ = scored(model, batch, share=False, backward=False)
            assert plain.log_probs.isfinite().all(), "not finite"
        except Exception as error:  # these sizes do not suit it; as many errors as architectures
            unknown[kind] = type(error).__name__
            continue
        if reason := obstacle(model):
            refused[kind] = reason
            continue
        share_prefixes(model)
        shared, _ = scored(model, batch, share=True, backward=False)
        if reason := obstacle(model):  # found out by the batch
            refused[kind] = reason
        difference = (plain.log_probs - shared.log_probs).abs().max().item()
        if difference >= LOGPS:
            wrong[kind] = difference
        elif kind not in refused:
            exact.append(kind)
    print(f"\n{len(exact)} exact: {', '.join(exact)}")
    print(f"{len(refused)} refused: {', '.join(f'{k} ({v})' for k, v in refused.items())}")
    print(f"{len(unknown)} cannot be made small here: {', '.join(unknown)}")
    assert not wrong, "\n".join(f"{kind}: {what}" for kind, what in wrong.items())
    assert len(exact) > 50
