"""make new FROM= brings a recipe of another tool; a strict parse says what unknown keys are now."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

import new
from dpo.recipe.convert.convert import convert
from dpo.recipe.convert.old_keys import DROPPED, RENAMED, TOOLS
from dpo.recipe.parse import FOLDER, make_parser, parse, resolve
from dpo.recipe.validate import check_values
from support.other_tools import (
    AXOLOTL,
    BEST,
    FACTORY,
    HANDBOOK,
    INSTRUCT,
    KEPT,
    MANY,
    NAMED,
    OF_AXOLOTL,
    OF_FACTORY,
    OF_INSTRUCT,
    OF_SWIFT,
    PIECES,
    POOLED,
    SAVED,
    SCRIPT,
    SFT,
    SWIFT,
    TRAINED,
    TRL,
    TURNS,
    WHOLE,
    WHOLE_ENTRY,
)
from support.place import ROOT

RECIPES = [
    pytest.param(tool, text, id=f"{tool}, {what}")
    for tool, texts in {
        "alignment-handbook": HANDBOOK,
        "TRL": TRL,
        "axolotl": OF_AXOLOTL,
        "LLaMA-Factory": OF_FACTORY,
        "open-instruct": OF_INSTRUCT,
        "ms-swift": OF_SWIFT,
    }.items()
    for what, text in texts.items()
]


def brought(folder: Path, text: str, *given, **more) -> tuple[str, dict]:
    """The recipe that the text of another tool's becomes, and its keys."""
    path = folder / ("theirs.sh" if text.startswith("#!") else "theirs.yaml")
    path.write_text(text)
    text, _ = convert(path, "mine", *given, **more)
    return text, yaml.safe_load(text)


def test_json_is_read_as_json(tmp_path):
    """Tabs and a byte order mark are."""
    path = tmp_path / "theirs.json"
    keys = yaml.safe_load(TRL["rpo"])
    path.write_text(json.dumps(keys, indent="\t"), encoding="utf-8-sig")
    assert yaml.safe_load(convert(path, "mine")[0])["beta"] == 0.02
    path.write_text(json.dumps(keys)[:-9])
    with pytest.raises(SystemExit, match=r"theirs\.json: not JSON: "):
        convert(path, "mine")


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("its.py", "args = DPOConfig(beta=0.1)", "is a Python program, which is not run: write"),
        ("its.ipynb", '{"cells": []}', "is a Python program"),
        ("its.yaml", b"\x89PNG\r\n", "is no text"),
        ("its.toml", "beta = 0.1\nbeta = 0.2\n", "not TOML: Cannot overwrite a value"),
        ("its.json", '{"beta": 1,\n"beta": 2}', "key 'beta' stands twice, in lines 1 and 2: keep"),
        ("its.md", "# A recipe", "a recipe is YAML, JSON, TOML or a shell script"),
        (".", None, "is a folder: give a file of it: a.yaml, b.json"),
    ],
)
def test_what_holds_no_keys_is_refused_in_a_line(name, text, says, tmp_path):
    path = tmp_path / name
    if text is None:
        (tmp_path / "a.yaml").touch(), (tmp_path / "b.json").touch()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit, match=says) as refusal:
        convert(path, "mine")
    assert "\n" not in str(refusal.value)


def test_toml_and_jobs_are_read(tmp_path):
    toml, job = tmp_path / "its.toml", tmp_path / "its.slurm"
    toml.write_text('model_name_or_path = "a/b"\ndataset_name = "c/d"\nbeta = 0.3\n')
    assert yaml.safe_load(convert(toml, "mine")[0])["beta"] == 0.3
    toml.write_text(toml.read_text().replace("beta", "[training]\nbeta"))  # a section
    assert yaml.safe_load(convert(toml, "mine")[0])["beta"] == 0.3
    job.write_text(TRL["shell"].removeprefix("#!/bin/bash\n"))
    assert yaml.safe_load(convert(job, "mine")[0])["gradient_accumulation_steps"] == 4


