"""Sizes of models, so that a run of a known one is planned without the hub. For the sizes alone
nothing heavy is imported."""

from __future__ import annotations

import contextlib
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo.core.refusal import Refusal, first_line
from dpo.recipe.hub_names import check_reachable, looks_local, why_not

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FILE = Path(__file__).parents[3] / "recipes" / "data" / "shapes.json"


@functools.cache
def known() -> dict[str, dict[str, Any]]:
    """What decides the sizes of the models that the shelf begins from, by their names on the hub,
    as a configuration takes it."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: shape["config"] for shape in found for name in shape["names"]}


def config_of(
    name: str, revision: str | None = None, **how: Any
) -> tuple[PreTrainedConfig, str | None]:
    """A model's configuration, and a note if it is not the model's own: its folder's, the hub's or
    the cache's comes first, and the sizes in `FILE` where none of these is to be had.

    Args:
        how: as `from_pretrained` takes it.

    Raises:
        Refusal: there is neither.
    """
    from transformers import AutoConfig

    from dpo.models import model_files

    if Path(name).is_dir():
        return model_files.config_of(name, revision, **how), None
    try:
        try:
            if looks_local(name):
                raise Refusal(f"there is no model folder {name}")
            check_reachable(name, "model")  # once: from_pretrained would ask for 25 seconds
        except Refusal:  # then nobody else is asked
            with contextlib.suppress(Refusal):
                cached = model_files.config_of(name, revision, **how, local_files_only=True)
                return cached, None
            raise
        return model_files.config_of(name, revision, **how), None
    except Refusal as refused:
        if name not in known():
            raise
        how.pop("trust_remote_code", None)
        why = why_not(cause) if (cause := refused.__cause__) else first_line(refused)
        note = f"sizes of {name} as recipes/data/{FILE.name} has them: {why}"
        return AutoConfig.for_model(**(known()[name] | how)), note
