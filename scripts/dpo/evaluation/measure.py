"""One way to measure: two models on held-out pairs, on answers to the same prompts, and how far the
one has gone from the other. What a run ends with, `make evaluate` and `make frontier` go through
here."""

from dataclasses import asdict, dataclass, field, replace

import numpy as np
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset

from dpo.core.stats import NATS_PER_TOKEN, bootstrap, length_controlled, numerics, win_rate
from dpo.data import schema
from dpo.evaluation import generations, on_topic, pairs, prompts
from dpo.evaluation.contestants import Contestant, reference_of
from dpo.evaluation.judges import judging
from dpo.evaluation.judges.verdicts import Comparison, Verdicts
from dpo.models.sampling import Completion, Prompt, said
from dpo.models.scoring import Scored, score
from dpo.recipe.parse import Recipe
from dpo.runs.output_folder import FORMAT

# scripts/embedded_data.py samples its pairs with these two as well.
TEMPERATURE = 0.7  # at 1.0 the embedded model's 4-bit weights ramble
MAX_NEW_TOKENS = 40
SEED = 20_231_218  # apart from the seeds of the data, so that no answer is drawn again
AT_ONCE = 256  # answers when a run ends
SHOWN = 10  # samples on a page


@dataclass
class Measured:
    """What two models did: `pairs` and `kl` as `results` has them, or None; and their answers,
    shape (prompts, samples)."""

    pairs: dict | None = None
    kl: dict | None = None
    policy: list[list[Completion]] = field(default_factory=list)
    against: list[list[Completion]] = field(default_factory=list)


def measure(
    policy: Contestant,
    reference: Contestant,
    against: Contestant,
    asked: list[Prompt],
    held_out: Dataset | None,
    settings: generations.Settings,
    device: str,
    *,
    skip_pairs: bool = False,
    scored: Scored | None = None,
    at_once: int | None = None,
) -> Measured:
    """Measure a policy on held-out pairs and against another model on prompts.

    One model at a time is in memory. Pairs are measured, and the KL at the temperature of sampling,
    against `reference`: that of the policy's run, or for a model that is no run's, the other.
    There is neither if its tokens are others, and no KL of greedy answers.

    Args:
        held_out: pairs with their tokens. With `skip_pairs` they only say how prompts are rendered.
        scored: the pairs as the trainer scored them, if it did: then models are loaded only to
            answer prompts.
        at_once: as `generations.draw` takes it.
    """
    recipe, found = policy.recipe or against.recipe, Measured()
    measures_pairs = held_out is not None and not skip_pairs
    if asked or (measures_pairs and not scored):
        tokenizer = policy.tokenizer()
        theirs = reference.tokenizer()  # those that the held-out pairs were tokenised by
        comparable = theirs.get_vocab() == tokenizer.get_vocab()
        rows: list[tuple[list[int], list[int]]] = []
        if measures_pairs and comparable and not scored:
            args = recipe.training
            rows = schema.pair_rows(held_out, args.max_length, args.truncation_mode)
        own: list[tuple[list[int], list[int]]] = []  # the policy's answers, for the KL
        scores = comparable and bool(rows or (asked and settings.temperature))
        logps: list[tuple[np.ndarray, np.ndarray]] = []  # of pairs and own, under each that scores
        rounding: list[float] = []  # of each of those, in nats a token

        def visit(who: Contestant, scores: bool, answers: list[list[Completion]] | None) -> None:
            with who.autocast(device):
                model = who.load(device)
                if asked and answers is not None:
                    words = who.tokenizer()
                    ids = prompts.as_trained(asked, words, held_out, theirs)
                    answers += generations.draw(who, model, words, asked, settings, ids, at_once)
                    if scores and settings.temperature and not own:
                        of_prompt = zip(ids, answers, strict=True)
                        own.extend((p, each.token_ids) for p, row in of_prompt for each in row)
                if scores:
                    pad, under = tokenizer.pad_token_id, f"under {who.name}"
                    of_rows = score(model, rows, pad, desc=f"Pairs {under}", pairs=True)
                    of_own = score(model, own, pad, settings.temperature, f"Answers {under}")
                    logps.append((of_rows, of_own))
                    rounding.append(NATS_PER_TOKEN[numerics(model)])
            del model
            # A backbone that shares prefixes refers to itself.
            clear_device_cache(garbage_collection=True)

        visit(policy, scores, found.policy)
        if scores or against is reference:
            visit(reference, scores, found.against if against is reference else None)
        if against is not reference:
            visit(against, False, found.against)
        if own:
            nats = (logps[0][1] - logps[1][1]).reshape(len(asked), -1)
            found.kl = generations.kl(nats, generations.lengths(found.policy))
            found.kl |= {"from": reference.name}
        if rows:
            tokens = np.array([len(completion) for _, completion in rows]).reshape(2, -1)
            first, second = (of_rows.reshape(2, -1) for of_rows, _ in logps)
            scored = Scored(first, second, tokens.sum(axis=0), max(rounding))
    if measures_pairs and scored:
        found.pairs = pairs.of_pairs(scored, held_out, recipe.training.beta)
    return found


