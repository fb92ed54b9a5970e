"""Any run or model against another: answers, pairs, counts and their page."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from datasets import ClassLabel, Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dpo.core.refusal import Refusal
from dpo.data.fits import check_room
from dpo.evaluation import benchmarks, contestants, generations, measure, pairs, prompts
from dpo.evaluation.command import prices
from dpo.evaluation.contestants import Contestant, find, reference_of
from dpo.models import scoring
from dpo.models.sampling import Completion, prompt_token_ids
from dpo.recipe.parse import parse
from dpo.reports import evaluation_page
from support.browser import PHONE, fits, opened, pictures
from support.models import other_model

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hi", "How was the walk?", "And you?")]
SETTINGS = generations.Settings(samples=2, temperature=0.7, max_new_tokens=6, seed=1)


@pytest.fixture
def kept_here(monkeypatch, tmp_path):
    monkeypatch.setattr(generations, "KEPT", tmp_path / "kept")


def test_two_equal_models_say_the_same_and_are_no_nat_apart(tiny_model, kept_here, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "copy")
    first, second = find(str(tiny_model)), find(str(tmp_path / "copy"))
    found = measure.measure(first, second, second, PROMPTS, None, SETTINGS, "cpu")
    assert found.policy == found.against and found.pairs is None
    assert found.kl["nats_per_sequence"] == {"mean": 0, "low": 0, "high": 0}


def test_answers_are_drawn_once_for_equal_weights_alone(tiny_model, kept_here, tmp_path, capsys):
    """Found by content: the same weights in another folder, not other weights in the same one, nor
    what was drawn among other answers, with other random numbers."""

    def draw(folder, at_once: int | None = None) -> list:
        who = find(str(folder))
        model, tokenizer = who.load("cpu"), who.tokenizer()
        return generations.draw(who, model, tokenizer, PROMPTS, SETTINGS, at_once=at_once)

    shutil.copytree(tiny_model, tmp_path / "copy")
    first = draw(tiny_model)
    assert "found" not in capsys.readouterr().out
    assert draw(tmp_path / "copy") == first
    assert "6 of 6 found, not generated again" in capsys.readouterr().out
    assert draw(tiny_model, at_once=2) != first
    other_model(tiny_model, tmp_path / "copy")
    assert draw(tmp_path / "copy") != first
    assert "found" not in capsys.readouterr().out


def test_models_of_the_hub_are_told_apart_by_their_commit(monkeypatch):
    """An adapter there has no config.json; what it stands on counts too."""
    commits = {"me/one": "1" * 40, "me/two": "2" * 40, "me/base": "3" * 40}
    files = {"me/one": "adapter_config.json", "me/two": "adapter_config.json"}
    base = SimpleNamespace(base_model_name_or_path="me/base", revision=None)

    def cached(name, file, revision):
        there = file == files.get(name, "config.json")
        return f"models--x/snapshots/{commits[name]}/{file}" if there else None

    monkeypatch.setattr(contestants, "cached_file", cached)
    monkeypatch.setattr(contestants.adapters, "config_of", lambda name, _: files.get(name) and base)
    digests = {Contestant(name, name).digest() for name in commits}
    commits["me/base"] = "4" * 40
    digests |= {Contestant(name, name).digest() for name in commits}
    assert len(digests) == 6


def test_a_reference_is_asked_as_its_policy_is(tiny_model, tmp_path):
    """With the template that the recipe names; padded, if it has no token for that, as TRL does."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = tokenizer.pad_token = None
    shutil.copytree(tiny_model, tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "base/chat_template.jinja").unlink(missing_ok=True)
    flags = [f"--model_name_or_path={tmp_path / 'base'}", "--chat_template_path=qwen2_5"]
    asked = reference_of(
        parse(["--config", "recipes/smollm2-sentiment.yaml", "--use_cpu", *flags])
    ).tokenizer()
    assert "Alibaba" in asked.chat_template and asked.pad_token == asked.eos_token
    alone = find(str(tmp_path / "base")).tokenizer()
    assert alone.chat_template is None and alone.pad_token == alone.eos_token


