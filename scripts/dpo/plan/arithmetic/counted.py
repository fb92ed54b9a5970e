"""What a micro-batch needs beside the weights, counted: two and three layers of the model compute
it forward and backward on tensors without data, by the code that trains, and every further layer
needs what the third does."""

import copy
import functools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations import hub_kernels, moe
from trl.trainer.utils import disable_dropout_in_model

from dpo.core.refusal import Refusal, one_line
from dpo.prefix_sharing import attention, backbone
from dpo.prefix_sharing.plan import SharedPrefixes
from dpo.training.stock import no_dropout

DEEP = 3  # layers that tell what one more needs: the first two may attend in two ways
# Operations of a run. Most models have 2,000 to 4,000, which takes 0.2 seconds; a loop over tokens
# in Python has a hundred for each of them.
MOST = 20_000
MANY = 32  # pairs of a micro-batch
Pairs = tuple[tuple[int, int, int], ...]  # prompt, chosen and rejected tokens of each


@dataclass(frozen=True)
class How:
    """How a micro-batch is computed.

    Attributes:
        dtype: of the weights.
        autocast: linear layers compute in bfloat16, and what lies between them in the dtype.
        checkpointing: activations are computed again in the backward pass.
        shared: prompts go through the model once (prefix_sharing/).
        on_gpu: by a GPU's kernels, and not by a CPU's.
        attention: where it is not the model's own choice, as transformers names it.
        adapter: a LoRA configuration; the base is frozen.
        quantized: the base is in 4 bits: TRL casts the adapter on it to bfloat16.
        dropout: layers have theirs, which disable_dropout turns off.
    """

    dtype: torch.dtype
    autocast: bool
    checkpointing: bool
    shared: bool
    on_gpu: bool
    attention: str | None = None
    adapter: Any = field(default=None, compare=False)  # of the recipe, and the same in all
    quantized: bool = False
    dropout: bool = False


@dataclass(frozen=True)
class Kept:
    """Bytes of a micro-batch in a model of so many layers.

    Attributes:
        saved: what autograd keeps for the backward pass, hidden states of the last layer in it.
        forward: the most that is there during the forward pass, rounded weights in it.
        backward: what the backward pass needs beside `saved`: a layer computed again, and gradients
            on their way.
    """

    saved: float
    forward: float
    backward: float


class TooLong(Exception):
    """A model's layers are a loop over tokens, which would take minutes to count."""


class Tally(TorchDispatchMode):
    """Bytes of the storages that operations have made and that are still there, and the most."""

    def __init__(self):
        super().__init__()
        self.now = self.most = self.done = 0
        self.there: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.done += 1
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, Tensor):
                self.add(each.untyped_storage())
        return found

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.there:
            self.there.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.gone, key, size)

    def gone(self, key: int, size: int) -> None:
        self.there.discard(key)
        self.now -= size


class Limit(TorchFunctionMode):
    """Raises TooLong where code calls PyTorch after MOST operations: what is raised in one of them
    may pass through C++, which ends the process."""

    def __init__(self, tally: Tally):
        super().__init__()
        self.tally = tally

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self.tally.done > MOST:
            raise TooLong
        return func(*args, **(kwargs or {}))


