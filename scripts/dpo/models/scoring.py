"""log π(y | x) of answers under a model, and what a policy prefers by it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dpo.core import stats
from dpo.losses import completion_logps, implicit_reward
from dpo.prefix_sharing import backbone
from dpo.prefix_sharing.backbone import SharedPrefixes

SCORING_ROWS, SCORING_TOKENS = 16, 8192  # at a time: a head gives every token a row of its words


@dataclass
class Scored:
    """Log-probabilities in nats, chosen and rejected, each of shape (2, pairs)."""

    policy: np.ndarray
    reference: np.ndarray
    tokens: np.ndarray  # of both answers of each pair, as cut in training, shape (pairs,)
    nats_per_token: float  # what rounding may make of one token's

    def margins(self, beta: float) -> np.ndarray:
        """Implicit reward of the chosen answer less that of the rejected, shape (pairs,); 0 where
        it is no more than rounding."""
        chosen, rejected = implicit_reward(self.policy, self.reference, beta)
        return stats.settled(chosen - rejected, stats.width(beta, self.nats_per_token, self.tokens))


@torch.no_grad()
def score(
    model: PreTrainedModel,
    rows: list[tuple[list[int], list[int]]],
    pad: int,
    temperature: float = 1.0,
    desc: str | None = None,
    *,
    pairs: bool = False,
) -> np.ndarray:
    """log π(y | x) in nats of rows of (prompt ids, completion ids), shape (rows,).

    `pairs` says that the second half of the rows are the rejected answers to the prompts of the
    first half: then each prompt is computed once, where the model allows it.
    """
    if not rows:
        return np.zeros(0)
    each = 2 if pairs else 1
    together = np.arange(len(rows)).reshape(each, -1).T  # the rows of each pair, or each alone
    lengths = np.array([len(prompt) + len(completion) for prompt, completion in rows])
    longest_first = np.argsort(-lengths[together].sum(axis=1), kind="stable")
    shared = pairs and not backbone.obstacle(model)
    if shared:
        backbone.share_prefixes(model)
    logps = np.zeros(len(rows))
    parts = batches(lengths[together].max(axis=1), longest_first, each)
    for some in tqdm(parts, desc=desc, unit="batch", disable=not desc):
        part = together[some].T.flatten()
        ids, attention, completions = tensors([rows[i] for i in part], pad)
        batch = [tensor.to(model.device) for tensor in (ids, attention, completions)]
        plan = SharedPrefixes.of(ids, attention) if shared else None
        given = {"shared_prefixes": plan.to(model.device)} if shared else {}
        found = completion_logps(model, *batch, temperature=temperature, **given)
        logps[part] = found.cpu().numpy()
    return logps


def tensors(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, ...]:
    """Rows of (prompt ids, completion ids) as `completion_logps` takes them: input ids, attention
    mask and completion mask, each of shape (rows, longest)."""
    return (
        padded([prompt + completion for prompt, completion in rows], pad),
        padded([[1] * len(prompt + completion) for prompt, completion in rows]),
        padded([[0] * len(prompt) + [1] * len(completion) for prompt, completion in rows]),
    )


def padded(rows: list[list[int]], value: int = 0) -> torch.Tensor:
    """Rows of numbers as one tensor, shape (rows, longest), filled up on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], True, value)


def batches(widths: np.ndarray, order: np.ndarray, each: int) -> list[np.ndarray]:
    """`order` in parts whose rows, `each` to one entry and padded to the widest, are not too many.

    Args:
        widths: tokens of the longest row of each entry, by its number in `order`.
    """
    parts: list[list[int]] = []
    widest = 0
    for at in order:
        rows = each * (len(parts[-1]) + 1) if parts else 0
        widest = max(widest, widths[at])
        if not rows or rows > SCORING_ROWS or rows * widest > SCORING_TOKENS:
            parts.append([])
            widest = widths[at]
        parts[-1].append(int(at))
    return [np.array(part) for part in parts]
