"""A folder as make pairs fills it, with texts and scores that a test chooses."""

import json
from pathlib import Path
from typing import Any

from support.tiny import pair

SETTINGS: dict[str, Any] = {
    "format": 1,
    "prompts": {"source": "prompts.txt", "digest": "1"}
    | {"split": "", "skip": 0, "first": None, "test_size": 0.1, "split_seed": 42}
    | {"chat_template_kwargs": {"enable_thinking": False}}
    | {"count": 9, "asked": 8, "left_out": {"repeated": 1}},
    "models": [{"name": "org/small", "parameters": 1234, "dtype": "float32", "digest": "0"}],
    "sampling": {
        "samples": 2,
        "temperature": 0.7,
        "top_p": 1.0,
        "max_new_tokens": 40,
        "seeds": [0, 1],
    },
    "judge": {"kind": "reward", "name": "vader"},
    "pick": {"how": "best-worst", "min_margin": 0.1, "label_temperature": 1.0},
    "answers": {"count": 16, "left_out": {"unfinished": 3, "a word of the judge": 1}},
    "without_pair": {"tie": 2},
    "orders_disagree": None,
    "cost": None,
}


def answer(text: str, score: float | None) -> dict[str, Any]:
    how = {"model": 0, "seed": 0, "tokens": len(text.split()), "finished": True}
    return {"text": text, **how, "score": score, "why": None}


def pairs_folder(folder: Path, rows: list[tuple], **settings: Any) -> Path:
    """Rows are (split, prompt, chosen, its score, rejected, its score). As with VADER, the scores
    of drawn labels are no ratings that contradict them."""
    folder.mkdir(parents=True)
    counts = {"train": 0, "test": 0}
    lines: dict[str, list[dict]] = {"train": [], "test": [], "candidates": []}
    for at, (split, prompt, good, high, bad, low) in enumerate(rows):
        counts[split] += 1
        row = pair(prompt, good, bad)
        lines[split].append(row | {"vader_chosen": high, "vader_rejected": low})
        answers = [answer("Never chosen.", 0.0), answer(bad, low), answer(good, high)]
        about = {"prompt": row["prompt"], "split": split, "row": at, "answers": answers}
        lines["candidates"].append(about | {"pairs": [[2, 1]], "why": None})
    none = {"prompt": pair("Tie?", "", "")["prompt"], "split": "train", "row": len(rows)}
    lines["candidates"].append(none | {"answers": [], "pairs": [], "why": "a tie"})
    for name, of in lines.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in of)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    made = {**SETTINGS, "pairs": counts, **settings}
    (folder / "pairs.json").write_text(json.dumps(made), encoding="utf-8")
    return folder
