"""What this repository relies on in libraries beyond what they document, all of it, in one table.

Raising a pin in requirements.txt may move any of it: then a line here fails, and names what it was
relied on for. What is overridden or used and does not stand here fails, too.
"""

import argparse
import ast
import inspect
import re
from types import FunctionType

import accelerate
import datasets
import pytest
import torch
import transformers
import trl
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard
from accelerate.state import GradientState
from peft import PeftModel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.integrations import WandbCallback, moe
from transformers.modeling_rope_utils import dynamic_rope_update
from trl import DPOTrainer
from trl.kernels import chunked_logprob
from trl.models import utils as trl_models
from trl.trainer import dpo_trainer
from trl.trainer import utils as trl_utils

from dpo.prefix_sharing import attention
from dpo.training.trainer import FastDPOTrainer
from support.place import ROOT
from support.stock import STOCK_HEAD

# Methods of DPOTrainer that FastDPOTrainer overrides: their parameters, as they are handed on.
OVERRIDDEN = {
    "__init__": "model ref_model args data_collator train_dataset eval_dataset processing_class "
    "compute_metrics callbacks optimizers quantization_config peft_config",
    "create_accelerator_and_postprocess": "",
    "_build_accelerator_args": "kwargs",
    "_prepare_dataset": "dataset processing_class args dataset_name",
    "_precompute_ref_logps": "dataset name batch_size",
    "_set_signature_columns_if_needed": "",
    "compute_ref_log_probs": "model inputs",
    "train": "resume_from_checkpoint trial ignore_keys_for_eval",
    "_run_epoch": "model epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial "
    "ignore_keys_for_eval start_time resume_from_checkpoint epochs_trained "
    "steps_trained_in_current_epoch",
    "_prepare_input": "data",
    "compute_loss": "model inputs return_outputs num_items_in_batch",
    "_get_grad_norm": "model grad_norm",
    "evaluate": "eval_dataset ignore_keys metric_key_prefix",
    "get_train_dataloader": "",
    "get_eval_dataloader": "eval_dataset",
    "get_batch_samples": "epoch_iterator num_batches device",
    "log": "logs start_time",
    "evaluation_loop": "dataloader description prediction_loss_only ignore_keys metric_key_prefix",
    "_get_output_dir": "trial",
    "_save_checkpoint": "model trial",
    "_save": "output_dir state_dict",
    "create_model_card": "model_name dataset_name tags",
}

# Private attributes that are read or written: where they live, and a line that shows it.
PRIVATE = {
    "_metrics": (DPOTrainer.__init__, 'self._metrics = {"train": defaultdict(list), "eval"'),
    "_total_train_tokens": (DPOTrainer.__init__, "self._total_train_tokens = 0"),
    "_precompute_engine": (DPOTrainer.__init__, "self._precompute_engine = None"),
    "_signature_columns": (DPOTrainer, "self._signature_columns = ["),
    "_tokenizer": (DPOTrainer, "self._tokenizer = processing_class\n"),
    "_tr_loss": (Trainer, "self._tr_loss = torch.tensor(0.0"),
    "_globalstep_last_logged": (Trainer, "self._globalstep_last_logged = self.state.global_step"),
    "_n_gpu": (TrainingArguments, "self._n_gpu = torch.cuda.device_count()"),
    "_commit_hash": (PreTrainedConfig, '"_commit_hash"'),
    "_name_or_path": (PreTrainedConfig, "self._name_or_path = str("),
    "_attn_implementation": (PreTrainedConfig, "def _attn_implementation(self)"),
    "_supports_attention_backend": (PreTrainedModel, "_supports_attention_backend: bool"),
    "_is_stateful": (PreTrainedModel, "_is_stateful: bool"),
    "_raise_exceptions_for_missing_entries": (
        transformers.utils.hub.cached_files,
        "_raise_exceptions_for_missing_entries: bool = True",
    ),
    "_set_sync_gradients": (GradientState, "def _set_sync_gradients(self, sync_gradients)"),
    "_use_triton": (trl_utils.add_fused_lm_head, "compact = _use_triton("),
    "_CHUNKED_LOGPROB_CHUNK_SIZE": (
        trl_utils.add_fused_lm_head,
        "_CHUNKED_LOGPROB_CHUNK_SIZE,\n",
    ),
    "_fingerprint": (datasets.Dataset, "self._fingerprint: str"),
    "_indices": (datasets.Dataset, "self._indices: Optional[Table]"),
    "_initialized": (WandbCallback, "self._initialized = False"),
    "_foreach_norm": (torch, None),
    "_get_default_store": (torch.distributed.distributed_c10d, "def _get_default_store()"),
    "_get_ddp_logging_data": (DistributedDataParallel, "def _get_ddp_logging_data(self"),
    "_buffers": (torch.nn.Module, "_buffers: dict["),
    "_parameters": (torch.nn.Module, "_parameters: dict["),
    "_cdata": (torch.UntypedStorage, None),
    "_segments": (attention, "def _segments("),
    "_padded": (attention, "def _padded("),
    "_actions": (argparse, "self._actions = []"),
    "_option_string_actions": (argparse, "self._option_string_actions = {}"),
    "_model_name_or_path": (None, None),  # of a GGUF file's title: it is deleted if it is there
    "_release_preflattened_grad_buffers": ("ZeRO-1 and 2", "def _release_preflattened_grad_buff"),
    "_ArgumentGroup": (argparse, "class _ArgumentGroup("),
    "_replace": (None, None),  # of named tuples, and documented
    "_exit": (None, None),  # of os, and documented
}

