"""Illnesses of a run, seen while it runs: each is told once, and two end it (docs/monitors.md).

What is looked at, TRL has computed already. Nothing here touches a weight or draws a number.
"""

import functools
import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerState

from dpo.core.refusal import Refusal
from dpo.data.schema import column
from dpo.losses import start_loss
from dpo.runs import checkpoints, metrics, tracking
from dpo.training.monitoring.probes import sampled, trainable
from dpo.training.stock import Declared

# To hold the thresholds against: the embedded default, which goes well, has held-out accuracy 0.73,
# margins below 1, 0.17 nats a token between policy and reference, and over its first 72 pairs a
# correlation of -0.05 between margin and length and chosen answers 0.05 nats a token down.

# Pairs are looked at over the last 256 of them, and not before there are 64: the standard error of
# a correlation is then 1/√64 = 0.13 or less.
WINDOW, ENOUGH = 256, 64

# The loss begins at a constant, of policy = reference, and falls. Twice that constant in ten steps
# running is worse than knowing nothing, and no batch of hard pairs: their losses average out.
DIVERGED, DIVERGED_STEPS = 2.0, 10

# Chosen answers e^-0.5 = 0.6 times as likely, token by token, as under the reference. That they get
# less likely is common (Rafailov et al. 2024, arXiv 2404.12358; Pal et al. 2024, arXiv 2402.13228);
# that their probability has gone elsewhere is not (Razin et al. 2024, arXiv 2410.08847).
DISPLACED = 0.5  # nats a token

# The difference in length then explains 0.7² = half of what the margins differ by. Below a mean
# |margin| of 0.1, where σ(margin) is 0.525, there is no preference to explain yet.
# Park et al. 2024, arXiv 2403.19159: DPO's reward learns length, and answers grow with it.
LENGTH, PREFERENCE = 0.7, 0.1

# A gap in accuracy of a fifth, and of three standard errors. In a single epoch every pair is new
# when it is trained on, and there is no gap. The same for the fall of the loss from one epoch's
# last ten steps to the next one's first ten: a fifth of where the loss began.
MEMORISED, ERRORS = 0.2, 3

# σ(-margin) is the weight of a pair in DPO's gradient (arXiv 2305.18290, section 4): one half at
# the start, 0.01 at a margin of 4.6. Nine pairs in ten below that, and a step is a fiftieth of what
# it was.
SPENT, SATURATED = 0.01, 0.9
BY_MARGIN = {"sigmoid", "hinge"}  # losses whose gradient ends where the margin is large

# Ten steps change nearly every element in float32; in bfloat16 at 5e-7 a few in a hundred, since a
# step is smaller than what bfloat16 can add to a weight (0.3% against 98.9% in five steps).
EMPTY, EMPTY_STEPS = 0.1, 10


def alerts_of(state: TrainerState) -> list[dict[str, Any]]:
    """The alerts of a run: kind, step, and what it says."""
    kept: Any = state.stateful_callbacks  # a mapping, once it was read from a file too
    return kept.get(NAME, nothing_yet())["alerts"]


NAME = "monitors"  # in the state that checkpoints keep: a run that is resumed has seen as much
GUIDE = "docs/when-a-run-goes-wrong.md"  # what to do about each


def nothing_yet() -> dict[str, Any]:
    """Alerts; mean losses of the last steps, of the first, and of those before the epoch ended;
    (chosen reward, rejected reward, chosen tokens, rejected tokens) of the last pairs."""
    return {"alerts": [], "losses": [], "first_loss": None, "before_epoch": [], "pairs": []}


