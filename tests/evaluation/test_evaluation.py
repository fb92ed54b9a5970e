"""Sampling and evaluation: exact where there is a closed form, honest where there is none."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo.core.stats import accuracy
from dpo.data.schema import pair_rows
from dpo.evaluation import generations, measure
from dpo.evaluation.measure import Measured
from dpo.models import scoring
from dpo.models.sampling import Completion, prompt_token_ids, sample_completions
from dpo.models.scoring import score

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hi", "How was the long walk home?")]


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def sample(model, tokenizer, prompts=PROMPTS, **changes):
    settings = {"samples": 3, "temperature": 0.7, "max_new_tokens": 8, "seed": 1} | changes
    return sample_completions(model, tokenizer, prompts, **settings)


def test_samples_are_the_seeds(model, tokenizer):
    first = sample(model, tokenizer)
    assert [len(row) for row in first] == [3, 3]
    assert first == sample(model, tokenizer)
    assert first != sample(model, tokenizer, seed=2)
    # A batch does not depend on those before it.
    ahead = sample(model, tokenizer, prompts=[*PROMPTS, *PROMPTS], batch_size=6)
    assert ahead[:2] == first
    assert len({answer.text for row in first for answer in row}) > 1


def test_samples_follow_the_models_distribution(model, tokenizer):
    """First tokens of 2,000 samples against softmax(logits / temperature), the likeliest twenty."""
    count, temperature = 2000, 0.5
    prompt = PROMPTS[1]
    (answers,) = sample(
        *(model, tokenizer, [prompt]),
        samples=count,
        temperature=temperature,
        max_new_tokens=1,
        batch_size=count,
    )
    with torch.no_grad():
        ids = torch.tensor([prompt_token_ids(tokenizer, prompt)])
        expected = (model(ids).logits[0, -1] / temperature).softmax(-1)
    drawn = torch.bincount(
        torch.tensor([answer.token_ids[0] for answer in answers]), minlength=len(expected)
    )
    top = expected.topk(20).indices
    deviation = (expected[top] * (1 - expected[top]) / count).sqrt()
    assert ((drawn[top] / count - expected[top]).abs() < 4 * deviation).all()


def test_what_a_model_would_rather_generate_with_is_set_aside(model, tokenizer, tiny_model):
    """generation_config.json may hold penalties and lists: answers would not be the model's
    distribution."""
    drawn = sample(model, tokenizer)
    other = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    never = [token for row in drawn for answer in row for token in answer.token_ids]
    other.generation_config.update(repetition_penalty=9.0, suppress_tokens=never)
    before = other.generation_config.to_dict()
    assert sample(other, tokenizer) == drawn
    assert other.generation_config.to_dict() == before


def test_an_answer_is_finished_when_it_has_its_end_token(model, tokenizer):
    for row in sample(model, tokenizer, samples=40, max_new_tokens=3, temperature=4.0):
        for answer in row:
            assert answer.finished == (answer.token_ids[-1] == tokenizer.eos_token_id)
            assert answer.finished or len(answer.token_ids) == 3
            assert tokenizer.eos_token not in answer.text


def test_scoring_does_not_depend_on_the_batch(model, tokenizer):
    """Rows of all lengths, scored together and alone; padding and order change nothing."""
    rows = [([5] * n, list(range(60, 60 + 2 * m))) for n in (3, 9) for m in range(1, 13)]
    together = score(model, rows, tokenizer.pad_token_id, 1.0)
    alone = [score(model, [row], tokenizer.pad_token_id, 1.0)[0] for row in rows]
    assert together == pytest.approx(alone, abs=1e-4)


def test_long_rows_are_scored_fewer_at_a_time(model, tokenizer, monkeypatch):
    rows = [([5] * n, list(range(60, 60 + n))) for n in range(1, 30)]
    together = score(model, rows, tokenizer.pad_token_id)
    monkeypatch.setattr(scoring, "SCORING_TOKENS", 100)
    seen = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **g: seen.append(g["input_ids"].shape) or forward(**g)
    )
    assert score(model, rows, tokenizer.pad_token_id) == pytest.approx(together, abs=1e-4)
    assert all(n * width <= 100 and n <= 16 for n, width in seen)
    assert sum(n for n, _ in seen) == len(rows) and len(seen) < len(rows)


def test_kl_by_sampling_agrees_with_kl_by_sum(model, tokenizer, tiny_model):
    """KL of one next-token distribution from another, both ways; 2,000 samples."""
    other = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        prompt_ids = prompt_token_ids(tokenizer, PROMPTS[0])
        p, q = (
            (m(torch.tensor([prompt_ids])).logits[0, -1] / 0.7).log_softmax(-1)
            for m in (other, model)
        )
    exact = (p.exp() * (p - q)).sum().item()
    (answers,) = sample(
        other, tokenizer, [PROMPTS[0]], samples=2000, max_new_tokens=1, batch_size=2000
    )
    rows = [(prompt_ids, answer.token_ids) for answer in answers]
    ratios = score(other, rows, 2, 0.7) - score(model, rows, 2, 0.7)
    assert exact > 0.05
    assert abs(ratios.mean() - exact) < 4 * ratios.std() / math.sqrt(len(ratios))


def test_a_tie_is_half_right():
    assert accuracy(np.array([0.1, 0.0, -0.1])).tolist() == [1.0, 0.5, 0.0]


def test_pairs_are_cut_as_in_training():
    held_out = {
        "prompt_ids": [[1, 2, 3]],
        "chosen_ids": [[4, 5, 6, 7]],
        "rejected_ids": [[8]],
    }
    assert pair_rows(held_out, 5, "keep_start") == [([1, 2, 3], [4, 5]), ([1, 2, 3], [8])]
    assert pair_rows(held_out, None, "keep_start")[0] == ([1, 2, 3], [4, 5, 6, 7])


def test_true_reward_and_length_of_known_answers():
    def answers(text: str, tokens: int):
        return [[Completion(text, [7] * tokens, True)] * 2 for _ in PROMPTS]

    before, after = answers("It was terrible.", 4), answers("I love it, great!", 6)
    found = Measured(policy=after, against=before)
    reward = measure.known_reward(PROMPTS, found)
    assert reward["against"]["mean"] < -0.4 and reward["policy"]["mean"] > 0.8
    assert reward["difference"]["mean"] == pytest.approx(
        reward["policy"]["mean"] - reward["against"]["mean"]
    )
    lines = measure.lines_of(PROMPTS, found, None)
    result = measure.results("", PROMPTS, generations.Settings(2, 1, 9, 0), found, None, lines)
    tokens = result["answers"]["mean_tokens"]
    assert (tokens["against"]["mean"], tokens["policy"]["mean"]) == (4, 6)
    asked = [sample["prompt"] for sample in result["samples"]]
    assert asked == ["Hi", "How was the long walk home?"]
