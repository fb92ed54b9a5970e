"""Plans held against what training takes: on a CPU, where operations are counted, and what becomes
of what a GPU would say."""

import gc
import json
import sys
from dataclasses import replace
from unittest.mock import patch

import pytest
from bitsandbytes.nn import Params4bit

from dpo.plan.arithmetic import memory, peak
from dpo.plan.cards import Card
from dpo.speed import gpu_plan, planned_cases
from dpo.speed.gpu_checks import Job
from dpo.speed.planned_cases import CASES, FOUND

# Those of several processes are in tests/make; a live reference is trained once for several tests.
HERE = ("0.6B, one micro-batch a step", "0.6B, checkpointing", "0.6B, prompts twice and padding")
HERE += ("0.6B, LoRA", "8B, LoRA, checkpointing", "8B, QLoRA")
BY_NAME = {case.name: case for case in CASES}
GB = 1e9


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    folder = tmp_path_factory.mktemp("check")
    return Job("cpu", folder, "", folder, small=True)


def asked(case, job: Job):
    """A case's plan, its micro-batches, and what the plan says of them."""
    plan = gpu_plan.planned(case, Card("a CPU", 1e15), job)
    batches = gpu_plan.batches_of(case, plan.shared, job.small)
    return plan, batches, gpu_plan.predicted(plan, case, batches, on_gpu=False)


@pytest.mark.parametrize("name", HERE)
def test_a_plan_says_what_training_takes(name, job):
    """Model, optimizer and reference to the bytes of the batches, and the peak."""
    _, batches, says = asked(BY_NAME[name], job)
    found = planned_cases.measured(BY_NAME[name], batches, "cpu", small=True)
    (row,) = gpu_plan.rows(BY_NAME[name], says, found, job)
    assert row.outcome == "passed", row
    assert found["loaded"] == pytest.approx(says["loaded"], rel=0.01)
    assert found["standing"] == pytest.approx(says["standing"], rel=0.02, abs=1e6)


def test_a_case_leaves_no_weights_behind(job):
    """Of those in 4 bits something is still held, and would be missing from the next one's peak."""
    case = BY_NAME["8B, QLoRA, checkpointing"]
    _, batches, _ = asked(case, job)
    planned_cases.measured(case, batches, "cpu", small=True)
    held = [each for each in gc.get_objects() if isinstance(each, Params4bit)]
    assert sum(each.nbytes for each in held) == 0


@pytest.fixture(scope="module")
def trained(job):
    case = BY_NAME["0.6B, reference live"]
    plan, batches, _ = asked(case, job)
    batches = batches // 2 + 1  # that activations are not nearly all of it
    return case, plan, batches, planned_cases.measured(case, batches, "cpu", small=True)


def test_a_plan_with_all_terms_passes(trained, job):
    case, plan, batches, found = trained
    says = gpu_plan.predicted(plan, case, batches, on_gpu=False)
    (row,) = gpu_plan.rows(case, says, found, job)
    assert row.outcome == "passed", row


@pytest.mark.parametrize("term", ["policy", "gradients", "optimizer", "reference"])
def test_a_plan_without_a_term_fails(term, trained, job, monkeypatch):
    case, plan, batches, found = trained
    right = memory.standing
    for module in (memory, peak):
        monkeypatch.setattr(module, "standing", lambda *given: right(*given) | {term: 0.0})
    says = gpu_plan.predicted(plan, case, batches, on_gpu=False)
    (row,) = gpu_plan.rows(case, says, found, job)
    assert row.outcome == "failed", row


