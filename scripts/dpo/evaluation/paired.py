"""A policy held against its reference, or any two models: pairs, answers to the same prompts, and
how far the one has gone from the other."""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Value

from dpo.core.stats import NATS_PER_TOKEN, bootstrap, length_controlled, numerics, share, win_rate
from dpo.data import schema
from dpo.data.reading import ABOUT, DIGESTS, IDS, OPTIONS
from dpo.evaluation import evaluation, generations
from dpo.evaluation.contestants import Contestant
from dpo.evaluation.judges.judging import Comparison, Verdicts
from dpo.evaluation.prompts import as_trained
from dpo.models import scoring
from dpo.models.sampling import Completion, Prompt, said
from dpo.models.scoring import Scored

ALIKE = 0.1  # lengths that differ by less are about equal
MOST_GROUPS = 20  # a column with more values names no categories


@dataclass
class Measured:
    """What two models did: `pairs` and `kl` as evaluation.json holds them, or None; and their
    answers, shape (prompts, samples)."""

    pairs: dict | None
    kl: dict | None
    policy: list[list[Completion]]
    against: list[list[Completion]]


def measure(
    policy: Contestant,
    reference: Contestant,
    against: Contestant,
    prompts: list[Prompt],
    held_out: Dataset | None,
    settings: generations.Settings,
    device: str,
) -> Measured:
    """Measure a policy on held-out pairs and against another model on prompts.

    One model at a time is in memory. Pairs are measured, and the KL at the temperature of sampling,
    against `reference`: what the policy started from, or for a model that is no run's, the other.
    There is neither if its tokens are others, and no KL of greedy answers.
    """
    tokenizer, recipe = policy.tokenizer(), policy.recipe or against.recipe
    theirs = reference.tokenizer()  # those that the held-out pairs were tokenised by
    comparable = theirs.get_vocab() == tokenizer.get_vocab()
    pairs: list[tuple[list[int], list[int]]] = []
    if held_out is not None and comparable:
        args = recipe.training
        pairs = schema.pair_rows(held_out, args.max_length, args.truncation_mode)
    own: list[tuple[list[int], list[int]]] = []  # the policy's answers, for the KL
    drawn: list[list[list[Completion]]] = []
    logps: list[tuple[np.ndarray, np.ndarray]] = []  # of pairs and own, under each that scores
    rounding: list[float] = []  # of each of those, in nats a token

    def visit(who: Contestant, draws: bool, scores: bool) -> None:
        with who.autocast(device):
            model = who.load(device)
            if draws:
                words = who.tokenizer()
                asked = as_trained(prompts, words, held_out, theirs)
                drawn.append(generations.draw(who, model, words, prompts, settings, asked))
            if who is policy and comparable and settings.temperature:
                rows = zip(asked, drawn[0], strict=True)
                own.extend((prompt, answer.token_ids) for prompt, row in rows for answer in row)
            if scores:
                pad, temperature = tokenizer.pad_token_id, settings.temperature
                under = f"under {who.name}"
                of_pairs = scoring.score(model, pairs, pad, desc=f"Pairs {under}", pairs=True)
                of_own = scoring.score(model, own, pad, temperature, desc=f"Answers {under}")
                logps.append((of_pairs, of_own))
                rounding.append(NATS_PER_TOKEN[numerics(model)])
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    visit(policy, draws=True, scores=comparable)
    if comparable or against is reference:
        visit(reference, draws=against is reference, scores=comparable)
    if against is not reference:
        visit(against, draws=True, scores=False)
    kl = found = None
    if own:
        nats = (logps[0][1] - logps[1][1]).reshape(len(prompts), -1)
        kl = {"from": reference.name, **generations.kl(nats, generations.lengths(drawn[0]))}
    if pairs:
        tokens = np.array([len(completion) for _, completion in pairs]).reshape(2, -1).sum(axis=0)
        halves = (of_pairs.reshape(2, -1) for of_pairs, _ in logps)
        margins = Scored(*halves, tokens, max(rounding)).margins(recipe.training.beta)
        found = by_group(margins, held_out)
    return Measured(found, kl, *drawn)


def comparisons(asked: list[Prompt], found: Measured) -> list[Comparison]:
    """Every two answers to a prompt, for a judge."""
    return [
        Comparison(prompt, mine.text, other.text)
        for prompt, policy, against in zip(asked, found.policy, found.against, strict=True)
        for mine, other in zip(policy, against, strict=True)
    ]


