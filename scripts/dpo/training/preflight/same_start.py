"""The policy starts as its reference: zero log-ratios, and the constant of its loss. Or, where the
reference is a model of its own, that model gives the scores that are kept of it."""

import math

import numpy as np
import torch
from accelerate.utils import send_to_device

from dpo.data import schema
from dpo.losses import start_loss
from dpo.training import reference, waiting
from dpo.training.preflight.longest_batch import batch_of
from dpo.training.trainer import FastDPOTrainer

SCORED = 4  # pairs


def tried(trainer: FastDPOTrainer) -> list[list[int]]:
    """The training pairs that are looked at: a few alone, so that nothing cancels; then the
    shortest beside the longest, as training mixes them and the scoring of a kept reference does
    not."""
    args, known = trainer.args, trainer.pairs_of_the_run
    alone = [[int(place)] for place in known[:SCORED]]
    dataset = trainer.train_dataset
    lengths = schema.shared_lengths(dataset, args.max_length, args.truncation_mode)[known]
    ends = sorted({int(lengths.argmin()), int(lengths.argmax())})
    together = args.per_device_train_batch_size > 1 and len(ends) > 1
    # Where the reference scores as pairs come, it does so beside others, as in training.
    trainer.score_pairs(batch_of(trainer, sorted({*known[:SCORED], *known[ends]})))
    return [*alone, known[ends].tolist()] if together else alone


def apart(
    trainer: FastDPOTrainer, places: list[int], ratios: np.ndarray, tokens: np.ndarray
) -> str | None:
    """The first answer whose log-probabilities differ by more than rounding, and what else may be
    wrong; None if there is none.

    Args:
        places: of the pairs of a batch, one or two.
        ratios: how far the log-probabilities of chosen and rejected are apart, in nats, shape
            (2, pairs).
        tokens: of each answer, same shape.
    """
    for at, place in enumerate(places):
        for name, ratio, count in zip(("chosen", "rejected"), ratios, tokens, strict=True):
            allowed = reference.nats_per_token(trainer) * count[at]
            if abs(ratio[at]) <= allowed:
                continue
            likely = "They were loaded from different weights"
            if trainer.precompute_ref_logps:
                likely = "What is kept is of other weights or rows (make clean-cache)"
            if len(places) > 1:
                likely = (
                    f"It is scored beside pair {places[1 - at]}, and the model computes a row "
                    "otherwise beside others (--precompute_ref_log_probs false)"
                )
            return (
                f"of pair {place}, the log-probability of {name} differs by {ratio[at]:+.4g} nats, "
                f"and {allowed:.2g} is what {count[at]} tokens may. {likely}"
            )
    return None


def reference_disagrees(trainer: FastDPOTrainer) -> str | None:
    """Whether a reference of its own, from which the policy differs, gives other log-probabilities
    of pairs than those that the run is about to train with."""
    if not trainer.precompute_ref_logps:
        return None  # it is asked as the run goes
    with waiting.with_reference(trainer):
        for places in tried(trainer):
            batch = send_to_device(batch_of(trainer, places), trainer.accelerator.device)
            trainer.score_pairs(batch)
            kept = torch.stack([batch[name] for name in schema.REFERENCE_LOGPS])
            rows = {k: v for k, v in batch.items() if k not in schema.REFERENCE_LOGPS}
            again = trainer.compute_ref_log_probs(reference.reference_model(trainer), rows)
            ratios = (kept - torch.stack(again)).float().cpu().numpy()
            tokens = batch["completion_mask"].sum(1).view(2, -1).cpu().numpy()
            if found := apart(trainer, places, ratios, tokens):
                return f"the reference is not what it was when it was scored: {found}"
    return None


def starts_elsewhere(trainer: FastDPOTrainer) -> str | None:
    """Whether the policy differs from its reference: their log-ratios are zero, and the loss is
    the constant of its type.

    A log-ratio may be off by what reference.py grants a token, and the loss by its slope times the
    log-ratios that were found.
    """
    args, expected = trainer.args, start_loss(trainer.args)
    batches = tried(trainer)
    trainer.model_wrapped.eval()
    for places in batches:
        batch = batch_of(trainer, places)
        trainer._metrics["eval"].clear()
        loss, *_ = trainer.prediction_step(trainer.model_wrapped, batch, prediction_loss_only=True)
        # Of this process: all have scored the same pairs.
        found = np.array(trainer.pairs)[: len(places)].T
        ratios, tokens = found[:2] / args.beta, found[2:4].astype(int)
        if wrong := apart(trainer, places, ratios, tokens):
            return (
                f"the policy does not start as its reference: {wrong}, or dtype or adapter of the "
                "two differ; if it is meant, --policy_is_reference false"
            )
        if expected is None or len(places) > 1:
            continue
        balance = trainer._metrics["eval"]["aux_loss"][-1:] or [0.0]
        loss = float(loss) - trainer.router_aux_loss_coef * balance[0]
        constant, slope = expected
        moved = sum(abs(ratio) for (ratio,) in ratios)
        rounding = 1e-4 if reference.nats_per_token(trainer) <= 1e-4 else 1e-2
        allowed = rounding * (1 + abs(constant))
        allowed += slope * math.expm1(min(moved * max(1, args.beta), 100))
        if not abs(loss - constant) <= allowed:
            return (
                f"the loss of pair {places[0]} is {loss:.5g} before step 1, and {constant:.5g} is "
                f"that of {' + '.join(args.loss_type)} where policy and reference are the same: "
                "TRL computes another loss than it says; if the policy starts elsewhere on "
                "purpose, --policy_is_reference false"
            )
    return None
