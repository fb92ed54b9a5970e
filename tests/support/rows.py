"""Rows in the layouts that preference data come in, and how they are linted."""

import json

from dpo.data import dataset, quarantine
from dpo.data.sources.load import load_rows
from dpo.models.chat_template import load_tokenizer
from dpo.recipe.parse import parse
from support.place import ROOT
from support.tiny import pair

RECIPE = ROOT / "recipes/smollm2-sentiment.yaml"


MAX_LENGTH = 128


def good(i: int) -> dict:
    return pair(f"the number {i}", f"It was good, {i} times.", f"It was bad, {i} times.")


def said(content, role: str = "assistant") -> list[dict]:
    return [{"role": role, "content": content}]


def changed(**columns) -> dict:
    return good(99) | columns


def talk(*contents: str) -> list[dict]:
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


def human(*contents: str) -> str:
    roles = ("Human", "Assistant") * len(contents)
    return "".join(f"\n\n{role}: {text}" for role, text in zip(roles, contents, strict=False))


LONG = "word " * MAX_LENGTH


IMPLICIT = [{"chosen": talk(f"q{i}", "a"), "rejected": talk(f"q{i}", "b")} for i in range(4)]


TEXT = [{"prompt": f"The {i} is", "chosen": " good.", "rejected": " bad."} for i in range(4)]


HH = [{"chosen": human(f"q{i}", "a"), "rejected": human(f"q{i}", "b")} for i in range(4)]


RATED = [{"prompt": f"q{i}", "responses": ["a", "b"], "ratings": ["5", "1"]} for i in range(4)]


COMPARED = [
    {"context": talk(f"q{i}"), "response1": "a", "response2": "b", "overall_preference": 1}
    for i in range(4)
]


ARENA = [
    {
        "conversation_a": talk(f"q{i}", "a"),
        "conversation_b": talk(f"q{i}", "b"),
        "winner": "model_a",
    }
    for i in range(4)
]


OWN = [
    {"conversation_a": talk(f"o{i}", "a", *more), "conversation_b": talk(f"o{i}", "b", *more)}
    | {"winner": "model_b"}
    for i, more in enumerate((["Go on.", "c"], ["Go on.", "c", "And?", "d"]))
]


SHAREGPT = [
    {
        "conversations": [{"from": "human", "value": f"q{i}"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    }
    for i in range(4)
]


SCORED = [
    {"prompt": f"q{i // 2}", "response": "a" * (i + 1), "helpfulness": i % 2} for i in range(6)
]


GOOD = [good(i) for i in range(4)]


def write(folder, rows: list) -> None:
    held_out = pair("x", "Good.", "Bad.") | {"prompt": said("Held out?", "user")}
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if isinstance(rows[0].get("prompt"), list):  # both files of a folder have the same columns
        held_out = rows[0] | held_out
        (folder / "test.jsonl").write_text(json.dumps(held_out) + "\n")


def lint(model, data, folder, *flags: str) -> dict[str, quarantine.Linted]:
    """Read a data folder as train.py does, and write the quarantine of it."""
    length = [] if "--max_length" in " ".join(flags) else [f"--max_length={MAX_LENGTH}"]
    argv = ["--config", str(RECIPE), "--use_cpu", *length, *flags]
    recipe = parse([*argv, f"--model_name_or_path={model}", f"--dataset_name={data}"])
    linted = dataset.prepare(recipe, load_rows(recipe), load_tokenizer(recipe))
    quarantine.set_aside(linted, folder)
    quarantine.check_share(linted, recipe.run.quarantine_limit, folder)
    return linted


def tool(name: str) -> list[dict]:
    return [{"type": "function", "function": {"name": name, "parameters": {}}}]
