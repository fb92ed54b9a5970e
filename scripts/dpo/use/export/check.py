"""What an export must have in common with the policy of its run, before it is called one.

Here the folder is loaded by transformers (an adapter by peft) as anybody would, and asked through
its own forward and generate: no code of this repository is between.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from dpo.core.refusal import Refusal
from dpo.core.stats import NATS_PER_TOKEN
from dpo.evaluation.measure import SEED, TEMPERATURE
from dpo.models import sampling
from dpo.models.sampling import Prompt

PAIRS = 32  # whose answers are scored
PROMPTS = 8  # that are answered
MAX_NEW_TOKENS = 128
SHARE = 0.5  # of the way from reference to policy that an export may be off the policy

Row = tuple[list[int], list[int]]  # prompt ids, completion ids


@dataclass
class Expected:
    """What the run's policy makes of some pairs and prompts.

    `policy`, `rounded` and `reference` are log-probabilities in nats, as `token_logps` gives them:
    of the policy, of the same with its weights rounded to the export's dtype in memory, and of its
    reference. `ended` counts the prompts whose sampled answer the policy ends by itself.
    """

    rows: list[Row]
    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    ends: list[int]
    ended: int
    policy: list[np.ndarray]
    rounded: list[np.ndarray]
    reference: list[np.ndarray]
    dtype: torch.dtype  # of the policy's weights


@torch.no_grad()
def token_logps(model: PreTrainedModel, rows: list[Row], under: str) -> list[np.ndarray]:
    """log π of each completion token, in nats: for every row an array of shape (tokens,)."""
    found = []
    for prompt, completion in tqdm(rows, desc=f"Answers under {under}", unit="answer"):
        ids = torch.tensor([prompt + completion], device=model.device)
        begin = max(len(prompt), 1)  # nothing says how likely a first token is
        logits = model(input_ids=ids, use_cache=False).logits[0, begin - 1 : -1].float()
        logps = logits.log_softmax(-1).gather(1, ids[0, begin:, None].to(logits.device))
        found.append(logps[:, 0].cpu().numpy().astype(float))
    return found


def apart(first: list[np.ndarray], second: list[np.ndarray]) -> dict[str, float]:
    """How far log-probabilities differ, in nats: a token in the mean and at the most, and an answer
    in the mean. NaN where one of them is none."""
    each = [mine - other for mine, other in zip(first, second, strict=True)]
    tokens = np.abs(np.concatenate(each))
    answer = np.abs([difference.sum() for difference in each]).mean()
    return {"token": tokens.mean(), "token_max": tokens.max(), "answer": float(answer)}


def load(folder: Path, adapter: bool, **how: Any) -> PreTrainedModel:
    """The export, as its users load it.

    Raises:
        Refusal: it lacks weights, or has others.
    """
    if adapter:
        from peft import AutoPeftModelForCausalLM

        model: Any = AutoPeftModelForCausalLM.from_pretrained(folder, **how)
        model.generation_config = GenerationConfig.from_pretrained(folder)
        return model.eval()
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **how)
    model, found = loaded
    for name, keys in found.items():
        if keys and name.endswith("_keys"):
            wrong(f"{name.replace('_', ' ')} {sorted(map(str, keys))[:3]}")
    return model.eval()


def listed(ends: int | list[int] | None) -> list[int]:
    """The tokens that end an answer, as a list, however a generation config has them."""
    return ends if isinstance(ends, list) else [ends] if ends is not None else []


def wrong(what: str) -> None:
    raise Refusal(
        f"the export is not the run's policy: {what}. Nothing was left in its place; if the run is "
        "sound, this is a fault of this repository"
    )


def ended(model: PreTrainedModel, tokenizer: Any, rows: list[list[int]], ends: list[int]) -> int:
    """How many prompts, as token ids, a model gives a sampled answer to that ends by itself: where
    its generation_config.json says."""
    part = {"input_ids": rows}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer.pad(part, padding_side="left", return_tensors="pt").to(model.device)
    set_seed(SEED)
    generate: Any = model.generate
    drawn = generate(
        **batch,
        **{"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0},
        max_new_tokens=MAX_NEW_TOKENS,
        pad_token_id=pad,
    )
    new = drawn[:, batch["input_ids"].shape[1] :].tolist()
    return sum(bool({*ids} & {*ends}) for ids in new)


def check(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    expected: Expected,
    dtype: str,
    bound: float,
) -> dict[str, Any]:
    """Hold an export, as `load` gave it, against the policy of its run.

    Three differences of log-probabilities are told apart. Between the export and the policy with
    its weights rounded in memory there may be no more than the order of sums makes
    (NATS_PER_TOKEN): both have the same weights. What the rounding itself costs is measured on
    the policy, before anything is written. And where training has moved the policy, the export
    must be nearer to it than SHARE of the way to the reference.

    Args:
        dtype: what the export's weights are called.
        bound: nats a token, in the mean, that it may be off the rounded policy.

    Returns what was found, for export.json.

    Raises:
        Refusal: the export is another model than the policy, or renders prompts otherwise, or never
            ends an answer; or its dtype rounds away what was learned.
    """
    ids = [sampling.prompt_token_ids(tokenizer, prompt) for prompt in expected.prompts]
    if ids != expected.prompt_ids:
        wrong("its tokenizer gives a prompt other tokens")
    stated = listed(model.generation_config.eos_token_id)
    if stated != expected.ends:
        wrong(f"its answers end at {stated}, and the policy's at {expected.ends}")
    exported = token_logps(model, expected.rows, "the export")
    differ = {
        "export_from_policy": apart(exported, expected.policy),
        "export_from_rounded_policy": apart(exported, expected.rounded),
        "rounded_policy_from_policy": apart(expected.rounded, expected.policy),
        "policy_from_reference": apart(expected.policy, expected.reference),
    }
    if not np.isfinite(np.concatenate(exported)).all():
        raise Refusal(f"{dtype} cannot hold the numbers of this model: give DTYPE=bfloat16")
    if (off := differ["export_from_rounded_policy"]["token"]) > bound:
        wrong(f"log-probabilities of tokens differ by {off:.2g} nats, where {bound:g} is rounding")
    lost, moved = differ["export_from_policy"]["answer"], differ["policy_from_reference"]
    if moved["token"] > NATS_PER_TOKEN[expected.dtype] and lost > SHARE * moved["answer"]:
        raise Refusal(
            f"{dtype} rounds away what was learned: it moves the log-probability of an answer by "
            f"{lost:.2g} nats, training by {moved['answer']:.2g}. Take one of more bits"
        )
    ends = ended(model, tokenizer, expected.prompt_ids, expected.ends)
    if expected.ended and not ends:
        wrong(f"none of {len(ids)} sampled answers ends, of the policy's {expected.ended}")
    return {
        "answers": len(expected.rows),
        "tokens": int(sum(map(len, exported))),
        "bound_per_token": bound,
        "nats": differ,
        "prompts": len(ids),
        "ended": {"export": ends, "policy": expected.ended, "max_new_tokens": MAX_NEW_TOKENS},
    }


def of_folder(
    folder: Path, adapter: bool, trusted: bool, expected: Expected, **how: Any
) -> dict[str, Any]:
    """`check` of what a folder holds; `how` it is loaded."""
    code = {"trust_remote_code": trusted}
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, **code)
    model = load(folder, adapter, **how, **code)
    dtype, bound = str(model.dtype).removeprefix("torch."), NATS_PER_TOKEN[model.dtype]
    return check(model, tokenizer, expected, dtype, bound)


def expected_of(
    policy: PreTrainedModel,
    tokenizer: Any,
    rows: list[Row],
    prompts: list[Prompt],
    dtype: torch.dtype,
) -> Expected:
    """What a policy gives, before and after its weights are rounded to `dtype`, in place; the
    reference is scored when it has left the memory."""
    ids = [sampling.prompt_token_ids(tokenizer, prompt) for prompt in prompts]
    ends = listed(policy.generation_config.eos_token_id)
    own, logps = policy.dtype, token_logps(policy, rows, "the policy")
    count = ended(policy, tokenizer, ids, ends)
    # Not the buffers: what RoPE turns by stays in float32 where weights are less.
    for parameter in policy.parameters():
        parameter.data = parameter.data.to(dtype)
    rounded = logps if own == dtype else token_logps(policy, rows, "the policy, rounded")
    return Expected(rows, prompts, ids, ends, count, logps, rounded, [], own)
