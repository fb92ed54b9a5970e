"""What rounds came to, in numbers: each policy by the judge, and how two of them differ."""

from typing import Any

import numpy as np

from dpo.core.stats import Interval, paired, said

START, OFFLINE = "start", "offline"


def measured(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was measured, by round, in their order, offline last."""
    return {name: each["measured"] for name, each in found["rounds"].items() if "measured" in each}


def first(found: dict[str, Any]) -> dict[str, Any]:
    """What was measured first: what it says of the start holds for all."""
    return next(iter(measured(found).values()))


def judge_of(found: dict[str, Any]) -> dict[str, Any]:
    return first(found)["judge"]


def by_reward(found: dict[str, Any]) -> bool:
    """Whether the judge scores answers; else it compares them, and there are win rates alone."""
    return judge_of(found)["reward"] is not None


def metric_name(found: dict[str, Any]) -> str:
    judge = judge_of(found)
    if not by_reward(found):
        return "win rate against the start"
    return "true reward" if judge["name"] == "vader" else f"reward of {judge['name']}"


def form(found: dict[str, Any]) -> str:
    return "+.3f" if by_reward(found) else ".3f"


def metric(found: dict[str, Any], name: str) -> dict[str, float]:
    """Reward or win rate of a policy, with its interval; of the start, what it is by itself."""
    if name == START:
        half = {"mean": 0.5, "low": 0.5, "high": 0.5}
        return judge_of(found)["reward"]["against"] if by_reward(found) else half
    judge = measured(found)[name]["judge"]
    return judge["reward"]["policy"] if by_reward(found) else judge["win_rate"]


def values(found: dict[str, Any], name: str) -> np.ndarray:
    """What `metric` is the mean of, shape (prompts,); NaN where the judge gave nothing."""
    if name == START and not by_reward(found):
        return np.full(len(first(found)["preferred"]), 0.5)
    side = "against" if name == START else "policy"
    judged = first(found) if name == START else measured(found)[name]
    each = judged["judge"]["rewards"][side] if by_reward(found) else judged["preferred"]
    rows = np.array(each, dtype=float)
    there = ~np.isnan(rows)
    total = np.where(there, rows, 0).sum(axis=1)
    return np.where(there.any(axis=1), total / np.maximum(there.sum(axis=1), 1), np.nan)


def difference(found: dict[str, Any], first: str, second: str) -> Interval:
    """How the first policy's metric differs from the second's, paired by prompt, on those that
    both have. The start's win rate against itself is a half, and no estimate."""
    if second == START and not by_reward(found):
        return Interval(*(metric(found, first)[each] - 0.5 for each in ("mean", "low", "high")))
    both = np.stack([values(found, first), values(found, second)])
    both = both[:, ~np.isnan(both).any(axis=0)]
    return paired(both, shares=not by_reward(found))[0][1]


def reached(found: dict[str, Any], name: str) -> str:
    """What a policy came to, in a line."""
    kl = (measured(found)[name]["answers"]["kl"] or {}).get("nats_per_sequence")
    text = f"{metric_name(found)} {said(metric(found, name), form(found))}"
    return text + (f", KL from the start {said(kl)} nats a sequence" if kl else "")


def table(found: dict[str, Any]) -> list[list[str]]:
    """All that was measured, a row for each policy; the first row is the head. Columns of which
    nothing is known are left out."""
    judge, rewarded = judge_of(found), by_reward(found)
    named = metric_name(found)
    head = ["", named, "win rate against the start", "length-controlled", "KL, nats a sequence"]
    head += ["answer, tokens", "on topic", "own held-out accuracy", "pairs", "prompts"]
    if not rewarded:
        head[2] = ""
    rows = []
    for name in (START, *measured(found)):
        of, side = found["rounds"].get(name, {}), "against" if name == START else "policy"
        part = first(found) if name == START else measured(found)[name]
        answers, judged = part["answers"], part["judge"] if name != START else {}
        kl, topic = answers["kl"], answers.get("on_topic")
        compared = judge["name"] != "vader" and bool(judged)
        controlled = judged.get("length_controlled_win_rate") if compared else None
        accuracy, held_out = of.get("accuracy"), of.get("held_out")
        rows.append(
            [
                name,
                said(metric(found, name), form(found)) if name != START or rewarded else "0.5",
                said(judged["win_rate"]) if compared and rewarded else "",
                said(controlled) if controlled else "",
                "0" if name == START else said(kl["nats_per_sequence"]) if kl else "",
                said(answers["mean_tokens"][side], ".1f"),
                said(topic[side], ".0%") if topic else "",
                f"{said(accuracy)} on {held_out} pair{'s' * (held_out != 1)}" if accuracy else "",
                f"{of['pairs']['train']}" if of else "",
                of.get("prompts", ""),
            ]
        )
    kept = [at for at in range(len(head)) if not at or any(row[at] for row in rows)]
    return [[row[at] for at in kept] for row in (head, *rows)]
