"""Every monitor on a run that has its illness, and none on one that has not."""

import json
import math
import random
import re

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from trl import DPOTrainer

from dpo.runs import metrics
from dpo.training.monitoring import alerts as alerts_
from dpo.training.monitoring import drift
from dpo.training.resume import TakeUp
from support.commands import TIMES
from support.monitored import Spoil, easy, pairs_of, trainer_on
from support.tiny import losses_of, pair, trainer_of


@pytest.fixture
def healthy(tiny_model, tmp_path) -> DPOTrainer:
    first = "--precompute_ref_batch_size=8"  # the reference scores before the first step
    return trainer_on(
        tmp_path, tiny_model, pairs_of(64, 0), pairs_of(16, 1), "--max_steps=4", first
    )


def kinds(trainer: DPOTrainer) -> list[str]:
    return [alert["kind"] for alert in alerts_.alerts_of(trainer.state)]


def weights(trainer: DPOTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


# ---- not finite


def test_weights_that_are_not_finite_end_the_run_before_a_step(healthy, tmp_path):
    next(healthy.model.parameters()).data[7] = math.nan
    with pytest.raises(SystemExit, match=r"^not finite: the loss of step 1 is nan"):
        healthy.train()
    assert healthy.state.global_step == 0 and not [*tmp_path.glob("run/**/*.safetensors")]


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step(healthy):
    before = weights(healthy)
    parameter = healthy.model.model.layers[0].mlp.up_proj.weight
    parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        SystemExit, match=r"^not finite: the gradient norm of step 1 is (inf|nan).* --attn_impl"
    ):
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


def test_weights_that_a_step_made_infinite_are_not_saved(tiny_model, tmp_path):
    flags = ("--max_steps=4", "--save_strategy=steps", "--save_steps=1")
    rows = pairs_of(64, 0), pairs_of(16, 1)
    trainer = trainer_on(tmp_path, tiny_model, *rows, *flags)
    trainer.add_callback(Spoil)
    with pytest.raises(SystemExit, match=r"^not finite: the weights after step 2 are not finite: "):
        trainer.train()
    assert [path.name for path in tmp_path.glob("run/checkpoint-*")] == ["checkpoint-1"]


# ---- divergence


def test_a_loss_below_zero_is_not_taken_for_one_that_rose(tmp_path):
    """As with a weight below 0 in TRL's own DPOConfig: twice where it began lies below it."""
    falling = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, -0.4], "max_steps": 14}
    losses = losses_of(trainer_of(tmp_path, "llama", fast=True, **falling))
    assert len(losses) == 14 and losses[-1] < losses[0] < 0


@pytest.mark.parametrize("rate", [3, 10])
def test_a_learning_rate_that_is_far_too_high_ends_the_run(rate, tiny_model, tmp_path):
    rows = pairs_of(96, 0), pairs_of(16, 1)
    flags = (f"--learning_rate={rate}", "--max_steps=24", "--lr_scheduler_type=constant")
    trainer = trainer_on(tmp_path, tiny_model, *rows, *flags)
    # At ten the gradient overflows before the loss was high for long.
    with pytest.raises(SystemExit, match=r"^(divergence: the loss began at 0.6931|not finite)"):
        trainer.train()
    assert trainer.state.global_step < 24


def test_easy_pairs_at_a_ruinous_rate_have_no_loss_and_are_told_all_the_same(tiny_model, tmp_path):
    """The loss comes back to 0 while the policy says nothing that its reference would."""
    flags = ("--learning_rate=3", "--max_steps=8", "--lr_scheduler_type=constant")
    trainer = trainer_on(tmp_path, tiny_model, easy(96, 0), easy(16, 1), *flags)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 1e-6 < losses[0] and {"likelihood displacement", "drift"} <= {
        *kinds(trainer)
    }


# ---- told, and trained on


