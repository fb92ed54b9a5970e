"""Rebuild the embedded preference data, recipes/data/sentiment, from its seed.

    python scripts/embedded_data.py                     # some 10 minutes on two cores
    python scripts/embedded_data.py --output /some/dir  # elsewhere, to compare

The controlled experiment of the DPO paper (arXiv 2305.18290, section 6.1) in small: the policy's
own answers, compared by a reward that is known. For every prompt SmolLM2-135M-Instruct answers
eight times. Of the answers that it ended itself, the two of like length that differ most in the
VADER compound score v, in [-1, 1], make a pair, and the label is drawn from the Bradley-Terry
model (the paper's equation 1) with reward r = 4 v: p(a preferred to b) = sigmoid(4 (v_a - v_b)).
So some labels are wrong, as people's are, and the data card says how many. Like length, because
positive answers tend to be longer, and a policy would learn length for sentiment.

Train and test prompts speak of different subjects. The same seed gives the same bytes on the same
kind of CPU; on another kind, rounding may change some answers.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse
from pathlib import Path

from dpo.core.terminal import at_once, guarded, parser_of

FOLDER = Path("recipes/data/sentiment")


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--output", type=Path, default=FOLDER, help=f"folder ({FOLDER})")
    return parser.parse_args()


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(arguments)

import itertools
import json
import random
import statistics
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo.evaluation.judges.known_reward import vader_score
from dpo.evaluation.measure import MAX_NEW_TOKENS, TEMPERATURE
from dpo.losses import bradley_terry
from dpo.models.sampling import Completion, Prompt, prompt_token_ids, sample_completions

MODEL = "models/SmolLM2-135M-Instruct"
QUESTIONS = (
    "Review {} in one sentence.",
    "How was {}? Answer in one sentence.",
    "What do you think of {}? Answer in one sentence.",
    "Write a one-sentence review of {}.",
)
TEST_SUBJECTS = 32  # of 160: 32 x 4 questions = 128 test prompts, 512 train prompts
SAMPLES = 8
LENGTH_DIFFERENCE = 4  # tokens, at most, between the two answers of a pair
REWARD_SCALE = 4.0
BATCH_PROMPTS = 32  # 256 rows are drawn together: part of the seed, so do not change it alone
Score = Callable[[str], float]
SEEDS = {"train": 0, "test": 1_000_000}


def prompts() -> dict[str, list[str]]:
    """The prompts of each split, subjects shuffled by a fixed seed, no subject in both."""
    subjects = (FOLDER / "subjects.txt").read_text().splitlines()
    random.Random(0).shuffle(subjects)
    split = {"train": subjects[TEST_SUBJECTS:], "test": subjects[:TEST_SUBJECTS]}
    return {
        name: [question.format(subject) for subject in part for question in QUESTIONS]
        for name, part in split.items()
    }


def select(answers: list[Completion], score: Score) -> tuple[str, str] | None:
    """Of the pairs of like length the one that differs most in score, as (higher, lower); None if
    no such pair differs."""
    alike = [
        (a.text, b.text)
        for a, b in itertools.permutations(answers, 2)
        if score(a.text) > score(b.text)
        and abs(len(a.token_ids) - len(b.token_ids)) <= LENGTH_DIFFERENCE
    ]
    return max(alike, key=lambda pair: score(pair[0]) - score(pair[1]), default=None)


def label(prompt: str, higher: str, lower: str, score: Score) -> dict:
    """A preference pair of two answers, labelled by Bradley-Terry; the prompt is the seed."""
    gap = torch.tensor(score(higher) - score(lower), dtype=torch.float64)
    truthful = random.Random(prompt).random() < bradley_terry(REWARD_SCALE * gap, 0.0).item()
    chosen, rejected = (higher, lower) if truthful else (lower, higher)
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "vader_chosen": score(chosen),
        "vader_rejected": score(rejected),
    }


def answers(
    model, tokenizer, questions: list[str], seed: int, max_new_tokens: int = MAX_NEW_TOKENS
) -> list[list[Completion]]:
    """The answers to each of these prompts.

    Prompts are drawn in batches of BATCH_PROMPTS, each from its own seed: the answers to a leading
    part of `questions`, cut at a multiple of BATCH_PROMPTS, are the leading part of all answers.
    """
    # The number of threads can change the last bit of a sum, and with it an answer.
    torch.set_num_threads(2)
    prompts: list[Prompt] = [[{"role": "user", "content": question}] for question in questions]
    how = {"temperature": TEMPERATURE, "max_new_tokens": max_new_tokens, "seed": seed}
    how |= {"samples": SAMPLES, "batch_size": BATCH_PROMPTS * SAMPLES}
    return sample_completions(model, tokenizer, prompts, **how)


def build(model, tokenizer, questions: list[str], seed: int) -> list[dict]:
    """The pairs of these prompts, in their order."""
    pairs = []
    groups = answers(model, tokenizer, questions, seed)
    for question, group in zip(questions, groups, strict=True):
        ended = [answer for answer in group if answer.finished and answer.text]
        if pair := select(ended, vader_score):
            pairs.append(label(question, *pair, vader_score))
    return pairs


def summary(pairs: list[dict], tokenizer) -> dict[str, str]:
    """What the data card says of one split."""

    def lengths(values: list[int]) -> str:
        p95 = statistics.quantiles(values, n=20)[-1]
        return f"{statistics.mean(values):.1f} / {p95:.0f} / {max(values)}"

    def completion_lengths(key: str) -> list[int]:
        texts = [pair[key][0]["content"] for pair in pairs]
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    chosen, rejected = completion_lengths("chosen"), completion_lengths("rejected")
    gaps = [pair["vader_chosen"] - pair["vader_rejected"] for pair in pairs]
    sides = ("vader_chosen", "vader_rejected")
    better, worse = (statistics.mean(pair[side] for pair in pairs) for side in sides)
    least, mean = min(map(abs, gaps)), statistics.mean(map(abs, gaps))
    prompts = [len(prompt_token_ids(tokenizer, pair["prompt"])) for pair in pairs]
    longer = sum(c > r for c, r in zip(chosen, rejected, strict=True))
    return {
        "pairs": str(len(pairs)),
        "VADER of chosen / rejected, mean": f"{better:+.3f} / {worse:+.3f}",
        "gap between the two, mean / least": f"{mean:.2f} / {least:.2f}",
        "label noise (the less positive was chosen)": f"{sum(g < 0 for g in gaps) / len(gaps):.1%}",
        "prompt tokens, mean / 95th percentile / most": lengths(prompts),
        "chosen tokens": lengths(chosen),
        "rejected tokens": lengths(rejected),
        "chosen is the longer": f"{longer / len(pairs):.0%}",
    }


def card(splits: dict[str, list[dict]], tokenizer) -> str:
    train, test = (summary(splits[name], tokenizer) for name in ("train", "test"))
    table = "\n".join(f"| {key} | {train[key]} | {test[key]} |" for key in train)
    return f"""\
