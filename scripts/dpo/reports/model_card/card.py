"""Writes the card of a trained policy from what lies in its run's folder, and leaves one alone that
was changed by hand."""

import hashlib
import re
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME as ADAPTER_CONFIG

from dpo.core.files import write_whole
from dpo.reports import results
from dpo.reports.model_card.body import body, title_of
from dpo.reports.model_card.metadata import evaluations, front_matter, suites
from dpo.runs import output_folder

CARD = "README.md"
# Of cards that TRL and peft write, which older runs and adapters have.
STOCK = ("generated_from_trainer", "[More Information Needed]")
SEAL = re.compile(r"\n<!-- ([0-9a-f]{16}): .*-->\n\Z")
SEALED = "written anew by make evaluate and make push, unless it is changed by hand"


def write(folder: Path, report: dict[str, Any]) -> None:
    """Write README.md into a run's folder; `report` is what its report.json holds or will hold."""
    write_whole(folder / CARD, text(folder, report))


def renew(folder: Path) -> None:
    """Write it anew, with the evaluations that are there by now, unless it was changed by hand."""
    if (report := results.read(folder / output_folder.REPORT)) and not by_hand(folder):
        write(folder, report)


def by_hand(folder: Path) -> bool:
    """Whether the card in a run's folder is the user's own."""
    path = folder / CARD
    written = path.read_text(encoding="utf-8") if path.is_file() else ""
    seal = SEAL.search(written)
    if seal is None:
        return bool(written) and not any(words in written for words in STOCK)
    return seal[1] != _digest(written[: seal.start()])


def text(
    folder: Path,
    report: dict[str, Any],
    name: str = "",
    merged: bool = False,
    exported: dict[str, Any] | None = None,
) -> str:
    """The card of the policy in `folder`, under the `name` that it has on the hub, if it has one;
    `merged`: of the model that its adapter and its base make; `exported`: of an export of it, as
    export.json says it."""
    settings = output_folder.settings_of(folder)
    settings.pop("recipe", None)
    exported = exported or {}
    adapter = (folder / ADAPTER_CONFIG).is_file() and not merged
    adapter = adapter and exported.get("kind", "adapter") == "adapter"
    found, asked, title = [*evaluations(folder)], [*suites(folder)], title_of(folder, name)
    front = front_matter(report, settings, found, asked, title, adapter, exported, name)
    said = body(folder, report, settings, found, asked, name, adapter, exported)
    whole = f"---\n{front.to_yaml()}\n---\n\n{said}"
    return f"{whole}\n<!-- {_digest(whole)}: {SEALED} -->\n"


def _digest(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()[:16]
