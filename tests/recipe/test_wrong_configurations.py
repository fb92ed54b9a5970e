"""Forty wrong configurations and more, each with the line that refuses it."""

import os
import sys

import pytest
from trl import DPOConfig
from trl.scripts.utils import DatasetConfig

from dpo.core.terminal import guarded
from dpo.losses import START
from dpo.recipe.arguments import OF_ONE
from dpo.recipe.flags import overridden
from dpo.recipe.parse import parse, read_yaml
from dpo.recipe.validate import LOSS_TYPES, check_values
from dpo.runs import launch
from support.place import ROOT
from support.refusing import RECIPE, refusal

FLAGS = {
    # values out of range
    "--beta=0": "beta is 0.0: give a number above 0",
    "--beta=-1": "beta is -1.0: give a number above 0",
    "--beta=nan": "beta is nan: give a number above 0",
    "--beta=inf": "beta is inf: give a number above 0",
    "--save_steps=inf": "save_steps is inf: give a finite number",
    "--beta=high": "argument --beta: invalid float value: 'high'",
    "--learning_rate=0": "learning_rate is 0.0: give a number above 0",
    "--learning_rate=-1e-6": "learning_rate is -1e-06: give a number above 0",
    "--learning_rate=10": "learning_rate is 10.0: the first step would destroy the model",
    "--per_device_train_batch_size=0": "per_device_train_batch_size is 0: give 1 or more",
    "--gradient_accumulation_steps=-2": "gradient_accumulation_steps is -2: give 1 or more",
    "--per_device_eval_batch_size=0": "per_device_eval_batch_size is 0: give 1 or more",
    "--max_steps=0": "max_steps is 0: give 1 or more, or leave it out",
    "--max_steps=-1 --num_train_epochs=0": "num_train_epochs is 0.0: nothing would be trained",
    "--save_strategy=best": "save_strategy is best: say by what: metric_for_best_model",
    "--save_strategy=best --eval_strategy=no": "is best: there is no best without an eval_strategy",
    "--max_length=3": "max_length is 3: give 16 tokens or more",
    "--label_smoothing=0.5 --loss_type robust": "label_smoothing is 0.5: give 0 or more, below 0.5",
    "--label_smoothing=-0.1": "label_smoothing is -0.1: give 0 or more",
    "--ld_alpha=2": "ld_alpha is 2.0: give 0 to 1",
    "--discopop_tau=0 --loss_type discopop": "discopop_tau is 0.0: give a number above 0",
    "--max_grad_norm=-1": "max_grad_norm is -1.0: give 0 or more",
    "--weight_decay=5": "weight_decay is 5.0: give 0 or more, below 1",
    "--adam_beta1=1": "adam_beta1 is 1.0: give 0 or more, below 1",
    "--adam_beta2=1.5": "adam_beta2 is 1.5: give 0 or more, below 1",
    "--adam_epsilon=0": "adam_epsilon is 0.0: give a number above 0",
    "--warmup_steps=-1": "warmup_steps = -1",
    "--save_steps=0": "save_steps is 0.0: give a number of steps",
    "--eval_steps=-5": "eval_steps is -5.0: give a number of steps",
    "--logging_steps=0": "requires non-zero --logging_steps",
    "--logging_steps=-1": "logging_steps is -1.0: give a number of steps",
    "--save_total_limit=0": "save_total_limit is 0: give 1 or more",
    "--dataloader_num_workers=-1": "dataloader_num_workers is -1: give 0 or more",
    "--seed=-1": "seed is -1: give 0 to",
    "--use_peft --lora_r=0": "lora_r is 0: give 1 or more",
    "--use_peft --lora_dropout=1": "lora_dropout is 1.0: give 0 or more, below 1",
    "--quarantine_limit=5": "quarantine_limit is 5.0: give 0 to 1",
    "--reward_prompts=-1": "reward_prompts is -1: give 0 or more",
    "--reward_samples=0": "reward_samples is 0: give 1 or more",
    # names
    "--loss_type sigmoyd": "loss_type is ['sigmoyd']: no sigmoyd: choose from sigmoid, hinge, ipo",
    "--f_divergence_type=kl": "f_divergence_type is kl: give one of reverse_kl, forward_kl",
    "--optim=adam": "argument --optim: invalid choice: 'adam' (choose from 'adamw_torch'",
    "--eval_strategy=often": "--eval_strategy",
    "--lr_scheduler_type=slow": "--lr_scheduler_type",
    "--dtype=float8": "--dtype",
    "--learning_rat=1": "unknown argument '--learning_rat=1'",
    "--chat_template_path=nothing": "chat_template_path: nothing is no file",
    # at odds with each other
    "--loss_type sigmoid sft --loss_weights 1": "Got 1 weights for 2 loss types",
    "--loss_type sigmoid sigmoid": "['sigmoid', 'sigmoid']: one of them is there twice",
    "--label_smoothing=0.1": "label_smoothing is 0.1: only robust, exo_pair, aot",
    "--loss_type exo_pair": "label_smoothing is 0.0: exo_pair takes its logarithm: give 0.001",
    "--loss_type apo_zero --f_divergence_type=forward_kl": "not for loss_type apo_zero",
    "--loss_type aot --use_weighting": "use_weighting is True: TRL cannot weigh the pairs of",
    "--loss_type sigmoid sft --use_weighting": "cannot weigh the pairs of loss_type sft: leave",
    "--loss_type hinge --use_weighting": "cannot weigh the pairs of loss_type hinge: leave",
    "--sync_ref_model --use_peft": "sync_ref_model is True: an adapter has no reference",
    "--use_peft --lora_task_type=SEQ_CLS": "lora_task_type is SEQ_CLS: give CAUSAL_LM",
    "--lora_r=8": "lora_r is 8: without use_peft all weights are trained",
    "--load_in_4bit": "use_peft is False: weights in 4 or 8 bits cannot be trained",
    "--use_peft --lora_target_modules q_proj lm_head": "would not train an adapter on lm_head",
    "--auto_find_batch_size": "auto_find_batch_size is True: it would change the global batch",
    "--dataset_streaming --max_steps=-1": "max_steps is -1: a stream has no end",
    "--fp16=true --bf16=true": "At most one of fp16 and bf16 can be True",
    "--load_best_model_at_end --eval_strategy=no": "Evaluation strategy: ",
    "--loss_type sigmoid sft --loss_weights 1 0": "loss_weights is [1.0, 0.0]: give numbers above",
    "--loss_weights=-1": "loss_weights is [-1.0]: give numbers above 0",
    "--loss_weights=nan": "loss_weights is [nan]: give numbers above 0",
    # not finite
    "--num_train_epochs=nan --max_steps=-1": "num_train_epochs is nan: ",
    "--router_aux_loss_coef=nan": "router_aux_loss_coef is nan: give 0 or more",
    "--f_divergence_type=alpha_divergence --f_alpha_divergence_coef=inf": "coef is inf: give a n",
    "--neftune_noise_alpha=nan": "neftune_noise_alpha is nan: give a number above 0",
    "--eval_delay=nan": "eval_delay is nan: give a number of steps",
    '--lr_scheduler_kwargs={"num_cycles":NaN}': "lr_scheduler_kwargs is {'num_cycles': nan}: give",
    # stated and then undone
    "--sync_ref_model --precompute_ref_log_probs=true": "precompute_ref_log_probs is True: the ref",
    "--dataset_streaming --precompute_ref_log_probs=true": "is True: a stream's rows are not there",
    "--torch_compile": "torch_compile is True: it would compile anew for the lengths of every",
    "--torch_compile_backend=eager": "torch_compile is True: it would compile anew",
    "--neftune_noise_alpha=5": "neftune_noise_alpha is 5.0: its noise goes by the shape of a batch",
    "--padding_free": "padding_free is True: TRL has switched it off",
    "--label_smoothing_factor=0.1": "label_smoothing_factor is 0.1: no loss of DPO looks at it",
    "--ignore_bias_buffers": "ignore_bias_buffers is True: nothing looks at it",
    "--use_peft --lora_dropout=0.1": "lora_dropout is 0.1: it does nothing unless disable_dropout",
    "--f_alpha_divergence_coef=0.3": "_coef is 0.3: it does nothing unless f_divergence_type is",
    "--discopop_tau=0.1": "discopop_tau is 0.1: it does nothing unless loss_type is discopop",
    "--ref_model_mixup_alpha=0.5": "it does nothing unless sync_ref_model is true",
    "--ref_model_sync_steps=64": "it does nothing unless sync_ref_model is true",
    "--eval_strategy=epoch --eval_steps=5": "eval_steps is 5.0: it does nothing unless eval_strate",
    "--save_strategy=epoch --save_steps=5": "save_steps is 5.0: it does nothing unless save_strate",
    "--hub_model_id=me/mine": "hub_model_id is me/mine: it does nothing unless push_to_hub is true",
    "--push_to_hub": "push_to_hub is True: say where to: hub_model_id: org/name",
    "--push_to_hub --hub_model_id=me/mine --hub_strategy=checkpoint": "hub_strategy is checkpoint: "
    "choose end: the policy is sent; optimizer states are pickles",
    "--num-train-epochs=2": "num_train_epochs is 2.0: it does nothing unless max_ste",
    "--lr_scheduler_type=constant --warmup_steps=5": "warmup_steps is 5.0: it does nothing unless",
    "--optim=sgd --adam_beta2=0.95": "adam_beta2 is 0.95: it does nothing unless optim is a kind",
    "--use_peft --bnb_4bit_quant_type=fp4": "it does nothing unless load_in_4bit is true",
    "--use_dora": "use_dora is True: without use_peft all weights are trained",
    "--label_names x": "label_names is ['x']: nothing looks at it",
    "--eval_accumulation_steps=2": "there are no metrics beside DPO's own",
    "--eval_do_concat_batches=false": "there are no metrics beside DPO's own",
    "--bf16_full_eval": "pairs are evaluated while the run trains, in its numerics",
    "--do_predict": "a run predicts nothing",
    "--average_tokens_across_devices=false": "losses are means over pairs",
    "--restore_callback_states_from_checkpoint": "what must be restored always is",
    "--greater_is_better=true": "it does nothing unless metric_for_best_model is stated",
    "--dataset_test_split=x --test_split_size=0.2": "nothing unless test_split_size is left out",
    "--split_seed=7": "split_seed is 7: it does nothing unless test_split_size is stated",
    "--trackio_space_id=me/mine": "it does nothing unless report_to is trackio",
    "--optim=sgd --optim_args=momentum=0.9,nestorov=true": "it does nothing unless optim is one",
    "--optim_args=rank=4": "it does nothing unless optim is one that takes all of them",
    "--optim_target_modules=q_proj": "it does nothing unless optim is a kind of GaLore or APOLLO",
    "--optim=lion_32bit --adam_epsilon=1e-6": "it does nothing unless optim is a kind of Adam",
    '--model_init_kwargs={"use_safetensors":false}': "weights are read as data alone",
    # against what runs, checkpoints and batches are here
    "--enable_jit_checkpoint": "a run that is asked to stop saves in any case",
    "--ignore_data_skip": "a run that goes on would take other pairs than one that was not stopped",
    "--save_on_each_node": "the machines share their folder, and would write the same files",
    "--dataloader_in_order=false": "pairs would be trained on in an order of chance",
    "--train_sampling_strategy=group_by_length": "give random or sequential",
    '--accelerator_config={"use_seedable_sampler":false}': "leave out split_batches, dispatch_bat",
    '--accelerator_config={"split_batches":true}': "leave out split_batches, dispatch_batches, ev",
    "--deepspeed=deepspeed_configs/zero2.json": "CONFIG= says how a run is sharded",
    "--fsdp=full_shard": "CONFIG= says how a run is sharded",
    "--debug=underflow_overflow": "losses, gradients and weights are looked at in any case",
    # what the libraries would say only when training begins, or later
    "--optim=galore_adamw --optim_target_modules=q_proj": "You need to install `galore_torch`",
    "--optim=sgd --optim_args=momentum": "optim_args is momentum: not enough values",
    '--lr_scheduler_kwargs={"foo":1}': "got an unexpected keyword argument 'foo'",
    "--lr_scheduler_kwargs=foo": "lr_scheduler_kwargs is foo: give a mapping",
    '--lr_scheduler_type=inverse_sqrt --lr_scheduler_kwargs={"timescale":0}': "_kwargs is {'timesc",
    "--lr_scheduler_type=warmup_stable_decay": "type is warmup_stable_decay: it needs lr_scheduler",
    "--lr_scheduler_type=cosine_warmup_with_min_lr": "it needs lr_scheduler_kwargs, a mapping: One",
    '--lr_scheduler_type=polynomial --lr_scheduler_kwargs={"lr_end":1}': "(1) must be smaller than",
    "--lr_scheduler_type=reduce_lr_on_plateau --eval_strategy=no": "requires an eval strategy",
    "--optim=schedule_free_adamw": "optim is schedule_free_adamw: You need to install",
    "--report_to=mlflow": "report_to is ['mlflow']: ",
    "--neftune_noise_alpha=-5 --share_prefix=false": "neftune_noise_alpha is -5.0: give a number",
    "--pad_to_multiple_of=-3": "pad_to_multiple_of is -3: give auto, or 1 or more",
    "--dataloader_num_workers=2 --dataloader_prefetch_factor=0": "factor is 0: give 1 or more",
    "--f_divergence_type=alpha_divergence --f_alpha_divergence_coef=-2": "is -2.0: give a number",
    "--f_divergence_type=alpha_divergence --f_alpha_divergence_coef=0": "0 and 1 stand for is f_di",
    "--f_divergence_type=alpha_divergence --f_alpha_divergence_coef=1": "is 1.0: give a number bet",
    "--f_divergence_type=alpha_divergence --f_alpha_divergence_coef=1.5": "is 1.5: give a number b",
    "--resume_from_checkpoint=outputs/nowhere": "nowhere: no folder is there: leave it out",
    "--resume_from_checkpoint=true": "resume_from_checkpoint is true: no folder is there",
    "--column_mapping=nope=a": "ARGS: column_mapping: nothing reads a column 'nope': one of pro",
    "--resume_from_checkpoint=recipes": "is recipes: it is no checkpoint of a run here",
    "--pad_token=nope --dataset_name=DATA": "pad_token is nope: the tokenizer of",
    "--max_steps=-1 --dataloader_drop_last --per_device_train_batch_size=99 --dataset_name=DATA": (
        "16 pairs to train on, fewer than the 99 of one batch"
    ),
    '--model_init_kwargs={"foo":1} --dataset_name=DATA': "model_init_kwargs has foo, which is",
    '--model_init_kwargs={"rope_parameters":3}': "or what model_init_kwargs change of it",
    "--lr_scheduler_type=cosine_with_min_lr": "One of min_lr or min_lr_rate should be set",
    "--report_to=clearml": "report_to is ['clearml']: ClearMLCallback requires 'clearml'",
    "--use_liger_kernel": "use_liger_kernel is True: pip install liger-kernel, or leave it out",
    "--report_to=nothing": "report_to is ['nothing']: nothing is not supported",
    "--metric_for_best_model=accuracy": "metric_for_best_model is accuracy: give one of loss",
    "--eval_strategy=no --eval_on_start": "there are no held-out pairs without an eval_strategy",
    "--dataloader_num_workers=0 --dataloader_multiprocessing_context=fork": "no dataloader_num_w",
    "--activation_offloading": "there is no GPU whose memory it would spare",
    "--activation_checkpointing=true --gradient_checkpointing=false": "it is the old name of act",
    "--eval_delay=-4": "eval_delay is -4.0: give a number of steps or epochs",
    "--ddp_timeout=-1": "ddp_timeout is -1: give a number of seconds",
    "--streaming": "streaming is True: it does nothing unless datasets is stated",
    '--model_init_kwargs={"rope_scaling":{"type":"linear","factor":2}}': "kwargs, rope_scaling: ",
    '--model_init_kwargs={"dtype":"bfloat16"}': "give dtype as a key of its own",
    '--model_init_kwargs={"variant":"fp16"}': "variant is not looked at here: give a folder",
    "--dtype=bfloat16": "dtype bfloat16: full fine-tuning hardly moves weights",
    # the model and the data
    "--model_name_or_path=./nothing": "no model folder ./nothing: `make install` makes",
    "--model_name_or_path=C:\\models\\mine": "no model folder C:\\models\\mine: `make install`",
    "--dataset_name=.\\pairs": "no data at .\\pairs: put them there, or name others",
    "--dataset_name=C:pairs": "no data at C:pairs: put them there, or name others",
    "--output_dir=C:\\runs\\mine": "give a folder of this machine, with / and no drive",
    "--output_dir=C:runsmine": "output_dir is C:runsmine: give a folder of this machine",  # by sh
    "--output_dir=s3://bucket/run": "output_dir is s3://bucket/run: give a folder of this machine",
    "--reference_cache=\\\\server\\cache": "give a folder of this machine",
    "--dataset_name=./nothing": "no data at ./nothing: put them there, or name others with",
    "--dataset_name=outputs/pairs": "no data at outputs/pairs: put them there, or name others",
    "--model_name_or_path=outputs/run": "no model folder outputs/run: ",
    "--dataset_name=data/pairs.jsonl": "no data at data/pairs.jsonl: put them there",
    "--dataset_name=pairs.csv.gz": "no data at pairs.csv.gz: put them there, or name others",
    "--dataset_name=book.xlsx": "no data at book.xlsx: put them there, or name others",
    "--dataset_test_split=held_out": "has no split 'held_out', only train, test",
    "--dataset_test_split=train": "held-out pairs must be another split",
}
# Flags, which are read as strictly as a file's keys, and named as ARGS.
TYPED = {
    "--beta 0.1 --beta=0.2": "'--beta 0.1' and '--beta=0.2': beta stands twice: keep one",
    "--beta=0.1 --beta=0.1": "beta stands twice",
    "--loss_type sigmoid sft --loss-type ipo": "'--loss_type sigmoid sft' and '--loss-type ipo': l",
    "--share_prefix=true --no_share_prefix": "share_prefix stands twice",
    "--use_peft --use-peft": "use_peft stands twice",
    '--lr_scheduler_kwargs={"a":1': 'is {"a":1, which is no JSON: Expecting',
    "--lr_scheduler_kwargs {a: 1}": "is {a: 1}, which is no JSON: Expecting property name",
    "--model_init_kwargs={'a':1}": "which is no JSON: ",
    "--accelerator_config=[1": "--accelerator_config is [1, which is no JSON",
    "--report_to mlflow wandb": "'wandb' belongs to no flag",
    "--beta=high": "argument --beta: invalid float value: 'high'",
    "--per_device_train_batch_size=0": "per_device_train_batch_size is 0: give 1 or more",
    "--tf32=true": "--tf32 requires",
    "--preference_layout=nope": "preference_layout: no layout 'nope': one of explicit (prompt, ch",
    "--column_mapping=prompt": "column_mapping: prompt: write prompt=question chosen=good",
    '--column_mapping={"prompt":["a"]}': 'column_mapping: {"prompt":["a"]}: write prompt=question',
    '--datasets={"path":"x"}': "give the name of a data set, a folder or a file; several stand in",
    "--dataset_name=": "dataset_name is '': give the name of a data set",
}
LAUNCHES = {
    ("", "0"): "GPUS=0 is not a number",
    ("cpu", "2"): "CONFIG=cpu runs one process: for GPUS=2 choose zero2 or zero3",
    ("zero2", "9"): "GPUS=9, but this machine has 2",
    ("ddp", "many"): "GPUS=many is not a number",
}