def judged(found: Measured, verdicts: Verdicts) -> dict:
    """What the verdicts come to, with intervals over prompts."""
    # In characters, as in the paper: two models may have other tokens.
    policy, against = (
        np.array([[len(answer.text) for answer in row] for row in rows])
        for rows in (found.policy, found.against)
    )
    longer = policy - against
    preferred = verdicts.preferred.reshape(longer.shape)
    controlled, reward = length_controlled(preferred, longer), None
    if verdicts.rewards is not None:
        judged = ~np.isnan(preferred).all(axis=1)
        mine, other = np.nanmean(verdicts.rewards.reshape(2, *longer.shape)[:, judged], axis=2)
        parts = {"policy": mine, "against": other, "difference": mine - other}
        reward = {name: asdict(bootstrap(values)) for name, values in parts.items()}
    wins, ties, losses = (int((preferred == value).sum()) for value in (1, 0.5, 0))
    return {
        "name": verdicts.about["name"],
        "kind": verdicts.about["kind"],
        "about": verdicts.about,
        "win_rate": asdict(win_rate(preferred)),
        "length_controlled_win_rate": controlled and asdict(controlled),
        **{"wins": wins, "ties": ties, "losses": losses},
        "left_out": verdicts.left_out,
        "reward": reward,
        "cost": verdicts.cost,
    }


def lines(asked: list[Prompt], found: Measured, verdicts: Verdicts | None) -> list[dict]:
    """Prompt, both answers, and what a judge says, for every two answers."""
    written = []
    for at, pair in enumerate(comparisons(asked, found)):
        line = {"prompt": said(pair.prompt), "policy": pair.policy, "against": pair.against}
        line |= {"reward_policy": None, "reward_against": None, "preferred": None}
        if verdicts and not np.isnan(verdicts.preferred[at]):
            line["preferred"] = float(verdicts.preferred[at])
            if verdicts.rewards is not None:
                line["reward_policy"], line["reward_against"] = verdicts.rewards[:, at].tolist()
        written.append(line)
    return written


def by_group(margins: np.ndarray, held_out: Dataset) -> dict:
    """Accuracy and margin of the implicit reward on all pairs, by which answer is longer, and by
    each column of the data that names categories.

    Args:
        margins: implicit reward of the chosen answer minus that of the rejected, 0 where it is no
            more than rounding, shape (pairs,).
    """
    digests = held_out["prompt_digest"] if "prompt_digest" in held_out.column_names else None
    prompts = np.arange(len(margins)) if digests is None else np.array(digests)

    def of(mask: np.ndarray, **name) -> dict:
        correct = share(evaluation.accuracy(margins[mask]), prompts[mask])
        margin = asdict(bootstrap(margins[mask], prompts=prompts[mask]))
        ties, asked = int((margins[mask] == 0).sum()), len(np.unique(prompts[mask]))
        counts = {"count": int(mask.sum()), "prompts": asked, "ties": ties}
        return name | counts | {"accuracy": asdict(correct), "margin": margin}

    chosen, rejected = (
        np.array([len(ids) for ids in held_out[side]]) for side in ("chosen_ids", "rejected_ids")
    )
    longer = (chosen - rejected) / np.maximum(chosen, rejected)
    lengths = {
        "chosen is longer": longer > ALIKE,
        "about equal": np.abs(longer) <= ALIKE,
        "chosen is shorter": longer < -ALIKE,
    }
    return of(np.full(len(margins), True)) | {
        "by_length": [of(mask, name=name) for name, mask in lengths.items() if mask.any()],
        "by_category": {
            column: [of(mask, name=name) for name, mask in groups.items()]
            for column, groups in categories(held_out).items()
        },
    }


def categories(held_out: Dataset) -> dict[str, dict[str, np.ndarray]]:
    """The columns of text, class labels, whole numbers or yes and no that have from 2 to 20 values:
    by column and value, which pairs have it. A value that is missing is one of its own."""
    ours = {"prompt", "chosen", "rejected", OPTIONS, "merged", *IDS, *DIGESTS, *ABOUT}
    found = {}
    for column, kind in held_out.features.items():
        if column in ours or not isinstance(kind, Value | ClassLabel):
            continue
        if kind.dtype.startswith("float"):
            continue
        values = held_out[column]
        kinds = sorted(set(values), key=lambda value: (value is None, value))
        if 2 <= len(kinds) <= MOST_GROUPS:
            named = {value: _named(kind, value) for value in kinds}
            found[column] = {
                name: np.array([value == each for each in values]) for value, name in named.items()
            }
    return found


def _named(kind: Value | ClassLabel, value: str | int | bool | None) -> str:
    if value is None or (value == -1 and isinstance(kind, ClassLabel)):
        return "none"
    return kind.int2str(value) if isinstance(kind, ClassLabel) else str(value)
