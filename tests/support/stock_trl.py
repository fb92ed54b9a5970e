"""TRL's own DPO tests with this trainer in DPOTrainer's place: what stock passes, it passes too.

    make test-trl TRL=../trl                      # a checkout of TRL; ARGS="-k iterable" for some

The tests are run twice, with stock and with ours, on the TRL that is installed. Their tiny models
and data come from the hub; where it is out of reach, from folders of those names in the checkout.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TESTS = "tests/test_dpo_trainer.py"
SCRIPTS = Path(__file__).parents[2] / "scripts"


class Outcomes:
    """What became of every test, by its name: passed, failed, skipped; or stopped, by the monitors,
    where stock goes on with numbers that are none (alerts.py)."""

    def __init__(self):
        self.of: dict[str, str] = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            stopped = "Refusal: not finite" in report.longreprtext
            self.of[report.nodeid] = "stopped" if stopped else report.outcome


def run(trainer: str, told: str, more: list[str]) -> None:
    """Run the tests of the checkout that is the working directory, and write their outcomes."""
    import trl  # before its checkout comes first on the path

    if trainer == "ours":
        sys.path.insert(0, str(SCRIPTS))
        from dpo.training.trainer import FastDPOTrainer

        class DPOTrainer(FastDPOTrainer):
            def __init__(self, *args, **kwargs):
                cache = tempfile.mkdtemp()
                super().__init__(*args, share_prefix=True, reference_cache=cache, **kwargs)

        trl.DPOTrainer = DPOTrainer
    outcomes = Outcomes()
    pytest.main([TESTS, "-q", "--tb=short", "-p", "no:cacheprovider", *more], plugins=[outcomes])
    Path(told).write_text(json.dumps(outcomes.of))


def main(checkout: str, *more: str) -> None:
    if not Path(checkout, TESTS).is_file():
        raise SystemExit(f"no {TESTS} in {checkout or 'TRL='}: name a checkout of TRL with TRL=")
    outcomes = {}
    for trainer in ("stock", "ours"):
        print(f"\nTRL's tests with the trainer: {trainer}", flush=True)
        with tempfile.NamedTemporaryFile() as told:
            command = [sys.executable, Path(__file__).resolve(), "--run", trainer, told.name]
            subprocess.run([*command, *more], cwd=checkout, check=True)
            outcomes[trainer] = json.loads(Path(told.name).read_text())
    passed = [name for name, outcome in outcomes["stock"].items() if outcome == "passed"]
    ours = {name: outcomes["ours"].get(name) for name in passed}
    lost = [name for name, outcome in ours.items() if outcome not in ("passed", "stopped")]
    print("\nStopped, where stock trains on nan:", *(n for n in ours if ours[n] == "stopped"))
    print(f"Stock passes {len(passed)} of {len(outcomes['stock'])}; of these ours fails:", *lost)
    if lost or not passed:
        raise SystemExit(f"{len(lost)} fail with ours" if lost else "stock passes none of them")
    print("none")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(*sys.argv[2:4], sys.argv[4:])
    else:
        main(*(sys.argv[1:] or [""]))
