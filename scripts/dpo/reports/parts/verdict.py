"""What measurements come to, in words: is the policy better, in what, and at which price."""

from typing import Any

LONGER = 1.25  # times as long: a judge may have preferred the length
DEFINITIONS = {
    "True reward": "what the preferences were drawn from, of an answer; DPO never sees it.",
    "Win rate": "the share of prompts on which a judge prefers the policy's answer, a tie half.",
    "Preference accuracy": "the share of held-out pairs whose chosen answer has the higher "
    "implicit reward, β (log π(y | x) − log π_ref(y | x)); the reference has 0.50.",
    "KL": "log π(y | x) − log π_ref(y | x), the mean over the policy's own answers, in nats: how "
    "far it has gone from its reference.",
    "On topic": "the share of answers with a word of what their prompt alone asks about; it says "
    "nothing of what is said about it.",
    "Answer length": "tokens of an answer, its end counted: better should not just be longer.",
}
Verdict = tuple[str, list[str]]


def verdict(found: dict[str, Any]) -> Verdict:
    """What a report.json or an evaluation.json says, as a tone ("up", "down" or "dim") and as
    sentences: the answers by their judge first, then what speaks against it.

    A difference is one whose 95% interval is all on one side.
    """
    judge, pairs, answers = (found.get(key) or {} for key in ("judge", "pairs", "answers"))
    unknown = "no judge said whether its answers are better"
    if judge:
        (tone, first), more = _by_judge(judge), [_by_pairs(pairs)[1]] if pairs else []
        said = [first, *(f"{each}." for each in more)]
    elif pairs:
        tone, first = _by_pairs(pairs)
        said = [f"{first}; {unknown}."]
    else:
        tone = "dim"
        said = [f"Nothing says whether it is better: no held-out pairs, and {unknown}."]
    against = _prices(judge, answers)
    if tone == "up" and against and judge:
        said[0] = f"{said[0].removesuffix('.')}, at a price."
    return tone, said + against


def _by_judge(judge: dict[str, Any]) -> tuple[str, str]:
    if reward := judge.get("reward"):
        of, rise, none = reward["difference"], "+.2f", 0.0
        means = (reward[side]["mean"] for side in ("against", "policy"))
        value = " → ".join(f"{mean:+.2f}" for mean in means)
        what = "true reward" if judge["name"] == "vader" else f"the reward of {judge['name']}"
        name = f"{what} ({value}, difference {_interval(of, rise)})"
    else:
        of, none = judge["win_rate"], 0.5
        name = f"win rate by {judge['name']} ({_interval(of, '.2f')})"
    if of["low"] > none:
        return "up", f"Better in {name}."
    if of["high"] < none:
        return "down", f"Worse in {name}."
    return "dim", f"No difference beyond noise in {name}."


def _by_pairs(pairs: dict[str, Any]) -> tuple[str, str]:
    of = pairs["accuracy"]
    said = f"accuracy {_interval(of, '.2f')}, where 0.50 is chance"
    if of["low"] > 0.5:
        return "up", f"It tells held-out preferences apart: {said}"
    if of["high"] < 0.5:
        return "down", f"It learned the opposite of the held-out preferences: {said}"
    return "dim", f"It does not tell held-out preferences apart beyond noise: {said}"


def _prices(judge: dict[str, Any], answers: dict[str, Any]) -> list[str]:
    """What a reader should know before the answers are called better."""
    said = []
    if topic := answers.get("on_topic"):
        before, after = (f"{topic[side]['mean']:.0%}" for side in ("against", "policy"))
        if topic["difference"]["high"] < 0:
            low, high = sorted(-100 * topic["difference"][end] for end in ("low", "high"))
            said.append(
                f"Fewer answers are on topic: {before} → {after} name what was asked about, "
                f"{low:.0f} to {high:.0f} points fewer."
            )
    length = answers.get("mean_tokens") or {}
    if "difference" in length and length["difference"].get("high", 0) < 0:
        before, after = (length[side]["mean"] for side in ("against", "policy"))
        if LONGER * after < before:
            said.append(f"Answers are much shorter: {before:.0f} → {after:.0f} tokens.")
    if "difference" in length and length["difference"].get("low", 0) > 0:
        before, after = (length[side]["mean"] for side in ("against", "policy"))
        if after > LONGER * before:
            said.append(f"Answers are much longer: {before:.0f} → {after:.0f} tokens.")
            controlled = judge.get("length_controlled_win_rate")
            if controlled and controlled["low"] <= 0.5 < judge["win_rate"]["low"]:
                at = _interval(controlled, ".2f")
                said.append(f"At one length nothing is left of it: win rate {at}.")
    return said


def _interval(of: dict[str, float], form: str) -> str:
    mean, low, high = (format(of[key], form) for key in ("mean", "low", "high"))
    return f"{mean}, 95% interval {low} to {high}"


def definitions(found: dict[str, Any]) -> dict[str, str]:
    """What the numbers of a report or an evaluation mean, of those that it has."""
    judge, answers = found.get("judge") or {}, found.get("answers") or {}
    known = judge.get("name") == "vader"
    has = {
        "True reward": known,
        "Win rate": bool(judge) and not known,
        "Preference accuracy": found.get("pairs"),
        "KL": answers.get("kl"),
        "On topic": answers.get("on_topic"),
        "Answer length": answers,
    }
    return {name: said for name, said in DEFINITIONS.items() if has[name]}