@pytest.mark.parametrize(
    "command, text",
    [
        ("accelerate launch --num_processes 4 scripts/run_dpo.py IT --beta=0.3", TRL["rpo"]),
        ("trl dpo --config IT --beta 0.3 --num_processes 4", TRL["rpo"]),
        ("accelerate launch --num_processes 4 -m axolotl.cli.train IT --rl-beta 0.3", AXOLOTL),
        ("NPROC_PER_NODE=4 llamafactory-cli train IT pref_beta=0.3", FACTORY),
    ],
)
def test_a_script_is_followed_to_the_recipe_that_it_names(command, text, tmp_path):
    """Its flags go before the file's keys, and it knows the number of GPUs."""
    (tmp_path / "its.yaml").write_text(text)
    (tmp_path / "jobs").mkdir()
    script = tmp_path / "jobs/theirs.sh"
    script.write_text(f"#!/bin/bash\n{command.replace('IT', 'its.yaml')}\n")
    keys, alone = (convert(path, "mine")[0] for path in (script, tmp_path / "its.yaml"))
    keys, alone = yaml.safe_load(keys), yaml.safe_load(alone)
    accumulated = alone["gradient_accumulation_steps"] * 4
    assert keys == alone | {"beta": 0.3, "gradient_accumulation_steps": accumulated}


def flat(text: str) -> str:
    return " ".join(text.replace("\n#", " ").split())


@pytest.mark.parametrize("tool, text", RECIPES)
def test_a_recipe_of_another_tool_becomes_ours(tool, text, tmp_path):
    """`convert` has parsed it strictly."""
    ours, keys = brought(tmp_path, text)
    flags = ["--use_cpu", *(["--bf16=false"] if "fp16" not in keys else ["--fp16=false"])]
    check_values(resolve(make_parser(), Path("mine.yaml"), "mine", keys, flags))
    assert f"a recipe of {tool}," in flat(ours) and "Not known" not in ours
    assert keys["model_name_or_path"] == "someone/start-7b"
    assert keys["output_dir"] == "outputs/mine"
    stated = re.findall(r"^(\w+):|--(\w+)", text.partition("dpo_tune_cache.py")[2] or text, re.M)
    for key in {key for pair in stated for key in pair if key} - {"num_processes"}:
        key = key.removeprefix("no_")
        assert re.search(rf"(?<!\w){key}(?!\w)", ours), f"{key} is gone without a word"


