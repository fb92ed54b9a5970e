"""How many pairs a recipe trains on and holds out, as far as that is known without its data."""

from dataclasses import dataclass

from datasets import ReadInstruction

from dpo.recipe.parse import Recipe

ULTRAFEEDBACK = 61_135  # pairs: of a data set that is a form of it, as its name says
HELD_OUT = 2_000  # pairs of its test split, and of others of which nobody says how many they are
TOLD = 10_000  # what figures are told for where the number of pairs is not known
ENDLESS = 10**12  # rows: a slice that has as many is one of all


@dataclass(frozen=True)
class Rows:
    """Pairs that are trained on, None where that is not known, and pairs of an evaluation."""

    train: int | None
    held_out: int


class Splits(dict[str, int]):
    """Rows of the splits of a data set, as many in each, whatever it is called."""

    def __init__(self, rows: int):
        self.rows = rows

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> int:
        return self.rows


def stated(recipe: Recipe) -> Rows:
    """What a recipe says of it: a data set that is known, a slice, how much is held out, and at
    most how many steps are made."""
    args, mixture = recipe.training, recipe.mixture
    rows = mixed(mixture.datasets) if mixture.datasets else of(recipe.script.dataset_name or "")
    share, held_out = mixture.test_split_size, 0
    if args.eval_strategy != "no":
        held_out = HELD_OUT
    if share is not None:
        whole = TOLD if rows is None else rows
        held_out = round(share * whole) if share < 1 else min(int(share), whole)
        rows = None if rows is None else max(rows - held_out, 1)
    if rows is None and args.max_steps > 0:
        rows = args.max_steps * recipe.global_batch  # no more than these are asked for
    return Rows(rows, held_out)


def of(name: str, split: str = "train") -> int | None:
    """Rows of a split or slice of a data set; None where they are not known."""
    whole = ULTRAFEEDBACK if "ultrafeedback" in name.lower() else ENDLESS
    try:
        pieces = ReadInstruction.from_spec(split).to_absolute(Splits(whole))
    except (TypeError, ValueError, AssertionError):  # training says what is wrong with it
        return None
    rows = sum(piece.to - piece.from_ for piece in pieces)
    return rows if rows < ENDLESS / 1000 else None


def mixed(parts: list) -> int | None:
    """Rows of a mixture, each part cut to its share as load_mixture does."""
    found = [of(part.path, part.split) for part in parts]
    shares = [part.fraction for part in parts]
    if None in found:
        return None
    counts = [count for count in found if count is not None]
    if None in shares:
        return sum(counts)
    whole = min(c * sum(shares) / share for c, share in zip(counts, shares, strict=True) if share)
    return sum(round(share / sum(shares) * whole) for share in shares)
