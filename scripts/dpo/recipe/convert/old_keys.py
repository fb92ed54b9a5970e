"""Keys that recipes of older TRL, Transformers and the alignment handbook have: what each is called
now, or why there is no such key any more.

What a strict parse says of an unknown key, and what `make new FROM=` does with it.
"""


def because(*groups: tuple[str, str]) -> dict[str, str]:
    """Each key to the reason of its group; a group is a reason and its keys."""
    return {key: reason for reason, keys in groups for key in keys.split()}


# Reasons that keys of several tools have.
AT_LAUNCH = "make train CONFIG= says how a run is sharded"
BATCHES = "prefix sharing has no padding to pack away"
ATTENTION = "attn_implementation says it; prefix sharing has attention of its own"
TOKENIZER = "the tokenizer is the model's, with its own special tokens"
TEMPLATE = "the model's own chat template, or another with chat_template_path"
PREPARED = "rows are read, checked and kept by content"
KERNELS = "not here: it changes speed or memory, not what is learned"
WANDB = "W&B reads its environment: WANDB_PROJECT, WANDB_ENTITY"
NOT_WANDB = "W&B and a local page are the trackers here"
NOT_DPO = "it is no part of DPO"
GENERATES = "make evaluate does it"
AT_AI2 = "it starts jobs of the authors' own cluster"
UNLIKE = "there is no such method here"

RENAMED = {
    "torch_dtype": "dtype",
    "warmup_ratio": "warmup_steps, where a number below 1 is a share of all steps",
    "evaluation_strategy": "eval_strategy",
    "dataset_mixer": "dataset_name, or datasets for several",
    "dataset_mixture": "dataset_name, or datasets for several",
    "dataset_splits": "dataset_train_split and dataset_test_split",
    "dataset_configs": "dataset_config",
    "dataset_train_name": "dataset_train_split",
    "dataset_test_name": "dataset_test_split",
    "preprocessing_num_workers": "dataset_num_proc",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
    "hub_model_revision": "hub_revision",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "peft_lora_r": "lora_r",
    "peft_lora_alpha": "lora_alpha",
    "use_liger_loss": "use_liger_kernel",
    "rpo_alpha": "loss_type: [sigmoid, sft], and loss_weights: [1.0, this]",
    "gradient_checkpointing_use_reentrant": "gradient_checkpointing_kwargs",
    "chat_template": "chat_template_path",
    "model": "model_name_or_path",
    "dataset": "dataset_name",
}
CUT_WHOLE = "a pair is cut as a whole, by max_length"
BY_TOKENIZER = "the tokenizer and the model's own configuration say it"
NO_ADAPTER_NAMES = "the reference is the policy without its adapter, or its start"
NOTHING_LEFT = "nothing looks at it any more"
DROPPED = because(
    (CUT_WHOLE, "max_prompt_length max_completion_length max_target_length"),
    (BY_TOKENIZER, "label_pad_token_id padding_value is_encoder_decoder truncation_side"),
    (
        NO_ADAPTER_NAMES,
        "model_adapter_name ref_adapter_name force_use_ref_model ref_model_init_kwargs "
        "base_model_revision ref_model ref_model_name_or_path reference_model_name_or_path",
    ),
    (
        NOTHING_LEFT,
        "use_logits_to_keep use_num_logits_to_keep base_model_attribute_name fp16_backend "
        "half_precision_backend fp16_opt_level past_index use_ipex jit_mode_eval "
        "tpu_num_cores tpu_metrics_debug mp_parameters ray_scope use_mps_device "
        "save_safetensors include_inputs_for_metrics adafactor "
        "include_tokens_per_second sortish_sampler dispatch_batches split_batches torchdynamo "
        "model_code_revision sanity_check gradient_accumulation_kwargs xpu_backend "
        "ddp_backend_timeout",
    ),
    ("pairs are dealt to processes by length in any case", "group_by_length"),
    ("prefix sharing has attention of its own", "use_flash_attention_2"),
    ("they stand in a column `tools`, beside each row", "tools"),
    ("TRL has no loss without a reference any more", "reference_free"),
    ("completions are shown at every evaluation in any case", "generate_during_eval"),
    ("`--restart` moves an earlier run aside", "overwrite_output_dir"),
    ("all of a run lies in output_dir", "logging_dir"),
    ("the tokenizer is the model's", "tokenizer_name_or_path"),
    ("the chat template says it", "auto_insert_empty_system_msg"),
    ("a slice of the split takes a part: split: train[:1000] in datasets", "max_train_samples"),
    ("test_split_size says how many are held out", "max_eval_samples"),
    ("the columns tell; column_mapping names others", "text_column"),
    ("rows are rendered and tokenised by the tokenizer alone", "dataset_kwargs"),
    (
        "W&B reads its environment: WANDB_PROJECT, WANDB_ENTITY",
        "wandb_project wandb_entity wandb_run_group wandb_log_model",
    ),
    ("make evaluate does it", "benchmarks callbacks system_prompt"),
    (AT_LAUNCH, "accelerate_config num_processes num_machines"),
)
