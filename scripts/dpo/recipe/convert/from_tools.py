"""What takes thought in the recipes of LLaMA-Factory and open-instruct: their data,
adapters, losses and defaults, in our keys. Keys that only have another name are renamed by
convert.py."""

import json
from pathlib import Path

from dpo.recipe.arguments import QUESTIONS
from dpo.recipe.convert import reasons
from dpo.recipe.convert.brought import (
    Brought,
    columns,
    interleaved,
    other_reference,
    place,
    sliced,
    system_prompt,
)

# Of LLaMA-Factory's own dataset_info.json, those of text that lie on the hub: name and subset.
ITS_DATA = {
    "dpo_mix_en": ("llamafactory/DPO-En-Zh-20k", "en"),
    "dpo_mix_zh": ("llamafactory/DPO-En-Zh-20k", "zh"),
    "ultrafeedback": ("llamafactory/ultrafeedback_binarized", None),
    "coig_p": ("m-a-p/COIG-P", None),
    "orca_pairs": ("Intel/orca_dpo_pairs", None),
    "orca_dpo_de": ("mayflowergmbh/intel_orca_dpo_pairs_de", None),
}


def data_info(b: Brought, name: str, folder: str) -> tuple[dict, dict]:
    """An entry of `datasets` for a name of LLaMA-Factory's dataset_info.json, and its entry."""
    tried = [b.path.parent / folder, Path(folder), b.path.parent]
    for place_of in tried:
        listed = place_of / "dataset_info.json"
        if listed.is_file():
            info = json.loads(listed.read_text(encoding="utf-8")).get(name)
            if info:
                path = info.get("hf_hub_url") or info.get("script_url")
                path = path or str(place_of / info.get("file_name", name))
                return {"path": path, "name": info.get("subset"), "split": info.get("split")}, info
    if name in ITS_DATA:
        path, subset = ITS_DATA[name]
        return {"path": path, "name": subset}, {}
    b.warned.append(
        f"dataset: {name} is a name in LLaMA-Factory's dataset_info.json, which is not here: give "
        "the data with DATASET=, or beside the recipe"
    )
    return {"path": name}, {}


def llama_factory(b: Brought) -> None:
    if b.old.get("stage", "sft") != "dpo":
        b.refuse(f"this is no DPO, but stage: {b.old.get('stage', 'sft')}")
    loss = b.take("pref_loss") or b.take("dpo_loss") or "sigmoid"
    if loss in ("orpo", "simpo", "kto_pair"):
        b.refuse(f"this is no DPO, but pref_loss: {loss}")
    loss, weights = [loss], [1.0]
    for keys, kind in ((("pref_ftx", "dpo_ftx"), "sft"), (("pref_bco_weight",), "bco_pair")):
        for key in keys:
            if weight := b.take(key):
                loss, weights = [*loss, kind], [*weights, float(weight)]
                b.renamed.append(f"{key} → loss_type, loss_weights")
    b.put("loss_type", loss, of="pref_loss")
    if len(loss) > 1:
        b.put("loss_weights", weights)
    other_reference(b, "ref_model", b.old.get("model_name_or_path"))
    system_prompt(b, "default_system")
    if b.old.get("template"):
        b.warned.append(f"template: {b.old['template']}: {reasons.TEMPLATE}")
    folder, samples, parts = b.take("dataset_dir", "data"), b.take("max_samples"), []
    names = b.take("dataset", [])
    for name in filter(None, names.split(",") if isinstance(names, str) else names):
        part, info = data_info(b, name.strip(), str(folder))
        rows = samples or info.get("num_samples")
        part["split"] = sliced(part.get("split") or "train", rows and int(rows))
        parts.append({key: value for key, value in part.items() if value})
        named = info.get("columns") or {}
        mapping = {key: named.get(key) for key in ("chosen", "rejected", "system", "history")}
        prompt, talk = named.get("prompt"), named.get("messages")
        more = named.get("query")  # what goes with an instruction, as Alpaca's input
        asks = prompt in (("instruction", "prompt") if more else QUESTIONS)
        mapping |= {"prompt": None if asks else prompt, "input": more, "conversations": talk}
        columns(b, mapping, None)
    if samples:
        b.renamed.append("max_samples → datasets")
    how, shares = b.take("mix_strategy", "concat"), b.take("interleave_probs")
    interleaved(b, parts, how != "concat", how.startswith("interleave_under"), shares)
    if b.take("eval_dataset"):
        b.warned.append("eval_dataset: test_split_size holds out a twentieth instead")
        b.old.setdefault("val_size", 0.05)
    held_out = b.take("val_size")
    place(b, parts, [], held_out, "dataset")
    if b.take("streaming"):
        b.put("streaming" if "datasets" in b.new else "dataset_streaming", True)
    if held_out:
        b.new["eval_strategy"] = b.take("eval_strategy", "steps")
    how = b.take("finetuning_type", "lora")
    if how not in ("lora", "full"):
        b.refuse(f"finetuning_type: {how}: here all weights are trained, or a LoRA adapter")
    if how == "lora":
        b.put("use_peft", True, of="finetuning_type")
        rank = int(b.take("lora_rank", 8))
        b.new |= {"lora_r": rank, "lora_alpha": int(b.take("lora_alpha", 2 * rank))}
        b.new["lora_dropout"] = b.take("lora_dropout", 0.0)
        target = b.take("lora_target", "all")
        target = [part.strip() for part in target.split(",")] if isinstance(target, str) else target
        b.put("lora_target_modules", "all-linear" if target == ["all"] else target)
        if more := b.take("additional_target"):
            b.put("lora_modules_to_save", [part.strip() for part in str(more).split(",")])
        bits = b.take("quantization_bit")
        if bits in (4, 8):
            b.put(f"load_in_{bits}bit", True, of="quantization_bit")
        elif bits:
            b.warned.append(f"quantization_bit: {bits}: weights in 4 or 8 bits are what there is")
        if start := b.take("adapter_name_or_path"):
            if "," in str(start):
                b.refuse(f"adapter_name_or_path: {start}: merge them first, and name the result")
            b.drop("model_name_or_path", "the adapter to start from names its base")
            b.put("model_name_or_path", start, of="adapter_name_or_path")
    if b.take("disable_gradient_checkpointing"):
        b.put("gradient_checkpointing", False, of="disable_gradient_checkpointing")
    if b.take("pure_bf16"):
        b.put("dtype", "bfloat16", of="pure_bf16")
    for key in ("flash_attn", "use_reentrant_gc"):
        if b.take(key) is not None:
            b.dropped[key] = "prefix sharing has attention of its own; what is learned is the same"
    # Its own defaults, where they are not ours.
    defaults = {"cutoff_len": 2048, "learning_rate": 5.0e-5, "logging_steps": 500}
    b.old = defaults | {key: value for key, value in b.old.items() if value not in (None, "")}