def after_training(
    recipe: Recipe, folder: str, held_out: Dataset | None, device: str, scored: Scored | None = None
) -> dict:
    """The policy saved in `folder` beside its reference, as `results` has it.

    Args:
        held_out: pairs as DPOTrainer tokenised them; None leaves all empty. With the columns
            `vader_chosen` and `vader_rejected` the true reward is known to be the VADER score:
            then both models also answer held-out prompts, and are judged by it.
        scored: as for `measure`.
    """
    reference, run = reference_of(recipe), recipe.run
    policy = replace(reference, name=folder, path=folder, revision=None)
    settings = generations.Settings(run.reward_samples, TEMPERATURE, MAX_NEW_TOKENS, SEED)
    known, asked = held_out is not None and "vader_chosen" in held_out.column_names, []
    if known:
        asked = prompts.each_once(prompts.of_pairs(held_out), run.reward_prompts)
    how = (asked, held_out, settings, device)
    found = measure(policy, reference, reference, *how, scored=scored, at_once=AT_ONCE)
    verdicts = judging.by_known_reward(comparisons(asked, found)) if asked else None
    lines = lines_of(asked, found, verdicts)
    named = {"policy": folder, "against": reference.name}
    return named | results(f"{recipe.name}, held out", asked, settings, found, verdicts, lines)


def results(
    source: str,
    asked: list[Prompt],
    settings: generations.Settings,
    found: Measured,
    verdicts: Verdicts | None,
    lines: list[dict],
) -> dict:
    """What was measured, as report.json and evaluation.json hold it: `prompts`, `pairs`, `answers`
    and `judge`, each None where there is none, and ten `samples`, of prompts drawn at random by the
    seed of the answers, the first answers to each. Intervals are over prompts."""
    answers = None
    if asked:
        answers = generations.measure(found.policy, found.against) | {"kl": found.kl}
        both = (found.policy, found.against)
        texts = [[[each.text for each in row] for row in rows] for rows in both]
        answers["on_topic"] = on_topic.measure([*map(said, asked)], *texts)
    draw = np.random.default_rng(settings.seed)
    shown = np.sort(draw.choice(len(asked), min(SHOWN, len(asked)), replace=False))
    return {
        "format": FORMAT,
        "prompts": {"source": source, "count": len(asked), **asdict(settings)} if asked else None,
        "pairs": found.pairs,
        "answers": answers,
        "judge": judged(found, verdicts) if verdicts else None,
        "samples": [lines[at] for at in shown * settings.samples],
    }


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
    controlled, reward, rewards = length_controlled(preferred, longer), None, None
    if verdicts.rewards is not None:
        each = verdicts.rewards.reshape(2, *longer.shape)
        rewarded = ~np.isnan(preferred).all(axis=1)
        mine, other = np.nanmean(each[:, rewarded], axis=2)
        parts = {"policy": mine, "against": other, "difference": mine - other}
        reward = {name: asdict(bootstrap(values)) for name, values in parts.items()}
        given = np.where(np.isnan(each), np.array(None), each.round(4)).tolist()
        rewards = dict(zip(("policy", "against"), given, strict=True))
    wins, ties, losses = (int((preferred == value).sum()) for value in (1, 0.5, 0))
    both = (zip(*rows, strict=True) for rows in zip(found.policy, found.against, strict=True))
    identical = sum(mine.text == other.text for row in both for mine, other in row)
    return {
        "name": verdicts.about["name"],
        "kind": verdicts.about["kind"],
        "about": verdicts.about,
        "win_rate": asdict(win_rate(preferred)),
        "length_controlled_win_rate": controlled and asdict(controlled),
        **{"wins": wins, "ties": ties, "losses": losses, "identical": identical},
        "left_out": verdicts.left_out,
        "reward": reward,
        "rewards": rewards,  # of every answer, shape (prompts, samples)
        "cost": verdicts.cost,
    }


def known_reward(asked: list[Prompt], found: Measured) -> dict:
    """The known reward of both models' answers and how it differs, with intervals over prompts."""
    return judged(found, judging.by_known_reward(comparisons(asked, found)))["reward"]


def lines_of(asked: list[Prompt], found: Measured, verdicts: Verdicts | None) -> list[dict]:
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
