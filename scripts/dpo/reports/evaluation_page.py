"""An evaluation as rows of (name, value, note), and as a page."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from dpo.core import files
from dpo.core.stats import said
from dpo.core.terminal import visible
from dpo.reports.html import png, render
from dpo.reports.parts.run_picture import AFTER, NEUTRAL
from dpo.reports.parts.verdict import definitions, verdict
from dpo.reports.run_report import named, of_pairs

Row = tuple[str, str, str]


def rows(found: dict) -> list[Row]:
    """What was measured, for the terminal and the page; intervals are of 95%."""
    return [*_judged(found["judge"]), *_pairs(found["pairs"]), *_answers(found), *_suite(found)]


def _judged(judge: dict | None) -> list[Row]:
    if not judge:
        return []
    left_out = ", ".join(f"{count} left out: {why}" for why, count in judge["left_out"].items())
    alike = f" ({judge['identical']} identical)" if judge.get("identical") else ""
    counts = f"{judge['wins']} won, {judge['ties']} tied{alike}, {judge['losses']} lost"
    table = [("Win rate", said(judge["win_rate"]), "; ".join(filter(None, (counts, left_out))))]
    if controlled := judge["length_controlled_win_rate"]:
        note = "what it would be if both answered at one length"
        table.append(("Win rate, length-controlled", said(controlled), note))
    if reward := judge["reward"]:
        note = f"{reward['policy']['mean']:.2f} against {reward['against']['mean']:.2f}"
        table.append(("Reward, difference", said(reward["difference"], "+.3f"), note))
    if cost := judge["cost"]:
        money = f", ${cost['dollars']:.2f}" if "dollars" in cost else ""
        note = f"on {cost['orders_disagree']:.0%} of the pairs it went by the place: ties"
        table.append(("Judge", f"{cost['tokens_in'] + cost['tokens_out']:,} tokens{money}", note))
    return table


def _pairs(pairs: dict | None) -> list[Row]:
    if not pairs:
        return []
    table = [
        ("Preference accuracy", said(pairs["accuracy"]), of_pairs(pairs["count"], pairs)),
        ("Margin", said(pairs["margin"], "+.3f"), "implicit reward, chosen less rejected"),
    ]
    for name, part in parts_of(pairs):
        table.append((f"— {name}", said(part["accuracy"]), f"accuracy, {part['count']} pairs"))
    return table


def parts_of(pairs: dict) -> Iterator[tuple[str, dict]]:
    """The parts of the pairs, by length and by each column of categories, with their names."""
    for column, group in {"": pairs["by_length"], **pairs["by_category"]}.items():
        for part in group:
            yield f"{column}: {part['name']}" if column else part["name"], part


def _answers(found: dict) -> list[Row]:
    of = found["answers"]
    tokens, finished, distinct = of["mean_tokens"], of["finished"], of["distinct"]
    note = f"against {said(tokens['against'], '.1f')}; "
    note += f"difference {said(tokens['difference'], '+.1f')}"
    table = [("Answer, tokens", said(tokens["policy"], ".1f"), note)]
    note = f"against {said(finished['against'], '.0%')}; the others were cut"
    table.append(("Ended by themselves", said(finished["policy"], ".0%"), note))
    if topic := of.get("on_topic"):
        note = f"against {said(topic['against'], '.0%')}; {named(topic)}"
        table.append(("On topic", said(topic["policy"], ".0%"), note))
    for n in ("1", "2"):
        note = f"against {distinct['against'][n]:.2f}; share of all"
        table.append((f"Distinct {n}-grams", f"{distinct['policy'][n]:.2f}", note))
    if of["kl"]:
        sequence, token = of["kl"]["nats_per_sequence"], of["kl"]["nats_per_token"]
        note = f"from {of['kl']['from']}, nats a sequence; a token {said(token, '.3f')}"
        table.append(("KL of the policy", said(sequence), note))
    return table


def with_error(of: dict, side: str) -> str:
    """What one side reached on a benchmark, with a 95% interval where lm-eval knows the error."""
    error = of.get(f"stderr_{side}")
    return f"{of[side]:.4f}" + (f" ± {1.96 * error:.4f}" if error is not None else "")


def _suite(found: dict) -> list[Row]:
    return [
        (f"{task}, {metric}", with_error(of, "policy"), f"against {with_error(of, 'against')}")
        for task, metrics in (found["suite"] or {}).items()
        for metric, of in metrics.items()
    ]


def shares(found: dict) -> dict[str, dict]:
    """Every share with its interval, by name: win rates, and accuracy on all pairs and on parts."""
    judge, pairs, named = found["judge"], found["pairs"], {}
    if judge:
        named["win rate"] = judge["win_rate"]
        if judge["length_controlled_win_rate"]:
            named["win rate, length-controlled"] = judge["length_controlled_win_rate"]
    if pairs:
        named["accuracy"] = pairs["accuracy"]
        named |= {f"accuracy, {name}": part["accuracy"] for name, part in parts_of(pairs)}
    return named


def draw(named: dict[str, dict]) -> Figure:
    """Shares with their 95% intervals, one under another, and where neither side has more."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        size = (7.6, 0.9 + 0.28 * len(named))
        figure, axis = plt.subplots(figsize=size, layout="constrained")
    for at, interval in enumerate(named.values()):
        axis.plot([interval["low"], interval["high"]], [at, at], color=AFTER)
        axis.plot(interval["mean"], at, "o", color=AFTER)
    axis.axvline(0.5, color=NEUTRAL, zorder=0)
    # A dollar sign would begin a formula.
    labels = [visible(name)[:48].replace("$", r"\$") for name in named]
    axis.set_yticks(range(len(named)), labels)
    axis.set(xlim=(-0.02, 1.02), ylim=(len(named) - 0.5, -0.5), xlabel="share, 95% interval")
    return figure


def page(found: dict) -> str:
    """The evaluation as one page."""
    asked = found["prompts"]
    about = (
        f"{asked['count']} prompts of {asked['source']}, {asked['samples']} answers each at "
        f"temperature {asked['temperature']:g}, cut at {asked['max_new_tokens']} tokens. "
        f"{found['finished']}"
    )
    judge, parts = found["judge"]["about"] if found["judge"] else {}, shares(found)
    tone, sentences = verdict(found)
    return render(
        "evaluation",
        title=f"{found['policy']} against {found['against']}",
        tone=tone,
        sentences=sentences,
        definitions=definitions(found),
        about=about,
        rows=rows(found),
        drawn=png(draw(parts)) if parts else None,
        samples=found["samples"],
        prompts=asked,
        settings={**judge, **found["versions"], "machine": found["machine"]},
    )


def write(results: dict, lines: list[dict], folder: Path) -> None:
    """The results as a page and as JSON, and all prompts with their answers."""
    files.write_lines(folder / "answers.jsonl", lines)
    files.write_whole(folder / "evaluation.html", page(results))
    files.write_json(folder / "evaluation.json", results)


def show(results: dict) -> None:
    """The results in the terminal."""
    title = f"{results['policy']} against {results['against']}"
    columns = ("", "policy (95% interval)", "")
    table = Table(*columns, title=visible(title), title_justify="left")
    for row in rows(results):
        table.add_row(*map(visible, row))
    Console().print(table)
    print(visible(" ".join(verdict(results)[1])))