ILL = {
    # What pushes down the long rejected answer pushes down the chosen one too: the same words.
    "likelihood displacement": (
        *(pairs_of(160, 0, (3, 3), (30, 30)), pairs_of(16, 1, (3, 3), (30, 30))),
        *("--learning_rate=1e-2", "--max_steps=12"),
    ),
    "length exploitation": (
        *(pairs_of(160, 0, (6, 40), (1, 5)), pairs_of(16, 1, (6, 40), (1, 5))),
        *("--learning_rate=3e-3", "--max_steps=20"),
    ),
    "drift": (easy(64, 0), easy(16, 1), "--learning_rate=1e-2", "--max_steps=8"),
    # Random pairs: what is learned of one says nothing about another.
    "memorisation": (
        *(pairs_of(64, 0), pairs_of(64, 1)),
        *("--learning_rate=3e-3", "--max_steps=24", "--eval_steps=24"),
    ),
    "saturation": (easy(160, 0), easy(16, 1), "--learning_rate=1e-2", "--beta=5", "--max_steps=20"),
    "empty learning": (
        *(pairs_of(96, 0), pairs_of(16, 1), "--learning_rate=5e-7", "--dtype=bfloat16"),
        "--max_steps=10",
    ),
}


def test_a_rate_that_is_too_low_leaves_every_loss_where_it_began(tiny_model, tmp_path):
    """In float32 too: margins are rounding, and count as ties."""
    flags = ("--learning_rate=1e-9", "--max_steps=10", "--lr_scheduler_type=constant")
    trainer = trainer_on(tmp_path, tiny_model, easy(96, 0), easy(16, 1), *flags)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["loss"] == pytest.approx(math.log(2), abs=1e-4) for entry in logs)
    assert {entry["rewards/accuracies"] for entry in logs} == {0.5}
    assert kinds(trainer) == ["empty learning"]


@pytest.mark.parametrize("kind", ILL)
def test_an_illness_is_told(kind, tiny_model, tmp_path, capsys):
    trainer = trainer_on(tmp_path, tiny_model, *ILL[kind], "--lr_scheduler_type=constant")
    trainer.train()
    assert kind in kinds(trainer)
    told = [line for line in capsys.readouterr().out.splitlines() if f"  {kind}: " in line]
    assert len(told) == 1, told  # once, however long it lasts


def test_a_loss_that_falls_when_an_epoch_ends_is_told(tiny_model, tmp_path):
    rows = pairs_of(80, 0), pairs_of(16, 1)
    flags = ("--learning_rate=3e-3", "--max_steps=20", "--lr_scheduler_type=constant")
    trainer = trainer_on(tmp_path, tiny_model, *rows, *flags, "--eval_strategy=epoch")
    trainer.train()
    (told,) = (a for a in alerts_.alerts_of(trainer.state) if a["kind"] == "memorisation")
    assert "when the epoch ended" in told["says"] and told["step"] == 20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_healthy_run_is_silent(dtype, tiny_model, tmp_path):
    """One that learns what holds for held-out pairs, in each of the dtypes: bfloat16 too moves
    where the learning rate is large enough for it."""
    flags = ("--learning_rate=1e-3", "--max_steps=20", f"--dtype={dtype}")
    trainer = trainer_on(tmp_path, tiny_model, easy(160, 0), easy(64, 1), *flags)
    trainer.train()
    assert kinds(trainer) == []
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 < losses[0]


# ---- what they go by


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("kind", ["cached", "live", "lora"])
def test_every_pair_is_recorded_as_trl_counts_it(kind, share_prefix, tiny_model, tmp_path):
    flags = {
        "cached": (),
        "live": ("--precompute_ref_log_probs=false",),
        "lora": (
            *("--precompute_ref_log_probs=false", "--use_peft", "--lora_r=4"),
            *("--lora_target_modules", "q_proj", "v_proj"),
        ),
    }[kind]
    rows = pairs_of(16, 0, (3, 9), (3, 9))
    trainer = trainer_on(
        *(tmp_path, tiny_model, rows, pairs_of(8, 1), *flags),
        *("--max_steps=2", "--learning_rate=1e-2", f"--share_prefix={share_prefix}"),
        *("--per_device_train_batch_size=4", "--gradient_accumulation_steps=2"),
    )
    trainer.train()
    second = [entry for entry in trainer.state.log_history if "loss" in entry][1]
    kept = trainer.state.stateful_callbacks[alerts_.NAME]
    chosen, rejected, *lengths = np.array(kept["pairs"]).T
    assert len(chosen) == 16 and np.abs(chosen[:8]).max() < 1e-5  # policy = reference at first
    now = slice(8, 16)
    assert np.abs(chosen - rejected)[now].min() > 0
    assert (chosen - rejected)[now].mean() == pytest.approx(second["rewards/margins"], rel=1e-5)
    assert chosen[now].mean() == pytest.approx(second["rewards/chosen"], rel=1e-5)
    assert (chosen > rejected)[now].mean() == second["rewards/accuracies"]
    assert kept["losses"] == pytest.approx([math.log(2), second["loss"]], rel=1e-5)
    table = trainer.train_dataset
    for side, told in zip(("chosen_ids", "rejected_ids"), lengths, strict=True):
        assert sorted(told) == sorted(map(len, table[side]))


