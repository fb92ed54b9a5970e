"""Runs beside each other: `make compare` runs this.

    make compare RUNS="outputs/a outputs/b"        # the first is what the others are held against
    make compare RECIPE=smollm2-sentiment          # all runs of a recipe, those of its sweeps too

What differs between them, what they reached with 95% intervals, which differences are within noise,
their curves overlaid, and the same prompts side by side: one page that needs no network, and the
same table in Markdown. From what the runs' folders hold: no model is loaded, no account needed.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dpo import comparison, comparison_page, wandb_page
from dpo.terminal import guarded, visible

INTO = Path("outputs/comparison")


@guarded
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", default="", help="folders of runs, or names under outputs/")
    parser.add_argument("--recipe", default="", help="all runs of this recipe instead")
    parser.add_argument(
        "--output", default="outputs/comparison", help="folder (outputs/comparison)"
    )
    parser.add_argument("--wandb", action="store_true", help="make a W&B report of them too")
    args = parser.parse_args()
    if args.wandb:
        wandb_page.check()
    if bool(args.runs) == bool(args.recipe):
        raise SystemExit('which runs? RUNS="outputs/a outputs/b", or RECIPE=name for all of it')
    names = args.runs.split()
    given = comparison.folders(names) if names else comparison.runs_of(args.recipe)
    runs = comparison.collect(given)
    title = f"{args.recipe}: {len(runs)} runs" if args.recipe else f"{len(runs)} runs compared"
    rows = comparison.rows(runs)
    table = Table(title=title, title_justify="left")
    for column in ("", *(run.name for run in runs)):
        table.add_column(visible(column))
    for row in rows:
        table.add_row(row.name, *map(visible, row.values))
        if any(row.differences):
            said = map(comparison_page.against_first, row.differences)
            table.add_row("— against the first", *said, style="dim")
    Console().print(table)
    for key, values in comparison.surroundings(runs).items():
        print(f"Not the settings alone: {key} differs: {visible('; '.join(values))}")
    written = comparison_page.write(runs, Path(args.output), title)
    print(f"Written: {', '.join(map(str, written))}")
    if args.wandb:
        print(f"W&B report: {wandb_page.report(runs, title)}")


if __name__ == "__main__":
    main()
