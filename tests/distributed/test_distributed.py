"""What several processes and machines learn, and how a run of them ends early."""

import functools
import json
import os
import platform
import re
import runpy
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpo.training.resume import REFERENCE
from support.commands import FORKS, free_port, launch, run, run_flags, running, train_in_fork
from support.place import ROOT


def under(config: str, *more: str):
    """A test's parameters; DeepSpeed compiles its optimizer for CPUs."""
    compiles = config == "zero3_offload" and not shutil.which("c++")
    return pytest.param(
        config, *more, marks=pytest.mark.skipif(compiles, reason="a C++ compiler is needed")
    )


NAMES = ("ddp", "zero1", "zero2", "zero3", "fsdp2", "zero3_offload")
CONFIGS = [under(config) for config in NAMES]
LORA = ["--use_peft", "--lora_target_modules", "q_proj", "v_proj"]
HALF = ["--dtype=bfloat16", "--bf16=false", "--learning_rate=0.01"]
MOVES = ["--sync_ref_model", "--ref_model_sync_steps=3", "--eval_strategy=no"]
TRAINED = {
    "full": [],
    "lora": LORA,
    "adapter": ["--use_peft"],
    "half": [*LORA, *HALF],
    "qlora": [*LORA, *HALF, "--load_in_4bit"],
}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (weights,) = folder.glob("*.safetensors")
    return load_file(weights)


def losses_of(folder: Path) -> list[float]:
    curves = json.loads((folder / "report.json").read_text())["curves"]
    assert len(curves["train"]) == 10
    return [point["loss"] for point in curves["train"]]


def assert_learned_alike(folder: Path, other: Path) -> None:
    """Ten losses, and every weight, within 1e-5."""
    assert losses_of(folder) == pytest.approx(losses_of(other), abs=1e-5)
    whole, sharded = weights_of(other), weights_of(folder)
    assert whole.keys() <= sharded.keys()  # sharded, a tied head is saved as a copy
    for name in whole:
        torch.testing.assert_close(sharded[name], whole[name], atol=1e-5, rtol=0)


def assert_scored_alike(folder: Path, other: Path) -> None:
    """The held-out pairs, by all processes when training has ended, with the model as it lies
    there. They fill the batch of one process: those of the other are the same ones again."""
    found, expected = (json.loads((f / "report.json").read_text()) for f in (folder, other))
    found, expected = found["pairs"], expected["pairs"]
    assert found["margins"] == pytest.approx(expected["margins"], abs=2e-5)
    assert found["accuracy"] == expected["accuracy"]
    assert len(set(found["margins"])) > 1  # the pairs are of three lengths


def ten_steps(model: Path, data: Path, folder: Path) -> list[str]:
    flags = run_flags(model, data, folder)
    return [*flags, "--max_steps=10", "--eval_steps=10", "--report_to=none", "--reward_prompts=1"]


FSDP = "tests/support/fsdp_on_cpu"


def launch_fsdp(processes: int, *flags: str, PYTHONPATH: str = FSDP, **changes):
    """launch.py refuses fsdp2 without a GPU, as accelerate cannot do what a test can."""
    shape = ("--num_processes", str(processes), "--num_machines", "1", "--main_process_port", "0")
    return run(
        *("accelerate", "launch", "--config_file", "accelerate_configs/fsdp2.yaml", *shape),
        *("--quiet", "scripts/train.py", "--config", "recipes/smollm2-sentiment.yaml", *flags),
        PYTHONPATH=PYTHONPATH,
        ACCELERATE_USE_CPU="true",
        OMP_NUM_THREADS="1",
        **changes,
    )


# At the start of each process that is launched: it leaves its environment behind, and ends.
TOLD = """
import json, os, sys
if "scripts/train.py" in sys.orig_argv[1:3]:
    with open(f"{os.environ['TOLD']}/{os.environ.get('RANK', 0)}", "w") as file:
        json.dump(dict(os.environ), file)
    os._exit(0)
"""
# Of a launcher that has ended; without the last, the first process opens the store for all.
GONE = {"TOLD", "DPO_TOLD_IN", "TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_USE_AGENT_STORE"}


