"""make evaluate: any run or model against another, by pairs, answers, judges and benchmarks."""

import json
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from browser import PHONE, fits, opened, pictures
from conftest import make
from datasets import ClassLabel, Dataset
from test_endpoint import MODEL, longer, serving
from test_judges import save_reward_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo.evaluation import benchmarks, contestants, generations, measure, pairs, prompts
from dpo.evaluation.contestants import Contestant, find, reference_of
from dpo.models import scoring
from dpo.models.sampling import Completion, prompt_token_ids
from dpo.recipe.parse import parse
from dpo.reports import evaluation_page

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hi", "How was the walk?", "And you?")]
SETTINGS = generations.Settings(samples=2, temperature=0.7, max_new_tokens=6, seed=1)


@pytest.fixture
def kept_here(monkeypatch, tmp_path):
    monkeypatch.setattr(generations, "KEPT", tmp_path / "kept")


def other_model(tiny_model, folder, noise: float = 0.05):
    """The tiny model with every weight moved a little."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_two_equal_models_say_the_same_and_are_no_nat_apart(tiny_model, kept_here, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "copy")
    first, second = find(str(tiny_model)), find(str(tmp_path / "copy"))
    found = measure.measure(first, second, second, PROMPTS, None, SETTINGS, "cpu")
    assert found.policy == found.against and found.pairs is None
    assert found.kl["nats_per_sequence"] == {"mean": 0, "low": 0, "high": 0}


def test_answers_are_drawn_once_for_equal_weights_alone(tiny_model, kept_here, tmp_path, capsys):
    """Found by content: the same weights in another folder, not other weights in the same one."""

    def draw(folder) -> list:
        who = find(str(folder))
        model, tokenizer = who.load("cpu"), who.tokenizer()
        return generations.draw(who, model, tokenizer, PROMPTS, SETTINGS)

    shutil.copytree(tiny_model, tmp_path / "copy")
    first = draw(tiny_model)
    assert "found" not in capsys.readouterr().out
    assert draw(tmp_path / "copy") == first
    assert "6 of 6 found, not generated again" in capsys.readouterr().out
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
    assert generations.read(path).keys() == set(range(6))


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
    how = {"temperature": 0.7, "max_new_tokens": 9, "seed": 3}
    drawn = generations.by_vllm(who, tokenizer, {4: [1, 2], 9: [3]}, **how)
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
        | {"max_new_tokens": 9},
        "pairs": {"count": 9, "accuracy": interval, "margin": interval, "by_category": {}}
        | {"by_length": [{"name": EVIL, "count": 9, "accuracy": interval}]},
        "answers": {
            "mean_tokens": dict.fromkeys(("policy", "against", "difference"), interval),
            "finished": dict.fromkeys(("policy", "against"), interval),
            "distinct": {side: {"1": 0.1, "2": 0.2} for side in ("policy", "against")},
            "kl": dict.fromkeys(("nats_per_sequence", "nats_per_token"), interval) | {"from": EVIL},
        },
        "judge": {"win_rate": interval, "length_controlled_win_rate": interval, "wins": 1}
        | {"ties": 1, "losses": 1, "left_out": {EVIL: 2}, "reward": None, "about": {"x": EVIL}}
        | {"cost": {"tokens_in": 1, "tokens_out": 1, "orders_disagree": 0.5, "dollars": 1.0}},
        "suite": {"task": {"acc": {"policy": 0.5, "against": 0.4, "stderr_policy": 0.1}}},
        "samples": [{"prompt": EVIL, "policy": EVIL, "against": EVIL, "reward_policy": 0.1}],
    }
    found["suite"]["task"]["acc"]["stderr_against"] = None
    found["samples"][0] |= {"reward_against": 0.2, "preferred": 1.0}
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


def evaluated(run, *given: str, **variables: object) -> tuple[dict, str]:
    """`make evaluate` of a tiny run: what was written, and what was printed."""
    flags = ["--max_new_tokens=12", "--limit=6", *given]
    stated = [f"{name}={value}" for name, value in variables.items()]
    result = make("evaluate", f"RUN={run}", *stated, f"ARGS={shlex.join(flags)}")
    assert result.returncode == 0, result.stderr[-3000:]
    folder = next(w for w in result.stdout.split() if w.endswith("evaluation.html,"))[:-1]
    path = folder.removesuffix(".html") + ".json"
    with open(path) as file:
        return json.load(file), result.stdout


@pytest.mark.sight
def test_a_run_is_held_against_its_reference(swept):
    folder, _, _ = swept
    run = folder / "beta=0.1"
    found, said = evaluated(run, JUDGE="vader")
    report = json.loads((run / "report.json").read_text())
    # The same pairs, scored by training and anew.
    accuracy = report["pairs"]["accuracy"]["mean"]
    assert found["pairs"]["accuracy"]["mean"] == pytest.approx(accuracy)
    margin = report["pairs"]["margin"]["mean"]
    assert found["pairs"]["margin"]["mean"] == pytest.approx(margin, abs=1e-3)
    assert found["prompts"]["count"] == 6 and found["prompts"]["temperature"] == 0.7
    judge = found["judge"]
    assert judge["wins"] + judge["ties"] + judge["losses"] == 6
    assert found["answers"]["kl"]["nats_per_sequence"]["mean"] > 0
    assert "Win rate" in said and "Written:" in said
    lines = (run / "evaluations/reference-vader/answers.jsonl").read_text().splitlines()
    assert len(lines) == 6 and json.loads(lines[0])["reward_policy"] is not None
    with opened((run / "evaluations/reference-vader/evaluation.html").as_uri(), PHONE) as page:
        assert page.errors == [] and fits(page)
        assert page.get_by_text("Win rate", exact=True).first.is_visible()


@pytest.mark.sight
def test_a_checkpoint_is_held_against_what_its_run_started_from(swept):
    run = swept[0] / "beta=0.1"
    (last,) = run.glob("checkpoint-4")
    found, _ = evaluated(last)
    report = json.loads((run / "report.json").read_text())
    assert found["against"] == report["model"] and found["policy"] == str(last)
    margin = report["pairs"]["margin"]["mean"]
    assert found["pairs"]["margin"]["mean"] == pytest.approx(margin, abs=1e-3)
    assert (run / "evaluations/checkpoint-4-reference/evaluation.html").is_file()


@pytest.mark.sight
def test_a_run_is_held_against_another_model_on_given_prompts_by_an_endpoint(
    swept, tiny_model, tmp_path
):
    file, other = tmp_path / "asked.txt", other_model(tiny_model, tmp_path / "other", 0.5)
    file.write_text("How was the soup?\nAnd the weather?\n")
    given = {"PROMPTS": file, "AGAINST": other, "JUDGE_MODEL": MODEL}
    with serving(longer) as fake:
        found, _ = evaluated(swept[0] / "beta=0.1", "--samples=2", **given, JUDGE=fake.url)
    assert found["against"] == str(other) and found["pairs"]["count"] == 8
    assert found["prompts"]["count"] == 2 and found["prompts"]["samples"] == 2
    judge = found["judge"]
    assert judge["about"]["model"] == MODEL and judge["about"]["name"] == fake.url
    assert judge["wins"] + judge["ties"] + judge["losses"] == 4 and judge["cost"]["requests"] > 2


@pytest.mark.sight
def test_a_model_that_is_no_run_is_held_against_a_run(swept, tiny_model, tmp_path):
    """On the held-out pairs of that run, with it as the reference, by a reward model."""
    folder, _, _ = swept
    run = folder / "beta=0.1"
    judge, tokenizer = tmp_path / "judge", AutoTokenizer.from_pretrained(tiny_model)
    save_reward_model(judge, tokenizer, max_position_embeddings=1000)
    found, said = evaluated(tiny_model, "--temperature=0", AGAINST=run, JUDGE=judge)
    assert found["judge"]["about"]["name"] == str(judge) and found["judge"]["left_out"] == {}
    assert found["judge"]["reward"]["difference"]["mean"] != 0
    report = json.loads((run / "report.json").read_text())
    margin = found["pairs"]["margin"]["mean"]
    assert margin == pytest.approx(-report["pairs"]["margin"]["mean"], abs=1e-3)
    assert found["answers"]["kl"] is None and "KL of the policy" not in said
    path = next(word for word in said.split() if word.endswith("evaluation.html,"))
    shutil.rmtree(Path(path).parent)


@pytest.mark.parametrize(
    ("given", "says_so"),
    [
        (("RUN=",), "no model is named; the runs here:"),
        (("ARGS=--limit 0",), "argument --limit: '0' is no whole number from 1 on"),
        (("RUN=outputs/none",), "no run and no model at outputs/none; the runs here:"),
        (("RUN=models/SmolLM2-135M-Instruct",), "is no run: name with AGAINST="),
        (
            ("RUN=models/SmolLM2-135M-Instruct", "AGAINST=models/SmolLM2-135M-Instruct"),
            "there are no held-out prompts: name a file of some with PROMPTS=",
        ),
    ],
)
@pytest.mark.sight
def test_what_cannot_be_evaluated_is_said(given, says_so):
    result = make("evaluate", *given)
    assert result.returncode and says_so in result.stderr


TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: !function own.question
doc_to_target: answer
doc_to_choice: ["yes", "no"]
metric_list: [{metric: acc}]
"""


