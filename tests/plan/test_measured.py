"""What runs measure of themselves, their plans beside it, and what is said where memory ran out."""

import copy
import json
import os
import re
import shutil
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch

from dpo.core.refusal import Refusal
from dpo.core.signals import tell_full, was_full
from dpo.plan.ask import Asked
from dpo.plan.auto import handed
from dpo.plan.cards import CARDS, card
from dpo.plan.measured import beside, full, measure, words
from dpo.plan.measured.measure import Measure, with_earlier
from dpo.recipe.parse import parse
from dpo.reports.results import headline
from dpo.runs import output_folder
from support.commands import at_once
from support.launched import forked
from support.place import ROOT
from support.planned import told
from support.tiny import trainer_of

SEVEN = "zephyr-7b-ultrafeedback"
FAILS = ROOT / "tests/support/fails"


def test_a_run_leaves_what_it_measured_beside_its_plan(finished):
    folder, _, result = finished
    found = json.loads((folder / "measured.json").read_text())
    how, plan, terms = found["how"], found["plan"], found["terms"]
    assert how["config"] == "cpu" and (how["micro"], how["accumulation"]) == (2, 2)
    assert how["waits"] and not how["live"] and how["processes"] == 1
    assert found["steps"] == 4 and found["speed"]["steps"] == 2 and not found["uncounted"]
    for name in ("policy", "gradients", "optimizer"):
        assert terms[name] == pytest.approx(plan["stands"][name], rel=0.01), name
    assert terms["reference"] == terms["policy"], "it scores as pairs come, and is kept for them"
    assert 0.1e9 < found["peak"]["resident"] < 8e9 and plan["peak"] > 0
    step, pairs = found["speed"]["step_seconds"], found["speed"]["pairs_per_second"]
    assert step * pairs == pytest.approx(4), "of 4 pairs a step"
    report = json.loads((folder / "report.json").read_text())
    peak = report["measured"]["peak_gb"]
    assert peak["error"] == pytest.approx(peak["planned"] / peak["measured"] - 1)
    assert headline(report)["peak_gb"] == pytest.approx(found["peak"]["resident"] / 1e9)
    assert headline(report)["peak_gb_planned"] == peak["planned"]
    said = " ".join(result.stdout.replace("│", " ").split())
    page = (folder / "report.html").read_text()
    for each in (f"{peak['measured']:.2f} GB", f"the plan says {peak['planned']:.2f} GB"):
        assert each in said and each in page
    assert f"{pairs:.3g} pairs/s" in said and "Speed" in page


def test_a_run_is_planned_again_as_it_was_trained(finished):
    folder, *_ = finished
    result = told("--run", str(folder))
    assert result.returncode == 0, result.stderr
    lines = {line.split("  ")[0].strip(): line.split() for line in result.stdout.splitlines()}
    assert "CONFIG=cpu, 1 × cpu" in result.stdout and "2 pairs × 2 at a time" in result.stdout
    assert lines["policy"][-1] in ("+0%", "-0%") and lines["optimizer"][-1] in ("+0%", "-0%")
    rows = {r["name"]: r for r in json.loads(told("--run", str(folder), "--json").stdout)["rows"]}
    measured = json.loads((folder / "measured.json").read_text())
    assert rows["peak, resident"]["measured"] == measured["peak"]["resident"]
    rest = rows[beside.REST]["measured"] + sum(measured["terms"].values())
    assert rest == pytest.approx(measured["peak"]["resident"])


