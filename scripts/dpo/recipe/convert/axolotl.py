"""The keys of axolotl for DPO: what each is called here, or why there is none, and what of them
takes thought. Keys that are TRL's own are not repeated.
"""

import re

from dpo.recipe.convert import reasons
from dpo.recipe.convert.brought import Brought, columns, place, with_sft

OURS = {
    "model_name_or_path": "base_model lora_model_dir",
    "model_revision": "revision_of_model",
    "max_length": "sequence_len",
    "per_device_train_batch_size": "micro_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "num_train_epochs": "num_epochs",
    "optim": "optimizer",
    "lr_scheduler_type": "lr_scheduler",
    "test_split_size": "val_set_size",
    "dataset_test_split": "test_datasets",
    "eval_steps": "evals_per_epoch",
    "save_steps": "saves_per_epoch",
    "beta": "rl_beta dpo_beta",
    "loss_type": "dpo_loss_type dpo_norm_loss",
    "loss_weights": "dpo_loss_weights",
    "label_smoothing": "dpo_label_smoothing",
    "use_weighting": "dpo_use_weighting",
    "use_peft": "adapter",
    "lora_target_modules": "lora_target_linear",
    "use_dora": "peft_use_dora",
    "use_rslora": "peft_use_rslora",
    "dataset_num_proc": "dataset_processes",
    "lr_scheduler_kwargs": "cosine_min_lr_ratio",
    "run_name": "wandb_name",
    "neftune_noise_alpha": "noisy_embedding_alpha",
    "dtype": "bfloat16 float16",
    "chat_template_path": "chat_template_jinja",
}
RENAMED = reasons.by_key(OURS)
LEFT_OUT = {
    reasons.DPO: "rl",
    reasons.CUT_WHOLE: "max_prompt_len",
    reasons.TRUNCATED: "excess_length_strategy",
    reasons.BATCHES: """sample_packing eval_sample_packing pad_to_sequence_len batch_flattening
        dpo_padding_free sample_packing_group_size sample_packing_bin_size sample_packing_eff_est
        curriculum_sampling multipack_real_batches eval_sequence_len min_sample_len""",
    reasons.ATTENTION: """flash_attention xformers_attention sdp_attention flex_attention
        eager_attention sage_attention s2_attention flash_optimum flash_attn_cross_entropy
        flash_attn_rms_norm flash_attn_fuse_mlp flash_attn_fuse_qkv scaling_softmax
        large_head_attention""",
    reasons.AT_LAUNCH: """fsdp_version deepcompile dp_shard_size dp_replicate_size world_size
        tensor_parallel_size context_parallel_size sequence_parallel_degree heads_k_stride
        ring_attn_func device_map max_memory gpu_memory_limit low_cpu_mem_usage ddp device
        fsdp_final_state_dict_type use_ray ray_num_workers ray_run_name resources_per_worker
        lora_on_cpu""",
    reasons.CONFIGURED: """model_type type_of_model base_model_config cls_model_config
        is_falcon_derived_model is_llama_derived_model is_mistral_derived_model
        is_qwen_derived_model overrides_of_model_config overrides_of_model_kwargs""",
    reasons.TOKENIZER: """tokenizer_type tokenizer_config tokenizer_use_fast tokenizer_legacy
        tokenizer_use_mistral_common tokenizer_save_jinja_files special_tokens tokens
        added_tokens_overrides processor_type processor_kwargs resize_token_embeddings_to_32x
        shrink_embeddings mean_resizing_embeddings embeddings_skip_upcast fix_untrained_tokens""",
    reasons.TEMPLATE: "chat_template eot_tokens default_system_message chat_template_kwargs",
    reasons.PREPARED: """dataset_prepared_path dataset_keep_in_memory dataset_exact_deduplication
        dataset_shard_num dataset_shard_idx skip_prepare_dataset num_dataset_shards_to_save
        shuffle_merged_datasets push_dataset_to_hub shuffle_before_merging_datasets
        hf_use_auth_token is_preprocess""",
    reasons.KERNELS: """plugins use_kernels use_scattermoe use_sonicmoe lora_mlp_kernel
        lora_qkv_kernel lora_o_kernel lora_embedding_kernel liger_rope liger_rms_norm
        liger_glu_activation liger_layer_norm liger_cross_entropy liger_fused_linear_cross_entropy
        cut_cross_entropy chunked_cross_entropy tiled_mlp layer_offloading unsloth_lora_mlp
        unsloth_lora_qkv unsloth_lora_o unsloth_cross_entropy_loss dpo_use_liger_kernel gc_steps
        gc_collect_steps experimental_skip_move_to_device torch_compile_options
        selective_checkpointing experts_implementation fp8 profiler_steps strict debug
        save_first_step auto_resume_from_checkpoints""",
    reasons.WANDB: "wandb_watch wandb_run_id wandb_mode use_wandb",
    reasons.NOT_WANDB: """use_mlflow mlflow_tracking_uri mlflow_experiment_name mlflow_run_name
        hf_mlflow_log_artifacts use_comet comet_project_name use_tensorboard use_swanlab
        swanlab_project swanlab_experiment_name swanlab_description swanlab_mode swanlab_workspace
        swanlab_log_completions swanlab_log_model swanlab_completion_log_interval
        swanlab_completion_max_buffer use_trackio swanlab_run_name swanlab_api_key swanlab_logdir
        include_tkps""",
    reasons.NOT_DPO: "train_on_inputs orpo_alpha cpo_alpha simpo_gamma train_on_eos vllm",
    reasons.UNLIKE: """relora relora_steps relora_prune_ratio loftq_config gptq peft lisa_n_layers
        lora_fan_in_fan_out loraplus_lr_ratio unfrozen_parameters loraplus_lr_embedding lr_groups
        embedding_lr embedding_lr_scale peft_layers_to_transform peft_layers_pattern
        lr_quadratic_warmup cosine_constant_lr_ratio lr_div_factor adam_epsilon2 adam_beta3 trl
        lora_rank_pattern lora_alpha_pattern peft_init_lora_weights qat use_pose use_onebitllms
        bnb_config_kwargs rope_scaling torchdistx_path""",
    reasons.GENERATES: """do_bench_eval bench_dataset do_causal_lm_eval eval_causal_lm_metrics
        eval_table_size eval_max_new_tokens generate_samples dpo_generate_during_eval""",
    reasons.WATCHED: "loss_watchdog_threshold loss_watchdog_patience early_stopping_patience",
    reasons.NOTHING_LEFT: "dpo_use_logits_to_keep",
    "weights are in float32 as it is; bf16: false computes in it too": "float32",
}
NEWEST = "TRL's datasets name none, the newest is read"
OF_FIELDS = ("ds_type", "shards", "shards_idx", "field_messages", "field_chosen", "field_rejected")
OF_FIELDS += ("field_prompt", "field_system")
ROLES = "roles and templates are told from the rows"
OF_ENTRIES = {
    "revision": NEWEST,
    "trust_remote_code": "no code of a data set is run",
    "preprocess_shards": reasons.PREPARED,
}


