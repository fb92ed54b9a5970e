"""Every monitor on a run that has its illness, and none on one that has not."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pair
from transformers import TrainerCallback
from trl import DPOTrainer

from dpo import monitors
from dpo.preferences import prepare
from dpo.quarantine import check_share
from dpo.recipe import parse
from dpo.sources import load_rows
from dpo.tokenization import load_tokenizer
from dpo.trainer import make_trainer

WORDS = [*"abcdefghijklmnop"]


def said(count: int, draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(count))


def pairs_of(count: int, seed: int, chosen=(8, 8), rejected=(8, 8)) -> list[dict]:
    """Pairs of random words, of lengths in the given ranges: nothing to learn but the lengths."""
    draw = random.Random(seed)
    return [
        pair(f"{seed} {i}", said(draw.randint(*chosen), draw), said(draw.randint(*rejected), draw))
        for i in range(count)
    ]


def trainer_on(folder: Path, model: Path, train: list[dict], test: list[dict], *flags: str):
    """What train.py trains with, on these pairs."""
    data = folder / "data"
    data.mkdir()
    for split, rows in (("train", train), ("test", test)):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [
        *(f"--model_name_or_path={model}", f"--dataset_name={data}", "--use_cpu"),
        *(f"--output_dir={folder / 'run'}", f"--reference_cache={folder / 'cache'}"),
        *("--per_device_train_batch_size=8", "--logging_steps=1", "--eval_steps=8"),
        *("--save_strategy=no", "--report_to=none", "--disable_tqdm=true", "--warmup_steps=0"),
    ]
    recipe = parse(["--config", "recipes/smollm2-sentiment.yaml", *given, *flags])
    tokenizer = load_tokenizer(recipe)
    linted = prepare(recipe, load_rows(recipe), tokenizer)
    check_share(linted, recipe.run.quarantine_limit, folder)
    return make_trainer(recipe, tokenizer, linted["train"].pairs, linted["held-out"].pairs)


@pytest.fixture
def healthy(tiny_model, tmp_path) -> DPOTrainer:
    return trainer_on(tmp_path, tiny_model, pairs_of(64, 0), pairs_of(16, 1), "--max_steps=4")


def kinds(trainer: DPOTrainer) -> list[str]:
    return [alert["kind"] for alert in monitors.alerts_of(trainer.state)]


def weights(trainer: DPOTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


# ---- not finite


def test_weights_that_are_not_finite_end_the_run_before_a_step(healthy, tmp_path):
    next(healthy.model.parameters()).data[7] = math.nan
    with pytest.raises(SystemExit, match=r"^not finite: the weights after step 0 are not finite: "):
        healthy.train()
    assert healthy.state.global_step == 0 and not [*tmp_path.glob("run/**/*.safetensors")]


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step(healthy):
    before = weights(healthy)
    parameter = healthy.model.model.layers[0].mlp.up_proj.weight
    parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(SystemExit, match=r"^not finite: the gradient norm of step 1 is (inf|nan)"):
        healthy.train()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(healthy), strict=True))


def test_data_that_make_the_loss_infinite_end_the_run(healthy):
    """A reference log-probability of one row is infinite, as a broken cache would have it."""
    reference = np.array(healthy.train_dataset["ref_chosen_logps"])
    reference[5] = math.inf
    columns = healthy.train_dataset.remove_columns("ref_chosen_logps")
    healthy.train_dataset = columns.add_column("ref_chosen_logps", reference)
    with pytest.raises(SystemExit) as error:
        healthy.train()
    step = healthy.state.global_step + 1
    assert str(error.value).startswith(f"not finite: the loss of step {step} is inf")


class Spoil(TrainerCallback):
    """The optimizer's second step writes a weight that is not finite."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            model.lm_head.weight.data[3, 3] = math.inf


def test_weights_that_a_step_made_infinite_are_not_saved(tiny_model, tmp_path):
    flags = ("--max_steps=4", "--save_strategy=steps", "--save_steps=1")
    rows = pairs_of(64, 0), pairs_of(16, 1)
    trainer = trainer_on(tmp_path, tiny_model, *rows, *flags)
    trainer.add_callback(Spoil)
    with pytest.raises(SystemExit, match=r"^not finite: the weights after step 2 are not finite: "):
        trainer.train()
    assert [path.name for path in tmp_path.glob("run/checkpoint-*")] == ["checkpoint-1"]


# ---- divergence


@pytest.mark.parametrize("rate", [3, 10])
def test_a_learning_rate_that_is_far_too_high_ends_the_run(rate, tiny_model, tmp_path):
    rows = pairs_of(96, 0), pairs_of(16, 1)
    flags = (f"--learning_rate={rate}", "--max_steps=24", "--lr_scheduler_type=constant")
    trainer = trainer_on(tmp_path, tiny_model, *rows, *flags)
    # At ten the gradient overflows before the loss was high for long.
    with pytest.raises(SystemExit, match=r"^(divergence: the loss began at 0.6931|not finite)"):
        trainer.train()
    assert trainer.state.global_step < 24