def test_after_a_kill_only_what_is_missing_is_generated(tiny_model, kept_here, monkeypatch):
    """One batch is kept whole, the next one was cut off in the middle of a line."""
    monkeypatch.setattr(generations, "BATCH", 2)
    who = find(str(tiny_model))
    model, tokenizer = who.load("cpu"), who.tokenizer()
    whole = generations.draw(who, model, tokenizer, PROMPTS, SETTINGS)
    (path,) = generations.KEPT.iterdir()
    lines = [line for line in path.read_text().splitlines() if line]
    path.write_text("\n".join(["", *lines[:2], lines[2][:20]]))
    asked = []
    sample = generations.sample
    monkeypatch.setattr(
        generations, "sample", lambda *given, **how: asked.append(given[2]) or sample(*given, **how)
    )
    assert generations.draw(who, model, tokenizer, PROMPTS, SETTINGS) == whole
    assert [len(rows) for rows in asked] == [2, 2]
    assert generations.read(path, 6, 2).keys() == set(range(6))


def test_as_many_are_drawn_at_a_time_as_were_asked_for(tiny_model, kept_here, monkeypatch):
    who = find(str(tiny_model))
    model, sizes = who.load("cpu"), []
    generate = model.generate
    monkeypatch.setattr(
        model, "generate", lambda **how: sizes.append(len(how["input_ids"])) or generate(**how)
    )
    many = replace(SETTINGS, samples=100, max_new_tokens=1)
    generations.draw(who, model, who.tokenizer(), PROMPTS, many, at_once=300)
    assert sizes == [300]


def test_fewer_are_drawn_at_a_time_where_memory_runs_out(tiny_model, kept_here, monkeypatch):
    sizes = []

    def short_of_memory(model, tokenizer, rows, **how):
        sizes.append(len(rows))
        if len(rows) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [Completion("a", [1], True)] * len(rows)

    monkeypatch.setattr(generations, "sample", short_of_memory)
    who = find(str(tiny_model))
    many = replace(SETTINGS, samples=20)
    drawn = generations.draw(who, who.load("cpu"), who.tokenizer(), PROMPTS, many)
    assert [len(row) for row in drawn] == [20, 20, 20]
    first = next(at for at, size in enumerate(sizes) if size <= 16)
    assert sizes[0] == 60 and max(sizes[first:]) <= 16  # too many are not tried again


def test_the_kl_of_an_evaluation_is_that_of_its_answers(tiny_model, kept_here, tmp_path):
    policy = find(str(other_model(tiny_model, tmp_path / "other")))
    reference = find(str(tiny_model))
    found = measure.measure(policy, reference, reference, PROMPTS, None, SETTINGS, "cpu")
    tokenizer, models = policy.tokenizer(), (policy.load("cpu"), reference.load("cpu"))
    nats = []
    for prompt, row in zip(PROMPTS, found.policy, strict=True):
        ids = prompt_token_ids(tokenizer, prompt)
        for answer in row:
            rows = torch.tensor([ids + answer.token_ids])
            with torch.no_grad():
                p, q = ((m(rows).logits[0] / 0.7).log_softmax(-1) for m in models)
            at = torch.arange(len(ids) - 1, rows.shape[1] - 1)
            nats.append((p - q)[at, rows[0, at + 1]].sum().item())
    assert found.kl["nats_per_sequence"]["mean"] == pytest.approx(np.mean(nats), abs=1e-4)
    tokens = sum(len(answer.token_ids) for row in found.policy for answer in row)
    assert found.kl["nats_per_token"]["mean"] == pytest.approx(sum(nats) / tokens, abs=1e-5)
    assert np.mean(nats) > 0.1


def test_a_model_that_does_not_chat_is_asked_in_plain_text(tiny_model, kept_here, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / "chat_template.jinja").unlink()
    base, chat = find(str(base)), find(str(tiny_model))
    tokenizer = base.tokenizer()
    assert prompt_token_ids(tokenizer, PROMPTS[1]) == tokenizer("How was the walk?")["input_ids"]
    found = measure.measure(chat, base, base, PROMPTS, None, SETTINGS, "cpu")
    assert found.policy != found.against  # they were asked otherwise, and have equal weights
    assert found.kl["nats_per_sequence"]["mean"] == 0
    prompts.check(PROMPTS, base)
    prompts.check([PROMPTS[0] * 3], chat)
    with pytest.raises(SystemExit, match="has no chat template, and prompts have up to 3 turns"):
        prompts.check([PROMPTS[0] * 3], base)