# What library code says, and what goes wrong here where it says otherwise.
SAYS = [
    # ---- the reference
    (dpo_trainer, "hash_module(self.ref_model or self.model)", "stock.py spares every hash"),
    (DPOTrainer._compute_loss, "if self.precompute_ref_logps:\n", "kept numbers would not be used"),
    (DPOTrainer._compute_loss, '_non_model_keys = {"completion_mask", "ref_chosen_logps"', "or the "
     "model would be given columns that it does not take"),
    (trl_models.prepare_deepspeed, "model, *_ = deepspeed.initialize(", "ZeRO could not score"),
    # ---- batches
    (DataLoaderShard.set_epoch, "batch_sampler.sampler.set_epoch", "the order beneath ours would "
     "be the same in every epoch"),
    (BatchSamplerShard._iter_with_no_split, "self.batch_size is None or len(batch) == self.batch_"
     "size", "batches of several sizes would be filled up"),
    (accelerate.utils.send_to_device, 'hasattr(tensor, "to")', "a batch's plan would stay behind"),
    (Trainer.training_step, "loss = loss / self.current_gradient_accumulation_steps", "pairs would "
     "weigh otherwise"),
    (Trainer.training_step, "inputs = self._prepare_inputs(inputs)", "a plan would stay behind"),
    (Trainer._prepare_inputs, "self._prepare_input(inputs)", "a plan would stay behind"),
    (_MultiProcessingDataLoaderIter._try_get_data, "DataLoader worker (pid(s)", "a worker that was "
     "killed would not be explained"),
    # ---- prefix sharing
    (DPOTrainer._compute_loss, "model(**model_kwargs, labels=labels, fused_lm_head=True)", "hidden "
     "states are unfolded before TRL's fused head"),
    (trl_utils.add_fused_lm_head, "getattr(self, backbone_attr)(*args, **kwargs)", "a plan would "
     "not reach the backbone"),
    (chunked_logprob.ChunkedLogProbFunction, "min(N, TOKEN_CHUNK_SIZE)", "the head's tile would be "
     "half a GB on a CPU"),
    # ---- plans
    (moe._grouped_mm, "if _can_use_grouped_mm(input, weight, offs):", "a mixture of experts in "
     "float32 would not be counted"),
    # ---- answers
    (transformers.TextStreamer.put, "self.on_finalized_text(printable_text)", "the words of an "
     "answer would not come as they are drawn"),
    # ---- weights
    (transformers.modeling_utils.PreTrainedModel, "log_state_dict_report(\n                model=mo"
     "del,\n                pretrained_model_name_or_path=", "missing weights would be random"),
    (transformers.modeling_utils.log_state_dict_report, "loading_info: LoadState", "so too"),
    (PeftModel.load_adapter, "model_id: Union[str, os.PathLike]", "so too of an adapter"),
    (dynamic_rope_update, "max_seq_len_cached > self.original_max_seq_len", "stretched "
     "frequencies would stay"),
]  # fmt: skip