def sets_of(b: Brought, key: str) -> list[dict]:
    """The data sets of a key: a list of mappings; one alone, and a name, are taken as meant."""
    found = b.take(key, [])
    found = found if isinstance(found, list) else [found]
    return [entry if isinstance(entry, dict) else {"path": str(entry)} for entry in found]


def data(b: Brought) -> None:
    parts, held_out = [], b.take("val_set_size")
    entries, tests = sets_of(b, "datasets"), sets_of(b, "test_datasets")
    for entry in entries:
        part = {"path": entry.get("path"), "name": entry.get("name")}
        part["split"] = entry.get("split") or "train"
        if "[" in part["split"] and entry.get("shards"):
            b.warned.append("datasets: shards: a part of a part is no split: it is left out")
        elif pieces := entry.get("shards"):  # one of so many equal pieces of the split
            ends = [(int(entry.get("shards_idx") or 0) + n) * 100 / int(pieces) for n in (0, 1)]
            part["split"] += f"[{ends[0]:.0f}%:{ends[1]:.0f}%]"
            b.renamed.append("datasets: shards → split")
        if files := entry.get("data_files"):
            on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(part["path"]))
            kind = part["path"] if on_hub else entry.get("ds_type") or part["path"] or "json"
            part |= {"path": kind, "data_files": files}
        parts.append({key: value for key, value in part.items() if value})
        kind, own = entry.get("type") or "chatml", ("path", "name", "split", "type", "data_files")
        fields = kind if isinstance(kind, dict) else entry
        strategy = "user_defined" if isinstance(kind, dict) else kind.split(".")[-1]
        mapping = {key: fields.get(f"field_{key}") for key in ("chosen", "rejected", "system")}
        if kind == "chat_template.default" or strategy == "chat_template":
            columns(b, mapping | {"prompt": fields.get("field_messages", "messages")}, None)
        elif strategy in ("user_defined", "default", "prompt_pairs", "chatml", "llama3"):
            columns(b, mapping | {"prompt": fields.get("field_prompt")}, "question")
        else:
            columns(b, mapping, None)
        for key, value in fields.items():
            if key.endswith("_format") and value not in (None, f"{{{key[:-7]}}}"):
                b.warned.append(f"datasets: {key}: the chat template renders instead")
        if entry.get("revision"):
            b.warned.append(f"datasets: revision {entry['revision']}: {NEWEST}")
        for key in (key for key in entry if key not in {*own, *OF_FIELDS}):
            b.dropped[f"datasets: {key}"] = OF_ENTRIES.get(key, ROLES)
    first = entries[0].get("path") if entries else None
    alike = [t.get("split", "test") for t in tests if t.get("path") == first]
    if tests and not alike:
        b.warned.append("test_datasets: held-out pairs of another data set cannot be named here")
    held_out = held_out or (0.05 if tests and not alike else None)
    place(b, parts, alike, held_out, streams=b.take("streaming"))


