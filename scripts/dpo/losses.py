"""The equations of the DPO paper (Rafailov et al. 2023, arXiv 2305.18290) as pure functions.

Training computes them inside TRL; evaluation uses these. A test holds the two together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from trl import DPOConfig


def completion_logps(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_mask: Tensor,
    temperature: float = 1.0,
    **given,
) -> Tensor:
    """Log-probability of each row's completion given its prompt, log π(y | x), in nats.

    Args:
        model: a causal language model.
        input_ids: prompt followed by completion, padded right, shape (rows, length).
        attention_mask: 1 on real tokens, same shape.
        completion_mask: 1 on completion tokens, same shape.
        temperature: of the distribution softmax(logits / temperature); 1 is the model's own.
        given: what else the model's forward takes.

    Returns:
        Shape (rows,), float32 whatever the model's dtype: the sum over the completion's tokens.
    """
    # The head is by far the widest layer: it runs from the first completion token of any row on.
    first = max(int(completion_mask.argmax(dim=1).min()), 1)
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        use_cache=False,
        logits_to_keep=input_ids.shape[1] - first + 1,
        **given,
    ).logits[:, :-1]
    # Row by row: in float32 all of them would take three times what the logits do.
    per_token = torch.stack(
        [
            (row.float() / temperature).log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
            for row, ids in zip(logits, input_ids[:, first:], strict=True)
        ]
    )
    return (per_token * completion_mask[:, first:]).sum(dim=1)


def implicit_reward(policy_logps: Tensor, reference_logps: Tensor, beta: float) -> Tensor:
    """r̂(x, y) = β (log π(y | x) - log π_ref(y | x)), shape as given.

    The reward that a policy implies, up to a constant of the prompt (equation 5, where β log Z(x)
    is that constant).
    """
    return beta * (policy_logps - reference_logps)


def bradley_terry(reward_a: Tensor, reward_b: Tensor | float) -> Tensor:
    """Probability that a is preferred to b: σ(r_a - r_b) (equation 1)."""
    return torch.sigmoid(reward_a - reward_b)


def optimal_logps(reference_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """log π*(y | x) of the policy with the highest mean reward less β KL(π ‖ π_ref) (equation 4).

    π* is π_ref exp(r / β), divided by the sum Z(x) of that over all completions. So it can be
    written down only where these can be listed.

    Args:
        reference_logps: log π_ref(y | x) of every completion there is, shape (..., completions).
        rewards: r(x, y) of each, same shape.
        beta: the weight of the KL; both are in the units of the reward.

    Returns:
        Same shape; the probabilities of a row sum to 1.
    """
    return (reference_logps + rewards / beta).log_softmax(-1)


def dpo_loss(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """-log σ(r̂(x, y_w) - r̂(x, y_l)) of each pair, in nats (equation 7 before its mean)."""
    return -torch.nn.functional.logsigmoid(chosen_rewards - rejected_rewards)


def gradient_weight(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """σ(r̂(x, y_l) - r̂(x, y_w)) of each pair: the probability that the policy's own reward gives to
    the wrong order, and what β (∇ log π(y_w) - ∇ log π(y_l)) is weighed by in a step of DPO
    (section 4 of the paper, "What does the DPO update do?"); 0.5 where policy and reference agree.
    """
    return bradley_terry(rejected_rewards, chosen_rewards)


LN2 = math.log(2)
# Policy = reference, so that every log-ratio is 0: the loss of each type, and no less than its
# slope there in nats of one log-ratio; b is β and e the label smoothing. The score of each
# f-divergence is 0 with slope 1 or less where the log-ratio is 0, so the same numbers hold.
# `sft` is the policy's own cross-entropy and has no such constant.
START = {
    "sigmoid": lambda b, e: (LN2, b),
    "hinge": lambda b, e: (1, b),
    "ipo": lambda b, e: (1 / (2 * b) ** 2, 1 / b + 1),
    # KL of (½, ½) from (1 - e, e): the EXO paper, equation 16
    "exo_pair": lambda b, e: (-LN2 - math.log(e * (1 - e)) / 2, b * (1 - math.log(e))),
    "nca_pair": lambda b, e: (2 * LN2, 1.5 * b),
    "robust": lambda b, e: (LN2, b / (1 - 2 * e)),
    "bco_pair": lambda b, e: (2 * LN2, b),
    "sppo_hard": lambda b, e: (2 * (0.5 / b) ** 2, 1 / b + 1),
    "aot": lambda b, e: (LN2, b),
    "aot_unpaired": lambda b, e: (LN2, b),
    "apo_zero": lambda b, e: (1, b),
    "apo_down": lambda b, e: (1, b),
    "discopop": lambda b, e: ((LN2 + 1) / 2, b),
    "sigmoid_norm": lambda b, e: (LN2, b),
}


def start_loss(args: DPOConfig) -> tuple[float, float] | None:
    """The loss where policy and reference are the same, and its slope in nats, as the weighted sum
    over its types; None if one of them has no constant."""
    if args.use_weighting or "sft" in args.loss_type:
        return None
    weights = args.loss_weights or [1.0] * len(args.loss_type)
    parts = [START[name](args.beta, args.label_smoothing) for name in args.loss_type]
    loss = sum(weight * part[0] for weight, part in zip(weights, parts, strict=True))
    return loss, sum(abs(weight) * part[1] for weight, part in zip(weights, parts, strict=True))
