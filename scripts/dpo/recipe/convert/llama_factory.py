"""The keys of LLaMA-Factory for DPO: what each is called here, or why there is none, and what of
them takes thought. Keys that are TRL's own are not repeated.
"""

import json
from pathlib import Path

from dpo.recipe.arguments import QUESTIONS
from dpo.recipe.convert import brought, reasons
from dpo.recipe.convert.brought import Brought, listed, sliced

OURS = {
    "model_name_or_path": "adapter_name_or_path",
    "max_length": "cutoff_len",
    "beta": "pref_beta dpo_beta",
    "loss_type": "pref_loss dpo_loss",
    "loss_type: [sigmoid, sft], and loss_weights: [1.0, this]": "pref_ftx dpo_ftx",
    "loss_type: [sigmoid, bco_pair], and loss_weights: [1.0, this]": "pref_bco_weight",
    "label_smoothing": "dpo_label_smoothing",
    "use_peft": "finetuning_type",
    "lora_r": "lora_rank",
    "lora_target_modules": "lora_target",
    "lora_modules_to_save": "additional_target",
    "load_in_4bit": "quantization_bit",
    "bnb_4bit_quant_type": "quantization_type",
    "use_bnb_nested_quant": "double_quantization",
    "attn_implementation": "flash_attn",
    "gradient_checkpointing": "disable_gradient_checkpointing",
    "gradient_checkpointing_kwargs": "use_reentrant_gc",
    "use_liger_kernel": "enable_liger_kernel",
    "dtype": "pure_bf16",
    "router_aux_loss_coef": "moe_aux_loss_coef",
    "test_split_size": "val_size",
    "dataset_test_split": "eval_dataset",
    "datasets": "max_samples",
    "datasets, each with a fraction": "mix_strategy interleave_probs",
    "hub_token": "hf_hub_token",
}
RENAMED = reasons.by_key(OURS)
LEFT_OUT = {
    reasons.DPO: "stage",
    "dataset_name is a folder, a file or a name of the hub": "dataset_dir",
    reasons.TEMPLATE: "template tool_format default_system enable_thinking preserve_thinking",
    reasons.REFERENCE: "ref_model_adapters ref_model_quantization_bit",
    "report.html has the curves": "plot_loss",
    reasons.NOT_DPO: """mask_history train_on_prompt simpo_gamma kto_chosen_weight
        kto_rejected_weight reward_model ppo_epochs ppo_buffer_size ppo_target use_dft_loss""",
    reasons.ACCURACY: "compute_accuracy",
    reasons.ORDER: "disable_shuffling",
    reasons.WATCHED: "early_stopping_steps",
    "an adapter to start from is merged, and a new one trained": "create_new_adapter",
    reasons.UNLIKE: """use_adam_mini shift_attn rope_scaling mixture_of_depths loraplus_lr_ratio
        loraplus_lr_embedding pissa_init pissa_iter pissa_convert freeze_trainable_layers
        freeze_trainable_modules freeze_extra_modules use_llama_pro use_galore galore_target
        galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise use_apollo
        apollo_rank apollo_scale use_badam badam_mode badam_switch_mode badam_switch_interval
        badam_update_ratio use_muon ld_alpha_warmup name_module_trainable num_layer_trainable""",
    reasons.BATCHES: "packing neat_packing preprocessing_batch_size",
    reasons.PREPARED: """overwrite_cache tokenized_path data_shared_file_system cache_dir
        buffer_size media_dir""",
    reasons.TOKENIZER: """use_fast_tokenizer resize_vocab split_special_tokens add_tokens
        add_special_tokens new_special_tokens ignore_pad_token_for_loss new_special_tokens_config
        init_special_tokens tokenizer_path""",
    reasons.KERNELS: """use_unsloth use_unsloth_gc upcast_layernorm upcast_lmhead_output
        quantization_method use_v1_kernels low_cpu_mem_usage use_kv_cache use_kt fp8 fp8_backend
        include_effective_tokens_per_second print_param_status enable_torch_profiler infer_dtype
        infer_backend ms_hub_token om_hub_token export_dir export_size""",
    reasons.AT_LAUNCH: "quantization_device_map device_map ray_num_workers ray_run_name use_mca",
    reasons.TEXT: """image_max_pixels image_min_pixels video_max_pixels video_fps video_maxlen
        freeze_vision_tower freeze_multi_modal_projector freeze_language_model""",
    reasons.GENERATES: """predict_with_generate do_sample temperature top_p top_k num_beams
        max_new_tokens repetition_penalty length_penalty eval_num_beams""",
    reasons.NOT_WANDB: """use_swanlab swanlab_project swanlab_run_name swanlab_mode
        swanlab_workspace swanlab_api_key swanlab_logdir""",
}
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
    for place in (b.path.parent / folder, Path(folder), b.path.parent):
        listing = place / "dataset_info.json"
        if listing.is_file() and (info := json.loads(listing.read_text("utf-8")).get(name)):
            path = info.get("hf_hub_url") or info.get("script_url")
            path = path or str(place / info.get("file_name", name))
            return {"path": path, "name": info.get("subset"), "split": info.get("split")}, info
    if name not in ITS_DATA:
        b.warned.append(
            f"dataset: {name} is a name in LLaMA-Factory's dataset_info.json, which is not here: "
            "give the data with DATASET=, or beside the recipe"
        )
    path, subset = ITS_DATA.get(name, (name, None))
    return {"path": path, "name": subset}, {}


