"""Models of a few thousand weights, pairs with everything that goes wrong easily, and trainers on
them."""

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    set_seed,
)
from trl import DPOConfig, DPOTrainer

from dpo.data.dataset import prepare
from dpo.data.quarantine import check_share
from dpo.data.sources.load import load_rows
from dpo.models.chat_template import load_tokenizer
from dpo.models.config_check import check_model
from dpo.prefix_sharing.plan import SharedPrefixCollator
from dpo.recipe.parse import parse
from dpo.speed.workload import any_tokenizer
from dpo.training.build import make_trainer
from dpo.training.trainer import FastDPOTrainer
from support.place import EMBEDDED_MODEL

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # wide, so that attention matters
    "pad_token_id": 0,
}


ARCHITECTURES = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=8),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=5),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES,
        head_dim=8,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4, sliding_window=None),
}


TOKENS = 2048  # of 49,152: what a step costs is the vocabulary's, in a model this small


def few_tokens(folder: Path) -> PreTrainedTokenizerBase:
    """The embedded model's tokenizer with its first tokens alone, saved in a folder: the special
    ones, all bytes, and the pairs that were merged first. It tells all texts apart as the whole one
    does, in half as many tokens again."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in its_files().items():
        (folder / name).write_bytes(content)
    return AutoTokenizer.from_pretrained(folder)


@functools.cache
def its_files() -> dict[str, bytes]:
    """Those of that tokenizer: the whole one takes a while to read."""
    with tempfile.TemporaryDirectory() as folder:
        AutoTokenizer.from_pretrained(EMBEDDED_MODEL).save_pretrained(folder)
        file = Path(folder, "tokenizer.json")
        whole = json.loads(file.read_text())
        vocab = {token: n for token, n in whole["model"]["vocab"].items() if n < TOKENS}
        merges = [(a, b) for a, b in whole["model"]["merges"] if {a, b, a + b} <= vocab.keys()]
        whole["model"] |= {"vocab": vocab, "merges": merges}
        file.write_text(json.dumps(whole))
        # As any copy of it will be written.
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def make_chatty(model: Any, tokenizer: Any) -> None:
    """Have a random model end an answer after a dozen tokens or so, and say nothing that is no
    text, whatever was said: a head without a bias tells it apart by the first number."""
    model.config.tie_word_embeddings = False
    head = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    texts = tokenizer.batch_decode([[token] for token in range(len(head))])
    sayable = torch.tensor([text.isprintable() and text.isascii() for text in texts])
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 20
        head[:, 0] = torch.where(sayable, 0, -5)
        head[tokenizer.convert_tokens_to_ids("<|im_end|>"), 0] = 0.9
    model.lm_head.weight = head


def random_model(name: str, seed: int = 0) -> PreTrainedModel:
    set_seed(seed)
    return AutoModelForCausalLM.from_config(ARCHITECTURES[name](), attn_implementation="sdpa")


def random_ids(count: int, seed: int) -> list[int]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(2, 97, (count,), generator=draw).tolist()


def edge_pairs() -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) with everything that goes wrong easily."""
    ids, alike = random_ids, random_ids(9, 99)
    return [
        (ids(7, 0), ids(12, 1), ids(5, 2)),
        (ids(1, 3), ids(3, 4), ids(8, 5)),  # a prompt of one token
        (ids(6, 6), alike[:4] + ids(2, 7), alike[:4] + ids(7, 8)),  # completions that begin alike
        (ids(10, 9), alike, alike[:4]),  # the rejected begins the chosen
        (ids(4, 10), alike[:3], alike),  # and the other way round
        (ids(5, 11), alike, alike),  # identical
        (ids(12, 12), ids(30, 13), ids(25, 14)),  # cut by max_length, both
        (ids(20, 15), ids(2, 16), ids(9, 17)),
    ]


EDGE_PAIRS = edge_pairs()


MAX_LENGTH = 24  # cuts the longest of EDGE_PAIRS


LOGPS, GRADIENTS = 5e-5, 1e-4  # nats a token; relative to the norm of each gradient


def batch_of(pairs, **settings) -> dict:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [dict(zip(names, pair, strict=True)) for pair in pairs]
    return SharedPrefixCollator(pad_token_id=0, max_length=MAX_LENGTH, **settings)(rows)


