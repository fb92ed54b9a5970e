"""What a trainer writes: checkpoints, whole or not at all, and the policy."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from datasets import IterableDataset
from transformers.trainer import TRAINING_ARGS_NAME

from dpo.core import files
from dpo.core.refusal import Refusal
from dpo.data import schema
from dpo.models import adapters
from dpo.runs import checkpoints
from dpo.training import reference, resume
from dpo.training.stock import Declared


class WritesCheckpoints(Declared):
    """The part of FastDPOTrainer (trainer.py) that writes; above TRL's in its bases.

    Args:
        adapter: the weights file of the adapter that training starts from, if it is one.
        settings: of the run, those that decide what is learned (Recipe.learned).
    """

    def __init__(
        self,
        *args,
        adapter: Path | None = None,
        settings: dict[str, Any] | None = None,
        **kwargs,
    ):
        self.adapter, self.settings = adapter, settings or {}
        self.started = time.monotonic()  # so much earlier, once a run goes on from a checkpoint
        self._saving = False
        super().__init__(*args, **kwargs)
        self.settled = resume.Settled(self)
        self.add_callback(self.settled)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What a run must have in common with the checkpoint that it goes on from."""
        model, rows = self.accelerator.unwrap_model(self.model), self.train_dataset
        own = self.load_reference is not None
        listed = not isinstance(rows, IterableDataset) and {*schema.IDS} <= {*rows.column_names}
        return {
            "processes": self.accelerator.num_processes,
            "sharding": checkpoints.sharding(self.accelerator),
            "model": reference.digest_of_weights(model.config, self.adapter),
            "reference": reference.digest_of_weights(self.began_with) if own else None,
            "data": reference.digest_of_rows(rows) if listed else None,
            "settings": self.settings,
            "micro_batches": self._micro_batches if self.composition_matters else None,
        }

    # transformers writes a checkpoint where it will lie: a kill would leave half of one there.
    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return f"{folder}/{checkpoints.BESIDE}" if self._saving else folder

    # Written to a folder beside; `checkpoints.finish` renames it when it is complete.
    def _save_checkpoint(self, model, trial) -> None:
        state, folder = self.state, Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{state.global_step}"
        beside = folder / checkpoints.BESIDE / checkpoint.name
        with files.written_to(checkpoint):
            self.keep_scores()
            self._saving = True
            super()._save_checkpoint(model, trial)
            self._saving = False
            if self.args.sync_ref_model and not self.args.save_only_model:
                resume.save_reference(self, beside)
            unlogged = self.settled.unlogged or resume.unlogged(self)
            self.accelerator.wait_for_everyone()
            if state.best_model_checkpoint == str(beside):
                state.best_model_checkpoint = str(checkpoint)
            about = {}
            if self.is_world_process_zero():
                state.save_to_json(str(beside / "trainer_state.json"))
                about = self.about | {
                    "optimizer": not self.args.save_only_model,
                    "seconds": time.monotonic() - self.started,
                    "unlogged": unlogged,
                }
            checkpoints.finish(beside, checkpoint, about)
            if self.is_world_process_zero():
                best = state.best_model_checkpoint
                checkpoints.rotate(folder, self.args.save_total_limit, best)
            self.accelerator.wait_for_everyone()

    def save_alone(self) -> None:
        """Write a checkpoint of the last step that was completed, before the run fails in the one
        after it; where other processes are needed for that, they cannot be told."""
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        alone = self.args.world_size == 1 and not sharded
        there = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}").exists()
        if alone and self.state.global_step and not there:
            self.model.zero_grad()
            self._save_checkpoint(self.model, None)

    # The system kills a process when memory runs out, and a data worker is a small one to choose.
    @contextmanager
    def _data_workers_explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            self.save_alone()
            whole = checkpoints.last_whole(Path(self.args.output_dir))
            raise Refusal(
                f"a data worker was killed after step {self.state.global_step}, often for want of "
                "memory: give fewer dataloader_num_workers, and the same command goes on from "
                f"{whole or 'the start'}"
            ) from error

    # transformers pickles its arguments, a token among them, which nothing here reads; and of an
    # adapter keeps no ends.
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            if is_peft_model(self.model):
                adapters.save_generation_config(self.model, folder)

    # TRL's card, one at each checkpoint, knows no result and calls a model of a folder None:
    # reports/model_card writes one when all is measured.
    def create_model_card(self, *args, **kwargs) -> None:
        pass