# The last of what a script assigns holds; of a loop with one value, and what no flag names, nothing
# is to be asked.
ASSIGNED = """#!/bin/bash
B=0.1
if [ $1 ]; then PORT=1; else PORT=2; fi
for RATE in 2e-6; do
B=0.5
trl dpo --model_name_or_path a/b --dataset_name x/y --beta $B --learning_rate $RATE
done
"""
WAY = {
    # One data set with a test split: it is held out, as it should have been.
    (HANDBOOK["full"], "dataset_name"): "someone/pairs",
    (HANDBOOK["full"], "dataset_train_split"): "train_prefs",
    (HANDBOOK["full"], "dataset_test_split"): "test_prefs",
    (HANDBOOK["full"], "test_split_size"): None,
    (HANDBOOK["full"], "warmup_steps"): 0.1,
    (HANDBOOK["full"], "gradient_accumulation_steps"): 16,  # 2 × 8 GPUs
    (HANDBOOK["qlora"], "gradient_accumulation_steps"): 2,  # its README has one GPU
    (HANDBOOK["qlora"], "dataset_test_split"): "test_prefs",
    (HANDBOOK["gemma"], "dtype"): None,  # no half-precision master weights
    (HANDBOOK["gemma"], "report_to"): "wandb",
    (HANDBOOK["constitutional"], "test_split_size"): 500,
    (HANDBOOK["constitutional"], "datasets"): [
        {"path": "someone/pairs", "split": "train_prefs"},
        {"path": "others/pairs", "split": "train"},
    ],
    (HANDBOOK["think"], "datasets"): [
        {"path": "someone/talk", "name": "Preference", "split": "a[:50%]"},
        {"path": "someone/talk", "name": "Preference", "split": "b[:25%]"},
    ],
    (WHOLE, "datasets"): [  # 1 is a share there, and no row; of 0 there is none
        {"path": "someone/pairs", "split": "train_prefs"},
        {"path": "others/pairs", "split": "train_prefs[:1%]"},
    ],
    (WHOLE_ENTRY, "dataset_name"): "someone/pairs",
    (HANDBOOK["think"], "loss_type"): ["apo_zero"],
    (HANDBOOK["first full"], "eval_strategy"): "epoch",
    (HANDBOOK["first full"], "datasets"): [{"path": "someone/pairs", "split": "train_prefs[:50%]"}],
    (TRL["flags of 0.9"], "loss_type"): ["aot_unpaired"],
    (TRL["rpo"], "loss_type"): ["sigmoid", "sft"],
    (TRL["rpo"], "loss_weights"): [1.0, 0.5],
    (TRL["rpo of two"], "loss_weights"): [0.8, 0.2, 0.5],
    (TRL["0.20"], "dtype"): "auto",
    (OF_AXOLOTL["lora"], "column_mapping"): {"prompt": "talk", "chosen": "good", "rejected": "bad"},
    (OF_AXOLOTL["lora"], "per_device_train_batch_size"): 3,
    (OF_AXOLOTL["lora"], "lora_target_modules"): "all-linear",
    (OF_AXOLOTL["lora"], "max_length"): 1536,
    (OF_AXOLOTL["lora"], "eval_steps"): 0.1,  # five an epoch, two epochs
    (OF_AXOLOTL["lora"], "save_steps"): 0.5,
    (OF_AXOLOTL["lora"], "test_split_size"): 0.03,
    (OF_AXOLOTL["ipo by its own columns"], "loss_type"): ["ipo"],
    (OF_AXOLOTL["ipo by its own columns"], "use_peft"): None,
    (OF_AXOLOTL["ipo by its own columns"], "preference_layout"): "question",
    (
        MANY.replace("LAUNCH", "torchrun --nproc-per-node=4 --nnodes 2"),
        "gradient_accumulation_steps",
    ): 8,
    (MANY.replace("LAUNCH", "deepspeed --num_gpus 3"), "gradient_accumulation_steps"): 3,
    (MANY, "lora_alpha"): 64,  # and not where it writes
    (AXOLOTL.replace("tf32: false", "tf32: true"), "tf32"): True,  # this machine may not have it
    (OF_AXOLOTL["qlora"], "lora_target_modules"): "all-linear",  # there both are taken
    (NAMED, "dataset_name"): "someone/pairs",
    (NAMED.replace("[someone/pairs]", "{path: someone/pairs}"), "dataset_name"): "someone/pairs",
    (NAMED.replace("[someone/pairs]", "someone/pairs"), "dataset_name"): "someone/pairs",
    (OF_AXOLOTL["of its trl"], "beta"): 0.7,
    (OF_AXOLOTL["of its trl"], "loss_type"): ["hinge", "sft"],
    (OF_AXOLOTL["of its trl"], "loss_weights"): [0.5, 0.3],
    (OF_FACTORY["qlora with ftx"], "loss_weights"): [1.0, 0.2],
    (FACTORY.replace(": ultrafeedback", ": [orca_pairs, ultrafeedback]"), "datasets"): [
        {"path": "Intel/orca_dpo_pairs", "split": "train[:700]"},
        {"path": "llamafactory/ultrafeedback_binarized", "split": "train[:700]"},
    ],
    (OF_FACTORY["qlora with ftx"], "load_in_4bit"): True,
    (OF_FACTORY["qlora with ftx"], "lora_r"): 6,
    (OF_FACTORY["qlora with ftx"], "lora_modules_to_save"): ["embed_tokens"],
    (OF_FACTORY["qlora with ftx"], "max_length"): 3000,
    (OF_FACTORY["shell"], "lora_target_modules"): ["q_proj", "v_proj"],
    (OF_FACTORY["shell"], "loss_type"): ["ipo"],
    (OF_INSTRUCT["mixture"], "datasets"): [
        {"path": "someone/pairs", "split": "train"},
        {"path": "others/pairs", "split": "train[:300]"},
    ],
    (OF_INSTRUCT["mixture"], "loss_type"): ["sigmoid_norm"],
    (OF_INSTRUCT["mixture"], "learning_rate"): 5e-7,  # YAML has it as text
    (OF_INSTRUCT["mixture"], "gradient_accumulation_steps"): 32,  # 4 × the 8 GPUs of its comment
    (
        OF_INSTRUCT["shell"],
        "gradient_accumulation_steps",
    ): 48,  # 16 / 2 × the 2 of 3 nodes
    (OF_SWIFT["lora"], "datasets"): [
        {"path": "someone/pairs", "split": "train"},
        {"path": "others/pairs", "name": "sub", "split": "train[:300]"},
    ],
    (OF_SWIFT["lora"], "loss_weights"): [1.0, 0.1],
    (OF_SWIFT["lora"], "lora_r"): 6,
    (OF_SWIFT["lora"], "weight_decay"): 0.1,  # its own default
    (OF_SWIFT["lora"], "eval_strategy"): "steps",
    (OF_SWIFT["lora"], "gradient_accumulation_steps"): 8,
    (OF_SWIFT["full"], "use_peft"): None,
    (OF_SWIFT["qlora"], "use_bnb_nested_quant"): True,
    (OF_SWIFT["qlora"], "loss_weights"): [0.8, 0.2],
    (OF_SWIFT["in turns"], "column_mapping"): {"prompt": "question", "chosen": "good"},
    (OF_SWIFT["in turns"], "datasets"): [
        {"path": "someone/pairs", "split": "train", "fraction": 0.6},
        {"path": "others/pairs", "name": "sub", "split": "train[:300]", "fraction": 0.4},
    ],
    (OF_SWIFT["shell"], "gradient_accumulation_steps"): 16,  # 16 / 2, on 2
    (OF_SWIFT["shell"], "lora_target_modules"): ["q_proj", "v_proj"],
    (TURNS, "datasets"): [
        {"path": "Intel/orca_dpo_pairs", "split": "train[:700]", "fraction": 0.75},
        {"path": "llamafactory/ultrafeedback_binarized", "split": "train[:700]", "fraction": 0.25},
    ],
    (PIECES, "datasets"): [
        {"path": "someone/pairs", "split": "train[20%:30%]"},
        {"path": "others/pairs", "split": "train", "data_files": ["a.jsonl"]},
    ],
    (TRL["rpo"].replace(SAVED, "") + BEST, "save_steps"): None,
    (
        TRL["rpo"].replace("eval_strategy: steps\n", "").replace(SAVED, "") + BEST,
        "save_strategy",
    ): None,
    (
        TRL["rpo"].replace("strategy: steps", "strategy: epoch").replace(SAVED, "") + KEPT,
        "save_strategy",
    ): "epoch",
    (TRL["rpo"].replace(": 768", ": null"), "max_length"): None,
    (TRL["rpo"] + "max_grad_norm: null\n", "max_grad_norm"): 0.0,  # which clips nothing
    (TRL["rpo"].replace("total_limit: 1", "total_limit: null"), "save_total_limit"): None,
    # A batch of axolotl's own: what is accumulated is what is left of it.
    (
        AXOLOTL.replace(
            "_accumulation_steps: 4", "_checkpointing: unsloth\nbatch_size: 48"
        ).replace("gradient_checkpointing: true\n", ""),
        "gradient_accumulation_steps",
    ): 16,
    (AXOLOTL + "streaming: true\nmax_steps: 9\n", "dataset_streaming"): True,
    (OF_INSTRUCT["shell"], "beta"): 5,
    (ASSIGNED, "beta"): 0.5,
    (ASSIGNED, "learning_rate"): 2e-6,
    (OF_INSTRUCT["shell"], "run_name"): None,  # a date that no recipe can hold
}


