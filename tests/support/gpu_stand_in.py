"""A stand-in for a GPU: tensors that say they are on `cuda:0` and compute on the CPU, as strict as
a GPU's.

What a GPU refuses is refused: an operation on tensors of both devices, NumPy's view of one. What
makes the host wait for a GPU is noted: a number read, a copy back, a shape that depends on values.
Values are real, so that all of a run can go through it, its checks included.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import accelerate.state
import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")
OURS = ("/dpo/", "/trl/", "/transformers/", "/accelerate/")
aten = torch.ops.aten


class OnGPU(Tensor):
    """Holds a tensor of the CPU in `held`. Torch's C++ takes it for one as well, so that autograd
    and autocast work; only Python sees another device."""

    @staticmethod
    def __new__(cls, held: Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CPU,
        )

    def __init__(self, held: Tensor):
        self.held = held

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self, **_):
        return f"OnGPU({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})

    def to(self, *args, **kwargs):
        names = ("device", "dtype", "non_blocking", "copy")
        first = args[0] if args else None
        if isinstance(first, Tensor):
            args = (first.device, first.dtype, *args[1:])
        elif isinstance(first, torch.dtype):
            args = (None, *args)
        given = dict(zip(names, args, strict=False)) | kwargs
        device, dtype = given.get("device"), given.get("dtype") or self.dtype
        if device is None or torch.device(device).type == "cuda":
            copy = given.get("copy") or dtype != self.dtype
            return aten._to_copy(self, dtype=dtype) if copy else self
        return _to_cpu(self).to(dtype)

    def cpu(self, *_, **__):
        return _to_cpu(self)

    def cuda(self, *_, **__):
        return self

    def tolist(self):
        note_wait("tolist")
        return self.held.tolist()

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")

    __array__ = numpy


class _ToCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        note_wait("copy to the CPU")
        return tensor.held.clone()

    @staticmethod
    def backward(ctx, gradient):
        return OnGPU(gradient)


def _to_cpu(tensor: OnGPU) -> Tensor:
    return _ToCPU.apply(tensor)


class _OnCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, *tensors):
        with torch.enable_grad():
            ctx.given = [t.held.detach().requires_grad_(t.is_floating_point()) for t in tensors]
            ctx.out = function(*ctx.given)
        return OnGPU(ctx.out.detach())

    @staticmethod
    def backward(ctx, gradient):
        wanted = [t for t in ctx.given if t.requires_grad]
        found = iter(torch.autograd.grad(ctx.out, wanted, gradient.held))
        return None, *(OnGPU(next(found)) if t.requires_grad else None for t in ctx.given)


def kernel(function):
    """A kernel that only a GPU has: written out in `function`, it sees tensors of the CPU."""

    def run(query, key, value, queries, keys, *rest, **options):
        def on_cpu(*tensors):
            return function(*tensors, *rest, **options)

        return _OnCPU.apply(on_cpu, query, key, value, queries, keys)

    return run


waits: Counter[str] = Counter()


def note_wait(kind: str) -> None:
    """Count that the host waits, by the line of code that makes it."""
    frames = [f for f in traceback.extract_stack() if any(part in f.filename for part in OURS)]
    where = frames[-1] if frames else None
    waits[f"{kind}: {where.filename.rpartition('/')[2]}:{where.lineno}" if where else kind] += 1


def changed(change: Callable[[Tensor], Tensor], given):
    """The same with another tensor in the place of each, in tuples, lists and dictionaries: several
    times as fast as PyTorch's own, which knows others."""
    if isinstance(given, Tensor):
        return change(given)
    if isinstance(given, dict):
        return {name: changed(change, part) for name, part in given.items()}
    if isinstance(given, (tuple, list)):
        return type(given)(changed(change, part) for part in given)
    return given