@pytest.mark.parametrize("flags", FLAGS)
def test_one_line_says_what_is_wrong_and_what_to_do(
    monkeypatch, tmp_path, tiny_model, tiny_data, flags
):
    here = [f"--model_name_or_path={tiny_model}", f"--output_dir={tmp_path}/run", "--use_cpu"]
    message = refusal(monkeypatch, *here, *flags.replace("DATA", str(tiny_data)).split())
    assert FLAGS[flags] in message


@pytest.mark.parametrize("flags", TYPED)
def test_flags_are_to_blame_and_not_the_recipe(flags):
    with pytest.raises(SystemExit) as stop:
        parse(["--config", str(RECIPE), "--use_cpu", *flags.split()])
    assert stop.value.code.startswith("ARGS: ") and TYPED[flags] in stop.value.code
    assert RECIPE.name not in stop.value.code


def test_what_a_program_sets_wins_over_flags():
    given = ["--max-steps", "4", "--loss_type", "sigmoid", "sft", "--beta=0.1", "--use_peft"]
    assert overridden(given, ["--max_steps=9", "--loss_type=ipo"]) == [
        *("--beta=0.1", "--use_peft", "--max_steps=9", "--loss_type=ipo")
    ]


def test_they_are_forty():
    assert len(FLAGS) + len(LAUNCHES) >= 40


