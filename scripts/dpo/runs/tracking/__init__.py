"""Weights & Biases without questions: online with a key, offline without. No tracker ends a run,
or holds it up."""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from tqdm.auto import tqdm

from dpo.core import files
from dpo.core.refusal import first_line
from dpo.recipe.arguments import decides
from dpo.recipe.parse import Recipe, read_yaml
from dpo.runs import output_folder

if TYPE_CHECKING:  # what was kept offline is sent without them
    from transformers import Trainer, TrainerCallback

PROJECT = "dpo-recipes"
REACHED = 5  # seconds in which W&B must answer, or the run is offline
PATIENCE = 60  # seconds that a tracker may take for one call
UPLOADS = {"on_save", "on_train_end"}  # may send a model, where WANDB_LOG_MODEL asks for it
UPLOAD = 1800


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns. It runs in a thread of its own, which is left behind if it hangs.

    Raises:
        TimeoutError: it took longer than `seconds`.
        RuntimeError: it raised; the first line of what it said.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["returned"] = call()
        except BaseException as error:
            outcome["raised"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {seconds:g} s")
    if "raised" in outcome:
        raise RuntimeError(first_line(outcome["raised"])) from outcome["raised"]
    return outcome["returned"]


class Bounded:
    """A tracker of transformers, in its place among the callbacks: at its first failure, or when it
    does not come back, one line says so and it is asked no more."""

    def __init__(self, tracker: TrainerCallback):
        self.tracker, self.off = tracker, False

    def __getattr__(self, event: str) -> Callable[..., Any]:
        from transformers import TrainerCallback

        if getattr(type(self.tracker), event) is getattr(TrainerCallback, event):
            return getattr(self.tracker, event)  # it does nothing here

        def ask(*args, **kwargs) -> None:
            if self.off:
                return
            call = getattr(self.tracker, event)
            try:
                within(UPLOAD if event in UPLOADS else PATIENCE, lambda: call(*args, **kwargs))
            except (RuntimeError, TimeoutError) as error:
                self.off = True
                name = type(self.tracker).__name__.removesuffix("Callback")
                tqdm.write(f"{name} is off for the rest of the run ({error}): see metrics.jsonl")

        return ask


def bound(trainer: Trainer) -> None:
    """Put every tracker of the trainer behind its bound."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    trackers = tuple(INTEGRATION_TO_CALLBACK.values())
    callbacks = trainer.callback_handler.callbacks
    callbacks[:] = [Bounded(c) if isinstance(c, trackers) else c for c in callbacks]


def open_again(trainer: Trainer) -> None:
    """Let trackers go on with a training that has ended, for what its evaluation finds."""
    if trainer.is_world_process_zero():
        about = trainer.args, trainer.state, trainer.control
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, Bounded):
                callback.on_train_begin(*about, model=trainer.model)


def project() -> str:
    """The W&B project of what is not a run: a sweep, a report."""
    return os.environ.get("WANDB_PROJECT", PROJECT)


def base_url() -> str:
    import wandb

    # wandb.setup() would read the environment for good, before `configure` has completed it.
    return os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url


def has_key() -> bool:
    """Whether W&B has a key, in the environment or from `wandb login`."""
    from wandb.sdk.lib.wbauth import read_netrc_auth

    return bool(os.environ.get("WANDB_API_KEY") or read_netrc_auth(host=base_url()))


def reachable(url: str) -> bool:
    """Whether anything at `url` answers, whatever it says, through the proxies that are set."""
    try:
        within(REACHED, lambda: requests.head(url, timeout=REACHED))
    except (RuntimeError, TimeoutError):
        return False
    return True


def name_of(recipe: Recipe) -> str:
    """The recipe, and what was given that differs from it: `qwen-ultrafeedback beta=0.05`."""
    stated = recipe.defaults | read_yaml(recipe.path)
    given = [
        f"{key}={value}"
        for key, value in recipe.stated.items()
        if decides(key) and value != stated.get(key)
    ]
    return " ".join([recipe.name, *given])


def kept_id(folder: Path) -> str:
    """The W&B id of the run in a folder: made once, so that a run that was killed goes on in W&B
    too."""
    path = folder / output_folder.WANDB_ID
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8")


def configure(recipe: Recipe, folder: Path) -> str | None:
    """Set what the user has not: project, group, run name and id, folder, and the mode, which is
    offline without a key or without an answer from W&B.

    W&B takes these from the environment. Returns a line that says where the run goes, None if the
    recipe does not report to W&B.
    """
    if "wandb" not in (recipe.training.report_to or ()):
        return None
    stated = "project" in {*recipe.stated, *recipe.flags}
    os.environ.setdefault("WANDB_PROJECT", recipe.training.project if stated else PROJECT)
    os.environ.setdefault("WANDB_RUN_GROUP", recipe.name)
    os.environ.setdefault("WANDB_DIR", str(folder))
    # Where tables wait to be sent.
    os.environ.setdefault("WANDB_DATA_DIR", f"{os.environ['WANDB_DIR']}/wandb")
    os.environ.setdefault("WANDB_SILENT", "true")
    # W&B writes an offline run down every 15 seconds, and a kill takes what it has not.
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")
    from accelerate import PartialState

    if PartialState().is_main_process:  # which alone opens the run
        os.environ.setdefault("WANDB_RUN_ID", kept_id(folder))
        os.environ.setdefault("WANDB_RESUME", "allow")
    os.environ.setdefault("WANDB_NAME", recipe.training.run_name or name_of(recipe))
    why = "offline; after `wandb login`"
    if "WANDB_MODE" not in os.environ:
        if not has_key():
            os.environ["WANDB_MODE"] = "offline"
        elif not reachable(base_url()):
            os.environ["WANDB_MODE"] = "offline"
            why = f"offline, since {base_url()} gave no answer in {REACHED} s; when it does"
    if os.environ.get("WANDB_MODE") == "offline":
        return f"{why}, send it with: make sync"
    return f"project {os.environ['WANDB_PROJECT']}, group {os.environ['WANDB_RUN_GROUP']}"


def to_wandb(call: Callable[[Any], None]) -> None:
    """Let `call` tell the W&B run something, if there is one; it says so if that fails."""
    wandb = sys.modules.get("wandb")
    run = wandb.run if wandb else None  # W&B forgets it where finishing fails
    if run is None:
        return
    try:
        within(PATIENCE, lambda: call(wandb))
    except (RuntimeError, TimeoutError) as error:
        offline = run.settings.mode == "offline"
        how = "make sync" if offline else f"wandb sync {Path(run.dir).parent}"
        tqdm.write(f"W&B did not take all ({error}): send it with {how}")


def alert(title: str, text: str) -> None:
    """An alert in the W&B run, if there is one."""
    to_wandb(lambda wandb: wandb.alert(title=title, text=text, level="WARN"))


def finish(results: dict[str, Any], code: int = 0) -> None:
    """Add the final results, held-out metrics by name, to the W&B run, if there is one, and close
    it: as failed with an exit `code` that is not 0."""

    def close(wandb) -> None:
        wandb.run.summary.update({f"eval/{name}": value for name, value in results.items()})
        wandb.finish(exit_code=code)

    to_wandb(close)
