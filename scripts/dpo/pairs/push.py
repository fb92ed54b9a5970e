"""Pairs on the hub: a private data set, when it is asked for, and never by itself."""

import json
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from dpo.core.refusal import Refusal, first_line
from dpo.pairs.folder import ABOUT, OURS
from dpo.recipe.hub_names import HUB_TIMEOUT
from dpo.reports.parts.escape import public
from dpo.runs.publish import api_for, check_can_send


def check_push(name: str) -> None:
    """See, before hours are spent, that pairs can go to the data set `name` of the hub.

    Raises:
        Refusal: it is no org/name, there is no token, the hub is switched off, or there is a
            public data set of that name.
    """
    check_can_send(name, "data set")
    try:
        found = HfApi().dataset_info(name, timeout=HUB_TIMEOUT)
    except Exception:  # not there yet, or an outage, which may be over when the pairs are made
        return
    _check_private(name, found.private)


def push(folder: Path, name: str) -> str:
    """Send the pairs of a folder to the private data set `name`, which is made if it is not there,
    and return its address. The token is the one that huggingface_hub finds.

    Raises:
        Refusal: the data set is public, or the hub does not take them: they are written, and the
            line has the command that sends them.
    """
    api = api_for(name)
    try:
        address = api.create_repo(name, private=True, exist_ok=True, repo_type="dataset")
        private = api.dataset_info(name, timeout=HUB_TIMEOUT).private
        _check_private(name, private)
        there = {file: folder / file for file in OURS if (folder / file).is_file()}
        sent = {**there, ABOUT: json.dumps(without_paths(folder / ABOUT), indent=1).encode()}
        parts = [CommitOperationAdd(file, content) for file, content in sent.items()]
        api.create_commit(name, parts, commit_message="Preference pairs", repo_type="dataset")
    except Exception as error:  # whatever an outage looks like, the pairs are written
        only = " ".join(f"--include {file}" for file in OURS)
        where = f"{shlex.quote(name)} {shlex.quote(str(folder))} ."
        raise Refusal(
            f"push: the pairs are written to {folder}, and not sent ({first_line(error)}). This "
            f"sends them: hf upload {where} --repo-type dataset --private {only}"
        ) from error
    return str(address)


def without_paths(about: Path) -> dict[str, Any]:
    """pairs.json without where on this machine models, prompts and judge lie."""
    made = json.loads(about.read_text(encoding="utf-8"))
    made["prompts"]["source"] = public(made["prompts"]["source"])
    for named in (*made["models"], made["judge"]):
        named["name"] = public(named["name"])
    return made


def _check_private(name: str, private: bool | None) -> None:
    if not private:
        raise Refusal(
            f"push: {name} is a public data set of the hub, and what models say is sent to private "
            "ones alone: give another name, or make it private"
        )
