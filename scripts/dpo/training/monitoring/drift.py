"""How far the policy has gone from its reference, measured at every evaluation.

No reference is in memory while a policy with a cached reference trains. So answers to a few
held-out prompts are drawn at the start, when the policy is its reference, or one of its own is
still there; or from the reference that the first evaluation has (waiting.py). They are kept with
their log-probabilities: what the policy makes of them is an estimate of the KL divergence.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback

from dpo.core import files
from dpo.core.refusal import first_line
from dpo.data import schema
from dpo.models import chat_template, scoring
from dpo.models.sampling import said, sample
from dpo.runs import output_folder
from dpo.training import waiting
from dpo.training.monitoring import completions
from dpo.training.monitoring.probes import own_draws

# What it costs is docs/monitors.md's. Longer prompts would want memory that training has taken.
PROMPTS, LONGEST_PROMPT, TOKENS, SEED = 8, 512, 64, 20_240_328
SHOWN = 6  # of them in completions.jsonl, the first half greedy, the others as they were drawn
AMONG = 2048  # held-out pairs that they are taken from, evenly: neighbours often ask alike

# Gao et al. 2022 (arXiv 2210.10760) and, for DPO, Rafailov et al. 2024 (arXiv 2406.02900): as KL
# grows, answers get worse by the true reward again while the learned one still rises. Where that is
# depends on the data. The embedded default ends at 0.2 nats a token; this is more than twice that.
DRIFTED = 0.5  # nats a token

# Park et al. 2024 (arXiv 2403.19159): where DPO learns length, answers double. Half as long again,
# and by three standard errors over the prompts: the mean of eight answers is noisy.
LONGER, ERRORS = 1.5, 3


class Drift(TrainerCallback):
    """Logs `eval_drift_nats_per_token`, an estimate of KL(reference ‖ policy) a token, and
    `eval_drift_tokens`, the mean length of the policy's own answers, and tells when either is far
    from the reference's. The first process does it alone.

    Not where weights are sharded (ZeRO-3, FSDP): to generate there gathers the whole model, which
    was sharded because there is no room for it. Nor without evaluation.
    """

    def __init__(self, trainer: waiting.ReferenceCanWait):
        self.trainer, self.start = trainer, None
        self.prompts: list[list[int]] = []
        self.asked: list[str] = []  # as text, the first few

    def applies(self) -> bool:
        trainer = self.trainer
        plugin = trainer.accelerator.state.deepspeed_plugin
        sharded = trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)
        data = trainer.eval_dataset
        tokens = isinstance(data, Dataset) and "prompt_ids" in data.column_names
        return trainer.is_world_process_zero() and tokens and not sharded

    def on_train_begin(self, args, state, control, **kwargs):
        path = Path(args.output_dir, output_folder.DRIFT)
        if args.eval_strategy == "no" or not self.applies():
            return
        data = self.trainer.eval_dataset
        first: dict[tuple[int, ...], int] = {}  # one that several pairs share is asked once
        short = (schema.token_counts(data)[0] <= LONGEST_PROMPT).nonzero()[0][:AMONG].tolist()
        for at, ids in zip(short, data.select(short)["prompt_ids"], strict=True):
            first.setdefault(tuple(ids), at)
        every = [*first.values()]
        evenly = range(PROMPTS if every else 0)
        rows = [*dict.fromkeys(every[at * len(every) // PROMPTS] for at in evenly)]
        self.prompts = [data["prompt_ids"][at] for at in rows]
        self.asked = [said(data["prompt"][at]) for at in rows[:SHOWN]]
        completions.forget_after(path.parent, state.global_step)
        if state.global_step == 0:
            path.unlink(missing_ok=True)
            if not self.waits:
                self.begin()
        elif path.is_file():
            self.start = json.loads(path.read_text(encoding="utf-8"))

    @property
    def greedy(self) -> int:
        """How many of the prompts that are shown are answered greedily."""
        return (len(self.asked) + 1) // 2

    @property
    def waits(self) -> bool:
        """Whether the reference answers at the first evaluation, loaded for it."""
        return self.trainer.can_wait and not self.trainer.within_policy

    def begin(self) -> None:
        """Draw the reference's answers, and keep them for the run that goes on from here."""
        path, prompts = Path(self.trainer.args.output_dir, output_folder.DRIFT), self.prompts
        with self.optional(), waiting.with_reference(self.trainer):
            model = self.trainer.ref_model or self.trainer.model
            answers = self.answers(prompts, model)
            self.start = {
                "prompts": prompts,
                "answers": answers,
                "asked": self.asked,
                "greedy": self.answers(prompts[: self.greedy], model, temperature=0),
                "logps": self.logps(prompts, answers, model).tolist(),
            }
            del model  # within: whoever has loaded it lets go of it at the end
            files.write_json(path, self.start)

    @contextmanager
    def optional(self) -> Iterator[None]:
        """What is measured here is no reason to end a run: most of all where memory is short."""
        try:
            yield
        except RuntimeError as error:
            self.start, self.prompts = None, []
            reason = first_line(error)
            tqdm.write(f"Drift from the reference is not measured from here on: {reason}")

    def answers(
        self, prompts: list[list[int]], model: Any = None, temperature: float = 1.0
    ) -> list[list[int]]:
        """A model's answers, the policy's if none is given, as token ids; greedy at temperature
        0."""
        trainer, accelerator = self.trainer, self.trainer.accelerator
        model = accelerator.unwrap_model(model or trainer.model)
        given = {"temperature": temperature, "max_new_tokens": TOKENS, "seed": SEED}
        given["kind"] = chat_template.prompt_kind(trainer.eval_dataset.features)
        with own_draws(trainer.args.device), accelerator.autocast():
            drawn = sample(model, trainer.processing_class, prompts, **given)
        return [answer.token_ids for answer in drawn]

    def logps(
        self, prompts: list[list[int]], answers: list[list[int]], model: Any = None
    ) -> np.ndarray:
        """log π(y | x) in nats under a model, the policy of now if none is given, shape
        (prompts,)."""
        trainer, model = self.trainer, model or self.trainer.model
        pad = trainer.processing_class.pad_token_id
        was_training = model.training
        model.eval()
        with trainer.accelerator.autocast():
            rows = [*zip(prompts, answers, strict=True)]
            logps = scoring.score(trainer.accelerator.unwrap_model(model), rows, pad)
        model.train(was_training)
        return logps

    def on_evaluate(self, args, state, control, **kwargs):
        if self.start is None and self.prompts and self.waits:
            self.begin()
        if self.start is not None:
            with self.optional():
                self.measure()

    def rows(self, decoding: str, asked: list[str], before: list, now: list) -> list[dict]:
        """Answers as completions.jsonl holds them, beside those of the start."""
        step, text = self.trainer.state.global_step, self.trainer.processing_class.decode
        return [
            {"step": step, "prompt": prompt, "decoding": decoding}
            | {
                "reference": text(first, skip_special_tokens=True).strip(),
                "policy": text(last, skip_special_tokens=True).strip(),
            }
            for prompt, first, last in zip(asked, before, now, strict=False)
        ]

    def measure(self) -> None:
        prompts, answers = self.start["prompts"], self.start["answers"]
        before = np.array([len(ids) for ids in answers])
        nats = (self.start["logps"] - self.logps(prompts, answers)).sum() / before.sum()
        if not np.isfinite(nats):  # a GPU does not survive drawing from what is no distribution
            raise RuntimeError(f"the log-probabilities of the reference's answers are {nats}")
        drawn = self.answers(prompts)
        now = np.array([len(ids) for ids in drawn])
        found = {"eval_drift_nats_per_token": float(nats), "eval_drift_tokens": float(now.mean())}
        Trainer.log(self.trainer, found)  # TRL's own would add what it has counted so far
        first = self.start["greedy"]
        greedy, asked = self.answers(prompts[: len(first)], temperature=0), self.start["asked"]
        rows = self.rows("greedy", asked, first, greedy)
        others = (given[len(first) :] for given in (asked, answers, drawn))
        rows += self.rows("sampled", *others)
        completions.add(Path(self.trainer.args.output_dir), rows)
        tell = self.trainer.monitors.tell
        if nats > DRIFTED:
            tell(
                "drift",
                f"the reference's own answers are {nats:.2f} nats a token less likely under the "
                "policy: raise β, lower the learning rate, or take an earlier checkpoint",
            )
        longer = now - before
        error = longer.std(ddof=1) / len(longer) ** 0.5 if len(longer) > 1 else np.inf
        if now.mean() > LONGER * before.mean() and longer.mean() > ERRORS * error:
            tell(
                "length exploitation",
                f"answers to held-out prompts have {now.mean():.0f} tokens, and the reference's "
                f"{before.mean():.0f} (they are cut at {TOKENS})",
            )