@pytest.mark.parametrize("wrong", LAUNCHES, ids=" ".join)
def test_what_the_machine_has_not(monkeypatch, wrong):
    monkeypatch.setattr(launch, "gpus_here", lambda: 2)
    with pytest.raises(SystemExit) as stop:
        launch.choose(*wrong)
    assert LAUNCHES[wrong] in stop.value.code and "\n" not in stop.value.code


def test_the_line_names_the_file(monkeypatch, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE.read_text().replace("learning_rate:", "learning_rate: 3 #"))
    message = refusal(monkeypatch, recipe=recipe)
    assert message.startswith(f"{recipe}: learning_rate is 3.0: ")


@pytest.mark.parametrize(
    "key, says",
    {
        "beta: [0.1, 0.2]": r"beta is \[0\.1, 0\.2\]: it takes one value, and no list",
        "per_device_train_batch_size: [4]": "it takes one value, and no list",
        "dataset_name: [a/b, c/d]": "it takes one value, and no list",
        "model_name_or_path: [a/b]": "it takes one value, and no list",
        "learning_rate:": "learning_rate is empty: give a value, or leave it out",
        "max_steps: null": "max_steps is empty: ",
        "loss_type: ~": "loss_type is empty: ",
        "dataset_name: {a: 1}": "it takes one value, and no mapping",
        "run_name: {a: 1}": "it takes one value, and no mapping",
        "dataset_name: 7": "dataset_name is 7: give a name or a folder, 7 as ./7",
        "model_name_or_path: 7": "model_name_or_path is 7: give a name or a folder",
        "model_name_or_path: true": "model_name_or_path is True: give a name",
        "preference_layout: nope": "no layout 'nope': one of explicit ",
        "preference_layout: {a: b}": "it takes one value, and no mapping",
        "column_mapping: {prompt: [a, b]}": "write prompt=question chosen=good",
        "column_mapping: {prompt: 5}": "write prompt=question chosen=good",
        "column_mapping: [a, b]": "it takes one value, and no list",
        "column_mapping: true": "column_mapping: True: write prompt=question",
        "datasets: foo": "datasets is foo: give a list of data sets, each a mapping of path, name",
        "datasets: [foo]": r"datasets is \['foo'\]: give a list of data sets",
        "datasets: {path: x}": "give a list of data sets",
        "datasets: [{pth: x}]": "datasets, entry 1: no key pth: one of path, name, data_dir",
        "datasets: [{path: x}, {name: y}]": "datasets, entry 2 has no path",
        "datasets: [{path: 7}]": "datasets, entry 1: path is 7: give a name",
        "datasets: [{path: x, columns: [1]}]": r"columns is \[1\]: give a list of names",
        "datasets: [{path: x, fraction: high}]": "fraction is high: give a number above 0",
        "datasets: [{path: x, fraction: 0}]": "fraction is 0: give a number above 0",
    }.items(),
)
def test_a_value_that_no_flag_could_have(tmp_path, key, says):
    recipe = tmp_path / "mine.yaml"
    keys = [k for k in RECIPE.read_text().splitlines() if not k.startswith(key.split(":")[0])]
    recipe.write_text("\n".join([*keys, key]) + "\n")
    with pytest.raises(SystemExit, match=says) as stop:
        parse(["--config", str(recipe), "--use_cpu"])
    assert str(stop.value).startswith(f"{recipe}: ")