def test_greedy_answers_have_no_kl(tiny_model, kept_here):
    who = find(str(tiny_model))
    greedy = replace(SETTINGS, temperature=0)
    found = measure.measure(who, who, who, PROMPTS, None, greedy, "cpu")
    assert found.kl is None
    assert all(first == second for first, second in found.policy)


def test_pairs_share_their_prompt_and_score_the_same(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    prompts = [list(range(5, 5 + n)) for n in (9, 3, 20)]
    chosen = [(ids, list(range(40, 40 + n))) for ids, n in zip(prompts, (4, 9, 2), strict=True)]
    rejected = [(ids, list(range(60, 60 + n))) for ids, n in zip(prompts, (7, 1, 5), strict=True)]
    rows = [*chosen, *rejected] * 5
    rows = rows[::6] + rows[1::6] + rows[2::6] + rows[3::6] + rows[4::6] + rows[5::6]
    alone = scoring.score(model, rows, 2)
    assert scoring.score(model, rows, 2, pairs=True) == pytest.approx(alone, abs=1e-4)
    # Spread over GPUs, accelerate's hooks copy what they pass on; then prompts are not shared.
    for layer in model.model.layers:
        add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu"))
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    assert scoring.score(model, rows, 2, pairs=True) == pytest.approx(alone, abs=1e-4)


def test_pairs_are_told_apart_by_length_and_by_category():
    held_out = Dataset.from_dict(
        {
            "chosen_ids": [[1] * n for n in (20, 10, 5, 20)],
            "rejected_ids": [[1] * n for n in (5, 10, 20, 5)],
            "topic": ["tea", "tea", "rain", "rain"],
            "text": [f"all {n} differ, so none is a category" for n in range(4)],
            "score": [0.1, 0.2, 0.1, 0.2],
            "label": [1, 0, None, 0],
            "hard": [True, None, False, False],
        }
    ).cast_column("label", ClassLabel(names=["sad", "glad"]))
    found = pairs.by_group(np.array([1.0, -1.0, -1.0, 1.0]), held_out)
    assert found["count"] == 4 and found["accuracy"]["mean"] == 0.5
    lengths = {
        part["name"]: (part["count"], part["accuracy"]["mean"]) for part in found["by_length"]
    }
    assert lengths == {
        "chosen is longer": (2, 1.0),
        "about equal": (1, 0.0),
        "chosen is shorter": (1, 0.0),
    }
    assert "score" not in found["by_category"]
    topics = {p["name"]: p["accuracy"]["mean"] for p in found["by_category"]["topic"]}
    assert topics == {"rain": 0.5, "tea": 0.5}
    counts = {
        column: {part["name"]: part["count"] for part in found["by_category"][column]}
        for column in ("label", "hard")
    }
    assert counts["label"] == {"sad": 2, "glad": 1, "none": 1}
    assert counts["hard"] == {"False": 2, "True": 1, "none": 1}


def test_pairs_of_one_prompt_count_together():
    """Ten prompts of which the policy knows six, with one pair each and with twenty."""
    margins = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0])

    def found(each: int) -> dict:
        rows = {"chosen_ids": [[1]], "rejected_ids": [[1]], "topic": ["tea"], "prompt_digest": [7]}
        rows = {name: values * 10 * each for name, values in rows.items()}
        rows["prompt_digest"] = [-(n // each) for n in range(10 * each)]
        rows["topic"] = ["tea" if n // each % 2 else "rain" for n in range(10 * each)]
        return pairs.by_group(np.repeat(margins, each), Dataset.from_dict(rows))

    once, often = found(1), found(20)
    assert (once["count"], often["count"]) == (10, 200) and often["prompts"] == 10
    for key in ("accuracy", "margin"):
        assert once[key] == pytest.approx(often[key])
    tea = [each["by_category"]["topic"][1]["accuracy"] for each in (once, often)]
    assert tea[0] == pytest.approx(tea[1]) and tea[0]["high"] - tea[0]["low"] > 0.3


def test_what_is_counted_of_answers():
    long = [[Completion("a b a b", [1] * 6, True), Completion("a b c d", [1] * 8, False)]] * 3
    short = [[Completion("a a", [1, 1], True)] * 2] * 3
    found = generations.measure(long, short)
    assert found["mean_tokens"]["difference"]["mean"] == 5
    assert found["finished"]["policy"]["mean"] == 0.5 and found["finished"]["against"]["mean"] == 1
    assert found["distinct"]["policy"] == {"1": 4 / 24, "2": 4 / 18}


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
def test_prompts_of_a_file(suffix, tmp_path):
    path = tmp_path / f"prompts.{suffix}"
    path.write_text(
        {
            "txt": "one\n\ntwo\n",
            "jsonl": '{"prompt": "one"}\n{"prompt": "two"}\n',
            "csv": "prompt\none\ntwo\n",
        }[suffix]
    )
    assert prompts.read(str(path)) == [
        [{"role": "user", "content": text}] for text in ("one", "two")
    ]


def test_held_out_pairs_of_a_stream_leave_its_quarantine_alone(tiny_flags, tmp_path):
    """A stream writes its quarantine anew, as it comes by; what is trained on is not read here."""
    given = [*tiny_flags, "--dataset_streaming=true"]
    recipe = parse(["--config", "recipes/smollm2-sentiment.yaml", *given])
    (tmp_path / "run").mkdir()
    (tmp_path / "run/quarantine.jsonl").write_text("{}\n")
    assert len(prompts.held_out_pairs(recipe)) == 8
    assert (tmp_path / "run/quarantine.jsonl").exists()


def test_vllm_is_asked_for_the_same_distribution(tiny_model, monkeypatch):
    """A stand-in for vLLM, which needs a GPU: what it is given, and what is made of its answers."""
    given = {}

    class LLM:
        def __init__(self, **how):
            given["engine"] = how

        def generate(self, rows, how):
            given["rows"], given["how"] = rows, how
            ends = [[5, 6, 2], [7]]
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)]) for ids in ends]

    vllm = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = LLM, lambda **how: how
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    who = Contestant("tiny", str(tiny_model))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, who.weight_bytes()))
    tokenizer = who.tokenizer()
    tokenizer.eos_token = "<|endoftext|>"  # and the template ends a turn with <|im_end|>
    settings = generations.Settings(1, temperature=0.7, max_new_tokens=9, seed=3)
    stops = generations.chat_template.end_tokens(None, tokenizer)
    drawn = generations.by_vllm(
        generations.engine_of(who, 3), tokenizer, {4: [1, 2], 9: [3]}, settings, stops
    )
    assert given["rows"] == [{"prompt_token_ids": [1, 2]}, {"prompt_token_ids": [3]}]
    for sampling in given["how"]:
        assert (sampling["temperature"], sampling["top_p"], sampling["top_k"]) == (0.7, 1.0, -1)
        assert sampling["max_tokens"] == 9 and sampling["stop_token_ids"] == [0, 2]
    assert [sampling["seed"] for sampling in given["how"]] == [7, 12]  # equal prompts differ
    engine = given["engine"]
    assert engine["model"] == str(tiny_model) and engine["generation_config"] == "vllm"
    assert engine["tensor_parallel_size"] == 4  # of five GPUs, at four heads
    assert drawn[4].finished and not drawn[9].finished and drawn[9].token_ids == [7]