def compute(function, args: tuple, kwargs: dict):
    """What a GPU would give for an operation, on the CPU."""
    name, asked = function.__name__.split(".")[0], kwargs.get("device")
    given: list[Tensor] = []
    changed(lambda tensor: given.append(tensor) or tensor, (args, kwargs))
    here = any(isinstance(tensor, OnGPU) for tensor in given)
    to_here = asked is not None and torch.device(asked).type == "cuda"
    # Autograd makes zeros beside the gradients that there are, and takes these for the CPU's.
    to_here |= not given and torch._C._current_graph_task_id() != -1
    # Where tensors of several devices may be: each of a list is computed on its own.
    several = ("_to_copy", "copy_", "index", "index_put_", "_index_put_impl_")
    if here and name not in several and not name.startswith("_foreach_"):
        for tensor in given:
            # Arithmetic takes a number from the CPU.
            if not isinstance(tensor, OnGPU) and (tensor.dim() or name in ("cat", "stack")):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two "
                    f"devices, cuda:0 and cpu! ({function}: {[t.device for t in given]})"
                )
    by_mask = name in ("index", "index_put_") and any(
        isinstance(at, Tensor) and at.dtype == torch.bool for at in args[1]
    )
    # How often in all, where that is not given.
    by_mask |= name == "repeat_interleave" and kwargs.get("output_size") is None
    if here and (name in WAITS or by_mask):
        note_wait(name)
    if name == "copy_" and isinstance(args[1], OnGPU) and not isinstance(args[0], OnGPU):
        note_wait(name)
    if asked is not None:
        kwargs = kwargs | {"device": CPU}
    held = changed(lambda each: each.held if isinstance(each, OnGPU) else each, (args, kwargs))
    if name == "histc" and not held[0][0].is_floating_point():  # a kernel that only a GPU has
        out = function(held[0][0].float(), *held[0][1:], **held[1]).to(held[0][0].dtype)
    else:
        out = function(*held[0], **held[1])
    if not (here or to_here) or (name == "copy_" and not isinstance(args[0], OnGPU)):
        return out
    if name.startswith("_foreach_") and out is not None:
        return [OnGPU(o) if isinstance(i, OnGPU) else o for i, o in zip(args[0], out, strict=True)]
    out = changed(OnGPU, out)
    return return_and_correct_aliasing(function, args, kwargs, out) if here else out


class Mode(TorchDispatchMode):
    """Sees tensors of the CPU on their way to the GPU, and those that are made there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def moved(module: torch.nn.Module, *args, **kwargs) -> torch.nn.Module:
    """Module.to: weights that are shared stay shared."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and not (isinstance(weight, OnGPU) and dtype is None):
                data = weight.detach()
                if dtype is not None and data.is_floating_point():
                    data = data.to(dtype)
                if device is not None and device.type == "cuda" and not isinstance(data, OnGPU):
                    data = OnGPU(data)
                # The same parameter, for optimizers and for modules that share it.
                there = torch.nn.Parameter(data, weight.requires_grad)
                torch.utils.swap_tensors(part._parameters[name], there)
        for name, buffer in part._buffers.items():
            if buffer is not None and device is not None and not isinstance(buffer, OnGPU):
                part._buffers[name] = OnGPU(buffer)
    return module


def from_data(make, *args, device=None, **kwargs) -> Tensor:
    """torch.tensor: it makes tensors where no mode sees it."""
    made = make(*args, **kwargs)
    return made if device is None else made.to(device)


class Autocast(torch.autocast):
    """A GPU's autocast is that of the CPU, where its tensors are computed."""

    def __init__(self, device_type: str, *args, **kwargs):
        super().__init__("cpu", *args, **kwargs)


@contextlib.contextmanager
def gpu(capability: tuple[int, int] = (9, 0)) -> Iterator[Counter[str]]:
    """Within, `cuda:0` is there, and every process state that is made anew is on it.

    Yields how often the host has waited for it, by line of code.
    """
    with pytest.MonkeyPatch.context() as patch:
        init = accelerate.state.PartialState.__init__

        def on_gpu(state, *args, **kwargs):
            init(state, *args, **kwargs)
            state.device = GPU

        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        patch.setattr(accelerate.state.PartialState, "__init__", on_gpu)
        patch.delenv("ACCELERATE_USE_CPU", raising=False)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "get_device_name", lambda *_: "stand-in")
        patch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        patch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.zeros(1))
        patch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
        for made in ("tensor", "as_tensor"):
            patch.setattr(torch, made, partial(from_data, getattr(torch, made)))
        patch.setattr(torch.nn.Module, "to", moved)
        device = property(lambda args: (args._setup_devices, GPU)[1])
        patch.setattr(transformers.TrainingArguments, "device", device)
        patch.setattr(torch, "autocast", Autocast)
        for asked in ("is_autocast_enabled", "get_autocast_dtype"):
            stock = getattr(torch, asked)
            patch.setattr(torch, asked, lambda kind="cpu", stock=stock: stock("cpu"))
        patch.setattr("trl.kernels.chunked_logprob._MM_OUT_DTYPE", False)  # a GPU's own addmm
        waits.clear()
        with Mode():
            yield waits
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
