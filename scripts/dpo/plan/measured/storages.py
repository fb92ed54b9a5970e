"""What a process holds in training, by torch's own accounting: bytes of storages, by whose they
are. A view of a tensor, and a weight that is shared, count once."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dpo.training.stock import Declared

Storages = dict[int, int]  # bytes, by address


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and dictionaries, and in what quantizes a weight."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (found for part in value.values() for found in tensors_in(part))
    elif isinstance(value, (list, tuple)):
        yield from (found for part in value for found in tensors_in(part))
    elif type(value).__module__.startswith("bitsandbytes"):
        yield from tensors_in(vars(value))


def storages(tensors: Iterable[Tensor]) -> Storages:
    """Bytes of each storage on this process, by its address."""
    found = {}
    for tensor in tensors:
        storage = getattr(tensor, "_local_tensor", tensor).untyped_storage()
        if tensor.device.type != "meta" and storage.nbytes():
            found[storage.data_ptr()] = storage.nbytes()
    return found


def weights(model: torch.nn.Module | None) -> Iterator[Tensor]:
    for parameter in model.parameters() if model is not None else ():
        yield getattr(parameter, "ds_tensor", parameter)  # the shard, and what is gathered
        yield parameter
        yield from tensors_in(vars(parameter).get("quant_state"))


def attributes(owner: Any, *names: str) -> Iterator[Tensor]:
    for name in names:
        yield from tensors_in(getattr(owner, name, ()))


def buffers(trainer: Declared) -> Iterator[Tensor]:
    """Those that DeepSpeed sends gradients from."""
    if trainer.is_deepspeed_enabled:
        for bucket in getattr(trainer.model_wrapped.optimizer, "ipg_buckets", {}).values():
            yield from tensors_in(bucket.buffer)


def gradients(trainer: Declared) -> Iterator[Tensor]:
    for parameter in trainer.model.parameters():
        yield from attributes(parameter, "grad", "grad_accum")
    names = ("fp32_groups_gradients_flat", "averaged_gradients", "all_grad_tensors")
    names += ("grads_in_partition", "grad_partitions_flat_buffer")
    yield from attributes(getattr(trainer.model_wrapped, "optimizer", None), *names)


def states(trainer: Declared) -> Iterator[Tensor]:
    """An optimizer's states, and float32 copies of the weights."""
    optimizer = trainer.optimizer
    masters = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition")
    while hasattr(optimizer, "optimizer"):
        yield from attributes(optimizer, *masters, "fp32_partitioned_groups_flat")
        optimizer = optimizer.optimizer
    yield from tensors_in(dict(optimizer.state))


def references(trainer: Declared) -> Iterator[Tensor]:
    """Of a reference that is a model of its own: live, or back for pairs that it has not scored."""
    yield from weights(trainer.ref_model)
    yield from weights(getattr(trainer, "loaded", None))


OWNERS = {
    "policy": lambda trainer: weights(trainer.model),
    "communication": buffers,
    "gradients": gradients,
    "reference": references,
    "optimizer": states,
}


def owned(trainer: Declared) -> tuple[dict[str, Storages], dict[str, Exception]]:
    """Storages by what they are, each of the first owner that has it; and of what they could not be
    found, with the reason: something unknown is wrapped around it."""
    found, failed, known = {}, {}, set()
    for name, tensors in OWNERS.items():
        try:
            part = storages(tensors(trainer))
        except Exception as error:
            failed[name] = error
            continue
        found[name] = {key: size for key, size in part.items() if key not in known}
        known |= part.keys()
    return found, failed


def held(trainer: Declared) -> tuple[dict[str, int], dict[str, Exception]]:
    """Bytes by what they are, and what could not be counted, as `owned` has it."""
    found, failed = owned(trainer)
    total = {name: sum(part.values()) for name, part in found.items()}
    if isinstance(wrapped := trainer.model_wrapped, DistributedDataParallel):  # C++ holds them
        try:
            logged = wrapped._get_ddp_logging_data()
            sizes = logged.get("rebuilt_bucket_sizes") or logged["bucket_sizes"]
            total["communication"] = sum(map(int, sizes.split(",")))
        except Exception as error:
            failed["communication"] = error
    return total, failed
