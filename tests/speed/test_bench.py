"""The benchmark measures what it says: real trainers, the same pairs, sums that add up."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

import bench
from dpo.models.flops import useful_flops
from dpo.speed import table, variants, workload
from support.launched import forked
from support.place import ROOT


def elsewhere(command: list[str], env: dict[str, str], **_) -> subprocess.CompletedProcess:
    """`python -m`, in a fork."""
    _, _, module, *given = command
    first = f"import runpy; runpy.run_module('{module}', run_name='__main__'); raise SystemExit"
    return forked("bench", *given, first=first, **env)


@pytest.fixture(scope="module")
def results(tiny_model, tmp_path_factory):
    """`make bench` on the tiny model, stock TRL beside everything."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(variants, "VARIANTS", [variants.VARIANTS[1], variants.VARIANTS[5]])
        patch.setattr(variants, "subprocess", SimpleNamespace(run=elsewhere))
        words = ["--device=cpu", "--model", str(tiny_model), "--pairs=2", "--rounds=1"]
        patch.setattr(sys, "argv", ["bench.py", *words, "--lengths=9,5,6", f"--output={folder}"])
        bench.main()
    return folder, json.loads((folder / "bench.json").read_text())


def test_a_row_holds_what_it_should(results):
    _, found = results
    assert found["matmul_peak_tflops"] > 0 and found["machine"] and found["torch"]
    stock, ours = found["rows"]
    for row in (stock, ours):
        assert row["pairs_per_second"] > 0 and row["peak_memory_gb"] > 0.1
        # 9 + 5 + 6 tokens a pair, the prompt once.
        assert row["tokens_per_second"] == pytest.approx(20 * row["pairs_per_second"])
        assert 0 < row["mfu"] < 1
        assert row["stock_tokens_per_token"] == 2 * 15 / 20
        ratio = row["pairs_per_second"] / stock["pairs_per_second"]
        assert row["ratio_to_stock"] == pytest.approx(ratio)
    assert stock["ratio_to_stock"] == 1


def test_table_and_picture_are_written(results):
    folder, found = results
    text = (folder / "bench.md").read_text()
    assert all(f"| {row['name']} |" in text for row in found["rows"])
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_what_did_not_fit_is_a_row_as_well(results, tmp_path):
    _, found = results
    lost = dict.fromkeys(found["rows"][1]) | {"name": "too large", "model": "m", "lengths": "l"}
    lost |= {"pairs_per_micro_batch": 2, "stock_tokens_per_token": 2.0}
    rows = [found["rows"][0], lost]
    table.write(found | {"rows": rows}, tmp_path)
    assert "| too large | – | – | out of memory | – | – |" in (tmp_path / "bench.md").read_text()


def test_every_variant_is_what_its_name_says():
    flags = {}
    for variant in variants.VARIANTS:
        flags[variant.name] = {k for k, v in asdict(variant).items() if v is True}
    assert flags[variants.BASELINE] == {"flash"}
    everything = flags["+ reference scored once: everything"]
    assert everything == {"head", "share", "kept_memory", "cached", "flash"}
    assert len(flags) == len(variants.VARIANTS) == len({*map(frozenset, flags.values())})


def test_useful_flops_are_those_that_torch_counts(tiny_model):
    """Of a pair without a prompt, so that all of its tokens are useful in the plain path too."""
    config = AutoConfig.from_pretrained(tiny_model, attn_implementation="eager")
    model = variants.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(40)[None], use_cache=False).logits.sum().backward()
    counted = counter.get_total_flops()
    useful = useful_flops(model, np.array([[0, 40, 0]]))
    # Attention is counted in full there, and causally here, which is half.
    attention = 3 * 4 * config.num_hidden_layers * config.hidden_size * 40**2
    assert counted == useful + attention / 2


def test_lengths_are_drawn_from_the_table_and_cut():
    lengths = workload.draw_lengths(str(workload.LENGTHS), 5000, seed=0)
    both = lengths[:, :1] + lengths[:, 1:]
    assert both.max() == workload.MAX_LENGTH and lengths.min() >= 0
    assert abs(lengths.sum(axis=1).mean() - 662) < 15  # the mean of the whole table
    assert (workload.draw_lengths("3,4,5", 2, seed=0) == [[3, 4, 5], [3, 4, 5]]).all()


def test_repeats_and_padding_are_counted():
    # Two pairs, the longest row 10 tokens: 4 rows × 10 for 6 + 4 + 1 and 1 + 1 + 1 tokens.
    assert workload.repeats_and_padding(np.array([[6, 4, 1], [1, 1, 1]]), 2) == 40 / 14
    everything = workload.draw_lengths(str(workload.LENGTHS), 4000, seed=0)
    assert workload.repeats_and_padding(everything, 4) == pytest.approx(2.30, abs=0.05)


def test_few_batches_stand_for_the_whole_table():
    few = workload.typical_lengths(str(workload.LENGTHS), 8, pairs=4)
    assert few.shape == (8, 3)
    assert workload.repeats_and_padding(few, 4) == pytest.approx(2.30, abs=0.05)
    assert few.sum(axis=1).mean() == pytest.approx(662, rel=0.03)


def test_turns_share_out_the_rows_and_warm_up_with_a_batch():
    job = variants.Job("SmolLM2-135M", "cpu", 4, 2, str(workload.LENGTHS), turns=3)
    turns = [replace(job, turn=number).timed for number in range(3)]
    whole = workload.typical_lengths(job.lengths, 24, 4)
    assert (np.concatenate(turns) == whole).all()
    assert job.warm_up.shape == (4, 3)


def test_dealing_evens_the_ranks():
    found = workload.dealing()
    assert found["dealt by length"] < 1.15 < 1.4 < found["as drawn"]


def test_an_unknown_model_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench.py", "--device=cpu", "--model", "GPT-5"])
    with pytest.raises(SystemExit, match=r"no model GPT-5: one of .*Qwen3-0\.6B"):
        bench.main()
