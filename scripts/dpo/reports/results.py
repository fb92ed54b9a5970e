"""What runs have measured, in the one form of report.json and evaluation.json (`format`), whatever
form it was written in."""

import json
import re
from pathlib import Path
from typing import Any

from dpo.core.refusal import Refusal, one_line
from dpo.runs.output_folder import FORMAT


def read(path: Path) -> dict[str, Any]:
    """A report.json or evaluation.json in today's form; empty where there is none.

    Raises:
        Refusal: the file is damaged, or of a later version.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("format", 1) not in range(1, FORMAT + 1):
            raise Refusal(
                f"{path} is of a later version of this repository: update, or name others"
            )
        if not found:
            raise ValueError("it is empty")
        return upgraded(found)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refusal(f"{path} is damaged ({one_line(error)}): move it, or name others") from error


def upgraded(found: dict[str, Any]) -> dict[str, Any]:
    """A report of the time before there was a `format` in today's form, where it can be told.
    An evaluation of that time has it already."""
    if "format" in found or "preference_accuracy" not in found:
        return found
    accuracy, margin, reward = map(found.get, ("preference_accuracy", "margin", "true_reward"))
    tokens, answers, kl = map(found.get, ("mean_tokens", "answers", "kl_nats_per_sequence"))
    new = found | {"format": 1, "against": found.get("model"), "prompts": None, "pairs": None}
    new |= {"answers": None, "judge": None, "samples": [*map(_sample, found.get("samples", []))]}
    if accuracy:
        new["pairs"] = {
            "count": accuracy.get("pairs"),
            **{key: accuracy[key] for key in ("prompts", "ties") if key in accuracy},
            "accuracy": _interval(accuracy),
            "margin": margin and _interval(margin),
            "ceiling": accuracy.get("ceiling"),
            "margins": found.get("margins", []),
            "prompt_numbers": found.get("prompt_numbers"),
            "digest": found.get("held_out_digest"),
        }
    if tokens:
        longer = tokens["after"] - tokens["before"]
        sides = {"policy": tokens["after"], "against": tokens["before"], "difference": longer}
        new["answers"] = {
            "mean_tokens": {side: {"mean": value} for side, value in sides.items()},
            "kl": kl
            and {
                "from": found.get("model"),
                "nats_per_sequence": {"mean": kl},
                "nats_per_token": {"mean": found.get("kl_nats_per_token")},
            },
        }
    if reward:
        new["prompts"] = {"count": reward.get("prompts"), "temperature": reward.get("temperature")}
        new["prompts"]["samples"] = reward.get("answers_per_prompt")
        new["judge"] = {
            "name": reward.get("name"),
            "reward": {
                "policy": {"mean": reward["after"]},
                "against": {"mean": reward.get("before")},
                "difference": _interval(reward | {"after": reward["difference"]}),
            },
            "rewards": {"policy": answers["after"], "against": answers.get("before")},
        }
    for key in ("preference_accuracy", "margin", "margins", "true_reward", "mean_tokens"):
        new.pop(key, None)
    return new


def _interval(of: dict[str, float]) -> dict[str, float]:
    return {"mean": of["after"], "low": of["low"], "high": of["high"]}


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    said = {"prompt": row["prompt"], "policy": row["after"], "against": row["before"]}
    rewards = {"reward_policy": row["reward_after"], "reward_against": row["reward_before"]}
    return said | rewards | {"preferred": None}


# By the name that W&B's summary has: where in a report or an evaluation it stands.
PLACES = {
    "preference_accuracy": ("pairs", "accuracy"),
    "preference_margin": ("pairs", "margin"),
    "win_rate": ("judge", "win_rate"),
    "length_controlled_win_rate": ("judge", "length_controlled_win_rate"),
    "true_reward": ("judge", "reward", "policy"),  # `reward`, where a judge's is not known as true
    "true_reward_difference": ("judge", "reward", "difference"),
    "kl_nats_per_sequence": ("answers", "kl", "nats_per_sequence"),
    "kl_nats_per_token": ("answers", "kl", "nats_per_token"),
    "answer_tokens": ("answers", "mean_tokens", "policy"),
    "answer_tokens_difference": ("answers", "mean_tokens", "difference"),
    "on_topic": ("answers", "on_topic", "policy"),
    "on_topic_difference": ("answers", "on_topic", "difference"),
}


def _within(found: dict[str, Any], path: tuple[str, ...]) -> dict[str, float] | None:
    """What lies there, or nothing if a part of the way is missing or empty."""
    for key in path:
        found = (found or {}).get(key, {})
    return found or None


def headline(found: dict[str, Any]) -> dict[str, float]:
    """The results of a run or of an evaluation by name, each with the ends of its 95% interval, as
    W&B's summary has them: numbers by which runs can be sorted, filtered and swept."""
    named = {name: _within(found, path) for name, path in PLACES.items()}
    if (found["judge"] or {}).get("kind", "reward") != "reward":
        named = {re.sub("^true_", "", name): interval for name, interval in named.items()}
    flat = {}
    for name, interval in named.items():
        for end, value in (interval or {}).items():
            if value is not None:
                flat[name if end == "mean" else f"{name}_{end}"] = value
    for name, of in (found.get("measured") or {}).items():
        flat[name] = of["measured"]
        if of["planned"] is not None:
            flat[f"{name}_planned"] = of["planned"]
            flat[f"{name}_plan_error_percent"] = 100 * of["error"]
    for task, metrics in (found.get("suite") or {}).items():
        for metric, of in metrics.items():
            flat[f"{task}/{metric}"] = of["policy"]
    return flat
