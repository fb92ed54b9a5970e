"""What a process holds in training, by torch's own accounting: bytes of every storage, by whose it is."""

import gc
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import TrainerCallback

from support import tiny


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples, dictionaries and plain objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
    elif type(value).__module__.startswith("bitsandbytes"):
        yield from tensors_in(vars(value))


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of each storage, by its address."""
    found = {}
    for tensor in tensors:
        tensor = getattr(tensor, "_local_tensor", tensor)
        storage = tensor.untyped_storage()
        if storage.nbytes() and tensor.device.type != "meta":
            found[storage.data_ptr()] = storage.nbytes()
    return found


def weights(model: torch.nn.Module) -> Iterator[Tensor]:
    for parameter in model.parameters():
        yield getattr(parameter, "ds_tensor", parameter)
        yield parameter
        yield from tensors_in(vars(parameter).get("quant_state"))


def gradients(trainer) -> Iterator[Tensor]:
    zero = getattr(trainer.model_wrapped, "optimizer", None)
    for parameter in trainer.model.parameters():
        for each in (parameter.grad, getattr(parameter, "grad_accum", None)):
            if each is not None:
                yield each
    for name in (
        "fp32_groups_gradients_flat",
        "averaged_gradients",
        "grads_in_partition",
        "all_grad_tensors",
        "fp32_partitioned_groups_flat_grads",
    ):
        yield from tensors_in(getattr(zero, name, ()))
    for name in ("grad_partitions_flat_buffer", "_DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition"):
        yield from tensors_in(getattr(zero, name, ()))


def states(trainer) -> Iterator[Tensor]:
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        for name in ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat"):
            yield from tensors_in(getattr(optimizer, name, ()))
        optimizer = optimizer.optimizer
    yield from tensors_in(dict(optimizer.state))


def held(trainer, before: set[int]) -> dict[str, int]:
    """Bytes of a process by what they are; storages that were there before aside."""
    gc.collect()
    parts = {
        "policy": storages(weights(trainer.model)),
        "gradients": storages(gradients(trainer)),
        "reference": storages(weights(trainer.ref_model) if trainer.ref_model else ()),
        "optimizer": storages(states(trainer)),
    }
    found, known = {}, set()
    for name, part in parts.items():
        found[name] = sum(size for key, size in part.items() if key not in known)
        known |= part.keys()
    rest = []
    for each in gc.get_objects():
        if issubclass(type(each), Tensor):
            rest.append(each)
    rest = {k: v for k, v in storages(rest).items() if k not in known | before}
    found["rest"] = sum(rest.values())
    found["largest"] = sorted(rest.values())[-6:]
    return found


SHAPE = {"vocab_size": 2000, "hidden_size": 512, "intermediate_size": 256, "num_hidden_layers": int(os.environ.get("LAYERS", "3"))}


class Note(TrainerCallback):
    def __init__(self, before):
        self.before, self.found = before, []

    def on_pre_optimizer_step(self, *args, **kwargs):
        if not self.trainer.is_deepspeed_enabled:
            self.note("step")

    def on_substep_end(self, *args, **kwargs):
        self.note("substep")

    def on_step_end(self, *args, **kwargs):
        self.note("end")

    def note(self, when):
        self.found.append((when, held(self.trainer, self.before)))


def save_models(folder: Path) -> None:
    with patch.dict(tiny.SIZES, SHAPE):
        for name in (tiny.ARCHITECTURES if SHAPE["num_hidden_layers"] == 3 else ["llama"]):
            tiny.random_model(name).save_pretrained(folder / name)
            tiny.any_tokenizer().save_pretrained(folder / name)


def case(name: str, folder: Path, dtype="float32", lora=False, live=False, bf16=False, parts=2, four_bits=False, nested=False, **more) -> Any:
    objects = {"model": str(folder.parent / name)}
    if four_bits:
        from transformers import BitsAndBytesConfig
        objects["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested)
    gc.collect()
    before = set(storages(o for o in gc.get_objects() if issubclass(type(o), Tensor)))
    with patch.dict(tiny.SIZES, SHAPE):
        trainer = tiny.trainer_of(
            folder, name, fast="STOCK" not in os.environ, lora=lora, precompute_ref_log_probs=not live, bf16=bf16,
            use_cpu=False, ddp_backend="gloo" if "WORLD_SIZE" in os.environ and os.environ["WORLD_SIZE"] > "1" else None, max_steps=2, objects=objects, gradient_accumulation_steps=parts, per_device_train_batch_size=1,
            model_init_kwargs={"attn_implementation": "sdpa", "dtype": dtype}, **more,
        )
    note = Note(before)
    note.trainer = trainer
    backward = trainer.accelerator.backward
    def turn(*a, **k):
        note.note("turn")
        if os.environ.get("DEBUG") == "1":
            co = trainer.model_wrapped.optimizer.parameter_offload.param_coordinator if hasattr(trainer.model_wrapped.optimizer.parameter_offload, "param_coordinator") else trainer.model_wrapped.optimizer.parameter_offload.get_param_coordinator()
            v = {k.split("__")[-1]: x for k, x in vars(co).items()}
            print("TRACE", v["trace_mode"], v["step_id"], len(v["submodule_order"]), v["max_reuse_dist_in_numel"], v["max_n_available_params"], v["prefetch_bucket_sz"])
            names = {m.ds_id: n for n, m in trainer.model.named_modules() if hasattr(m, "ds_id")}
            print([names.get(m.ds_id) for m in v["submodule_order"]])
            for n, p in list(trainer.model.named_parameters())[:6]:
                print(n, p.ds_status, p.ds_active_sub_modules, p.ds_persist, v["most_recent_step_id_param_fetched_for"].get(p))
        return backward(*a, **k)
    trainer.accelerator.backward = turn
    ref = trainer.ref_model
    if trainer.is_deepspeed_enabled:
        for model in (trainer.model, ref):
            if model is not None:
                for n, layer in enumerate(getattr(model, "module", model).get_decoder().layers):
                    layer.register_forward_pre_hook(lambda *a, n=n: note.note(f"forward{n}"))
                    if model is trainer.model:
                        layer.register_full_backward_hook(lambda *a, n=n: note.note(f"backward{n}"))
    trainer.add_callback(note)
    if trainer.is_deepspeed_enabled:
        from deepspeed.runtime.engine import DeepSpeedEngine as Engine
        step = Engine.step
        def noting(engine, *a, **k):
            if engine.is_gradient_accumulation_boundary():
                note.note("step")
            return step(engine, *a, **k)
        from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer as Zero
        release = Zero._release_ipg_buffers
        def releasing(self):
            if hasattr(self, "grads_in_partition"):
                note.note("epilogue")
            return release(self)
        with patch.object(Engine, "step", noting), patch.object(Zero, "_release_ipg_buffers", releasing):
            trainer.train()
    else:
        trainer.train()
    return note.found


def be(environment: dict[str, str], cases: list[dict[str, Any]], out: Path) -> None:
    import json
    import sys
    import runpy

    os.environ.clear()
    os.environ.update(environment)
    if "SCALED" in os.environ and "ACCELERATE_DEEPSPEED_CONFIG_FILE" in os.environ:
        import json
        scale = json.loads(Path(os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"]).read_text())
        scale["zero_optimization"] |= {"stage3_max_live_parameters": int(os.environ["SCALED"]), "stage3_max_reuse_distance": int(os.environ["SCALED"])}
        file = out / f"scaled.json"
        file.write_text(json.dumps(scale))
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(file)
    rank = int(environment.get("RANK", 0))
    for name, descriptor in ((f"output-{rank}", 1), (f"errors-{rank}", 2)):
        with (out / name).open("ab") as file:
            os.dup2(file.fileno(), descriptor)
    torch.set_num_threads(1)
    import transformers.training_args
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    if environment.get("ACCELERATE_USE_FSDP"):
        runpy.run_path("tests/support/fsdp_on_cpu/sitecustomize.py")
    from accelerate.state import AcceleratorState
    rows = []
    for n, each in enumerate(cases):
        AcceleratorState._reset_state()
        folder = out / f"{rank}-{n}"
        folder.mkdir()
        for found in case(folder=folder, **each):
            rows.append([each, found])
        (out / f"held-{rank}.json").write_text(json.dumps(rows))
