"""Rounds beside one offline run on as many pairs, as a page and a picture."""

import shlex
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from dpo.core import files
from dpo.core.terminal import visible
from dpo.reports.frontier_page import markdown
from dpo.reports.html import png, render
from dpo.reports.parts.run_picture import AFTER, BEFORE, CHOSEN
from dpo.reports.parts.verdict import DEFINITIONS
from dpo.reports.rounds.numbers import (
    OFFLINE,
    START,
    first,
    judge_of,
    measured,
    metric,
    metric_name,
    table,
)
from dpo.reports.rounds.verdict import verdict

OWN = {
    "Rounds": "each is sampled from the policy of the one before, judged, and trained on from it.",
    "Offline": "one run from the start, on as many pairs, all of the start's own answers.",
    "KL": "log π(y | x) − log π_start(y | x), the mean over the policy's own answers, in nats a "
    "sequence: how far it has gone from the start, whatever its reference was.",
    "Own held-out accuracy": "the share of the round's own held-out pairs on which the policy "
    "prefers the chosen answer, against the round's reference; each round has others.",
}


def draw(found: dict[str, Any]) -> Figure:
    """Reward or win rate over KL from the start: rounds joined by a line, offline a mark of its
    own."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure, axis = plt.subplots(figsize=(7.6, 4.6), layout="tight")
    done = measured(found)
    zero = {"mean": 0.0, "low": 0.0, "high": 0.0}

    def point(name: str) -> tuple[dict, dict]:
        kl = {} if name == START else done[name]["answers"]["kl"] or {}
        return kl.get("nats_per_sequence", zero), metric(found, name)

    def bars(named: list[str], **style: Any) -> None:
        parts = [*zip(*map(point, named), strict=True)]
        x, y = ([each["mean"] for each in part] for part in parts)
        across, up = (
            [[abs(each[end] - each["mean"]) for each in part] for end in ("low", "high")]
            for part in parts
        )
        how: dict[str, Any] = {"markersize": 6, "linewidth": 1.5, "elinewidth": 0.8, "capsize": 2}
        axis.errorbar(x, y, up, across, **how, **style)

    rounds = [name for name in done if name != OFFLINE]
    bars([START, *rounds], color=AFTER, marker="o", label="rounds")
    bars([START], color=BEFORE, marker="o", linestyle="", label="start")
    if OFFLINE in done:
        label = "offline, as many pairs"
        bars([OFFLINE], color=CHOSEN, marker="D", linestyle="", label=label)
    for number, name in enumerate(rounds, start=1):
        x, y = (of["mean"] for of in point(name))
        axis.annotate(str(number), (x, y), (5, 6), textcoords="offset points", color=AFTER)
    axis.set(
        xlabel="KL(policy ‖ start), nats a sequence", ylabel=metric_name(found).replace("$", r"\$")
    )
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def samples(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The same prompts with the first answer of the start, the last round and the offline run."""
    done = measured(found)
    last = [name for name in done if name != OFFLINE][-1]
    shown = [last, *([OFFLINE] if OFFLINE in done else [])]
    rows = []
    for number, sample in enumerate(done[last]["samples"]):
        each = {name: done[name]["samples"][number] for name in shown}
        sides = [(START, sample["against"], sample["reward_against"])]
        sides += [(name, of["policy"], of["reward_policy"]) for name, of in each.items()]
        rows.append({"prompt": sample["prompt"], "sides": sides})
    return rows


def about(found: dict[str, Any]) -> str:
    how, asked = found["how"], first(found)["prompts"]
    reference = "the start" if how["reference"] == START else "the policy that it begins with"
    return (
        f"{how['recipe']}, prompts of {Path(how['prompts']).name}, judge "
        f"{judge_of(found)['name']}, {how['samples']} answers to each, pairs picked {how['pick']}; "
        f"the reference of each round is {reference}. Measured on {asked['count']} held-out "
        f"prompts of {asked['source']}, {asked['samples']} answers each at temperature "
        f"{asked['temperature']:g}, cut at "
        f"{asked['max_new_tokens']} tokens."
    )


def stated(how: dict[str, Any]) -> dict[str, str]:
    """What was given, lists as a shell has them."""
    texts = {k: shlex.join(map(str, v)) if isinstance(v, list) else str(v) for k, v in how.items()}
    return {key: text for key, text in texts.items() if text not in ("", "None")}


def definitions(head: list[str]) -> dict[str, str]:
    """What the columns of a table mean."""
    by_column = {"true reward": "True reward", "win rate against the start": "Win rate"}
    by_column |= {"on topic": "On topic", "answer, tokens": "Answer length"}
    return OWN | {name: DEFINITIONS[name] for column, name in by_column.items() if column in head}


def write(found: dict[str, Any], into: Path) -> None:
    """rounds.html, rounds.png and rounds.md, and what they say added to rounds.json."""
    drawn, rows, (tone, sentences) = png(draw(found)), table(found), verdict(found)
    reports = {name: f"{name}/report.html" for name in measured(found)}
    html = render(
        "rounds",
        title=f"{found['how']['recipe']} in rounds",
        about=about(found),
        tone=tone,
        sentences=sentences,
        definitions=definitions(rows[0]),
        drawn=drawn,
        table=rows,
        reports=reports,
        samples=samples(found),
        settings=stated(found["how"]),
    )
    files.write_whole(into / "rounds.png", drawn)
    files.write_whole(into / "rounds.html", html)
    files.write_whole(into / "rounds.md", f"{' '.join(sentences)}\n\n{markdown(rows)}")
    files.write_json(into / "rounds.json", found | {"verdict": sentences})


def show(found: dict[str, Any]) -> None:
    """The same in the terminal."""
    head, *rows = table(found)
    shown = Table(*map(visible, head[:5]), title="Rounds", title_justify="left")
    for row in rows:
        shown.add_row(*map(visible, row[:5]))
    Console().print(shown)
    print(visible(" ".join(verdict(found)[1])))
