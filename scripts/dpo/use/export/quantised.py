"""An export whose linear layers have 8 or 4 bits a weight, by bitsandbytes: in safetensors that
plain transformers reads, on a CPU and on a GPU, without data to calibrate on."""

import shutil
from pathlib import Path
from typing import Any

import torch
from bitsandbytes import functional
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from dpo.core.refusal import Refusal

DTYPE = torch.bfloat16  # of all other weights, and of what is computed
# What may lie between an export and plain matrix products of weights that are rounded alike, in
# nats a token in the mean: kernels sum in another order, and that of int8 rounds activations too
# (0.15 on the embedded model).
BOUNDS = {"int8": 0.5, "nf4": 0.1}
LEAST = 0.5  # of the weights but for embeddings, that must be quantised to be called so
TILE = 32, 64  # of bitsandbytes' kernel for 4 bits on CPUs with bfloat16 (AVX-512): out, in


def config_of(quant: str) -> BitsAndBytesConfig:
    """LLM.int8() (arXiv 2208.07339); or NF4, its scales quantised too, as QLoRA has it (arXiv
    2305.14314)."""
    if quant == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPE,
    )


def write(policy: PreTrainedModel, quant: str, folder: Path, trusted: bool) -> None:
    """Write a policy's weights, quantised by transformers as it reads them from a folder within."""
    whole = folder / "whole"
    policy.save_pretrained(whole)
    how = {"dtype": DTYPE, "trust_remote_code": trusted}
    model = AutoModelForCausalLM.from_pretrained(whole, quantization_config=config_of(quant), **how)
    model.save_pretrained(folder)
    shutil.rmtree(whole)


def rounded(weight: torch.Tensor, quant: str) -> torch.Tensor:
    """A linear layer's weights, shape (out, in), as they are once quantised, in their dtype."""
    if quant == "int8":
        whole, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        return functional.int8_vectorwise_dequant(whole, scales).to(weight.dtype)
    packed = functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    return functional.dequantize_4bit(*packed).to(weight.dtype)


def layers(model: PreTrainedModel) -> dict[str, Any]:
    """The layers that transformers quantises, by name: all linear ones but the head."""
    kept = get_keys_to_not_convert(model)
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in (torch.nn.Linear, Conv1D) and should_convert_module(name, kept)
    }


def check_shapes(model: PreTrainedModel, quant: str) -> None:
    """Raises Refusal where a layer in 4 bits would run on some machines alone, or most weights of a
    model are in none: experts are held in one tensor, which transformers leaves as it is."""
    found, ends = layers(model), (model.get_input_embeddings(), model.get_output_embeddings())
    aside = {module.weight for module in ends if module is not None}
    inside = sum(each.numel() for each in {*model.parameters()} - aside)
    share = sum(module.weight.numel() for module in found.values()) / inside
    if share < LEAST:
        raise Refusal(
            f"{share:.0%} of this model's weights are in linear layers, which are quantised: its "
            "experts are not. Export it whole, with DTYPE=bf16"
        )
    for name, module in found.items():
        rows, columns = module.weight.T.shape if isinstance(module, Conv1D) else module.weight.shape
        if quant == "nf4" and (rows % TILE[0] or columns % TILE[1]):
            raise Refusal(
                f"{name} has {rows} × {columns} weights, and CPUs multiply 4 bits in tiles of "
                f"{TILE[0]} × {TILE[1]}: give QUANT=int8"
            )


def round_in_place(policy: PreTrainedModel, quant: str) -> None:
    """Round a model's weights as those of an export are."""
    for parameter in policy.parameters():
        parameter.data = parameter.data.to(DTYPE)
    for module in layers(policy).values():
        weight, turned = module.weight.data, isinstance(module, Conv1D)
        found = rounded(weight.T.contiguous() if turned else weight, quant)
        module.weight.data = found.T.contiguous() if turned else found