def test_nothing_that_watches_changes_the_run(tiny_model, tmp_path, monkeypatch):
    """Weights and losses to the bit, though answers are drawn at the start and at every
    evaluation."""
    outcomes = []
    for watched in (True, False):
        folder = tmp_path / str(watched)
        folder.mkdir()
        flags = ["--max_steps=6", "--eval_steps=2", "--learning_rate=1e-3"]
        flags += ["--precompute_ref_batch_size=8"]  # TRL's own loss is computed of scored pairs
        trainer = trainer_on(folder, tiny_model, easy(32, 0), easy(16, 1), *flags)
        if not watched:
            for callback in (trainer.monitors, drift.Drift):
                trainer.remove_callback(callback)
            monkeypatch.setattr(type(trainer), "compute_loss", DPOTrainer.compute_loss)
            monkeypatch.setattr(type(trainer), "_get_grad_norm", DPOTrainer._get_grad_norm)
        trainer.train()
        found = [
            {k: v for k, v in entry.items() if k not in TIMES and "train_" not in k}
            for entry in trainer.state.log_history
            if "eval_drift_tokens" not in entry
        ]
        for entry in found:  # in which TRL counts a tie as wrong
            entry.pop("rewards/accuracies", entry.pop("eval_rewards/accuracies", None))
        outcomes.append((weights(trainer), found, random.random(), torch.rand(1), np.random.rand()))
    (ours, logs, *draws), (stock, stock_logs, *stock_draws) = outcomes
    assert all(torch.equal(a, b) for a, b in zip(ours, stock, strict=True))
    assert logs == stock_logs and draws == stock_draws


def test_drift_is_zero_at_the_start_and_where_nothing_moves(tiny_model, tmp_path):
    flags = ("--max_steps=2", "--eval_steps=1", "--learning_rate=0")
    trainer = trainer_on(tmp_path, tiny_model, easy(16, 0), easy(16, 1), *flags)
    trainer.train()
    first, second = (e for e in trainer.state.log_history if "eval_drift_tokens" in e)
    start = json.loads((tmp_path / "run/drift.json").read_text())
    assert len(start["prompts"]) == drift.PROMPTS
    mean = np.mean([len(answer) for answer in start["answers"]])
    for entry in (first, second):
        assert entry["eval_drift_nats_per_token"] == pytest.approx(0, abs=1e-6)
        assert entry["eval_drift_tokens"] == mean  # the same seed, the same answers


def test_a_prompt_of_several_pairs_is_asked_once(tiny_model, tmp_path):
    """Its answers are alike, and would pass for as many prompts."""
    asked = [pair(f"test {i % 3}", f"good {i}", f"bad {i}") for i in range(12)]
    trainer = trainer_on(
        tmp_path, tiny_model, easy(16, 0), asked, "--max_steps=1", "--eval_steps=1"
    )
    trainer.train()
    start = json.loads((tmp_path / "run/drift.json").read_text())
    assert len(start["answers"]) == 3 and len(set(start["asked"])) == 3


def test_what_is_shown_while_it_trains_are_six_prompts_from_all_over(tiny_model, tmp_path):
    """Neighbours ask the same of one subject: of 64 rows in groups of four, the first six are of
    two subjects."""
    asked = [pair(f"question {i % 4} on {i // 4}", f"good {i}", f"bad {i}") for i in range(64)]
    flags = ("--max_steps=2", "--eval_steps=1")
    trainer_on(tmp_path, tiny_model, easy(16, 0), asked, *flags).train()
    rows = metrics.completions(tmp_path / "run")
    shown = [(row["prompt"], row["decoding"]) for row in rows if row["step"] == 1]
    assert [decoding for _, decoding in shown] == ["greedy"] * 3 + ["sampled"] * 3
    subjects = [prompt.split(" on ")[1].strip("?") for prompt, _ in shown]
    assert len({*subjects}) == 6 and max(map(int, subjects)) > 8
    assert [(row["prompt"], row["decoding"]) for row in rows if row["step"] == 2] == shown


