"""Recipes of DPO as other tools write them, and some of their keys as ours."""

import re

TRAINED = """
model_name_or_path: someone/start-7b
bf16: true
beta: 0.02
do_eval: true
eval_strategy: steps
eval_steps: 40
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: False}
hub_model_id: someone/start-7b-dpo
learning_rate: 3.0e-7
log_level: info
logging_steps: 5
lr_scheduler_type: cosine
max_length: 768
max_prompt_length: 384
num_train_epochs: 2
optim: adamw_torch
output_dir: data/start-7b-dpo
per_device_train_batch_size: 4
per_device_eval_batch_size: 4
push_to_hub: true
save_strategy: "steps"
save_steps: 40
save_total_limit: 1
seed: 7
warmup_ratio: 0.1
"""
POOLED = """
torch_dtype: null
dataset_num_proc: 6
dataset_mixture:
  datasets:
    - {id: someone/pairs, config: default, split: train_prefs, columns: [chosen], weight: 1.0}
    - {id: someone/pairs, config: default, split: test_prefs, columns: [chosen], weight: 1.0}
  test_split_size: 500
  seed: 0
"""
TWO_POOLED = POOLED.replace(
    "  test_split",
    "    - {id: others/pairs, split: train}\n  test_split",
)
MIXER = """
dataset_mixer: {someone/pairs: 1.0}
dataset_splits: [train_prefs, test_prefs]
preprocessing_num_workers: 6
"""
QLORA = """
use_peft: true
load_in_4bit: true
lora_r: 64
lora_alpha: 32
lora_dropout: 0.1
lora_target_modules: [q_proj, v_proj]
attn_implementation: flash_attention_2
"""
SHARES = """
model_revision: it-SFT
torch_dtype: bfloat16
attn_implementation: flash_attention_2
trust_remote_code: true
dataset_mixture:
  datasets:
    - {id: someone/talk, config: Preference, split: a, columns: [chosen], weight: 0.5}
    - {id: someone/talk, config: Preference, split: b, columns: [chosen], weight: 0.25}
"""
BEFORE = TRAINED.replace("eval_strategy", "evaluation_strategy")
WHOLE = TRAINED + "dataset_mixer: {someone/pairs: 1, others/pairs: 0.004, third/pairs: 0}\n"
WHOLE += "dataset_splits: train_prefs\n"
WHOLE_ENTRY = TRAINED + "dataset_mixture: {datasets: [{id: someone/pairs, weight: 1}]}\n"
HANDBOOK = {
    "full": TRAINED + POOLED,
    "qlora": TRAINED + MIXER + QLORA.replace("torch_dtype: null", ""),
    "gemma": TRAINED.replace('"steps"', '"no"').replace("save_steps: 40", "")
    + POOLED.replace("null", "bfloat16")
    + "report_to: [tensorboard, wandb]\n",
    "scan": TRAINED.replace("max_length: 768", "")
    + POOLED
    + "loss_type: sigmoid\nhub_model_revision: v1\n",
    "constitutional": TRAINED.replace("gradient_checkpointing_kwargs: {use_reentrant: False}", "")
    + TWO_POOLED
    + "do_train: true\n",
    "code": TRAINED.replace('"steps"', '"no"') + TWO_POOLED.replace("null", "bfloat16"),
    "small": TRAINED + POOLED.replace("null", "bfloat16") + "hub_private_repo: true\n",
    "think": TRAINED.replace(": cosine", ": cosine_with_min_lr")
    .replace("eval_strategy: steps", "eval_strategy: 'no'")
    .replace("eval_steps: 40", "save_only_model: false")
    + SHARES
    + "loss_type: apo_zero\npadding_free: true\nuse_liger_kernel: true\nmax_grad_norm: 0.2\n"
    "hub_strategy: every_save\nlogging_strategy: steps\noverwrite_output_dir: true\n"
    "run_name: talk\nlr_scheduler_kwargs: {min_lr_rate: 0.1}\n",
    "test fixture": TRAINED.replace("save_total_limit: 1", "save_total_limit: null") + MIXER,
    "first lora": BEFORE + MIXER + QLORA + "use_flash_attention_2: true\nwandb_project: mine\n",
    "first full": BEFORE.replace("strategy: steps", "strategy: epoch")
    + MIXER.replace("1.0", "0.5")
    + "ddp_find_unused_parameters: true\n",
}
TRL = {
    "flags of 0.9": TRAINED
    + "dataset_name: someone/pairs\nloss_type: aot_pair\nlabel_pad_token_id: -100\n"
    "padding_value: 0\nis_encoder_decoder: false\ngenerate_during_eval: true\n"
    "force_use_ref_model: false\ndataset_num_proc: 3\nsanity_check: false\n",
    "rpo": TRAINED + "dataset_name: someone/pairs\nrpo_alpha: 0.5\ntruncation_mode: keep_end\n",
    "rpo of two": TRAINED + "dataset_name: someone/pairs\nrpo_alpha: 0.5\n"
    "loss_type: [sigmoid, bco_pair]\nloss_weights: [0.8, 0.2]\n",
    "0.20": TRAINED + "dataset_name: someone/pairs\ndataset_train_split: train\ntorch_dtype: auto\n"
    "max_completion_length: 300\nuse_logits_to_keep: true\ntools: null\nmodel_adapter_name: x\n"
    "ref_model_init_kwargs: {}\nref_adapter_name: y\nbase_model_attribute_name: model\n"
    "use_peft: true\nlora_target_modules: all-linear\ngroup_by_length: true\n"
    "load_best_model_at_end: true\n",
    "shell": "#!/bin/bash\nMODEL=someone/start-7b\naccelerate launch --num_processes 4 \\\n"
    "  examples/scripts/dpo.py --model_name_or_path ${MODEL} --dataset_name someone/pairs \\\n"
    "  --learning_rate 5e-7 --per_device_train_batch_size 2 --no_remove_unused_columns \\\n"
    "  --gradient_checkpointing --warmup_ratio 0.05 --output_dir out\n",
}
AXOLOTL = """
base_model: someone/start-7b
model_type: LlamaForCausalLM
tokenizer_type: AutoTokenizer
special_tokens: {pad_token: <pad>}
load_in_8bit: true
load_in_4bit: false
chat_template: llama3
rl: dpo
datasets:
  - path: someone/pairs
    split: train
    type: chat_template.default
    field_messages: talk
    field_chosen: good
    field_rejected: bad
    message_property_mappings: {role: role, content: content}
    roles: {user: [user]}
dataset_prepared_path:
val_set_size: 0.03
output_dir: ./outputs/lora-out
sequence_len: 1536
sample_packing: false
adapter: lora
lora_model_dir:
lora_r: 24
lora_alpha: 12
lora_dropout: 0.02
lora_target_linear: true
wandb_project:
wandb_entity:
wandb_watch:
wandb_name: mine
wandb_log_model:
gradient_accumulation_steps: 4
micro_batch_size: 3
num_epochs: 2
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.00007
bf16: auto
tf32: false
gradient_checkpointing: true
resume_from_checkpoint:
logging_steps: 1
attn_implementation: flash_attention_2
warmup_ratio: 0.1
evals_per_epoch: 5
saves_per_epoch: 1
weight_decay: 0.0
"""
OF_AXOLOTL = {
    "lora": AXOLOTL,
    "qlora": AXOLOTL.replace("adapter: lora", "adapter: qlora")
    + "lora_target_modules: [q_proj]\nlora_modules_to_save: [lm_head]\nrl_beta: 0.2\n",
    "of its trl": AXOLOTL + "trl: {beta: 0.7}\nrl_beta: 0.2\nrpo_alpha: 0.3\n"
    "dpo_loss_type: [hinge]\ndpo_loss_weights: [0.5]\n",
    "intel": re.sub(
        r"type: chat.*?output_dir", "type: chatml.intel\noutput_dir", AXOLOTL, flags=re.S
    )
    + "flash_attention: true\ndeepspeed: zero3.json\nfsdp:\nfsdp_config:\ndpo_label_smoothing: 0\n"
    "train_on_inputs: false\ngroup_by_length: false\nxformers_attention:\nstrict: false\n",
    "ipo by its own columns": re.sub(
        r"type: chat.*?dataset_prep",
        "type: {field_prompt: q, field_chosen: a, field_rejected: b, prompt_format: '[{prompt}]'}\n"
        "dataset_prep",
        AXOLOTL.replace("rl: dpo", "rl: ipo"),
        flags=re.S,
    )
    .replace("adapter: lora", "adapter:")
    .replace("8bit: true", "8bit: false"),
}
FACTORY = """
model_name_or_path: someone/start-7b
trust_remote_code: true
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 6
lora_target: all
pref_beta: 0.3
pref_loss: sigmoid
dataset: ultrafeedback
template: qwen
cutoff_len: 3000
max_samples: 700
preprocessing_num_workers: 6
dataloader_num_workers: 4
output_dir: saves/start-7b/lora/dpo
logging_steps: 10
save_steps: 50
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
"""
OF_FACTORY = {
    "lora": FACTORY,
    "full": FACTORY.replace("type: lora", "type: full")
    .replace("lora_rank: 6\nlora_target: all\n", "deepspeed: ds_z3.json\nflash_attn: fa2\n")
    .replace("max_samples: 700\n", "")
    + "val_size: 0.1\nper_device_eval_batch_size: 1\neval_strategy: steps\neval_steps: 50\n",
    "qlora with ftx": FACTORY
    + "quantization_bit: 4\nquantization_method: bnb\ndouble_quantization: true\npref_ftx: 0.2\n"
    "lora_alpha: 20\nlora_dropout: 0.1\nadditional_target: embed_tokens\nuse_dora: true\n"
    "dataset_dir: data\noverwrite_cache: true\n",
    "shell": "#!/bin/bash\nCUDA_VISIBLE_DEVICES=0 llamafactory-cli train --stage dpo \\\n"
    "  --model_name_or_path someone/start-7b --dataset orca_pairs --template default \\\n"
    "  --finetuning_type lora --lora_target q_proj,v_proj --pref_beta 0.1 --pref_loss ipo \\\n"
    "  --output_dir out --cutoff_len 1024 --learning_rate 1e-5 --plot_loss --fp16\n",
    "images": FACTORY
    + "image_max_pixels: 262144\nvideo_max_pixels: 16384\nldx: 1\n".replace(
        "ldx: 1\n", "ld_alpha: 0.5\n"
    ),
}
INSTRUCT = """
model_name_or_path: someone/start-7b
model_revision: main
gradient_checkpointing: true
dataset_mixer:
  someone/pairs: 1.0
  others/pairs: 300
tokenizer_name: someone/start-7b
use_slow_tokenizer: true
max_seq_length: 1900
preprocessing_num_workers: 16
per_device_train_batch_size: 1
gradient_accumulation_steps: 4 # designed for 8 GPUs, so batch size 32
learning_rate: 5e-7
lr_scheduler_type: linear
warmup_ratio: 0.1
weight_decay: 0.0
num_epochs: 1
output_dir: /output
with_tracking: true
logging_steps: 1
use_lora: false
loss_type: dpo_norm
beta: 5
checkpointing_steps: 1000
"""
SCRIPT = """#!/bin/bash
IMAGE=${1:-someone/image}
NUM_GPUS=2
TOTAL=16
STEPS=$(($TOTAL/$NUM_GPUS/1))
DATA="
someone/pairs 1.0
"
for LR in 1e-6
do
python mason.py --cluster here --image $IMAGE --num_nodes 3 --gpus 2 -- accelerate launch \\
    --mixed_precision bf16 --num_processes $NUM_GPUS --use_deepspeed \\
    open_instruct/dpo_tune_cache.py \\
    --exp_name "mine-$(date)" --model_name_or_path someone/start-7b --model_revision main \\
    --tokenizer_name someone/start-7b --use_slow_tokenizer False --add_bos \\
    --dataset_mixer_list $DATA --max_seq_length 1900 --per_device_train_batch_size 1 \\
    --gradient_accumulation_steps $STEPS --learning_rate $LR --warmup_ratio 0.1 \\
    --num_epochs 1 --dpo_loss_type dpo_norm --dpo_beta 5 --gradient_checkpointing \\
    --with_tracking --seed 8 --try_launch_beaker_eval_jobs false --oe_eval_tasks "a:b,c"
done
"""
OF_INSTRUCT = {
    "mixture": INSTRUCT,
    "one data set": re.sub(
        r"dataset_mixer:\n.*\n.*\n", "dataset_name: someone/pairs\n", INSTRUCT
    ).replace("loss_type: dpo_norm\nbeta: 5\n", "")
    + "max_train_samples: 100\nkeep_last_n_checkpoints: 3\nadd_bos: true\n",
    "lora": INSTRUCT.replace("use_lora: false", "use_lora: true\nuse_qlora: true\nlora_rank: 8")
    + "hf_metadata_dataset: ''\nconcatenated_forward: true\ngamma_beta_ratio: 0.3\n",
    "shell": SCRIPT,
}
SWIFT = """
rlhf_type: dpo
model: someone/start-7b
tuner_type: lora
dataset: [someone/pairs, 'others/pairs:sub#300']
split_dataset_ratio: 0.02
load_from_cache_file: true
torch_dtype: bfloat16
num_train_epochs: 1
per_device_train_batch_size: 2
per_device_eval_batch_size: 1
learning_rate: 1e-4
lora_rank: 6
lora_alpha: 12
target_modules: all-linear
gradient_accumulation_steps: 8
eval_steps: 50
save_steps: 50
save_total_limit: 2
logging_steps: 3
max_length: 900
output_dir: output
warmup_ratio: 0.05
dataloader_num_workers: 4
dataset_num_proc: 4
deepspeed: zero2
attn_impl: flash_attn
rpo_alpha: 0.1
"""
OF_SWIFT = {
    "lora": SWIFT,
    "full": SWIFT.replace("tuner_type: lora", "train_type: full").replace("max_length: 900\n", "")
    + "padding_free: true\nsave_only_model: true\nuse_hf: true\nsystem: you help\n",
    "qlora": SWIFT.replace("rpo_alpha: 0.1", "loss_type: [sigmoid, bco_pair]")
    + "quant_bits: 4\nquant_method: bnb\nloss_weights: [0.8, 0.2]\nmodules_to_save: [lm_head]\n"
    "truncation_strategy: left\nload_args: true\nadd_version: false\n",
    "in turns": SWIFT
    + "interleave_prob: [0.6, 0.4]\nstopping_strategy: first_exhausted\ntemplate: qwen\n"
    "val_dataset: held/pairs\ncolumns: {question: query, good: response}\n",
    "shell": "#!/bin/bash\nnproc_per_node=2\nCUDA_VISIBLE_DEVICES=0,1 \\\n"
    "NPROC_PER_NODE=$nproc_per_node \\\nswift rlhf --rlhf_type dpo --model someone/start-7b \\\n"
    "  --train_type lora --dataset 'someone/pairs#2000' --target_modules q_proj v_proj \\\n"
    "  --gradient_accumulation_steps $(expr 16 / $nproc_per_node) --freeze_vit true \\\n"
    "  --max_length 2048 --lora_rank 8 --output_dir out --custom_dataset_info a/train\n\n"
    "swift infer --output_dir there\n",
}
MANY = TRL["shell"].replace("accelerate launch --num_processes 4", "LAUNCH")
MANY = MANY.replace("--output_dir out", "--use_peft --lora_alpha 64 2>&1 | tee its.log")
NAMED = re.sub(
    r"datasets:.*?dataset_prep", "datasets: [someone/pairs]\ndataset_prep", AXOLOTL, flags=re.S
)
TURNS = FACTORY.replace(": ultrafeedback", ": orca_pairs,ultrafeedback")
TURNS += "mix_strategy: interleave_under\ninterleave_probs: 0.75,0.25\n"
PIECES = """datasets:
  - {path: someone/pairs, shards: 10, shards_idx: 2, revision: abc, type: chatml.intel}
  - {path: others/pairs, data_files: [a.jsonl], ds_type: json, type: chatml.intel}
dataset_prep"""
PIECES = re.sub(r"datasets:.*?dataset_prep", PIECES, AXOLOTL, flags=re.S)
SAVED = 'save_strategy: "steps"\n'
BEST = "save_strategy: best\n"
KEPT = "load_best_model_at_end: true\nsave_strategy: 'no'\n"
SFT = TRAINED.replace("-dpo", "-x").replace("beta: 0.02", "max_seq_length: 9") + MIXER
