"""What the plan of a run takes for weights and optimizers, against real ones. What a whole process
holds: tests/distributed/test_what_stands.py."""

import copy

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

from dpo.plan.arithmetic.memory import gathered, machine, sizes_of, standing, states
from dpo.plan.measured import storages
from support import held
from support.tiny import ARCHITECTURES

RUN_ON_A_CPU = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
RUN_ON_A_CPU += ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit")
RUN_ON_A_CPU += ("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit", "rmsprop_bnb")
RUN_ON_A_CPU += ("rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "ademamix", "ademamix_8bit")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optim", RUN_ON_A_CPU)
def test_an_optimizer_keeps_as_many_bytes_of_a_number_as_are_taken(optim, dtype, tmp_path):
    layer = torch.nn.Linear(1024, 512, bias=False, dtype=dtype)
    args = TrainingArguments(output_dir=str(tmp_path), optim=optim, use_cpu=True)
    kind, given = Trainer.get_optimizer_cls_and_kwargs(args)
    optimizer = kind(layer.parameters(), **given)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    kept = sum(storages.storages(storages.tensors_in(dict(optimizer.state))).values())
    numbers = layer.weight.numel()
    rows_and_columns = 0.02  # bytes a number, of Adafactor and of the tables of what is in 8 bits
    assert kept / numbers == pytest.approx(states(optim, dtype.itemsize), abs=rows_and_columns)


def test_an_optimizer_that_is_not_known_is_taken_for_adamw():
    assert states("schedule_free_adamw", 4) == states("adamw_torch", 4) == 8


@pytest.mark.parametrize("case", [{"optim": "adamw_8bit"}, {"optim": "adafactor"}])
def test_a_trained_model_s_optimizer_holds_what_is_taken(case, tmp_path):
    """Embeddings keep float32 states where all else keeps bytes."""
    case = {"name": "llama", "parts": 1} | case
    held.save_models(tmp_path / "models")
    watch = held.watched(case, tmp_path / "models", tmp_path)
    found = held.compared((watch.notes, watch.most, watch.peaks), case, "cpu", 1)
    there, expected = found["optimizer"]
    rows_and_columns = 0.02 * held.predicted(case, "cpu", 1)[0].trained
    assert there == pytest.approx(expected, rel=0.01, abs=10_000 + rows_and_columns)


@pytest.mark.parametrize("bits", [None, "flat", "nested"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_adapter_and_its_base_take_the_bytes_that_are_taken(name, bits, tmp_path):
    """Embeddings, norms, head and fused experts stay as they are in 4 bits."""
    held.model_of(name).save_pretrained(tmp_path)
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=bits == "nested",
    )
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, quantization_config=quantized if bits else None
    )
    model = get_peft_model(model, copy.deepcopy(held.ADAPTER))
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained if bits else ():  # as TRL does
        parameter.data = parameter.data.bfloat16()
    case = {"name": name, "lora": True, "dtype": "bfloat16", "bits": bits}
    sizes, setting = held.predicted(case, "cpu", 1)
    there = sum(storages.storages(storages.weights(model)).values())
    tables = 1100 * sum(isinstance(each, torch.nn.Linear) for each in model.modules())
    assert standing(sizes, setting)["policy"] == pytest.approx(there, rel=0.001, abs=tables)
    assert sizes.trained == sum(p.numel() for p in trained)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_without_data_has_the_sizes_of_a_real_one(name):
    model = held.model_of(name)
    with torch.device("meta"):
        sizes = sizes_of(held.model_of(name))
    layers = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    numbers = [p.numel() for p in model.parameters()]  # a tied head once
    assert (sizes.frozen, sizes.trained, sizes.layer) == (0, sum(numbers), max(layers))
    assert (sizes.head, sizes.head_trained) == (model.lm_head.weight.numel(), True)
    assert (sizes.vocabulary, sizes.hidden) == tuple(model.lm_head.weight.shape)
    assert sizes.persistent == sum(n for n in numbers if n <= 100_000) < sizes.layer


def test_what_is_offloaded_is_on_no_gpu_and_shared_by_all():
    sizes, setting = held.predicted({"name": "llama", "bf16": True}, "zero3_offload", 2)
    stands = standing(sizes, setting)
    assert stands["gradients"] == stands["optimizer"] == 0
    assert stands["policy"] == 2 * sizes.persistent
    # bfloat16 weights 2, gradients 2 × 4, masters and moments 12
    assert machine(sizes, setting) == sizes.trained * 22 / 2
    assert machine(*held.predicted({"name": "llama", "bf16": True}, "zero3", 2)) == 0
    assert gathered(sizes, setting) == 2 * (sizes.trained - sizes.persistent)
