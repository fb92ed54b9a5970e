"""Did the model get better? The saved policy beside its reference, on held-out data."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedModel

from dpo import adapters
from dpo.intervals import bootstrap
from dpo.recipe import Recipe
from dpo.rewards import completion_logps, implicit_reward
from dpo.sampling import Completion, prompt_token_ids, sample_completions, vader_score

# scripts/embedded_data.py samples its pairs with these two as well.
TEMPERATURE = 0.7  # at 1.0 the embedded model's 4-bit weights ramble
MAX_NEW_TOKENS = 40
SEED = 20_231_218  # apart from the seeds of the data, so that no answer is drawn again
SCORING_ROWS = 16


def fast_dtype(device: str) -> torch.dtype:
    """bfloat16 where it is computed fast, else float32. For evaluation alone: on a CPU without
    AVX-512, bfloat16 is many times slower than float32."""
    if device == "cpu":
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        fast = torch.cuda.is_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def load(recipe: Recipe, name: str, device: str) -> PreTrainedModel:
    """The reference by its name, or the trained policy by its folder; an adapter on its base."""
    is_start = name == recipe.model.model_name_or_path
    model = adapters.load(
        name,
        revision=recipe.model.model_revision if is_start else None,
        trust_remote_code=recipe.training.trust_remote_code,
        dtype=fast_dtype(device),
        attn_implementation=recipe.model.attn_implementation,
    )
    return model.to(device).eval()


@torch.no_grad()
def score(
    model: PreTrainedModel,
    rows: list[tuple[list[int], list[int]]],
    pad: int,
    temperature: float = 1.0,
    desc: str | None = None,
) -> np.ndarray:
    """log π(y | x) in nats of rows of (prompt ids, completion ids), shape (rows,)."""
    longest_first = sorted(range(len(rows)), key=lambda i: -sum(map(len, rows[i])))
    logps = np.zeros(len(rows))
    starts = range(0, len(rows), SCORING_ROWS)
    for start in tqdm(starts, desc=desc, unit="batch", disable=not (rows and desc)):
        part = longest_first[start : start + SCORING_ROWS]
        width = max(sum(map(len, rows[i])) for i in part)
        input_ids = torch.full((len(part), width), pad)
        attention_mask, completion_mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
        for row, i in enumerate(part):
            prompt, completion = rows[i]
            end = len(prompt) + len(completion)
            input_ids[row, :end] = torch.tensor(prompt + completion)
            attention_mask[row, :end] = 1
            completion_mask[row, len(prompt) : end] = 1
        batch = (tensor.to(model.device) for tensor in (input_ids, attention_mask, completion_mask))
        logps[part] = completion_logps(model, *batch, temperature=temperature).cpu().numpy()
    return logps


def pair_rows(held_out: Dataset, max_length: int | None) -> list[tuple[list[int], list[int]]]:
    """All chosen, then all rejected, as (prompt ids, completion ids), cut as in training."""
    rows = []
    for side in ("chosen_ids", "rejected_ids"):
        for prompt, completion in zip(held_out["prompt_ids"], held_out[side], strict=True):
            room = None if max_length is None else max(max_length - len(prompt), 0)
            rows.append((prompt, completion[:room]))
    return rows


def accuracy(margins: np.ndarray) -> np.ndarray:
    """1 where the implicit reward prefers the chosen answer, 0 where not, ½ where it has no view
    (everywhere, as long as the policy is its reference)."""
    return (margins > 0) + 0.5 * (margins == 0)


def evaluate(recipe: Recipe, policy_folder: str, held_out: Dataset, device: str) -> dict:
    """Compare the policy saved in `policy_folder` with its reference.

    Args:
        held_out: pairs as DPOTrainer tokenised them (`prompt_ids`, `chosen_ids`, `rejected_ids`).
            With the columns `vader_chosen` and `vader_rejected` the true reward is known to be
            the VADER score: then both models also answer held-out prompts, and are scored by it.

    Returns:
        `preference_accuracy`: share of held-out pairs whose chosen answer has the higher implicit
        reward, `before` and `after` with a 95% interval, and the `ceiling` that the true reward
        itself reaches on these noisy labels (None if unknown). With a known reward also
        `true_reward` (mean before, after, and of the difference by prompt, with its interval),
        `kl_nats_per_sequence` (KL of the policy from the reference at the sampling temperature,
        on the policy's own answers), `mean_tokens`, `answers` (rewards of every answer) and ten
        `samples` side by side.
    """
    trusted = recipe.training.trust_remote_code
    tokenizer = AutoTokenizer.from_pretrained(policy_folder, trust_remote_code=trusted)
    pad, beta = tokenizer.pad_token_id, recipe.training.beta
    pairs = pair_rows(held_out, recipe.training.max_length)
    known = "vader_chosen" in held_out.column_names
    count = min(recipe.run.reward_prompts, len(held_out)) if known else 0
    prompts = held_out["prompt"][:count] if count else []

    def answer(model: PreTrainedModel, desc: str) -> list[list[Completion]]:
        return sample_completions(
            model,
            tokenizer,
            prompts,
            samples=recipe.run.reward_samples,
            temperature=TEMPERATURE,
            max_new_tokens=MAX_NEW_TOKENS,
            seed=SEED,
            desc=desc,
        )

    # One model at a time: the larger of the two decides the memory, not their sum.
    policy = load(recipe, policy_folder, device)
    policy_pairs = score(policy, pairs, pad, desc="Held-out pairs under the policy")
    after = answer(policy, "Answers of the policy") if count else []
    own = [
        (prompt_token_ids(tokenizer, prompt), completion.token_ids)
        for prompt, row in zip(prompts, after, strict=True)
        for completion in row
    ]
    policy_own = score(policy, own, pad, TEMPERATURE, "KL, policy")
    del policy
    reference = load(recipe, recipe.model.model_name_or_path, device)
    reference_pairs = score(reference, pairs, pad, desc="Held-out pairs under the reference")
    before = answer(reference, "Answers of the reference") if count else []
    reference_own = score(reference, own, pad, TEMPERATURE, "KL, reference")

    def prefers_chosen(logps: np.ndarray) -> np.ndarray:
        chosen, rejected = np.split(implicit_reward(logps, reference_pairs, beta), 2)
        return accuracy(chosen - rejected)

    correct = bootstrap(prefers_chosen(policy_pairs))
    results = {
        "preference_accuracy": {
            "before": float(prefers_chosen(reference_pairs).mean()),
            "after": correct.mean,
            "low": correct.low,
            "high": correct.high,
            "ceiling": float(
                np.greater(held_out["vader_chosen"], held_out["vader_rejected"]).mean()
            )
            if known
            else None,
            "pairs": len(held_out),
        },
    }
    if count:
        results |= compare(prompts, before, after)
        results["kl_nats_per_sequence"] = float((policy_own - reference_own).mean())
    return results


def compare(prompts: list, before: list[list[Completion]], after: list[list[Completion]]) -> dict:
    """True reward and length of the two models' answers to the same prompts."""
    scores = {
        name: np.array([[vader_score(answer.text) for answer in row] for row in rows])
        for name, rows in (("before", before), ("after", after))
    }
    # Answers to one prompt are alike, so the prompt is the unit that is resampled.
    difference = bootstrap((scores["after"] - scores["before"]).mean(axis=1))
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
                "prompt": prompts[i][-1]["content"],
                "before": before[i][0].text,
                "after": after[i][0].text,
                "reward_before": float(scores["before"][i, 0]),
                "reward_after": float(scores["after"][i, 0]),
            }
            for i in shown
        ],
    }
