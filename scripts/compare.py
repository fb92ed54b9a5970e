"""Runs beside each other: `make compare` runs this.

    make compare RUNS="outputs/a outputs/b"        # the first is what the others are held against
    make compare RECIPE=smollm2-sentiment          # all runs of a recipe, those of its sweep too
    make compare RECIPE=smollm2-sentiment AGAINST=outputs/smollm2-sentiment

What differs between them, what they reached with 95% intervals, which differences are within
noise, their curves overlaid, and the same prompts side by side: one page that needs no network,
and the same table in Markdown. From what the runs' folders hold: no model is loaded, no account
needed.
"""

import argparse
from pathlib import Path

from dpo.core.refusal import Refusal
from dpo.core.terminal import at_once, guarded, parser_of
from dpo.runs import output_folder


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--runs", default="", help="folders of runs, or names under outputs/")
    parser.add_argument("--recipe", default="", help="all runs of this recipe instead")
    parser.add_argument("--against", default="", help="the run that others are held against")
    parser.add_argument(
        "--output", default="outputs/comparison", help="folder (outputs/comparison)"
    )
    parser.add_argument("--wandb", action="store_true", help="make a W&B report of them too")
    return parser.parse_args()


def asked() -> tuple[argparse.Namespace, list[Path]]:
    """The arguments, and the folders of the runs that they name, the one to be held against first.

    Raises:
        Refusal: there are no such runs.
    """
    args = arguments()
    names = args.runs.split()
    if bool(names) == bool(args.recipe):
        raise Refusal('which runs? RUNS="outputs/a outputs/b", or RECIPE=name for all of it')
    given = output_folder.folders(names) if names else output_folder.runs_of(args.recipe)
    first = output_folder.folders(args.against.split())
    return args, [*dict.fromkeys([*first, *given])]


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(asked)

from dpo.reports import wandb_report
from dpo.reports.comparison import collect, export, terminal


@guarded
def main() -> None:
    args, folders = asked()
    if args.wandb:
        wandb_report.check()
    runs = collect.collect(folders)
    title = f"{args.recipe or 'Comparison'}: {len(runs)} run{'s' * (len(runs) > 1)}"
    terminal.show(runs, title)
    written = export.write(runs, Path(args.output), title)
    print(f"Written: {', '.join(map(str, written))}")
    if args.wandb:
        print(f"W&B report: {wandb_report.report(runs, title)}")
    waiting = [run.folder for run in runs if run.report and not run.evaluations]
    if waiting:
        print(f"Next: who wins? make evaluate RUN={waiting[0]} JUDGE=..., and compare again")
    else:
        print(f"Next: open {written[0]}")


if __name__ == "__main__":
    main()
