"""What `make train` launches on which machine, and what it refuses."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

import launch as script
from dpo.recipe.parse import parse
from dpo.runs import launch as launcher
from dpo.runs import output_folder
from dpo.runs.output_folder import claim
from support.commands import at_once, launch, run
from support.place import ROOT

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


def launched(
    monkeypatch, gpus_here: int, *arguments: str, plan: dict | str = "none is asked for"
) -> tuple[list[str], dict[str, str]]:
    """The command and the environment that the launcher would run on such a machine."""
    ran = []
    monkeypatch.setattr(launcher, "gpus_here", lambda: gpus_here)
    monkeypatch.setattr(launcher, "run", lambda *given: ran.append(given[:2]))
    monkeypatch.setattr(script.auto, "plan_of", lambda *_, **__: plan)
    monkeypatch.setattr(sys, "argv", ["launch.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        script.main()
    if not ran:
        raise stop.value
    return ran[0]


@pytest.mark.parametrize(
    ("gpus_here", "config", "gpus", "named", "seen"),
    [
        (8, "", "1", None, "0"),
        (8, "single_gpu", "", None, "0"),
        (8, "zero2", "1", None, "0"),  # one process of a config of several is one process
        (8, "ddp", "3", None, "0,1,2"),
        (2, "single_gpu", "", "5, 3", "5"),
        (2, "zero3", "1", "GPU-8f3a,GPU-91c0", "GPU-8f3a"),
        (1, "", "", "MIG-8f3a,MIG-91c0", "MIG-8f3a,MIG-91c0"),  # CUDA shows one part to a process
        (8, "", "", None, None),
        (8, "cpu", "", None, None),
    ],
)
def test_a_run_sees_as_many_gpus_as_it_has_processes(
    monkeypatch, tmp_path, capsys, gpus_here, config, gpus, named, seen
):
    """One process that sees several would spread its model over them."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    arguments = ("--accelerate_config", config, "--gpus", gpus, "--", f"--output_dir={tmp_path}")
    _, environment = launched(monkeypatch, gpus_here, *arguments)
    assert environment.get("CUDA_VISIBLE_DEVICES") == seen
    said = f"CUDA_VISIBLE_DEVICES={seen} accelerate launch" in capsys.readouterr().out
    assert said == (seen is not None and seen != named)


@pytest.mark.parametrize(
    ("gpus_here", "named", "words"),
    [
        (1, "0,7", "CUDA_VISIBLE_DEVICES=0,7 names 2 GPUs, and 1 of them can be seen: name others"),
        (2, "0,1,2,3", "names 4 GPUs, and 2 of them can be seen"),
    ],
)
def test_gpus_that_are_not_there(monkeypatch, tmp_path, gpus_here, named, words):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    with pytest.raises(SystemExit, match=words):
        launched(monkeypatch, gpus_here, "--", f"--output_dir={tmp_path}")


@pytest.mark.parametrize("named", ["foo", "GPU-8f3a", "", "-1"])
def test_a_name_of_no_gpu_is_said_and_not_its_absence(monkeypatch, tmp_path, capsys, named):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    launched(monkeypatch, 0, "--", f"--output_dir={tmp_path}")
    said = (
        f"CUDA_VISIBLE_DEVICES={named}, and no GPU is there of that name" in capsys.readouterr().out
    )
    assert said == (named in ("foo", "GPU-8f3a"))


def test_what_another_launch_left_behind_is_not_handed_on(monkeypatch, tmp_path):
    left = {
        "DPO_PLAN": "{}",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "ACCELERATE_USE_DEEPSPEED": "true",
    }
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    command, environment = launched(monkeypatch, 0, "--", f"--output_dir={tmp_path}")
    assert not left.keys() & environment.keys() and command[0] == "accelerate"


