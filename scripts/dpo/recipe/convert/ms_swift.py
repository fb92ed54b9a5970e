"""The keys of ms-swift for DPO (`swift rlhf --rlhf_type dpo`): what each is called here, or why
there is none, and what of them takes thought. Keys that are TRL's own are not repeated.
"""

import json
import math
import re

from dpo.recipe.convert import brought, reasons
from dpo.recipe.convert.brought import Brought, listed

OURS = {
    "model_name_or_path": "adapters",
    "use_peft": "tuner_type train_type sft_type",
    "lora_r": "lora_rank",
    "lora_target_modules": "target_modules target_regex",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "load_in_4bit": "quant_bits",
    "use_bnb_nested_quant": "bnb_4bit_use_double_quant",
    "attn_implementation": "attn_impl",
    "test_split_size": "split_dataset_ratio val_dataset",
    "datasets, each with a fraction": "interleave_prob",
    "column_mapping": "columns",
    "num_train_epochs": "max_epochs",
}
RENAMED = reasons.by_key(OURS)
LEFT_OUT = {
    reasons.DPO: "rlhf_type",
    reasons.REFERENCE: "ref_adapters ref_model_type",
    reasons.TRUNCATED: "truncation_strategy",
    reasons.ORDER: "train_dataloader_shuffle",
    "completions alone are scored": "loss_scale is_binary_loss_scale",
    reasons.TEMPLATE: """template system use_chat_template template_backend agent_template
        response_prefix add_non_thinking_prefix disable_ignore_empty_think enable_thinking
        preserve_thinking""",
    reasons.PREPARED: """load_from_cache_file dataset_shuffle val_dataset_shuffle
        shuffle_buffer_size download_mode strict disable_auto_column_mapping custom_dataset_info
        cached_dataset cached_val_dataset stopping_strategy lazy_tokenize load_args load_data_args
        external_plugins custom_register_path""",
    "models and data are fetched from the Hugging Face hub": "use_hf",
    reasons.TOKENIZER: "new_special_tokens padding_side",
    reasons.CONFIGURED: "model_type task_type num_labels problem_type",
    reasons.BATCHES: "packing packing_length packing_num_proc packing_strategy",
    reasons.AT_LAUNCH: """sequence_parallel_size zero_hpz_partition_size deepspeed_autotp_size
        device_map max_memory ds3_gather_for_generation""",
    reasons.KERNELS: """tuner_backend experts_impl use_swift_lora use_flash_ckpt check_model
        max_shard_size safe_serialization enable_npu_model_patch lora_dtype""",
    reasons.ONE_FOLDER: "add_version create_checkpoint_symlink",
    "a run goes on by itself": "resume_only_model",
    "a wrong key ends a run before it starts": "ignore_args_error",
    reasons.ACCURACY: "acc_strategy metric eval_metric",
    reasons.WATCHED: "early_stop_interval",
    reasons.TEXT: """max_pixels norm_bbox freeze_llm freeze_vit freeze_aligner aligner_lr vit_lr
        vit_gradient_checkpointing model_kwargs local_repo_path""",
    reasons.GENERATES: """eval_use_evalscope eval_dataset eval_dataset_args eval_limit
        eval_generation_config extra_eval_args max_new_tokens temperature top_k top_p
        repetition_penalty num_beams predict_with_generate""",
    reasons.NOT_DPO: """cpo_alpha simpo_gamma enable_dft_loss enable_channel_loss model_author
        model_name""",
    reasons.UNLIKE: """optimizer freeze_parameters freeze_parameters_regex freeze_parameters_ratio
        trainable_parameters trainable_parameters_regex lora_bias lorap_lr_ratio init_weights
        use_galore galore_rank galore_target_modules galore_update_proj_gap galore_scale
        lisa_activated_layers lisa_step_interval llamapro_num_new_blocks quant_method rope_scaling
        max_model_len init_strategy""",
    reasons.NOT_WANDB: """swanlab_token swanlab_project swanlab_workspace swanlab_exp_name
        swanlab_mode""",
}
# A data set there is `name:subset#rows`, before which may stand whose hub it is on.
NAMED = re.compile(r"(?:(?:HF|MS)::)?([^:#]+)(?::([^#]+))?(?:#(\d+))?")