@pytest.fixture
def tasks(tmp_path) -> Path:
    """A folder with a benchmark of one's own, from a file: the others come from the hub."""
    pytest.importorskip("lm_eval", reason="lm-eval is an optional extra, and not installed")
    rows = [{"question": f"Is {n} even?", "answer": n % 2} for n in range(12)]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "tiny_choice.yaml").write_text(TASK % (tasks / "rows.jsonl"))
    # As mbpp and squad do; scripts/evaluate.py is on the path as well.
    code = "from evaluate import load\ndef question(row):\n    return row['question']\n"
    (tasks / "own.py").write_text(code)
    return tasks


@pytest.mark.sight
def test_a_benchmark_of_lm_eval_before_and_after(tasks, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "KEPT", tmp_path / "kept")
    benchmarks.check(["tiny_choice"], str(tasks))
    with pytest.raises(SystemExit, match=r"no task 'tiny_chance': did you mean: .*tiny_choice"):
        benchmarks.check(["tiny_chance"], str(tasks))
    mine, other = find(str(tiny_model)), find(str(other_model(tiny_model, tmp_path / "other", 0.5)))
    of = (["tiny_choice"], "cpu", str(tasks), None)
    found = benchmarks.beside(mine, other, *of)
    assert "found, not run again" not in capsys.readouterr().out
    assert benchmarks.beside(mine, other, *of) == found
    assert capsys.readouterr().out.count("found, not run again") == 2
    acc = found["tiny_choice"]["acc"]
    assert 0 <= acc["policy"] <= 1 and acc["stderr_policy"] > 0
    assert {acc["policy"] * 12 % 1, acc["against"] * 12 % 1} <= {0.0}
    (tasks / "own.py").write_text("import no_such_package")
    with pytest.raises(SystemExit, match=r"SUITE=tiny_choice cannot be run: .*no_such_package"):
        benchmarks.beside(mine, other, *of)


