"""Which of two answers is better: by the known reward, a reward model, another model, a person."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpo import by_hand, endpoint, reward_model, secrets
from dpo.sampling import Messages, vader_score
from dpo.sources import check_weights, looks_local

KNOWN, HAND = "vader", "hand"


@dataclass
class Comparison:
    """Two answers to one prompt."""

    prompt: Messages | str
    policy: str
    against: str


@dataclass
class Verdicts:
    """What a judge says of n comparisons.

    Attributes:
        preferred: shape (n,): 1 the policy's answer, 0 the other, ½ a tie, NaN where the judge
            failed or was not asked.
        rewards: shape (2, n), the policy's and the other's, of a judge that gives rewards.
        left_out: why some are NaN, and how many.
        about: the judge's kind and name, and what it was asked with; no key.
        cost: what asking took, this time and before, of a judge that says so.
    """

    preferred: np.ndarray
    rewards: np.ndarray | None
    left_out: dict[str, int]
    about: dict[str, Any]
    cost: dict[str, Any] | None


def kind(name: str) -> str:
    """`reward` (known), `hand`, `endpoint` or `model`, by the judge's name."""
    if name in (KNOWN, HAND):
        return {KNOWN: "reward", HAND: "hand"}[name]
    return "endpoint" if name.startswith(("http://", "https://")) else "model"


def check(name: str, model: str | None = None) -> None:
    """See that there is such a judge, before anything is generated for it.

    Raises:
        SystemExit: there is none, or it does not answer.
    """
    if kind(name) == "endpoint":
        endpoint.check(name, model)
    elif kind(name) == "hand":
        by_hand.check()
    elif kind(name) == "model":
        if looks_local(name) and not Path(name).is_dir():
            raise SystemExit(
                f"no judge {name!r}: vader (the known reward), hand (you, in the terminal), the "
                "URL of an OpenAI-compatible endpoint, or a reward model's folder or hub name"
            )
        check_weights(name)


def known_reward(comparisons: list[Comparison]) -> Iterator[tuple[int, dict]]:
    for at, pair in enumerate(comparisons):
        yield at, of_rewards(vader_score(pair.policy), vader_score(pair.against))


def of_rewards(policy: float, against: float) -> dict:
    """The verdict of two rewards: the higher one, a tie only where they are equal."""
    return {"preferred": 0.5 * (1 + np.sign(policy - against)), "rewards": [policy, against]}


def judge(
    name: str,
    comparisons: list[Comparison],
    kept: Path,
    *,
    model: str | None = None,
    price: tuple[float, float] | None = None,
    parallel: int = 4,
    timeout: float = 60,
    device: str = "cpu",
    seed: int = 0,
) -> Verdicts:
    """Ask a judge, and keep each verdict in the file `kept` as it comes: when it is asked again,
    it is asked only for those that are missing.

    Args:
        name: `vader`, `hand`, the URL of an endpoint, or a reward model.
        model, price, parallel, timeout: of an endpoint: the model's name, dollars for a million
            tokens in and out, requests at a time, seconds for each.
        device: of a reward model.
        seed: of the order in which a person sees the answers.

    Raises:
        SystemExit: the judge gives no verdict at all.
    """
    about, asked = {}, known_reward
    what = kind(name)
    if what == "hand":
        asked = by_hand.ask(seed)
    elif what == "endpoint":
        about, asked = endpoint.ask(name, model, parallel, timeout)
    elif what == "model":
        about, asked = reward_model.ask(name, device)
    about = {"kind": what, "name": name, **about}
    keys = [_key(about, comparison) for comparison in comparisons]
    found, left_out = read(kept), Counter()
    missing = [at for at, key in enumerate(keys) if key not in found]
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.open("a", encoding="utf-8") as file:
        for at, verdict in asked([comparisons[at] for at in missing]):
            if reason := verdict.get("left_out"):
                left_out[reason] += 1
                continue
            found[keys[missing[at]]] = verdict
            line = json.dumps({"key": keys[missing[at]], **verdict}, ensure_ascii=False)
            file.write(secrets.mask(line) + "\n")
            file.flush()
    verdicts = [found.get(key, {}) for key in keys]
    preferred = np.array([verdict.get("preferred", np.nan) for verdict in verdicts])
    if np.isnan(preferred).all():
        why = ", ".join(left_out) or "it was asked nothing"
        raise SystemExit(f"the judge {name} gave no verdict: {why}. The same command asks again")
    rewards = None
    if any("rewards" in verdict for verdict in verdicts):
        rewards = np.array([verdict.get("rewards", (np.nan, np.nan)) for verdict in verdicts]).T
    cost = endpoint.cost(verdicts, price) if what == "endpoint" else None
    return Verdicts(preferred, rewards, dict(left_out), about, cost)


def read(kept: Path) -> dict[str, dict]:
    """The verdicts that a file holds, by key. A last line that a kill has cut off is taken away, so
    that the next one does not run on from it."""
    found, whole = {}, b""
    for line in kept.read_bytes().splitlines(keepends=True) if kept.is_file() else ():
        if not line.endswith(b"\n"):
            kept.write_bytes(whole)
            break
        whole += line
        verdict = json.loads(line)
        found[verdict["key"]] = verdict
    return found


def _key(about: dict, comparison: Comparison) -> str:
    asked = json.dumps([about, asdict(comparison)], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:24]
