"""The plan of a batch: how its rows fold into one in which each prompt stands once, and unfold.

TRL hands a batch of B pairs to the model as 2B rows, padded to the longest: the prompt of every
pair is computed twice, and padding is computed too. Here the rows are folded into one:

    rows  x₁ y₁ ·    x₂ y₂ y₂ y₂    (chosen)         packed  x₁ y₁ y₁′ y₁′  x₂ y₂ y₂ y₂ y₂′
          x₁ y₁′ y₁′  x₂ y₂′ · ·    (rejected)

with x the longest common prefix of a pair. Every token keeps its true position; chosen tokens y
see their prefix, rejected tokens y′ see it too and never y.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from trl.data_utils import common_prefix_length
from trl.trainer.dpo_trainer import DataCollatorForPreference


@dataclass
class SharedPrefixes:
    """How the 2B rows of a batch fold into one row of N tokens, and unfold again.

    Attributes:
        lengths: (prefix, chosen, rejected) tokens of each of the B pairs; they add up to N.
        fold: shape (N,), for each packed token its place in the flattened (2B, L) batch.
        positions: shape (1, N), its position in the row that it came from.
        unfold: shape (2B * L,), for each place in the flattened batch the packed token that
            computes it. Padding points at token 0: nothing reads it.
        queries, keys: shape (branches + 1,), where the queries of each branch begin among the
            packed tokens and its keys in `visible`. A branch is prefix and chosen, or rejected;
            a pair has no second one if its rejected row begins its chosen row.
        visible: shape (K,), the packed tokens that each branch sees, one branch after the other.
        longest: the most queries and the most keys of a branch.
        masks: what `mask` and `padded` have made so far.
        attended: layers of the current forward that went by this plan.
    """

    lengths: list[tuple[int, int, int]]
    fold: Tensor
    positions: Tensor
    unfold: Tensor
    queries: Tensor
    keys: Tensor
    visible: Tensor
    longest: tuple[int, int]
    masks: dict[tuple, Any] = field(default_factory=dict, repr=False)
    attended: int = 0

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor) -> SharedPrefixes:
        """Plan a batch of TRL's collator: (2B, L), chosen rows first, padded right."""
        width = input_ids.shape[1]
        sizes = attention_mask.sum(1).tolist()
        rows = [ids[:n] for ids, n in zip(input_ids.tolist(), sizes, strict=True)]
        pairs = len(rows) // 2
        lengths, fold, positions, visible = [], [], [], []
        unfold = torch.zeros_like(input_ids)
        queries, keys = [0], [0]
        for i, (chosen, rejected) in enumerate(zip(rows[:pairs], rows[pairs:], strict=True)):
            prefix, start = common_prefix_length(chosen, rejected), len(fold)
            split, end = start + len(chosen), start + len(chosen) + len(rejected) - prefix
            lengths.append((prefix, len(chosen) - prefix, len(rejected) - prefix))
            fold += range(i * width, i * width + len(chosen))
            second = (pairs + i) * width
            fold += range(second + prefix, second + len(rejected))
            positions += range(len(chosen))
            positions += range(prefix, len(rejected))
            unfold[i, : len(chosen)] = torch.arange(start, split)
            unfold[pairs + i, :prefix] = torch.arange(start, start + prefix)
            unfold[pairs + i, prefix : len(rejected)] = torch.arange(split, end)
            visible += range(start, split)
            queries.append(split)
            keys.append(len(visible))
            if end > split:
                visible += range(start, start + prefix)
                visible += range(split, end)
                queries.append(end)
                keys.append(len(visible))
        widest = max(b - a for a, b in itertools.pairwise(queries))
        deepest = max(b - a for a, b in itertools.pairwise(keys))
        return cls(
            lengths,
            torch.tensor(fold),
            torch.tensor([positions]),
            unfold.flatten(),
            torch.tensor(queries, dtype=torch.int32),
            torch.tensor(keys, dtype=torch.int32),
            torch.tensor(visible),
            (widest, deepest),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SharedPrefixes:
        """The same plan with its tensors on `device`; accelerate calls this with the batch."""
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved, masks={})

    def mask(self, queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
        """What the last `queries` of `keys` positions see, shape (1, 1, queries, keys), bool.

        Kept, since every layer of a batch asks again.
        """
        shape = (queries, keys, window)
        if shape not in self.masks:
            query = torch.arange(keys - queries, keys, device=device)[:, None]
            key = torch.arange(keys, device=device)
            seen = key <= query
            if window is not None:
                seen &= key > query - window
            self.masks[shape] = seen[None, None]
        return self.masks[shape]

    def padded(self, window: int | None, device: torch.device) -> tuple[Tensor, ...]:
        """The branches side by side, padded to the longest, without asking the device for a number.

        Returns the packed tokens that are queries, (branches, most queries), and keys, (branches,
        most keys); what each query sees, (branches, 1, most queries, most keys), bool; and for each
        packed token its place among the queries, shape (N,). Kept, as `mask` is.
        """
        if ("padded", window) not in self.masks:
            begin, own = self.queries[:-1, None], self.queries.diff()[:, None]
            begin_keys, seen = self.keys[:-1, None], self.keys.diff()[:, None]
            tokens, (most, most_keys) = self.positions.shape[1], self.longest
            query, key = (torch.arange(n, device=device) for n in (most, most_keys))
            last = query + seen - own  # the last key that each query sees
            mask = (key <= last[..., None]) & (key < seen[..., None])
            if window is not None:
                mask &= key > last[..., None] - window
            mask |= (query >= own)[..., None]  # of padding, nothing; but no softmax over nothing
            branch = torch.arange(len(own), device=device)
            branch = branch.repeat_interleave(own[:, 0], output_size=tokens)
            back = torch.arange(tokens, device=device) - begin[branch, 0] + branch * most
            queries = (begin + query).clamp(max=tokens - 1)
            keys = self.visible[(begin_keys + key).clamp(max=len(self.visible) - 1)]
            self.masks["padded", window] = queries, keys, mask[:, None], back
        return self.masks["padded", window]


class SharedPrefixCollator(DataCollatorForPreference):
    """TRL's collator, with the plan of the batch beside it: made here, in the loader's workers,
    and not in the forward, where a GPU would wait for it."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        plan = SharedPrefixes.of(batch["input_ids"], batch["attention_mask"])
        return batch | {"shared_prefixes": plan}