def batch_of(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Input ids and attention mask as TRL's collator lays pairs out, shape (2B, L) each."""
    width = max(prompt + max(answers) for prompt, *answers in pairs)
    ids = torch.zeros(2 * len(pairs), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, (prompt, chosen, rejected) in enumerate(pairs):
        for row, answer in ((at, chosen), (len(pairs) + at, rejected)):
            mask[row, : prompt + answer] = 1
        ids[len(pairs) + at, prompt:] = 1  # another token: the prefix ends with the prompt
    return ids, mask


@contextmanager
def kernels(how: How) -> Iterator[None]:
    """Have the attention of shared prefixes take a GPU's way where there is none, and transformers
    not say which kernels are missing here."""
    half = how.autocast or how.dtype.itemsize < 4
    branches = attention._padded if how.on_gpu else attention._segments
    with (
        patch.object(attention, "uses_flash", lambda *_: how.on_gpu and half),
        patch.object(attention, "_segments", branches),
        # Without data torch's own takes bfloat16 alone; what stands in for it keeps as much.
        patch.object(moe, "_can_use_grouped_mm", lambda *_: False),
        patch.object(hub_kernels.logger, "disabled", True),  # says which are not installed here
    ):
        yield


def of_depth(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The configuration of a model with the first so many layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    deep = text.num_hidden_layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == deep:  # of each layer, such as its attention
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return config


def without_weights(
    config: PreTrainedConfig, dtype: torch.dtype | None = None, attention: str | None = None
) -> PreTrainedModel:
    """The model on the meta device.

    Raises:
        Refusal: it cannot be made so.
    """
    own = type(config).__module__.startswith("transformers_modules")  # trusted as that was read
    how: dict[str, Any] = {"attn_implementation": attention, "trust_remote_code": own}
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, **how)
    except Exception as error:  # its code asks for packages, or takes no meta device
        name = f"{config.name_or_path} ({config.model_type})"
        raise Refusal(f"there is no plan of model {name}: {one_line(error)}") from error


def made(config: PreTrainedConfig, how: How) -> PreTrainedModel:
    """The model on the meta device, ready to train; embeddings are frozen, since their gradient is
    not of a layer (memory.py adds it)."""
    with torch.device("meta"):
        model: Any = without_weights(config, how.dtype, how.attention)
        if how.adapter is not None:
            from peft import get_peft_model

            get_peft_model(model, copy.deepcopy(how.adapter))
    for parameter in model.parameters() if how.quantized else ():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    if not how.dropout:
        disable_dropout_in_model(model)
        no_dropout(model)
    model.train()
    if how.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if how.adapter is not None:
            model.enable_input_require_grads()
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        embedding.requires_grad_(False)
    return model


def without_data(model: PreTrainedModel) -> set[int]:
    """Put tensors of a CPU in place of those of the meta device, which no autocast knows, with the
    gradients that there are from the second micro-batch of a step on. Called where tensors have no
    data; returns their storages."""
    there = set()
    for module in model.modules():
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is None:
                continue
            tensor = torch.empty(value.shape, dtype=value.dtype)
            if name in module._parameters:
                tensor = torch.nn.Parameter(tensor, requires_grad=value.requires_grad)
                if tensor.requires_grad:
                    tensor.grad = torch.empty_like(tensor)
                    there.add(tensor.grad.untyped_storage()._cdata)
                module._parameters[name] = tensor
            else:
                module._buffers[name] = tensor
            there.add(tensor.untyped_storage()._cdata)
    return there


def run(config: PreTrainedConfig, pairs: Pairs, how: How) -> tuple[float, float, float]:
    """Bytes after the forward pass, at its peak, and at the backward pass's peak."""
    ids, mask = batch_of(pairs)
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if how.shared:
        given["shared_prefixes"] = SharedPrefixes.of(ids, mask)
    model = made(config, how)
    if how.shared:
        backbone.share_prefixes(model)
    fake = FakeTensorMode()
    with fake, kernels(how):
        given = {name: on(fake, value) for name, value in given.items()}
        tally = Tally()
        tally.there |= without_data(model)
        with tally:
            with torch.autocast("cpu", torch.bfloat16, enabled=how.autocast), Limit(tally):
                inner = model.base_model if model.base_model is not model else model.get_decoder()
                hidden = inner(**given).last_hidden_state
            after, forward = tally.now, tally.most
            tally.most = tally.now
            hidden.backward(torch.empty_like(hidden))
    return after, forward, tally.most


def on(fake: FakeTensorMode, value: Any) -> Any:
    """The same without data."""
    if isinstance(value, Tensor):
        return fake.from_tensor(value)
    if isinstance(value, SharedPrefixes):
        for name, part in vars(value).items():
            setattr(value, name, on(fake, part))
    return value


@dataclass(frozen=True)
class Model:
    """A configuration and an adapter, the same as others that say the same."""

    said: str
    config: PreTrainedConfig = field(compare=False)


def kept(config: PreTrainedConfig, pairs: Pairs, how: How) -> Kept:
    """Bytes that a micro-batch needs in the whole model beside weights and gradients; counted once,
    for however many plans."""
    said = f"{config.to_json_string(use_diff=False)} {how.adapter}"
    return once(Model(said, config), pairs, how)


@functools.cache
def once(model: Model, pairs: Pairs, how: How) -> Kept:
    """`kept`. Of more than MANY pairs with their prompts once the first are counted, and the others
    by their tokens: a CPU attends pair by pair, in more operations than MOST."""
    config = model.config
    if how.shared and len(pairs) > MANY:
        tokens, some = (sum(map(sum, each)) for each in (pairs, pairs[:MANY]))
        found = kept(config, pairs[:MANY], how)
        return Kept(*(part * tokens / some for part in astuple(found)))
    deep = config.get_text_config().num_hidden_layers
    if deep <= DEEP:
        saved, forward, peak = run(config, pairs, how)
        return Kept(saved, forward, peak - saved)
    less, more = (run(of_depth(config, layers), pairs, how) for layers in (DEEP - 1, DEEP))
    saved, forward = (
        a + (deep - DEEP + 1) * (b - a) for a, b in zip(less[:2], more[:2], strict=True)
    )
    return Kept(saved, forward, more[2] - more[0])
