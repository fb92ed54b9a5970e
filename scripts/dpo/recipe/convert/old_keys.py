"""Keys that recipes of older TRL, Transformers and the alignment handbook have: what each is called
now, or why there is no such key any more.

What a strict parse says of an unknown key, and what `make new FROM=` does with it.
"""

from pathlib import Path

from dpo.core.refusal import Refusal
from dpo.recipe.convert import axolotl, llama_factory, ms_swift, open_instruct, reasons

OURS = {
    "dtype": "torch_dtype",
    "warmup_steps, where a number below 1 is a share of all steps": "warmup_ratio",
    "eval_strategy": "evaluation_strategy",
    "dataset_name, or datasets for several": "dataset_mixer dataset_mixture",
    "dataset_train_split and dataset_test_split": "dataset_splits",
    "dataset_config": "dataset_configs",
    "dataset_train_split": "dataset_train_name",
    "dataset_test_split": "dataset_test_name",
    "dataset_num_proc": "preprocessing_num_workers",
    "per_device_train_batch_size": "per_gpu_train_batch_size",
    "per_device_eval_batch_size": "per_gpu_eval_batch_size",
    "use_cpu": "no_cuda",
    "hub_revision": "hub_model_revision",
    "hub_model_id": "push_to_hub_model_id",
    "hub_token": "push_to_hub_token",
    "lora_r": "peft_lora_r",
    "lora_alpha": "peft_lora_alpha",
    "use_liger_kernel": "use_liger_loss",
    "loss_type: [sigmoid, sft], and loss_weights: [1.0, this]": "rpo_alpha",
    "gradient_checkpointing_kwargs": "gradient_checkpointing_use_reentrant",
    "chat_template_path": "chat_template",
    "model_name_or_path": "model",
    "ref_model_name_or_path": "ref_model reference_model_name_or_path",
    "dataset_name": "dataset",
}
RENAMED = reasons.by_key(OURS)
LEFT_OUT = {
    reasons.CUT_WHOLE: "max_prompt_length max_completion_length max_target_length",
    "the tokenizer and the model's own configuration say it": """label_pad_token_id padding_value
        is_encoder_decoder truncation_side""",
    "the reference is the policy without its adapter, or its start": """model_adapter_name
        ref_adapter_name force_use_ref_model ref_model_init_kwargs base_model_revision""",
    reasons.NOTHING_LEFT: """use_logits_to_keep use_num_logits_to_keep base_model_attribute_name
        fp16_backend half_precision_backend fp16_opt_level past_index use_ipex jit_mode_eval
        tpu_num_cores tpu_metrics_debug mp_parameters ray_scope use_mps_device save_safetensors
        include_inputs_for_metrics adafactor include_tokens_per_second sortish_sampler
        dispatch_batches split_batches torchdynamo model_code_revision sanity_check
        gradient_accumulation_kwargs xpu_backend ddp_backend_timeout""",
    "pairs are dealt to processes by length in any case": "group_by_length",
    "prefix sharing has attention of its own": "use_flash_attention_2",
    "they stand in a column `tools`, beside each row": "tools",
    "TRL has no loss without a reference any more": "reference_free",
    "completions are shown at every evaluation in any case": "generate_during_eval",
    "`--restart` moves an earlier run aside": "overwrite_output_dir",
    reasons.ONE_FOLDER: "logging_dir",
    "the tokenizer is the model's": "tokenizer_name_or_path",
    "the chat template says it": "auto_insert_empty_system_msg",
    "a slice of the split takes a part: split: train[:1000] in datasets": "max_train_samples",
    "test_split_size says how many are held out": "max_eval_samples",
    "the columns tell; column_mapping names others": "text_column",
    "rows are rendered and tokenised by the tokenizer alone": "dataset_kwargs",
    reasons.WANDB: "wandb_project wandb_entity wandb_run_group wandb_log_model",
    reasons.GENERATES: "benchmarks callbacks system_prompt",
    reasons.AT_LAUNCH: "accelerate_config num_processes num_machines",
}
DROPPED = reasons.by_key(LEFT_OUT)
MODULES = {
    "axolotl": axolotl,
    "LLaMA-Factory": llama_factory,
    "open-instruct": open_instruct,
    "ms-swift": ms_swift,
}
TOOLS = {tool: (of.RENAMED, reasons.by_key(of.LEFT_OUT)) for tool, of in MODULES.items()}


def tables(tool: str) -> tuple[dict[str, str], dict[str, str]]:
    """What the keys of a tool are called here, and why there is none for those that are left; with
    those of TRL, which others have as well."""
    renamed, dropped = TOOLS.get(tool, ({}, {}))
    return {k: v for k, v in RENAMED.items() if k not in dropped} | renamed, DROPPED | dropped


def spelling(key: str) -> str | None:
    """What to write in the place of a key that is not ours; None if no other tool has it."""
    for renamed, dropped in ((RENAMED, DROPPED), *TOOLS.values()):
        if key in renamed:
            return f"{key!r} is now {renamed[key]}"
        if key in dropped:
            return f"leave {key!r} out: {dropped[key]}"
    return None


def refuse_unknown(path: Path, unknown: dict[str, str]) -> None:
    """Name all keys of a recipe that are not known, each with what to write in its place.

    Args:
        unknown: the keys, each with those of ours that are near.

    Raises:
        Refusal: there are some.
    """
    if not unknown:
        return
    old = {key: spelling(key) for key in unknown}
    said = "; ".join(old[key] or f"{key!r}: {near}" for key, near in unknown.items())
    many = "unknown key" if len(unknown) == 1 else f"{len(unknown)} unknown keys:"
    hint = f"; make new FROM={path} RECIPE=another-name writes it anew" if any(old.values()) else ""
    raise Refusal(f"{path}: {many} {said}{hint}")
