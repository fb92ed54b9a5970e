"""From a recipe to TRL's DPOTrainer: the one way in which every run here is trained."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from accelerate import DistributedType
from datasets import Dataset, IterableDataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from trl import DPOConfig, get_quantization_config
from trl.trainer.utils import create_model_from_path

from dpo.core.environment import Launch
from dpo.core.refusal import Refusal
from dpo.data import fits
from dpo.models import adapters, chat_template, loading, trust
from dpo.recipe.parse import Recipe
from dpo.runs import tracking
from dpo.runs.metrics import WriteMetrics
from dpo.training.monitoring.drift import Drift
from dpo.training.trainer import FastDPOTrainer, stays_live


class StepLines(ProgressCallback):
    """The progress bar with its ETA, and one short line a log instead of a dictionary."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        prefix = "eval_" if "eval_loss" in logs else ""
        if f"{prefix}loss" not in logs or f"{prefix}rewards/margins" not in logs:
            return
        tqdm.write(
            f"{'held-out' if prefix else 'train':>8}  step {state.global_step}/{state.max_steps}  "
            f"loss {float(logs[f'{prefix}loss']):.4f}  "
            f"margin {float(logs[f'{prefix}rewards/margins']):+.3f}  "
            f"accuracy {float(logs[f'{prefix}rewards/accuracies']):.2f}"
        )


def own_device(args: DPOConfig, launch: Launch) -> dict[str, str] | None:
    """Where a model is loaded to, as `from_pretrained` takes it: whole to the GPU of the only
    process, else to the CPU, from where it is dealt out.

    A process started by hand may see several GPUs. It takes the first: Trainer would copy the model
    to all of them (DataParallel), and TRL spread it over them (device_map="auto").
    """
    if args.n_gpu > 1:
        print(
            f"One process, and {args.n_gpu} GPUs that it sees: it trains on {args.device} alone. "
            "For all of them start it with scripts/launch.py"
        )
        args._n_gpu = 1  # as Trainer sets it for a model that it must not copy
    alone = args.distributed_state.distributed_type == DistributedType.NO and not launch.fsdp
    return {"": str(args.device)} if alone and args.device.type == "cuda" else None


@contextmanager
def known_arguments(recipe: Recipe) -> Iterator[None]:
    """Name `model_init_kwargs` where a model does not take what stands there."""
    try:
        yield
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown[1] not in recipe.init:
            raise
        raise Refusal(
            f"{recipe.place('model_init_kwargs')}: model_init_kwargs has {unknown[1]}, which is "
            f"neither of the model's configuration nor an argument of from_pretrained: {error}"
        ) from error


def own_reference(recipe: Recipe, args: DPOConfig) -> PreTrainedModel:
    """The reference that a recipe states, loaded with `args` as TRL loads a policy.

    Raises:
        Refusal: its files do not hold all of its weights, and no others.
    """
    init: Any = args.model_init_kwargs or {}  # parsed by now
    how = {"trust_remote_code": args.trust_remote_code, **init}
    if (quantized := get_quantization_config(recipe.model)) is not None:
        how["quantization_config"] = quantized
    with loading.whole():
        return create_model_from_path(recipe.reference[0], **how)


def make_trainer(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase | None,
    train: Dataset | IterableDataset,
    held_out: Dataset | None,
) -> FastDPOTrainer:
    """TRL's DPOTrainer with the recipe's model, reference and adapter.

    Policy and reference are loaded alike: same dtype, same attention, and the same weights unless
    the recipe states a reference of its own.

    Raises:
        Refusal: the model's files are not whole, or do not fit the tokenizer and the data; the
            recipe would spread the model over GPUs, load it with arguments
            that it does not take, or have the reference scored beforehand where that gives other
            numbers; processes do not see each other; or they were launched for DeepSpeed or FSDP,
            and accelerate does not use it, and would train side by side, unsharded.
    """
    model, launch = recipe.model, recipe.launch
    args = copy.copy(recipe.training)  # the recipe stays what it was
    # transformers would make a repository, a public one, before the first step, and send it the
    # whole folder: use/push.py sends the policy when all is measured.
    args.push_to_hub = False
    trust.read_as_data(launch.deepspeed)
    if "device_map" in (recipe.stated.get("model_init_kwargs") or ()):
        raise Refusal(
            "model_init_kwargs: device_map would spread the model that is trained: leave it out, "
            "and shard a model that is too large for one GPU with CONFIG=zero3"
        )
    if tokenizer is not None:  # else TRL finds it, and makes tokens of the rows
        fits.check(recipe, tokenizer, train, held_out)
    init: Any = args.model_init_kwargs or {}  # parsed by now
    alike = {
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **init,
        "use_safetensors": True,  # never a pickle
        "device_map": own_device(args, launch),
    }
    own, args_of_own = recipe.run.ref_model_name_or_path, copy.copy(args)
    args_of_own.model_init_kwargs = alike | {"revision": recipe.run.ref_model_revision}
    args.model_init_kwargs = alike | {"revision": model.model_revision}
    start: dict[str, Any] = {
        "model": model.model_name_or_path,
        "peft_config": adapters.planned(model),
        "quantization_config": get_quantization_config(model),
    }
    if start["peft_config"]:  # so that the adapter is put on this base again, and on no newer one
        start["peft_config"].revision = model.model_revision
    if adapters.config_of(start["model"], model.model_revision):
        init = args.model_init_kwargs | {
            "quantization_config": start["quantization_config"],
            "trust_remote_code": args.trust_remote_code,
        }
        args.model_init_kwargs = None  # they were for a model that TRL loads
        zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
        start = {
            "model": adapters.trainable(start["model"], zero3, **init),
            "adapter": adapters.weights_file(model),
        }
    stated = "precompute_ref_log_probs" in {*recipe.stated, *recipe.flags}
    if stated and args.precompute_ref_log_probs:
        of = (start["model"], own, start.get("peft_config"), args_of_own if own else args, launch)
        if reason := stays_live(*of, train, held_out):
            raise Refusal(
                f"{recipe.place('precompute_ref_log_probs')}: precompute_ref_log_probs is True: "
                f"{reason}: leave it out, and the reference is scored as it goes"
            )
    with loading.whole(), known_arguments(recipe):
        trainer = FastDPOTrainer(
            share_prefix=recipe.run.share_prefix,
            reference_cache=recipe.run.reference_cache,
            pairs_wait=True,
            settings=recipe.learned(recipe.stated),
            launch=launch,
            load_reference=partial(own_reference, recipe, args_of_own) if own else None,
            args=args,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            **start,
        )
    chat_template.remember_end_tokens(
        trainer.model, trainer.processing_class, chat_template.prompt_kind(train.features)
    )
    if args.world_size != (launch.processes or 1):
        raise Refusal(f"{launch.processes} processes were launched and do not see each other")
    if launch.deepspeed and not trainer.is_deepspeed_enabled:
        raise Refusal("DeepSpeed was asked for and --use_cpu turns it off: leave --use_cpu out")
    if launch.fsdp and not trainer.is_fsdp_enabled:
        raise Refusal("FSDP was asked for and shards nothing on a CPU: choose a zero config")
    trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)  # in a notebook another one
    if not args.disable_tqdm:
        trainer.add_callback(StepLines)
    trainer.add_callback(WriteMetrics())
    trainer.add_callback(Drift(trainer))
    tracking.bound(trainer)
    return trainer