def test_what_is_no_measured_run_is_one_line(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "old/measured.json").unlink()
    (tmp_path / "none").mkdir()
    shutil.copytree(tmp_path / "old", tmp_path / "half")
    (tmp_path / "half/measured.json").write_text("{")
    sound = json.loads((finished[0] / "measured.json").read_text())
    (tmp_path / "run").mkdir()
    for at, value in (
        (("terms", "policy"), "a"),
        (("terms",), None),
        (("peak",), {}),
        (("peak", "resident"), 0),
        (("how", "processes"), 0),
        (("how", "card"), None),
        (("speed", "step_seconds"), "fast"),
        (("plan",), [1]),
    ):
        damaged = copy.deepcopy(sound)
        reduce(getitem, at[:-1], damaged)[at[-1]] = value
        (tmp_path / "run/measured.json").write_text(json.dumps(damaged))
        assert output_folder.measurements(tmp_path / "run") is None, at
    (tmp_path / "run/measured.json").write_text(json.dumps(sound))
    assert output_folder.measurements(tmp_path / "run") == sound
    for name, said in {
        "nowhere": "no run at RUN=",
        "none": "holds no run of this repository",
        "old": "has measured nothing: it ended before its second step",
        "half": "has measured nothing",
    }.items():
        line, code = at_once("plan.py", "--run", str(tmp_path / name))
        assert code == 1 and said in line and len(line.splitlines()) == 1, line


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--recipe", "qwen-ultrafeedback"), "RECIPE="),
        (("--gpu", "cpu", "--memory", "16"), "GPU= and MEMORY="),
        (("--nodes", "2"), "NODES="),
        (("--accelerate_config", "zero3"), "CONFIG="),
        (("--", "--beta", "0.2"), "ARGS="),
    ],
)
def test_a_run_is_asked_nothing_that_it_says_itself(finished, given, named):
    line, code = at_once("plan.py", "--run", str(finished[0]), *given)
    assert code == 1 and line.startswith(f"{named} beside RUN=: a run's plan is of its own recipe")


def test_a_run_whose_start_is_not_here_is_planned_by_what_it_has_left(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    settings = tmp_path / "run/recipe.yaml"
    settings.write_text(
        re.sub(r"model_name_or_path: .*", "model_name_or_path: /gone/model", settings.read_text())
    )
    how = output_folder.measurements(tmp_path / "run")["how"]
    here, there = (
        beside.of_folder(folder, how, 0.25)[1] for folder in (finished[0], tmp_path / "run")
    )
    assert here.stands == there.stands


def test_a_reference_that_was_not_there_is_told_from_one_of_no_size(finished):
    found = output_folder.measurements(finished[0])
    found["terms"]["reference"], found["plan"]["stands"]["reference"] = 0.0, 5e8
    told = beside.rows(found["plan"], found)
    rows = {row["name"]: row for row in told}
    planned, option = beside.of_folder(finished[0], found["how"], 0.25)
    said = words.conclusions(planned, option, found, told)
    assert sum(line.startswith("reference: there for some pairs") for line in said) == 1
    del found["terms"]["reference"]  # it could not be counted: that is another line
    assert not any("some pairs" in line for line in words.conclusions(planned, option, found, told))
    assert rows["reference"]["measured"] is rows[beside.REST]["measured"] is None
    assert rows["policy"]["measured"] and rows["peak, resident"]["measured"]


def test_of_what_shards_on_a_cpu_there_is_no_plan(finished):
    how = json.loads((finished[0] / "measured.json").read_text())["how"]
    with pytest.raises(Refusal, match="of CONFIG=zero2 there is no plan on a CPU"):
        beside.of_folder(finished[0], how | {"config": "zero2"}, 0.25)


def of_eight(folder: Path, peak: float, step: float) -> Path:
    """A run of a 7B model on eight H100s, as another machine would have left it."""
    recipe = parse(["--config", f"recipes/{SEVEN}.yaml", "--use_cpu", f"--output_dir={folder}"])
    output_folder.claim(recipe).close()
    asked = Asked(SEVEN, (), 8, 1, CARDS["H100-80GB"])
    option = asked.planned().option("zero2", False, True, 8, 4, 4)
    how = {"config": "zero2", "processes": 8, "micro": 4, "accumulation": 4, "live": False}
    how |= {"waits": False, "checkpointing": True}
    how["card"] = {"name": "NVIDIA H100 80GB HBM3", "memory": 84.97e9}
    allocated = option.peak - option.terms["CUDA"] - option.terms["slack"]
    seconds = asked.planned().step_seconds(option, 8)
    found = {"how": how, "steps": 300, "terms": option.stands, "uncounted": {}, "plan": None}
    found["peak"] = {"allocated": allocated * peak, "reserved": allocated * peak * 1.05}
    found["speed"] = {"steps": 298, "step_seconds": seconds * step}
    found["speed"]["pairs_per_second"] = 128 / seconds / step
    (folder / "measured.json").write_text(json.dumps(found))
    return folder


def test_a_run_of_eight_gpus_is_planned_again_where_there_is_none(tmp_path):
    good = told("--run", str(of_eight(tmp_path / "good", 1, 1)))
    assert good.returncode == 0, good.stderr
    assert "8 × NVIDIA H100 80GB HBM3 of 85.0 GB" in good.stdout
    assert "UltraFeedback's lengths" in good.stdout and "UTILISATION" not in good.stdout
    assert "MEMORY=" not in good.stdout and "peak, allocated" in good.stdout
    bad = told("--run", str(of_eight(tmp_path / "bad", 1.3, 1.5))).stdout
    assert "peak, allocated: the plan is 23% below what was measured" in bad
    assert "MEMORY=65 in place of 85" in bad and f"{beside.REST}: the plan is off by" in bad
    assert f"{beside.STEP}: it takes 1.5 times what the plan says" in bad
    # What it says to use from now on makes the plan say what was measured.
    utilisation = float(bad.split("UTILISATION=")[1].split()[0])
    again = told("--run", str(tmp_path / "bad"), "--utilisation", str(utilisation), "--json")
    (row,) = [r for r in json.loads(again.stdout)["rows"] if r["name"] == beside.STEP]
    assert abs(row["error"]) < 0.05


def test_a_step_that_nothing_explains_names_no_utilisation(tmp_path):
    folder = of_eight(tmp_path / "run", 1, 0.01)
    how = output_folder.measurements(folder)["how"]
    planned, option = beside.of_folder(folder, how, 0.25)
    took = planned.step_seconds(option, 8)
    assert beside.reached(planned, option, how, took) == pytest.approx(0.25)
    assert beside.reached(planned, option, how, took / 100) is None


def trained(folder: Path, measures: bool, seen: list, **more):
    how = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3} | more
    trainer = trainer_of(folder, "llama", fast=True, disable_dropout=False, **how)
    if measures:
        trainer.add_callback(Measure(trainer))
    trainer.train(resume_from_checkpoint=more.get("resume_from_checkpoint"))
    seen.append((trainer, torch.random.get_rng_state()))
    return trainer


