"""What several processes round, and what they don't."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from support.commands import run_flags
from support.several import NAMES, ten_steps, under

IN_BFLOAT16 = """
import transformers.training_args
transformers.training_args.is_torch_bf16_gpu_available = lambda: True  # a CPU computes in it too
"""


def test_a_policy_is_scored_in_the_numerics_of_its_reference(
    launched, tiny_model, tiny_data, tmp_path
):
    """ZeRO rounds weights to bfloat16, where one process that loads them would not. A step with
    learning rate 0 then changes nothing: every pair is a tie, and the run says so."""
    still = ("--max_steps=1", "--eval_steps=1", "--warmup_steps=1", "--bf16=true")
    flags = [*ten_steps(tiny_model, tiny_data, tmp_path / "run"), *still]
    result = launched(*flags, config="zero2", first=IN_BFLOAT16)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "0.50 → 0.50" in result.stdout and "all of them ties" in " ".join(result.stdout.split())
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["pairs"]["margins"] == [0.0] * 8
    assert {point["accuracy"] for points in report["curves"].values() for point in points} == {0.5}


# In bfloat16, as on a GPU: the sum over a step's micro-batches beside what went into it, without
# the trial. An engine of its own scores the reference, on the same weights.
SUMS = f"""{IN_BFLOAT16}
import sys
from deepspeed.runtime.engine import DeepSpeedEngine as Engine
from deepspeed.utils import safe_get_full_grad
init, step, sums = Engine.__init__, Engine.step, {{}}
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
def test_gradients_are_summed_in_float32(config, launched, tiny_model, tiny_data, tmp_path):
    """Though they are bfloat16's: sums in it are off by 0.003 after eight micro-batches."""
    flags = run_flags(tiny_model, tiny_data, tmp_path / "run")
    flags += ["--per_device_train_batch_size=1", "--gradient_accumulation_steps=8", "--bf16=true"]
    flags += ["--max_steps=2", "--eval_strategy=no", "--save_strategy=no", "--report_to=none"]
    flags += ["--policy_is_reference=false"]
    result = launched(*flags, config=config, first=SUMS)
    assert result.returncode == 0, result.stderr[-3000:]
    off = [float(line.split()[-1]) for line in result.stdout.splitlines() if "OFF BY" in line]
    assert len(off) > 2 * 10 and max(off) < 1e-6


def test_fsdp_rounds_weights_and_nothing_else(launched, tiny_model, tiny_data, tmp_path):
    """In bfloat16, as on a GPU, it learns what ZeRO-3 does: log-probabilities are not rounded, and
    gradients are summed in float32 over eight micro-batches. From weights that are bfloat16's: ZeRO
    begins with those, and FSDP with what was rounded away."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    weights = {k: w.bfloat16().float() for k, w in load_file(model / "model.safetensors").items()}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    flags = ["--per_device_train_batch_size=1", "--gradient_accumulation_steps=8", "--bf16=true"]
    flags += ["--eval_strategy=no", "--save_strategy=no", "--warmup_steps=0"]
    flags += ["--learning_rate=1e-4"]  # a loss near zero magnifies a weight's last bit
    found = {}
    for config in ("fsdp2", "zero3"):
        given = [*ten_steps(model, tiny_data, tmp_path / config), *flags]
        # Of one process: ZeRO sends gradients in bfloat16.
        result = launched(*given, config=config, first=IN_BFLOAT16)
        assert result.returncode == 0, result.stderr[-3000:]
        lines = (tmp_path / config / "metrics.jsonl").read_text().splitlines()
        found[config] = [line for line in map(json.loads, lines) if "loss" in line]
    for mine, other in zip(*found.values(), strict=True):
        for key in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
            assert mine[key] == pytest.approx(other[key], rel=1e-5), key
