"""Held-out pairs under the trained policy and under its reference, scored by the trainer itself: by
all its processes, sharded as it trained, and in the numerics in which it scored the reference. One
process that loads the models again may have no room for them, and rounds otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import is_peft_model, tqdm
from datasets import Dataset
from trl.trainer.utils import add_fused_lm_head, create_model_from_path, get_config_model_id

from dpo.core import files
from dpo.data import schema
from dpo.models import loading, rope
from dpo.models.scoring import Scored
from dpo.prefix_sharing import backbone
from dpo.prefix_sharing.plan import SharedPrefixCollator
from dpo.runs import output_folder
from dpo.training import reference, stock
from dpo.training.monitoring.probes import own_draws
from dpo.training.preflight import memory
from dpo.training.stock import Declared


@contextmanager
def with_reference(trainer: Declared) -> Iterator[None]:
    """Within, the trainer has the model that its policy was before it learned, loaded as TRL loads
    a reference that stays. An adapter learns beside it, and needs none."""
    policy, args = trainer.accelerator.unwrap_model(trainer.model), trainer.args
    if is_peft_model(policy) or trainer.ref_model is not None or not trainer.state.global_step:
        yield
        return
    given: Any = args.model_init_kwargs or {}
    init = {"trust_remote_code": args.trust_remote_code, **given}
    with loading.whole():
        model = create_model_from_path(get_config_model_id(policy.config), **init)
    if args.disable_dropout:
        stock.no_dropout(model)
    rope.forget_longer_batches(model)
    add_fused_lm_head(model)
    if isinstance(trainer.data_collator, SharedPrefixCollator):
        backbone.share_prefixes(model)
    trainer.ref_model = model.to(trainer.accelerator.device).eval()
    try:
        yield
    finally:
        trainer.ref_model = None


def have_reference_score(trainer: Declared) -> None:
    """Have the reference score the held-out pairs, if that has waited until they are asked for.
    The run's own random draws stay as they were."""
    dataset, args = trainer.eval_dataset, trainer.args
    waits = isinstance(dataset, Dataset) and schema.REFERENCE_LOGPS[0] not in dataset.column_names
    if trainer.precompute_ref_logps and waits:
        batch = args.precompute_ref_batch_size or args.per_device_eval_batch_size
        with own_draws(trainer.accelerator.device), with_reference(trainer):
            trainer.eval_dataset = trainer._precompute_ref_logps(dataset, "eval", batch)


def score(trainer: Declared) -> Scored | None:
    """The held-out pairs under the model as training has left it; every process takes part.

    What TRL computes in an evaluation, pair by pair. None without held-out pairs, where the
    reference has moved (`sync_ref_model`), and where tokens weigh differently (`ld_alpha`): the
    sums are then no log-probabilities.

    Raises:
        Refusal: a batch does not fit in memory.
    """
    args = trainer.args
    if trainer.eval_dataset is None or args.ld_alpha is not None or args.sync_ref_model:
        return None
    have_reference_score(trainer)
    dataset = trainer.eval_dataset
    columns = [name for name in schema.IDS + schema.REFERENCE_LOGPS if name in dataset.column_names]
    order, loader = reference.longest_first(
        trainer, dataset.select_columns(columns), args.per_device_eval_batch_size
    )
    pairs: list[list[float]] = []
    trainer.model_wrapped.eval()
    with memory.explained(trainer, "scoring the held-out pairs"):
        for batch in tqdm(loader, desc="Held-out pairs", unit="batch"):
            trainer.prediction_step(trainer.model_wrapped, batch, prediction_loss_only=True)
            pairs += trainer.pairs
    trainer._metrics["eval"].clear()
    found = np.empty((len(dataset), len(pairs[0])))
    found[order] = pairs[: len(dataset)]  # those that come twice come last
    rewards, tokens, policy = found[:, 0:2].T, found[:, 2:4].sum(axis=1), found[:, 5:7].T
    first = policy - rewards / trainer.beta
    return Scored(policy, first, tokens, reference.nats_per_token(trainer))


def keep(folder: Path, scored: Scored, digest: str) -> None:
    """Write them beside the policy: a run that is killed before its report needs them again.

    Args:
        digest: of the pairs (schema.digest_of).
    """
    said = {name: np.asarray(value).tolist() for name, value in asdict(scored).items()}
    files.write_whole(folder / output_folder.HELD_OUT, json.dumps({"pairs": digest, **said}))


def kept(folder: Path, digest: str) -> Scored | None:
    """What `keep` has written of these pairs; None if it has not."""
    path = folder / output_folder.HELD_OUT
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if found.pop("pairs", None) != digest:
        return None
    arrays = {name: np.array(found.pop(name)) for name in ("policy", "reference", "tokens")}
    return Scored(**arrays, **found)