class Monitors(TrainerCallback):
    """Looks at every micro-batch through `saw`, at every gradient through `check_gradient`.

    All processes see the gathered numbers, so that they stop alike.
    """

    def __init__(self, trainer: Declared):
        self.trainer = trainer
        self.kept = nothing_yet()
        self.micro_losses: list[float] = []
        self.start: dict[str, Tensor] = {}
        self.moving_steps = 0

    def on_train_begin(self, args, state, control, **kwargs):
        kept: Any = state.stateful_callbacks
        self.kept = kept.setdefault(NAME, nothing_yet())
        if state.is_world_process_zero:
            metrics.keep_alerts(args.output_dir, self.kept["alerts"])
        self.micro_losses = []
        # DeepSpeed keeps float32 masters, and shows weights in half precision that hardly move.
        if state.global_step == 0 and not self.trainer.is_deepspeed_enabled:
            self.start = sampled(trainable(self.trainer.model))

    # ---- what is told, and what ends the run

    def tell(self, kind: str, says: str, write: bool = True) -> None:
        """Once a kind, to the terminal, to W&B, and to the state that the report reads."""
        if any(alert["kind"] == kind for alert in self.kept["alerts"]):
            return
        step = self.trainer.state.global_step
        self.kept["alerts"].append({"kind": kind, "step": step, "says": says})
        if self.trainer.is_world_process_zero():
            metrics.keep_alerts(self.trainer.args.output_dir, self.kept["alerts"])
            if write:
                tqdm.write(f"   alert  step {step}  {kind}: {says} ({GUIDE})")
            tracking.alert(kind, f"step {step}: {says}")

    def stop(self, kind: str, says: str) -> NoReturn:
        """End the run in all processes; nothing of this step is saved.

        Raises:
            Refusal: always.
        """
        self.tell(kind, says, write=False)
        last = checkpoints.last_whole(Path(self.trainer.args.output_dir)) or "none"
        way = "Lower the learning rate"
        if not self.trainer.state.global_step:  # which has changed nothing yet
            way = "Try another --attn_implementation, --bf16 false or a lower max_length"
        raise Refusal(
            f"{kind}: {says}. Stopped, and nothing of this step was saved (last whole checkpoint: "
            f"{last}). {way}, or look at the data with make data, and start anew "
            f"with --restart ({GUIDE})"
        )

    # ---- not finite

    def saw(self, pairs: list[list[float]]) -> None:
        """Take in a micro-batch, as `probes.per_pair` has it, before it goes backward.

        Raises:
            Refusal: the loss of some process is not finite.
        """
        losses = [pair[4] for pair in pairs]
        if not all(map(math.isfinite, losses)):
            self.stop("not finite", f"the loss of step {self.next_step} is {sum(losses)}")
        self.micro_losses += losses  # of every pair, that of its micro-batch
        self.kept["pairs"] = [*self.kept["pairs"], *(pair[:4] for pair in pairs)][-WINDOW:]

    def check_gradient(self, norm: Tensor | float | None) -> None:
        """Called with the norm over all processes, before the optimizer's step; DeepSpeed has taken
        it by then. With float16 a norm may overflow: the scaler skips that step.

        Raises:
            Refusal: the norm is not finite.
        """
        if norm is not None and self.trainer.accelerator.mixed_precision != "fp16":
            norm = float(norm)
            if not math.isfinite(norm):
                says = f"the gradient norm of step {self.next_step} is {norm}"
                self.stop("not finite", f"{says}, and its loss {self.micro_losses[-1]:.4g}")

    @property
    def next_step(self) -> int:
        return self.trainer.state.global_step + 1

    def check_weights(self) -> None:
        """At the end of every step, so that whatever is saved after it is finite: one pass over
        the weights, where the step itself made several. Before the first one, checks.py looks.

        Raises:
            Refusal: a weight of some process is not finite.
        """
        weights = trainable(self.trainer.model)
        wide = functools.reduce(
            torch.promote_types, {w.dtype for w in weights.values()}, torch.float
        )
        norms = torch._foreach_norm([*weights.values()], 2, dtype=wide)
        # Of an offloaded policy some lie in the machine's memory, and others on the GPU.
        norms = torch.stack([norm.to(self.trainer.accelerator.device) for norm in norms])
        bad = (~norms.isfinite()).sum().float()
        if self.trainer.accelerator.reduce(bad, reduction="sum").item() > 0:
            names = [name for name, ok in zip(weights, norms.isfinite(), strict=True) if not ok]
            where = f"{names[0]} and {len(names) - 1} more" if names else "another process"
            step = self.trainer.state.global_step
            self.stop("not finite", f"the weights after step {step} are not finite: {where}")

    # ---- step by step

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.moving_steps += any(group["lr"] > 0 for group in optimizer.param_groups)

    def on_step_end(self, args, state, control, **kwargs):
        self.check_weights()
        kept, loss = self.kept, float(np.mean(self.micro_losses))
        self.micro_losses = []
        kept["losses"] = [*kept["losses"], loss][-DIVERGED_STEPS:]
        if kept["first_loss"] is None:
            kept["first_loss"] = loss
        self.look_for_divergence()
        self.look_for_a_jump()
        self.look_for_empty_learning()

    def look_for_divergence(self) -> None:
        losses, first = self.kept["losses"], self.kept["first_loss"]
        # A policy that goes on from an earlier round may begin far below it.
        knowing_nothing, _ = start_loss(self.trainer.args) or (0.0, 0.0)
        worst = DIVERGED * max(abs(first), abs(knowing_nothing))
        if len(losses) == DIVERGED_STEPS and min(losses) > worst:
            says = f"the loss began at {first:.4g} and was {min(losses):.4g} or more in each of"
            self.stop("divergence", f"{says} the last {DIVERGED_STEPS} steps")

    def on_epoch_begin(self, args, state, control, **kwargs):
        full = len(self.kept["losses"]) == DIVERGED_STEPS
        if state.global_step and full and state.epoch == int(state.epoch):
            self.kept["before_epoch"] = [*self.kept["losses"], state.global_step]

    def look_for_a_jump(self) -> None:
        if not self.kept["before_epoch"]:
            return
        *before, step = self.kept["before_epoch"]
        if self.trainer.state.global_step - step < DIVERGED_STEPS:
            return
        self.kept["before_epoch"], after = [], self.kept["losses"]
        fall = np.mean(before) - np.mean(after)
        error = math.sqrt((np.var(before) + np.var(after)) / (DIVERGED_STEPS - 1))
        if fall > MEMORISED * abs(self.kept["first_loss"]) and fall > ERRORS * error:
            self.tell(
                "memorisation",
                f"the training loss fell from {np.mean(before):.3f} to {np.mean(after):.3f} when "
                "the epoch ended: pairs are known again, train fewer epochs",
            )

    def look_for_empty_learning(self) -> None:
        if self.moving_steps < EMPTY_STEPS or not self.start:
            return
        now, start, self.start = sampled(trainable(self.trainer.model)), self.start, {}
        # A mean of tensors: most of an embedding's rows are of words that did not occur.
        share = float(np.mean([(now[n] != start[n]).float().mean().item() for n in start]))
        if share < EMPTY:
            self.tell(
                "empty learning",
                f"{share:.1%} of the weights changed in {EMPTY_STEPS} steps: they round away. Keep "
                "them in float32 (--dtype float32) or raise the learning rate",
            )

    # ---- pairs, at every log

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}) or len(self.kept["pairs"]) < ENOUGH:
            return
        pairs = np.array(self.kept["pairs"])
        self.look_for_displacement(*pairs.T)
        self.look_for_length(pairs[:, 0] - pairs[:, 1], pairs[:, 2] - pairs[:, 3])
        self.look_for_saturation(pairs[:, 0] - pairs[:, 1])

    def look_for_displacement(self, chosen, rejected, tokens, *_) -> None:
        nats = chosen.mean() / self.trainer.beta / max(tokens.mean(), 1)
        margin = (chosen - rejected).mean()
        if nats < -DISPLACED and margin > 0:
            self.tell(
                "likelihood displacement",
                f"chosen answers are {-nats:.2f} nats a token less likely than under the reference "
                f"while the margin is {margin:+.2f}: their probability goes to neither of the two. "
                "A falling chosen reward alone is common; this is more",
            )

    def look_for_length(self, margins, longer) -> None:
        if np.abs(margins).mean() < PREFERENCE or not longer.std() or not margins.std():
            return
        correlation = np.corrcoef(margins, longer)[0, 1]
        if correlation > LENGTH:
            self.tell(
                "length exploitation",
                f"the margins of the last {len(margins)} pairs go with how much longer the chosen "
                f"answer is (correlation {correlation:.2f}): the policy learns length",
            )

    def look_for_saturation(self, margins) -> None:
        spent = (margins > math.log(1 / SPENT - 1)).mean()
        if spent > SATURATED and BY_MARGIN & {*self.trainer.loss_types}:
            self.tell(
                "saturation",
                f"{spent:.0%} of the last {len(margins)} pairs weigh less than {SPENT:g} in the "
                "gradient: further training does nothing, stop here or lower β",
            )

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        held_out = (metrics or {}).get("eval_rewards/accuracies")
        pairs, rows = np.array(self.kept["pairs"]), self.trainer.eval_dataset
        if held_out is None or len(pairs) < ENOUGH or not isinstance(rows, Dataset):
            return  # of a stream, or of a set that `evaluate` is given, the pairs are not counted
        train = self.trainer.right(pairs).mean()
        both = (train + held_out) / 2
        if "prompt_digest" in rows.column_names:  # pairs of one prompt are right or wrong together
            rows = np.unique(column(rows, "prompt_digest"))
        error = math.sqrt(both * (1 - both) * (1 / len(pairs) + 1 / len(rows)))
        if train - held_out > max(MEMORISED, ERRORS * error):
            self.tell(
                "memorisation",
                f"accuracy is {train:.2f} on the last {len(pairs)} pairs trained on and "
                f"{held_out:.2f} on held-out ones: train fewer epochs, or on more pairs",
            )
