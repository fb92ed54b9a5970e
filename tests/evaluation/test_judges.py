"""Judges: what they say is counted as they mean it, and kept as they say it."""

import io
import json
import os
import pty
import re
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from dpo.core.refusal import Refusal
from dpo.evaluation import measure
from dpo.evaluation.judges import judging
from dpo.evaluation.judges import reward_model as reward_model_file
from dpo.evaluation.judges.judging import Comparison, check, judge
from dpo.evaluation.judges.reward_model import RewardModel
from dpo.evaluation.judges.verdicts import Kept
from dpo.models.sampling import Completion
from dpo.reports import evaluation_page
from support.endpoint import lines, user
from support.models import save_reward_model
from support.refusing import line_of


@pytest.fixture
def kept(tmp_path) -> Path:
    return tmp_path / "judgements.jsonl"


# The known reward


def test_the_known_reward_prefers_by_its_sign_and_keeps_what_it_said(kept, monkeypatch):
    pairs = [("I love it.", "I hate it."), ("I hate it.", "Good."), ("Fine words.", "Fine words.")]
    compared = [Comparison(user("How was it?"), *pair) for pair in pairs]
    verdicts = judge("vader", compared, kept)
    assert verdicts.preferred.tolist() == [1, 0, 0.5]
    assert (
        verdicts.rewards.shape == (2, 3) and verdicts.rewards[0, 0] > 0.5 > verdicts.rewards[1, 0]
    )
    assert not verdicts.left_out and verdicts.cost is None
    monkeypatch.setattr(judging, "vader_score", lambda text: pytest.fail("it was kept"))
    again = judge("vader", compared, kept)
    assert np.array_equal(again.rewards, verdicts.rewards)
    assert len(lines(kept)) == 1 + 4  # who judged, and every answer once


# A reward model