def test_a_plan_of_fewer_activations_fails(trained, job):
    case, plan, batches, found = trained
    says = gpu_plan.predicted(plan, case, batches // 2, on_gpu=False)
    (row,) = gpu_plan.rows(case, says, found, job)
    assert row.outcome == "failed", row


def test_the_longest_micro_batch_ends_the_second_step(job):
    for name, shared in (("0.6B", True), ("0.6B, prompts twice and padding", False)):
        case = BY_NAME[name]
        batches = gpu_plan.batches_of(case, shared, small=False)
        assert batches.shape == (gpu_plan.STEPS * case.parts, planned_cases.MICRO, 3)
        wide = (batches[..., 0] + batches[..., 1:].max(axis=2)).max(axis=1)
        tokens = batches.sum(axis=(1, 2)) if shared else wide
        assert tokens[case.parts : 2 * case.parts][0 if shared else -1 :].max() == tokens.max()
        assert tokens[: case.parts].max() < tokens.max()


def test_on_a_gpu_memory_and_time_are_judged(job):
    case, there = BY_NAME["0.6B"], replace(job, device="cuda")
    says = {"loaded": 2 * GB, "standing": 7 * GB, "peak": 10 * GB, "seconds": 8.0}

    def outcomes(peak: float, seconds: float) -> list[str]:
        found = says | {"peak": peak * GB, "seconds": seconds}
        return [row.outcome for row in gpu_plan.rows(case, says, found, there)]

    assert outcomes(10.9, 10.3) == outcomes(9.1, 5.7) == ["passed", "passed"]
    assert outcomes(11.1, 10.5) == outcomes(8.9, 5.5) == ["failed", "failed"]
    unknown = gpu_plan.rows(case, says | {"seconds": None}, says, there)  # speed of the card
    assert [row.outcome for row in unknown] == ["passed", "skipped"]
    memory_row, time_row = gpu_plan.rows(case, says, says | {"peak": 9.5 * GB}, there)
    assert memory_row.measured == "9.50 GB at peak, -5.0%; 2.00 loaded, 7.00 after step 1"
    assert memory_row.bound == "10.0 GB, ± 10%; 2.00, 7.00"
    assert (time_row.measured, time_row.bound) == ("1 s a step, +0.0%", "1 s, ± 30%")


def test_what_a_card_does_not_hold_is_not_run(job, monkeypatch):
    monkeypatch.setattr(gpu_plan, "CASES", [BY_NAME["0.6B"]])
    monkeypatch.setattr(gpu_plan.cards, "here", lambda: Card("small", 0.5 * GB, 1e12))
    monkeypatch.setattr(
        gpu_plan, "findings", lambda cases, job: iter([{"error": "?"}] * len(cases))
    )
    (row,) = gpu_plan.plan(replace(job, device="cuda"))
    assert row.outcome == "not run" and row.measured.startswith("needs 0.")
    assert row.measured.endswith(" GB of 0.500")


def test_a_case_that_ends_its_process_fails_and_the_next_goes_on(job, monkeypatch, capfd):
    """Killed, or with an error, of which nothing is known of the process's state."""
    acts = {
        "good": f"print({FOUND!r} + '{{\"peak\": 1}}', flush=True)",
        "killed": "print('an illegal access'); sys.stdout.flush(); os.kill(os.getpid(), 9)",
        "wrong": f'print({FOUND!r} + \'{{"error": "no memory"}}\', flush=True); sys.exit(1)',
    }
    begun = []

    def process(cases, job):
        begun.append([name for name, _ in cases])
        code = "\n".join(["import os, sys", *(acts[name] for name, _ in cases)])
        return [sys.executable, "-c", code], {}

    monkeypatch.setattr(gpu_plan, "process", process)
    names = ["good", "killed", "good", "wrong", "good"]
    found = [*gpu_plan.findings([(name, None) for name in names], job)]
    assert found == [
        {"peak": 1},
        {"error": "an illegal access"},
        {"peak": 1},
        {"error": "no memory"},
        {"peak": 1},
    ]
    assert begun == [names, names[2:], names[4:]]


def test_a_process_says_what_it_measured_and_ends_with_the_first_error(monkeypatch, capsys, job):
    cases = [(vars(case), [[[1, 2, 3]]]) for case in CASES[:3]]
    told = iter([{"peak": 5}, ValueError("not\nso")])

    def measured(*given):
        if isinstance(found := next(told), Exception):
            raise found
        return found

    with patch.object(planned_cases, "measured", measured), pytest.raises(SystemExit):
        planned_cases.main(json.dumps({"device": "cpu", "small": True, "cases": cases}))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(FOUND)]
    assert [json.loads(line.removeprefix(FOUND)) for line in lines] == [
        {"peak": 5},
        {"error": "ValueError: not"},
    ]


def test_the_cases_are_those_that_a_plan_must_be_right_about():
    kinds = [(case.model.rpartition("-")[2], case.config, " ".join(case.flags)) for case in CASES]
    for model, *words in (
        ("0.6B", "checkpointing false"),
        ("0.6B", "checkpointing true"),
        ("0.6B", "precompute_ref_log_probs=false"),
        ("0.6B", "share_prefix=false"),
        ("0.6B", "use_peft"),
        ("1.7B", "checkpointing false"),
        ("1.7B", "checkpointing true"),
        ("8B", "use_peft", "checkpointing true"),
        ("8B", "load_in_4bit", "checkpointing true"),
        ("8B", "load_in_4bit", "checkpointing false"),
    ):
        assert any(
            name == model and config == "single_gpu" and all(word in flags for word in words)
            for name, config, flags in kinds
        ), (model, words)
    assert {config for _, config, _ in kinds} >= {"zero2", "zero3"}