def test_every_recipe_has_values_that_can_be(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ | {"ACCELERATE_USE_CPU": "true"})
    for recipe in ROOT.rglob("recipes/*.yaml"):
        check_values(parse(["--config", str(recipe)]))


# Data files, a switch that a flag turns over, and what a switch that is off takes with it.
FINE = (
    "--eval_strategy=no",
    "--eval_strategy=no --eval_steps=5",
    "--eval_strategy=epoch",
    "--lr_scheduler_type=constant",
    "--max_steps=-1 --num_train_epochs=2",
    "--sync_ref_model --ref_model_sync_steps=4",
    "--sync_ref_model --precompute_ref_log_probs=false --precompute_ref_batch_size=4",
    "--torch_compile --share_prefix=false",
    "--use_peft --lora_dropout=0.1 --disable_dropout=false",
    "--use_peft --lora_dropout=0.05 --label_smoothing_factor=0.0",  # as they are anyway
    "--num_train_epochs=1 --max-steps=9",  # as in TRL's own examples
    "--use_peft=false",
    "--loss_type sigmoid sft --loss_weights 1 0.5",
    "--dataset_streaming",
    "--optim=sgd --optim_args=momentum=0.9",
    "--optim=lion_32bit --adam_beta1=0.95",
    "--optim=adamw_torch --adam_epsilon=1e-6",
    '--lr_scheduler_type=cosine_with_min_lr --lr_scheduler_kwargs={"min_lr_rate":0.1}',
    "--lr_scheduler_type=reduce_lr_on_plateau --greater_is_better=false",
    "--load_best_model_at_end --metric_for_best_model=rewards/accuracies",
    "--train_sampling_strategy=sequential",
    '--accelerator_config={"non_blocking":true}',
    "--activation_checkpointing=true",  # over the recipe's gradient_checkpointing
    "--dataloader_multiprocessing_context=fork",  # where there are workers
)


