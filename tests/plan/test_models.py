"""Which models are planned: those that make train takes, and what is said of all others."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

from dpo.core.refusal import Refusal
from dpo.models import flops, model_files
from dpo.plan.arithmetic import counted
from dpo.plan.arithmetic.bounds import FEW, bound, each_token
from dpo.plan.arithmetic.counted import How, TooLong, kept
from dpo.plan.ask import Asked
from dpo.plan.cards import card
from dpo.plan.options import Planned
from support.autograd import saved
from support.planned import told

TEXT = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
STATE = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 4, "state_size": 8}
EYES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WITH_EYES = {"text_config": TEXT | {"hidden_size": 256}, "vision_config": EYES}
LOOPS = {
    "mamba": STATE,
    "rwkv": {**STATE, "attention_hidden_size": 64},
    "jamba": {**TEXT, "num_experts": 2, "mamba_d_state": 8, "use_mamba_kernels": False},
    "recurrent_gemma": {**TEXT, "lru_width": 64},
}
PLAIN = How(torch.float32, False, False, False, False)
LONG = ((150, 100, 90), (60, 150, 140))


def planned(folder: Path) -> Planned:
    flags = ("--model_name_or_path", str(folder))
    return Asked("zephyr-7b-ultrafeedback", flags, 8, 1, card("H100-80GB")).planned()


@pytest.mark.parametrize(
    ("kind", "sizes", "said"),
    [
        ("bert", {}, "is a BertLMHeadModel, an encoder, which sees"),
        ("roberta", {"architectures": ["RobertaForMaskedLM"]}, "a model that fills in masked"),
        ("bart", {}, "is a BartForCausalLM, an encoder-decoder: a causal language model"),
        ("t5", {}, "an encoder-decoder"),
        ("llava", {}, "is a llava, a model of more than text"),
        ("qwen2_vl", {}, "a model of more than text"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "a classifier"),
    ],
)
def test_what_make_train_cannot_train_is_not_planned(kind, sizes, said, tmp_path):
    AutoConfig.for_model(kind, **sizes).save_pretrained(tmp_path)
    with pytest.raises(Refusal, match=said):
        planned(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.setdefault("architectures", [CAUSAL.get(kind, f"{kind}ForConditionalGeneration")])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refusal, match=said.partition("is a llava, ")[2] or said):
        model_files.check_config(str(tmp_path))  # as training does


def test_a_decoder_of_an_encoders_family_is_planned(tmp_path):
    AutoConfig.for_model("bert", is_decoder=True).save_pretrained(tmp_path)
    assert planned(tmp_path).note is None


def test_of_a_model_with_code_of_its_own_the_line_names_our_flag(tmp_path):
    about = {"model_type": "their_own", "auto_map": {"AutoConfig": "configuration_their.Their"}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(Refusal, match=r"code of its own \(configuration_their\.py\).*: true") as no:
        planned(tmp_path)
    assert "trust_remote_code: true" in str(no.value) and "hf.co" not in str(no.value)


def test_a_model_must_be_named():
    asked = Asked("zephyr-7b-ultrafeedback", ("--model_name_or_path", ""), 8, 1, card("H100-80GB"))
    with pytest.raises(Refusal, match="no model is named: give its model_name_or_path"):
        asked.planned()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_of_a_model_of_more_than_text_that_trains_the_text_is_counted(checkpointing):
    config = AutoConfig.for_model("gemma3", **WITH_EYES)
    how = How(torch.float32, False, checkpointing, False, False)
    assert kept(config, LONG, how).saved == pytest.approx(saved(config, LONG, how), rel=0.1)


@pytest.mark.parametrize("kind", LOOPS)
def test_a_loop_over_tokens_is_not_counted_for_minutes_but_bounded(kind):
    config = AutoConfig.for_model(kind, **LOOPS[kind])
    short = ((FEW // 2,) * 3,)
    each = each_token(config, PLAIN)
    for pairs in (short, LONG):
        found, most = saved(config, pairs, PLAIN), bound(config, pairs, PLAIN, each).saved
        assert found <= most <= 4 * found, (found, most)


def test_a_loop_over_tokens_is_left_soon(monkeypatch):
    tallies = []
    monkeypatch.setattr(
        counted, "Tally", lambda made=counted.Tally: tallies.append(made()) or tallies[-1]
    )
    with pytest.raises(TooLong):
        kept(AutoConfig.for_model("mamba", **STATE), LONG, PLAIN)
    assert len(tallies) == 1 and tallies[0].done < 1.1 * counted.MOST


def test_of_a_state_space_model_there_are_parameters_flops_and_a_bound(tmp_path):
    AutoConfig.for_model("mamba", **STATE).save_pretrained(tmp_path)
    words = ["--recipe", "zephyr-7b-ultrafeedback", "--", f"--model_name_or_path={tmp_path}"]
    result = told(*words)
    assert result.returncode == 0 and not result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("model"))
    assert "FLOPs are of weights alone" in line and "activations are a bound" in line
    plan = planned(tmp_path)
    parts = [part for part in plan.model.backbone.modules() if isinstance(part, torch.nn.Linear)]
    weights = sum(part.weight.numel() for part in parts)
    spent = flops.pass_over(plan.model, 1000, 0, lambda window: 0).training
    assert spent == pytest.approx(6 * weights * 1000, rel=0.02)


@pytest.mark.parametrize(("kind", "attend"), [("jamba", 1), ("gemma4_text", 4)])
def test_layers_attend_each_in_its_own_way(kind, attend):
    sizes = TEXT | ({"num_experts": 2, "attn_layer_offset": 3} if kind == "jamba" else {})
    model = counted.without_weights(AutoConfig.for_model(kind, **sizes))
    assert len(flops.windows(model)) == attend
    flat = flops.pass_over(model, 0, 0, lambda window: 10).backbone
    assert flat == 2 * 10 * sum(numbers for _, numbers in flops.attentions(model)) > 0
