"""Score texts by the reward that a run's policy implies: `make score` runs this.

    make score FILE=pairs.jsonl                            # by the embedded default's run
    make score RUN=outputs/a FILE=pairs.jsonl BY=subset    # accuracy by a column, too
    make score RUN=outputs/a FILE=answers.jsonl            # a prompt and its completions, ranked
    make score RUN=outputs/a FILE=pairs.jsonl SELECT=0.1   # the hardest tenth, as a data set

The reward of a completion y to a prompt x is β log(π(y | x) / π_ref(y | x)) (Rafailov et al. 2023,
equation 5). FILE is what dataset_name may be: pairs in any layout that training reads, or rows with
a prompt and one completion or a list of them. The scores, a line a row, go into
<run>/scores/<name of the file>/ with a summary; the same command goes on from there.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse
import shlex
from pathlib import Path

from dpo.core.refusal import Refusal
from dpo.core.terminal import at_once, guarded, parser_of
from dpo.recipe.arguments import LAYOUTS, positive
from dpo.recipe.hub_names import looks_local
from dpo.runs import output_folder

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".gz", ".bz2", ".xz", ".zst")


def share(text: str) -> float:
    """A number above 0 and up to 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: a number above 0, up to 1")
    return number


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, prog="score.py", allow_abbrev=False)
    add = parser.add_argument
    add("--run", required=True, help="a finished run: its folder, or its name under outputs/")
    add("--file", default="", help="a file, a folder, or a data set of the hub")
    add("--split", default="", help="its split, where it has several")
    add("--to", default="", help="folder (<run>/scores/<name of the file>)")
    add("--by", nargs="*", default=[], help="columns by whose values accuracy is shown, too")
    add("--per_token", action="store_true", help="rewards as means per token (sums)")
    add("--max_length", type=positive, default=None, help="cut rows as training does (not cut)")
    add("--select", type=share, default=None, help="write this share of the pairs, as 0.1: those")
    add("--largest", action="store_true", help="with the largest margins (the smallest)")
    add("--preference_layout", choices=LAYOUTS, default=None, help="how pairs are read (told)")
    add("--column_mapping", default=None, help='"prompt=question chosen=good rejected=bad"')
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """What can be seen to be wrong before anything heavy is imported.

    Raises:
        Refusal: something is missing, or is not there.
    """
    output_folder.check_there(args.run)
    if not args.file:
        raise Refusal("FILE= is missing: pairs.jsonl, or what dataset_name may be")
    local = looks_local(args.file, ENDINGS) or "/" not in args.file
    if local and not Path(args.file).exists():
        raise Refusal(f"FILE: nothing is at {args.file}")
    if args.largest and not args.select:
        raise Refusal("--largest says which are selected: say how many with --select 0.1")
    args.by = [name for given in args.by for name in given.split()]


def answer() -> None:
    check(arguments())


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(answer)


@guarded
def main() -> None:
    args = arguments()
    check(args)
    from dpo.use.score import command, printed  # late: what is misspelt is answered at once

    folder, found, selected = command.score(args)
    printed.show(found)
    print(f"Written: {folder}/scores.jsonl and summary.json" + f", and {selected}" * bool(selected))
    if selected:
        data = shlex.quote(str(selected))
        given = f' COLUMNS="{args.column_mapping}"' if args.column_mapping else ""
        print(f"Next: make new RECIPE=selected MODEL=<the model to train> DATASET={data}{given}")
    elif "accuracy" in found:
        print("Next: the same with SELECT=0.1 writes the hardest tenth as a data set")
    else:
        print("Next: sort by reward; of one prompt, rank 1 is what the policy prefers")


if __name__ == "__main__":
    main()
