"""What a policy makes of held-out pairs, and what it answers to their prompts."""

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from accelerate.utils.memory import clear_device_cache
from transformers import PreTrainedModel

from dpo.core.stats import bootstrap, share
from dpo.data import schema
from dpo.evaluation import generations, measure, prompts
from dpo.evaluation.contestants import Contestant
from dpo.evaluation.judges.known_reward import vader_score
from dpo.learn.improbable.capitals import SIDES, in_capitals
from dpo.models.sampling import Completion, Prompt
from dpo.models.scoring import score
from dpo.recipe.parse import Recipe

MAX_NEW_TOKENS = 96  # an answer of 40 tokens may take so many in capitals
Rows = list[tuple[list[int], list[int]]]


@dataclass
class Held:
    """What policies are measured on: held-out pairs as `rows`, all chosen and then all rejected,
    and prompts with their token ids."""

    reference: Contestant
    rows: Rows
    asked: list[Prompt]
    ids: list[list[int]]

    @classmethod
    def of(cls, recipe: Recipe, reference: Contestant, most: int) -> Self:
        """The held-out pairs of a recipe, and at most so many of their prompts."""
        pairs, args = prompts.held_out_pairs(recipe), recipe.training
        assert pairs is not None
        asked, words = prompts.each_once(prompts.of_pairs(pairs), most), reference.tokenizer()
        ids = prompts.as_trained(asked, words, pairs, words)
        rows = schema.pair_rows(pairs, args.max_length, args.truncation_mode)
        return cls(reference, rows, asked, ids)

    def tokens(self) -> np.ndarray:
        """Of the answers of each pair, shape (2, pairs)."""
        return np.array([len(answer) for _, answer in self.rows]).reshape(2, -1)


def measure_policy(who: Contestant, held: Held, device: str) -> dict[str, Any]:
    """What is measured of a policy, with intervals over prompts.

    Returns:
        `chosen` and `rejected`, their log-probability in nats a token, and that of the policy's own
        `greedy` answer; the share of these that are `in_capitals`, and of one sampled answer the
        true `reward` and the `kl` from the reference. Besides `each`, what this was computed of,
        pair by pair, and `texts`, the greedy answers.
    """
    drawn: list[list[list[Completion]]] = []
    own: list[Rows] = []
    with who.autocast(device):
        model, words = who.load(device), who.tokenizer()
        pad = words.pad_token_id
        found = of_sides(model, held, pad, f"Pairs under {who.name}")
        temperatures = (0.0, measure.TEMPERATURE)
        for temperature in temperatures:
            how = generations.Settings(1, temperature, MAX_NEW_TOKENS, measure.SEED)
            drawn.append(generations.draw(who, model, words, held.asked, how, held.ids))
            given = zip(held.ids, drawn[-1], strict=True)
            own.append([(prompt, answer.token_ids) for prompt, (answer,) in given])
        of_own = [
            score(model, rows, pad, t or 1) for rows, t in zip(own, temperatures, strict=True)
        ]
    del model
    clear_device_cache(garbage_collection=True)
    texts, sampled = ([answer.text for (answer,) in rows] for rows in drawn)
    capitals = np.array([float(in_capitals(text)) for text in texts])
    # VADER takes a word in capitals among others for emphasis, which no answer should gain by.
    rewards = np.array([vader_score(text.lower()) for text in sampled])
    nats = (of_own[1] - under_reference(own[1], held, device, who))[:, None]
    lengths = [generations.lengths(rows) for rows in drawn]
    found |= {
        "greedy": a_token(of_own[0], lengths[0][:, 0]),
        "in_capitals": asdict(share(capitals)),
        "reward": asdict(bootstrap(rewards)),
        "kl": generations.kl(nats, lengths[1])["nats_per_sequence"],
        "texts": texts,
    }
    found["each"] |= {"reward": rewards.round(4).tolist()}
    return found


def of_sides(model: PreTrainedModel, held: Held, pad: int, desc: str) -> dict[str, Any]:
    """The log-probability of both sides of held-out pairs, and of `each` pair in nats."""
    nats = score(model, held.rows, pad, desc=desc, pairs=True).reshape(2, -1)
    each = dict(zip(SIDES, nats.round(4).tolist(), strict=True))
    counts = dict(zip(SIDES, held.tokens(), strict=True))
    found: dict[str, Any] = {side: a_token(np.array(each[side]), counts[side]) for side in SIDES}
    return found | {"each": each}


def under_reference(rows: Rows, held: Held, device: str, who: Contestant) -> np.ndarray:
    """log π_ref(y | x) of sampled answers at the temperature of sampling, shape (rows,)."""
    with held.reference.autocast(device):
        model, pad = held.reference.load(device), who.tokenizer().pad_token_id
        found = score(model, rows, pad, measure.TEMPERATURE)
    del model
    clear_device_cache(garbage_collection=True)
    return found


def a_token(nats: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """Nats a token over all answers: the sums' ratio, with its interval over prompts."""
    return asdict(bootstrap(nats, weights=tokens.astype(float)))
