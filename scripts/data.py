"""What a model will see of a recipe's data, before it is trained on: `make data` runs this.

    make data                                    # the embedded preferences
    make data RECIPE=qwen-ultrafeedback ARGS="--max_length 2048"

Reads, checks and tokenises the data exactly as a run does, with the model's tokenizer and without
its weights. Shows how many pairs there are and how long, what was set aside and why, and a few
pairs token by token. Writes the same as data.html, and the rows set aside as quarantine.jsonl,
into the recipe's output folder. Ends with an error where a run would refuse the data.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import shlex
import sys
from pathlib import Path

from dpo.core.terminal import at_once, end, guarded, visible
from dpo.recipe.parse import Recipe, look, parse


def answer() -> None:
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(__doc__)
        raise SystemExit(0)
    look(sys.argv[1:])


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(answer)

import numpy as np
from datasets import Dataset
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dpo.core.environment import Launch
from dpo.core.files import write_whole
from dpo.core.refusal import Refusal
from dpo.data import characters, dataset, lint, quarantine, schema
from dpo.data.characters import Piece
from dpo.data.schema import column
from dpo.data.sources.load import load_rows
from dpo.models.chat_template import load_tokenizer
from dpo.models.config_check import check_model
from dpo.reports import data_page
from dpo.runs.output_folder import DATA_PAGE, unwritable

SHOWN = 3  # pairs, token by token
QUANTILES = (0.05, 0.5, 0.95, 1)
STYLES = {"prompt": "cyan", "chosen": "green", "rejected": "red", "special": "bold black on yellow"}
CUT, MANY = "strike dim", "bold"  # cut by max_length; one character of several tokens


def lengths_of(pairs: Dataset, *cut: int | str | None) -> list[list[str]]:
    """Tokens of prompt, chosen and rejected, not cut, as a table with its head; `cut` is max_length
    and truncation_mode."""
    table = [["", "mean", *(f"{q:.0%}" for q in QUANTILES), "cut by max_length"]]
    tokens = dict(zip(("prompt", "chosen", "rejected"), schema.token_counts(pairs), strict=True))
    for name, values in tokens.items():
        total = values + (tokens["prompt"] if name != "prompt" else 0)
        begin, end = schema.kept_span(total, *cut)
        share = "" if cut[0] is None or name == "prompt" else f"{(end - begin < total).mean():.1%}"
        numbers = (values.mean(), *np.quantile(values, QUANTILES))
        table.append([name, *(f"{number:.0f}" for number in numbers), share])
    return table


def remarks_on(split: str, pairs: Dataset) -> list[str]:
    _, chosen, rejected = schema.token_counts(pairs)
    longer = f"{split}: chosen is the longer one in {(chosen > rejected).mean():.1%} of the pairs"
    merged = np.count_nonzero(column(pairs, "merged"))
    warning = (
        f"{split}: in {merged} pairs the prompt's last token merges with the completion: the model "
        "is trained on another prompt's end than it will see. End prompts where a token ends, "
        "without a trailing blank"
    )
    return [longer, *([warning] if merged else [])]


def table_of(title: str, head: list[str], rows: list[list[str]], right: range) -> Table:
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place in right else "left")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table


def faults_table(linted: dict[str, quarantine.Linted]) -> Table:
    """The reasons of the rows that are not trained on: faults first, then lengths."""
    rows = [
        [
            split,
            f"{count}",
            f"{count / found.rows:.2%}",
            reason,
            lint.REASONS[reason],
            quarantine.first_of(found, reason),
        ]
        for split, found in linted.items()
        for reason, count in (found.set_aside | found.left_out).items()
    ]
    head = ["split", "rows", "share", "reason", "what it means", "first row"]
    return table_of("Set aside, and left out for length", head, rows, range(1, 3))


def spelt(pieces: list[Piece], style: str) -> Text:
    """Tokens as text, by turns underlined and not; special ones, cut ones and characters of several
    tokens told apart."""
    text = Text()
    for place, piece in enumerate(pieces):
        tone = STYLES["special"] if piece.special else STYLES[style]
        tone += " underline" * (place % 2) + f" {MANY}" * (piece.stop - piece.start > 1)
        text.append(visible(piece.text), tone if piece.kept else f"{tone} {CUT}")
    return text


def marked(pieces: list[Piece]) -> Text:
    """Tokens on one line with a mark between them, where there is no colour to tell them apart."""
    text = ""
    for before, piece in zip([None, *pieces], pieces, strict=False):
        text += "" if before is None else "▏" if before.kept == piece.kept else "✂"
        count = piece.stop - piece.start
        text += visible(piece.text).replace("\n", "⏎") + f"⁽{count}⁾" * (count > 1)
    return Text(f"  {text}", "dim")


def show_pairs(console: Console, pairs: dict[int, dict[str, tuple[str, list[Piece]]]]) -> None:
    """Pairs token by token: in colour, or with the same once more as a line of marked tokens."""
    plain = console.color_system is None
    legend = Text("prompt", STYLES["prompt"]).append(" ")
    for name in ("chosen", "rejected", "special"):
        legend.append(name, STYLES[name]).append(" ")
    legend.append("cut by max_length", CUT).append("; ")
    if plain:
        legend.append("▏ between tokens, ⁽³⁾ a character of three, ✂ where max_length cuts")
    else:
        legend.append("every other token is ").append("underlined", "underline").append(", ")
        legend.append("several tokens that make one character", MANY)
    console.print("\nPairs as the model sees them:", legend)
    for row, parts in pairs.items():
        console.rule(f"row {row}", align="left")
        for name, (words, pieces) in parts.items():
            console.print(f"[{STYLES[name]}]▌{name}[/], {words}")
            console.print(spelt(pieces, name), soft_wrap=True)
            if plain:
                console.print(marked(pieces), soft_wrap=True)


def seen(
    recipe: Recipe, linted: dict[str, quarantine.Linted], tokenizer
) -> tuple[dict, list, dict]:
    """What is shown: a table of lengths and remarks for each split, and a few pairs by row."""
    cut = recipe.training.max_length, recipe.training.truncation_mode
    splits = {split: found.pairs for split, found in linted.items() if len(found.pairs)}
    lengths = {split: lengths_of(pairs, *cut) for split, pairs in splits.items()}
    remarks = [line for split, pairs in splits.items() for line in remarks_on(split, pairs)]
    pairs = linted["train"].pairs
    places = np.linspace(0, len(pairs) - 1, min(SHOWN, len(pairs))).astype(int)
    rows = [pairs[int(place)] for place in places]
    return lengths, remarks, {row["row"]: characters.shown(row, tokenizer, *cut) for row in rows}


def show(
    recipe: Recipe,
    linted: dict[str, quarantine.Linted],
    lengths: dict[str, list[list[str]]],
    remarks: list[str],
    pairs: dict[int, dict[str, tuple[str, list[Piece]]]],
    console: Console,
) -> None:
    name, model = escape(recipe.name), escape(visible(recipe.model.model_name_or_path))
    console.print(f"[bold]{name}[/]: {model}'s view of its data\n")
    for line in quarantine.said(linted, None):
        console.print(Text(line), soft_wrap=True)
    console.print()
    for split, (head, *rows) in lengths.items():
        console.print(table_of(f"{split}: tokens", head, rows, range(1, len(head))))
    for line in remarks:
        console.print(Text(line), soft_wrap=True)
    if any(found.bad for found in linted.values()):
        console.print(faults_table(linted))
    if pairs:
        show_pairs(console, pairs)


@guarded
def main() -> None:
    recipe = parse(sys.argv[1:], Launch(on_cpu=True))  # there is nothing here for a GPU to do
    if recipe.script.dataset_streaming or recipe.mixture.streaming:
        raise Refusal("a stream has no length to show: leave streaming out to look at its data")
    check_model(recipe)
    rows, tokenizer = load_rows(recipe), load_tokenizer(recipe)
    linted = dataset.prepare(recipe, rows, tokenizer)
    folder = Path(recipe.training.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    aside = quarantine.set_aside(linted, folder)
    found = seen(recipe, linted, tokenizer)
    show(recipe, linted, *found, Console(width=None if sys.stdout.isatty() else 120))
    page, model = folder / DATA_PAGE, recipe.model.model_name_or_path
    write_whole(page, data_page.page(recipe.name, model, linted, *found))
    print(f"\nWritten: {page}{f', {aside}' if aside else ''}")
    quarantine.check_share(linted, recipe.run.quarantine_limit, folder)
    print(f"Next: make train RECIPE={shlex.quote(recipe.name)}")


if __name__ == "__main__":
    main()
    end(0)  # to give back what was imported takes a fifth of a second
