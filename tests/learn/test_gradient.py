"""make learn WHAT=gradient: norms by another way, which pairs are measured, and what is found
again."""

import json
import math
import re

import numpy as np
import pytest
import torch

from dpo.core.files import read_lines
from dpo.core.refusal import Refusal
from dpo.evaluation.contestants import reference_of
from dpo.learn import along, gradient, runs
from dpo.recipe.parse import FOLDER, parse
from dpo.runs import output_folder, sweeps
from support.place import ROOT
from support.tiny import random_ids, random_model

EMBEDDED = ROOT / "recipes/data/sentiment"
BETA = 0.3
PAIR = [(random_ids(6, 0), random_ids(9, 1)), (random_ids(6, 0), random_ids(4, 2))]


def logps_of(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Without a batch, a mask or a function of ours."""
    logits = model(torch.tensor([prompt + completion])).logits[0]
    said = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return said[range(len(completion)), completion].sum()


@pytest.mark.parametrize("moved", [-8.0, 0.0, 8.0])
def test_norms_are_those_of_a_backward_pass(moved):
    """Where the policy has the pair wrong, has left its reference by nothing, and has it right."""
    model = random_model("llama").eval()
    reference = [logps_of(model, *row).item() for row in PAIR]
    reference[0] -= moved
    found = gradient.gradient_of(model, PAIR, 0, BETA, reference)
    chosen, rejected = (logps_of(model, *row) for row in PAIR)
    margin = BETA * ((chosen - reference[0]) - (rejected - reference[1]))
    (-torch.nn.functional.logsigmoid(margin)).backward()
    norm = math.sqrt(sum(weight.grad.square().sum().item() for weight in model.parameters()))
    assert found["loss"] == pytest.approx(norm, rel=1e-4)
    assert found["weight"] == pytest.approx(1 / (1 + math.exp(BETA * moved)), rel=1e-4)
    assert found["loss"] == pytest.approx(gradient.expected(found, BETA), rel=1e-5)
    assert found["logps"] == pytest.approx([chosen.item(), rejected.item()], abs=1e-4)


def test_without_a_reference_the_model_is_it():
    model = random_model("llama").eval()
    assert gradient.gradient_of(model, PAIR, 0, BETA)["weight"] == 0.5


def test_sampled_labels_are_right_and_wrong(tmp_path):
    gradient.write_data(EMBEDDED, tmp_path, 0.2)
    rows = read_lines(tmp_path / "train.jsonl")
    before = read_lines(EMBEDDED / "train.jsonl")
    assert sum(row["swapped"] for row in rows) == 100  # of 501
    sample = gradient.sample_of(rows, 12)
    assert sample == gradient.sample_of(rows, 12)
    prompts = [str(rows[at]["prompt"]) for side in gradient.SIDES for at in sample[side]]
    assert len({*prompts}) == len(prompts) == 24
    for at in sample["right"]:
        assert rows[at] == before[at] | {"swapped": False}
        assert rows[at]["vader_chosen"] > rows[at]["vader_rejected"]
    for at in sample["wrong"]:
        assert rows[at]["chosen"] == before[at]["rejected"] and rows[at]["swapped"]
        assert rows[at]["vader_chosen"] < rows[at]["vader_rejected"]
    smaller = gradient.sample_of(rows, 2)
    assert all(sample[side][:2] == smaller[side] for side in gradient.SIDES)


def recipe_on(data, into, model):
    flags = ["--eval_strategy=no", f"--dataset_name={data}", f"--output_dir={into}"]
    flags += [f"--model_name_or_path={model}", "--bf16=false"]
    return parse(["--config", str(FOLDER / f"{runs.RECIPE}.yaml"), *flags])


def test_the_rows_are_those_that_the_run_trains_on(tmp_path, tiny_model):
    gradient.write_data(EMBEDDED, tmp_path / "data", 0.2)
    rows = read_lines(tmp_path / "data/train.jsonl")
    sample = gradient.sample_of(rows, 3)
    recipe = recipe_on(tmp_path / "data", tmp_path / "run", tiny_model)
    tokenizer = reference_of(recipe).tokenizer()
    found = gradient.rows_of(recipe, sample, tokenizer)
    asked = [rows[at] for side in gradient.SIDES for at in sample[side]]
    for (chosen, rejected), row in zip(found, asked, strict=True):
        assert chosen[0] == rejected[0]
        assert row["prompt"][0]["content"] in tokenizer.decode(chosen[0])
        for (_, ids), side in ((chosen, "chosen"), (rejected, "rejected")):
            assert tokenizer.decode(ids).strip().startswith(row[side][0]["content"].strip())


def points(weights: dict[str, list[float]]) -> list[dict]:
    """Two steps: none is apart at the first, and so at the second."""
    return [
        {"step": step, "row": at, "side": side, "logps": [-1.0, -2.0], "difference": 10.0 + at}
        | {"weight": weight if step else 0.5}
        | {"loss": BETA * (weight if step else 0.5) * (10.0 + at) * (1 + 2e-6 * (at == 1))}
        for step in (0, 3)
        for side in gradient.SIDES
        for at, weight in enumerate(weights[side])
    ]


def results() -> dict:
    some = points({"right": [0.3, 0.4, 0.5], "wrong": [0.6, 0.5, 0.7]})
    found = gradient.summary(some, BETA)
    found |= {"settings": {"beta": BETA}, "pairs": some}
    return json.loads(json.dumps(found | {"claims": gradient.claims(found)}))


def test_what_pairs_come_to():
    found = results()
    assert found["off"] == pytest.approx(2e-6)
    assert found["claims"]["off by at most, parts in a million"] == 2.0
    first, second = found["apart"]
    assert first["weight"] == {"mean": 0, "low": 0, "high": 0}
    half = 2.776 * math.sqrt(2 * 0.01 / 3)  # Welch's, of four degrees of freedom
    assert second["weight"]["mean"] == pytest.approx(0.2)
    assert second["weight"]["high"] - 0.2 == pytest.approx(half, rel=1e-3)
    (wrong,) = [p for p in found["points"] if (p["step"], p["side"]) == (3, "wrong")]
    assert wrong["weight"]["mean"] == pytest.approx(0.6)
    half = 4.303 * 0.1 / math.sqrt(3)  # Student's, of two
    assert wrong["weight"]["high"] - 0.6 == pytest.approx(half, rel=1e-3)


def test_what_is_printed_is_what_is_claimed():
    found = results()
    claimed = {abs(value) for value in found["claims"].values()}
    printed = re.findall(r"\d+\.\d+", gradient.table(found))
    assert len(printed) == 2 * 2 * 3 * 3 + 2 * 3 and {float(n) for n in printed} <= claimed


def test_the_picture_is_drawn_from_the_json(tmp_path):
    found = results()
    equation, weighed, along = gradient.draw(found).axes
    drawn = np.concatenate([part.get_offsets() for part in equation.collections])
    assert len(drawn) == 12 and drawn[:, 1].tolist() == pytest.approx(
        [p["loss"] for side in gradient.SIDES for p in found["pairs"] if p["side"] == side]
    )
    assert sum(len(part.get_offsets()) for part in weighed.collections) == 6  # the last step
    ends = {line.get_label(): line[0].get_ydata()[-1] for line in along.containers}
    assert ends == {"right label": pytest.approx(0.4), "wrong label": pytest.approx(0.6)}


def test_it_goes_on_from_what_is_there(tmp_path, monkeypatch, tiny_model):
    """Every checkpoint is measured once and removed; the reference's own numbers are those of the
    start."""
    asked, failing = [], {"at": 2}

    def train(run, flags):
        if (run.folder / output_folder.TRAINED).exists():
            return
        for step in (1, 2):
            (run.folder / f"checkpoint-{step}").mkdir(parents=True)
        (run.folder / output_folder.TRAINED).touch()

    def gradients_of(who, rows, beta, reference):
        if len(asked) == failing["at"]:
            raise Refusal("it failed")
        asked.append((who, reference))
        start = {"logps": [-9.0, -8.0], "weight": 0.5, "difference": 4.0, "loss": 2 * beta}
        return {"pairs": [start | {"at": at} for at in range(len(rows))]}

    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(runs, "timed", lambda find: {**find(), "seconds": 6})
    monkeypatch.setattr(runs, "report_of", lambda folder: {"seconds": {"train": 60}})
    monkeypatch.setattr(sweeps, "begun", lambda run: (run.folder / output_folder.TRAINED).exists())
    monkeypatch.setattr(gradient, "gradients_of", gradients_of)
    monkeypatch.setattr(along, "policy_of", lambda checkpoint, run: checkpoint.name)
    flags = [f"--model_name_or_path={tiny_model}"]
    out, docs = tmp_path / "out", tmp_path / "docs"
    with pytest.raises(Refusal):
        gradient.run(out, docs, True, flags)
    assert [path.name for path in out.rglob("checkpoint-*")] == ["checkpoint-2"]
    failing["at"] = None
    gradient.run(out, docs, True, flags)
    assert [who for who, _ in asked[1:]] == ["checkpoint-1", "checkpoint-2"]
    assert [reference for _, reference in asked] == [None, [[-9, -8]] * 4, [[-9, -8]] * 4]
    assert not [*out.rglob("checkpoint-*")]
    found = json.loads((docs / "gradient.json").read_text())
    assert found["made"]["minutes"] == pytest.approx(1.3) and found["off"] == pytest.approx(0)
    assert [p["step"] for p in found["pairs"]] == [0] * 4 + [1] * 4 + [2] * 4
