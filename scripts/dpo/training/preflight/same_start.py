"""The policy starts as its reference: zero log-ratios, and the constant of its loss."""

import math

import numpy as np
from trl import DPOConfig

from dpo.data import schema
from dpo.losses import START
from dpo.training import reference
from dpo.training.preflight.longest_batch import batch_of
from dpo.training.trainer import FastDPOTrainer

SCORED = 4  # pairs


def start_loss(args: DPOConfig) -> tuple[float, float] | None:
    """The loss where policy and reference are the same, and its slope in nats, as the weighted sum
    over its types; None if one of them has no constant."""
    if args.use_weighting or "sft" in args.loss_type:
        return None
    weights = args.loss_weights or [1.0] * len(args.loss_type)
    parts = [START[name](args.beta, args.label_smoothing) for name in args.loss_type]
    loss = sum(weight * part[0] for weight, part in zip(weights, parts, strict=True))
    return loss, sum(abs(weight) * part[1] for weight, part in zip(weights, parts, strict=True))


def starts_elsewhere(trainer: FastDPOTrainer) -> str | None:
    """Whether the policy differs from its reference: their log-ratios are zero, and the loss is
    the constant of its type.

    Pair by pair, so that nothing cancels; then the shortest beside the longest, as training mixes
    them and the scoring of a kept reference does not. A log-ratio may be off by what reference.py
    grants a token, and the loss by its slope times the log-ratios that were found.
    """
    args, dataset, expected = trainer.args, trainer.train_dataset, start_loss(trainer.args)
    known, likely = trainer.pairs_of_the_run, "Either they were loaded from different weights"
    if trainer.precompute_ref_logps:
        likely = "Either what is kept is of other weights or rows (make clean-cache)"
    tried = [[int(place)] for place in known[:SCORED]]
    lengths = schema.shared_lengths(dataset, args.max_length, args.truncation_mode)[known]
    ends = sorted({int(lengths.argmin()), int(lengths.argmax())})
    if args.per_device_train_batch_size > 1 and len(ends) > 1:
        tried.append(known[ends].tolist())
    # Where the reference scores as pairs come, it does so beside others, as in training.
    trainer.score_pairs(batch_of(trainer, sorted({*known[:SCORED], *known[ends]})))
    trainer.model_wrapped.eval()
    for places in tried:
        batch = batch_of(trainer, places)
        trainer._metrics["eval"].clear()
        loss, *_ = trainer.prediction_step(trainer.model_wrapped, batch, prediction_loss_only=True)
        # Of this process: all have scored the same pairs.
        found = np.array(trainer.pairs)[: len(places)].T
        ratios, tokens = found[:2] / args.beta, found[2:4].astype(int)
        for at, place in enumerate(places):
            for name, ratio, count in zip(("chosen", "rejected"), ratios, tokens, strict=True):
                allowed = reference.nats_per_token(trainer) * count[at]
                if abs(ratio[at]) <= allowed:
                    continue
                if len(places) > 1:
                    likely = (
                        f"It is scored beside pair {places[1 - at]}, and the model computes a row "
                        "otherwise beside others (--precompute_ref_log_probs false)"
                    )
                return (
                    f"the policy does not start as its reference: of pair {place}, the "
                    f"log-probability of {name} differs by {ratio[at]:+.4g} nats, and "
                    f"{allowed:.2g} is what {count[at]} tokens may. {likely}, or dtype or adapter "
                    "of the two differ; if it is meant, --policy_is_reference false"
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
