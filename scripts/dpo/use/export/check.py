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
from dpo.use.export import quantised

PAIRS = 32  # whose answers are scored
PROMPTS = 8  # that are answered
MAX_NEW_TOKENS = 128
SHARE = 0.5  # of the way from reference to policy that an export may be off the policy
KEPT = ("export_from_policy", "policy_from_reference")  # off by, and the way that training went

Row = tuple[list[int], list[int]]  # prompt ids, completion ids


@dataclass
class Expected:
    """What the run's policy makes of some pairs and prompts.

    `policy`, `rounded` and `reference` are log-probabilities in nats, as `token_logps` gives them:
    of the policy, of the same with its weights rounded in memory as the export's are, and of its
    reference; for a quantised export `beside` are those of the reference in the same bits. `rows`
    are all chosen answers, then all rejected ones. `ended` counts the prompts whose sampled answer
    the policy ends by itself.
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
    beside: list[np.ndarray] | None = None


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


def of_pairs(expected: Expected, exported: list[np.ndarray]) -> dict[str, Any]:
    """What an export keeps of what the policy prefers, by the margin between a pair's answers: that
    of the implicit reward over β, in nats, in the mean.

    `policy_from_reference` is how far training has moved it, and `export_from_policy` how far the
    export is from that. Few bits move policy and reference alike: `learning_lost` is what lies
    between the policy's margin over its reference and the export's over one in the same bits, and
    `ranked_alike` how many pairs both put in the same order.
    """

    def margins(logps: list[np.ndarray], reference: list[np.ndarray]) -> np.ndarray:
        gained = [(mine - other).sum() for mine, other in zip(logps, reference, strict=True)]
        chosen, rejected = np.array(gained).reshape(2, -1)
        return chosen - rejected

    policy, export = (margins(each, expected.reference) for each in (expected.policy, exported))
    learned = margins(exported, expected.beside or expected.reference)
    return {
        "count": len(policy),
        "ranked_alike": int((np.sign(policy) == np.sign(learned)).sum()),
        "policy_from_reference": float(np.abs(policy).mean()),
        "export_from_policy": float(np.abs(export - policy).mean()),
        "learning_lost": float(np.abs(learned - policy).mean()),
    }


def check_kept(dtype: str, found: dict[str, Any], lossy: bool) -> None:
    """See that rounding has left what was learned: log-probabilities of answers are nearer to the
    policy than SHARE of the way that training has moved them. Few bits move them more: there the
    margins between the answers of a pair, which DPO trains, must have kept a part of what was
    learned, over a reference in the same bits.

    Args:
        found: what `check` has.

    Raises:
        Refusal: they are not.
    """
    off, learned = (found["nats"][name]["answer"] for name in KEPT)
    share, what = SHARE, "the log-probability of an answer"
    if lossy:
        off, learned = (found["pairs"][name] for name in ("learning_lost", KEPT[1]))
        share, what = 1.0, "the margin between the answers of a pair"
    if off > share * learned:
        raise Refusal(
            f"{dtype} rounds away what was learned: it moves {what} by {off:.2g} nats, training by "
            f"{learned:.2g}. Take one of more bits"
        )


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
    lossy: bool = False,
) -> dict[str, Any]:
    """Hold an export, as `load` gave it, against the policy of its run.

    Three differences of log-probabilities are told apart. Between the export and the policy with
    its weights rounded in memory there may be no more than the order of sums makes
    (NATS_PER_TOKEN): both have the same weights. What the rounding itself costs is measured on
    the policy. And where training has moved the policy, the export must have kept what was learned
    (`check_kept`).

    Args:
        dtype: what the export's weights are called.
        bound: nats a token, in the mean, that it may be off the rounded policy.
        lossy: it is quantised: fewer bits a weight than any dtype has.

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
    found: dict[str, Any] = {
        "answers": len(expected.rows),
        "tokens": int(sum(map(len, exported))),
        "bound_per_token": bound,
        "nats": {
            "export_from_policy": apart(exported, expected.policy),
            "export_from_rounded_policy": apart(exported, expected.rounded),
            "rounded_policy_from_policy": apart(expected.rounded, expected.policy),
            "policy_from_reference": apart(expected.policy, expected.reference),
        },
        "pairs": of_pairs(expected, exported),
    }
    if not np.isfinite(np.concatenate(exported)).all():
        raise Refusal(f"{dtype} cannot hold the numbers of this model: give DTYPE=bfloat16")
    if (off := found["nats"]["export_from_rounded_policy"]["token"]) > bound:
        wrong(f"log-probabilities of tokens differ by {off:.2g} nats, where {bound:g} is rounding")
    if found["nats"]["policy_from_reference"]["token"] > NATS_PER_TOKEN[expected.dtype]:
        check_kept(dtype, found, lossy)
    ends = ended(model, tokenizer, expected.prompt_ids, expected.ends)
    if expected.ended and not ends:
        wrong(f"none of {len(ids)} sampled answers ends, of the policy's {expected.ended}")
    found["prompts"] = len(ids)
    found["ended"] = {"export": ends, "policy": expected.ended, "max_new_tokens": MAX_NEW_TOKENS}
    return found


def of_folder(
    folder: Path, adapter: bool, trusted: bool, expected: Expected, quant: str, **how: Any
) -> dict[str, Any]:
    """`check` of what a folder holds; `how` it is loaded."""
    code = {"trust_remote_code": trusted}
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, **code)
    model = load(folder, adapter, **how, **code)
    dtype, bound = str(model.dtype).removeprefix("torch."), NATS_PER_TOKEN[model.dtype]
    if quant:
        dtype, bound = quant, quantised.BOUNDS[quant]
    return check(model, tokenizer, expected, dtype, bound, bool(quant))


def expected_of(
    policy: PreTrainedModel,
    tokenizer: Any,
    rows: list[Row],
    prompts: list[Prompt],
    dtype: torch.dtype,
    quant: str,
) -> Expected:
    """What a policy gives, before and after its weights are rounded to `dtype`, in place; the
    reference is scored when it has left the memory, and of a quantised export what is rounded when
    that is written."""
    ids = [sampling.prompt_token_ids(tokenizer, prompt) for prompt in prompts]
    ends = listed(policy.generation_config.eos_token_id)
    own, logps = policy.dtype, token_logps(policy, rows, "the policy")
    count = ended(policy, tokenizer, ids, ends)
    # Not the buffers: what RoPE turns by stays in float32 where weights are less.
    for parameter in policy.parameters():
        parameter.data = parameter.data.to(dtype)
    same = own == dtype or quant
    rounded = logps if same else token_logps(policy, rows, "the policy, rounded")
    return Expected(rows, prompts, ids, ends, count, logps, rounded, [], own)
