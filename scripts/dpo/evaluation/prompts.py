"""What two models are asked: the held-out prompts of a recipe, or those of a file."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from dpo.core.refusal import Refusal
from dpo.core.terminal import visible
from dpo.data import dataset, lint
from dpo.data.formats import parsing
from dpo.data.formats.layouts import asked, begun
from dpo.data.formats.parts import again, beside, example_of, first_of
from dpo.data.formats.telling import NAMED, listed
from dpo.data.formats.turns import Fault
from dpo.data.schema import OPTIONS
from dpo.data.sources.files import Broken, lines_of
from dpo.data.sources.load import load, load_rows
from dpo.data.sources.rows import Rows
from dpo.data.tokenize import GIVEN, options_of
from dpo.evaluation.contestants import Contestant
from dpo.models.chat_template import load_tokenizer
from dpo.models.sampling import Prompt, parts, prompt_token_ids
from dpo.recipe.arguments import QUESTIONS
from dpo.recipe.parse import Recipe

CONVERSATIONS = ("messages", "conversations")


def held_out_pairs(recipe: Recipe) -> Dataset | None:
    """The held-out pairs of a recipe, checked and tokenised as a run does it; None without any."""
    if recipe.training.eval_strategy == "no":
        return None
    train, held_out = load_rows(recipe)
    # Where they are a split of their own, what is trained on is nothing to them.
    linted = dataset.prepare(recipe, (held_out or train, held_out), load_tokenizer(recipe))
    pairs: Any = linted["held-out"].pairs if "held-out" in linted else None
    return pairs


def of_pairs(held_out: Dataset) -> list[Prompt]:
    """The prompts of linted pairs, each with the tools and other options of its row."""
    said = list(held_out["prompt"])
    options = list(held_out[OPTIONS]) if OPTIONS in held_out.column_names else [""] * len(said)
    rows = zip(said, options, strict=True)
    return [{"prompt": p, "options": json.loads(o)} if o else p for p, o in rows]


def as_trained(
    prompts: list[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    held_out: Dataset | None,
    by: PreTrainedTokenizerBase,
) -> list[list[int]]:
    """Token ids of prompts as a model with this tokenizer sees them: those of the held-out pair,
    where `by`, which tokenised it, has the same tokens and chat template; else rendered anew."""
    known: dict[str, list[int]] = {}
    same = tokenizer.chat_template == by.chat_template
    if held_out is not None and same and tokenizer.get_vocab() == by.get_vocab():
        for prompt, ids in zip(of_pairs(held_out), held_out["prompt_ids"], strict=True):
            known.setdefault(json.dumps(prompt), ids)
    return [known.get(json.dumps(p)) or prompt_token_ids(tokenizer, p) for p in prompts]


def each_once(prompts: list[Prompt], limit: int) -> list[Prompt]:
    """The first `limit` of them; one that several pairs share counts once."""
    return [*{json.dumps(prompt): prompt for prompt in prompts}.values()][:limit]


def check(prompts: list[Prompt], who: Contestant) -> None:
    """See that a model can be asked all of them.

    Raises:
        Refusal: some have several turns, and it has no chat template.
    """
    said = [parts(prompt)[0] for prompt in prompts]
    turns = max(1 if isinstance(prompt, str) else len(prompt) for prompt in said)
    if turns > 1 and not who.tokenizer().chat_template:
        raise Refusal(
            f"{who.name} has no chat template, and prompts have up to {turns} turns: give others "
            "with PROMPTS=, or a chat model"
        )


def rows_of(path: Path) -> tuple[Rows, str]:
    """The rows of a file of prompts, and the column that holds them.

    Raises:
        Refusal: it cannot be read, has several splits, or none of these columns.
    """
    if ".txt" in path.suffixes[-2:]:
        try:
            lines = [line.rstrip("\r\n") for line in lines_of(str(path))]
        except Broken as error:
            raise Refusal(f"PROMPTS: {error}") from error
        found = [line for line in lines if line.strip()]
        return Rows(str(path), Dataset.from_dict({"prompt": found})), "prompt"
    splits = load(str(path), "PROMPTS")
    if len(splits) > 1 and "test" not in splits:
        raise Refusal(f"PROMPTS: {path} has the splits {', '.join(splits)}: give one's file")
    source = splits.get("test") or next(iter(splits.values()))
    if source.notes:
        raise Refusal(f"PROMPTS: {path} has {source.notes[0]}, or give one file")
    columns = source.data.column_names
    name = first_of((*QUESTIONS, *CONVERSATIONS, "query"), columns)
    if not name:
        raise Refusal(
            f"PROMPTS: {path} has no column `prompt`, only {', '.join(columns or ())}: call the "
            "column of the questions so"
        )
    return source, name


def read(file: str) -> list[Prompt]:
    """The prompts of a file or folder that holds data of any kind: a line each of .txt, or a
    column of questions, text or messages, with what stands beside it. Of a conversation what comes
    before its last answer. `tools` and `chat_template_kwargs` are those of its row.

    Text is what a user says.

    Raises:
        Refusal: the file is missing, is no such file, or holds no prompts.
    """
    path = Path(file)
    if not path.exists():
        raise Refusal(f"PROMPTS: no file {file}")
    source, name = rows_of(path)
    rows = source.meant(source.data)
    if not rows:
        raise Refusal(f"PROMPTS: {file} holds no prompts")
    parts, found = {"question": name, **beside(example_of(rows), name)}, []
    parts |= again(rows, parts)
    # Of pairs the answers are not asked about.
    seen = {*parts.values(), *GIVEN, "chosen", "rejected"}
    columns = example_of(rows).items()
    if unread := [n for n, v in columns if isinstance(v, str | list | dict) and n not in seen]:
        print(visible(f"PROMPTS: {file}: asked: {name}; not read: {listed(unread, NAMED)}"))
    for number, row in enumerate(source.data, start=1):
        try:
            row = parsing.meant(row, source.padded)
            said = begun(asked(row, parts), row, parts, calls=True)
            options = options_of(row)
            if name in CONVERSATIONS and said[-1:] and said[-1]["role"] == "assistant":
                said = said[:-1]
            if not lint.last_said(said).strip():
                raise Fault("no_prompt")
            if {message.get("role") for message in said} - lint.ROLES:
                raise Fault("unknown_role")
            if said[-1]["role"] == "assistant":
                raise Fault("wrong_role")
        except (Fault, ValueError) as error:
            why: Any = getattr(error, "reason", error)
            said = f"PROMPTS: {file}, row {number}: {lint.REASONS.get(why, why)}"
            detail = getattr(error, "detail", "")
            raise Refusal(f"{said} ({detail})" if detail else said) from error
        found.append({"prompt": said, "options": options} if options else said)
    return found