def test_every_process_has_its_share_of_the_cores(monkeypatch, tmp_path):
    """Beside GPUs too, where Adam may be offloaded and torchrun would give it one thread; and no
    more of them than the scheduler gave."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launcher.psutil, "cpu_count", lambda logical: 96)
    several = ("--accelerate_config=zero3_offload", "--gpus=8", "--", f"--output_dir={tmp_path}")
    for allowed, threads in ((192, "12"), (32, "4"), (4, "1")):
        monkeypatch.setattr(launcher.os, "sched_getaffinity", lambda _, n=allowed: {*range(n)})
        assert launched(monkeypatch, 8, *several)[1]["OMP_NUM_THREADS"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launched(monkeypatch, 8, *several)[1]["OMP_NUM_THREADS"] == "3"


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
        # DeepSpeed's own choices: gradients summed in bfloat16, and sent after the backward pass.
        assert shards["data_types"] == {"grad_accum_dtype": "fp32"}
        zero = shards["zero_optimization"]
        assert zero.get("overlap_comm", zero["stage"] == 3)


def test_every_deepspeed_config_is_used():
    used = {path.stem for path in CONFIGS if "deepspeed" in path.read_text()}
    assert used == {path.stem for path in (ROOT / "deepspeed_configs").glob("*.json")}


@pytest.fixture
def finished(tmp_path) -> Path:
    """A copy where the default recipe has finished."""
    for name in ("scripts", "recipes", "accelerate_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    folder = tmp_path / "outputs/smollm2-sentiment"
    folder.mkdir(parents=True)
    recipe = parse(["--config", "recipes/smollm2-sentiment.yaml"])
    settings = {"recipe": recipe.name, **output_folder.settings(recipe)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    (folder / "report.json").write_text("{}")
    return tmp_path


def test_a_finished_run_is_answered_at_once(finished):
    """Nothing heavy is loaded."""
    said, code = at_once("launch.py", cwd=finished)
    assert not code and "is trained and evaluated" in said and "accelerate launch" not in said


def test_a_run_of_before_there_was_a_split_seed_keeps_its_held_out_pairs(tmp_path):
    """They were drawn by its seed then: others would be ones that it was trained on."""
    flags = [f"--output_dir={tmp_path / 'run'}", "--seed=7", "--test_split_size=0.1"]
    recipe = parse(["--config", "recipes/smollm2-sentiment.yaml", *flags])
    claim(recipe).close()
    path = tmp_path / "run/recipe.yaml"
    assert output_folder.settings_of(tmp_path / "run")["split_seed"] == 42
    assert "split_seed: 42" in path.read_text()
    path.write_text(path.read_text().replace("split_seed: 42", ""))
    assert output_folder.recipe_of(tmp_path / "run").run.split_seed == 7
    (tmp_path / "run/x.safetensors").touch()
    with pytest.raises(SystemExit, match=r"other settings: split_seed \(7, now its default\)"):
        claim(recipe)
    claim(parse(["--config", "recipes/smollm2-sentiment.yaml", *flags, "--split_seed=7"])).close()
    path.write_text(
        path.read_text().replace("\nseed: 7\n", "\n").replace("split_seed: 7", "")
    )  # the default of both
    assert output_folder.recipe_of(tmp_path / "run").run.split_seed == 42


@pytest.mark.parametrize(
    ("gpus_here", "arguments", "words"),
    [
        (0, ["--accelerate_config=zero4"], "no CONFIG 'zero4'"),
        (0, ["--accelerate_config=single_gpu"], "CONFIG=single_gpu needs a GPU"),
        (0, ["--accelerate_config=fsdp2"], "CONFIG=fsdp2 needs a GPU"),
        (
            8,
            ["--accelerate_config=single_gpu", "--gpus=2"],
            "CONFIG=single_gpu runs one process: for GPUS=2",
        ),
        (2, ["--gpus=8"], "GPUS=8, but this machine has 2"),
        (0, ["--gpus=none"], "GPUS=none is not a number"),
        (0, ["--nodes=2"], "NODE_RANK= is not this machine's number"),
        (0, ["--nodes=2", "--node_rank=2", "--main=a:1"], "NODE_RANK=2 is not this machine's"),
        (0, ["--nodes=2", "--node_rank=0"], "MAIN= is not host:port"),
        (0, ["--nodes=many"], "NODES=many is not a number"),
        (0, ["--node_rank=1", "--main=a:1"], "NODE_RANK=1, and NODES is 1"),
        (
            *(0, ["--accelerate_config=cpu", "--nodes=2", "--node_rank=0", "--main=a:1"]),
            "CONFIG=cpu runs one process: for NODES=2",
        ),
        (
            *(1, ["--nodes=2", "--node_rank=0", "--main=a:1"]),
            "CONFIG=single_gpu runs one process: for NODES=2",
        ),
    ],
)
def test_what_is_asked_is_checked_before_a_finished_run_is_answered(
    monkeypatch, finished, gpus_here, arguments, words
):
    monkeypatch.chdir(finished)
    with pytest.raises(SystemExit, match=words):
        launched(monkeypatch, gpus_here, *arguments)


def test_a_finished_run_is_answered_if_it_could_have_been_run(monkeypatch, finished, capsys):
    """By the launcher, or where it cannot know whether so many processes share the batch, by the
    run itself."""
    monkeypatch.chdir(finished)
    for arguments in ((), ("--accelerate_config=cpu",), ("--accelerate_config=ddp", "--gpus=1")):
        with pytest.raises(SystemExit) as stop:
            launched(monkeypatch, 8, *arguments)
        assert stop.value.code == 0 and "is trained and evaluated" in capsys.readouterr().out
    assert "scripts/train.py" in launched(monkeypatch, 8, "--gpus=5")[0]


def test_list_shows_every_recipe_and_config():
    said = launch("--list").stdout
    for folder in ("recipes", "accelerate_configs"):
        for path in (ROOT / folder).glob("*.yaml"):
            assert f"  {path.stem} " in said


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_launch_that_says_why_its_run_has_ended_can_be_ended(tmp_path, signal):
    code = (
        "import os, signal, sys\n"
        "from dpo.core.signals import tell_full\n"
        "from dpo.runs.launch import run\n"
        "tell_full(sys.argv[1], killed=True)\n"
        "here = os.environ | {'DPO_TOLD_IN': sys.argv[1]}\n"
        f"ask = lambda found: (os.kill(os.getpid(), signal.{signal}), print('went on'))\n"
        "run(['accelerate', 'launch', '--no_such_flag'], here, ask)"
    )
    done = run(sys.executable, "-c", code, str(tmp_path), PYTHONPATH=str(ROOT / "scripts"))
    assert done.returncode not in (0, 75) and "went on" not in done.stdout, done.stdout
    assert "NoSuchProcess" not in done.stderr and "saves and ends" not in done.stdout


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


def test_on_a_cpu_freed_memory_is_kept(monkeypatch, tmp_path):
    """A launch hands on what makes the C library keep it, and does not overrule the user."""
    launched = []
    monkeypatch.setattr(launcher, "gpus_here", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["launch.py", "--", f"--output_dir={tmp_path}/run"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)

    monkeypatch.setattr(launcher, "run", lambda command, env, *_: launched.append(env))
    for mine in (None, "glibc.malloc.check=0"):
        if mine:
            monkeypatch.setenv("GLIBC_TUNABLES", mine)
        with pytest.raises(SystemExit):
            script.main()
    assert launched[1]["GLIBC_TUNABLES"] == "glibc.malloc.check=0"
    monkeypatch.undo()
    assert faults(launched[0]) < 1000
    if platform.libc_ver()[0] == "glibc":
        assert faults(launched[0] | {"GLIBC_TUNABLES": ""}) > 10_000


def test_what_make_data_wrote_does_not_keep_a_run_from_starting(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("data.html", "quarantine.jsonl"):
        (tmp_path / "run" / name).write_text("")
    recipe = ["--config", str(ROOT / "recipes/smollm2-sentiment.yaml"), "--use_cpu"]
    claim(parse([*recipe, f"--output_dir={tmp_path}/run"]))
    assert (tmp_path / "run/recipe.yaml").is_file()


@pytest.mark.parametrize(
    ("config", "force", "ends"),
    [
        ("", False, "zero3"),
        ("auto", False, "zero3"),
        ("zero2", False, "zero2"),
        ("ddp", True, "ddp"),
    ],
)
def test_on_gpus_a_run_goes_by_its_plan(monkeypatch, capsys, config, force, ends):
    way = {"peak": 50e9, "machine": 0, "terms": {}, "stands": {}, "step_seconds": 1.5}
    taken = way | {"config": "zero3", "taken": True, "flags": ["--max_grad_norm", "2"]}
    plan = {"card": {"name": "H100-80GB", "memory": 85e9}, "options": [taken], "change": None}
    goes = {"ddp": way | {"peak": 99e9}, "zero2": way | {"peak": 70e9}}
    plan |= {"command": "make train CONFIG=zero3", "as_it_goes": goes, "machine": 1e12}
    given = ("--accelerate_config", config, *["--force"] * force, "--", "--max_grad_norm=9")
    command, environment = launched(monkeypatch, 8, *given, plan=plan)
    peak = json.loads(environment["DPO_PLAN"])["peak"]  # the run holds its own against it
    assert peak == {"zero3": 50e9, "zero2": 70e9, "ddp": 99e9}[ends]
    assert f"accelerate_configs/{ends}.yaml" in command and "8" in command
    assert command[-1] == ("2" if ends == "zero3" else "--max_grad_norm=9")
    assert len([word for word in command if word.startswith("--max_grad_norm")]) == 1
    assert ("CONFIG=zero3 by the plan: 50.0 GB" in capsys.readouterr().out) == (ends == "zero3")
    with pytest.raises(SystemExit, match=r"CONFIG=ddp needs 99.0 GB .*: make train CONFIG=zero3"):
        launched(monkeypatch, 8, "--accelerate_config", "ddp", plan=plan)
