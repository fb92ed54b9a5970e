"""What a model will see of a recipe's data, before it is trained on: `make data` runs this.

    make data                                    # the embedded preferences
    make data RECIPE=qwen-ultrafeedback ARGS="--max_length 2048"

Reads, checks and tokenises the data exactly as a run does, with the model's tokenizer and without
its weights. Shows how many pairs there are and how long, what was set aside and why, and a few
pairs token by token. Writes the same as data.html, and the rows set aside as quarantine.jsonl, into
the recipe's output folder. Ends with an error where a run would refuse the data.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import os
import sys
from pathlib import Path

import numpy as np
from datasets import Dataset
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from dpo import cutting, lint, preferences, quarantine
from dpo.output import DATA_PAGE, NO_SCRIPTS, write_whole
from dpo.reading import IDS
from dpo.recipe import Recipe, parse
from dpo.sources import check_model, load_rows
from dpo.terminal import guarded, visible
from dpo.tokenization import load_tokenizer

SHOWN = 3  # pairs, token by token
QUANTILES = (0.05, 0.5, 0.95, 1)
STYLES = {"prompt": "cyan", "chosen": "green", "rejected": "red", "special": "bold black on yellow"}
CUT = "strike dim"


def lengths(pairs: Dataset) -> dict[str, np.ndarray]:
    """Tokens of prompt, chosen and rejected, not cut, each of shape (pairs,)."""
    table = pairs.select_columns(list(IDS)).with_format("arrow")[:]
    return {name[:-4]: np.array([len(ids) for ids in table[name]]) for name in IDS}


def lengths_table(split: str, tokens: dict[str, np.ndarray], *cut: int | str | None) -> Table:
    """`cut` is max_length and truncation_mode."""
    table = Table(title=f"{split}: tokens", title_justify="left")
    for column in ("", "mean", *(f"{q:.0%}" for q in QUANTILES), "cut by max_length"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in tokens.items():
        total = values + (tokens["prompt"] if name != "prompt" else 0)
        begin, end = cutting.span(total, *cut)
        share = "" if cut[0] is None or name == "prompt" else f"{(end - begin < total).mean():.1%}"
        numbers = (values.mean(), *np.quantile(values, QUANTILES))
        table.add_row(name, *(f"{number:.0f}" for number in numbers), share)
    return table


def faults_table(linted: dict[str, quarantine.Linted]) -> Table:
    table = Table(title="Set aside", title_justify="left")
    for column in ("split", "rows", "share", "reason", "what it means", "first row"):
        table.add_column(column, justify="right" if column in ("rows", "share") else "left")
    for split, found in linted.items():
        for reason, count in found.reasons.items():
            first = next(bad for bad in found.bad if bad.reason == reason)
            where = f"{first.source.name}, row {first.row}: {first.detail}".removesuffix(": ")
            share = f"{count / found.rows:.2%}"
            shown = Text(visible(where))
            table.add_row(split, str(count), share, reason, lint.REASONS[reason], shown)
    return table


def tokens_of(
    ids: list[int], kept: range, style: str, tokenizer: PreTrainedTokenizerBase, special: set[int]
) -> Text:
    """Tokens as text, the special ones and those at places that are not `kept` told apart."""
    text = Text()
    for place, token in enumerate(ids):
        tone = STYLES["special"] if token in special else STYLES[style]
        tone = tone if place in kept else f"{tone} {CUT}"
        text.append(visible(tokenizer.decode([token])), tone)
    return text


def show_pairs(console: Console, pairs: Dataset, tokenizer, *cut: int | str | None) -> None:
    """A few pairs token by token; `cut` is max_length and truncation_mode.

    Cut at the start, the two rows of a pair may have more or less of the prompt: it is shown as the
    row has it that has more, and each completion says how many tokens of it are before its own."""
    special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    legend = Text("prompt", STYLES["prompt"]).append(" ")
    for name in ("chosen", "rejected", "special"):
        legend.append(name, STYLES[name]).append(" ")
    legend.append("cut by max_length", CUT)
    console.print("\nPairs as the model sees them:", legend)
    for row in np.linspace(0, len(pairs) - 1, min(SHOWN, len(pairs))).astype(int):
        pair = pairs[int(row)]
        console.rule(f"row {pair['row']}", align="left")
        prompt, answers = pair["prompt_ids"], {n: pair[f"{n}_ids"] for n in ("chosen", "rejected")}
        start = len(prompt)
        rows = {n: range(*cutting.span(start + len(ids), *cut)) for n, ids in answers.items()}
        either = range(min(r.start for r in rows.values()), max(r.stop for r in rows.values()))
        console.print(tokens_of(prompt, either, "prompt", tokenizer, special))
        for name, ids in answers.items():
            row = rows[name]
            left = f", after the prompt's last {max(start - row.start, 0)}" if row.start else ""
            console.print(f"[{STYLES[name]}]▌{name}[/], {len(ids)} tokens{left}")
            kept = range(max(row.start - start, 0), max(row.stop - start, 0))
            console.print(tokens_of(ids, kept, name, tokenizer, special))


def show(recipe: Recipe, linted: dict[str, quarantine.Linted], tokenizer, console: Console) -> None:
    cut = recipe.training.max_length, recipe.training.truncation_mode
    name, model = escape(recipe.name), escape(visible(recipe.model.model_name_or_path))
    console.print(f"[bold]{name}[/]: {model}'s view of its data\n")
    for line in quarantine.said(linted, None):
        console.print(Text(line))
    console.print()
    for split, found in linted.items():
        if not len(found.pairs):
            continue
        tokens = lengths(found.pairs)
        console.print(lengths_table(split, tokens, *cut))
        longer = (tokens["chosen"] > tokens["rejected"]).mean()
        merged = np.count_nonzero(found.pairs["merged"])
        console.print(f"chosen is the longer one in {longer:.1%} of the pairs", highlight=False)
        if merged:
            console.print(
                f"[yellow]in {merged} pairs the prompt's last token merges with the completion: "
                "the model is trained on another prompt's end than it will see. End prompts where "
                "a token ends, without a trailing blank[/]"
            )
        console.print()
    if any(found.bad for found in linted.values()):
        console.print(faults_table(linted))
    if len(linted["train"].pairs):
        show_pairs(console, linted["train"].pairs, tokenizer, *cut)


@guarded
def main() -> None:
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(__doc__)
        return
    os.environ["ACCELERATE_USE_CPU"] = "true"  # there is nothing here for a GPU to do
    recipe = parse(sys.argv[1:])
    if recipe.script.dataset_streaming or recipe.mixture.streaming:
        raise SystemExit("a stream has no length to show: leave streaming out to look at its data")
    check_model(recipe)
    rows, tokenizer = load_rows(recipe), load_tokenizer(recipe)
    linted = preferences.prepare(recipe, rows, tokenizer)
    folder = Path(recipe.training.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    aside = quarantine.set_aside(linted, folder)
    console = Console(record=True, width=None if sys.stdout.isatty() else 120)
    show(recipe, linted, tokenizer, console)
    page = folder / DATA_PAGE
    write_whole(page, console.export_html().replace("<head>", f"<head>\n{NO_SCRIPTS}", 1))
    print(f"\nWritten: {page}{f', {aside}' if aside else ''}")
    quarantine.check_share(linted, recipe.run.quarantine_limit, folder)
    print(f"Next: make train RECIPE={recipe.name}")


if __name__ == "__main__":
    main()