def scored(model, batch: dict, share: bool, backward: bool = True):
    """Per-token log-probabilities as TRL's head gives them, and the gradients of a loss in which
    every row weighs differently."""
    model.zero_grad()
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if share:
        inputs["shared_prefixes"] = batch["shared_prefixes"]
    if hasattr(model.config, "output_router_logits"):
        inputs["output_router_logits"] = True
    outputs = model(**inputs, labels=labels, fused_lm_head=True, use_cache=False)
    if not backward:
        return outputs, {}
    loss = (outputs.log_probs.sum(1) * torch.linspace(-1, 2, len(labels))).sum()
    if outputs.aux_loss is not None:
        loss = loss + outputs.aux_loss
    loss.backward()
    return outputs, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def trainer_of(
    folder: Path,
    name: str,
    *,
    fast: bool,
    lora: bool = False,
    attn_implementation: str = "sdpa",
    share_prefix: bool = True,
    cache: Path | None = None,
    weights: int = 0,
    with_held_out: bool = False,
    pairs: list = EDGE_PAIRS,
    train: Any = None,
    held_out: Any = None,
    compute_metrics: Callable | None = None,
    objects: dict[str, Any] | None = None,
    **arguments,
) -> DPOTrainer:
    """Stock DPOTrainer or ours, on a random model of an architecture and rows of tokens.

    Other rows than EDGE_PAIRS in `train` and `held_out`, in whatever form DPOTrainer takes them.
    The model lies in `folder`; with another seed in `weights` it has others, at the same place.
    `objects` are given to the trainer in the place of what it would have, or beside it.
    """
    random_model(name, weights).save_pretrained(folder / "model")
    any_tokenizer().save_pretrained(folder / "model")
    rows = [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for prompt, chosen, rejected in pairs
    ]
    settings = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 10,
        "max_length": MAX_LENGTH,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": fast,
        "model_init_kwargs": {"attn_implementation": attn_implementation},
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    # The rows are tokens already.
    kind = type("Given", (FastDPOTrainer if fast else DPOTrainer,), {"_prepare_dataset": given})
    ours = {"share_prefix": share_prefix, "reference_cache": cache or folder / "cache"}
    built = {
        "model": str(folder / "model"),
        "train_dataset": Dataset.from_list(rows) if train is None else train,
        "eval_dataset": Dataset.from_list(rows[:4]) if with_held_out else held_out,
        "compute_metrics": compute_metrics,
        "peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if lora else None,
    }
    args = DPOConfig(**(settings | arguments))
    return kind(args=args, **(built | (objects or {})), **(ours if fast else {}))


def recipe_steps(recipe: Path, folder: Path) -> tuple[DPOTrainer, dict[str, torch.Tensor]]:
    """Train two steps of a recipe, in this process, as train.py does.

    Returns the trainer, and the weights that it trains as they were before.
    """
    flags = [
        *("--use_cpu", "--bf16=false", "--max_steps=2", "--logging_steps=1", "--report_to=none"),
        *("--save_strategy=no", "--disable_tqdm=true", f"--output_dir={folder / 'run'}"),
        *("--per_device_train_batch_size=2", "--gradient_accumulation_steps=1"),
        f"--reference_cache={folder / 'cache'}",
    ]
    parsed = parse(["--config", str(recipe), *flags])
    check_model(parsed)
    tokenizer = load_tokenizer(parsed)
    linted = prepare(parsed, load_rows(parsed), tokenizer)
    check_share(linted, parsed.run.quarantine_limit, folder)
    held_out = linted["held-out"].pairs if "held-out" in linted else None
    trainer = make_trainer(parsed, tokenizer, linted["train"].pairs, held_out)
    weights = {n: p.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    return trainer, weights


def given(self, dataset: Dataset, *args) -> Dataset:
    return dataset


def losses_of(trainer: DPOTrainer) -> list[float]:
    """Train, and return the loss of every step."""
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def pair(subject: str, chosen: str, rejected: str) -> dict:
    return {
        "prompt": [{"role": "user", "content": f"How was {subject}?"}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def varlen_by_hand(query, key, value, queries, keys, *longest, scale, window_size, enable_gqa):
    """What torch's varlen_attn computes on a GPU, written out: branches apart, causal from the
    last key, `window_size[0]` keys back at most."""
    assert longest == (int(queries.diff().max()), int(keys.diff().max()))
    outputs = []
    for i in range(len(queries) - 1):
        q = query[queries[i] : queries[i + 1]].transpose(0, 1)
        k, v = (x[keys[i] : keys[i + 1]].transpose(0, 1) for x in (key, value))
        ahead = torch.arange(k.shape[1]) - torch.arange(k.shape[1])[-q.shape[1] :, None]
        seen = ahead <= window_size[1]
        if window_size[0] >= 0:
            seen &= ahead >= -window_size[0]
        attend = torch.nn.functional.scaled_dot_product_attention
        output = attend(q[None], k[None], v[None], seen, scale=scale, enable_gqa=enable_gqa)
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)
