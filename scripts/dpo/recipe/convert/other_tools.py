"""The keys of LLaMA-Factory and open-instruct for DPO: what each is called here, or why there is
none. Keys that are TRL's own are not repeated; what takes thought is in from_tools.py.
"""

from dpo.recipe.convert import axolotl, ms_swift, reasons
from dpo.recipe.convert.reasons import because

LLAMA_FACTORY_RENAMED = {
    "adapter_name_or_path": "model_name_or_path",
    "cutoff_len": "max_length",
    "pref_beta": "beta",
    "dpo_beta": "beta",
    "pref_loss": "loss_type",
    "dpo_loss": "loss_type",
    "pref_ftx": "loss_type: [sigmoid, sft], and loss_weights: [1.0, this]",
    "dpo_ftx": "loss_type: [sigmoid, sft], and loss_weights: [1.0, this]",
    "pref_bco_weight": "loss_type: [sigmoid, bco_pair], and loss_weights: [1.0, this]",
    "dpo_label_smoothing": "label_smoothing",
    "finetuning_type": "use_peft",
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "additional_target": "lora_modules_to_save",
    "quantization_bit": "load_in_4bit",
    "quantization_type": "bnb_4bit_quant_type",
    "double_quantization": "use_bnb_nested_quant",
    "flash_attn": "attn_implementation",
    "disable_gradient_checkpointing": "gradient_checkpointing",
    "use_reentrant_gc": "gradient_checkpointing_kwargs",
    "enable_liger_kernel": "use_liger_kernel",
    "pure_bf16": "dtype",
    "moe_aux_loss_coef": "router_aux_loss_coef",
    "val_size": "test_split_size",
    "eval_dataset": "dataset_test_split",
    "max_samples": "datasets",
    "mix_strategy": "datasets, each with a fraction",
    "interleave_probs": "datasets, each with a fraction",
    "hf_hub_token": "hub_token",
}
LLAMA_FACTORY_DROPPED = because(
    ("DPO is what is done here", "stage"),
    ("dataset_name is a folder, a file or a name of the hub", "dataset_dir"),
    (reasons.TEMPLATE, "template tool_format default_system enable_thinking preserve_thinking"),
    (
        "the reference is what the policy starts from",
        "ref_model ref_model_adapters ref_model_quantization_bit",
    ),
    ("report.html has the curves", "plot_loss"),
    (
        reasons.NOT_DPO,
        "mask_history train_on_prompt simpo_gamma kto_chosen_weight kto_rejected_weight "
        "reward_model ppo_epochs ppo_buffer_size ppo_target use_dft_loss",
    ),
    ("accuracy is measured in any case", "compute_accuracy"),
    ("train_sampling_strategy: sequential takes rows as they come", "disable_shuffling"),
    ("a loss that stays high or is not finite ends a run in any case", "early_stopping_steps"),
    ("an adapter to start from is merged, and a new one trained", "create_new_adapter"),
    (
        reasons.UNLIKE,
        "use_adam_mini shift_attn rope_scaling mixture_of_depths loraplus_lr_ratio "
        "loraplus_lr_embedding pissa_init pissa_iter pissa_convert freeze_trainable_layers "
        "freeze_trainable_modules freeze_extra_modules use_llama_pro use_galore galore_target "
        "galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise "
        "use_apollo apollo_rank apollo_scale use_badam badam_mode badam_switch_mode "
        "badam_switch_interval badam_update_ratio use_muon ld_alpha_warmup "
        "name_module_trainable num_layer_trainable",
    ),
    (reasons.BATCHES, "packing neat_packing preprocessing_batch_size"),
    (
        reasons.PREPARED,
        "overwrite_cache tokenized_path data_shared_file_system cache_dir buffer_size media_dir",
    ),
    (
        reasons.TOKENIZER,
        "use_fast_tokenizer resize_vocab split_special_tokens add_tokens add_special_tokens "
        "new_special_tokens ignore_pad_token_for_loss new_special_tokens_config "
        "init_special_tokens tokenizer_path",
    ),
    (
        reasons.KERNELS,
        "use_unsloth use_unsloth_gc upcast_layernorm upcast_lmhead_output quantization_method "
        "use_v1_kernels low_cpu_mem_usage use_kv_cache use_kt fp8 fp8_backend "
        "include_effective_tokens_per_second print_param_status enable_torch_profiler "
        "infer_dtype infer_backend ms_hub_token om_hub_token export_dir export_size",
    ),
    (reasons.AT_LAUNCH, "quantization_device_map device_map ray_num_workers ray_run_name use_mca"),
    (
        "text alone is trained on here",
        "image_max_pixels image_min_pixels video_max_pixels video_fps video_maxlen "
        "freeze_vision_tower freeze_multi_modal_projector freeze_language_model",
    ),
    (
        reasons.GENERATES,
        "predict_with_generate do_sample temperature top_p top_k num_beams max_new_tokens "
        "repetition_penalty length_penalty eval_num_beams",
    ),
    (
        reasons.NOT_WANDB,
        "use_swanlab swanlab_project swanlab_run_name swanlab_mode swanlab_workspace "
        "swanlab_api_key swanlab_logdir",
    ),
)