def test_its_keys_mean_what_they_meant(tmp_path):
    made: dict[str, dict] = {}
    for (text, key), value in WAY.items():
        if text not in made:
            made[text] = brought(tmp_path, text)[1]
        assert made[text].get(key) == value, (text, key)


@pytest.mark.parametrize(
    "text, says",
    [
        (HANDBOOK["full"], "trains on its test split: it pools someone/pairs (test_prefs)"),
        (HANDBOOK["full"], "= 64, on any number of GPUs that divides it; there 4 × 2 a GPU, on 8"),
        (HANDBOOK["gemma"], "trains weights in bfloat16, where an update"),
        (HANDBOOK["think"], "trust_remote_code: add it if"),
        (HANDBOOK["think"], "draws its shares at random"),
        (TRL["rpo"], "the original's batch changes with the GPUs: 8 pairs a GPU"),
        (
            TRL["rpo"].replace("eval_strategy: steps", "load_best_model_at_end: true"),
            "asks for its best model, and evaluates none",
        ),
        (TRL["rpo"] + "label_smoothing: 0.1\n", "TRL smooths labels of robust"),
        (OF_AXOLOTL["ipo by its own columns"], "prompt_format: the chat template renders instead"),
        (FACTORY.replace("ultrafeedback", "my_own"), "my_own is a name in LLaMA-Factory's"),
        (
            TURNS.replace("_under", "_over"),
            "draws from its data sets in turns; here all rows of ea",
        ),
        (PIECES, "datasets: revision abc: TRL's datasets name none, the newest is read"),
        (SWIFT, "ms-swift fetches from ModelScope"),
        (OF_SWIFT["in turns"], "val_dataset: held/pairs: test_split_size holds out a twentieth"),
        (
            TRL["rpo"] + "seed2: 1\ndata_seed: null\n",
            "data_seed (it is empty: the default is taken",
        ),
        (INSTRUCT + "quux: 3\nfoo_bar: 1\n", "Not known, left out: quux, foo_bar."),
        (TRL["rpo"] + "max_lenght: 3\n", "Not known, left out: max_lenght (is it max_length?)."),
        (TRL["rpo"] + "max_train_samples: 9\n", "max_train_samples: 9: all rows are trained on"),
        (INSTRUCT + "max_train_samples: 9\n", "max_train_samples: 9: all rows are trained on"),
        (SWIFT + "system: Be kind.\n", "system: the original puts it before every prompt"),
        (FACTORY + "default_system: Be kind.\n", "default_system: the original puts it before ev"),
        (
            AXOLOTL.replace("gradient_checkpointing: true", "gradient_checkpointing: offload"),
            "offl",
        ),
    ],
)
def test_what_was_wrong_or_is_lost_is_said(text, says, tmp_path):
    assert says in flat(brought(tmp_path, text)[0])


