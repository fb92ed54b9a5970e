"""Models whose log-probabilities depend on the batch: the reference sees the policy's batches."""

import json
import shutil
from types import SimpleNamespace

import pytest
import yaml
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config
from transformers.models.llama.modeling_llama import LlamaMLP

from dpo.data.dataset import prepare
from dpo.data.sources.load import load_rows
from dpo.evaluation import contestants
from dpo.models import rope as rope_
from dpo.models import scoring
from dpo.models.chat_template import load_tokenizer
from dpo.recipe.arguments import RunArguments
from dpo.recipe.parse import parse
from dpo.training.build import make_trainer
from dpo.training.preflight.checks import Gates
from support.tiny import ARCHITECTURES, SIZES, losses_of, random_ids, trainer_of

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0}
LONG |= {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
SHORT = SIZES | {"max_position_embeddings": 16}
BY_BATCH = {
    "longrope": lambda: Phi3Config(
        **SIZES,
        original_max_position_embeddings=16,
        rope_parameters=LONG | {"original_max_position_embeddings": 16},
        **{"bos_token_id": 1, "eos_token_id": 1},
    ),
    "dynamic": lambda: LlamaConfig(**SHORT, rope_parameters=DYNAMIC),
    "of one type of layer": lambda: Gemma3TextConfig(
        **SHORT,
        **{"head_dim": 8, "sliding_window": 5},
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": DYNAMIC, "sliding_attention": PLAIN},
    ),
}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    for name, config in BY_BATCH.items():
        monkeypatch.setitem(ARCHITECTURES, name, config)


@pytest.mark.parametrize("name", BY_BATCH)
def test_where_positions_go_by_the_batch_the_reference_stays_live(name, tmp_path):
    """At a learning rate of nothing the loss is its constant, in whatever batch."""
    how = {"max_steps": 2, "learning_rate": 1e-9}
    trainer = trainer_of(tmp_path, name, fast=True, max_length=40, **how)
    assert "beyond 16 tokens" in trainer.live and "of up to 40 tokens" in trainer.live
    assert losses_of(trainer) == pytest.approx([0.6931, 0.6931], abs=1e-4)
    (tmp_path / "short").mkdir()
    short = trainer_of(tmp_path / "short", name, fast=True, max_length=16, **how)
    assert short.live is None and short.ref_model is None
    assert losses_of(short) == pytest.approx([0.6931, 0.6931], abs=1e-4)


@pytest.mark.parametrize("name", BY_BATCH)
def test_a_batch_comes_out_as_it_would_have_without_those_before_it(name, tmp_path):
    """Else a run that goes on is another run, and drift's answers part policy and reference."""
    trainer = trainer_of(tmp_path, name, fast=True, max_length=40, max_steps=1)
    rows = trainer.train_dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    for model in (trainer.model.eval(), trainer.ref_model):
        first, *_, last = (
            trainer.compute_ref_log_probs(model, trainer.data_collator([rows[at]]))
            for at in (0, 6, 0)  # of 19 and 42 tokens, beyond the first 16
        )
        assert [value.item() for value in first] == [value.item() for value in last]


def test_a_model_that_is_loaded_again_forgets_longer_batches_too(tmp_path):
    """Policy and reference of an evaluation have answered at other lengths when they are scored."""
    trainer_of(tmp_path, "dynamic", fast=True, max_length=16)
    folder = str(tmp_path / "model")
    model = contestants.Contestant(folder, folder).load("cpu")
    first, _, last = (
        scoring.score(model, [(random_ids(10, 0), random_ids(more, 1))], 0).item()
        for more in (10, 50, 10)
    )
    assert first == last


def test_models_whose_positions_stand_are_kept_whatever_their_length():
    for rope in (PLAIN, {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}):
        assert not [*rope_.limits(LlamaConfig(**SHORT, rope_parameters=rope))]
    assert not [*rope_.limits(LlamaConfig(**SHORT))]


def test_a_reference_that_is_stated_to_be_kept_is_refused(tiny_model, tiny_data, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"max_position_embeddings": 32, "rope_parameters": DYNAMIC}
    (model / "config.json").write_text(json.dumps(config))
    keys = {
        **{"model_name_or_path": str(model), "dataset_name": str(tiny_data), "use_cpu": True},
        **{"bf16": False, "output_dir": str(tmp_path / "run"), "eval_strategy": "no"},
        **{"report_to": "none", "reference_cache": str(tmp_path / "cache")},
    }

    def built(**stated):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys | stated))
        recipe = parse(["--config", str(tmp_path / "recipe.yaml")])
        tokenizer = load_tokenizer(recipe)
        rows = prepare(recipe, load_rows(recipe), tokenizer)["train"].pairs
        return make_trainer(recipe, tokenizer, rows, None)

    with pytest.raises(SystemExit, match=r"recipe.yaml: precompute_ref_log_probs is True: beyond"):
        built(precompute_ref_log_probs=True)
    assert "type dynamic" in built().live


def gated(folder, name, **arguments):
    trainer = trainer_of(folder, name, fast=True, max_steps=2, **arguments)
    trainer.add_callback(Gates(trainer, SimpleNamespace(run=RunArguments())))
    return trainer


def test_a_row_that_comes_out_otherwise_beside_a_longer_one(tmp_path, monkeypatch):
    """In a way that is not known: the first pairs are right alone, and scored among their like."""
    monkeypatch.setattr(rope_, "by_batch", lambda *given: None)
    lengths = [3, 4, 3, 5, 4, 3, 12, 12]
    pairs = [tuple(random_ids(n, 9 * n + part) for part in range(3)) for n in lengths]
    with pytest.raises(SystemExit, match=r"of pair \d, .* It is scored beside pair \d, and the"):
        gated(tmp_path, "dynamic", pairs=pairs).train()
    (tmp_path / "live").mkdir()
    gated(tmp_path / "live", "dynamic", pairs=pairs, precompute_ref_log_probs=False).train()


def test_numbers_that_are_scaled_by_the_largest_of_the_batch(tmp_path, monkeypatch):
    plain = LlamaMLP.forward
    scaled = lambda self, x: plain(self, x) * x.abs().amax()  # noqa: E731
    monkeypatch.setattr(LlamaMLP, "forward", scaled)
    with pytest.raises(SystemExit, match="does not start as its reference"):
        gated(tmp_path, "llama").train()
