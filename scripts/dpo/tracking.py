"""Weights & Biases without questions: online with a key, offline without."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dpo.recipe import Recipe


def has_key() -> bool:
    """Whether W&B has a key, in the environment or from `wandb login`."""
    import wandb
    from wandb.sdk.lib.wbauth import read_netrc_auth

    # wandb.setup() would read the environment for good, before `configure` has completed it.
    host = os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url
    return bool(os.environ.get("WANDB_API_KEY") or read_netrc_auth(host=host))


def configure(recipe: Recipe, folder: Path) -> str | None:
    """Set what the user has not: project, group, run name, folder, and the mode without a key.

    W&B takes these from the environment. Returns a line that says where the run goes, None if the
    recipe does not report to W&B.
    """
    if "wandb" not in recipe.training.report_to:
        return None
    os.environ.setdefault("WANDB_PROJECT", "dpo-recipes")
    os.environ.setdefault("WANDB_RUN_GROUP", recipe.name)
    os.environ.setdefault("WANDB_DIR", str(folder))
    os.environ.setdefault("WANDB_SILENT", "true")
    recipe.training.run_name = recipe.training.run_name or folder.name
    if "WANDB_MODE" not in os.environ and not has_key():
        os.environ["WANDB_MODE"] = "offline"
    if os.environ.get("WANDB_MODE") == "offline":
        where = os.environ["WANDB_DIR"]
        return f"offline; after `wandb login`, send it with: wandb sync {where}/wandb/offline-run-*"
    return f"project {os.environ['WANDB_PROJECT']}, group {os.environ['WANDB_RUN_GROUP']}"


def finish(results: dict[str, Any]) -> None:
    """Add the final results to the W&B run, if there is one, and close it."""
    import wandb

    if wandb.run is not None:
        wandb.run.summary.update(results)
        wandb.finish()