@pytest.mark.parametrize(
    "text, says",
    [
        (AXOLOTL.replace("rl: dpo", "rl: kto"), "no DPO, but rl: kto"),
        (AXOLOTL.replace("rl: dpo", ""), "an SFT: it has no rl: dpo"),
        (FACTORY.replace("stage: dpo", "stage: sft"), "no DPO, but stage: sft"),
        (FACTORY.replace("sigmoid", "simpo"), "no DPO, but pref_loss: simpo"),
        (FACTORY + "adapter_name_or_path: a,b\n", "a,b: merge them first"),
        (NAMED.replace("datasets: [", "test_datasets: ["), "it names no data"),
        (INSTRUCT.replace("dpo_norm", "simpo"), "no DPO, but loss_type: simpo"),
        (TRAINED.replace("-dpo", "-orpo") + "dataset_name: a/b\n", "no DPO, but ORPO, as its name"),
        (TRAINED + POOLED + "packing: true\n", "no DPO, but an SFT: it has packing"),
        (TRL["rpo"] + "desirable_weight: 1.0\n", "no DPO, but KTO"),
        (TRL["rpo"] + "loss_type: orpo\n", "loss_type orpo is none of TRL's DPO"),
        (TRL["rpo"] + "reference_free: true\n", "no DPO loss without a reference"),
        ("sequence_len: 3\ncutoff_len: 4\n", "could be of several tools"),
        ("trainer: {component: x}\nmodel: y\n", "keys of no tool that is known"),
        ("- a\n- b\n", "no keys"),
        ("a: [1\n", "not YAML"),
        (
            AXOLOTL.replace("bf16: auto", "bf16: fully"),
            r"theirs\.yaml: argument --bf16: Truthy value",
        ),
        (ASSIGNED.replace("in 2e-6", "in 1e-6 2e-6"), r"\$RATE has several values \(1e-6, 2e"),
        (
            ASSIGNED.replace("--beta $B", "--beta ${B}")
            .replace("PORT", "B")
            .replace("B=0.5\n", ""),
            r"\$B has several values \(0\.1, 1, 2\): write one",
        ),
        (
            TRL["rpo"].replace("someone/start-7b\n", "{name: a/b}\n", 1),
            "keys are not nested: give one name",
        ),
        (TRAINED, "it names no data: give them with DATASET="),
        (WHOLE_ENTRY.replace("id:", "path:"), "an entry of datasets has no id"),
        (SCRIPT.replace("for LR in 1e-6", ""), r"learning_rate is \$LR: nothing here says what"),
        (SWIFT.replace("type: dpo", "type: kto"), "no DPO, but rlhf_type: kto"),
        (SWIFT.replace("type: lora", "type: longlora"), "longlora: here all weights are trained"),
        (SWIFT + "global_batch_size: 4\nlr: 1e-5\n", "it is for Megatron, whose keys are others"),
        (SWIFT + "adapters: [a, b]\n", "adapters: a, b: merge them first"),
        (SFT, "no DPO, but an SFT: it has max_seq_length"),
        (SCRIPT.replace("dpo_tune_cache.py", "finetune.py"), "no DPO: it starts open_instruct/fin"),
        # Values of another kind.
        (
            FACTORY.replace("rank: 6", "rank: six"),
            "lora_rank is six: LLaMA-Factory takes no such v",
        ),
        (SWIFT.replace("size: 2", "size: auto"), "per_device_train_batch_size is auto: ms-swift"),
        (HANDBOOK["full"].replace("t: 1.0", "t: all"), "dataset_mixture is .*takes no such value"),
        (FACTORY.replace("rank: 6", "rank: .inf"), "lora_rank is inf: give a finite number"),
        (TURNS.replace("0.75", "a"), "interleave_probs is a,0.25: LLaMA-Factory takes no such"),
        (AXOLOTL.replace("chs: 2", "chs: two"), "num_epochs is two: axolotl takes no such value"),
        (AXOLOTL + "trl: true\n", "trl is True: axolotl takes no such value there"),
        (TRL["rpo"] + "loss_type: 3\n", "loss_type is 3: TRL takes no such"),
        (TRL["rpo"] + "training: {beta: 0.3}\n", "beta stands twice, one in training: keep one"),
        # A key that stands twice, in whichever form: the last would have won.
        (
            TRL["rpo"] + "beta: 0.3\n",
            r"theirs\.yaml: key 'beta' stands twice, in lines 4 and 32: k",
        ),
        (NAMED.replace("[someone", "[{path: a, path: b}, someone"), "key 'path' stands twice, in"),
        (MANY.replace("--use_peft", "--beta 1 --use_peft --beta=2"), "--beta stands twice: keep"),
        # What the file only names.
        (
            TRL["rpo"].replace("0.02", "${BETA}"),
            r"beta is \$\{BETA\}: nothing here says what \$\{BE",
        ),
        (
            TRL["rpo"].replace("someone/pairs", "$DATA"),
            r"dataset_name is \$DATA: .*or give DATASET=",
        ),
        (AXOLOTL.replace("someone/start-7b", "'{{ m }}'"), r"base_model is .*, or give MODEL="),
        (FACTORY.replace("rank: 6", "rank: $(nproc)"), r"lora_rank is \$\(nproc\): nothing"),
        (TRL["rpo"].replace("0.02", "{{ beta }}"), r"theirs\.yaml, line 4: not YAML: braces"),
        (
            "#!/bin/sh\naccelerate launch --num_processes 4 run_dpo.py --config its.yaml\n",
            "hands on to its.yaml, which is not here: give that file, with FROM=its.yaml GPUS=4",
        ),
        ("#!/bin/sh\naxolotl train a/its.yml\n", "give that file, with FROM=a/its.yml, or put"),
    ],
)
def test_what_is_no_recipe_of_dpo_is_refused(text, says, tmp_path):
    with pytest.raises(SystemExit, match=says) as refusal:
        brought(tmp_path, text)
    assert "\n" not in str(refusal.value)


