"""What a micro-batch keeps, counted without data, is what autograd keeps with them."""

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig

from dpo.plan.arithmetic import counted
from dpo.plan.arithmetic.counted import How, kept, run
from support.autograd import saved

SIZES = {"vocab_size": 97, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 5}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
FAMILIES = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 64},
    "gemma3_text": {"sliding_window": 64},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}
FEW = {"num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1}
SHORT = ((100, 90, 66), (40, 20, 88))


def config_of(family: str, **changes):
    return AutoConfig.for_model(family, **(SIZES | FAMILIES[family] | changes))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "again"])
@pytest.mark.parametrize("shared", [False, True], ids=["plain", "shared"])
def test_activations_are_those_that_autograd_keeps(family, checkpointing, shared):
    config = config_of(family)
    for how in (
        How(torch.float32, False, checkpointing, shared, False),
        How(torch.float32, True, checkpointing, shared, False),
        How(torch.bfloat16, False, checkpointing, shared, False),
    ):
        found = kept(config, SHORT, how).saved
        assert found == pytest.approx(saved(config, SHORT, how), rel=0.1), how


GRID = [(256, 1), (256, 16), (1024, 2), (1024, 8), (2048, 2), (4096, 1), (8192, 1)]


@pytest.mark.parametrize(("length", "pairs"), GRID)
def test_they_are_so_at_any_length(length, pairs):
    """Of rows of so many tokens, half of them the prompt's."""
    config = config_of("llama", hidden_size=32, intermediate_size=64, head_dim=8, **FEW)
    batch = ((length // 2, length // 2, length // 4),) * pairs
    # Rows that are padded have a mask of length × length, which takes 67 MB at 8,192.
    for checkpointing, shared in ((False, True), (True, True), (False, False), (True, False)):
        if shared or length <= 4096:
            how = How(torch.float32, False, checkpointing, shared, False)
            found = kept(config, batch, how).saved
            assert found == pytest.approx(saved(config, batch, how), rel=0.1), how


@pytest.mark.parametrize("checkpointing", [False, True])
def test_of_many_pairs_some_are_counted_and_all_told(checkpointing):
    """As many as a CPU attends to in more operations than are gone through, unlike ones in it."""
    config = config_of("llama", hidden_size=32, intermediate_size=64, head_dim=8, **FEW)
    batch = tuple((20 + n % 7, 10 + n % 5, 12 + n % 3) for n in range(100))
    how = How(torch.float32, False, checkpointing, True, False)
    assert kept(config, batch, how).saved == pytest.approx(saved(config, batch, how), rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_keeps_less(checkpointing):
    config = config_of("llama")
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    how = How(torch.bfloat16, False, checkpointing, True, False, adapter=lora)
    assert kept(config, SHORT, how).saved == pytest.approx(saved(config, SHORT, how), rel=0.1)


def test_what_two_plans_share_is_counted_once(monkeypatch):
    """And what differs in the model or in the adapter is not shared."""
    runs = []
    monkeypatch.setattr(counted, "run", lambda *given: runs.append(given) or run(*given))

    def found(hidden_size: int, r: int):
        lora = LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM")
        how = How(torch.float32, False, False, True, False, adapter=lora)
        config = config_of("llama", hidden_size=hidden_size, head_dim=8, **FEW)
        return kept(config, SHORT, how), len(runs)

    (first, once), (again, still) = found(48, 4), found(48, 4)
    assert first == again and once == still == 2
    for each, (other, now) in enumerate((found(48, 8), found(64, 4)), 2):
        assert other.saved > first.saved and now == 2 * each


def test_the_way_of_a_gpu_keeps_less_than_that_of_a_cpu():
    """FlashAttention keeps no mask, and branches are not cut apart."""
    config = config_of("llama")
    here, there = (
        run(config, SHORT, How(torch.bfloat16, False, False, True, gpu)) for gpu in (0, 1)
    )
    assert there[0] < here[0]
