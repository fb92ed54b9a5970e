"""Runs of two machines, which meet on the loopback address."""

import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.commands import launch, run
from support.launched import free_port
from support.place import ROOT
from support.several import assert_learned_alike, ten_steps


@pytest.mark.parametrize("config", ["ddp", "zero3"])
def test_two_machines_learn_what_one_learns(config, one_process, tiny_model, tiny_data, tmp_path):
    """Two launches, each with its own rank, that meet on the loopback address."""
    folder = tmp_path / "run"
    flags = ten_steps(tiny_model, tiny_data, folder)
    together = ["--accelerate_config", config, "--gpus", "1", "--nodes", "2"]
    together += ["--main", f"127.0.0.1:{free_port()}"]
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(
            lambda rank: launch(*together, "--node_rank", rank, "--", *flags, OMP_NUM_THREADS="1"),
            ("0", "1"),
        )
    assert first.returncode == 0, first.stderr[-3000:]
    assert second.returncode == 0, second.stderr[-3000:]
    assert "2 pairs a device × 1 accumulated × 2 processes = 4 pairs" in first.stdout
    assert_learned_alike(folder, one_process("full"))


def not_shared(folder: Path | str) -> str:
    return (
        f"{folder} is not shared between the machines: "
        f"machine 1 ({platform.node()}) does not find in it what the first has written"
    )


def test_machines_that_share_no_working_directory_do_not_start(tiny_model, tiny_data, tmp_path):
    """Two launches that meet, each with folders of its own: one line says so on both."""
    together = [
        "--accelerate_config=ddp",
        "--gpus=1",
        "--nodes=2",
        f"--main=127.0.0.1:{free_port()}",
    ]

    def start(rank: str):
        place = tmp_path / rank
        place.mkdir()
        for name in ("scripts", "recipes", "accelerate_configs"):
            (place / name).symlink_to(ROOT / name)
        flags = ten_steps(tiny_model, tiny_data, Path("run"))
        command = (sys.executable, "scripts/launch.py", *together, "--node_rank", rank, "--")
        return run("env", "-C", place, *command, *flags, OMP_NUM_THREADS="1")

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(start, ("0", "1"))
    for result in (first, second):
        assert result.returncode != 0 and not_shared("run") in result.stderr
    assert not [*tmp_path.rglob(".shared-*")] and not [*tmp_path.rglob("*.safetensors")]


MACHINES = """
import os, sys
os.environ["GROUP_RANK"] = os.environ["RANK"]  # as if each process were a machine
sys.argv = [argument.replace("MACHINE", os.environ["RANK"]) for argument in sys.argv]
"""


@pytest.mark.parametrize("apart", ["output_dir", "reference_cache"])
def test_machines_that_share_no_folder_do_not_start(
    apart, launched, tiny_model, tiny_data, tmp_path
):
    flags = ten_steps(tiny_model, tiny_data, tmp_path / "run")
    flags += [f"--{apart}={tmp_path}/MACHINE/own"]
    result = launched(*flags, config="ddp", processes=2, first=MACHINES)
    assert result.returncode == 1 and not_shared(tmp_path / "1/own") in result.stderr
    assert not [*tmp_path.rglob(".shared-*")] and not [*tmp_path.rglob("*.safetensors")]