def test_a_recipe_of_ours_is_not_brought_again():
    with pytest.raises(SystemExit, match="is a recipe of ours already"):
        convert(Path("recipes/zephyr-7b-ultrafeedback.yaml"), "mine")


@pytest.mark.parametrize(
    "comment, gpus",
    [
        ("# designed for 8 GPUs, so batch size 32", 8),
        ("# 4 x A100 GPUs", 4),
        ("# fits on GPUs of 80 GB", 1),
        ("# needs 80GB GPUs", 1),
        ("", 1),
    ],
)
def test_the_number_of_gpus_is_read_from_a_comment(comment, gpus, tmp_path):
    text = INSTRUCT.replace("# designed for 8 GPUs, so batch size 32", comment)
    assert brought(tmp_path, text)[1]["gradient_accumulation_steps"] == 4 * gpus


def test_model_data_and_gpus_go_before_its_own(tmp_path):
    data = {"dataset_name": "my/pairs", "test_split_size": 0.1}
    _, keys = brought(tmp_path, HANDBOOK["full"], "my/model", data, gpus=2)
    assert keys["model_name_or_path"] == "my/model" and keys["dataset_name"] == "my/pairs"
    assert keys["test_split_size"] == 0.1 and "dataset_test_split" not in keys
    assert keys["gradient_accumulation_steps"] == 4


