"""An answer ends where the model was trained to end it, whoever samples it and with what."""

import itertools
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from dpo.data.dataset import prepare
from dpo.data.sources.load import load_rows
from dpo.evaluation.contestants import find
from dpo.evaluation.generations import Settings, draw
from dpo.models import adapters, chat_template
from dpo.models.chat_template import load_tokenizer
from dpo.models.sampling import sample, sample_completions
from dpo.recipe.parse import parse
from dpo.training.build import make_trainer
from dpo.training.monitoring.drift import Drift
from support.commands import once, run_flags
from support.tiny import random_model

CHATML = "".join(
    (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}END",
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
)
# name: (the tokenizer's end token, what its template ends a turn with, what ends an answer)
MEMBERS = {
    "one token": ("<|im_end|>", "<|im_end|>\n", ["<|im_end|>"]),
    "as Qwen's base": ("<|endoftext|>", "<|im_end|>\n", ["<|endoftext|>", "<|im_end|>"]),
    "as Gemma": ("<|endoftext|>", "<end_of_turn>\n\n ", ["<|endoftext|>", "<end_of_turn>"]),
    "no blank": ("<|endoftext|>", "<|im_end|>", ["<|endoftext|>", "<|im_end|>"]),
    "two tokens": ("<|endoftext|>", "<|im_end|>\n<|endoftext|>", ["<|endoftext|>"]),
    "no special one": ("<|endoftext|>", " That is all.\n", ["<|endoftext|>"]),
}
ASKED = [[{"role": "user", "content": "Which colour?"}]]


def tokenizer_of(folder, end: str, turn: str):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    tokenizer.eos_token, tokenizer.chat_template = end, CHATML.replace("END", turn)
    return tokenizer


@pytest.mark.parametrize("name", MEMBERS)
def test_the_ends_of_an_answer(name, tiny_model):
    end, turn, expected = MEMBERS[name]
    tokenizer = tokenizer_of(tiny_model, end, turn)
    ids = tokenizer.convert_tokens_to_ids(expected)
    alone = [tokenizer.convert_tokens_to_ids(end)]
    assert sorted(chat_template.end_tokens(None, tokenizer)) == sorted(ids)
    assert (
        chat_template.end_tokens(None, tokenizer, str) == alone
    )  # the template is nothing to plain text
    own = GenerationConfig(eos_token_id=[7, 8, 9])  # what the model brings stays, and comes first
    assert chat_template.end_tokens(own, tokenizer)[:3] == [7, 8, 9] and {*ids} < {
        *chat_template.end_tokens(own, tokenizer)
    }
    tokenizer.chat_template = None
    assert chat_template.end_tokens(None, tokenizer) == alone