def test_answers_that_grow_are_told(tiny_model, tmp_path):
    """The start's answers are made short, as if the policy had been brief then."""
    flags = ("--max_steps=2", "--eval_steps=2", "--learning_rate=1e-6")
    trainer = trainer_on(tmp_path, tiny_model, easy(16, 0), easy(16, 1), *flags)

    class Brief(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            (measure,) = (c for c in trainer.callback_handler.callbacks if type(c) is drift.Drift)
            measure.begin()
            measure.start["answers"] = [ids[:4] for ids in measure.start["answers"]]
            rows = measure.start["prompts"], measure.start["answers"]
            measure.start["logps"] = measure.logps(*rows).tolist()

    trainer.add_callback(Brief)
    trainer.train()
    (told,) = alerts_.alerts_of(trainer.state)
    assert told["kind"] == "length exploitation"
    # Most are cut at 64; a model that knows nothing ends one now and then.
    assert re.search("have 6[0-4] tokens, and the reference's 4 ", told["says"]), told["says"]


def test_a_drift_that_cannot_be_measured_does_not_end_the_run(healthy, capsys, monkeypatch):
    def no_room(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(drift.Drift, "logps", no_room)
    healthy.train()
    assert healthy.state.global_step == 4
    assert "not measured from here on: CUDA out of memory" in capsys.readouterr().out


# ---- metrics.jsonl, and a run that is resumed


def without_times(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def test_a_resumed_run_has_the_metrics_and_alerts_of_one_that_was_not(tiny_model, tmp_path):
    flags = ("--learning_rate=1e-2", "--max_steps=8", "--eval_steps=4")
    flags += ("--save_strategy=steps", "--save_steps=4", "--save_total_limit=2")
    rows = easy(32, 0), easy(16, 1)
    trainer = trainer_on(tmp_path, tiny_model, *rows, *flags)
    trainer.train()
    run = tmp_path / "run"
    whole, alerts = metrics.read(run), trainer.state.stateful_callbacks[alerts_.NAME]
    assert whole[-1]["step"] == 8 and "eval_loss" in whole[-2]
    assert sum("loss" in line for line in whole) == 8
    assert sum("eval_drift_tokens" in line for line in whole) == 2
    assert {"drift"} <= {alert["kind"] for alert in alerts["alerts"]}
    history = [e for e in trainer.state.log_history if "train_runtime" not in e]
    assert without_times(whole) == without_times(history)
    assert [*map(json.dumps, whole)] == (run / "metrics.jsonl").read_text().splitlines()
    seconds = [line["seconds"] for line in whole]
    assert seconds == sorted(seconds) and seconds[0] > 0

    # As a kill leaves it: past the checkpoint, and in the middle of a line.
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[: len(text) - 40])
    again = trainer_on(tmp_path / "again", tiny_model, *rows, *flags)
    again.args.output_dir = str(run)
    again.add_callback(TakeUp(again, run / "checkpoint-4"))
    again.train(resume_from_checkpoint=str(run / "checkpoint-4"))
    assert without_times(metrics.read(run)) == without_times(whole)
    assert again.state.stateful_callbacks[alerts_.NAME] == alerts


def test_counting_input_tokens_leaves_no_step_out(tiny_model, tmp_path):
    """transformers then puts a run time into the log of every step, as into its last summary."""
    flags = ("--max_steps=3", "--include_num_input_tokens_seen=true")
    trainer_on(tmp_path, tiny_model, easy(32, 0), easy(8, 1), *flags).train()
    lines = [line for line in metrics.read(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["num_input_tokens_seen"] > 0 for line in lines)


def test_what_is_not_finite_is_null():
    entry = {"step": 1, "loss": math.nan, "grad_norm": math.inf, "epoch": 0.5}
    assert metrics.line(entry) == '{"step": 1, "loss": null, "grad_norm": null, "epoch": 0.5}\n'
