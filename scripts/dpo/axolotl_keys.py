"""The keys of axolotl for DPO: what each is called here, or why there is none. Keys that are TRL's
own are not repeated; what takes thought is in from_tools.py.
"""

from dpo.old_keys import (
    AT_LAUNCH,
    ATTENTION,
    BATCHES,
    GENERATES,
    KERNELS,
    NOT_DPO,
    NOT_WANDB,
    PREPARED,
    TEMPLATE,
    TOKENIZER,
    UNLIKE,
    WANDB,
    because,
)

RENAMED = {
    "base_model": "model_name_or_path",
    "revision_of_model": "model_revision",
    "sequence_len": "max_length",
    "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "num_epochs": "num_train_epochs",
    "optimizer": "optim",
    "lr_scheduler": "lr_scheduler_type",
    "val_set_size": "test_split_size",
    "test_datasets": "dataset_test_split",
    "evals_per_epoch": "eval_steps",
    "saves_per_epoch": "save_steps",
    "rl_beta": "beta",
    "dpo_beta": "beta",
    "dpo_loss_type": "loss_type",
    "dpo_loss_weights": "loss_weights",
    "dpo_label_smoothing": "label_smoothing",
    "dpo_use_weighting": "use_weighting",
    "dpo_norm_loss": "loss_type",
    "adapter": "use_peft",
    "lora_model_dir": "model_name_or_path",
    "lora_target_linear": "lora_target_modules",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "dataset_processes": "dataset_num_proc",
    "cosine_min_lr_ratio": "lr_scheduler_kwargs",
    "wandb_name": "run_name",
    "noisy_embedding_alpha": "neftune_noise_alpha",
    "bfloat16": "dtype",
    "float16": "dtype",
    "chat_template_jinja": "chat_template_path",
}
DROPPED = because(
    ("DPO is what is done here", "rl"),
    ("a pair is cut as a whole, by max_length", "max_prompt_len"),
    (
        "truncation_mode cuts; what is left without a completion is set aside",
        "excess_length_strategy",
    ),
    ("per_device_train_batch_size × gradient_accumulation_steps is the batch", "batch_size"),
    (
        BATCHES,
        "sample_packing eval_sample_packing pad_to_sequence_len batch_flattening "
        "dpo_padding_free sample_packing_group_size sample_packing_bin_size "
        "sample_packing_eff_est curriculum_sampling multipack_real_batches eval_sequence_len "
        "min_sample_len",
    ),
    (
        ATTENTION,
        "flash_attention xformers_attention sdp_attention flex_attention eager_attention "
        "sage_attention s2_attention flash_optimum flash_attn_cross_entropy "
        "flash_attn_rms_norm flash_attn_fuse_mlp flash_attn_fuse_qkv scaling_softmax "
        "large_head_attention",
    ),
    (
        AT_LAUNCH,
        "fsdp_version deepcompile dp_shard_size dp_replicate_size world_size "
        "tensor_parallel_size context_parallel_size sequence_parallel_degree heads_k_stride "
        "ring_attn_func device_map max_memory gpu_memory_limit low_cpu_mem_usage ddp device "
        "fsdp_final_state_dict_type use_ray ray_num_workers ray_run_name resources_per_worker "
        "lora_on_cpu",
    ),
    (
        "the model's configuration says it",
        "model_type type_of_model base_model_config cls_model_config is_falcon_derived_model "
        "is_llama_derived_model is_mistral_derived_model is_qwen_derived_model "
        "overrides_of_model_config overrides_of_model_kwargs",
    ),
    (
        TOKENIZER,
        "tokenizer_type tokenizer_config tokenizer_use_fast tokenizer_legacy "
        "tokenizer_use_mistral_common tokenizer_save_jinja_files special_tokens tokens "
        "added_tokens_overrides processor_type processor_kwargs "
        "resize_token_embeddings_to_32x shrink_embeddings mean_resizing_embeddings "
        "embeddings_skip_upcast fix_untrained_tokens",
    ),
    (TEMPLATE, "chat_template eot_tokens default_system_message chat_template_kwargs"),
    (
        PREPARED,
        "dataset_prepared_path dataset_keep_in_memory dataset_exact_deduplication "
        "dataset_shard_num dataset_shard_idx skip_prepare_dataset num_dataset_shards_to_save "
        "shuffle_merged_datasets push_dataset_to_hub shuffle_before_merging_datasets "
        "hf_use_auth_token is_preprocess",
    ),
    (
        KERNELS,
        "plugins use_kernels use_scattermoe use_sonicmoe lora_mlp_kernel lora_qkv_kernel "
        "lora_o_kernel lora_embedding_kernel liger_rope liger_rms_norm liger_glu_activation "
        "liger_layer_norm liger_cross_entropy liger_fused_linear_cross_entropy "
        "cut_cross_entropy chunked_cross_entropy tiled_mlp layer_offloading unsloth_lora_mlp "
        "unsloth_lora_qkv unsloth_lora_o unsloth_cross_entropy_loss dpo_use_liger_kernel "
        "gc_steps gc_collect_steps experimental_skip_move_to_device torch_compile_options "
        "selective_checkpointing experts_implementation fp8 profiler_steps strict debug "
        "save_first_step auto_resume_from_checkpoints",
    ),
    (
        WANDB,
        "wandb_project wandb_entity wandb_watch wandb_log_model wandb_run_id wandb_mode use_wandb",
    ),
    (
        NOT_WANDB,
        "use_mlflow mlflow_tracking_uri mlflow_experiment_name mlflow_run_name "
        "hf_mlflow_log_artifacts use_comet comet_project_name use_tensorboard use_swanlab "
        "swanlab_project swanlab_experiment_name swanlab_description swanlab_mode "
        "swanlab_workspace swanlab_log_completions swanlab_log_model "
        "swanlab_completion_log_interval swanlab_completion_max_buffer use_trackio "
        "swanlab_run_name swanlab_api_key swanlab_logdir include_tkps",
    ),
    (NOT_DPO, "train_on_inputs orpo_alpha cpo_alpha simpo_gamma train_on_eos vllm"),
    (
        UNLIKE,
        "relora relora_steps relora_prune_ratio loftq_config gptq peft lisa_n_layers "
        "lora_fan_in_fan_out loraplus_lr_ratio unfrozen_parameters loraplus_lr_embedding "
        "lr_groups embedding_lr embedding_lr_scale peft_layers_to_transform "
        "peft_layers_pattern lr_quadratic_warmup cosine_constant_lr_ratio lr_div_factor "
        "adam_epsilon2 adam_beta3 trl lora_rank_pattern lora_alpha_pattern "
        "peft_init_lora_weights qat use_pose use_onebitllms bnb_config_kwargs rope_scaling "
        "torchdistx_path",
    ),
    (
        GENERATES,
        "do_bench_eval bench_dataset do_causal_lm_eval eval_causal_lm_metrics eval_table_size "
        "eval_max_new_tokens generate_samples dpo_generate_during_eval",
    ),
    (
        "a loss that stays high or is not finite ends a run in any case",
        "loss_watchdog_threshold loss_watchdog_patience early_stopping_patience",
    ),
    ("nothing looks at it any more", "dpo_use_logits_to_keep"),
    ("weights are in float32 as it is; bf16: false computes in it too", "float32"),
)
