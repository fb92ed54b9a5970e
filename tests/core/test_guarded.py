"""Whatever is raised, a command ends with one line; of several processes one says it, once."""

import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from dpo.core import environment, quiet
from dpo.core.environment import TOLD_IN
from dpo.core.refusal import Refusal
from dpo.core.signals import has_refused
from dpo.core.terminal import guarded, without_debug
from support.place import ROOT


def fails_in_a_library():
    json.loads("{")


def fails_in_torch():
    torch.ones(2) @ torch.ones(3)


def fails_here():
    return [].pop()


def is_wrong_here():
    assert environment.without_ranks({}) == 1, "two and two are five"


def is_asked_to_end():
    raise KeyboardInterrupt


def line(main, *argv: str) -> str | int:
    before = sys.argv
    sys.argv = ["test.py", *argv]
    try:
        with pytest.raises(SystemExit) as stop:
            guarded(main)()
    finally:
        sys.argv = before
    return stop.value.code


def here(main):
    """As if it stood in scripts/."""
    main.__code__ = main.__code__.replace(co_filename=environment.__file__)
    return main


FAULTS = {
    "a library": (
        here(fails_in_a_library),
        "^JSONDecodeError: Expecting .* json says so as",
    ),
    "another": (here(fails_in_torch), "^RuntimeError: .* a fault of a library or of this"),
    "this repository": (
        here(fails_here),
        "^IndexError: pop from empty list. That is a fault of this",
    ),
    "an assertion": (
        here(is_wrong_here),
        "^AssertionError: two and two are five.* That is a fault",
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_no_check_foresaw_is_one_line_and_a_file(what, capsys):
    main, words = FAULTS[what]
    said = line(main)
    assert re.search(words, said) and "\n" not in said
    file = Path(re.search(r"its traceback is in (\S+),", said)[1])
    assert "Traceback (most recent call last)" in file.read_text()
    file.unlink()
    assert "Traceback" not in capsys.readouterr().err


def test_the_file_holds_no_secret(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "a-long-secret")

    def main():
        raise OSError("it is a-long-secret")

    said = line(main)
    file = Path(re.search(r"its traceback is in (\S+),", said)[1])
    assert "a-long-secret" not in said + file.read_text() and "it is ***" in file.read_text()
    file.unlink()


def test_with_debug_the_terminal_shows_it(monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", {**os.environ})
    assert "its traceback is above" in line(fails_in_a_library, "--debug", "--beta", "1")
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    # transformers has an argument of that name.
    theirs = ["--debug", "underflow_overflow"]
    assert without_debug(theirs) == (theirs, False)
    assert without_debug(["--beta", "1", "--debug"]) == (["--beta", "1"], True)


def test_ctrl_c_is_no_fault(capsys):
    assert line(is_asked_to_end) == 130 and capsys.readouterr().err == ""


def test_of_several_processes_one_says_it(monkeypatch, tmp_path):
    def main():
        raise Refusal("beta is -1: give more")

    monkeypatch.setenv(TOLD_IN, str(tmp_path))
    assert not has_refused(tmp_path)
    assert [line(main), line(main), line(fails_in_a_library)] == ["beta is -1: give more", 1, 1]
    assert has_refused(tmp_path)
    monkeypatch.setenv(TOLD_IN, str(tmp_path / "gone"))  # with its launcher: said all the same
    assert line(main) == "beta is -1: give more"


LEFT_OVER = {
    "torchrun": {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"},
    "mpirun": {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"},
    "srun": {"PMI_SIZE": "8", "PMI_RANK": "3"},
    "accelerate": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "fp16"},
    "FSDP": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "an agent": {"TORCHELASTIC_RUN_ID": "1", "GROUP_RANK": "1", "ROLE_WORLD_SIZE": "2"},
}


@pytest.mark.parametrize("whose", LEFT_OVER)
def test_a_process_that_is_alone_forgets_ranks(monkeypatch, whose):
    kept = {"PATH": "/bin", "ACCELERATE_USE_CPU": "true", "SLURM_JOB_ID": "1", "WANDB_RANK_x": "1"}
    monkeypatch.setattr(os, "environ", kept | LEFT_OVER[whose])
    seen = []
    guarded(lambda: seen.append({**os.environ}))()
    assert seen == [kept]
    assert environment.without_ranks(kept | LEFT_OVER[whose]) == kept  # as launch.py hands it on


def test_what_python_found_before_it_finds_beside_this_package(tmp_path):
    (tmp_path / "found_before.py").touch()
    given = environment.finding_us({**os.environ, "PYTHONPATH": str(tmp_path)})
    program = [sys.executable, "-c", "import dpo, found_before"]
    assert subprocess.run(program, env=given, cwd=tmp_path).returncode == 0
    others = [*ROOT.glob("scripts/**/*.py")]
    sets_it = {path.name for path in others if '"PYTHONPATH"' in path.read_text()}
    assert sets_it == {"environment.py"}, "a process of ours is given it by finding_us"


@pytest.mark.parametrize("whose", ["torchrun", "mpirun", "srun"])
def test_nobody_waits_for_processes_that_are_not_started(monkeypatch, whose):
    monkeypatch.setattr(os, "environ", {"PATH": "/bin"} | LEFT_OVER[whose])
    with pytest.raises(SystemExit, match=r"SIZE=\d in the environment, and no launcher"):
        environment.check_ranks()
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
    environment.check_ranks()


def test_libraries_say_nothing_of_themselves(caplog, capsys):
    """Whatever is newer, faster or will be otherwise; what a user can change is said."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        quiet.hush()
        for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning, UserWarning):
            warnings.warn("of a library", category, stacklevel=1)
        warnings.warn("'pin_memory' argument is set as true but", stacklevel=1)
        logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "no")
        logger.warning("this CPU computes wrongly")
        for keys in (["lm_head.weight"], ["lm_head.weight", "model.norm.weight"]):
            loaded = f"There were missing keys in the checkpoint model loaded: {keys}."
            logging.getLogger("transformers.trainer").warning(loaded)
        print("[INFO] Running in WANDB offline mode")  # transformers, as it is imported
        print("[INFO] Running", torch.ones(2), end=".")
    assert capsys.readouterr().out == "[INFO] Running tensor([1., 1.])."
    assert [warning.category for warning in caught] == [UserWarning]
    assert caplog.messages == ["this CPU computes wrongly", loaded]


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "scripts").glob("*.py")))
def test_every_command_ends_with_one_line_and_hushes_first(script):
    """Before any library that speaks as it is imported."""
    text = (ROOT / f"scripts/{script}.py").read_text()
    assert re.search(r"^@(partial\()?guarded", text, re.MULTILINE)
    heavy = re.search(
        r"^(import|from) (torch|trl|datasets|peft|accelerate|transformers)", text, re.M
    )
    first = re.search(r"^(?:import|from) (dpo)\b", text, re.MULTILINE)
    assert not heavy or first.start() < heavy.start()


def test_the_tests_hush_first():
    """They say the same where a test fails as anywhere."""
    text = (ROOT / "tests/conftest.py").read_text()
    assert text.index("import dpo ") < text.index("from transformers")


def test_who_has_read_enough_ends_no_command_with_an_error():
    command = f"{sys.executable} scripts/launch.py -- --help | head -1; echo ${{PIPESTATUS[0]}}"
    said = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert said.stderr == "" and said.stdout.splitlines()[-1] == "0"


def test_imports_between_an_answer_and_the_command_itself_look_for_no_cycles():
    script = (
        "import gc; from dpo.core.terminal import at_once, guarded; seen = []; "
        "at_once(lambda: seen.append(gc.isenabled())); seen.append(gc.isenabled()); "
        "guarded(lambda: seen.append(gc.isenabled()))(); print(*seen, gc.get_freeze_count() > 0)"
    )
    command = [sys.executable, "-c", script]
    at = {"cwd": ROOT / "scripts", "text": True, "check": True}
    assert subprocess.run(command, capture_output=True, **at).stdout == "True False True True\n"