def test_what_is_given_need_not_be_known(tmp_path):
    """Nor what a recipe does not take over: where it wrote, what it called its run."""
    text = TRL["rpo"].replace("data/start-7b-dpo", "${OUT}/$NAME") + "run_name: '{{ name }}'\n"
    text = text.replace("someone/start-7b\n", "$MODEL\n", 1).replace("someone/pairs", "$DATA")
    ours, keys = brought(tmp_path, text, "my/model", {"dataset_name": "my/pairs"})
    assert keys["model_name_or_path"] == "my/model" and keys["dataset_name"] == "my/pairs"
    assert "run_name" not in keys and "$MODEL: MODEL= and DATASET= go before it" in flat(ours)
    assert "{{ name }}: {{ name }} is not known" in flat(ours)


def test_names_in_a_dataset_info_are_followed(tmp_path):
    (tmp_path / "data").mkdir()
    info = """{"mine": {"file_name": "pairs.json", "ranking": true, "columns":
        {"prompt": "ask", "query": "more", "chosen": "yes", "rejected": "no"}, "num_samples": 9}}"""
    (tmp_path / "data/dataset_info.json").write_text(info)
    text = FACTORY.replace("ultrafeedback", "mine").replace("max_samples: 700\n", "")
    _, keys = brought(tmp_path, text)
    mapping = {"chosen": "yes", "rejected": "no", "prompt": "ask", "input": "more"}
    assert keys["column_mapping"] == mapping
    (part,) = keys["datasets"]
    assert part["path"].endswith("data/pairs.json") and part["split"] == "train[:9]"


