"""Whatever counts, checks, scores or shows a pair cuts it as TRL's collator does, at either end."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from rich.console import Console
from trl.trainer.dpo_trainer import DataCollatorForPreference

import data
from dpo.data import lint, schema
from dpo.data.dataset import prepare
from dpo.data.formats.layouts import Fault
from dpo.data.sources.load import load_rows
from dpo.models import scoring
from dpo.models.chat_template import load_tokenizer
from dpo.prefix_sharing.plan import SharedPrefixCollator
from dpo.recipe.parse import parse
from dpo.training import held_out_scores, waiting
from dpo.training.preflight.checks import wrong_batch
from support.commands import run_flags
from support.tiny import EDGE_PAIRS, pair, random_ids, trainer_of

MODES = ("keep_start", "keep_end")
LENGTHS = (None, 2, 5, 12, 24)
# Beside the others: a completion longer than all, answers of one length behind a long prompt.
PAIRS = [
    *EDGE_PAIRS,
    (random_ids(3, 20), random_ids(40, 21), random_ids(2, 22)),
    (random_ids(30, 23), random_ids(4, 24), random_ids(4, 25)),
    (random_ids(30, 26), random_ids(40, 27), random_ids(40, 28)),
]
ROWS = [dict(zip(schema.IDS, row, strict=True)) for row in PAIRS]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("most", LENGTHS)
def test_rows_and_lengths_are_the_collators(mode, most):
    how = {"pad_token_id": 0, "max_length": most, "truncation_mode": mode}
    held_out = Dataset.from_list(ROWS)
    batch = DataCollatorForPreference(**how)(ROWS)
    rows = schema.pair_rows(held_out, most, mode)
    for at, (prompt, completion) in enumerate(rows):
        real = batch["attention_mask"][at].bool()
        assert batch["input_ids"][at][real].tolist() == prompt + completion
        counted = [0] * len(prompt) + [1] * len(completion)
        assert batch["completion_mask"][at][real].tolist() == counted
    prompt, chosen, rejected = schema.cut_lengths(held_out, most, mode)
    width = batch["attention_mask"].sum(1).view(2, -1).tolist()
    assert [chosen.tolist(), rejected.tolist()] == width
    # What is computed once is the prompt, where both rows have it, and what answers begin with.
    plan = SharedPrefixCollator(**how)(ROWS)["shared_prefixes"]
    alike = [
        4 if at in (2, 3) else 3 if at == 4 else 9 if at == 5 else 0 for at in range(len(ROWS))
    ]
    for at, (common, *_) in enumerate(plan.lengths):
        assert prompt[at] <= common <= prompt[at] + alike[at]
    computed = np.array([sum(each) for each in plan.lengths])
    assert (schema.shared_lengths(held_out, most, mode) >= computed).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("most", [None, 12])
def test_an_untrained_policy_has_no_margin(mode, most, tmp_path):
    """Scored for the final numbers, the policy is cut as its reference was for training."""
    how = {"truncation_mode": mode, "max_length": most, "max_steps": 1}
    trainer = trainer_of(tmp_path, "llama", fast=True, with_held_out=True, **how)
    waiting.have_held_out_scored(trainer)
    rows = schema.pair_rows(trainer.eval_dataset, most, mode)
    policy = scoring.score(trainer.model, rows, 0, pairs=True)
    known = np.concatenate([trainer.eval_dataset[column] for column in schema.REFERENCE_LOGPS])
    assert policy == pytest.approx(known, abs=1e-4)
    assert (held_out_scores.score(trainer).margins(trainer.beta) == 0).all()
    trainer.train_dataset = trainer.train_dataset.select(range(6))  # no prompt fills 12 tokens
    assert wrong_batch(trainer) is None
    if most and mode == "keep_end":
        trainer.data_collator.truncation_mode = "keep_start"
        assert "has other tokens than the batch counts" in wrong_batch(trainer)


@pytest.fixture
def words():
    tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=1)
    return SimpleNamespace(tokenizer=tokenizer, blanks=set(), ends={1})


LATE = ([3] * 4, [5] * 8 + [7, 1], [5] * 8 + [8, 1])  # answers that differ at their ends
EARLY = ([3] * 4, [7] + [5] * 12 + [1], [8] + [5] * 12 + [1])  # and at their beginnings
TALK = ([3] * 4, [7] + [5] * 10 + [1], [7] + [6] * 10 + [1])  # that leave no room for the prompt
LONG = ([3] * 20, [5, 1], [6, 1])  # a prompt that fills max_length
SHORT = ([3] * 4, [5, 1], [6, 1])


@pytest.mark.parametrize(
    "row, start, end",
    [
        (LATE, "same_when_cut", None),
        (EARLY, None, "same_when_cut"),
        (TALK, None, "prompt_cut_away"),
        (([3] * 4, [5, 1], TALK[2]), None, "prompt_cut_away"),  # of one of them
        (LONG, "prompt_too_long", None),
        (SHORT, None, None),
        (([], [1], [5, 1]), "no_completion", "no_completion"),  # predicted from nothing
    ],
)
def test_a_pair_is_judged_by_what_is_left_of_it(row, start, end, words):
    for mode, reason in zip(MODES, (start, end), strict=True):
        if reason:
            with pytest.raises(Fault) as found:
                lint.check_tokens(row, 12, mode, words)
            assert found.value.reason == reason
        else:
            lint.check_tokens(row, 12, mode, words)
        if reason != "no_completion":
            lint.check_tokens(row, None, mode, words)


def test_a_recipe_is_read_and_shown_as_it_is_cut(tmp_path, tiny_model):
    """Through the pipeline, whose outcome is kept: the other mode finds other rows."""
    long = pair("the walk " * 40, "It was good.", "It was bad, or so they said.")
    path = tmp_path / "pairs.jsonl"
    rows = [pair("a day", "Good.", "Bad."), long]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [*run_flags(tiny_model, path, tmp_path / "run"), "--eval_strategy=no", "--use_cpu"]
    flags += ["--max_length=64", "--quarantine_limit=1"]
    for mode, reasons in (("keep_start", {"prompt_too_long": 1}), ("keep_end", {})):
        given = ["--config", "recipes/smollm2-sentiment.yaml", *flags]
        recipe = parse([*given, f"--truncation_mode={mode}"])
        tokenizer = load_tokenizer(recipe)
        linted = prepare(recipe, load_rows(recipe), tokenizer)
        assert linted["train"].reasons == reasons
    with (tmp_path / "said").open("w") as file:
        console = Console(record=True, width=200, file=file)
        data.show(recipe, linted, *data.seen(recipe, linted, tokenizer), console)
    plain, said = (console.export_text(styles=styles, clear=False) for styles in (False, True))
    chosen, rejected = (len(linted["train"].pairs[1][f"{n}_ids"]) for n in ("chosen", "rejected"))
    assert f"{chosen} tokens, after the prompt's last {64 - chosen}" in plain
    assert f"{rejected} tokens, after the prompt's last {64 - rejected}" in plain
    struck = "".join(re.findall(r"\x1b\[2;(?:4;)?9[;\d]*m([^\x1b]*)", said))
    assert "walk the walk" in struck and "good" not in struck and "said" not in struck
