"""W&B's server: whether it is there and takes the key, and how long a run waits for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import requests

from dpo.core.refusal import first_line

REACHED = 5  # seconds in which W&B must answer, or the run is offline
PATIENCE = 60  # seconds that W&B may hold a run up, all its calls together
SHORT = 1  # seconds of a call that are not counted


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


class Patience:
    """How long this process has waited for W&B, and what it was told last of why."""

    def __init__(self) -> None:
        self.waited, self.said = 0.0, ""

    def wait(self, call: Callable[[], Any]) -> Any:
        """What `call` returns, within what is left of a run's patience; raises as `within`."""
        left = PATIENCE - self.waited
        if left <= 0:
            raise TimeoutError(f"it has held the run up for {PATIENCE:g} s")
        began = time.monotonic()
        try:
            return within(left, call)
        finally:
            took = time.monotonic() - began
            self.waited += took if took > SHORT else 0


patience = Patience()  # one, as W&B has one run in a process


def off() -> bool:
    """Whether WANDB_MODE or WANDB_DISABLED turns W&B off."""
    disabled = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on")
    return disabled or os.environ.get("WANDB_MODE") == "disabled"


def base_url() -> str:
    import wandb

    # wandb.setup() would read the environment for good, before `configure` has completed it.
    return (os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).rstrip("/")


def key() -> str | None:
    """W&B's key, from the environment or from `wandb login`; None where there is none that could be
    one."""
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import read_netrc_auth

    try:
        return os.environ.get("WANDB_API_KEY") or read_netrc_auth(host=base_url())
    except AuthenticationError:
        return None


def trouble() -> str | None:
    """Why nothing can be sent to W&B now; None if it answers and takes the key."""
    url, given = base_url(), key()
    if not given:
        return f"there is no key for {url}"
    asked = {"json": {"query": "query Viewer { viewer { id } }"}, "timeout": REACHED}
    try:
        answer = within(
            REACHED, lambda: requests.post(f"{url}/graphql", auth=("api", given), **asked)
        )
    except (RuntimeError, TimeoutError) as error:
        if isinstance(error.__cause__, requests.exceptions.SSLError):
            return f"{url} shows a certificate that this machine does not trust"
        return f"{url} gave no answer in {REACHED} s"
    if answer.status_code in (401, 403):
        return f"{url} refuses the key ({answer.status_code})"
    return None if answer.ok else f"{url} answers {answer.status_code}"
