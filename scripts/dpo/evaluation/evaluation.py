"""Did the model get better? The saved policy beside its reference, on held-out data."""

from __future__ import annotations

import gc
import hashlib
from dataclasses import replace

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from dpo.core.stats import NATS_PER_TOKEN, accuracy, bootstrap, numbered, numerics, share
from dpo.data.reading import DIGESTS, column
from dpo.data.schema import pair_rows
from dpo.evaluation.contestants import reference_of
from dpo.evaluation.judges.known_reward import vader_score
from dpo.models.sampling import Completion, kind_of, sample, told
from dpo.models.scoring import Scored, score
from dpo.recipe.parse import Recipe

# scripts/embedded_data.py samples its pairs with these two as well.
TEMPERATURE = 0.7  # at 1.0 the embedded model's 4-bit weights ramble
MAX_NEW_TOKENS = 40
SEED = 20_231_218  # apart from the seeds of the data, so that no answer is drawn again


def evaluate(
    recipe: Recipe,
    policy_folder: str,
    held_out: Dataset,
    device: str,
    scored: Scored | None = None,
) -> dict:
    """Compare the policy saved in `policy_folder` with its reference.

    Args:
        scored: the pairs as the trainer scored them, if it did: models are loaded then only to
            answer prompts.
        held_out: pairs as DPOTrainer tokenised them (`prompt_ids`, `chosen_ids`, `rejected_ids`).
            With the columns `vader_chosen` and `vader_rejected` the true reward is known to be
            the VADER score: then both models also answer held-out prompts, and are scored by it.

    Returns:
        `preference_accuracy`: share of held-out pairs whose chosen answer has the higher implicit
        reward, `before` and `after` with a 95% interval, and the `ceiling` that the true reward
        itself reaches on these noisy labels (None if unknown); `pairs` of how many `prompts`, and
        how many `ties`. `margin`: the mean by which it is higher, and `margins`, pair by pair, 0
        for ties. `prompt_numbers` says which pairs are of one prompt, `held_out_digest` which
        pairs they are, so that those of two runs are held against each other. With a known reward
        also
        `true_reward` (mean before, after, and of the difference by prompt, with its interval),
        `kl_nats_per_sequence` and `_per_token` (KL of the policy from the reference at the
        sampling temperature, on the policy's own answers), `mean_tokens`, `answers` (rewards of
        every answer) and ten `samples` side by side.
    """
    args, start = recipe.training, reference_of(recipe)
    known = "vader_chosen" in held_out.column_names
    count = min(recipe.run.reward_prompts, len(held_out)) if known else 0
    if scored and not count:
        return of_pairs(scored, held_out, args.beta)
    trained = replace(start, path=policy_folder, revision=None)
    tokenizer = trained.tokenizer()
    pad = tokenizer.pad_token_id
    pairs = [] if scored else pair_rows(held_out, args.max_length, args.truncation_mode)
    prompts, samples = list(held_out["prompt"][:count]) if count else [], recipe.run.reward_samples
    # As they were tokenised for training, with the tools and options of their rows.
    asked = [ids for ids in held_out["prompt_ids"][:count] for _ in range(samples)]

    def answer(model: PreTrainedModel, desc: str) -> list[list[Completion]]:
        drawn = sample(
            model,
            tokenizer,
            asked,
            temperature=TEMPERATURE,
            max_new_tokens=MAX_NEW_TOKENS,
            seed=SEED,
            desc=desc,
            kind=kind_of(prompts),
        )
        return [drawn[at : at + samples] for at in range(0, len(drawn), samples)]

    # One model at a time: the larger of the two decides the memory, not their sum.
    with trained.autocast(device):
        policy = trained.load(device)
        policy_pairs = score(policy, pairs, pad, desc="Held-out pairs, policy", pairs=True)
        after = answer(policy, "Answers of the policy") if count else []
        drawn = [completion.token_ids for row in after for completion in row]
        own = [*zip(asked, drawn, strict=True)]
        policy_own = score(policy, own, pad, TEMPERATURE, "KL, policy")
        del policy
        gc.collect()  # a backbone that shares prefixes refers to itself
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        first = start.load(device)
        reference_pairs = score(first, pairs, pad, desc="Held-out pairs, reference", pairs=True)
        rounding = NATS_PER_TOKEN[numerics(first)]
        before = answer(first, "Answers of the reference") if count else []
        reference_own = score(first, own, pad, TEMPERATURE, "KL, reference")

    if not scored:
        tokens = np.array([len(completion) for _, completion in pairs]).reshape(2, -1).sum(axis=0)
        halves = (found.reshape(2, -1) for found in (policy_pairs, reference_pairs))
        scored = Scored(*halves, tokens, rounding)
    results = of_pairs(scored, held_out, args.beta)
    if count:
        results |= compare(prompts, before, after, np.array(results["prompt_numbers"][:count]))
        nats, tokens = policy_own - reference_own, sum(len(ids) for _, ids in own)
        results["kl_nats_per_sequence"] = float(nats.mean())
        results["kl_nats_per_token"] = float(nats.sum() / tokens)
    return results


