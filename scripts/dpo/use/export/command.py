"""An export as `make export` asks for it: written beside, checked there, then put in its place."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME as ADAPTER_CONFIG
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME as ADAPTER_WEIGHTS

from dpo.core import files
from dpo.core.hashing import digest_of
from dpo.core.machine import measuring_device
from dpo.core.refusal import Refusal
from dpo.data import dataset, schema
from dpo.data.sources.load import load_rows
from dpo.evaluation import prompts
from dpo.evaluation.contestants import Contestant
from dpo.models import adapters, chat_template, loading, model_files
from dpo.recipe.parse import Recipe
from dpo.reports import results
from dpo.reports.model_card import card
from dpo.runs import output_folder
from dpo.use.export import check, gguf_file, quantised, record
from dpo.use.run import Used


def pairs_of(recipe: Recipe, run: Path) -> Dataset:
    """Pairs to check with, checked and tokenised as the run had them: held-out ones, or where a
    recipe holds out none the first that it trains on."""
    found = prompts.held_out_pairs(recipe)
    prompts.changed(found, run)
    if found is None:
        rows = load_rows(recipe)
        found = dataset.prepare(recipe, rows, chat_template.load_tokenizer(recipe))["train"].pairs
    return Dataset.from_list([*islice(found, check.PAIRS)], features=found.features)


def check_reachable(run: Used) -> None:
    """See that what an export is checked with is there before anything heavy is read.

    Raises:
        Refusal: the base of an adapter, or the reference, is gone; or an adapter's base is
            quantised as it lies there.
    """
    named = [(run.reference.path, run.reference.revision)]
    adapter = adapters.config_of(str(run.folder))
    if adapter:
        named += [(adapter.base_model_name_or_path, adapter.revision)]
    for name, revision in dict.fromkeys(named):
        check_there(run, name)
        if own := adapters.config_of(name, revision):
            name, revision = own.base_model_name_or_path, own.revision
            check_there(run, name)
        config = model_files.config_of(name, revision, trust_remote_code=run.policy.trusted)
        # What peft would merge with such a base, it would round to the base's few bits.
        if adapter and getattr(config, "quantization_config", None):
            raise Refusal(
                f"{name}, the base of this run's adapter, is quantised: such a policy is not "
                f"exported. The adapter lies in {run.folder} as it was trained, for make push"
            )


def check_there(run: Used, name: str) -> None:
    """Raises Refusal if a model that a run has begun with is gone."""
    try:
        output_folder.check_there(name)
    except Refusal:
        raise Refusal(
            f"{name}, from which {run.folder} was trained and with which an export is checked, is "
            "not there: put it back"
        ) from None


def check_free(folder: Path) -> None:
    """Raises Refusal if a folder holds anything but an export, whose place another may take, or
    lies in what is no folder, or in one that takes nothing."""
    near = next(path for path in folder.absolute().parents if path.exists())
    if not near.is_dir() or not os.access(near, os.W_OK):
        why = "takes nothing new" if near.is_dir() else "is a file"
        raise Refusal(f"{folder} cannot be made, for {near} {why}: give another TO=")
    if folder.is_mount():
        raise Refusal(
            f"{folder} is a mount point, whose place nothing takes: give TO={folder}/name"
        )
    if folder.is_dir() and (there := {path.name for path in folder.iterdir()}):
        ours = {*record.read(folder).get("files", []), record.RECORD}
        if card.by_hand(folder):
            ours -= {card.CARD}
        if other := sorted(there - ours):
            raise Refusal(
                f"{folder} holds what no export has written ({loading.some(other)}): give another "
                "TO=, or move it"
            )
    elif folder.exists() and not folder.is_dir():
        raise Refusal(f"{folder} is a file: give another TO=")


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` when all has gone well, and leaves
    nothing where it has not."""
    part = folder.with_name(f".{folder.name}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"{folder} cannot be made: {error.strerror}: give another TO=") from error
    held = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise Refusal(
            f"{folder} is being written by another make export: wait for its end, or give another "
            "TO="
        ) from None
    try:
        for left in part.iterdir():  # of one that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield part
        check_free(folder)  # it may have been filled since
        shutil.rmtree(old := part.with_suffix(".old"), ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(held)


def write(run: Used, policy: PreTrainedModel, adapter: bool, folder: Path, quant: str) -> None:
    """Weights, tokenizer and generation config. An adapter is copied as it was trained."""
    trusted = run.policy.trusted
    if quant:
        quantised.write(policy, quant, folder, trusted)
    elif adapter:
        shutil.copy(run.folder / ADAPTER_CONFIG, folder)
        tensors = load_file(run.folder / ADAPTER_WEIGHTS)
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        policy.generation_config.save_pretrained(folder)
    else:
        policy.save_pretrained(folder)
    model_files.tokenizer_of(run.policy.path, run.policy.revision, trusted).save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        files.follow_umask(weights)


def export(
    run: Used, merge: bool, dtype: str, to: str, gguf: str = "", quant: str = ""
) -> tuple[Path, dict[str, Any]]:
    """Export the policy of a run: all of its weights, or the adapter that was trained, unless
    `merge` adds it to its base. Returns the folder, and what export.json says.

    Args:
        dtype: of the weights; "" for that of the run's.
        to: the folder; "" for one in the run's own.
        gguf: one of gguf_file.OUTTYPES: a file of that, an adapter merged; "" for safetensors.
        quant: one of quantised.BITS: linear layers of that, an adapter merged; "" for whole ones.

    Raises:
        Refusal: something that is needed is gone, the folder is taken or cannot be written, or the
            export fails a check (check.py).
    """
    lora = adapters.config_of(str(run.folder))
    adapter = bool(lora) and not (merge or gguf or quant)
    if adapter and dtype:
        raise Refusal("an adapter is exported as it was trained: DTYPE= goes with MERGE=1")
    if gguf:
        gguf_file.check_installed()
    check_reachable(run)
    if to:
        to = os.path.realpath(to) if Path(to).is_symlink() else to
        check_free(Path(to))
    pairs, device = pairs_of(run.recipe, run.folder), measuring_device()
    who = replace(run.policy, path=str(run.folder)) if adapter else run.policy
    policy = who.load(device)
    if quant:
        quantised.check_shapes(policy, quant)
    given = quantised.DTYPE if quant else getattr(torch, dtype) if dtype else policy.dtype
    kind = "gguf" if gguf else "adapter" if adapter else "merged" if lora else "full"
    about = record.of(run, kind, gguf or quant or str(given).removeprefix("torch."))
    folder = Path(to) if to else run.folder / record.EXPORTS / f"{kind}-{about['dtype']}"
    check_free(folder)
    expected = expected_of(who, policy, pairs, given, quant)
    with beside(folder) as part, files.written_to(folder, ""):
        write(run, policy, adapter, part, quant)
        if quant:
            quantised.round_in_place(policy, quant)
            expected.rounded = check.token_logps(policy, expected.rows, "the policy, rounded")
        del policy
        clear_device_cache(garbage_collection=True)
        reference = run.reference.load(device)
        expected.reference = check.token_logps(reference, expected.rows, "the reference")
        if quant:
            spare = part / "reference"  # of the same bits, through the same kernels
            quantised.write(reference, quant, spare, run.reference.trusted)
            on = loading.device_map(device, run.reference.weight_bytes)
            reference = check.load(spare, False, device_map=on, trust_remote_code=who.trusted)
            expected.beside = check.token_logps(reference, expected.rows, "the reference, rounded")
            shutil.rmtree(spare)
        del reference
        clear_device_cache(garbage_collection=True)
        if gguf:
            about["checked"] = as_gguf(part, gguf, f"{run.folder.name}-{gguf}.gguf", expected)
        else:
            how: dict[str, Any] = {"dtype": expected.dtype} if adapter else {}
            how |= {"device_map": loading.device_map(device, who.weight_bytes)}
            about["checked"] = check.of_folder(part, adapter, who.trusted, expected, quant, **how)
        report = results.read(run.folder / output_folder.REPORT)
        files.write_whole(part / card.CARD, card.text(run.folder, report, exported=about))
        about["files"] = {path.name: digest_of(path) for path in sorted(part.iterdir())}
        files.write_json(part / record.RECORD, about)
    return folder, about


def as_gguf(folder: Path, outtype: str, name: str, expected: check.Expected) -> dict[str, Any]:
    """Put a GGUF file in the place of what an export's folder holds; returns what `check` found."""
    safetensors = folder / "safetensors"
    safetensors.mkdir()
    for path in [path for path in folder.iterdir() if path != safetensors]:
        path.rename(safetensors / path.name)
    gguf_file.convert(safetensors, outtype, folder / name)
    shutil.rmtree(safetensors)
    return gguf_file.of_file(folder / name, expected, outtype)


def expected_of(
    who: Contestant, policy: PreTrainedModel, pairs: Dataset, dtype: torch.dtype, quant: str
) -> check.Expected:
    """What the policy makes of pairs, and of their prompts; from here on it has weights of `dtype`,
    and its generation config the ends that it has learned."""
    args: Any = who.recipe.training
    rows = schema.pair_rows(pairs, args.max_length, args.truncation_mode)
    asked = prompts.each_once(prompts.of_pairs(pairs), check.PROMPTS)
    tokenizer, kind = who.tokenizer(), chat_template.prompt_kind(pairs.features)
    chat_template.remember_end_tokens(policy, tokenizer, kind)
    return check.expected_of(policy, tokenizer, rows, asked, dtype, quant)