def train_as_launched(environment: dict[str, str], flags: list[str], log: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    if environment.get("ACCELERATE_USE_FSDP"):
        runpy.run_path(str(ROOT / FSDP / "sitecustomize.py"))
    train_in_fork(flags, log)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the launcher tells each process of a config: its environment."""

    @functools.cache
    def told(config: str, processes: int) -> list[dict[str, str]]:
        folder = tmp_path_factory.mktemp("told")
        (folder / "sitecustomize.py").write_text(TOLD)
        changes = {"TOLD": str(folder), "PYTHONPATH": str(folder)}
        if config == "fsdp2":
            result = launch_fsdp(processes, **changes)
        else:
            result = launch("--config", config, "--gpus", str(processes), **changes)
        assert result.returncode == 0, result.stderr[-3000:]
        found = [json.loads((folder / str(rank)).read_text()) for rank in range(processes)]
        return [{k: v for k, v in each.items() if k not in GONE} for each in found]

    return told


@pytest.fixture(scope="module")
def learn(forks, told, tiny_model, tiny_adapter, tiny_data):
    """Ten steps of full fine-tuning, of a new adapter, or on from one: what the run printed.

    The processes are forks that are told what the config's launcher tells its processes.
    """

    def learn(folder: Path, trained: str, config: str, processes: int, *more: str) -> str:
        start = tiny_adapter if trained == "adapter" else tiny_model
        flags = [*ten_steps(start, tiny_data, folder), *TRAINED[trained], *more]
        folder.parent.mkdir(exist_ok=True)
        log, port = folder.parent / f"{time.monotonic_ns()}.log", {"MASTER_PORT": str(free_port())}
        started = [
            FORKS.Process(target=train_as_launched, args=(each | port, flags, log))
            for each in told(config, processes)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(300)
            process.kill()
        said = log.read_text()
        assert {process.exitcode for process in started} == {0}, said[-3000:]
        return said

    return learn


@pytest.fixture(scope="module")
def one_process(learn, tmp_path_factory):
    """The folder of one process's run, by what is trained; run when it is first asked for."""

    @functools.cache
    def one_process(trained: str) -> Path:
        folder = tmp_path_factory.mktemp("one") / trained
        learn(folder, trained, "cpu", 1)
        return folder

    return one_process


WAYS = [
    ("full", "shared", "cached"),
    ("full", "twice", "live"),
    ("adapter", "shared", "cached"),
    ("full", "shared", "live"),
    ("full", "twice", "cached"),
    ("lora", "shared", "live"),
]


# All of them without shards and with all sharded, half of them where less is.
@pytest.mark.parametrize(
    ("config", "trained", "prefix", "reference"),
    [
        under(config, *way)
        for config in NAMES
        for way in WAYS[: len(WAYS) if config in ("ddp", "zero3") else 3]
    ],
)
def test_two_processes_learn_what_one_learns(
    config, trained, prefix, reference, learn, one_process, tmp_path
):
    """The global batch is the recipe's, however many processes share it."""
    folder, shared = tmp_path / "run", prefix == "shared"
    ways = [f"--share_prefix={shared}"]
    ways += ["--precompute_ref_log_probs=False"] if reference == "live" else []
    scored = (trained, prefix, reference) == WAYS[0]
    ways += [] if scored else ["--eval_strategy=no"]
    said = learn(folder, trained, config, 2, *ways)
    assert "2 pairs a device × 1 accumulated × 2 processes = 4 pairs" in said
    stage = f", ZeRO-{config[4]}" if config.startswith("zero") else ", FSDP" * (config == "fsdp2")
    assert f"2 × 1 threads{stage}\n" in said
    assert f"sharing  {'on' if shared else 'off'}" in said
    stays = config == "fsdp2" and trained != "full"  # its base is on no GPU yet
    cached = reference == "cached" and not stays
    assert ("scored, and kept in" in said) == cached
    assert ("which stays live: until training begins FSDP" in said) == stays
    if stage == ", ZeRO-3":
        live = " and 50% of the reference" if trained == "full" and not cached else ""
        assert f"each process holds 50% of the policy{live}\n" in said
    assert_learned_alike(folder, one_process(trained))
    if scored:
        assert_scored_alike(folder, one_process(trained))


@pytest.mark.parametrize(("config", "rows"), [("ddp", 7), ("zero3", 5)])
def test_every_pair_of_an_incomplete_batch_weighs_the_same(
    config, rows, learn, tiny_data, tmp_path
):
    """Of the second step of an epoch, 3 pairs or 1 are left for two processes, and of the second
    batch of an evaluation."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    for split in ("train", "test"):
        lines = (data / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (data / f"{split}.jsonl").write_text("".join(lines[:rows]))
    few = [f"--dataset_name={data}", "--per_device_eval_batch_size=2"]
    for where, processes in (("cpu", 1), (config, 2)):
        learn(tmp_path / where, "full", where, processes, *few)
    assert_learned_alike(tmp_path / config, tmp_path / "cpu")
    one, two = (
        json.loads((tmp_path / where / "report.json").read_text())["curves"]["held_out"]
        for where in ("cpu", config)
    )
    assert len(one) == 1 and two[0] == pytest.approx(one[0], abs=1e-5)


def test_a_kept_reference_serves_a_sharded_policy(learn, one_process, tmp_path):
    """Where it is found, a single batch goes through the policy before training."""
    for name, said in (("first", "16 scored, and kept in"), ("second", "all found in")):
        assert said in learn(tmp_path / name, "full", "zero3", 2, "--eval_strategy=no")
        assert_learned_alike(tmp_path / name, one_process("full"))


@pytest.fixture(scope="module")
def moved(learn, tmp_path_factory) -> Path:
    """The folder of one process whose reference follows its policy."""
    learn(folder := tmp_path_factory.mktemp("moved") / "run", "full", "cpu", 1, *MOVES)
    return folder


@pytest.mark.parametrize("config", ["zero2", "zero3", "fsdp2"])
def test_a_reference_that_moves_is_sharded_and_goes_on(config, learn, moved, tmp_path):
    """It moves as that of one process does, and a run that was stopped between two moves ends with
    the weights of one that was not, to the bit."""
    folder, at_the_end = tmp_path / "run", f"checkpoint-10/{REFERENCE}"
    learn(folder, "full", config, 2, *MOVES)
    assert_learned_alike(folder, moved)
    expected, found = load_file(moved / at_the_end), load_file(folder / at_the_end)
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0)
    (policy,) = folder.glob("*.safetensors")
    ended = [path.read_bytes() for path in (policy, folder / at_the_end)]
    for name in ("report.json", "trainer_state.json", policy.name):
        (folder / name).unlink()
    for step in (6, 8, 10):
        shutil.rmtree(folder / f"checkpoint-{step}")
    assert f"Continuing from {folder}/checkpoint-4" in learn(folder, "full", config, 2, *MOVES)
    assert [path.read_bytes() for path in (policy, folder / at_the_end)] == ended


@pytest.mark.parametrize("config", CONFIGS)
def test_four_bits_are_carried_by_every_config(config, learn, one_process, tmp_path):
    """What one process learns in them, to bfloat16's precision; without them it learns other
    things."""
    learn(tmp_path / "run", "qlora", config, 2, "--eval_strategy=no")
    losses = losses_of(tmp_path / "run")
    assert losses == pytest.approx(losses_of(one_process("qlora")), abs=5e-3)
    assert losses != pytest.approx(losses_of(one_process("half")), abs=2e-2)


def test_a_policy_is_scored_in_the_numerics_of_its_reference(tiny_model, tiny_data, tmp_path):
    """ZeRO rounds weights to bfloat16, where one process that loads them would not. A step with
    learning rate 0 then changes nothing: every pair is a tie, and the run says so."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif 'RANK' in os.environ:\n    import transformers.training_args as t\n"
        "    t.is_torch_bf16_gpu_available = lambda: True  # a CPU computes in it too\n"
    )
    still = ("--max_steps=1", "--eval_steps=1", "--warmup_steps=1", "--bf16=true")
    result = launch(
        *("--config", "zero2", "--gpus", "1", "--"),
        *(*ten_steps(tiny_model, tiny_data, tmp_path / "run"), *still),
        PYTHONPATH=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "0.50 → 0.50" in result.stdout and "all of them ties" in " ".join(result.stdout.split())
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["pairs"]["margins"] == [0.0] * 8
    assert {point["accuracy"] for points in report["curves"].values() for point in points} == {0.5}


def test_a_run_that_dies_before_its_report_is_evaluated_from_what_was_scored(
    tiny_model, tiny_data, tmp_path
):
    """Without a known reward, no model is loaded for it: the policy is garbage by then."""
    data, folder = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for file in tiny_data.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [{k: v for k, v in row.items() if not k.startswith("vader")} for row in rows]
        (data / file.name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("--config", "zero3", "--gpus", "2", "--", *ten_steps(tiny_model, data, folder))
    reports = []
    for said in ("step 10/10", "Trained already"):
        result = launch(*command)
        assert result.returncode == 0, result.stderr[-3000:]
        assert said in result.stdout + result.stderr
        reports.append(json.loads((folder / "report.json").read_text()))
        (folder / "report.json").unlink()
        (folder / "model.safetensors").write_bytes(b"killed while it was read")
    assert reports[0]["pairs"] == reports[1]["pairs"]


@pytest.mark.parametrize("config", ["ddp", "zero3"])
def test_two_machines_learn_what_one_learns(config, one_process, tiny_model, tiny_data, tmp_path):
    """Two launches, each with its own rank, that meet on the loopback address."""
    folder = tmp_path / "run"
    flags = ten_steps(tiny_model, tiny_data, folder)
    together = ["--config", config, "--gpus", "1", "--nodes", "2"]
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


# In bfloat16, as on a GPU: the sum over a step's micro-batches beside what went into it, without
# the trial. An engine of its own scores the reference, on the same weights.
SUMS = """
import os, sys
if "RANK" in os.environ:
    import transformers.training_args
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    from deepspeed.runtime.engine import DeepSpeedEngine as Engine
    from deepspeed.utils import safe_get_full_grad
    init, step, sums = Engine.__init__, Engine.step, {}
    def note(name, gradient):
        sums[name] = sums.get(name, 0) + gradient.float()
    def new_init(self, *args, **kwargs):
        init(self, *args, **kwargs)
        trial = sys.modules["dpo.training.preflight.longest_batch"]
        forget = trial.forget_gradients
        trial.forget_gradients = lambda trainer: (forget(trainer), sums.clear())
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad and not hasattr(parameter, "noted"):
                parameter.noted = True
                parameter.register_hook(lambda gradient, name=name: note(name, gradient))
    def new_step(self, *args, **kwargs):
        if self.is_gradient_accumulation_boundary():
            for name, parameter in self.module.named_parameters():
                if name in sums:
                    off = safe_get_full_grad(parameter).float() - sums[name]
                    print("OFF BY", float(off.norm() / sums[name].norm()), flush=True)
            sums.clear()
        return step(self, *args, **kwargs)
    Engine.__init__, Engine.step = new_init, new_step
"""


@pytest.mark.parametrize("config", [under(c) for c in NAMES if c not in ("ddp", "fsdp2")])
def test_gradients_are_summed_in_float32(config, tiny_model, tiny_data, tmp_path):
    """Though they are bfloat16's: sums in it are off by 0.003 after eight micro-batches."""
    (tmp_path / "sitecustomize.py").write_text(SUMS)
    flags = run_flags(tiny_model, tiny_data, tmp_path / "run")
    flags += ["--per_device_train_batch_size=1", "--gradient_accumulation_steps=8", "--bf16=true"]
    flags += ["--max_steps=2", "--eval_strategy=no", "--save_strategy=no", "--report_to=none"]
    flags += ["--policy_is_reference=false"]
    result = launch("--config", config, "--gpus=1", "--", *flags, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr[-3000:]
    off = [float(line.split()[-1]) for line in result.stdout.splitlines() if "OFF BY" in line]
    assert len(off) > 2 * 10 and max(off) < 1e-6


def test_fsdp_rounds_weights_and_nothing_else(tiny_model, tiny_data, tmp_path):
    """In bfloat16, as on a GPU, it learns what ZeRO-3 does: log-probabilities are not rounded, and
    gradients are summed in float32 over eight micro-batches. From weights that are bfloat16's: ZeRO
    begins with those, and FSDP with what was rounded away."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    weights = {k: w.bfloat16().float() for k, w in load_file(model / "model.safetensors").items()}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif 'RANK' in os.environ:\n    import transformers.training_args as t\n"
        "    t.is_torch_bf16_gpu_available = lambda: True  # a CPU computes in it too\n"
    )
    flags = ["--per_device_train_batch_size=1", "--gradient_accumulation_steps=8", "--bf16=true"]
    flags += ["--eval_strategy=no", "--save_strategy=no", "--warmup_steps=0"]
    found = {}
    for config in ("fsdp2", "zero3"):
        given = [*ten_steps(model, tiny_data, tmp_path / config), *flags]
        how = ("--config", config, "--gpus", "1", "--")  # ZeRO sends gradients in bfloat16
        if config == "fsdp2":
            result = launch_fsdp(1, *given)
        else:
            result = launch(*how, *given, PYTHONPATH=str(tmp_path))
        assert result.returncode == 0, result.stderr[-3000:]
        lines = (tmp_path / config / "metrics.jsonl").read_text().splitlines()
        found[config] = [line for line in map(json.loads, lines) if "loss" in line]
    for mine, other in zip(*found.values(), strict=True):
        for key in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
            assert mine[key] == pytest.approx(other[key], rel=1e-5), key


@pytest.mark.parametrize("apart", ["output_dir", "reference_cache", "working directory"])
def test_machines_that_share_no_folder_do_not_start(apart, tiny_model, tiny_data, tmp_path):
    """Two launches that meet, each with folders of its own: one line says so on both."""
    together = ["--config=ddp", "--gpus=1", "--nodes=2", f"--main=127.0.0.1:{free_port()}"]
    relative = apart == "working directory"

    def start(rank: str):
        place = tmp_path / rank
        place.mkdir()
        for name in ("scripts", "recipes", "accelerate_configs"):
            (place / name).symlink_to(ROOT / name)
        flags = ten_steps(tiny_model, tiny_data, Path("run") if relative else tmp_path / "run")
        flags += [] if relative else [f"--{apart}={place / 'own'}"]
        command = (sys.executable, "scripts/launch.py", *together, "--node_rank", rank, "--")
        return run("env", "-C", place, *command, *flags, OMP_NUM_THREADS="1")

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(start, ("0", "1"))
    told = (
        f"{'run' if relative else tmp_path / '1/own'} is not shared between the machines: "
        f"machine 1 ({platform.node()}) does not find in it what the first has written"
    )
    for result in (first, second):
        assert result.returncode != 0 and told in result.stderr
    assert not [*tmp_path.rglob(".shared-*")] and not [*tmp_path.rglob("*.safetensors")]


def test_a_run_goes_on_after_one_process_dies(one_process, tiny_model, tiny_data, tmp_path):
    """Within a minute the others are told and the run ends; one process goes on where two were."""
    folder = tmp_path / "run"
    flags = ten_steps(tiny_model, tiny_data, folder)
    with running(
        folder, "checkpoint-2", "--config", "ddp", "--gpus", "2", "--", *flags
    ) as launched:
        workers = [p for p in launched.children(recursive=True) if "RANK" in p.environ()]
        (second,) = [p for p in workers if p.environ()["RANK"] == "1"]
        second.kill()
        assert launched.wait(60) != 0
        assert not any(worker.is_running() for worker in workers)
    log = (tmp_path / "log").read_text()
    assert "local_rank: 1" in log and "SIGKILL" in log
    assert not (folder / "report.json").exists()

    one = ("--config", "ddp", "--gpus", "1", "--", *flags)
    result = launch(*one)
    assert result.returncode != 0
    assert "was written by 2 processes, and this run has 1: run on 2, or allow" in result.stderr
    result = launch(*one, "--other_processes")
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Continuing from {folder}/checkpoint-" in result.stdout
    assert_learned_alike(folder, one_process("full"))


def test_what_two_sharded_by_fsdp_one_goes_on_with(
    learn, one_process, tiny_model, tiny_data, tmp_path
):
    """Under FSDP; without it, it would start the optimizer anew."""
    folder, saving = tmp_path / "run", "--save_steps=4"
    learn(folder, "full", "fsdp2", 2, saving)
    for name in ("report.json", "trainer_state.json", "model.safetensors"):
        (folder / name).unlink()
    for step in (8, 10):
        shutil.rmtree(folder / f"checkpoint-{step}")
    flags = [*ten_steps(tiny_model, tiny_data, folder), saving]
    result = launch("--config", "cpu", "--", *flags)
    assert result.returncode != 0
    assert "was written with FSDP, and this run has no shards: go on" in result.stderr
    said = learn(folder, "full", "fsdp2", 1, saving, "--other_processes")
    assert f"Continuing from {folder}/checkpoint-4" in said
    assert_learned_alike(folder, one_process("full"))


def test_a_run_that_is_asked_to_leave_goes_on(one_process, tiny_model, tiny_data, tmp_path):
    """Asked at one process of two; what ZeRO sharded over two, two go on with."""
    folder = tmp_path / "run"
    flags = ten_steps(tiny_model, tiny_data, folder)
    two = ("--config", "zero3", "--gpus", "2", "--", *flags)
    with running(folder, "checkpoint-2", *two) as launched:
        launched.send_signal(signal.SIGUSR1)
        assert launched.wait(60) == 75
    log = (tmp_path / "log").read_text()
    step = int(re.search(r"Asked to leave at step (\d+) of 10: saved in", log)[1])
    assert 2 <= step < 10 and (folder / f"checkpoint-{step}/trainer_state.json").exists()
    assert not (folder / "model.safetensors").exists()

    for config, processes in (("zero3", "1"), ("zero2", "2"), ("ddp", "2")):
        result = launch("--config", config, "--gpus", processes, "--", *flags)
        assert result.returncode != 0
        assert "was written with ZeRO-3 on 2 processes, and this run has" in result.stderr
    result = launch(*two)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Continuing from {folder}/checkpoint-{step}" in result.stdout
    assert_learned_alike(folder, one_process("full"))


@pytest.mark.parametrize("config", ["ddp", "zero2"])
def test_a_checkpoint_counts_when_all_have_written_it(
    config, one_process, tiny_model, tiny_data, tmp_path
):
    """The second process is killed when it begins its part of the second checkpoint."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import torch\n"
        "    stock = torch.save\n"
        "    def save(content, path, *args, **kwargs):\n"
        "        if '.writing/checkpoint-4/' in str(path):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        stock(content, path, *args, **kwargs)\n"
        "    torch.save = save\n"
    )
    folder = tmp_path / "run"
    two = ("--config", config, "--gpus", "2", "--", *ten_steps(tiny_model, tiny_data, folder))
    result = launch(*two, PYTHONPATH=str(tmp_path))
    assert result.returncode != 0
    assert (folder / ".writing/checkpoint-4/model.safetensors").exists()

    result = launch(*two)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Continuing from {folder}/checkpoint-2" in result.stdout
    assert_learned_alike(folder, one_process("full"))


def test_the_error_of_the_process_that_failed_comes_last(tiny_model, tiny_data, tmp_path):
    """The second process fails in its fourth micro-batch, while the first waits for it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from trl import DPOTrainer\n"
        "    step, calls = DPOTrainer.training_step, []\n"
        "    def training_step(*args, **kwargs):\n"
        "        calls.append(1)\n"
        "        if len(calls) == 4:\n"
        "            raise ValueError('a disk was pulled out')\n"
        "        return step(*args, **kwargs)\n"
        "    DPOTrainer.training_step = training_step\n"
    )
    flags = ten_steps(tiny_model, tiny_data, tmp_path / "run")
    started = time.monotonic()
    result = launch(*("--config", "zero2", "--gpus", "2", "--", *flags), PYTHONPATH=str(tmp_path))
    assert result.returncode != 0 and time.monotonic() - started < 300
    assert "ValueError: a disk was pulled out" in "\n".join(result.stderr.splitlines()[-5:])
