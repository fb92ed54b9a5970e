"""Rounds: which prompts, which model and which reference each has, and what they come to."""

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dpo.core.refusal import Refusal
from dpo.pairs.rounds import begin, carry_out, plan
from dpo.recipe.parse import FOLDER, read_yaml
from dpo.reports.rounds import numbers
from dpo.reports.rounds.verdict import verdict
from dpo.runs import sweeps
from support.place import ROOT
from support.tiny import pair

RECIPE = "smollm2-sentiment"
START = "models/SmolLM2-135M-Instruct"


def asked(**given) -> Namespace:
    usual = {"rounds": 3, "prompts_per_round": None, "reference": "start", "offline": True}
    return Namespace(**usual | given)


def flags_of(each: plan.Round) -> dict[str, str]:
    return dict(flag.lstrip("-").split("=", 1) for flag in each.flags)


def test_prompts_are_fresh_until_they_run_out():
    assert plan.slices(9, 3, 3) == [(0, 3), (3, 3), (6, 3)]
    assert plan.slices(10, 3, 4) == [(0, 4), (4, 4), (8, 2)]
    assert plan.slices(10, 4, 5) == [(0, 5), (5, 5), (0, 5), (5, 5)]
    assert plan.slices(4, 2, 9) == [(0, 4), (0, 4)]


@pytest.mark.parametrize("reference", ["start", "previous"])
def test_each_round_goes_on_from_the_one_before_it(reference, tmp_path):
    recipe = plan.recipe_of(RECIPE, ["--beta=0.3"])
    found = plan.rounds(recipe, ["--beta=0.3"], tmp_path, asked(reference=reference), 0.1, 20)
    first, second, third, offline = found
    assert [each.asked for each in found] == ["1 to 6", "7 to 12", "13 to 18", "7 to 18"]
    assert [each.model for each in found] == [
        *(START, str(tmp_path / "round-1"), str(tmp_path / "round-2"), START)
    ]
    for each in found:
        stated = flags_of(each)
        trained, args = each.run.recipe, each.run.recipe.training
        assert trained.model.model_name_or_path == stated["model_name_or_path"] == each.model
        assert args.beta == 0.3 and Path(args.output_dir) == tmp_path / each.name
        later = each in (second, third)
        own = trained.run.ref_model_name_or_path
        assert own == (START if later and reference == "start" else None)
    assert first.run.recipe.script.dataset_name == str(tmp_path / "round-1-pairs")
    assert offline.run.recipe.script.dataset_name == str(tmp_path / "offline-data")
    # The offline run goes through as many pairs as all rounds together.
    assert [each.run.recipe.training.max_steps for each in found] == [24, 24, 24, 72]


def test_a_revision_is_the_starts_alone(tmp_path):
    given = ["--model_revision=v1"]
    recipe = plan.recipe_of(RECIPE, given)
    first, second, *_ = plan.rounds(recipe, given, tmp_path, asked(), 0.1, 20)
    assert first.run.recipe.model.model_revision == "v1"
    assert second.run.recipe.model.model_revision == "main"
    assert second.run.recipe.run.ref_model_revision == "v1"


def test_where_all_prompts_are_asked_at_once_there_is_no_offline_run(tmp_path):
    recipe = plan.recipe_of(RECIPE, [])
    found = plan.rounds(recipe, [], tmp_path, asked(prompts_per_round=20), 0.1, 20)
    assert [each.name for each in found] == ["round-1", "round-2", "round-3"]


def test_without_held_out_pairs_a_round_evaluates_nothing(tmp_path):
    found = plan.rounds(plan.recipe_of(RECIPE, []), [], tmp_path, asked(), 0, 20)
    assert {each.run.recipe.training.eval_strategy for each in found} == {"no"}


def test_an_adapter_is_merged_for_the_next_round(tmp_path):
    given = ["--use_peft", "--save_merged=false"]
    recipe = plan.recipe_of(RECIPE, given)
    with pytest.raises(Refusal, match=r"trains a LoRA adapter, .*--reference previous"):
        plan.check_reference(recipe, "start")
    plan.check_reference(recipe, "previous")
    found = plan.rounds(recipe, given, tmp_path, asked(reference="previous"), 0.1, 20)
    second = found[1]
    assert second.run.recipe.model.model_name_or_path == str(tmp_path / "round-1/merged")
    assert all(each.run.recipe.run.save_merged for each in found)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--restart"], "ARGS: --restart: make rounds says it of each run itself"),
        (["--output_dir=x"], "ARGS: --output_dir=x: make rounds says it"),
        (["--ref_model_name_or_path=x"], "ARGS: --ref_model_name_or_path=x: make rounds says it"),
        (["--use_peft", "--load_in_4bit"], "quantized anew in every round"),
    ],
)
def test_what_no_round_can_be_is_said(given, words):
    with pytest.raises(Refusal, match=words):
        plan.recipe_of(RECIPE, given)


