"""Ways to train that a plan is held against: each a real trainer on random weights, beside what
make plan says of the same pairs (make check-gpu)."""

import copy
import gc
import json
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, TrainerCallback
from trl import get_quantization_config

from dpo.core.environment import Launch, launched
from dpo.core.refusal import Refusal, first_line
from dpo.data.schema import IDS
from dpo.models import adapters
from dpo.plan.arithmetic.counted import Tally
from dpo.plan.shapes import known
from dpo.prefix_sharing.head import head_on_completions
from dpo.recipe.parse import FOLDER, Recipe, parse
from dpo.speed import workload
from dpo.speed.workload import Stopwatch
from dpo.training.trainer import FastDPOTrainer

FOUND = "measured of a case: "  # before what a process says of one
UNTIMED = 2  # steps, in which a GPU chooses its kernels
MICRO = 4  # pairs at a time
SMALLER = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768}
SMALLER |= {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALLER |= {"head_dim": 64}


@dataclass(frozen=True)
class Case:
    """One way to train.

    Attributes:
        model: of `plan.shapes`.
        flags: after the recipe's.
        parts: micro-batches of a step.
        config: of accelerate_configs/.
        micro: pairs of a micro-batch.
    """

    name: str
    model: str
    flags: tuple[str, ...]
    parts: int = 2
    config: str = "single_gpu"
    micro: int = MICRO


KEPT, AGAIN = (("--gradient_checkpointing", said) for said in ("false", "true"))
LORA = ("--use_peft", "--lora_target_modules=all-linear", "--dtype=bfloat16")
SMALL, MIDDLE, LARGE = (f"Qwen/Qwen3-{size}B" for size in ("0.6", "1.7", "8"))
CASES = (
    Case("0.6B", SMALL, KEPT),
    Case("0.6B, one micro-batch a step", SMALL, KEPT, parts=1),
    Case("0.6B, reference live", SMALL, (*KEPT, "--precompute_ref_log_probs=false")),
    Case("0.6B, checkpointing", SMALL, AGAIN),
    Case("0.6B, prompts twice and padding", SMALL, (*KEPT, "--share_prefix=false")),
    Case("0.6B, LoRA", SMALL, (*KEPT, *LORA)),
    Case("1.7B", MIDDLE, KEPT),
    Case("1.7B, checkpointing", MIDDLE, AGAIN),
    Case("1.7B, checkpointing, 16 at a time", MIDDLE, AGAIN, micro=16),
    Case("8B, LoRA, checkpointing", LARGE, (*AGAIN, *LORA)),
    Case("8B, QLoRA, checkpointing", LARGE, (*AGAIN, *LORA, "--load_in_4bit")),
    Case("8B, QLoRA", LARGE, (*KEPT, *LORA, "--load_in_4bit")),
    Case("0.6B, zero2 of one process", SMALL, KEPT, config="zero2"),
    Case("0.6B, zero3 of one process", SMALL, KEPT, config="zero3"),
)


class OnGPU:
    """Bytes that PyTorch's allocator has given out on the GPU, and the most."""

    def begin(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    @property
    def now(self) -> int:
        return torch.cuda.memory_allocated()

    @property
    def most(self) -> int:
        return torch.cuda.max_memory_allocated()


class OnCPU(Tally):
    """The same of a CPU, counted by operations."""

    def begin(self) -> None:
        self.most = self.now


class AfterOneStep(TrainerCallback):
    """What is there when the optimizer has made its states."""

    def __init__(self, meter: OnGPU | OnCPU):
        self.meter, self.found = meter, 0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.found = self.meter.now


def recipe_of(
    case: Case, device: str, batches: int, launch: Launch, folder: str = "outputs"
) -> Recipe:
    """The recipe of so many micro-batches of one process."""
    words = ["--config", f"{FOLDER}/qwen-ultrafeedback.yaml", f"--model_name_or_path={case.model}"]
    words += [f"--per_device_train_batch_size={case.micro}", f"--output_dir={folder}"]
    words += [f"--gradient_accumulation_steps={case.parts}", f"--max_steps={batches // case.parts}"]
    words += ["--train_sampling_strategy=sequential", "--eval_strategy=no", "--save_strategy=no"]
    words += ["--report_to=none", "--disable_tqdm=true", *case.flags]
    words += ["--bf16=false"] if device == "cpu" else []  # transformers allows it on a GPU only
    return parse(words, launch)


def config_of(case: Case, small: bool) -> PreTrainedConfig:
    config = AutoConfig.for_model(**(known()[case.model] | (SMALLER if small else {})))
    config._commit_hash = "random"  # what reference.py files it under
    return config


def made(config: PreTrainedConfig, recipe: Recipe, device: str) -> Any:
    """A model with random weights, made where it trains. In 4 bits as transformers reads one: from
    weights that are whole, here in memory, of which it quantizes one after the other."""
    dtype = getattr(torch, str(recipe.model.dtype).removeprefix("torch."), torch.float32)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    quantized = get_quantization_config(recipe.model)
    if quantized is None:
        return model
    return type(model).from_pretrained(
        None,
        config=config,
        state_dict=model.state_dict(),
        quantization_config=quantized,
        dtype=dtype,
        device_map={"": str(model.device)},
    )


@contextmanager
def counting(device: str) -> Iterator[OnGPU | OnCPU]:
    """What counts bytes within, on the model's device."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        yield OnGPU()
        return
    head_on_completions(torch.device(device))
    with OnCPU() as meter:
        yield meter


def measured(case: Case, batches: np.ndarray, device: str, small: bool) -> dict[str, Any]:
    """Bytes of the model, after the first step and at the peak of the steps, and seconds of those
    that are timed: a trainer of the case trains on pairs of these lengths.

    Args:
        batches: tokens of prompt, chosen and rejected, shape (micro-batches, pairs, 3).
    """
    config, watch, launch = config_of(case, small), Stopwatch(), launched()
    if device == "cpu" and not launch.deepspeed:  # which use_cpu would turn off
        launch = replace(launch, on_cpu=True)
    draw = np.random.default_rng(0)
    lengths = batches.reshape(-1, 3)
    drawn = ((draw.integers(2, config.vocab_size, n).tolist() for n in row) for row in lengths)
    rows = [dict(zip(IDS, ids, strict=True)) for ids in drawn]
    with tempfile.TemporaryDirectory() as folder, counting(device) as meter:
        recipe = recipe_of(case, device, len(batches), launch, folder)
        before, after = meter.now, AfterOneStep(meter)
        model, adapter = made(config, recipe, device), adapters.planned(recipe.model)
        trainer = FastDPOTrainer(
            model=model,
            ref_model=copy.deepcopy(model) if is_live(recipe) else None,
            peft_config=adapter,
            args=recipe.training,
            train_dataset=Dataset.from_list(rows),
            processing_class=workload.any_tokenizer(),
            callbacks=[watch, after],
            share_prefix=recipe.run.share_prefix,
            reference_cache=folder,
            launch=launch,
        )
        loaded = meter.now
        meter.begin()
        trainer.train()
        found = {"loaded": loaded, "standing": after.found, "peak": meter.most}
        empty(model)
    found = {name: size - before for name, size in found.items()}
    return found | {"seconds": sum(watch.seconds[UNTIMED:]), "sharing": trainer.sharing}


def empty(model: torch.nn.Module) -> None:
    """Let go of the weights, of which those in 4 bits are still held when nobody names them: until
    the next case trains, whose peak would seem lower by them."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.new_empty(0)


def is_live(recipe: Recipe) -> bool:
    """Whether a reference of its own is in memory."""
    return not recipe.training.precompute_ref_log_probs and not recipe.model.use_peft


def main(asked: str) -> None:
    """Print a line for each case as soon as it is measured. After one that fails the process ends:
    on a GPU that has met an error nothing goes on."""
    how = json.loads(asked)
    for case, batches in how["cases"]:
        try:
            found = measured(Case(**case), np.array(batches), how["device"], how["small"])
        except (Exception, Refusal) as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {first_line(error)}"}
        print(f"{FOUND}{json.dumps(found)}", flush=True)
        if "error" in found:
            sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
