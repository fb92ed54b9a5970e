"""The finished run that a target uses."""

from dataclasses import dataclass
from pathlib import Path

from dpo.core.refusal import Refusal
from dpo.evaluation.contestants import Contestant, policy_of, reference_of
from dpo.recipe.parse import Recipe
from dpo.reports import results
from dpo.runs import output_folder


@dataclass
class Used:
    """A run that has ended: its folder, its recipe, its policy and what that started from."""

    folder: Path
    recipe: Recipe
    policy: Contestant
    reference: Contestant

    @property
    def conversational(self) -> bool:
        """Whether it has trained on messages, which a chat template renders, and not on plain text.
        Reports of older runs do not say: these are taken for messages."""
        report = results.read(self.folder / output_folder.REPORT)
        return bool(report.get("data", {}).get("conversational", True))


def there(name: str) -> Path:
    """The folder of a run, by its path or by its name under outputs/.

    Raises:
        Refusal: there is none of that name.
    """
    folder = output_folder.run_folder(name) if name else None
    if folder is None:
        output_folder.check_there(name)
        raise Refusal(f"{name or 'RUN='} is no run; {output_folder.known_runs()}")
    return folder


def check_ended(folder: Path) -> None:
    """Raises Refusal if the run in `folder` has not ended."""
    if not output_folder.finished(folder):
        raise Refusal(f"{folder} has not ended: the command that began it goes on with it")


def used(name: str) -> Used:
    """The run of that name: its folder, or what that is called in outputs/.

    Raises:
        Refusal: there is none of that name, or it has not ended.
    """
    folder = there(name)
    check_ended(folder)  # first: a checkpoint, which policy_of would name, is no run
    policy = policy_of(folder)
    return Used(folder, policy.recipe, policy, reference_of(policy.recipe))
