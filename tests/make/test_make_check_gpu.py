"""make check-gpu from end to end, on a CPU."""

import json

import check_gpu
from dpo.speed import gpu_plan
from dpo.speed.gpu_checks import Job
from support.commands import make


def test_the_whole_check_runs_on_a_cpu(tiny_model, tiny_data, tmp_path):
    """But for its part `plan`, of which one case is below and the others in tests/speed."""
    folder = tmp_path / "check"
    given = f"--small --model {tiny_model} --data {tiny_data} --output {folder} --minutes 60"
    given += f" --only {' '.join(name for name in check_gpu.PARTS if name != 'plan')}"
    result = make("check-gpu", "DEVICE=cpu", f"ARGS={given}")
    logs = "".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
    assert result.returncode == 0, result.stdout[-5000:] + logs
    found = json.loads((folder / "check-gpu.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert found["machine"] and found["versions"]["torch"]
    assert {row["outcome"] for row in rows.values()} == {"passed", "skipped"}
    assert all(
        "on a GPU only" in row["measured"] or "compiler" in row["measured"]
        for row in rows.values()
        if row["outcome"] == "skipped"
    )
    (resumed,) = [row for name, row in rows.items() if name.startswith("killed after checkpoint-")]
    assert "equal to the bit" in resumed["measured"]
    for name in ("zero2: losses of cpu", "zero3: losses of cpu", "QLoRA: merged"):
        assert rows[name]["outcome"] == "passed"
    assert sum(row["seconds"] for row in rows.values()) < 60 * found["minutes"]
    table = (folder / "check-gpu.md").read_text()
    assert all(f"| {name} |" in table for name in rows)


def test_a_launched_case_is_as_planned(tmp_path, monkeypatch):
    (case,) = [case for case in gpu_plan.CASES if case.config == "zero3"]
    monkeypatch.setattr(gpu_plan, "CASES", [case])
    (row,) = check_gpu.plan(Job("cpu", tmp_path, "", tmp_path, small=True))
    assert row.outcome == "passed" and row.name.endswith("zero3 of one process: memory"), row
