"""Prefix sharing is exact: against the plain path, for many architectures, to rounding."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BloomConfig, Gemma2Config, MambaConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from dpo.prefix_sharing import attention
from dpo.prefix_sharing.backbone import OTHERWISE, obstacle, share_prefixes
from dpo.prefix_sharing.head import head_on_completions
from dpo.prefix_sharing.plan import SharedPrefixes
from support.stock import stock_head
from support.tiny import (
    ARCHITECTURES,
    EDGE_PAIRS,
    GRADIENTS,
    LOGPS,
    batch_of,
    random_model,
    scored,
    trainer_of,
    varlen_by_hand,
)


def assert_same(model, batch: dict) -> None:
    plain, plain_gradients = scored(model, batch, share=False)
    shared, shared_gradients = scored(model, batch, share=True)
    assert (plain.log_probs - shared.log_probs).abs().max() < LOGPS
    assert plain_gradients.keys() == shared_gradients.keys() and plain_gradients
    if plain.aux_loss is not None:
        assert abs(plain.aux_loss - shared.aux_loss) < 1e-6
    largest = max(gradient.norm() for gradient in plain_gradients.values())
    for name, gradient in plain_gradients.items():
        # A key's bias moves every logit of a query alike: its gradient is nothing but rounding.
        if gradient.norm() > 1e-5 * largest:
            difference = (gradient - shared_gradients[name]).norm() / gradient.norm()
            assert difference < GRADIENTS, name


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probabilities_and_gradients_are_those_of_the_plain_path(name, lora, checkpointing):
    model = random_model(name)
    add_fused_lm_head(model)
    share_prefixes(model)
    if lora:
        adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(model, adapter)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    assert_same(model, batch_of(EDGE_PAIRS))


@pytest.mark.parametrize("pair", EDGE_PAIRS, ids=range(len(EDGE_PAIRS)))
def test_a_batch_of_one_pair(pair):
    model = random_model("mistral")
    add_fused_lm_head(model)
    share_prefixes(model)
    assert_same(model, batch_of([pair]))


def test_rows_cut_at_the_start():
    """Then the two rows of a pair may have no prefix in common."""
    model = random_model("llama")
    add_fused_lm_head(model)
    share_prefixes(model)
    batch = batch_of(EDGE_PAIRS, truncation_mode="keep_end", pad_to_multiple_of=8)
    assert 0 in [prefix for prefix, _, _ in batch["shared_prefixes"].lengths]
    assert_same(model, batch)


def test_the_window_decides():
    """Or the tests above would pass with any window: without it these models say otherwise."""
    for name in ("mistral", "gemma3"):
        model = random_model(name)
        add_fused_lm_head(model)
        plain, _ = scored(model, batch_of(EDGE_PAIRS), share=False, backward=False)
        for module in model.modules():
            if hasattr(module, "sliding_window"):
                module.sliding_window = 1000
        model.config.sliding_window = 1000
        wide, _ = scored(model, batch_of(EDGE_PAIRS), share=False, backward=False)
        assert (plain.log_probs - wide.log_probs).abs().max() > 0.01, name


def test_no_token_is_computed_twice_and_none_is_padding():
    pairs = [([5, 6, 7], [8, 9], [8, 4, 3]), ([5], [6], [7, 8])]
    plan = batch_of(pairs)["shared_prefixes"]
    assert plan.lengths == [(4, 1, 2), (1, 1, 2)]
    ids = batch_of(pairs)["input_ids"].flatten()
    assert ids[plan.fold].tolist() == [5, 6, 7, 8, 9, 4, 3, 5, 6, 7, 8]
    assert plan.positions.tolist() == [[0, 1, 2, 3, 4, 4, 5, 0, 1, 1, 2]]
    mask = batch_of(pairs)["attention_mask"].flatten().bool()
    assert torch.equal(ids[plan.fold][plan.unfold][mask], ids[mask])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_handed_to_flash_attention_is_the_same_attention(name, monkeypatch):
    """FlashAttention itself needs a GPU; how keys are gathered and cut for it does not."""
    monkeypatch.setattr(attention, "uses_flash", lambda device, half: True)
    monkeypatch.setattr(attention, "varlen_attn", varlen_by_hand)
    model = random_model(name)
    add_fused_lm_head(model)
    share_prefixes(model)
    assert_same(model, batch_of(EDGE_PAIRS))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_branches_side_by_side_are_the_same_attention(name, monkeypatch):
    """The way of GPUs without FlashAttention for bfloat16; the CPU goes branch by branch."""
    monkeypatch.setattr(attention, "_segments", attention._padded)
    model = random_model(name)
    add_fused_lm_head(model)
    share_prefixes(model)
    assert_same(model, batch_of(EDGE_PAIRS))


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_the_head_on_completions_says_what_the_stock_head_says(name):
    model, batch = random_model(name), batch_of(EDGE_PAIRS)
    metrics = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")
    add_fused_lm_head(model, outputs=metrics)
    stock, stock_gradients = scored(model, batch, share=False)
    head_on_completions(torch.device("cpu"))
    ours, gradients = scored(model, batch, share=False)
    for field in metrics:
        torch.testing.assert_close(ours[field], stock[field], atol=1e-5, rtol=1e-5)
    for parameter, gradient in stock_gradients.items():
        torch.testing.assert_close(gradients[parameter], gradient, atol=1e-4, rtol=1e-4)


def test_a_copy_does_not_run_the_original():
    model = random_model("llama")
    share_prefixes(model)
    copied = copy.deepcopy(model)
    assert copied.base_model.forward.__self__ is copied.base_model


def test_without_a_plan_the_model_is_what_it_was():
    model, ids = random_model("llama").eval(), torch.arange(2, 20)[None]
    before = model(ids).logits
    share_prefixes(model)
    share_prefixes(model)
    assert torch.equal(model(ids).logits, before)
    generated = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert generated.shape == (1, 23)


TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=4), "position ids"),
        (MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1), "linear_attention"),
        (Gemma2Config(**TINY, head_dim=8), "eager"),
        (AutoConfig.for_model("qwen3_next", **TINY), "linear_attention"),
        (AutoConfig.for_model("llama4_text", **TINY), "chunked_attention"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_what_cannot_be_right_is_refused_with_the_reason(config, reason):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert reason in obstacle(model)
    with pytest.raises(ValueError, match=reason):
        share_prefixes(model)


def test_a_refused_model_trains_the_plain_way(tmp_path):
    trainer = trainer_of(tmp_path, "llama", fast=True, attn_implementation="eager")
    assert trainer.sharing == "off, since its attention is eager, and not sdpa"
    assert type(trainer.data_collator) is DataCollatorForPreference
    trainer.train()


@pytest.mark.parametrize("how", ["by itself", "with an option", "without its window"])
def test_a_model_that_attends_in_its_own_way_is_found_out(monkeypatch, how):
    """It would take the packed row for one sequence. It is computed as stock computes it."""
    model, batch = random_model("gemma3"), batch_of(EDGE_PAIRS)
    add_fused_lm_head(model)
    plain, gradients = scored(model, batch, share=False)
    share_prefixes(model)
    taught = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def bent(*args, **kwargs):
        return taught(*args, **kwargs, s_aux=torch.zeros(4))

    def forgetful(*args, **kwargs):
        return taught(*args, **(kwargs | {"sliding_window": None}))

    ways = {
        "by itself": sdpa_attention_forward,
        "with an option": bent,
        "without its window": forgetful,
    }
    monkeypatch.setitem(type(ALL_ATTENTION_FUNCTIONS)._global_mapping, "sdpa", ways[how])
    with pytest.warns(UserWarning, match="Gemma3TextModel: its layers attend otherwise"):
        shared, again = scored(model, batch, share=True)
    assert torch.equal(shared.log_probs, plain.log_probs)
    assert all(torch.equal(again[name], gradient) for name, gradient in gradients.items())
    assert obstacle(model) == OTHERWISE


def test_the_head_on_completions_is_undone():
    head_on_completions(torch.device("cpu"))
    assert trl_utils._use_triton is not chunked_logprob._use_triton
    stock_head()
    assert trl_utils._use_triton is chunked_logprob._use_triton


def test_transformers_hands_on_what_the_plan_needs(monkeypatch):
    # Masks of four dimensions pass through unchanged.
    config, given = random_model("gemma3").config, torch.ones(1, 1, 1, 1)
    for make in (create_causal_mask, create_sliding_window_causal_mask):
        made = make(config, torch.zeros(1, 3, 32), given, None, torch.arange(3)[None])
        assert made is given
    # Layers hand their window and our plan to the attention function.
    seen = []

    def watch(module, query, key, value, mask, **kwargs):
        kwargs["shared_prefixes"].attended += 1
        seen.append((kwargs.get("sliding_window"), kwargs["shared_prefixes"]))
        return torch.zeros_like(query).transpose(1, 2), None

    model, batch = random_model("gemma3"), batch_of(EDGE_PAIRS)
    share_prefixes(model)
    monkeypatch.setitem(type(ALL_ATTENTION_FUNCTIONS)._global_mapping, "sdpa", watch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "shared_prefixes")}
    model(**inputs)
    windows = [5 if kind == "sliding_attention" else None for kind in model.config.layer_types]
    assert [window for window, _ in seen] == windows
    assert all(isinstance(plan, SharedPrefixes) for _, plan in seen)
