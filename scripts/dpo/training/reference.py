"""Log-probabilities of the pairs under the reference: scored once, kept on disk by content.

The reference never changes, so every epoch, every β and every learning rate asks it the same
question. What TRL keeps is found again by a hash of its own configuration, so that a sweep scores
anew at every point, and of the model as it lies in this process's memory, where ZeRO-3 leaves
nothing: another checkpoint of the same architecture is then taken for this one.

Here an entry bears the name of what decides the answer: the tokenised rows, the weights, the
model's configuration, dtype and attention, and how rows are cut. Whenever an entry is found, a few
of its rows are scored again; if they differ, it is set aside and all are scored anew.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
import transformers
from accelerate.utils import broadcast_object_list, send_to_device, tqdm
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig, PreTrainedModel
from trl.models import prepare_deepspeed

from dpo.core.files import write_whole
from dpo.core.hashing import digests_of, name_of
from dpo.core.refusal import Refusal
from dpo.core.stats import NATS_PER_TOKEN
from dpo.data.schema import IDS, REFERENCE_LOGPS, shared_lengths
from dpo.models import adapters
from dpo.training.stock import Declared

CHECKED_ROWS = 4
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of accelerate's mixed_precision


@dataclass
class Entry:
    """Log-probabilities of the pairs of a data set under the reference, as far as they are known,
    and where they are kept."""

    logps: np.ndarray  # chosen and rejected, in nats, shape (2, rows); NaN where not known
    path: Path | None  # None if no later run would know the model again
    about: dict[str, Any]  # what they depend on (`content`); of the first process

    def missing(self, rows: np.ndarray) -> np.ndarray:
        """Those of `rows`, row numbers, that are not known."""
        return rows[np.isnan(self.logps[:, rows]).any(axis=0)]

    def add(self, rows: np.ndarray, logps: np.ndarray, split: str) -> None:
        """Raises Refusal if `logps`, shape (2, rows), are not finite."""
        if lost := np.count_nonzero(~np.isfinite(logps).all(axis=0)):
            raise Refusal(
                f"the reference's log-probabilities of {lost} of {len(rows)} {split} pairs are "
                "not finite: the model's files are damaged, or of a run that diverged, or float16 "
                "is too narrow for it: choose another model, or leave fp16 out"
            )
        self.logps[:, rows] = logps

    def keep(self) -> str:
        """Write it, and say so. A disk that does not take it costs later runs time, and this one
        nothing."""
        if self.path is None:
            return "not kept, since the model was made in memory: no later run would know it again"
        columns = dict(zip(REFERENCE_LOGPS, self.logps, strict=True))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, save(columns, metadata=self.about))
        except OSError as error:
            return f"not kept, since {self.path} cannot be written: {error.strerror}"
        return f"kept in {self.path} ({self.path.stat().st_size / 1000:,.0f} kB)"


def with_logps(
    trainer: Declared, dataset: Dataset, split: str, batch: int, entry: Entry, rows: np.ndarray
) -> Dataset:
    """The data set with the columns `ref_chosen_logps` and `ref_rejected_logps`, in nats.

    Args:
        trainer: with a reference of its own; or its adapter can be disabled; or built, and not
            yet training: its policy is still the reference.
        dataset: tokenised by TRL.
        split: its name, for messages.
        batch: pairs scored at a time on each process.
        entry: what is known of them.
        rows: numbers of those that the run needs. Others may come out as NaN.

    Raises:
        Refusal: the model gives no finite numbers.
    """
    missing, first = entry.missing(rows), trainer.accelerator.is_main_process
    said = f"Reference log-probabilities of {len(rows)} {split} pairs: "
    if len(missing):
        entry.add(missing, score(trainer, dataset, missing, split, batch), split)
        if first:
            print(f"{said}{len(missing)} scored, and {entry.keep()}")
        trainer.accelerator.wait_for_everyone()
    elif first:
        print(f"{said}all found in {entry.path}; {CHECKED_ROWS} scored again agree")
    for column, values in zip(REFERENCE_LOGPS, entry.logps, strict=True):
        dataset = dataset.add_column(column, values)
    return dataset


def known(
    trainer: Declared, dataset: Dataset, folder: Path, about: dict[str, Any] | None = None
) -> Entry:
    """What is kept in `folder` of a data set, if it agrees with the reference; else nothing yet.

    Args:
        folder: several processes and several runs may share it.
        about: its `content`, for the first process, where that was asked for earlier.
    """
    accelerator = trainer.accelerator
    found: list[Any] = [None, None]  # where it lies, and what it holds
    if accelerator.is_main_process:
        about = about or content(trainer, dataset)
        if about["weights"]:
            path = folder / f"{name_of(about, sort_keys=True)}.safetensors"
            found = [path, read(path, len(dataset))]
    path, logps = broadcast_object_list(found)
    if logps is None or not agrees(trainer, dataset, logps):
        if accelerator.is_main_process and path and path.exists():
            os.replace(path, aside := path.with_suffix(".set-aside"))
            print(f"{path} is damaged or does not agree with the reference: moved to {aside.name}")
        logps = np.full((2, len(dataset)), np.nan, dtype=np.float32)
    return Entry(logps, path, about or {})


def content(trainer: Declared, dataset: Dataset) -> dict[str, Any]:
    """All that the log-probabilities depend on, and nothing else: no β, learning rate, seed,
    output folder or number of processes."""
    args, model = trainer.args, reference_itself(trainer)
    adapter = None if trainer.load_reference else trainer.adapter
    # Where the weights lie and whether activations are recomputed change no log-probability.
    config = model.config.to_dict() | {"_name_or_path": None, "use_cache": None}
    return {
        "rows": digest_of_rows(dataset),
        "weights": digest_of_weights(model.config, adapter),
        "config": json.dumps(config, sort_keys=True, default=str),
        **numerics(trainer),
        "attention": model.config._attn_implementation,
        "max_length": str(args.max_length),
        "truncation_mode": args.truncation_mode,
        "ld_alpha": str(args.ld_alpha),
        "template": str(trainer.processing_class.chat_template),
    }


def reference_itself(trainer: Declared) -> PreTrainedModel:
    """The model that is the reference, without what wraps it: the policy, if it has none apart."""
    return trainer.accelerator.unwrap_model(trainer.ref_model or trainer.model)


def numerics(trainer: Declared) -> dict[str, str]:
    """What the reference computes in. DeepSpeed casts the weights themselves, later than this is
    asked, and FSDP as it gathers them: that is not what autocast does with float32 weights. Nor
    does autocast the same on a CPU, or every version, by less than the check of an entry grants."""
    accelerator = trainer.accelerator
    model, plugin = reference_itself(trainer), accelerator.state.deepspeed_plugin
    cast = HALF.get(accelerator.mixed_precision) if plugin else None
    sharding = f"ZeRO-{plugin.zero_stage}" if plugin else "FSDP" * trainer.is_fsdp_enabled
    return {
        "dtype": str(cast or model.dtype),
        "autocast": accelerator.mixed_precision,
        "sharding": sharding or "none",
        "device": accelerator.device.type,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


def digest_of_rows(dataset: Dataset) -> str:
    """Hash of the token ids of all rows, in order; the integer type they are kept in is nothing."""
    digest = hashlib.sha256()
    length = pc.list_value_length  # pyright: ignore[reportAttributeAccessIssue]  made as it loads
    tables: Any = dataset.select_columns(IDS).with_format("arrow").iter(batch_size=1000)
    for table in tables:
        for name in IDS:
            column = table[name].combine_chunks()
            for numbers in (length(column), column.flatten()):
                digest.update(numbers.to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
    return digest.hexdigest()


def digest_of_weights(config: PreTrainedConfig, adapter: Path | None = None) -> str | None:
    """A hash of the weight files of the folder that a model with this configuration was loaded from
    and of the code that may lie there, or the commit of a hub model; of an adapter too, its weights
    and what it makes of them (rank, α, modules), if the reference is one on that model. None where
    neither is known, of a model that was made in memory.

    From where the weights came and not from memory: ZeRO-3 has no process hold them all.
    """

    def hashed(*parts: str) -> str:
        return hashlib.sha256(b"".join(bytes.fromhex(part) for part in parts)).hexdigest()

    folder = config._name_or_path  # "" of a model that was made in memory
    files = [file for end in ("safetensors", "bin") for file in Path(folder).glob(f"*.{end}")]
    known = getattr(config, "_commit_hash", None)
    if folder and files:
        known = hashed(*digests_of([*sorted(files), *sorted(Path(folder).glob("*.py"))]))
    if known and adapter:
        shape = hashlib.sha256(adapters.shape_of(adapter.parent).encode()).hexdigest()
        known += hashed(*digests_of([adapter]), shape)
    return known


def read(path: Path, rows: int) -> np.ndarray | None:
    """Chosen and rejected log-probabilities, shape (2, rows), NaN where a row was never needed;
    None if the entry is not there, or not whole."""
    try:
        with safe_open(path, framework="np") as file:
            logps = np.stack([file.get_tensor(column) for column in REFERENCE_LOGPS])
    except (FileNotFoundError, SafetensorError):
        return None
    return logps if logps.shape == (2, rows) else None


def reference_model(trainer: Declared) -> Any:
    """The model to score with. Before training, DeepSpeed has not placed or gathered the weights:
    an inference engine does, the one that TRL itself would use."""
    if trainer.ref_model is not None or not trainer.is_deepspeed_enabled:
        return trainer.ref_model or trainer.model
    if trainer._precompute_engine is None:
        trainer._precompute_engine = prepare_deepspeed(trainer.model, trainer.accelerator)
    return trainer._precompute_engine


def nats_per_token(trainer: Declared) -> float:
    """How far a log-probability of this run may come out apart, for each token."""
    return NATS_PER_TOKEN[HALF.get(trainer.accelerator.mixed_precision, trainer.model.dtype)]


def agrees(trainer: Declared, dataset: Dataset, logps: np.ndarray) -> bool:
    """Whether a few rows, scored again, come out as kept. Every process scores the same ones."""
    (kept,) = np.nonzero(~np.isnan(logps).any(axis=0))
    if not len(kept):
        return False
    rows = kept[np.linspace(0, len(kept) - 1, CHECKED_ROWS).astype(int)]
    batch = trainer.data_collator(list(dataset.select(rows).select_columns(IDS)))
    batch = send_to_device(batch, trainer.accelerator.device)
    again = torch.stack(trainer.compute_ref_log_probs(reference_model(trainer), batch))
    allowed = nats_per_token(trainer) * batch["completion_mask"].sum(1).view(2, -1).cpu().numpy()
    same = [bool((np.abs(logps[:, rows] - again.float().cpu().numpy()) <= allowed).all())]
    return broadcast_object_list(same)[0]


def score(
    trainer: Declared, dataset: Dataset, rows: np.ndarray, split: str, batch_size: int
) -> np.ndarray:
    """Chosen and rejected log-probabilities of some rows under the reference, shape (2, rows).

    Longest pairs first: a batch that does not fit in memory fails in the first second.
    """
    accelerator, model = trainer.accelerator, reference_model(trainer)
    order, loader = longest_first(trainer, dataset.select_columns(IDS), batch_size, rows)
    parts = []
    for batch in tqdm(loader, desc=f"Reference on {split} pairs", unit="batch"):
        pair = trainer.compute_ref_log_probs(model, batch)
        parts.append(torch.stack(accelerator.gather_for_metrics(pair)).float().cpu().numpy())
    logps = np.empty((2, len(rows)), dtype=np.float32)
    logps[:, order] = np.concatenate(parts, axis=1)
    return logps


def longest_first(
    trainer: Declared, dataset: Dataset, batch_size: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, DataLoader]:
    """The order of rows, longest pairs first, and a loader of them in that order, dealt out to all
    processes; some may come twice in its last batches.

    Args:
        rows: row numbers; None for all. The order is of places among these.
    """
    args = trainer.args
    rows = np.arange(len(dataset)) if rows is None else rows
    tokens = shared_lengths(dataset, args.max_length, args.truncation_mode)[rows]
    order = np.argsort(-tokens, kind="stable")
    loader = DataLoader(
        dataset.select(rows[order]),
        batch_size=batch_size,
        collate_fn=trainer.data_collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
    )
    return order, trainer.accelerator.prepare(loader)