@pytest.mark.parametrize("flags", FINE)
def test_what_has_an_effect_is_taken(flags):
    check_values(parse(["--config", str(RECIPE), "--use_cpu", *flags.split()]))


def test_a_mixture_leaves_no_data_set_beside_it(tmp_path):
    """A flag that names other data would be lost, and the mixture trained on."""
    recipe = tmp_path / "mixed.yaml"
    text = RECIPE.read_text().replace(
        "dataset_name: recipes/data/sentiment", "datasets:\n- path: x"
    )
    recipe.write_text(text)
    with pytest.raises(SystemExit, match="dataset_name is mine: it does nothing unless datasets"):
        check_values(parse(["--config", str(recipe), "--use_cpu", "--dataset_name=mine"]))


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    """In a recipe, and after `=`, where no shell puts it; not within a name."""
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model_name_or_path: ~/model\noutput_dir: ~/run~/x\ndatasets:\n- path: ~/pairs\n"
    )
    keys = read_yaml(path)
    assert keys["model_name_or_path"] == "/home/me/model"
    assert keys["output_dir"] == "/home/me/run~/x" and keys["datasets"] == [
        {"path": "/home/me/pairs"}
    ]
    seen = []
    given = ["--output_dir=~/run", "--model", "~/model", "dataset_name=~/a,~/b", "--beta=a~/b"]
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    guarded(lambda: seen.extend(sys.argv[1:]))()
    home = "/home/me"
    assert seen[:3] == [f"--output_dir={home}/run", "--model", f"{home}/model"]
    assert seen[3:] == [f"dataset_name={home}/a,{home}/b", "--beta=a~/b"]


