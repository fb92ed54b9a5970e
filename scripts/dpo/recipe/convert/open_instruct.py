"""The keys of open-instruct for DPO: what each is called here, or why there is none, and what of
them takes thought. Keys that are TRL's own are not repeated.
"""

from dpo.recipe.convert import reasons
from dpo.recipe.convert.brought import Brought, listed, place, sliced

OURS = {
    "max_length": "max_seq_length",
    "num_train_epochs": "num_epochs",
    "max_steps": "max_train_steps",
    "beta": "dpo_beta",
    "loss_type": "dpo_loss_type",
    "label_smoothing": "dpo_label_smoothing",
    "datasets": "mixer_list mixer_list_splits dataset_mixer_list dataset_mixer_list_splits",
    "dataset_config": "dataset_config_name",
    "max_grad_norm": "clip_grad_norm",
    "save_steps": "checkpointing_steps",
    "save_total_limit": "keep_last_n_checkpoints",
    "use_peft": "use_lora",
    "load_in_4bit": "use_qlora",
    "lora_r": "lora_rank",
    "run_name": "exp_name",
    "report_to": "with_tracking",
    "optim": "use_8bit_optimizer dpo_use_paged_optimizer optimizer_type",
    "attn_implementation": "use_flash_attn",
    "router_aux_loss_coef": "load_balancing_weight load_balancing_loss",
    "data_seed": "data_loader_seed",
    "hub_model_id": "hf_repo_id save_to_hub",
    "hub_revision": "hf_repo_revision",
    "ddp_timeout": "timeout",
    "model_init_kwargs": "additional_model_arguments",
}
RENAMED = reasons.by_key(OURS)
LEFT_OUT = {
    reasons.TOKENIZER: """tokenizer_name tokenizer_revision use_slow_tokenizer add_bos use_fast
        get_tokenizer_fn config_name""",
    reasons.TEMPLATE: "chat_template_name",
    reasons.PREPARED: """overwrite_cache dataset_cache_mode dataset_local_cache_dir skip_cache
        dataset_skip_cache cache_dataset_only dataset_transform_fn transform_fn
        dataset_target_columns target_columns dataset_config_hash config_hash dataset_mix_dir
        cache_mode local_cache_dir reference_logprobs_cache_path ground_truths_key sft_messages_key
        cache_logprobs_only""",
    reasons.BATCHES: "concatenated_forward packing",
    reasons.NOT_DPO: "gamma_beta_ratio dpo_gamma_beta_ratio",
    reasons.AT_LAUNCH: """zero_stage offload_optimizer offload_param zero_hpz_partition_size
        tensor_parallel_degree context_parallel_degree fsdp_shard_degree fsdp_num_replicas
        low_cpu_mem_usage sync_each_batch cp_degree cp_strategy""",
    reasons.KERNELS: """fused_optimizer compile_model activation_memory_budget profiling
        activation_checkpointing_mode loss_implementation ephemeral_save_interval
        add_seed_and_date_to_exp_name do_not_randomize_output_dir""",
    "norms of gradients are logged in any case": "log_grad_norm",
    reasons.WANDB: "wandb_project_name wandb_group_name",
    reasons.AT_AI2: """try_launch_beaker_eval_jobs try_auto_save_to_beaker gs_bucket_path
        oe_eval_tasks oe_eval_max_length oe_eval_gpu_multiplier eval_workspace eval_priority
        hf_metadata_dataset hf_entity hf_repo_url send_slack_alerts""",
    reasons.UNLIKE: "rope_scaling_factor rope_scaling_beta_fast rope_scaling_beta_slow",
    "optim_args takes them, as key=value": "optimizer_kwargs",
}


def bring(b: Brought) -> None:
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
    mixed = listed(b.take("mixer_list") or b.take("dataset_mixer_list"))
    splits = listed(b.take("mixer_list_splits") or b.take("dataset_mixer_list_splits") or "train")
    shares = {**dict(zip(mixed[::2], mixed[1::2], strict=False)), **b.take("dataset_mixer", {})}
    splits = splits * len(shares) if len(splits) == 1 else splits
    parts = []
    for (path, share), split in zip(shares.items(), splits, strict=False):
        share = float(share) if "." in str(share) else int(share)
        if isinstance(share, float) and share > 1:
            b.warned.append(f"{path}: no pair is trained on {share:g} times an epoch here: once")
        parts.append({"path": path, "split": sliced(split, share)})
    if any("[" in part["split"] for part in parts):
        b.warned.append(reasons.FIRST_ROWS)
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
    beta, warmup, length = (5.0, 0.1, {"max_seq_length": 4096}) if newer else (0.1, 0.03, {})
    own = {"learning_rate": 2.0e-5, "num_epochs": 1, "warmup_ratio": warmup, "beta": beta}
    b.default(RENAMED, **own, gradient_checkpointing=False, **length)
