"""What two models are asked: the held-out prompts of a recipe, or those of a file."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, Value
from transformers import PreTrainedTokenizerBase

from dpo.core.refusal import Refusal
from dpo.core.terminal import visible
from dpo.data import dataset, lint, schema
from dpo.data.formats import parsing
from dpo.data.formats.layouts import asked, begun
from dpo.data.formats.parts import Row, again, beside, example_of, first_of
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
from dpo.runs.output_folder import REPORT

RENDERED = "context_messages"  # of RLHFlow's prompts, beside a text `context`
CONVERSATIONS = ("messages", "conversations", RENDERED)
PAIR = "chosen"  # a conversation, where a pair has no column of its own for the prompt
SEEN = 1000  # rows by which the columns are told


def held_out_pairs(recipe: Recipe) -> Dataset | None:
    """The held-out pairs of a recipe, checked and tokenised as a run does it; None without any."""
    if recipe.training.eval_strategy == "no":
        return None
    train, held_out = load_rows(recipe)
    # Where they are a split of their own, what is trained on is nothing to them.
    linted = dataset.prepare(recipe, (held_out or train, held_out), load_tokenizer(recipe))
    pairs: Any = linted["held-out"].pairs if "held-out" in linted else None
    return pairs


def changed(held_out: Dataset | None, run: Path) -> bool:
    """Whether held-out pairs are others than those that a run has measured at its end: its data
    have changed since. A line says so."""
    measured = None
    with suppress(OSError, ValueError):  # no run of ours
        measured = json.loads((run / REPORT).read_text(encoding="utf-8")).get("pairs")
    if not measured or held_out is None or measured.get("digest") == schema.digest_of(held_out):
        return False
    print(
        f"The data of {run} have changed since it ended: these held-out pairs are others than "
        "those of its report, and it may have trained on some"
    )
    return True


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


def is_text(path: Path) -> bool:
    return ".txt" in path.suffixes[-2:]


def lines_as_rows(path: Path) -> Rows:
    """The lines of a text file, read as they are asked for."""

    def lines() -> Iterator[dict[str, str]]:
        try:
            for line in lines_of(str(path)):
                yield {"prompt": line.rstrip("\r\n")}
        except Broken as error:
            raise Refusal(f"PROMPTS: {error}") from error

    features = Features({"prompt": Value("string")})
    return Rows(str(path), IterableDataset.from_generator(lines, features=features))


def splits_of(name: str) -> dict[str, Rows]:
    """The rows of a file, a folder or a data set of the hub that holds prompts, split by split.

    Raises:
        Refusal: there is nothing of that name.
    """
    path = Path(name)
    if ".txt" not in path.suffixes[-2:]:
        return load(name, "PROMPTS")
    if not path.is_file():
        raise Refusal(f"PROMPTS: no file {name}")
    return {"train": lines_as_rows(path)}


def column_of(source: Rows) -> str:
    """The column that holds the prompts.

    Raises:
        Refusal: there is none of a name that says so.
    """
    columns = source.data.column_names or ()
    if found := first_of((RENDERED, *QUESTIONS, *CONVERSATIONS, "query"), columns):
        return found
    if PAIR in columns and all(isinstance(row[PAIR], list) for row in source.first(1)):
        return PAIR
    raise Refusal(
        f"PROMPTS: {source.name} has no column `prompt`, only {', '.join(columns)}: call the "
        "column of the questions so"
    )


def each(source: Rows) -> Iterator[tuple[int, Row, Prompt | Fault]]:
    """The number of each row, from 1, the row as it is meant, and its prompt, or why it is none.
    One at a time: there may be more rows than fit in memory.

    Of a conversation what comes before its last answer. `tools` and `chat_template_kwargs` are
    those of the row. Text is what a user says; blank lines of a text file are no prompts.
    """
    text = is_text(Path(source.name))
    name, rows = column_of(source), source.first(SEEN)
    parts = {"question": name, **beside(example_of(rows), name)}
    parts |= again(rows, parts)
    # Of pairs the answers are not asked about.
    seen = {*parts.values(), *GIVEN, "chosen", "rejected"}
    columns = example_of(rows).items()
    if unread := [n for n, v in columns if isinstance(v, str | list | dict) and n not in seen]:
        said = f"PROMPTS: {source.name}: asked: {name}; not read: {listed(unread, NAMED)}"
        print(visible(said))
    for number, row in enumerate(source.data, start=1):
        if text and not row["prompt"].strip():
            continue
        try:
            row = parsing.meant(row, source.padded)
            prompt = begun(asked(row, parts), row, parts, calls=True)
            options = options_of(row)
            if name in (*CONVERSATIONS, PAIR) and prompt[-1:] and prompt[-1]["role"] == "assistant":
                prompt = prompt[:-1]
            if not lint.last_said(prompt).strip():
                raise Fault("no_prompt")
            if {message.get("role") for message in prompt} - lint.ROLES:
                raise Fault("unknown_role")
            if prompt[-1]["role"] == "assistant":
                raise Fault("wrong_role")
            yield number, row, {"prompt": prompt, "options": options} if options else prompt
        except Fault as fault:
            yield number, row, fault
        except ValueError as error:
            yield number, row, Fault("not_messages", str(error))


def with_row(prompt: Prompt, row: Row) -> Prompt:
    """A prompt with the row that it stands in, which a rule may ask for."""
    said, options = parts(prompt)
    row = json.loads(json.dumps(row, default=str))
    return {"prompt": said, "options": options, "row": row}


def read(file: str, rows: bool = False) -> list[Prompt]:
    """The prompts of a file or folder that holds data of any kind: a line each of .txt, or a
    column of questions, text or messages, with what stands beside it (`each`); with `rows`, each
    with its row.

    Raises:
        Refusal: the file is missing, cannot be read, has several splits and none is `test`, holds
            no prompts, or a row is none.
    """
    if not Path(file).exists():
        raise Refusal(f"PROMPTS: no file {file}")
    splits = splits_of(file)
    if len(splits) > 1 and "test" not in splits:
        raise Refusal(f"PROMPTS: {file} has the splits {', '.join(splits)}: give one's file")
    source = splits.get("test") or next(iter(splits.values()))
    if source.notes:
        raise Refusal(f"PROMPTS: {file} has {source.notes[0]}, or give one file")
    found = []
    for number, row, prompt in each(source):
        if isinstance(prompt, Fault):
            said = lint.REASONS.get(prompt.reason, prompt.reason)
            detail = f" ({prompt.detail})" if prompt.detail else ""
            raise Refusal(f"PROMPTS: {file}, row {number}: {said}{detail}")
        found.append(with_row(prompt, row) if rows else prompt)
    if not found:
        raise Refusal(f"PROMPTS: {file} holds no prompts")
    return found
