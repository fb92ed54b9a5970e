"""Weights & Biases without questions: online with a key, offline without. None ends a run."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from tqdm.auto import tqdm

from dpo.core import files
from dpo.recipe.parse import Recipe
from dpo.runs import output_folder
from dpo.runs.tracking import again, names, server
from dpo.runs.tracking.server import patience, within

if TYPE_CHECKING:  # what was kept offline is sent without them
    from transformers import Trainer

UPLOADS = {"on_save", "on_train_end"}  # may send a model, where WANDB_LOG_MODEL asks for it
UPLOAD = 1800
OFFLINE = ("offline", "dryrun")


class Bounded:
    """A tracker of transformers, in its place among the callbacks: at its first failure, or when it
    does not come back, one line says so and it is asked no more."""

    def __init__(self, tracker: Any):
        self.tracker, self.off = tracker, False

    def __getattr__(self, event: str) -> Callable[..., Any]:
        from transformers import TrainerCallback

        if getattr(type(self.tracker), event) is getattr(TrainerCallback, event):
            return getattr(self.tracker, event)  # it does nothing here
        return partial(self.ask, event)

    def ask(self, event: str, *args, **kwargs) -> None:
        if self.off:
            return
        call = partial(getattr(self.tracker, event), *args, **kwargs)
        try:
            within(UPLOAD, call) if event in UPLOADS else patience.wait(call)
        except (RuntimeError, TimeoutError) as error:
            self.off = True
            name = type(self.tracker).__name__.removesuffix("Callback")
            tqdm.write(f"{name} is off for the rest of the run ({error}): see metrics.jsonl")


class BoundedWandb(Bounded):
    """W&B's tracker. Where it does not open online, it opens offline. A run that goes on there is
    told what it lacks, and nothing twice."""

    told: again.Told | None = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        begin = partial(self.tracker.on_train_begin, args, state, control, **kwargs)
        if os.environ.get("WANDB_MODE") in OFFLINE:
            return self.ask("on_train_begin", args, state, control, **kwargs)
        try:
            patience.wait(begin)
        except (RuntimeError, TimeoutError) as error:
            tqdm.write(f"W&B goes on offline ({error}): send it with make sync")
            self.open_offline(args, state, control, **kwargs)
        else:
            to_wandb(lambda wandb: self.go_on(wandb, Path(args.output_dir), state.global_step))

    def open_offline(self, *args, **kwargs) -> None:
        import wandb

        os.environ["WANDB_MODE"] = "offline"
        with suppress(RuntimeError, TimeoutError):
            patience.wait(wandb.teardown)  # it has read the environment
        self.tracker._initialized = False
        self.ask("on_train_begin", *args, **kwargs)

    def go_on(self, wandb: Any, folder: Path, step: int) -> None:
        if wandb.run.settings.mode == "disabled":
            return
        files.write_whole(folder / output_folder.WANDB_PATH, wandb.run.path)
        self.told = again.tell(wandb, folder, until=step)
        tqdm.write(f"{'W&B':>8}  {wandb.run.url}")

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if not (self.told and self.told.holds(state.global_step, logs)):
            self.ask("on_log", args, state, control, logs=logs, **kwargs)


def bound(trainer: Trainer) -> None:
    """Put every tracker of the trainer behind its bound."""
    from transformers.integrations import WandbCallback
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    trackers = tuple(INTEGRATION_TO_CALLBACK.values())

    def behind(callback: Any) -> Any:
        if isinstance(callback, WandbCallback):
            return BoundedWandb(callback)
        return Bounded(callback) if isinstance(callback, trackers) else callback

    callbacks = trainer.callback_handler.callbacks
    callbacks[:] = map(behind, callbacks)


def open_again(trainer: Trainer) -> None:
    """Let trackers go on with a training that has ended, for what its evaluation finds."""
    if trainer.is_world_process_zero():
        about = trainer.args, trainer.state, trainer.control
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, Bounded):
                callback.on_train_begin(*about, model=trainer.model)


def kept_id(folder: Path) -> str:
    """The W&B id of the run in a folder: WANDB_RUN_ID, or one that is made once, so that a run that
    was killed goes on in W&B too. One that begins anew is a new run there."""
    path = folder / output_folder.WANDB_ID
    goes_on = path.is_file() and (
        (folder / output_folder.TRAINED).is_file() or [*folder.glob("checkpoint-*")]
    )
    given = os.environ.get("WANDB_RUN_ID")
    if given or not goes_on:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, given or secrets.token_hex(4))
    return path.read_text(encoding="utf-8")


def configure(recipe: Recipe, folder: Path) -> str | None:
    """Set what the user has not: project, group, run name and id, folder, and the mode, which is
    offline without a key that W&B takes.

    W&B takes these from the environment. Returns a line that says where the run goes, None if the
    recipe does not report to W&B.
    """
    if "wandb" not in (recipe.training.report_to or ()):
        return None
    if server.off():
        os.environ["WANDB_MODE"] = "disabled"
        return "off, as WANDB_MODE or WANDB_DISABLED says"
    environment = os.environ
    environment["WANDB_PROJECT"] = names.project(recipe.stated.get("project"))
    group = environment.get("WANDB_RUN_GROUP") or recipe.name
    environment["WANDB_RUN_GROUP"] = names.fitted(group)
    name = environment.get("WANDB_NAME") or recipe.training.run_name or names.of_run(recipe)
    environment["WANDB_NAME"] = names.fitted(name)
    if recipe.training.run_name:  # which transformers would have win
        recipe.training.run_name = environment["WANDB_NAME"]
    at_home = environment.setdefault("WANDB_DIR", str(folder)) == str(folder)
    # Where tables wait to be sent.
    environment.setdefault("WANDB_DATA_DIR", f"{environment['WANDB_DIR']}/wandb")
    environment.setdefault("WANDB_SILENT", "true")
    # W&B writes a run down, and sends it, every 15 seconds, and a kill takes what it has not.
    environment.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")
    environment.setdefault("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "5")
    environment.setdefault("WANDB_INIT_TIMEOUT", "30")  # seconds, of W&B's 90
    from accelerate import PartialState

    if PartialState().is_main_process:  # which alone opens the run
        environment["WANDB_RUN_ID"] = kept_id(folder)
        place = f"{environment.get('WANDB_ENTITY', '')}/{environment['WANDB_PROJECT']}"
        files.write_whole(folder / output_folder.WANDB_PLACE, place)
        environment.setdefault("WANDB_RESUME", "allow")
    why = ""
    if not environment.get("WANDB_MODE"):
        if not server.key():
            why = "; after `wandb login`"
        elif trouble := server.trouble():
            why = f", since {trouble}; once that is over"
        if why:
            environment["WANDB_MODE"] = "offline"
    if environment.get("WANDB_MODE") in OFFLINE:
        how = "make sync" if at_home else f"wandb sync {environment['WANDB_DIR']}/wandb/offline-*"
        return f"offline{why or '; later'}, send it with: {how}"
    return f"project {environment['WANDB_PROJECT']}, group {environment['WANDB_RUN_GROUP']}"


def to_wandb(call: Callable[[Any], None]) -> bool:
    """Let `call` tell the W&B run something, if there is one; it says so if that fails. Returns
    whether W&B has taken it."""
    wandb = sys.modules.get("wandb")
    run = wandb.run if wandb else None  # W&B forgets it where finishing fails
    if run is None:
        return False

    def ask() -> None:
        if run.settings.mode == "online" and (trouble := server.trouble()):
            raise ConnectionError(trouble)  # else some calls try for 20 s, every time
        call(wandb)

    try:
        patience.wait(ask)
    except (RuntimeError, TimeoutError) as error:
        if str(error) != patience.said:
            tqdm.write(f"W&B did not take all ({error}): send it afterwards with make sync")
        patience.said = str(error)
        return False
    return True


def alert(title: str, text: str) -> None:
    """An alert in the W&B run, if there is one."""
    to_wandb(lambda wandb: wandb.alert(title=title, text=text, level="WARN"))


def abandon() -> None:
    """End W&B's own process, which would else try to send until the server is back. All that it was
    told is in its file, or in the output folder."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.name().startswith("wandb-core"):
                child.kill()


def finish(results: dict[str, Any], code: int = 0) -> bool:
    """Add the final results, held-out metrics by name, to the W&B run, if there is one, and close
    it: as failed with an exit `code` that is not 0. Returns whether W&B has taken it."""
    wandb = sys.modules.get("wandb")
    run = wandb.run if wandb else None
    if run is None:
        return False

    def close(wandb) -> None:
        run.summary.update({f"eval/{name}": value for name, value in results.items()})
        wandb.finish(exit_code=code)

    url, online = run.url, run.settings.mode == "online"
    closed = to_wandb(close)
    if not closed:
        abandon()
    elif online:
        tqdm.write(f"{'W&B':>8}  {url}")
        if not patience.said:
            again.mark(Path(os.environ["WANDB_DIR"]), run.id)
    return closed
