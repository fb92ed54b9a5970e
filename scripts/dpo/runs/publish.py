"""Publishing: what a model is made of goes to the hub once it is trained, and nothing else."""

from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from transformers.trainer_utils import HubStrategy
from trl import DPOConfig, DPOTrainer

from dpo.core.refusal import Refusal, first_line
from dpo.runs.output_folder import DRIFT, HELD_OUT, REPORT, TRAINED

KINDS = (".safetensors", ".json", ".jinja", ".txt", ".model", ".py")  # .py: a model's own code
OURS = (REPORT, TRAINED, HELD_OUT, DRIFT)


def check(training: DPOConfig) -> None:
    """Raises Refusal if the recipe would publish checkpoints: optimizer states are pickles."""
    strategy = HubStrategy(training.hub_strategy).value
    if training.push_to_hub and strategy != "end":
        raise Refusal(
            f"hub_strategy {strategy}: choose end: the trained policy is "
            "published, and no checkpoint, which holds pickles"
        )


def published(folder: Path) -> list[str]:
    """The files that make the model: weights, configuration, tokenizer, card."""
    files = (path.name for path in folder.iterdir() if path.is_file() and path.name not in OURS)
    return sorted(
        file for file in files if file == "README.md" or (file.endswith(KINDS) and file[0] != ".")
    )


def publish_or_say(trainer: DPOTrainer) -> None:
    """Publish the trained policy, and say how that went."""
    name, folder = trainer.hub_model_id, trainer.args.output_dir
    try:
        trainer.push_to_hub()
        said = f"Published: {name}"
    except Exception as error:  # whatever an outage looks like, the policy is saved
        said = f"Not published ({first_line(error)}): hf upload {name} {folder} sends it"
    trainer.accelerator.print(said)


def publish(trainer: DPOTrainer, message: str, revision: str | None) -> CommitInfo | None:
    """Upload the policy that the output folder holds. The token is the one that huggingface_hub
    finds: in HF_TOKEN, or kept by `hf auth login`.

    transformers would send the whole folder: settings, rows set aside, W&B's files.
    """
    if not trainer.is_world_process_zero():
        return None
    trainer.create_model_card(model_name=trainer.hub_model_id.split("/")[-1])
    folder, name = Path(trainer.args.output_dir), str(trainer.hub_model_id)
    return HfApi().upload_folder(
        repo_id=name,
        folder_path=folder,
        commit_message=message,
        revision=revision,
        allow_patterns=published(folder),
    )