@pytest.mark.parametrize(("free", "by"), [(0.46, "vllm"), (0.44, "transformers")])
def test_vllm_is_asked_only_where_it_has_room(free, by, monkeypatch, tiny_model):
    """On every GPU: it ends with an error where less is free than it is given."""
    who = Contestant("tiny", str(tiny_model))
    monkeypatch.setattr(
        generations.importlib.util, "find_spec", lambda name: name == "vllm" or None
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: ((80, free * 80)[gpu], 80))
    monkeypatch.setattr(generations, "by_vllm", lambda *_, **__: {0: "vllm"})
    monkeypatch.setattr(generations, "engine_of", lambda *_: None)
    monkeypatch.setattr(generations, "sample", lambda *_, **__: ["transformers"])
    model = SimpleNamespace(device=torch.device("cuda", 0), generation_config=None)
    settings = generations.Settings(1, 1.0, 9, 0)
    (part,) = generations.generated(who, model, who.tokenizer(), {0: [1]}, settings)
    assert part == {0: by}


EVIL = "<script>alert(1)</script> $x \x1b[31m"


def test_the_page_shows_what_models_say_as_text(tmp_path):
    interval = {"mean": -10.5, "low": -10.4, "high": 10.6}
    found = {
        "policy": "a",
        "against": "b",
        "finished": "now",
        "machine": "CPU",
        "versions": {"trl": "1"},
        "prompts": {"source": EVIL, "count": 1, "samples": 1, "temperature": 1}
        | {"max_new_tokens": 9, "seed": 1},
        "pairs": {"count": 9, "accuracy": interval, "margin": interval, "by_category": {}}
        | {"by_length": [{"name": EVIL, "count": 9, "accuracy": interval}]},
        "answers": {
            "mean_tokens": dict.fromkeys(("policy", "against", "difference"), interval),
            "finished": dict.fromkeys(("policy", "against"), interval),
            "distinct": {side: {"1": 0.1, "2": 0.2} for side in ("policy", "against")},
            "kl": dict.fromkeys(("nats_per_sequence", "nats_per_token"), interval) | {"from": EVIL},
        },
        "judge": {
            "name": EVIL,
            "win_rate": interval,
            "length_controlled_win_rate": interval,
            "wins": 1,
        }
        | {"ties": 1, "losses": 1, "left_out": {EVIL: 2}, "reward": None, "about": {"x": EVIL}}
        | {"cost": {"tokens_in": 1, "tokens_out": 1, "orders_disagree": 0.5, "dollars": 1.0}},
        "suite": {"task": {"acc": {"policy": 0.5, "against": 0.4, "stderr_policy": 0.1}}},
        "samples": [{"prompt": EVIL, "policy": EVIL, "against": EVIL, "reward_policy": 0.1}],
    }
    found["suite"]["task"]["acc"]["stderr_against"] = None
    found["samples"][0] |= {"reward_against": 0.2, "preferred": 1.0}
    topic = {"policy": {"mean": 0.6, "low": 0.5, "high": 0.7}, "against": interval}
    found["answers"]["on_topic"] = topic | {"difference": interval, "prompts": 9}
    rows = {name: value for name, value, _ in evaluation_page.rows(found)}
    assert rows["On topic"] == "60% (50% to 70%)"  # the policy's own comes first, as elsewhere
    path = tmp_path / "page.html"
    path.write_text(evaluation_page.page(found))
    assert "<script" not in path.read_text()
    with opened(path.as_uri()) as page:
        assert page.errors == [] and fits(page)
        spills = "[...document.querySelectorAll('.tile')].map(t => t.scrollWidth - t.clientWidth)"
        assert max(page.evaluate(spills)) <= 0
    with opened(path.as_uri(), PHONE) as page:
        assert page.errors == [] and fits(page)
        assert page.get_by_text("<script>alert(1)</script>").count() >= 5
        assert min(pictures(page)) > 600