def test_the_keys_of_a_mixture_are_those_of_the_pinned_trl():
    assert {*OF_ONE} == {*DatasetConfig.__dataclass_fields__}


@pytest.mark.parametrize("strategy", ["eval_strategy", "save_strategy", "logging_strategy"])
def test_a_plain_no_is_one(strategy, tmp_path):
    """YAML reads it as false."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"{strategy}: no\n")
    assert read_yaml(path) == {strategy: "no"}


@pytest.mark.parametrize("value", ["$SCRATCH/run", "${HOME}/run", "runs/$USER", "a-${x:-1}"])
@pytest.mark.parametrize("key", ["output_dir", "model_name_or_path", "dataset_name"])
def test_a_recipe_knows_no_variables(key, value, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"{key}: {value}\nlora_target_modules: .*(q|v)_proj$\n")
    with pytest.raises(SystemExit, match=f"mine.yaml: {key} is .*: a recipe knows no .*a shell"):
        read_yaml(path)


@pytest.mark.parametrize("given", ["a/run/", "a//run", "./a/run", "a/b/../run"])
def test_a_folder_is_the_same_however_it_is_written(given):
    recipe = parse(["--config", str(RECIPE), "--use_cpu", f"--output_dir={given}"])
    assert recipe.training.output_dir == recipe.stated["output_dir"] == "a/run"


def test_a_large_rate_is_left_to_plain_descent(monkeypatch):
    check_values(parse(["--config", str(RECIPE), "--use_cpu", "--learning_rate=1", "--optim=sgd"]))


def test_the_loss_types_are_those_of_the_pinned_trl():
    told = DPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    told = told.split("Possible values are: ")[1].split(". If")[0]
    assert {name.strip("` '") for name in told.split(",")} == {*LOSS_TYPES} == {*START, "sft"}


def test_a_list_is_a_value_where_a_flag_takes_one(tmp_path):
    recipe = tmp_path / "two.yaml"
    recipe.write_text(RECIPE.read_text().replace("report_to: wandb", "report_to: [wandb, trackio]"))
    parsed = parse(["--config", str(recipe), "--use_cpu"])
    assert parsed.training.report_to == ["wandb", "trackio"]