def parameters(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def ours() -> dict[str, FunctionType]:
    """The methods of FastDPOTrainer and of what it is mixed from that stand over stock ones."""
    above = FastDPOTrainer.__mro__[: FastDPOTrainer.__mro__.index(DPOTrainer)]
    return {
        name: method
        for each in reversed(above)
        for name, method in vars(each).items()
        if isinstance(method, FunctionType) and hasattr(DPOTrainer, name)
    }


def test_every_method_that_is_overridden_stands_in_the_table():
    assert ours().keys() == OVERRIDDEN.keys()


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_a_stock_method_has_the_parameters_that_ours_hands_on(name):
    stock = parameters(getattr(DPOTrainer, name))
    assert stock == OVERRIDDEN[name].split(), f"{name}: see that ours hands on all of them"
    given = parameters(ours()[name])
    if not {"args", "kwargs"} & {*given}:
        assert given == stock


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_every_method_that_is_overridden_says_why(name):
    """In a docstring, or in a comment above it."""
    method = ours()[name]
    above = inspect.getcomments(method)
    assert method.__doc__ or above or name == "__init__"


def used_privately() -> dict[str, set[str]]:
    """Private attributes that no file of the same folder defines, and the files that use them."""
    used = {}
    files = [*(ROOT / "scripts").rglob("*.py")]
    for folder in {path.parent for path in files}:
        own, found = {"_replace"}, {}  # of a named tuple, and public
        for path in files:
            if path.parent != folder:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    own.add(node.name)
                elif isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
                    found.setdefault(node.attr, set()).add(path.name)
                    if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
                        own.add(node.attr)
        for name in found.keys() - own:
            used.setdefault(name, set()).update(found[name])
    return used


def test_every_private_attribute_that_is_used_stands_in_the_table():
    used = used_privately()
    assert not used.keys() - PRIVATE.keys(), {k: used[k] for k in used.keys() - PRIVATE.keys()}


def source_of(where) -> str:
    if where == "ZeRO-1 and 2":
        from deepspeed.runtime.zero import stage_1_and_2

        return inspect.getsource(stage_1_and_2)
    return inspect.getsource(where)


@pytest.mark.parametrize("name", [name for name, (where, _) in PRIVATE.items() if where])
def test_a_private_attribute_is_where_it_was(name):
    where, line = PRIVATE[name]
    assert hasattr(where, name) if line is None else line in source_of(where)


@pytest.mark.parametrize(("where", "line", "why"), SAYS)
def test_a_library_says_what_it_said(where, line, why):
    assert line in source_of(where), why


def test_the_reference_is_scored_when_policy_and_head_are_ready():
    built = inspect.getsource(DPOTrainer.__init__)
    assert built.index("add_fused_lm_head(") < built.index("self._precompute_ref_logps(")


def test_the_last_six_gathered_are_rewards_margins_and_log_probabilities():
    """In the order in which probes.py takes them."""
    said = inspect.getsource(DPOTrainer._compute_loss)
    gathered = [line.split("accelerator.gather(")[1].split(")")[0] for line in said.splitlines()
                if "accelerator.gather(" in line]  # fmt: skip
    assert gathered[-6:] == [
        *("chosen_rewards", "rejected_rewards", "reward_accuracies", "margins"),
        *("chosen_logps", "rejected_logps"),
    ]


def test_the_head_is_stock_until_it_is_asked_for():
    assert trl_utils._use_triton is chunked_logprob._use_triton
    assert (chunked_logprob._use_triton, 4096, 32768) == STOCK_HEAD


def test_deepspeed_sums_gradients_where_they_are_dropped():
    """ZeRO-1 and 2: what preflight/longest_batch.py clears."""
    said = source_of("ZeRO-1 and 2")
    for name in ("averaged_gradients = {}", "all_grad_tensors = {}", "micro_step_id = INITIAL"):
        assert f"self.{name}" in said
    assert "def reset_cpu_buffers(self)" in said


def test_the_pins_are_those_installed():
    """The lines above are of these versions."""
    pinned = (ROOT / "requirements.txt").read_text()
    for module in (trl, transformers, accelerate, datasets):
        assert f"{module.__name__}=={module.__version__}" in pinned