OPEN_INSTRUCT_RENAMED = {
    "max_seq_length": "max_length",
    "num_epochs": "num_train_epochs",
    "max_train_steps": "max_steps",
    "dpo_beta": "beta",
    "dpo_loss_type": "loss_type",
    "dpo_label_smoothing": "label_smoothing",
    "mixer_list": "datasets",
    "mixer_list_splits": "datasets",
    "dataset_mixer_list": "datasets",
    "dataset_mixer_list_splits": "datasets",
    "dataset_config_name": "dataset_config",
    "clip_grad_norm": "max_grad_norm",
    "checkpointing_steps": "save_steps",
    "keep_last_n_checkpoints": "save_total_limit",
    "use_lora": "use_peft",
    "use_qlora": "load_in_4bit",
    "lora_rank": "lora_r",
    "exp_name": "run_name",
    "with_tracking": "report_to",
    "use_8bit_optimizer": "optim",
    "dpo_use_paged_optimizer": "optim",
    "use_flash_attn": "attn_implementation",
    "load_balancing_weight": "router_aux_loss_coef",
    "load_balancing_loss": "router_aux_loss_coef",
    "data_loader_seed": "data_seed",
    "hf_repo_id": "hub_model_id",
    "hf_repo_revision": "hub_revision",
    "save_to_hub": "hub_model_id",
    "timeout": "ddp_timeout",
    "additional_model_arguments": "model_init_kwargs",
    "optimizer_type": "optim",
}
OPEN_INSTRUCT_DROPPED = because(
    (
        reasons.TOKENIZER,
        "tokenizer_name tokenizer_revision use_slow_tokenizer add_bos use_fast "
        "get_tokenizer_fn config_name",
    ),
    (reasons.TEMPLATE, "chat_template_name"),
    (
        reasons.PREPARED,
        "overwrite_cache dataset_cache_mode dataset_local_cache_dir skip_cache "
        "dataset_skip_cache cache_dataset_only dataset_transform_fn transform_fn "
        "dataset_target_columns target_columns dataset_config_hash config_hash "
        "dataset_mix_dir cache_mode local_cache_dir reference_logprobs_cache_path "
        "ground_truths_key sft_messages_key cache_logprobs_only",
    ),
    (reasons.BATCHES, "concatenated_forward packing"),
    (reasons.NOT_DPO, "gamma_beta_ratio dpo_gamma_beta_ratio"),
    (
        reasons.AT_LAUNCH,
        "zero_stage offload_optimizer offload_param zero_hpz_partition_size "
        "tensor_parallel_degree context_parallel_degree fsdp_shard_degree fsdp_num_replicas "
        "low_cpu_mem_usage sync_each_batch cp_degree cp_strategy",
    ),
    (
        reasons.KERNELS,
        "fused_optimizer compile_model activation_memory_budget profiling "
        "activation_checkpointing_mode loss_implementation ephemeral_save_interval "
        "add_seed_and_date_to_exp_name do_not_randomize_output_dir",
    ),
    ("norms of gradients are logged in any case", "log_grad_norm"),
    (reasons.WANDB, "wandb_project wandb_project_name wandb_entity wandb_group_name"),
    (
        reasons.AT_AI2,
        "try_launch_beaker_eval_jobs try_auto_save_to_beaker gs_bucket_path oe_eval_tasks "
        "oe_eval_max_length oe_eval_gpu_multiplier eval_workspace eval_priority "
        "hf_metadata_dataset hf_entity hf_repo_url send_slack_alerts",
    ),
    (reasons.UNLIKE, "rope_scaling_factor rope_scaling_beta_fast rope_scaling_beta_slow"),
    ("optim_args takes them, as key=value", "optimizer_kwargs"),
)

TOOLS = {
    "axolotl": (axolotl.RENAMED, axolotl.DROPPED),
    "LLaMA-Factory": (LLAMA_FACTORY_RENAMED, LLAMA_FACTORY_DROPPED),
    "open-instruct": (OPEN_INSTRUCT_RENAMED, OPEN_INSTRUCT_DROPPED),
    "ms-swift": (ms_swift.RENAMED, ms_swift.DROPPED),
}