def data(b: Brought) -> None:
    parts = []
    for name in map(str, listed(b.take("dataset"))):
        if not (found := NAMED.fullmatch(name)):
            b.refuse(f"dataset: {name}: it is no name:subset#rows of ms-swift")
        path, subset, rows = found.groups()
        parts += [
            {"path": path}
            | ({"name": one} if one not in (None, "default") else {})
            | {"split": f"train[:{rows}]" if rows else "train"}
            for one in (subset.split("/") if subset else [None])
        ]
        if rows:
            b.warned.append(f"{path}: the original draws its {rows} rows; here they are the first")
    if not b.old.get("use_hf"):
        b.warned.append("ms-swift fetches from ModelScope: names may be others on Hugging Face")
    ends, shares = b.take("stopping_strategy", "first_exhausted"), listed(b.take("interleave_prob"))
    brought.interleaved(b, parts, bool(shares), ends == "first_exhausted", shares)
    held_out = b.take("split_dataset_ratio")
    if tests := b.take("val_dataset"):
        b.warned.append(f"val_dataset: {tests}: test_split_size holds out a twentieth instead")
        held_out = 0.05
    brought.place(b, parts, [], held_out, "dataset", b.take("streaming"))
    if held_out:
        b.new["eval_strategy"] = b.take("eval_strategy") or b.old.get("save_strategy") or "steps"
    if stated := b.take("columns"):
        theirs = json.loads(stated) if isinstance(stated, str) else stated
        ours = {"query": "prompt", "response": "chosen", "rejected_response": "rejected"}
        brought.columns(b, {ours.get(name, name): column for column, name in theirs.items()}, None)
        b.renamed.append("columns → column_mapping")


def bring(b: Brought) -> None:
    if (kind := b.old.get("rlhf_type", "dpo")) != "dpo":
        b.refuse(f"this is no DPO, but rlhf_type: {kind}")
    if {"lr", "global_batch_size"} & {*b.old}:
        b.refuse("it is for Megatron, whose keys are others: give one of `swift rlhf`")
    types, weights = listed(b.take("loss_type", "sigmoid")), listed(b.take("loss_weights"))
    weights = [float(weight) for weight in weights]
    if alpha := b.take("rpo_alpha"):
        brought.with_sft(b, alpha, types, weights)
    else:
        b.put("loss_type", types)
        if weights:
            b.put("loss_weights", weights)
    brought.said_otherwise(b, b.old.get("model"), "system")
    data(b)
    given = [b.take(key) for key in ("tuner_type", "train_type", "sft_type")]
    how, rate = next(filter(None, given), "lora"), 1.0e-5
    if brought.trains_adapter(b, how, "tuner_type", "quant_bits", "adapters", "model"):
        rate, rank, dropout = 1.0e-4, b.take("lora_rank", 8), b.take("lora_dropout", 0.05)
        b.put("lora_r", rank, of="lora_rank")
        b.new |= {"lora_alpha": b.take("lora_alpha", 32), "lora_dropout": dropout}
        layers = b.take("target_regex") or listed(b.take("target_modules", "all-linear"))
        b.put("lora_target_modules", "all-linear" if layers == ["all-linear"] else layers)
        for key in ("modules_to_save", "target_parameters"):
            if names := listed(b.take(key)):
                b.put(f"lora_{key}", names, of=key)
        if "load_in_4bit" in b.new:  # as it is there
            b.new["use_bnb_nested_quant"] = b.take("bnb_4bit_use_double_quant", True)
    if epochs := b.take("max_epochs"):  # it goes before the other
        b.drop("num_train_epochs", "max_epochs is said")
        b.put("num_train_epochs", epochs, of="max_epochs")
    # 16 pairs a step, by whatever accumulation.
    pairs = int(b.old.get("per_device_train_batch_size") or 1)
    own = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": math.ceil(16 / pairs)}
    own |= {"learning_rate": rate, "lr_scheduler_type": "cosine", "weight_decay": 0.1}
    b.default(RENAMED, **own, adam_beta2=0.95, max_length=None, logging_steps=5)
