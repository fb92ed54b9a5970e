"""Rounds in words: do they win over one offline run on as many pairs, and at which price?"""

import itertools
from typing import Any

from dpo.core.stats import Interval, said
from dpo.reports.parts.verdict import LONGER
from dpo.reports.rounds.numbers import (
    OFFLINE,
    START,
    difference,
    form,
    measured,
    metric,
    metric_name,
)

FINISHED = 0.95  # of the answers: with more that are cut, a reader should know
NUMBERS = ("No rounds", "One round", "Two rounds", "Three rounds", "Four rounds", "Five rounds")


def beyond_noise(of: Interval) -> int:
    """1 or -1 where the interval is all on one side of zero, else 0."""
    return int(of.low > 0) - int(of.high < 0)


def verdict(found: dict[str, Any]) -> tuple[str, list[str]]:
    """A tone ("up", "down" or "dim"), and sentences: rounds against the offline run first."""
    done = measured(found)
    rounds = [name for name in done if name != OFFLINE]
    last, what, shape = rounds[-1], metric_name(found), form(found)
    count = len(rounds)
    many = NUMBERS[count] if count < len(NUMBERS) else f"{count} rounds"
    against = OFFLINE if OFFLINE in done else START
    other = "one offline run on as many pairs" if against == OFFLINE else "the start"
    means = (format(metric(found, name)["mean"], shape) for name in (last, against))
    delta = difference(found, last, against)
    numbers = "{} against {}, difference ".format(*means) + said(vars(delta), "+.3f")
    sign = beyond_noise(delta)
    first = {
        1: f"{many} reach more than {other} in {what}: {numbers}.",
        -1: f"{many} reach less than {other} in {what}: {numbers}.",
        0: f"{many} do not win over {other}: in {what} no difference beyond noise ({numbers}).",
    }[sign]
    if count == 1:
        first = first.replace("reach ", "reaches ", 1).replace("do not", "does not", 1)
    sentences = [first, _distances(done, last, against)]
    steps = [(START, rounds[0]), *itertools.pairwise(rounds)]
    gains = [difference(found, after, before) for before, after in steps]
    gained = [name for name, of in zip(rounds, gains, strict=True) if beyond_noise(of) > 0]
    each = ", ".join(f"{of.mean:+.3f}" for of in gains)
    if count > 1:
        which = f"beyond noise in {', '.join(gained)} alone" if gained else "nowhere beyond noise"
        which = "each beyond noise" if len(gained) == count else which
        sentences.append(f"Round by round it changed by {each}, {which}.")
    if against == OFFLINE:
        over = difference(found, OFFLINE, START)
        sentences.append(
            f"The offline run changed it by {said(vars(over), '+.3f')} from the start."
        )
    return ("dim", "up", "down")[sign], sentences + _prices(found, last, against)


def _distances(done: dict[str, dict], last: str, against: str) -> str:
    """How far from the start they have gone."""
    kl = {name: (done[name]["answers"]["kl"] or {}).get("nats_per_sequence") for name in done}
    if not kl[last]:
        return "Their KL from the start is not known."
    text = f"KL from the start: {said(kl[last])} nats a sequence"
    if against == START or not kl[against]:
        return f"{text}."
    text += f" against {said(kl[against])}"
    if kl[last]["low"] > kl[against]["high"]:
        return f"{text}: they have gone further for it."
    if kl[last]["high"] < kl[against]["low"]:
        return f"{text}: they have not gone as far for it."
    return f"{text}."


def _prices(found: dict[str, Any], last: str, against: str) -> list[str]:
    """What a reader should know before the numbers are believed."""
    done, sentences = measured(found), []
    tokens, name = done[last]["answers"]["mean_tokens"], f"Answers of {last}"
    before, after = (tokens[side]["mean"] for side in ("against", "policy"))
    if tokens["difference"]["low"] > 0 and after > LONGER * before:
        sentences.append(f"{name} are much longer: {before:.0f} → {after:.0f} tokens.")
    if tokens["difference"]["high"] < 0 and LONGER * after < before:
        sentences.append(f"{name} are much shorter: {before:.0f} → {after:.0f} tokens.")
    before, after = (done[last]["answers"]["finished"][side] for side in ("against", "policy"))
    if after["mean"] < min(before["mean"], FINISHED):
        sentences.append(
            f"{1 - after['mean']:.0%} of them were cut before they ended, and are judged so; "
            f"of the start's {1 - before['mean']:.0%}."
        )
    topic = done[last]["answers"].get("on_topic")
    if topic and topic["difference"]["high"] < 0:
        shares = [topic[side] for side in ("against", "policy")]
        if against == OFFLINE:
            shares.append(done[OFFLINE]["answers"]["on_topic"]["policy"])
        before, after, *beside = (f"{each['mean']:.0%}" for each in shares)
        more = f", offline {beside[0]}" if beside else ""
        sentences.append(f"Fewer answers are on topic: {before} → {after}{more}.")
    if against == OFFLINE:
        of_rounds = sum(
            each["pairs"]["train"] for name, each in found["rounds"].items() if name != OFFLINE
        )
        if (fewer := found["rounds"][OFFLINE]["pairs"]["train"]) < of_rounds:
            sentences.append(
                f"The start's answers made {fewer} pairs, fewer than the {of_rounds} of all rounds."
            )
    return [*sentences, "One seed of training each: another may differ."]
