"""How many pairs a recipe trains on, where its data are not at hand."""

import json
from types import SimpleNamespace

import pytest
from trl import DatasetMixtureConfig

from dpo.core.refusal import Refusal
from dpo.data.sources.load import load_mixture
from dpo.plan import table
from dpo.plan.arithmetic import lengths, rows
from dpo.plan.ask import Asked
from dpo.plan.cards import CARDS
from dpo.plan.choice import best

SEVEN, HUB = "zephyr-7b-ultrafeedback", "org/pairs"


def found(*flags: str, recipe: str = SEVEN) -> lengths.Lengths:
    return lengths.of(Asked(recipe, flags, 1, 1, CARDS["H100-80GB"]).parsed())


def test_what_the_recipe_says_is_counted():
    whole = rows.ULTRAFEEDBACK
    plain = found()
    assert (plain.rows, plain.held_out, plain.known) == (whole, rows.HELD_OUT, True)
    assert found("--eval_strategy", "no").held_out == 0
    shared = found("--test_split_size", "0.1")
    assert (shared.rows, shared.held_out) == (whole - round(whole / 10), round(whole / 10))
    assert found("--test_split_size", "500").rows == whole - 500
    sliced = found(recipe="dolphin-7b-ultrafeedback-qlora")  # train[:13750], a fifth held out
    assert (sliced.rows, sliced.held_out) == (11_000, 2_750) and "mixture" not in sliced.source


def test_of_data_that_nobody_knows_no_other_number_is_given():
    unknown = found("--dataset_name", HUB)
    assert not unknown.known and unknown.rows == rows.TOLD
    assert "how many pairs there are is not known" in unknown.source
    assert found("--dataset_name", HUB, "--max_steps", "10").rows == 10 * 128
    assert not found(recipe="smollm3-3b-smoltalk2-apo").known  # halves and quarters of what?
    asked = Asked(SEVEN, ("--dataset_name", HUB), 8, 1, CARDS["H100-80GB"])
    option = best(asked.planned().options(8, 1), asked.card.memory)
    lines = [*table.heading(asked, ""), *table.spent(asked.planned(), option, 8)]
    said = [line.split()[0] for line in lines if "for each 10,000 pairs" in line]
    assert said == ["steps", "FLOPs", "time"]


@pytest.mark.parametrize(
    ("split", "count"),
    [
        *(("train", 200), ("train[:50]", 50), ("train[10:40]", 30), ("train[:25%]", 50)),
        *(("train[50:]", 150), ("train[-30:]", 30), ("train[:10]+train[-20:]", 30)),
    ],
)
def test_a_slice_is_counted_as_it_is_cut(split, count, tmp_path, monkeypatch):
    """As load_mixture does, whose rows they are; without the whole only if it tells by itself."""
    monkeypatch.setattr(rows, "ULTRAFEEDBACK", 200)
    folder = tmp_path / "ultrafeedback"
    folder.mkdir()
    line = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})
    (folder / "train.jsonl").write_text(f"{line}\n" * 200)
    parts = [{"path": str(folder), "split": split}]
    (loaded,) = load_mixture(DatasetMixtureConfig(datasets=parts))
    assert rows.of(str(folder), split) == len(loaded.data) == count
    alone = rows.of(HUB, split)
    assert alone == (count if split in ("train[:50]", "train[10:40]", "train[-30:]") else None) or (
        split == "train[:10]+train[-20:]" and alone == count
    )


def test_a_mixture_is_cut_to_its_shares():
    def part(split: str, fraction: float | None = None) -> SimpleNamespace:
        return SimpleNamespace(path=HUB, split=split, fraction=fraction)

    assert rows.mixed([part("train[:100]"), part("train[:50]")]) == 150
    assert rows.mixed([part("train[:100]", 0.5), part("train[:200]", 0.5)]) == 200
    assert rows.mixed([part("train[:100]", 0.9), part("train[:200]", 0.1)]) == 111
    assert rows.mixed([part("train[:100]"), part("train")]) is None


@pytest.mark.parametrize("name", ["/no/such.jsonl", "./pairs", "pairs.csv.gz", "models/none"])
def test_a_path_that_does_not_exist_is_refused(name):
    with pytest.raises(
        Refusal, match=f"no data at {name}: put them there, or name others with --dataset_name"
    ):
        found("--dataset_name", name)


def test_pairs_that_are_to_be_made_here_are_planned_before():
    assert not found("--dataset_name", "outputs/mine-pairs").known


def test_evaluations_that_take_much_are_told():
    often = ("--eval_steps", "5", "--eval_strategy", "steps")
    for flags, told in ((often, True), ((), False)):
        asked = Asked(SEVEN, flags, 8, 1, CARDS["H100-80GB"])
        option = best(asked.planned().options(8, 1), asked.card.memory)
        first, *_ = table.spent(asked.planned(), option, 8)
        assert ("% are 96 evaluations of 2,000 pairs, one every 5 steps" in first) == told, first
