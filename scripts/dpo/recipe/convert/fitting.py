"""The values of a recipe that was brought, as runs here take them: precision, losses, evaluation,
checkpoints, names that the libraries know."""

from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from dpo.recipe.convert.brought import Brought
from dpo.recipe.validate import LOSS_TYPES, SMOOTHED


def precision(b: Brought) -> None:
    new, dtype = b.new, str(b.new.pop("dtype", "")).removeprefix("torch.")
    if new.get("load_in_4bit") or new.get("load_in_8bit"):
        new["use_peft"] = True
    if dtype in ("bfloat16", "float16", "auto") and not new.get("use_peft"):
        b.dropped["dtype"] = f"{dtype}: weights that are trained stay in float32"
        b.warned.append(
            f"the original trains weights in {dtype}, where an update of a small learning rate is "
            "lost; here they are in float32, and bf16 computes"
        )
    elif dtype in ("bfloat16", "float16", "auto"):
        new["dtype"] = dtype
    adapter = [k for k in new if k.startswith("lora_") or k in ("use_dora", "use_rslora")]
    for key in [] if new.get("use_peft") else adapter:
        b.leave(key, "without an adapter all weights are trained")
    if new.get("disable_dropout", True):
        b.leave("lora_dropout", "disable_dropout is on")
    for half, served in (("bf16", True), ("fp16", False), ("tf32", "auto")):
        if new.get(half) in ("auto", served):
            b.leave(half, "the default serves")
    if new.get("attn_implementation") not in ("eager", "sdpa"):
        b.leave("attn_implementation", "prefix sharing has attention of its own")


def losses(b: Brought) -> None:
    types = b.new.get("loss_type", ["sigmoid"])
    types = types if isinstance(types, list) else [str(types)]
    types = ["aot_unpaired" if name == "aot_pair" else name for name in types]
    if other := [name for name in types if name not in LOSS_TYPES]:
        b.refuse(f"loss_type {', '.join(other)} is none of TRL's DPO: {', '.join(LOSS_TYPES)}")
    b.new["loss_type"] = types
    if b.new.get("label_smoothing") and not {*types} & {*SMOOTHED}:
        b.leave("label_smoothing", f"{types[0]} smooths no labels")
        b.warned.append("label_smoothing: TRL smooths labels of robust, exo_pair and aot alone")


def evaluation(b: Brought) -> None:
    new = b.new
    for what in ("eval", "save"):
        if new.get(f"{what}_strategy") is False:  # YAML's no
            new[f"{what}_strategy"] = "no"
        if new.get(f"{what}_strategy", "steps") != "steps":
            b.leave(f"{what}_steps", f"{what}_strategy has no steps")
    if "eval_strategy" not in new and "eval_steps" in new and new.get("test_split_size"):
        new["eval_strategy"] = "steps"
    if new.get("datasets") and not new.get("test_split_size"):
        if new.get("eval_strategy", "no") != "no":
            b.warned.append("nothing is held out of a mixture: evaluation is off")
        new["eval_strategy"] = "no"
    if new.get("eval_strategy", "no") == "no":
        if new.pop("load_best_model_at_end", None):
            b.dropped["load_best_model_at_end"] = "without evaluation none is best"
            b.warned.append("the original asks for its best model, and evaluates none")
        for key in [k for k in new if k.startswith(("eval_", "per_device_eval", "metric_for"))]:
            if key != "eval_strategy":
                b.leave(key, "nothing is evaluated")
        new.pop("greater_is_better", None)
    evaluates = new.get("eval_strategy", "no") != "no"
    lost = {"no": "a killed run goes on from one"}
    lost |= {} if evaluates else {"best": "without evaluation none is best"}
    if why := lost.get(new.get("save_strategy")):
        b.leave("save_strategy", why)
        new.pop("save_steps", None)
    if new.get("save_strategy") == "best":
        new.setdefault("metric_for_best_model", "loss")
    if not {"save_steps", "save_strategy"} & {*new}:
        if new.get("load_best_model_at_end") and new["eval_strategy"] == "epoch":
            new["save_strategy"] = "epoch"  # what is best has to be kept
        else:
            new["save_steps"] = new.get("eval_steps", 100)
    new.setdefault("save_total_limit", 1)
    trackers = new.get("report_to") or "wandb"
    trackers = [trackers] if isinstance(trackers, str) else trackers
    kept = [name for name in trackers if name in ("wandb", "trackio", "none")]
    if lost := [name for name in trackers if name not in (*kept, "all")]:
        b.dropped["report_to"] = f"{', '.join(lost)}: W&B and a local page are the trackers here"
    new["report_to"] = (kept or ["wandb"])[0]


def known_names(b: Brought) -> None:
    """Leave out optimizers and schedules that Transformers has not."""
    removed = {"adamw_hf": "adamw_torch", "adamw": "adamw_torch"}
    b.new["optim"] = removed.get(b.new.get("optim", ""), b.new.get("optim", "adamw_torch_fused"))
    for key, kinds in (("optim", OptimizerNames), ("lr_scheduler_type", SchedulerType)):
        value = b.new.get(key)
        if value is not None and value not in [kind.value for kind in kinds]:
            b.leave(key, "Transformers has none of this name")
            b.warned.append(f"{key}: {value} is not there: the default is taken")