def open_instruct(b: Brought) -> None:
    named = b.take("loss_type") or b.take("dpo_loss_type")
    newer = {"mixer_list", "exp_name", "dataset_mixer_list"} & {*b.old}
    loss = named or ("dpo_norm" if newer else "dpo")
    kinds = {"dpo": "sigmoid", "dpo_norm": "sigmoid_norm", "wpo": "sigmoid"}
    if loss not in kinds:
        b.refuse(f"this is no DPO, but loss_type: {loss}")
    b.put("loss_type", [kinds[loss]], of="loss_type")
    b.renamed.append(f"loss_type: {loss} → {kinds[loss]}")
    if loss == "wpo":
        b.put("use_weighting", True)
    mixed = b.take("mixer_list") or b.take("dataset_mixer_list") or []
    mixed = mixed.split() if isinstance(mixed, str) else mixed
    splits = b.take("mixer_list_splits") or b.take("dataset_mixer_list_splits") or ["train"]
    splits = splits.split() if isinstance(splits, str) else splits
    shares = {**dict(zip(mixed[::2], mixed[1::2], strict=False)), **b.take("dataset_mixer", {})}
    splits = splits * len(shares) if len(splits) == 1 else splits
    parts = []
    for (path, share), split in zip(shares.items(), splits, strict=False):
        share = float(share) if "." in str(share) else int(share)
        if isinstance(share, float) and share > 1:
            b.warned.append(f"{path}: no pair is trained on {share:g} times an epoch here: once")
        parts.append({"path": path, "split": sliced(split, share)})
    if any("[" in part["split"] for part in parts):
        b.warned.append("the original draws its shares at random; here they are the first rows")
    rows = b.old.get("max_train_samples")
    if rows and b.old.get("dataset_name"):
        b.take("max_train_samples")
        parts = [{"path": b.take("dataset_name"), "split": f"train[:{rows}]"}]
    place(b, parts, [], None, "mixer_list" if mixed else "dataset_mixer")
    if b.take("use_lora") or b.old.get("use_qlora"):
        b.put("use_peft", True, of="use_lora")
        b.new |= {"lora_r": b.take("lora_rank", 64), "lora_alpha": b.take("lora_alpha", 16)}
        b.new |= {"lora_dropout": b.take("lora_dropout", 0.1), "lora_target_modules": "all-linear"}
        if b.take("use_qlora"):
            b.put("load_in_4bit", True, of="use_qlora")
    optim = {"use_8bit_optimizer": "adamw_bnb_8bit", "dpo_use_paged_optimizer": "paged_adamw_32bit"}
    for key, name in optim.items():
        if b.take(key):
            b.put("optim", name, of=key)
    if b.take("optimizer_type", "adamw") == "muon":
        b.warned.append("optimizer_type: muon: there is AdamW and its kin here")
    if b.take("load_balancing_loss"):
        b.put("router_aux_loss_coef", b.take("load_balancing_weight", 0.001))
    b.drop("load_balancing_weight", "without load_balancing_loss it does nothing")
    b.put("report_to", "wandb" if b.take("with_tracking") else "none", of="with_tracking")
    every = b.take("checkpointing_steps")
    if str(every).isdigit():
        b.put("save_steps", int(every), of="checkpointing_steps")
    elif every == "epoch":
        b.put("save_strategy", "epoch", of="checkpointing_steps")
    clipped = b.take("clip_grad_norm") or b.take("max_grad_norm")
    if clipped and float(clipped) > 0:  # else DeepSpeed clips at 1, as TRL does
        b.put("max_grad_norm", float(clipped), of="clip_grad_norm")
    # Its own defaults, where they are not ours.
    defaults = {"learning_rate": 2.0e-5, "num_epochs": 1, "warmup_ratio": 0.1 if newer else 0.03}
    defaults |= {"beta": 5.0 if newer else 0.1, "gradient_checkpointing": False}
    if "num_train_epochs" in b.old:
        del defaults["num_epochs"]
    if newer:
        defaults["max_seq_length"] = 4096
    if "dpo_beta" in b.old:
        del defaults["beta"]
    b.old = defaults | {key: value for key, value in b.old.items() if value not in (None, "")}
