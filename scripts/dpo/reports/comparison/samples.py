"""What runs said to the same prompts, and which words of it differ."""

import difflib
import re
from typing import Any

from dpo.reports.comparison.collect import Compared
from dpo.runs import metrics

SHOWN = 10  # prompts
ALIKE = 0.5  # of the words of two answers, from which on differences are marked


def marked(text: str, beside: str) -> list[tuple[str, bool]]:
    """The text in pieces, each with whether its words are others than those of `beside` there.
    None is marked where most are: that would tell nothing."""
    words, others = (re.findall(r"\s*\S+|\s+$", each) for each in (text, beside))
    of = ([word.strip() for word in each] for each in (others, words))
    match = difflib.SequenceMatcher(None, *of, autojunk=False)
    if match.ratio() < ALIKE:
        return [(text, False)]
    kinds = match.get_opcodes()
    pieces = [("".join(words[start:end]), kind != "equal") for kind, _, _, start, end in kinds]
    return [piece for piece in pieces if piece[0]]


def samples(runs: list[Compared]) -> dict[str, list[dict[str, Any]]]:
    """Prompts that all have answered which have answered any, by where the answers are from: each
    with what the references said and what the runs said, (name, text, reward)."""
    found = {"After training": [_answered(run.report) for run in runs]}
    for name in dict.fromkeys(name for run in runs for name in run.evaluations):
        found[f"make evaluate, {name}"] = [_answered(run.evaluations.get(name, {})) for run in runs]
    found["While they trained, at the last evaluation"] = [_along(run) for run in runs]
    return {where: rows for where, of in found.items() if (rows := _aligned(runs, of))}


Said = tuple[str, float | None]


def _answered(found: dict[str, Any]) -> dict[str, tuple[Said, ...]]:
    """By prompt, what the reference said and what the run said."""
    return {
        row["prompt"]: tuple((row[who], row[f"reward_{who}"]) for who in ("against", "policy"))
        for row in found.get("samples", [])
    }


def _along(run: Compared) -> dict[str, tuple[Said, ...]]:
    return {
        f"{row['prompt']} ({row['decoding']})": ((row["reference"], None), (row["policy"], None))
        for row in metrics.completions(run.folder)
    }


def _aligned(
    runs: list[Compared], answered: list[dict[str, tuple[Said, ...]]]
) -> list[dict[str, Any]]:
    of = {run.name: rows for run, rows in zip(runs, answered, strict=True) if rows}
    shared = [p for p in next(iter(of.values()), ()) if all(p in rows for rows in of.values())]
    aligned = []
    for prompt in shared[:SHOWN]:
        first = dict.fromkeys(rows[prompt][0] for rows in of.values())
        whose = {said: [name for name in of if of[name][prompt][0] == said] for said in first}
        references = [
            ("reference" if len(first) == 1 else f"what {', '.join(names)} is held against", *said)
            for said, names in whose.items()
        ]
        answers = [(name, *rows[prompt][1]) for name, rows in of.items()]
        aligned.append({"prompt": prompt, "references": references, "answers": answers})
    return aligned
