"""Held-out pairs under the trained policy and under its reference, scored by the trainer itself: by
all its processes, sharded as it trained, and in the numerics in which it scored the reference. One
process that loads the models again may have no room for them, and rounds otherwise.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from accelerate.utils import tqdm

from dpo.core import files
from dpo.data import schema
from dpo.models.scoring import Scored
from dpo.runs import output_folder
from dpo.training import reference, waiting
from dpo.training.preflight import memory


def score(trainer: waiting.ReferenceCanWait) -> Scored | None:
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
    waiting.have_held_out_scored(trainer)
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
