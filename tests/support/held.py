"""What a process holds in training, by torch's own accounting: bytes of storages, by whose."""

import copy
import gc
import json
import os
import runpy
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers.training_args
from accelerate.state import AcceleratorState
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from trl import DPOConfig

from dpo.data.schema import IDS
from dpo.plan.arithmetic.counted import How
from dpo.plan.arithmetic.memory import Setting, Sizes, gathered, sizes_of, standing
from dpo.plan.measured import storages
from dpo.plan.measured.measure import LOOKED_AT, Measure
from dpo.speed.workload import any_tokenizer
from dpo.training.trainer import FastDPOTrainer
from support import tiny
from support.launched import FSDP

SHAPE = {"vocab_size": 2000, "hidden_size": 512, "intermediate_size": 256}
ADAPTER = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
Case = dict[str, Any]
Found = tuple[list[dict[str, int]], int]  # what was held, and the most weights within the model


def every_tensor() -> Iterator[Tensor]:
    return (each for each in gc.get_objects() if issubclass(type(each), Tensor))


class Watch(Measure):
    """Takes note of what is held as a run does of itself, and of what nobody owns."""

    def __init__(self, trainer, before: Iterable[int]):
        super().__init__(trainer)
        self.before, self.most = before, 0  # the most weights within the model

    def note(self, *args, **kwargs) -> None:
        super().note()
        if self.begun != LOOKED_AT:
            return
        owned, failed = storages.owned(self.trainer)
        assert not failed
        known = {key for part in owned.values() for key in part} | {*self.before}
        # Batches and buffers of the model, unless something was forgotten. A thread of gloo's has
        # what it has just sent for a moment more.
        for _ in range(20):
            rest = storages.storages(every_tensor())
            found = sum(size for key, size in rest.items() if key not in known)
            if found < 1e6:
                break
            time.sleep(0.1)
        self.notes[-1]["rest"] = found

    on_substep_end = on_pre_optimizer_step = note

    def layer(self, *args) -> None:
        models = (self.trainer.model, self.trainer.ref_model)
        there = storages.storages(w for model in models for w in storages.weights(model))
        self.most = max(self.most, sum(there.values()))


def watched(case: Case, models: Path, folder: Path) -> Watch:
    """What a trainer of this case holds while it trains two steps."""
    AcceleratorState._reset_state()
    gc.collect()
    case = {"bf16": False, "dtype": "float32", "live": False, "parts": 2, "lora": False} | case
    before = storages.storages(every_tensor()).keys()  # what a trainer before has left
    bits = case.get("bits")
    objects: dict[str, Any] = {"model": str(models / case["name"])}
    objects["peft_config"] = adapter_of(case)
    if bits:
        objects["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=case["dtype"],
            bnb_4bit_use_double_quant=bits == "nested",
        )
    rows = [dict(zip(IDS, pair, strict=True)) for pair in tiny.EDGE_PAIRS]
    args = DPOConfig(
        output_dir=str(folder / "run"),
        optim=case.get("optim", "adamw_torch_fused"),
        precompute_ref_log_probs=not case["live"],
        bf16=case["bf16"],
        ddp_backend="gloo" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        max_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=case["parts"],
        max_length=tiny.MAX_LENGTH,
        gradient_checkpointing=False,
        model_init_kwargs={"attn_implementation": "sdpa", "dtype": case["dtype"]},
        report_to="none",
        save_strategy="steps" if case.get("saves") else "no",
        save_steps=2,
        disable_tqdm=True,
    )
    trainer = FastDPOTrainer(
        args=args,
        train_dataset=Dataset.from_list(rows),
        share_prefix=True,
        reference_cache=str(folder / "cache"),
        **objects,
    )
    watch = Watch(trainer, before)
    trainer.add_callback(watch)
    for model in filter(None, (trainer.model, trainer.ref_model)):
        for layer in getattr(model, "module", model).get_decoder().layers:
            layer.register_forward_pre_hook(watch.layer)
            layer.register_full_backward_hook(watch.layer)

    trainer.train()
    return watch


def adapter_of(case: Case) -> LoraConfig | None:
    found = copy.deepcopy(ADAPTER)
    found.r = case.get("rank", found.r)
    return found if case.get("lora") else None


def predicted(case: Case, config: str, gpus: int) -> tuple[Sizes, Setting]:
    """What `dpo.plan.arithmetic.memory` takes for a case."""
    with torch.device("meta"):
        model = model_of(case["name"])
    bits, bf16 = case.get("bits"), case.get("bf16", False)
    adapter = adapter_of(case)
    sizes = sizes_of(model, adapter, bool(bits), bits == "nested")
    loaded = getattr(torch, case.get("dtype", "float32"))
    how = How(loaded, bf16, False, True, False, adapter)
    several, optim = case.get("parts", 2) > 1, case.get("optim", "adamw_torch_fused")
    return sizes, Setting(config, gpus, case.get("live", False), several, optim, how, bf16, loaded)


def compared(found: Found, case: Case, config: str, gpus: int) -> dict[str, tuple[float, float]]:
    """Bytes that were held and those that are predicted, by what they are."""
    notes, most = found
    sizes, setting = predicted(case, config, gpus)
    expected = standing(sizes, setting) | {"rest": 0.0}
    # Of weights that are sharded the least: when none is gathered beside its shard.
    least = ("policy", "reference")
    there = {n: (min if n in least else max)(note[n] for note in notes) for n in expected}
    bound = expected["policy"] + expected["reference"] + gathered(sizes, setting)
    pairs = {name: (float(there[name]), expected[name]) for name in expected}
    return pairs | {"gathered": (float(most), bound)}


def model_of(name: str) -> PreTrainedModel:
    """A model of an architecture whose matrices ZeRO-3 shards, and small enough for a CPU."""
    with patch.dict(tiny.SIZES, SHAPE):
        config = tiny.ARCHITECTURES[name]()
    config.head_dim = 128
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def save_models(folder: Path, names: Iterable[str] = tiny.ARCHITECTURES) -> None:
    for name in names:
        model_of(name).save_pretrained(folder / name)
        any_tokenizer().save_pretrained(folder / name)


def be(environment: dict[str, str], cases: list[Case], models: Path, out: Path):
    """In a fork: train the cases in turn, as a process of a launch, and write what was held."""
    os.environ.clear()
    os.environ.update(environment)
    rank = environment.get("RANK", "0")
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"said-{rank}").open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    torch.set_num_threads(1)
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    if environment.get("ACCELERATE_USE_FSDP"):
        runpy.run_path(f"{FSDP}/sitecustomize.py")
    found = []
    for number, case in enumerate(cases):
        own = "" if case.get("saves") else f"-{rank}"  # all write one checkpoint
        watch = watched(case, models, out / f"{number}{own}")
        found.append((watch.notes, watch.most))
        (out / f"held-{rank}.json").write_text(json.dumps(found))