@pytest.mark.parametrize("more", [{}, {"lora": True}, {"precompute_ref_log_probs": False}])
def test_measuring_changes_nothing(more, tmp_path):
    """Weights and random states, to the bit; of a run that goes on from a checkpoint too."""
    seen: list = []
    trained(tmp_path / "plain", False, seen, **more)
    one = trained(tmp_path / "measured", True, seen, **more)
    folder = Path(one.args.output_dir)
    found = output_folder.measurements(folder)
    (folder / "measured.json").unlink()
    checkpoint = str(folder / "checkpoint-3")
    trained(tmp_path / "measured", True, seen, resume_from_checkpoint=checkpoint, **more)
    (plain, states), *others = seen
    for other, ends in others:
        assert torch.equal(states, ends)
        for a, b in zip(plain.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(a, b)
    later = output_folder.measurements(folder)
    for each in (found, later):
        sizes = [p.nbytes for p in one.model.parameters() if p.requires_grad]
        assert each and each["terms"]["gradients"] == sum(sizes)
        assert each["terms"]["optimizer"] == pytest.approx(2 * sum(sizes), rel=0.01)
        whole = sum(p.nbytes for p in one.model.parameters())
        assert each["terms"]["reference"] == (0 if more.get("lora") or not more else whole)
    assert found and later and found["speed"]["steps"] == 3 and later["speed"] is None


def test_what_cannot_be_counted_is_said_and_the_run_goes_on(tmp_path, monkeypatch):
    def unknown(trainer):
        raise AttributeError("Wrapped has no state")

    monkeypatch.setitem(measure.storages.OWNERS, "optimizer", unknown)
    trainer = trained(tmp_path, True, [])
    found = output_folder.measurements(Path(trainer.args.output_dir))
    assert found and found["uncounted"] == {"optimizer": "Wrapped has no state"}
    assert "optimizer" not in found["terms"] and found["terms"]["policy"] > 0
    rows = beside.rows({"stands": {}, "terms": {}, "peak": 1e9, "step_seconds": 1}, found)
    (rest,) = [row for row in rows if row["name"] == beside.REST]
    assert rest["measured"] is None and rest["error"] is None


def test_a_folder_that_takes_no_file_ends_no_run(tmp_path, capsys):
    (tmp_path / "run/measured.json").mkdir(parents=True)
    assert trained(tmp_path, True, []).state.global_step == 5
    assert "Not kept: what the run measured of itself" in capsys.readouterr().out


def test_a_run_that_goes_on_keeps_the_most_of_both():
    how = {"config": "zero2", "processes": 2, "waits": True}
    before = {"how": how, "terms": {"policy": 7}, "uncounted": {}, "plan": {"peak": 9}}
    before |= {"peak": {"allocated": 5.0}, "speed": {"steps": 40}}
    now = {"how": how, "terms": {}, "uncounted": {}, "peak": {"allocated": 3.0}}
    now |= {"speed": None, "plan": None}
    kept = with_earlier(now, before)
    assert kept == before
    assert with_earlier(now | {"how": how | {"waits": False}}, before) == before
    other = now | {"how": how | {"processes": 4}}
    assert with_earlier(other, before) == other


def launched(tiny_flags: list[str], folder: Path, fails: str, plan: dict | None) -> str:
    """What launch.py says of a run on a CPU that fails, with a plan as it has on GPUs."""
    program = (
        "import json, sys, launch\n"
        "plan = json.loads(open(sys.argv.pop(1)).read())\n"
        "launch.by_the_plan = lambda *_: plan and (plan, plan['as_it_goes']['single_gpu'])\n"
        "launch.main()"  # which ends the process
    )
    (folder / "plan.json").write_text(json.dumps(plan))
    given = ["--accelerate_config", "cpu", "--", *tiny_flags]
    path = {"PYTHONPATH": f"{FAILS}{os.pathsep}{ROOT / 'scripts'}", "FAILS": fails}
    done = forked("launch", str(folder / "plan.json"), *given, first=program, **path)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stderr, done.stderr
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def plan() -> dict:
    result = told("--json", "--recipe", SEVEN, "--gpu", "H100-80GB", "--memory", "84")
    return json.loads(result.stdout)


def peak_of(plan: dict) -> float:
    return sum(plan["as_it_goes"]["single_gpu"]["terms"].values())


def test_out_of_memory_ends_with_the_plan_and_the_change(tiny_flags, tmp_path, plan):
    fitted = copy.deepcopy(plan)
    alike = ["--gradient_checkpointing", "true", "--precompute_ref_log_probs", "true"]
    fitted["flags"] = alike  # fewer ways, of which plan.py says in another process what fits
    fitted["as_it_goes"]["single_gpu"]["terms"] |= {"optimizer": 0.0, "policy": 0.0}
    fitted["as_it_goes"]["single_gpu"]["terms"]["activations"] += 80e9 - peak_of(fitted)
    said = launched(tiny_flags, tmp_path, "full", fitted)
    assert "out of memory, step 1, with 4 pairs" in said
    refused, _, rest = said.partition("The plan says 80.0 GB for CONFIG=single_gpu, of the 84.0 GB")
    assert "out of memory" in refused and "GB were allocated" in rest
    assert "with as much less memory as this run needed more" in rest
    assert rest.count("← taken") == 1
    assert f"Next: make train RECIPE={SEVEN} CONFIG=" in rest
    assert (tmp_path / "run/recipe.yaml").exists()


def test_a_process_that_the_system_killed_is_said_to_be(tiny_flags, tmp_path, plan):
    said = launched(tiny_flags, tmp_path, "killed", plan)
    assert "was killed (exit code 137), and did not say why" in said
    assert "The plan says" in said and "Next: make train" in said and "allocated" not in said


def test_changes_that_make_another_run_are_named_as_plans_name_them():
    named = [words for words, _ in Asked(SEVEN, (), 8, 1, CARDS["H100-80GB"]).changed()]
    for begins in full.ANEW:
        assert any(each.startswith(begins) for each in named), named


def test_by_how_much_the_plan_was_off_is_said(plan):
    way = plan["as_it_goes"]["single_gpu"]
    used, there = full.option_of(way), card("H100-80GB", "84")
    counted = used.peak - used.terms["CUDA"] - used.terms["slack"]
    said = full.needed({"allocated": 1.2 * counted}, used, there)
    assert "20% more than it says" in said
    said = full.needed({"allocated": 0.5 * counted, "asked": 2e9}, used, there)
    assert said.endswith(" GB were allocated, of its 137, when 2.0 GB more were asked for")
    said = full.needed({"allocated": 0.5 * counted, "elsewhere": 21e9}, used, there)
    assert "of the 84.0 GB that H100-80GB has, and 20.4 GB of that are of other processes" in said


@pytest.mark.parametrize(
    ("found", "room", "does"),
    [
        ({"killed": True}, 20, True),
        ({"killed": True, "machine": 2e12}, 20, False),
        ({"killed": True, "on": "libraries"}, 20, True),
        ({"killed": True, "on": "libraries"}, 9, False),  # forced
        ({"allocated": 5e9, "asked": 1e9}, 20, True),
        ({"allocated": 5e9, "asked": 1e9}, 9, False),  # by its plan it never fitted
        ({"allocated": 5e9, "asked": 18e9}, 20, False),  # it needs more than its plan says
        ({"allocated": 5e9, "asked": 1e9, "elsewhere": 12e9}, 20, False),
    ],
)
def test_a_run_that_fits_is_told_from_one_that_does_not(
    plan, found, room, does, capsys, monkeypatch
):
    """Where it fits, what to change is not the run."""
    monkeypatch.setattr(full, "plan_of", lambda *_, **__: "it is not looked at here")
    way = plan["as_it_goes"]["single_gpu"] | {"machine": found.get("machine", 0.0)}
    way |= {"terms": {"policy": 8e9, found.get("on", "CUDA"): 1e9, "slack": 1e9}, "peak": 10e9}
    there = plan | {"card": plan["card"] | {"memory": room * 1e9}}
    full.say(
        found, {}, "single_gpu", (there, way | {"flags": ["--gradient_checkpointing", "true"]})
    )
    said = " ".join(capsys.readouterr().err.split())
    assert ("That fits: something else had the memory" in said) == does
    if does:
        same = 'CONFIG=single_gpu GPUS=1 ARGS="--gradient_checkpointing true"'
        assert said.endswith(f"Next: make train RECIPE={SEVEN} {same}")


def test_where_no_way_of_the_plan_fits_another_change_is_named(plan, capsys, monkeypatch):
    """It needed more than the card has: the plan is made again with as much less memory."""
    way = plan["as_it_goes"]["single_gpu"]
    small = plan | {"card": plan["card"] | {"memory": 2 * peak_of(plan)}}
    given = []

    def plan_of(*where, **on):
        given.append((where, on))
        return {"command": "make train RECIPE=x", "change": "LoRA", "options": [way]}

    monkeypatch.setattr(full, "plan_of", plan_of)
    full.say({"allocated": 3 * peak_of(plan)}, {}, "single_gpu", (small, way))
    said = " ".join(capsys.readouterr().err.split())
    assert "← taken" not in said
    anew = "another run, which needs another --output_dir, or --restart"
    assert said.endswith(f"Next: make train RECIPE=x (it fits with LoRA: {anew})")
    memory = f"{peak_of(plan) / 1e9:.3f}"
    assert given == [
        ((SEVEN, 1, 1, []), {"gpu": "H100-80GB"} | {"memory": memory, "cpu_memory": "256.000"})
    ]


def test_the_plan_is_handed_on_to_the_run(plan):
    way = plan["as_it_goes"]["single_gpu"]
    (text,) = handed(way).values()
    assert json.loads(text).keys() == {"terms", "stands", "peak", "step_seconds"}
    assert json.loads(text)["step_seconds"] > 0 and handed(None) == {}


def test_what_a_process_found_reaches_its_launcher(tmp_path):
    assert was_full(tmp_path) is None
    tell_full(tmp_path, allocated=7)
    assert was_full(tmp_path) == {"allocated": 7}
    tell_full(None, allocated=7)
    tell_full(tmp_path / "gone", allocated=7)