@pytest.mark.sight
def test_a_benchmark_computes_as_the_run_did(tasks, tiny_model, tmp_path, monkeypatch):
    """lm-eval switches off an autocast that it is not told of."""
    monkeypatch.setattr(benchmarks, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(Contestant, "autocast", lambda *_: torch.autocast("cpu", torch.bfloat16))
    seen, load = set(), Contestant.load

    def watched(who, device):
        model = load(who, device)
        model.register_forward_pre_hook(lambda *_: seen.add(torch.is_autocast_enabled("cpu")))
        return model

    monkeypatch.setattr(Contestant, "load", watched)
    benchmarks.run(find(str(tiny_model)), ["tiny_choice"], "cpu", str(tasks), None)
    assert seen == {True}


@pytest.mark.sight
def test_a_benchmark_through_make(tasks, swept):
    found, said = evaluated(swept[0] / "beta=0.1", f"--suite_tasks={tasks}", SUITE="tiny_choice")
    acc = found["suite"]["tiny_choice"]["acc"]
    assert (
        0 <= acc["policy"] <= 1
        and f"{acc['policy']:.4f} ± {1.96 * acc['stderr_policy']:.4f}" in said
    )


def test_without_lm_eval_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(benchmarks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"SUITE needs lm-eval: .*requirements-suite.txt"):
        benchmarks.check(["ifeval"], None)
