"""What `make train` launches on which machine, and what it refuses."""

import json
import platform
import subprocess
import sys

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT, launch, run

import launch as launcher
from dpo import output
from dpo.recipe import parse

CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))


@pytest.mark.parametrize(
    ("gpus_here", "config", "gpus", "chosen"),
    [
        (0, "", "", ("cpu", 1, True)),
        (1, "", "", ("single_gpu", 1, False)),
        (8, "", "", ("zero2", 8, False)),
        (8, "", "1", ("single_gpu", 1, False)),
        (8, "zero3", "4", ("zero3", 4, False)),
        (8, "single_gpu", "", ("single_gpu", 1, False)),
        (8, "cpu", "", ("cpu", 1, True)),
        (0, "zero3", "2", ("zero3", 2, True)),
        (0, "ddp", "2", ("ddp", 2, True)),
    ],
)
def test_the_config_is_what_the_machine_has(monkeypatch, gpus_here, config, gpus, chosen):
    monkeypatch.setattr(launcher, "gpus_here", lambda: gpus_here)
    assert launcher.choose(config, gpus) == chosen


@pytest.mark.parametrize(
    ("gpus_here", "config", "gpus", "words"),
    [
        (0, "", "many", "GPUS=many is not a number"),
        (0, "", "0", "GPUS=0 is not a number"),
        (0, "cpu", "2", "CONFIG=cpu runs one process"),
        (0, "fsdp2", "2", "CONFIG=fsdp2 needs a GPU and none is here"),
        (0, "single_gpu", "", "CONFIG=single_gpu needs a GPU"),
        (2, "zero2", "8", "GPUS=8, but this machine has 2"),
    ],
)
def test_what_the_machine_cannot_run_is_refused(monkeypatch, gpus_here, config, gpus, words):
    monkeypatch.setattr(launcher, "gpus_here", lambda: gpus_here)
    with pytest.raises(SystemExit, match=words):
        launcher.choose(config, gpus)


def test_a_machine_is_told_its_place_among_others():
    assert launcher.across("1", "", "") == (1, [])
    nodes, flags = launcher.across("4", "3", "[::1]:29500")
    assert nodes == 4
    assert flags[:6] == [
        *("--machine_rank", "3", "--main_process_ip", "[::1]", "--main_process_port", "29500"),
    ]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (("some", "0", "a:1"), "NODES=some is not a number"),
        (("2", "", "a:1"), "NODE_RANK= is not this machine's number: .* up to 1 on the last"),
        (("2", "2", "a:1"), "NODE_RANK=2 is not this machine's number"),
        (("2", "0", ""), "MAIN= is not host:port"),
        (("2", "0", "host"), "MAIN=host is not host:port"),
    ],
)
def test_a_machine_without_a_place_does_not_start(place, words):
    with pytest.raises(SystemExit, match=words):
        launcher.across(*place)


def test_several_machines_do_not_run_a_config_of_one_process():
    result = launch("--config=cpu", "--nodes=2", "--node_rank=0", "--main=localhost:1")
    assert result.returncode != 0
    assert "CONFIG=cpu runs one process: for NODES=2" in result.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_load_and_state_no_value_twice(path):
    config = load_config_from_file(str(path))
    keys = yaml.safe_load(path.read_text())
    # Precision and batch come from the recipe, the number of processes from make.
    assert keys.keys() <= {"distributed_type", "use_cpu", "deepspeed_config", "fsdp_config"}
    if "deepspeed_config" in keys:
        plugin = config.deepspeed_config
        assert plugin.keys() <= {"deepspeed_config_file", "zero3_init_flag"}
        shards = json.loads((ROOT / plugin["deepspeed_config_file"]).read_text())
        assert shards["zero_optimization"]["stage"] == int(path.stem.removesuffix("_offload")[-1])
        for key in ("train_batch_size", "gradient_accumulation_steps", "gradient_clipping"):
            assert shards[key] == "auto"
        assert shards["bf16"] == {"enabled": "auto"}


def test_every_deepspeed_config_is_used():
    used = {path.stem for path in CONFIGS if "deepspeed" in path.read_text()}
    assert used == {path.stem for path in (ROOT / "deepspeed_configs").glob("*.json")}


def test_a_finished_run_is_answered_at_once(tmp_path):
    """`make train` in a copy where the default recipe has finished; nothing heavy is loaded."""
    for name in ("scripts", "recipes", "accelerate_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    folder = tmp_path / "outputs/smollm2-sentiment"
    folder.mkdir(parents=True)
    recipe = parse(["--config", "recipes/smollm2-sentiment.yaml"])
    settings = {"recipe": recipe.name, **output.settings(recipe)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    (folder / "report.json").write_text("{}")
    result = run("env", "-C", tmp_path, sys.executable, "-X", "importtime", "scripts/launch.py")
    assert "| yaml" in result.stderr and "torch" not in result.stderr
    assert result.returncode == 0 and "is trained and evaluated" in result.stdout
    assert "accelerate launch" not in result.stdout


def test_list_shows_every_recipe_and_config():
    output = launch("--list").stdout
    for folder in ("recipes", "accelerate_configs"):
        for path in (ROOT / folder).glob("*.yaml"):
            assert f"  {path.stem} " in output


def faults(environment: dict) -> int:
    """Page faults of work that frees and asks for the same 80 MB ten times over."""
    code = (
        "import resource, torch\n"
        "x = torch.ones(20_000_000)\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "x * 2\n"
        "before = faults()\n"
        "for _ in range(10): x * 2\n"
        "print(faults() - before)"
    )
    command = [sys.executable, "-c", code]
    return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


def test_on_a_cpu_freed_memory_is_kept(monkeypatch):
    """A launch hands on what makes the C library keep it, and does not overrule the user."""
    launched = []
    monkeypatch.setattr(launcher, "gpus_here", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["launch.py", "--recipe=qwen-ultrafeedback"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)

    monkeypatch.setattr(launcher, "run", lambda command, env: launched.append(env))
    for mine in (None, "glibc.malloc.check=0"):
        if mine:
            monkeypatch.setenv("GLIBC_TUNABLES", mine)
        with pytest.raises(SystemExit):
            launcher.main()
    assert launched[1]["GLIBC_TUNABLES"] == "glibc.malloc.check=0"
    monkeypatch.undo()
    assert faults(launched[0]) < 1000
    if platform.libc_ver()[0] == "glibc":
        assert faults(launched[0] | {"GLIBC_TUNABLES": ""}) > 10_000
