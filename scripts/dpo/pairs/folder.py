"""The folder of a data set of pairs: whose it is, and what is told of it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from dpo.core import files
from dpo.core.refusal import Refusal
from dpo.core.secrets import masked
from dpo.core.terminal import visible
from dpo.pairs import asked
from dpo.pairs.picking import REASONS as NO_PAIR
from dpo.runs import output_folder

ABOUT, CANDIDATES = "pairs.json", "candidates.jsonl"
SPLITS = ("train", "test")
OURS = (ABOUT, CANDIDATES, "train.jsonl", "test.jsonl", "README.md", "margins.png")
NO_ANSWER = {
    "unfinished": "cut at max_new_tokens before it ended",
    "empty": "no text",
    "broken_text": "characters that are none: a token was cut in the middle of one",
    "control_token": "it spells a token that opens or closes a turn",
    "repeated": "the same text as another answer to its prompt",
}


def check_ours(folder: Path) -> None:
    """Raises Refusal if a folder holds something else than pairs."""
    about = read_about(folder)
    there = sorted(each.name for each in folder.iterdir() if each.name[0] != ".")
    if there and not about:
        what = f"files that are no pairs of this repository ({', '.join(there[:3])})"
        raise Refusal(f"TO: {folder} holds {what}: give another folder with TO=")


def read_about(folder: Path) -> dict[str, Any]:
    """pairs.json; empty where there is none."""
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "format" in found else {}


def claim(folder: Path, stated: dict[str, Any]) -> None:
    """Make a folder these pairs' own. Of what was not finished settings may be set right.

    Raises:
        Refusal: it holds other pairs.
    """
    before = read_about(folder)
    kept = {key: before.get(key) for key in stated}
    kept["prompts"] = {key: (kept["prompts"] or {}).get(key) for key in stated["prompts"]}
    if kept != stated and "pairs" in before:
        changed = output_folder.differences(flattened(kept), flattened(stated))
        why = f"other pairs: {changed}: give another folder with TO=; answers that are kept are"
        raise Refusal(f"TO: {folder} holds {why} found again")
    if kept != stated:
        files.write_json(folder / ABOUT, stated)


def flattened(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, part in value.items():
        below = (
            {f"{key}.{name}": each for name, each in part.items()} if isinstance(part, dict) else {}
        )
        found |= below or {key: part}
    return found


def alike(row: dict[str, Any], options: dict[str, set[str]]) -> dict[str, Any]:
    """A row with the columns of all others, or `datasets` reads no split: tools and options as text
    where any row has some; options that all rows share as they are, which TRL takes.

    Args:
        options: the different texts of each that there are, two at most.
    """
    for name, texts in options.items():
        if texts == {""}:
            del row[name]
    shared = options["chat_template_kwargs"]
    if shared != {""} and len(shared) == 1:
        row["chat_template_kwargs"] = json.loads(row["chat_template_kwargs"])
    return row


def put(file: Any, row: dict[str, Any]) -> None:
    file.write(f"{json.dumps(masked(row), ensure_ascii=False)}\n")


def ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def why_none(without: Counter[str], left_out: Counter[str]) -> str:
    """Why no prompt has a pair, the most frequent reasons first."""
    why = [f"{NO_PAIR[reason]} ({n} prompts)" for reason, n in without.most_common()]
    answers = left_out.most_common(3)
    why += [f"answers: {NO_ANSWER.get(reason, reason)} ({n})" for reason, n in answers]
    return "; ".join(why)


def show(results: dict[str, Any], folder: Path) -> None:
    """What came of it, in a few lines."""
    prompts, answers, pairs = results["prompts"], results["answers"], results["pairs"]

    def told(counts: dict[str, int], words: dict[str, str]) -> str:
        return "".join(f"\n  {n}: {words.get(reason, reason)}" for reason, n in counts.items())

    lines = [f"Prompts: {prompts['asked']} asked of {prompts['count']}"]
    lines[0] += told(prompts["left_out"], {r: asked.reasons(r) for r in prompts["left_out"]})
    lines += [f"Answers: {answers['count']}, of which are left out:" * bool(answers["left_out"])]
    lines[-1] = lines[-1] or f"Answers: {answers['count']}"
    lines[-1] += told(answers["left_out"], NO_ANSWER)
    if results["without_pair"]:
        without = sum(results["without_pair"].values())
        lines += [f"Prompts without a pair: {without}{told(results['without_pair'], NO_PAIR)}"]
    if undecided := results["undecided"]:
        lines += [f"Comparisons without a verdict: {sum(undecided.values())}{told(undecided, {})}"]
    if results["orders_disagree"] is not None:
        lines += [f"The judge changes its mind with the places: {results['orders_disagree']:.1%}"]
    lines += [f"Pairs: {pairs['train']} to train on, {pairs['test']} held out"]
    print(visible("\n".join(lines)))
    written = [f"{split}.jsonl" for split in SPLITS if pairs[split]] + [CANDIDATES, ABOUT]
    print(f"Written: {folder}/{', '.join(written)}, README.md")