---
license: apache-2.0
---
# Sentiment preferences of SmolLM2-135M-Instruct

Made by `scripts/embedded_data.py`, which says how; nothing in it was written or taken elsewhere.
Prompts: {len(QUESTIONS)} questions about each of the subjects in `subjects.txt`, the subjects of
train and test apart. Answers: sampled from the model itself, {SAMPLES} a prompt, temperature
{TEMPERATURE}, at most {MAX_NEW_TOKENS} tokens, only answers that it ended itself. Pair: the two
that differ most in the VADER compound score v, of those that differ by at most
{LENGTH_DIFFERENCE} tokens in length. Label: drawn from sigmoid({REWARD_SCALE:g} (v_a - v_b)).
Prompts without such a pair are left out.

Columns: `prompt`, `chosen`, `rejected` (TRL's conversational preference format), `vader_chosen`,
`vader_rejected` (the known reward of each; a run on this data is evaluated by it).

| | train | test |
|---|---|---|
{table}

No evaluation that knows only the labels can agree with more of them than the true reward does:
one less the label noise of `test` is the ceiling of preference accuracy there.

The answers are a small model's: they are often untrue, and praise or blame nobody real.
"""


@guarded
def main() -> None:
    output = arguments().output
    # bfloat16: twice as fast here, and the answers are the same in kind.
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    splits = {name: build(model, tokenizer, part, SEEDS[name]) for name, part in prompts().items()}
    output.mkdir(parents=True, exist_ok=True)
    for name, pairs in splits.items():
        lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs]
        (output / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    (output / "README.md").write_text(card(splits, tokenizer), encoding="utf-8")
    print(f"Wrote {', '.join(f'{len(v)} {k}' for k, v in splits.items())} pairs to {output}")
    print("Next: make data shows them as the model will see them")


if __name__ == "__main__":
    main()