@pytest.mark.parametrize(
    "text, key",
    [
        (TRL["rpo"], "ref_model"),
        (TRL["rpo"], "ref_model_name_or_path"),
        (TRL["rpo"], "reference_model_name_or_path"),
        (FACTORY, "ref_model"),
        (SWIFT, "ref_model"),
    ],
    ids=["TRL", "TRL, as here", "the handbook", "LLaMA-Factory", "ms-swift"],
)
def test_a_reference_of_its_own_is_brought_along(text, key, tmp_path):
    _, keys = brought(tmp_path, f"{text}{key}: else/where\nref_model_revision: v2\n")
    assert keys["ref_model_name_or_path"] == "else/where" and keys["ref_model_revision"] == "v2"
    start = keys["model_name_or_path"]
    text, keys = brought(tmp_path, f"{text}{key}: {start}\nref_model_revision: v2\n")
    assert not {"ref_model_name_or_path", "ref_model_revision"} & {*keys}
    assert f"{key}, ref_model_revision (the reference is what the policy starts from)" in flat(text)


def test_the_tables_name_keys_that_there_are():
    """A new spelling is a key of ours; nothing that is one is called old."""
    ours = {action.dest for action in make_parser()._actions}
    for renamed, dropped in ((RENAMED, DROPPED), *TOOLS.values()):
        assert not {*renamed} & {*dropped}
        for old, now in renamed.items():
            assert re.match(r"\w+", now)[0] in ours, f"{old} → {now}"
            assert old not in ours, old
    assert not {*RENAMED, *DROPPED} & ours


@pytest.mark.parametrize(
    "keys, says",
    [
        (
            {"torch_dtype": "bfloat16", "warmup_ratio": 0.1, "max_prompt_length": 512},
            ["3 unknown keys", "'torch_dtype' is now dtype", "'warmup_ratio' is now warmup_steps"],
        ),
        ({"max_prompt_length": 512}, ["leave 'max_prompt_length' out: a pair is cut as a whole"]),
        ({"micro_batch_size": 2}, ["'micro_batch_size' is now per_device_train_batch_size"]),
        ({"pref_beta": 2, "rl_beta": 1}, ["'pref_beta' is now beta", "'rl_beta' is now beta"]),
        ({"dataset_mixer": {"a/b": 1.0}}, ["is now dataset_name, or datasets", "make new FROM="]),
        ({"lerning_rate": 1, "bta": 2}, ["'lerning_rate': did you mean: learning_rate", "'bta'"]),
    ],
)
def test_all_unknown_keys_are_named_at_once(keys, says, tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump({"model_name_or_path": "a/b", **keys}))
    with pytest.raises(SystemExit) as refusal:
        parse(["--config", str(path), "--use_cpu"])
    for part in (str(path), *says):
        assert part in str(refusal.value)
    assert ("FROM=" in str(refusal.value)) == ("lerning_rate" not in keys)


def test_an_old_flag_is_told_its_new_name():
    flags = ["--config", str(ROOT / "recipes/smollm2-sentiment.yaml"), "--use_cpu"]
    with pytest.raises(SystemExit, match="'warmup_ratio' is now warmup_steps"):
        parse([*flags, "--warmup_ratio=0.1"])


def test_make_new_brings_a_recipe(tmp_path, monkeypatch, capsys):
    path = tmp_path / "Their Recipe.yaml"
    path.write_text(HANDBOOK["full"])
    ours = ROOT / FOLDER / "their-recipe.yaml"
    monkeypatch.setattr(sys, "argv", ["new.py", f"--from={path}", "--gpus=4"])
    try:
        new.main()
        said = capsys.readouterr().out
        assert "trains on its test split" in " ".join(said.split())
        assert said.splitlines()[-1].startswith("Next: make data RECIPE=their-recipe")
        assert yaml.safe_load(ours.read_text())["gradient_accumulation_steps"] == 8
    finally:
        ours.unlink(missing_ok=True)
