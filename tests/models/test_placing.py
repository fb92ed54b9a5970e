"""Which GPUs a model is put on, trained or asked: one, unless it does not fit."""

from types import SimpleNamespace

import pytest
import torch
import transformers.training_args
from accelerate.state import AcceleratorState, PartialState
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from dpo.core.environment import Launch
from dpo.evaluation.contestants import Contestant
from dpo.evaluation.judges.reward_model import RewardModel
from dpo.models import adapters, loading
from dpo.recipe.parse import parse
from dpo.training import build
from support.commands import once
from support.tiny import random_model


class Loaded(Exception):
    """Ends what loads a model, and holds how it would have been loaded."""


def gpus(monkeypatch, count: int, free: float = 80e9) -> None:
    """As if `count` GPUs were seen, each with so many bytes free."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (int(free), int(free)))


@pytest.fixture
def seen(monkeypatch):
    """Three GPUs, as a process sees them that was started without the launcher."""
    for state in (PartialState, AcceleratorState):
        monkeypatch.setattr(state, "_shared_state", {})
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(transformers.training_args, "is_torch_bf16_gpu_available", lambda: True)
    gpus(monkeypatch, 3)


def loaded(monkeypatch, kind, name: str = "from_pretrained"):
    """Let `kind` load nothing, and say how it was asked to."""

    def stop(*args, **how):
        raise Loaded(how)

    monkeypatch.setattr(kind, name, stop)


@pytest.mark.parametrize("start", ["model", "lora", "adapter"])
def test_one_process_trains_on_the_first_gpu_alone(
    monkeypatch, seen, capsys, tiny_flags, tiny_adapter, start
):
    flags = [*tiny_flags, *(["--use_peft"] if start != "model" else [])]
    flags += [f"--model_name_or_path={tiny_adapter}"] if start == "adapter" else []
    recipe = parse(["--config", "recipes/smollm2-sentiment.yaml", *once(flags)])
    assert recipe.training.n_gpu == 3
    if start == "adapter":
        loaded(monkeypatch, adapters, "trainable")
    else:
        loaded(monkeypatch, build.FastDPOTrainer, "__init__")
    with pytest.raises(Loaded) as how:
        build.make_trainer(recipe, None, None, None)
    how = how.value.args[0]
    init = how if start == "adapter" else how["args"].model_init_kwargs
    assert init["device_map"] == {"": "cuda:0"}
    if start != "adapter":  # which is loaded first
        assert how["args"].n_gpu == 1  # else Trainer copies the model to all
        assert how["args"].train_batch_size == 2
    assert recipe.training.n_gpu == 3  # the recipe stays what it was
    assert "3 GPUs that it sees: it trains on cuda:0 alone" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["MULTI_GPU", "DEEPSPEED", "NO"])
def test_what_is_dealt_out_is_loaded_to_no_gpu(kind):
    """Several processes, and one under FSDP or on a CPU."""
    cuda = kind != "NO"
    args = SimpleNamespace(n_gpu=1, device=torch.device("cuda:1" if cuda else "cpu"))
    args.distributed_state = SimpleNamespace(distributed_type=build.DistributedType(kind))
    assert build.own_device(args, Launch()) is None
    args.distributed_state.distributed_type = build.DistributedType.NO
    assert build.own_device(args, Launch(fsdp=True)) is None


def test_a_device_map_in_a_recipe_is_refused(tiny_flags):
    stated = '--model_init_kwargs={"device_map": "auto"}'
    recipe = parse(["--config", "recipes/smollm2-sentiment.yaml", *tiny_flags, "--use_cpu", stated])
    with pytest.raises(SystemExit, match="device_map would spread the model that is trained"):
        build.make_trainer(recipe, None, None, None)


def test_the_size_of_weights_is_known_from_their_shape(tmp_path, tiny_adapter):
    model = random_model("gemma3")  # with a tied head
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    count = sum(parameter.numel() for parameter in model.parameters())
    for dtype, size in (("auto", 2), ("float32", 4), ("bfloat16", 2)):
        assert Contestant("", str(tmp_path / "model"), dtype=dtype).weight_bytes() == size * count
    base = AutoModelForCausalLM.from_pretrained(tiny_adapter).base_model
    whole = sum(p.numel() for n, p in base.named_parameters() if "lora" not in n)
    assert Contestant("", str(tiny_adapter), dtype="float32").weight_bytes() == 4 * whole


@pytest.mark.parametrize("of", ["model", "adapter", "judge"])
def test_a_model_is_asked_on_one_gpu_where_it_fits(monkeypatch, tmp_path, tiny_model, of):
    path = tmp_path / of
    if of == "adapter":
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        get_peft_model(base, lora).save_pretrained(path)
        loaded(monkeypatch, AutoPeftModelForCausalLM)
        asked, load = Contestant("", str(path)), Contestant.load
    elif of == "judge":
        judge = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
        judge.save_pretrained(path)
        Contestant("", str(tiny_model)).tokenizer().save_pretrained(path)
        asked, load = RewardModel(str(path), "cuda"), lambda judge, device: judge.load()
        loaded(monkeypatch, AutoModelForSequenceClassification)
    else:
        loaded(monkeypatch, AutoModelForCausalLM)
        asked, load = Contestant("", str(tiny_model)), Contestant.load
    if of == "judge":
        size = sum(weight.nbytes for weight in judge.parameters())
    else:
        size = asked.weight_bytes()
    for free, device, put in (
        (80e9, "cuda", {"": "cuda:0"}),
        (size / 0.74, "cuda:0", {"": "cuda:0"}),
        (size / 0.76, "cuda", "auto"),  # no room is left for what it computes
    ):
        gpus(monkeypatch, 8, free)
        with pytest.raises(Loaded) as how:
            load(asked, device)
        assert how.value.args[0]["device_map"] == put


def test_a_model_that_is_asked_on_a_cpu_is_put_nowhere():
    assert loading.device_map("cpu", lambda: 1 / 0) is None


@pytest.mark.parametrize(
    ("billions", "heads", "gpus_here", "needed"),
    [(1, 32, 8, 1), (13, 40, 8, 2), (70, 64, 8, 8), (70, 64, 1, 1), (13, 12, 5, 2), (70, 12, 5, 4)],
)
def test_vllm_takes_the_fewest_gpus_that_hold_it(monkeypatch, billions, heads, gpus_here, needed):
    gpus(monkeypatch, gpus_here)
    assert loading.tensor_parallel(2 * billions * 10**9, heads, 0.45) == needed