def test_an_adapter_is_no_start(tiny_adapter):
    with pytest.raises(Refusal, match="is an adapter: rounds begin with a whole model"):
        plan.recipe_of(RECIPE, ["--use_peft", f"--model_name_or_path={tiny_adapter}"])


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_goes_in_rounds_or_says_why_not(path, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(plan, "config_of", lambda *_: None)  # its model is on the hub
    keys = read_yaml(FOLDER / path.name)
    try:
        recipe = plan.recipe_of(path.stem, ["--bf16=false"])
    except Refusal as refusal:
        wrong = keys.keys() & {"datasets", "load_in_4bit", "load_in_8bit"}
        assert wrong and any(key in str(refusal) or "quantized" in str(refusal) for key in wrong)
        return
    reference = "previous" if keys.get("use_peft") else "start"
    found = plan.rounds(recipe, ["--bf16=false"], tmp_path, asked(reference=reference), 0.1, 20)
    for each in found:
        script = each.run.recipe.script
        splits = (script.dataset_train_split, script.dataset_test_split, script.dataset_config)
        assert splits in (("train", "test", None), ("train", "test", "default"))


def how(prompts: Path, **given) -> dict:
    usual = {"prompts": str(prompts), "prompts_split": "", "eval_prompts": "", "eval_limit": 9}
    return usual | given


def written(path: Path, *questions: str) -> Path:
    path.write_text("".join(f"{json.dumps({'prompt': text})}\n" for text in questions))
    return path


def test_no_prompt_is_trained_and_measured_on(tiny_model, tiny_data, tmp_path, capsys):
    """Of the eight held-out prompts of the recipe two are among those to train on."""
    given = [f"--model_name_or_path={tiny_model}", f"--dataset_name={tiny_data}"]
    recipe = plan.recipe_of(RECIPE, given)
    prompts = written(tmp_path / "p.jsonl", "How was test 1?", "Why?", "How was test 5?", "Why?")
    into = tmp_path / "out"
    into.mkdir()
    assert begin.begin(recipe, into, how(prompts), {}) == 3
    assert "2 held-out prompts are among PROMPTS" in capsys.readouterr().out
    kept = [json.loads(line) for line in (into / begin.HELD_OUT).read_text().splitlines()]
    asked = [row["prompt"][0]["content"] for row in kept]
    assert asked == [f"How was test {i}?" for i in (0, 2, 3, 4, 6, 7)]
    assert kept[0]["row"]["vader_chosen"] == 0.8  # a rule may ask for more of the row
    # Again: the same; other settings: not.
    assert begin.begin(recipe, into, how(prompts), {"judge_price": "1,2"}) == 3
    assert begin.read(into)["carried"] == {"judge_price": "1,2"}
    with pytest.raises(Refusal, match=r"made otherwise: eval_limit \(9, now 5\): give the same"):
        begin.begin(recipe, into, how(prompts, eval_limit=5), {})


def test_what_cannot_be_measured_on_is_said(tmp_path):
    recipe = plan.recipe_of(RECIPE, ["--eval_strategy=no"])
    prompts, into = written(tmp_path / "p.jsonl", "Why?", "How?"), tmp_path / "out"
    into.mkdir()
    with pytest.raises(Refusal, match="holds no pairs out to measure policies on: name prompts"):
        begin.begin(recipe, into, how(prompts), {})
    with pytest.raises(Refusal, match="held-out prompts: all of them are among PROMPTS"):
        begin.begin(recipe, into, how(prompts, eval_prompts=str(prompts)), {})
    (into / "mine.txt").touch()
    with pytest.raises(Refusal, match=r"holds files that are no rounds \(mine.txt\)"):
        begin.begin(recipe, into, how(prompts), {})


def made_pairs(folder: Path, train: int, test: int) -> Path:
    folder.mkdir()
    for split, count in (("train", train), ("test", test)):
        rows = [pair(f"{folder.name} {split} {at}", "Good.", "Bad.") for at in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    about = {"format": 1, "pairs": {"train": train, "test": test}}
    (folder / "pairs.json").write_text(json.dumps(about))
    return folder


def test_the_offline_run_has_as_many_pairs_as_all_rounds(tmp_path):
    rounds = plan.rounds(plan.recipe_of(RECIPE, []), [], tmp_path, asked(rounds=2), 0.1, 20)
    first, second, offline = rounds
    for each, train in ((first, 6), (second, 3), (offline, 7)):
        made_pairs(each.pairs, train, 1)
    assert carry_out.join(rounds) == {"train": 9, "test": 2}
    lines = (tmp_path / "offline-data/train.jsonl").read_text().splitlines()
    assert len({*lines}) == 9
    sources = [json.loads(line)["prompt"][0]["content"].split()[2] for line in lines]
    assert {*sources} == {"round-1-pairs", "offline-pairs"}  # of the start's answers alone
    before = (tmp_path / "offline-data/train.jsonl").read_bytes()
    carry_out.join(rounds)
    assert (tmp_path / "offline-data/train.jsonl").read_bytes() == before
    # Fewer, where the start's answers make fewer.
    for path in offline.pairs.iterdir():
        path.unlink()
    offline.pairs.rmdir()
    made_pairs(offline.pairs, 1, 1)
    assert carry_out.join(rounds)["train"] == 7


def test_runs_are_one_group_in_wandb(tmp_path, monkeypatch):
    started = []

    def start(command, log, environment):
        started.append((command, environment["WANDB_RUN_GROUP"]))
        return SimpleNamespace(poll=lambda: 0)

    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    monkeypatch.setattr(sweeps, "started", start)
    into = tmp_path / "mine-rounds"
    for each in plan.rounds(plan.recipe_of(RECIPE, []), [], into, asked(), 0.1, 20):
        carry_out.train(each, ["--gpus", "1"], carry_out.deque())
    assert {group for _, group in started} == {"mine-rounds"} and len(started) == 4
    command = started[1][0]
    assert command[1:6] == ["scripts/launch.py", "--recipe", RECIPE, "--gpus", "1"]
    assert f"--output_dir={into}/round-2" in command


def measured(
    rewards: list[float], nats: float, base: float = 0.0, tokens: float = 10, ended=1.0
) -> dict:
    """As measured.py has it, of a judge that scores, with an answer to each prompt."""

    def around(mean: float, width: float = 0.1) -> dict:
        return {"mean": mean, "low": mean - width, "high": mean + width}

    sides = {"policy": np.mean(rewards), "against": base, "difference": np.mean(rewards) - base}
    length = {"policy": around(tokens), "against": around(10), "difference": around(tokens - 10)}
    each = {"policy": [[value] for value in rewards], "against": [[base] for _ in rewards]}
    return {
        "prompts": {"count": len(rewards), "samples": 1},
        "answers": {"mean_tokens": length, "kl": {"nats_per_sequence": around(nats)}}
        | {"finished": {"policy": around(ended), "against": around(1.0)}},
        "judge": {"name": "vader", "reward": {k: around(float(v)) for k, v in sides.items()}}
        | {"rewards": each, "win_rate": around(0.5)},
        "preferred": [[float(value > base)] for value in rewards],
    }


def found_of(**policies: dict) -> dict:
    rounds = {
        name.replace("_", "-"): {"pairs": {"train": 8, "test": 1}, "prompts": "1 to 9"}
        | {"measured": of}
        for name, of in policies.items()
    }
    return {"how": {}, "rounds": rounds}


def test_the_verdict_says_who_wins_and_how_far_it_went():
    rng = np.random.default_rng(0)
    low, high = (rng.normal(mean, 0.1, 40).tolist() for mean in (0.4, 0.7))
    won = found_of(round_1=measured(low, 2), round_2=measured(high, 5), offline=measured(low, 3))
    tone, said = verdict(won)
    assert tone == "up"
    assert said[0].startswith("Two rounds reach more than one offline run on as many pairs in true")
    assert "they have gone further for it" in said[1]
    assert "each beyond noise" in said[2]
    lost = found_of(round_1=measured(low, 2), round_2=measured(low, 3), offline=measured(high, 3))
    tone, said = verdict(lost)
    assert tone == "down" and said[0].startswith("Two rounds reach less than one offline run")
    assert "further" not in said[1] and "beyond noise in round-1 alone" in said[2]
    even = found_of(round_1=measured(low, 2), offline=measured([*reversed(low)], 2))
    tone, said = verdict(even)
    assert tone == "dim" and said[0].startswith("One round does not win over one offline run")
    alone = found_of(round_1=measured(high, 2))
    assert verdict(alone)[1][0].startswith("One round reaches more than the start in true reward")


def test_the_verdict_says_at_which_price():
    high = np.linspace(0.5, 0.9, 40).tolist()
    last = measured(high, 2, tokens=20, ended=0.25)
    found = found_of(round_1=last, offline=measured(high, 2))
    found["rounds"]["offline"]["pairs"]["train"] = 5
    said = " ".join(verdict(found)[1])
    assert "are much longer: 10 → 20 tokens. 75% of them were cut before they ended" in said
    assert "The start's answers made 5 pairs, fewer than the 8 of all rounds." in said


def test_a_judge_that_compares_gives_win_rates():
    of = measured([0.5] * 20 + [-0.5] * 4, 2)
    of["judge"] |= {"name": "http://judge/v1", "reward": None, "rewards": None}
    of["judge"] |= {"win_rate": {"mean": 20 / 24, "low": 0.7, "high": 0.95}}
    found = found_of(round_1=of)
    assert verdict(found)[1][0].startswith("One round reaches more than the start in win rate")
    delta = numbers.difference(found, "round-1", numbers.START)
    assert (delta.mean, delta.low, delta.high) == pytest.approx((20 / 24 - 0.5, 0.2, 0.45))
    head, start, first = numbers.table(found)
    assert head[1] == "win rate against the start" and start[1] == "0.5"
    assert first[1].startswith("0.833 (")


def test_prompts_that_a_judge_left_out_are_in_no_difference():
    some = measured([0.1, 0.2, 0.3, 0.9], 2)
    some["judge"]["rewards"]["policy"][3] = [None]
    found = found_of(round_1=some, offline=measured([0.0, 0.0, 0.0, 5.0], 2))
    assert numbers.difference(found, "round-1", "offline").mean == pytest.approx(0.2)