def digest_of(held_out: Dataset) -> str:
    """Which pairs these are, by what they say, whatever the tokenizer."""
    said = np.array([column(held_out, name) for name in DIGESTS])
    return hashlib.sha256(said.tobytes()).hexdigest()[:16]


def of_pairs(scored: Scored, held_out: Dataset, beta: float) -> dict:
    """Accuracy and margin of the implicit reward on pairs, and the margin of each; as `evaluate`
    returns them."""
    margins = scored.margins(beta)
    prompts = numbered(column(held_out, "prompt_digest"))
    correct, margin = share(accuracy(margins), prompts), bootstrap(margins, prompts=prompts)
    ceiling = None
    if "vader_chosen" in held_out.column_names:
        chosen, rejected = (column(held_out, f"vader_{side}") for side in ("chosen", "rejected"))
        ceiling = float(accuracy(chosen - rejected).mean())
    return {
        "preference_accuracy": {
            "before": 0.5,  # the reference's implicit reward is zero everywhere
            **{"after": correct.mean, "low": correct.low, "high": correct.high},
            **{"ceiling": ceiling, "pairs": len(margins), "prompts": int(prompts.max()) + 1},
            "ties": int((margins == 0).sum()),
        },
        "margin": {"after": margin.mean, "low": margin.low, "high": margin.high},
        # Six digits and not six decimals: with a small β none of them would be left.
        "margins": [float(f"{margin:.6g}") for margin in margins],
        "prompt_numbers": prompts.tolist(),
        "held_out_digest": digest_of(held_out),
    }


def compare(
    prompts: list,
    before: list[list[Completion]],
    after: list[list[Completion]],
    numbers: np.ndarray | None = None,
) -> dict:
    """True reward and length of the two models' answers to the same prompts.

    `numbers` says which of them are the same prompt, shape (prompts,).
    """
    scores = {
        name: np.array([[vader_score(answer.text) for answer in row] for row in rows])
        for name, rows in (("before", before), ("after", after))
    }
    # Answers to one prompt are alike, so the prompt is the unit that is resampled.
    rise = (scores["after"] - scores["before"]).mean(axis=1)
    difference = bootstrap(rise, prompts=numbers)
    lengths = {
        name: np.mean([len(answer.token_ids) for row in rows for answer in row])
        for name, rows in (("before", before), ("after", after))
    }
    shown = np.linspace(0, len(prompts) - 1, min(10, len(prompts))).astype(int)
    return {
        "true_reward": {
            "name": "VADER compound score, -1 to 1",
            "before": float(scores["before"].mean()),
            "after": float(scores["after"].mean()),
            "difference": difference.mean,
            "low": difference.low,
            "high": difference.high,
            "prompts": len(prompts),
            "answers_per_prompt": scores["before"].shape[1],
            "temperature": TEMPERATURE,
        },
        "mean_tokens": {name: float(value) for name, value in lengths.items()},
        "answers": {name: values.round(4).tolist() for name, values in scores.items()},
        "samples": [
            {
                "prompt": prompts[i] if isinstance(prompts[i], str) else told(prompts[i][-1]),
                "before": before[i][0].text,
                "after": after[i][0].text,
                "reward_before": float(scores["before"][i, 0]),
                "reward_after": float(scores["after"][i, 0]),
            }
            for i in shown
        ],
    }
