"""What a process holds in training, by torch's own accounting: bytes of storages, by whose."""

import copy
import gc
import json
import os
import runpy
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
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
from dpo.plan.arithmetic.counted import How, Tally, kept
from dpo.plan.arithmetic.memory import ZERO, Setting, Sizes, gathered, sizes_of, standing
from dpo.plan.arithmetic.peak import terms
from dpo.plan.measured import storages
from dpo.plan.measured.measure import LOOKED_AT, Measure
from dpo.speed.workload import any_tokenizer
from dpo.training.trainer import FastDPOTrainer
from support import tiny
from support.launched import FSDP

SHAPE = {"vocab_size": 2000, "hidden_size": 512, "intermediate_size": 256}
ADAPTER = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
PAIR = 48, 96, 80  # tokens of prompt, chosen and rejected, in every one
Case = dict[str, Any]
# What was held; the most weights within the model; the most of all while a step computes, and while
# its optimizer works.
Found = tuple[list[dict[str, int]], int, dict[str, int]]


def every_tensor() -> Iterator[Tensor]:
    return (each for each in gc.get_objects() if issubclass(type(each), Tensor))


class Watch(Measure):
    """Takes note of what is held as a run does of itself, and of what nobody owns."""

    def __init__(self, trainer, before: Iterable[int]):
        super().__init__(trainer)
        self.before, self.most = before, 0  # the most weights within the model
        self.tally, self.peaks = Tally(), {"computes": 0, "updates": 0}
        for each in every_tensor():
            if storages.storages([each]).keys() - before:
                self.tally.add(getattr(each, "_local_tensor", each).untyped_storage())

    def since(self, what: str) -> None:
        """Take the most that there has been since this was last called for a part of the step."""
        self.peaks[what] = max(self.peaks[what], self.tally.most)
        self.tally.most = self.tally.now

    def on_step_begin(self, *args, **kwargs):
        super().on_step_begin(*args, **kwargs)
        self.tally.most = self.tally.now

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
            if found < 1e5:
                break
            time.sleep(0.1)
        self.notes[-1]["rest"] = found
        self.since("computes")

    on_substep_end = note

    def on_pre_optimizer_step(self, *args, **kwargs):
        if self.begun == LOOKED_AT and self.trainer.is_deepspeed_enabled:
            self.since("updates")  # DeepSpeed's own step has gone before, and its beginning noted
        self.note()

    def on_optimizer_step(self, *args, **kwargs):
        if self.begun == LOOKED_AT:
            self.since("updates")

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
    prompt, chosen, rejected = PAIR  # which share no more than the prompt
    ids = ([[at] * prompt, [2] * chosen, [3] * rejected] for at in range(4, 12))
    rows = [dict(zip(IDS, each, strict=True)) for each in ids]
    args = DPOConfig(
        output_dir=str(folder / "run"),
        optim=case.get("optim", "adamw_torch_fused"),
        precompute_ref_log_probs=not case["live"],
        bf16=case["bf16"],
        ddp_backend="gloo" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        max_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=case["parts"],
        max_length=sum(PAIR),
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

    # DDP and FSDP send what no operation here has made.
    seen = trainer.is_deepspeed_enabled or trainer.accelerator.num_processes == 1
    with watch.tally if seen else nullcontext():
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
    rounded = bf16 and (config in ZERO or config == "fsdp2")  # weights, instead of products alone
    computed = torch.bfloat16 if rounded else loaded
    how = How(computed, bf16 and not rounded, False, True, False, adapter=adapter)
    several, optim = case.get("parts", 2) > 1, case.get("optim", "adamw_torch_fused")
    return sizes, Setting(config, gpus, case.get("live", False), several, optim, how, bf16, loaded)


def compared(found: Found, case: Case, config: str, gpus: int) -> dict[str, tuple[float, float]]:
    """Bytes that were held and those that are predicted, by what they are."""
    notes, most, _ = found
    sizes, setting = predicted(case, config, gpus)
    expected = standing(sizes, setting) | {"rest": 0.0}
    # Of weights that are sharded the least: when none is gathered beside its shard.
    least = ("policy", "reference")
    there = {n: (min if n in least else max)(note[n] for note in notes) for n in expected}
    bound = expected["policy"] + expected["reference"] + gathered(sizes, setting)
    pairs = {name: (float(there[name]), expected[name]) for name in expected}
    return pairs | {"gathered": (float(most), bound)}


def planned(case: Case, config: str, gpus: int) -> dict[str, float]:
    """What the plan says of a case's micro-batch, by what it is."""
    sizes, setting = predicted(case, config, gpus)
    found = kept(model_of(case["name"]).config, (PAIR,), setting.how)
    return terms(sizes, setting, found, (PAIR,))


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
        found.append((watch.notes, watch.most, watch.peaks))
        (out / f"held-{rank}.json").write_text(json.dumps(found))