def test_without_lm_eval_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(benchmarks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"SUITE needs lm-eval: .*requirements-suite.txt"):
        benchmarks.check(["ifeval"], None)


def test_pairs_that_have_changed_since_a_run_ended_are_told(finished, tiny_data, tmp_path, capsys):
    run, data = tmp_path / "run", Path(shutil.copytree(tiny_data, tmp_path / "data"))
    shutil.copytree(finished[0], run)
    settings = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(settings.replace(str(tiny_data), str(data)))
    recipe = find(str(run)).recipe
    assert not prompts.changed(prompts.held_out_pairs(recipe), run) and not capsys.readouterr().out
    rows = (data / "test.jsonl").read_text().replace("It was bad", "It was worse", 1)
    (data / "test.jsonl").write_text(rows)
    assert prompts.changed(prompts.held_out_pairs(recipe), run)
    said = capsys.readouterr().out
    assert (
        said.startswith(f"The data of {run} have changed since it ended") and said.count("\n") == 1
    )


def test_an_answer_that_no_position_is_left_for_is_refused_before_it_is_drawn(capsys):
    gpt2 = AutoConfig.for_model("gpt2", n_positions=256)
    check_room(gpt2, 56, 200, "a")
    with pytest.raises(Refusal, match=r"a has 256 positions, .* 57 tokens .*--max_new_tokens 199"):
        check_room(gpt2, 57, 200, "a")
    with pytest.raises(Refusal, match="leave such prompts out"):
        check_room(gpt2, 256, 1, "a")
    assert not capsys.readouterr().out
    check_room(AutoConfig.for_model("llama", max_position_embeddings=256), 57, 200, "b")
    assert "b has 256 positions" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["nan,nan", "inf,1", "-1,2", "1", "a,b"])
def test_a_price_is_two_numbers_of_dollars(given):
    assert prices("0.15,0") == (0.15, 0)
    with pytest.raises(Refusal, match=r"judge_price .*: give two numbers"):
        prices(given)
