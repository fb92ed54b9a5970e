"""What stock DPOTrainer takes, ours takes: streams, several evaluation sets, metrics of one's own.

TRL's own tests say the same at length: make test-trl (support/stock_trl.py).
"""

import pytest
from datasets import Dataset, IterableDataset, IterableDatasetDict
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, set_seed
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo.speed.workload import any_tokenizer
from support.tiny import EDGE_PAIRS, MAX_LENGTH, SIZES, losses_of, random_model, trainer_of

ROWS = [
    dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pair, strict=True))
    for pair in EDGE_PAIRS * 8
]


def rows(count: int = len(ROWS)) -> Dataset:
    return Dataset.from_list(ROWS[:count])


def stream(count: int = len(ROWS)) -> IterableDataset:
    return rows(count).to_iterable_dataset()


EVALUATED = {
    "rows": rows,
    "a stream": stream,
    "several": lambda count: {"train": rows(count), "b": rows(count)},
    "several streams": lambda count: {"a": stream(count), "b": stream(count)},
}


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("kind", EVALUATED)
def test_it_evaluates_what_stock_evaluates(kind, live, tmp_path):
    """Between steps and after them; enough pairs are trained on for the monitors to look at."""
    if "stream" in kind and not live:
        pytest.skip("nothing to score beforehand")
    given = {
        **{"eval_strategy": "steps", "eval_steps": 8, "max_steps": 8, "learning_rate": 1e-4},
        **{"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
        "precompute_ref_log_probs": not live,
    }
    found = {}
    for fast in (False, True):
        evaluated = EVALUATED[kind](6)
        trainer = trainer_of(
            *(tmp_path, "llama"), fast=fast, train=rows(), held_out=evaluated, **given
        )
        trainer.train()
        names = [name for name in trainer.evaluate() if name.endswith("_loss")]
        logged = [entry for entry in trainer.state.log_history if names[0] in entry]
        found[fast] = [entry[names[0]] for entry in logged]
        assert len(names) == (2 if isinstance(evaluated, dict) else 1)
    assert found[True] == pytest.approx(found[False], abs=1e-4) and len(found[True]) == 2


def test_it_evaluates_a_set_that_it_is_given(tmp_path):
    """With none of its own, before training and after."""
    trainer = trainer_of(
        *(tmp_path, "llama"), fast=True, lora=True, train=rows(), max_steps=8, learning_rate=1e-4,
        per_device_train_batch_size=8, gradient_accumulation_steps=1,
    )  # fmt: skip
    before = trainer.evaluate(rows(6))["eval_loss"]
    trainer.train()
    assert before == pytest.approx(0.6931, abs=1e-4) != trainer.evaluate(rows(6))["eval_loss"]


def test_metrics_of_ones_own(tmp_path):
    """They see the logits of stock, at every token that is none of padding."""
    seen = {}

    def mine(predictions) -> dict[str, float]:
        ids, logits = predictions.label_ids, predictions.predictions
        seen[trainer] = logits[ids > 0]
        return {"mine": 1.5}

    for fast in (False, True):
        trainer = trainer_of(
            *(tmp_path, "llama"), fast=fast, train=rows(8), held_out=rows(6), compute_metrics=mine
        )
        assert trainer.evaluate()["eval_mine"] == 1.5
    stock, ours = seen.values()
    assert ours.size and ours == pytest.approx(stock, abs=1e-4)


@pytest.mark.parametrize("which", ["train", "held out", "one of several"])
def test_a_stream_cannot_be_scored_beforehand(which, tmp_path):
    """TRL's word, and no attempt to read to the end of it."""
    sets = {
        "train": (stream(), None),
        "held out": (rows(), stream()),
        "one of several": (rows(), IterableDatasetDict({"eval": stream()})),
    }
    train, held_out = sets[which]
    for fast in (False, True):
        with pytest.raises(ValueError, match="not supported with IterableDataset"):
            trainer_of(
                *(tmp_path, "llama"), fast=fast, precompute_ref_log_probs=True,
                train=train, held_out=held_out,
            )  # fmt: skip


def test_an_evaluation_set_called_train_is_scored_whole(tmp_path):
    """Of the rows to train on a short run scores its own alone."""
    trainer = trainer_of(
        *(tmp_path, "llama"), fast=True, max_steps=1, train=rows(), held_out={"train": rows()}
    )
    scored = [*trainer.eval_dataset["train"]["ref_chosen_logps"]]
    assert all(value == value for value in scored) and len(scored) == 64


class Masking(DataCollatorForPreference):
    """A collator of one's own, which trains on all of an answer but the end of it."""

    def torch_call(self, examples: list[dict]) -> dict:
        batch = super().torch_call(examples)
        return batch | {"completion_mask": batch["completion_mask"] * (batch["input_ids"] % 3 > 0)}


def made_in_memory() -> dict:
    models = {"model": random_model("llama"), "ref_model": random_model("llama")}
    return models | {"processing_class": any_tokenizer()}


def another_attention() -> dict:
    made = made_in_memory()
    made["ref_model"].set_attn_implementation("eager")
    return made


def attends_in_its_own_way() -> dict:
    """Its layers hand nothing on to their attention."""

    def nemotron() -> PreTrainedModel:
        set_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("nemotron", **SIZES))

    return made_in_memory() | {"model": nemotron(), "ref_model": nemotron()}


def in_double() -> dict:
    made = made_in_memory()
    return made | {"model": made["model"].double(), "ref_model": made["ref_model"].double()}


def collator(kind=DataCollatorForPreference) -> DataCollatorForPreference:
    return kind(pad_token_id=0, max_length=MAX_LENGTH)


def from_a_token_on() -> LoraConfig:
    """It acts on each row from the last place of a token on."""
    token = EDGE_PAIRS[0][0][-1]
    return LoraConfig(
        **{"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "init_lora_weights": False},
        alora_invocation_tokens=[token],
    )


GIVEN = {
    "models made in memory": (made_in_memory, "on"),
    "a reference with another attention": (another_attention, "off, since its attention is eager"),
    "a model that attends in its own way": (attends_in_its_own_way, "off, since its layers"),
    "float64": (in_double, "on"),
    "a collator of one's own": (
        lambda: {"data_collator": collator(Masking)},
        "off, since the data",
    ),
    "a function that collates": (lambda: {"data_collator": collator().__call__}, "off, since the"),
    "an adapter that acts from a token on": (
        lambda: {"peft_config": from_a_token_on()},
        "off, since the adapter acts",
    ),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_it_trains_what_it_is_given_as_stock_does(kind, tmp_path):
    """Whatever sharing cannot take: then it is off, and the run says why. Checkpoints are kept."""
    objects, sharing = GIVEN[kind]
    found = {}
    for fast in (False, True):
        trainer = trainer_of(
            *(tmp_path, "llama"), fast=fast, objects=objects(), max_steps=4, save_strategy="steps",
            save_steps=2, precompute_ref_log_probs=False,
        )  # fmt: skip
        found[fast] = losses_of(trainer)
    assert trainer.sharing.startswith(sharing)
    assert found[True] == pytest.approx(found[False], abs=1e-4) and len({*found[True]}) > 2
    assert (tmp_path / "run/checkpoint-4/model.safetensors").exists() or "adapter" in kind


def test_noise_on_embeddings_is_that_of_stock(tmp_path):
    noisy = {"max_steps": 3, "neftune_noise_alpha": 5.0, "precompute_ref_log_probs": False}
    found = [losses_of(trainer_of(tmp_path, "llama", fast=fast, **noisy)) for fast in (False, True)]
    assert found[1] == pytest.approx(found[0], abs=1e-4)
