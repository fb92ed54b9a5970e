"""What the W&B run of a training holds beside its curves: who it is, what it was made of, what its
policy says, and the report that it ended with."""

from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback, TrainingArguments

from dpo.core.machine import changes, commit, versions
from dpo.core.secrets import mask
from dpo.data import quarantine
from dpo.recipe.parse import Recipe
from dpo.runs import checkpoints, launch, output_folder, tracking
from dpo.runs.output_folder import COMPLETIONS, METRICS, REPORT
from dpo.runs.tracking import names
from dpo.training.stock import Declared


class Describe(TrainerCallback):
    """Tells W&B, as training begins, what the run is made of. After the tracker, which opens the
    run."""

    def __init__(self, trainer: Declared, recipe: Recipe, data: dict[str, quarantine.Linted]):
        self.trainer, self.recipe, self.data = trainer, recipe, data

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        tags, config = self.tags(), self.config()

        def tell(wandb) -> None:
            wandb.run.tags = tuple(dict.fromkeys((*(wandb.run.tags or ()), *tags)))
            hidden = dict.fromkeys(placeholders(args))  # they look like secrets
            known = {"project": wandb.run.project}  # transformers' own would be another's
            wandb.config.update(config | hidden | known, allow_val_change=True)
            artifact = wandb.Artifact(names.artifact(f"recipe-{self.recipe.name}"), type="recipe")
            for name, text in self.files().items():
                with artifact.new_file(name, encoding="utf-8") as file:
                    file.write(text)
            wandb.run.log_artifact(artifact)

        tracking.to_wandb(tell)

    def tags(self) -> list[str]:
        """Model, data, loss, and the config that the launcher took, without one how the run is
        sharded."""
        recipe = self.recipe
        data = recipe.script.dataset_name or "mixture"
        config = recipe.launch.config or checkpoints.sharding(self.trainer.accelerator)
        named = [recipe.model.model_name_or_path, data, *recipe.training.loss_type, config]
        return names.tags(named)

    def files(self) -> dict[str, str]:
        """What the run can be made again with, by name: the recipe as it stands and with what was
        given besides, the launch config with DeepSpeed's, and how the code differs from the commit.
        """
        recipe = self.recipe
        paths = [recipe.path]
        if recipe.launch.config:
            paths.append(launch.CONFIGS / f"{recipe.launch.config}.yaml")
            plugin = yaml.safe_load(paths[-1].read_text(encoding="utf-8")).get("deepspeed_config")
            paths += [Path(plugin["deepspeed_config_file"])] if plugin else []
        found = {path.name: path for path in paths}
        found |= {"resolved.yaml": Path(recipe.training.output_dir, output_folder.SETTINGS)}
        kept = {name: mask(path.read_text(encoding="utf-8")) for name, path in found.items()}
        diff = changes()
        return kept | ({"changes.diff": diff} if diff else {})

    def config(self) -> dict[str, Any]:
        """The resolved recipe, the data as they were found, and the code."""
        return {
            "recipe": {"name": self.recipe.name, **output_folder.settings(self.recipe)},
            "global_batch": self.recipe.global_batch,
            "versions": versions(),
            "commit": commit(),
            "data": {
                "fingerprint": self.trainer.about["data"],
                "rows": {split: linted.rows for split, linted in self.data.items()},
                "set_aside": {split: linted.set_aside for split, linted in self.data.items()},
                "left_out": {split: linted.left_out for split, linted in self.data.items()},
                "lengths": {split: linted.lengths() for split, linted in self.data.items()},
            },
        }


def placeholders(args: TrainingArguments) -> list[str]:
    """The arguments that transformers shows as `<HUB_TOKEN>` in place of what they hold."""
    return [key for key, value in args.to_dict().items() if value == f"<{key.upper()}>"]


def add_report(folder: Path, recipe: str) -> None:
    """Give the W&B run, if there is one, the page that the run ended with, as an artifact."""

    def add(wandb) -> None:
        artifact = wandb.Artifact(names.artifact(f"report-{recipe}"), type="report")
        for name in ("report.html", REPORT, METRICS, COMPLETIONS):
            if (folder / name).is_file():
                artifact.add_file(str(folder / name))
        wandb.run.log_artifact(artifact)

    tracking.to_wandb(add)