@pytest.fixture(scope="module")
def reward_model(tiny_model, tmp_path_factory) -> Path:
    """A two-layer Llama with one logit for a conversation, untrained."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    save_reward_model(folder, AutoTokenizer.from_pretrained(tiny_model))
    return folder


def alone(folder: Path, asked: list[tuple[list[dict], str]]) -> list[float]:
    """Rewards of answers, each computed as the template and the model say, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    rewards = []
    for prompt, answer in asked:
        messages = [*prompt, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            rewards.append(float(model(ids).logits))
    return rewards


ANSWERS = [
    "Yes.",
    "Yes, and here is why it is so.",
    "No",
    "Perhaps " * 9,
    "Why?",
    "A b c d e.",
    "1",
]


def answered() -> list[Comparison]:
    pairs = zip(ANSWERS, [*ANSWERS[1:], ANSWERS[-1]], strict=True)
    return [Comparison(user(f"Question {i}?"), *pair) for i, pair in enumerate(pairs)]


def test_a_reward_model_scores_in_batches_what_it_scores_alone(reward_model, kept, monkeypatch):
    check(str(reward_model))
    verdicts = judge(str(reward_model), answered(), kept)
    expected = [
        alone(reward_model, [(c.prompt, getattr(c, side)) for c in answered()])
        for side in ("policy", "against")
    ]
    assert np.allclose(verdicts.rewards, expected, atol=1e-5)
    assert np.ptp(expected) > 0.1
    assert verdicts.preferred.tolist() == [
        1.0 if a > b else 0.0 if a < b else 0.5 for a, b in zip(*expected, strict=True)
    ]
    assert verdicts.preferred[-1] == 0.5  # the same answer twice
    assert verdicts.about == {"kind": "model", "name": str(reward_model), "dtype": "float32"}
    monkeypatch.setattr(RewardModel, "load", lambda self: pytest.fail("all is kept"))
    again = judge(str(reward_model), answered(), kept)
    assert np.array_equal(again.rewards, verdicts.rewards)


def test_a_reward_model_trained_anew_is_asked_anew(reward_model, kept):
    judge(str(reward_model), answered(), kept)
    (weights,) = reward_model.glob("*.safetensors")
    os.utime(weights)
    judge(str(reward_model), answered(), kept)
    assert sum("reward" in line for line in lines(kept)) == 2 * 13


def test_a_reward_model_without_padding_token_reads_the_last_token(tiny_model, tmp_path, kept):
    """Also where that is the end token, which the tokenizer pads with."""
    folder, tokenizer = tmp_path / "reward", AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    save_reward_model(folder, tokenizer, pad_token_id=None)
    verdicts = judge(str(folder), answered()[:3], kept)
    expected = alone(folder, [(c.prompt, c.policy) for c in answered()[:3]])
    assert np.allclose(verdicts.rewards[0], expected, atol=1e-5)


def test_a_template_that_sets_the_start_token_is_the_only_one_to(tiny_model, tmp_path):
    """The tokenizer of Llama 3 sets one in front of any text, and its template sets one too."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    start = tokenizer.bos_token
    rule = {"single": f"{start} $A", "special_tokens": [(start, tokenizer.bos_token_id)]}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(**rule)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    save_reward_model(tmp_path / "reward", tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path / "reward")("a").input_ids[0] == (
        tokenizer.bos_token_id
    )
    ids = RewardModel(str(tmp_path / "reward")).ids(user("Yes?"))
    assert ids.count(tokenizer.bos_token_id) == 1


def test_an_answer_that_the_reward_model_cannot_read_is_left_out(reward_model, kept):
    compared = [*answered()[:2], Comparison(user("Question?"), "word " * 200, "Yes.")]
    verdicts = judge(str(reward_model), compared, kept)
    assert np.isnan(verdicts.preferred).tolist() == [False, False, True]
    assert verdicts.left_out == {"longer than the 120 tokens that the judge reads": 1}
    assert np.isnan(verdicts.rewards).all(axis=0).tolist() == [False, False, True]


def test_what_is_no_reward_model_is_refused(reward_model, tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert "LlamaForCausalLM with 2" in line_of(lambda: check(str(tiny_model)))
    save_reward_model(tmp_path / "two", tokenizer, num_labels=2)
    assert "one label: it is LlamaForSequence" in line_of(lambda: check(str(tmp_path / "two")))
    tokenizer.chat_template = None
    save_reward_model(tmp_path / "plain", tokenizer)
    assert "no chat template" in line_of(lambda: check(str(tmp_path / "plain")))
    pickled = tmp_path / "pickled"
    save_reward_model(pickled, tokenizer)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "no weights in safetensors" in line_of(lambda: check(str(pickled)))
    assert "no judge '/" in (said := line_of(lambda: check(str(tmp_path / "nothing"))))
    assert "vader (the known reward), hand (you, in the terminal), the URL" in said


def test_plain_text_is_what_a_user_says(reward_model, kept):
    as_text = judge(str(reward_model), [Comparison("Question?", "Yes.", "No.")], kept)
    as_turn = judge(str(reward_model), [Comparison(user("Question?"), "Yes.", "No.")], kept)
    assert np.array_equal(as_text.rewards, as_turn.rewards) and len(lines(kept)) == 3


def test_what_was_scored_before_a_crash_is_not_scored_again(reward_model, kept, monkeypatch):
    monkeypatch.setattr(reward_model_file, "ROWS", 2)
    scored, logits = [], reward_model_file.logits

    def fails_at_the_third(model, rows, pad):
        scored.extend(rows)
        if len(scored) == 6:
            raise torch.OutOfMemoryError
        return logits(model, rows, pad)

    monkeypatch.setattr(reward_model_file, "logits", fails_at_the_third)
    with pytest.raises(torch.OutOfMemoryError):
        judge(str(reward_model), answered(), kept)
    scored.clear()
    monkeypatch.setattr(
        reward_model_file, "logits", lambda *given: scored.extend(given[1]) or logits(*given)
    )
    verdicts = judge(str(reward_model), answered(), kept)
    assert len(scored) == 13 - 4 and not np.isnan(verdicts.preferred).any()


def test_weights_without_a_reward_head_are_refused(tiny_model, tmp_path, kept):
    """transformers would draw one at random, and say so in a warning."""
    save_reward_model(tmp_path / "reward", AutoTokenizer.from_pretrained(tiny_model))
    weights = (tiny_model / "model.safetensors").read_bytes()
    (tmp_path / "reward/model.safetensors").write_bytes(weights)
    said = line_of(lambda: judge(str(tmp_path / "reward"), answered(), kept))
    assert "its weights lack score.weight" in said


@pytest.mark.parametrize("more", ["model.layers.7.mlp.up_proj.weight", "lm_head.weight"])
def test_weights_that_a_judge_would_leave_out_are_refused(more, tiny_model, tmp_path, kept):
    """But not the words of the model that it was trained from."""
    save_reward_model(tmp_path / "reward", AutoTokenizer.from_pretrained(tiny_model))
    file = tmp_path / "reward/model.safetensors"
    save_file(load_file(file) | {more: torch.ones(2)}, file, metadata={"format": "pt"})
    asked = partial(judge, str(tmp_path / "reward"), answered(), kept)
    if "lm_head" in more:
        assert np.isfinite(asked().preferred).all()
    else:
        assert f"unexpected: {more}" in line_of(asked)


# By hand


def by_hand(kept: Path, compared: list[Comparison], keys: str) -> str:
    """What the terminal of a person who presses these keys shows, one at each question."""
    process, terminal = pty.fork()
    if not process:
        sys.stdin, sys.stdout = open(0), open(1, "w", buffering=1)  # noqa: SIM115
        try:
            check("hand")
            verdicts = judge("hand", compared, kept)
            print("RESULT", np.nan_to_num(verdicts.preferred, nan=-1).tolist(), verdicts.left_out)
        finally:
            os._exit(0)
    shown, pressed = "", 0
    with os.fdopen(terminal, "r+b", buffering=0) as screen, suppress(OSError):  # when it ends
        while data := screen.read(4096):
            shown += data.decode()
            if shown.count("q quit") > pressed and pressed < len(keys):
                screen.write(f"{keys[pressed]}\r".encode())
                pressed += 1
    os.waitpid(process, 0)
    return shown


def result(shown: str) -> list[float]:
    return json.loads(re.search(r"RESULT (\[.*?\])", shown, re.DOTALL)[1])


def test_a_person_judges_without_names_quits_and_goes_on(kept):
    compared = [Comparison(user(f"Question {i}?"), f"ours {i}", f"theirs {i}") for i in range(12)]
    compared[0].policy += "\x1b[31m red"
    shown = by_hand(kept, compared, "x131sq")
    assert "Question 0?" in shown and r"\x1b[31m red" in shown and "\x1b[31m red" not in shown
    told = [line for line in lines(kept) if "key" in line]
    assert [line["choice"] for line in told] == ["1", "3", "1"]
    first = [float(line["shown_first"] == "policy") for line in told]
    assert result(shown) == [first[0], 0.5, first[2]] + [-1] * 9
    assert "{'skipped by hand': 1, 'not judged yet: the same command goes on': 8}" in shown
    # The next run asks for the one that was skipped, and for the others.
    shown = by_hand(kept, compared, "2" * 9)
    assert "Question 2?" not in shown and "Question 3?" in shown
    told = [line for line in lines(kept) if "key" in line]
    assert len(told) == 12 and {line["shown_first"] for line in told} == {"policy", "against"}
    assert result(shown)[3:] == [float(line["shown_first"] == "against") for line in told[3:]]
    # What is shown first is what the line says.
    places = [shown.index(f"{name} 3") for name in ("ours", "theirs")]
    assert (places[0] < places[1]) == (told[3]["shown_first"] == "policy")


def test_a_person_is_not_asked_about_identical_answers(kept, monkeypatch):
    compared = [Comparison(user(f"Q{i}?"), "ours", "ours" if i % 2 else "theirs") for i in range(4)]
    shown = by_hand(kept, compared, "33")
    assert "2 of 4 pairs are identical answers: ties, not asked" in shown
    assert shown.count("q quit") == 2 and "Q1?" not in shown
    assert result(shown) == [0.5] * 4 and sum("key" in line for line in lines(kept)) == 2
    shown = by_hand(kept, [*compared[:2], Comparison(user("Q9?"), "a", "b")], "q")
    assert result(shown) == [0.5, 0.5, -1]  # where the person quits, those still are ties
    # Nobody is needed where there is nothing to ask.
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert judge("hand", compared[1::2], kept).preferred.tolist() == [0.5, 0.5]


def test_no_person_is_asked_where_nobody_sits(kept, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n"))
    assert "this is no terminal" in line_of(lambda: check("hand"))
    assert "this is no terminal" in line_of(lambda: judge("hand", answered(), kept))


# All of them


def test_what_a_kill_cut_off_is_judged_again(kept):
    compared = answered()
    whole = judge("vader", compared, kept)
    said = kept.read_bytes()
    for cut in (1, 30, 200):
        kept.write_bytes(said[:-cut])
        assert np.array_equal(judge("vader", compared, kept).rewards, whole.rewards)
        assert sorted(kept.read_bytes().splitlines()) == sorted(said.splitlines())


def test_a_line_that_is_no_json_is_named(kept):
    judge("vader", answered(), kept)
    text = kept.read_text().splitlines()
    kept.write_text("\n".join([text[0], text[1][:-4], *text[2:], ""]))
    assert f"{kept}, line 2:" in line_of(lambda: judge("vader", answered(), kept))


def test_two_at_once_do_not_judge_into_one_file(kept):
    judge("vader", answered(), kept)
    with Kept(kept):
        said = line_of(lambda: judge("vader", answered(), kept))
    assert "another process is judging into it" in said


def test_an_unknown_judge_is_refused_with_the_judges_that_there_are(monkeypatch):
    unknown = Refusal("cannot get the model 'vadr' from the hub")
    monkeypatch.setattr(reward_model_file, "check_reachable", Mock(side_effect=unknown))
    said = line_of(lambda: check("vadr"))
    assert "no judge 'vadr': vader (the known reward), hand" in said and "cannot get" in said


def test_identical_answers_are_counted_for_every_judge():
    texts = {"policy": ["good", "bad"], "against": ["good", "worse"]}
    answers = {side: [[Completion(text, [5], True) for text in of]] for side, of in texts.items()}
    found = measure.Measured(**answers)
    judged = measure.judged(found, judging.by_known_reward(measure.comparisons(["Q?"], found)))
    assert judged["identical"] == 1 and judged["ties"] >= 1
    (_, _, note), *_ = evaluation_page._judged(judged)
    assert "1 tied (1 identical)" in note