def data(b: Brought) -> None:
    folder, samples, parts = b.take("dataset_dir", "data"), b.take("max_samples"), []
    for name in filter(None, listed(b.take("dataset"), ",")):
        part, info = data_info(b, name, str(folder))
        rows = samples or info.get("num_samples")
        part["split"] = sliced(part.get("split") or "train", rows and int(rows))
        parts.append({key: value for key, value in part.items() if value})
        named = info.get("columns") or {}
        mapping = {key: named.get(key) for key in ("chosen", "rejected", "system", "history")}
        prompt, talk = named.get("prompt"), named.get("messages")
        more = named.get("query")  # what goes with an instruction, as Alpaca's input
        asks = prompt in (("instruction", "prompt") if more else QUESTIONS)
        mapping |= {"prompt": None if asks else prompt, "input": more, "conversations": talk}
        brought.columns(b, mapping, None)
    if samples:
        b.renamed.append("max_samples → datasets")
    how, shares = b.take("mix_strategy", "concat"), b.take("interleave_probs")
    brought.interleaved(b, parts, how != "concat", how.startswith("interleave_under"), shares)
    if b.take("eval_dataset"):
        b.warned.append("eval_dataset: test_split_size holds out a twentieth instead")
        b.old.setdefault("val_size", 0.05)
    held_out = b.take("val_size")
    brought.place(b, parts, [], held_out, "dataset", b.take("streaming"))
    if held_out:
        b.new["eval_strategy"] = b.take("eval_strategy", "steps")


def bring(b: Brought) -> None:
    if b.old.get("stage", "sft") != "dpo":
        b.refuse(f"this is no DPO, but stage: {b.old.get('stage', 'sft')}")
    loss = b.take("pref_loss") or b.take("dpo_loss") or "sigmoid"
    if loss in ("orpo", "simpo", "kto_pair"):
        b.refuse(f"this is no DPO, but pref_loss: {loss}")
    loss, weights = [loss], [1.0]
    for key, kind in (("pref_ftx", "sft"), ("dpo_ftx", "sft"), ("pref_bco_weight", "bco_pair")):
        if weight := b.take(key):
            loss, weights = [*loss, kind], [*weights, float(weight)]
            b.renamed.append(f"{key} → loss_type, loss_weights")
    b.put("loss_type", loss, of="pref_loss")
    if len(loss) > 1:
        b.put("loss_weights", weights)
    brought.said_otherwise(b, b.old.get("model_name_or_path"), "default_system")
    data(b)
    how, own = b.take("finetuning_type", "lora"), ("quantization_bit", "adapter_name_or_path")
    if brought.trains_adapter(b, how, "finetuning_type", *own, "model_name_or_path", ","):
        rank = int(b.take("lora_rank", 8))
        b.new |= {"lora_r": rank, "lora_alpha": int(b.take("lora_alpha", 2 * rank))}
        b.new["lora_dropout"] = b.take("lora_dropout", 0.0)
        target = listed(b.take("lora_target", "all"), ",")
        b.put("lora_target_modules", "all-linear" if target == ["all"] else target)
        if more := b.take("additional_target"):
            b.put("lora_modules_to_save", listed(str(more), ","))
    if b.take("disable_gradient_checkpointing"):
        b.put("gradient_checkpointing", False, of="disable_gradient_checkpointing")
    if b.take("pure_bf16"):
        b.put("dtype", "bfloat16", of="pure_bf16")
    for key in ("flash_attn", "use_reentrant_gc"):
        if b.take(key) is not None:
            b.dropped[key] = "prefix sharing has attention of its own; what is learned is the same"
    b.default(RENAMED, cutoff_len=2048, learning_rate=5.0e-5, logging_steps=500)