def chained(folder, tokenizer, *words: str):
    """A model that says one word after the other, and then begins anew, whatever is asked."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    chain = tokenizer.convert_tokens_to_ids([*words])
    head = torch.nn.Linear(32, len(tokenizer), bias=False)
    with torch.no_grad():
        for layer in model.model.layers:  # what goes in comes out
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding = model.model.embed_tokens.weight
        embedding[:] = torch.eye(32)[0]
        head.weight.zero_()
        head.weight[chain[0]] = torch.eye(32)[0]
        for place, (token, after) in enumerate(itertools.pairwise(chain), start=1):
            embedding[token] = torch.eye(32)[place]
            head.weight[after] += torch.eye(32)[place]
    model.config.tie_word_embeddings = False
    model.lm_head = head
    return model, chain


@pytest.mark.parametrize("own", [0, [0, 5]])
def test_no_invented_turn_follows_an_answer(own, tiny_model):
    """Qwen's base and Gemma have an end token that no turn ends with: beyond the turn's end the
    model would go on."""
    tokenizer = tokenizer_of(tiny_model, "<|endoftext|>", "<|im_end|>\n")
    model, chain = chained(tiny_model, tokenizer, "red", "<|im_end|>", "Ċ")
    model.generation_config.eos_token_id = own
    how = {"temperature": 0, "max_new_tokens": 9, "seed": 0}
    ((answer,),) = sample_completions(model, tokenizer, ASKED, samples=1, **how)
    assert answer.token_ids == chain[:2] and answer.finished and answer.text == "red"
    # In plain text only the end token is an end, and this model never says it.
    ((answer,),) = sample_completions(model, tokenizer, ["The sky is"], samples=1, **how)
    assert answer.token_ids == chain * 3 and not answer.finished
    (answer,) = sample(model, tokenizer, [[5, 6]], kind=str, **how)
    assert not answer.finished
    model.generation_config.eos_token_id = [0, chain[2]]  # but what the model brings ends it
    (answer,) = sample(model, tokenizer, [[5, 6]], kind=str, **how)
    assert answer.token_ids == chain[:3] and answer.finished


def test_kept_answers_end_there_too(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("dpo.evaluation.generations.KEPT", tmp_path / "answers")
    tokenizer = tokenizer_of(tiny_model, "<|endoftext|>", "<|im_end|>\n")
    model, chain = chained(tiny_model, tokenizer, "red", "<|im_end|>", "Ċ")
    model.generation_config.eos_token_id = 0
    settings = Settings(samples=1, temperature=0, max_new_tokens=6, seed=0)
    who = find(str(tiny_model))
    ((answer,),) = draw(who, model, tokenizer, ASKED, settings)
    assert answer.token_ids == chain[:2] and answer.finished
    tokenizer.chat_template = CHATML.replace("END", "<|endoftext|>")
    ((answer,),) = draw(who, model, tokenizer, ASKED, settings)  # another end, another answer
    assert not answer.finished


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_what_is_saved_ends_answers_where_training_did(lora, tiny_model, tiny_data, tmp_path):
    """The policy, a checkpoint and a merged adapter, for whoever generates with them; and the
    drift that is measured as it trains."""
    base = tmp_path / "base"
    tokenizer = tokenizer_of(tiny_model, "<|endoftext|>", "<|im_end|>\n")
    model, chain = chained(tiny_model, tokenizer, "red", "<|im_end|>", "Ċ")
    model.generation_config.eos_token_id = [0, 5]
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    flags = [*run_flags(base, tiny_data, tmp_path / "run"), "--use_cpu", "--bf16=false"]
    flags += ["--max_steps=1", "--save_steps=1", "--eval_steps=1", "--report_to=none"]
    flags += ["--use_peft", "--lora_r=2"] if lora else []
    recipe = parse(["--config", "recipes/smollm2-sentiment.yaml", *once(flags)])
    tokenizer = load_tokenizer(recipe)
    linted = prepare(recipe, load_rows(recipe), tokenizer)
    trainer = make_trainer(recipe, tokenizer, linted["train"].pairs, linted["held-out"].pairs)
    prompts = linted["held-out"].pairs["prompt_ids"][:2]
    assert Drift(trainer).answers(prompts, temperature=0) == [chain[:2]] * 2
    trainer.train()
    trainer.save_model()
    folders = [tmp_path / "run", tmp_path / "run/checkpoint-1"]
    folders += [adapters.merge(tmp_path / "run", tokenizer)] if lora else []
    for folder in folders:
        saved = json.loads((folder / "generation_config.json").read_text())
        assert saved["eos_token_id"] == [0, 5, 2]
    policy = AutoModelForCausalLM.from_pretrained(folders[-1], dtype=torch.float32)
    ids = torch.tensor([linted["held-out"].pairs[0]["prompt_ids"]])
    answer = policy.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
    assert answer == chain[:2]  # as any pipeline has it, without a word about ends


def test_a_config_that_knows_its_end_is_left_as_it_is(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = model.generation_config.to_dict()
    chat_template.remember_end_tokens(model, tokenizer, list)
    assert model.generation_config.to_dict() == before and before["eos_token_id"] == 2


def test_a_template_that_takes_no_bare_question_has_the_tokenizers_end(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    )
    assert chat_template.end_tokens(None, tokenizer) == [tokenizer.eos_token_id]


# As models are published: values that `generate` ignores, which transformers saves unchanged alone.
IGNORED = {
    "Vicuna": {"temperature": 0.9, "top_p": 0.6, "do_sample": False},
    "Llama 2": {"temperature": 0.6, "top_p": 0.9},
    "beams": {"early_stopping": True, "length_penalty": 2.0, "num_beams": 1},
    "flags": {"return_dict_in_generate": False, "output_scores": True},
    "two kinds": {"top_k": 20, "typical_p": 0.5, "length_penalty": 0.5, "pad_token_id": -1},
}


@pytest.mark.parametrize("what", IGNORED)
def test_a_changed_config_is_saved_without_what_is_ignored(what, tiny_model, tmp_path):
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), random_model("llama")
    published = {"eos_token_id": 5, "max_length": 50, **IGNORED[what]}
    (tmp_path / "generation_config.json").write_text(json.dumps(published))
    model.generation_config = GenerationConfig.from_pretrained(tmp_path)
    chat_template.remember_end_tokens(model, tokenizer, list)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [5, 2] and saved["max_length"] == 50
    assert not {"temperature", "top_p", "length_penalty"} & {*saved}


def test_a_changed_config_that_samples_goes_on_doing_so(tiny_model, tmp_path):
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), random_model("llama")
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.7, eos_token_id=5)
    chat_template.remember_end_tokens(model, tokenizer, list)
    model.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).temperature == 0.7