def bring(b: Brought) -> None:
    if (kind := b.old.get("rl")) not in ("dpo", "ipo"):
        b.refuse(f"this is no DPO, but {f'rl: {kind}' if kind else 'an SFT: it has no rl: dpo'}")
    loss = b.take("dpo_loss_type") or (["ipo"] if b.take("rl") == "ipo" else None)
    if b.take("dpo_norm_loss"):
        loss = ["sigmoid_norm"]
    if loss:
        b.put("loss_type", loss, of="dpo_loss_type")
    if alpha := b.take("rpo_alpha"):
        with_sft(b, alpha, loss or "sigmoid", b.take("dpo_loss_weights"))
    if (own := b.take("trl")) and own.get("beta") is not None:  # it goes before rl_beta
        b.old.pop("rl_beta", None)
        b.put("beta", own["beta"], of="trl")
    data(b)
    if b.take("adapter"):
        b.put("use_peft", True, of="adapter")
        b.new["lora_dropout"] = b.take("lora_dropout", 0.0)
        if b.take("lora_target_linear"):
            b.drop("lora_target_modules", "lora_target_linear takes all of them, and more")
            b.put("lora_target_modules", "all-linear", of="lora_target_linear")
        if start := b.take("lora_model_dir"):
            b.drop("base_model", f"the adapter of lora_model_dir names it ({b.old['base_model']})")
            b.put("model_name_or_path", start, of="lora_model_dir")
    per_epoch = {"eval": b.take("evals_per_epoch"), "save": b.take("saves_per_epoch")}
    epochs = float(b.old.get("num_epochs") or 1)
    for what, times in per_epoch.items():
        if times:  # a share of all steps
            share = round(1 / (float(times) * epochs), 4)
            b.new[f"{what}_strategy"] = "steps" if share < 1 else "epoch"
            if share < 1:
                b.put(f"{what}_steps", share, of=f"{what}s_per_epoch")
    evaluates = {"dataset_test_split", "test_split_size"} & {*b.new}
    if evaluates and per_epoch["eval"] != 0:
        b.new.setdefault("eval_strategy", b.take("eval_strategy", "steps"))
    if least := b.take("cosine_min_lr_ratio"):
        b.drop("lr_scheduler", "cosine_with_min_lr")
        b.new["lr_scheduler_type"] = "cosine_with_min_lr"
        b.put("lr_scheduler_kwargs", {"min_lr_rate": least}, of="cosine_min_lr_ratio")
    if b.old.get("gradient_checkpointing") in ("unsloth", "offload", "offload_disk"):
        kind = b.take("gradient_checkpointing")
        b.put("gradient_checkpointing", True)
        b.warned.append(f"gradient_checkpointing: {kind}: activations stay on the GPU here")
    if b.old.get("bf16") == "full":
        b.take("bf16")
        b.put("dtype", "bfloat16", of="bf16: full")
    total, micro = b.take("batch_size"), int(b.old.get("micro_batch_size") or 1)
    if total and not b.old.get("gradient_accumulation_steps"):
        b.put("gradient_accumulation_steps", max(int(total) // micro, 1), of="batch_size")
    for dtype in ("bfloat16", "float16"):
        if b.take(dtype):
            b.put("dtype", dtype, of=dtype)
    if (template := b.old.get("chat_template")) not in (None, "tokenizer_default"):
        b.warned.append(f"chat_template: {template}: {reasons.TEMPLATE}")
    if template := b.take("chat_template_jinja"):
        b.dropped["chat_template_jinja"] = f"put it in a .jinja file: {reasons.TEMPLATE}"
        b.warned.append(f"chat_template_jinja ({len(template)} characters): {reasons.TEMPLATE}")
    own = {"sequence_len": 512, "micro_batch_size": 1, "num_epochs": 1, "lr_scheduler": "cosine"}
    if not {"warmup_ratio", "warmup_steps"} & {*b.old}:
        own["warmup_ratio"] = 0.03
    b.default(RENAMED, **own, gradient_accumulation_steps=1, gradient_checkpointing=False)
