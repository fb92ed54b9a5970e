"""A published suite's scores: in the terminal, and as the model card and W&B have them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dpo.core.stats import said
from dpo.core.terminal import visible

TITLES = {"mt_bench": "MT-Bench", "alpaca_eval": "AlpacaEval 2"}
TITLES |= {"arena_hard": "Arena-Hard v2.0", "arena_hard_v0.1": "Arena-Hard v0.1"}
SIDES = ("policy", "against", "difference")
Row = tuple[str, dict[str, Any]]  # a score's name, and its intervals by side


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """The results of published suites in the folder of an evaluation."""
    for suite in TITLES:
        path = folder / f"{suite}.json"
        if path.is_file():
            try:
                yield json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                print(f"{path} is damaged, and left out: {error}")


def scores(found: dict[str, Any]) -> list[Row]:
    """What a suite is reported by, as its publications have it: MT-Bench from 1 to 10, the others
    in percent."""
    if found["suite"] == "mt_bench":
        return [("score", found["score"])]
    if found["suite"] == "alpaca_eval":
        names = {"length_controlled_win_rate": "length-controlled win rate", "win_rate": "win rate"}
        rows = [(title, found[name]) for name, title in names.items()]
    else:
        rows, styled = [], found["style_controlled"]
        for category, part in found["score"].items():
            rows.append((category.replace("_", " "), part))
            if any(styled.get(category, {}).get(side) for side in SIDES):
                rows.append((f"{rows[-1][0]}, style controlled", styled[category]))
    return [
        (f"{name}, %", {side: percent(part.get(side)) for side in SIDES}) for name, part in rows
    ]


def percent(interval: dict[str, float] | None) -> dict[str, float] | None:
    return interval and {end: 100 * interval[end] for end in ("mean", "low", "high")}


def whole(found: dict[str, Any]) -> bool:
    """Whether all of a suite was asked, and answers not cut before it cuts them: of a part nothing
    is published."""
    cut = found.get("prescribed", {}).get("max_new_tokens", 0)
    return found["questions"] == found["whole"] and found.get("max_new_tokens", cut) >= cut


def caveats(found: dict[str, Any]) -> Iterator[str]:
    """What keeps the scores from standing beside published ones, a sentence each."""
    styled, by = found.get("style_controlled") or {}, found["judge"]["published"]
    if lacks := styled.get("lacks"):
        yield f"Style is not controlled: it takes {lacks}"
    for category, part in styled.items():
        if category != "lacks" and (others := part.get("others")):
            models = "one other model" if others == 1 else f"{others} other models"
            yield (
                f"Style of {category.replace('_', ' ')} is controlled by the verdicts on {models}: "
                "published scores, by those on all that the suite's data set has"
            )
    if prescribed := {k: v for k, v in found.get("prescribed", {}).items() if found[k] != v}:
        drawn, has = (
            ", ".join(f"{k} {of[k]:,g}" for k in prescribed) for of in (found, prescribed)
        )
        yield f"Answers are drawn with {drawn}, where the suite has {has}"
    if " or " in by and "creative_writing" in found.get("score", ()):
        yield f"Creative writing is published by {by.replace(' or ', ' and ')} together"
    if found["judge"]["model"].rpartition("/")[2] not in by.split(" or "):
        yield f"Published figures are by {by}: these are none beside them"


def headline(found: dict[str, Any]) -> dict[str, float]:
    """The policy's scores by name, each with the ends of its 95% interval, as W&B's summary has
    them."""
    flat = {}
    for name, part in scores(found):
        key = f"{found['suite']}/" + re.sub(r"\W+", "_", name.removesuffix(", %"))
        for end, value in (part["policy"] or {}).items():
            flat[key if end == "mean" else f"{key}_{end}"] = value
    return flat


def show(found: dict[str, Any]) -> None:
    """Scores of both models, and what keeps them from standing beside published ones."""
    suite, judge, rows = found["suite"], found["judge"], scores(found)
    if suite == "mt_bench":
        rows += [(f"turn {at}", part) for at, part in enumerate(found["turns"], start=1)]
        rows += [*found["categories"].items()]
    title = f"{TITLES[suite]} by {judge['model']}: {found['questions']} questions"
    table = Table("", *SIDES, title=visible(title), title_justify="left")
    form = ".2f" if suite == "mt_bench" else ".1f"
    for name, part in rows:
        forms = zip(SIDES, (form, form, f"+{form}"), strict=True)
        table.add_row(visible(name), *(said(part.get(side), how) for side, how in forms))
    Console().print(table)
    for name, mean in found.get("length", {}).items():
        print(f"Characters of an answer, {name}: {mean:,.0f}")
    for category, baseline in found.get("baselines", {}).items():
        print(f"Baseline, which has 50%, {visible(category)}: {visible(baseline)}")
    for reason, number in found["left_out"].items():
        print(f"Without a verdict, and left out: {number} ({visible(str(reason))})")
    if found["questions"] != found["whole"]:
        print(f"A part of the suite: {found['questions']} of its {found['whole']} questions")
    for line in caveats(found):
        print(visible(line))
