"""A run's policy, or an export of it, on the hub: what makes the model and its card, in a private
repository."""

import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd
from peft.utils import CONFIG_NAME

from dpo.core.refusal import Refusal
from dpo.models import adapters, model_files
from dpo.recipe.hub_names import HUB_TIMEOUT
from dpo.reports import results
from dpo.reports.model_card import card
from dpo.reports.model_card.metadata import on_hub
from dpo.runs import output_folder
from dpo.runs.publish import api_for, check_can_send, why_not_sent
from dpo.use import run
from dpo.use.export import record

MESSAGE = "A policy trained by DPO"
# By name: a run's folder holds much that is nobody else's.
SENT = (
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("adapter_model.safetensors", CONFIG_NAME, "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "*.tiktoken"),
    *("sentencepiece.bpe.model", "chat_template.jinja", "preprocessor_config.json"),
    "processor_config.json",
)


def sent_of(folder: Path) -> list[Path]:
    """The files in a folder that make a model, without its card."""
    stated = [folder / name for name in ("config.json", "tokenizer_config.json")]
    own = any(model_files.code_in(model_files.read_json(path)) for path in stated if path.is_file())
    patterns = [*SENT, *["*.py"] * own]  # a model's own code
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name[0] != ".")


def push(
    folder: Path,
    name: str,
    *,
    private: bool = True,
    merged: bool = False,
    revision: str | None = None,
) -> str:
    """Send the policy of the run in `folder`, or the export there, to the model `name` of the hub,
    which is made if it is not there, and return its address. What is there already, by its hash, is
    not sent again.

    Args:
        private: make it private, and send nothing to one that is public.
        merged: of an adapter, the model that it makes of its base.
        revision: a branch, made if it is not there; None for the main one.

    Raises:
        Refusal: it cannot be sent as it is, or the hub does not take it; the line has the command
            that goes on.
    """
    check_can_send(name, "model")
    if about := record.read(folder):
        check_base(folder, "make export MERGE=1")
        of, files = record.run_of(folder), record.checked(folder)
    else:
        of, files = folder, sent_of(policy_in(folder, merged))
    if of is None or card.by_hand(folder):
        text = (folder / card.CARD).read_bytes()
    else:
        report = results.read(of / output_folder.REPORT)
        text = card.text(of, report, name, merged, about).encode()
    api = api_for(name)
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        there = api.model_info(name, revision=revision, timeout=HUB_TIMEOUT)
        if private and not there.private:
            raise Refusal(
                f"push: {name} is a public model of the hub: give another HUB=, or if everybody "
                f"may have this one: make push RUN={shlex.quote(str(folder))} HUB={name} "
                "ARGS=--public"
            )
        kind = "private" if there.private else "public"
        print(f"To {name} ({kind}): {', '.join(map(_sized, files))}, {card.CARD}")
        parts = [CommitOperationAdd(path.name, path) for path in files]
        parts.append(CommitOperationAdd(card.CARD, text))
        done = api.create_commit(name, parts, commit_message=MESSAGE, revision=revision)
    except Exception as error:  # whatever an outage looks like, the policy is saved
        again = f"make push RUN={shlex.quote(str(folder))} HUB={name}"
        flags = ["--merged"] * merged + ["--public"] * (not private)
        again += f' ARGS="{" ".join(flags)}"' if flags else ""
        raise Refusal(f"push: not sent ({why_not_sent(error)}). This goes on: {again}") from error
    said = "Nothing new, it is there already" if done.oid == there.sha else "Sent"
    print(f"{said}: {address}")
    return address


def policy_in(folder: Path, merged: bool) -> Path:
    """The folder with the weights that are to be sent.

    Raises:
        Refusal: there is no such policy, or it is an adapter of a model that nobody else has.
    """
    if merged:
        if not (folder / adapters.MERGED).is_dir():
            raise Refusal(
                f"push: {folder} has no {adapters.MERGED}/: its policy is no adapter, or its "
                "recipe says save_merged: false"
            )
        return folder / adapters.MERGED
    check_base(folder, 'ARGS="--merged"')
    return folder


def check_base(folder: Path, instead: str) -> None:
    """Raises Refusal if a folder holds an adapter of a model that nobody else has; `instead` sends
    both as one."""
    adapter = adapters.config_of(str(folder))
    if adapter and not on_hub(str(adapter.base_model_name_or_path)):
        raise Refusal(
            f"push: {folder} holds an adapter of a model in a folder of this machine, which others "
            f"do not have: send both as one with {instead}"
        )


def _sized(path: Path) -> str:
    size = path.stat().st_size
    return f"{path.name} {size / 1e6:,.1f} MB" if size >= 1e5 else path.name


def named(settings: dict[str, Any], given: str) -> str:
    """Where a run is sent to: the name that is given, or the one that it states.

    Raises:
        Refusal: there is none.
    """
    if name := given or settings.get("hub_model_id"):
        return str(name)
    raise Refusal("push: HUB= is missing: give org/name, as HUB=my-name/my-model")


def stated(settings: dict[str, Any]) -> dict[str, Any]:
    """How a run says that it is to be sent: private unless it says otherwise, to which branch."""
    private = settings.get("hub_private_repo") is not False
    return {"private": private, "revision": settings.get("hub_revision")}


def send(given: str, hub: str, *, merged: bool = False, public: bool = False) -> str:
    """Send the policy of a run, by its folder or name, or an export of one, by its folder, and
    return the name that it has on the hub.

    Args:
        hub: org/name; "" for the one that the run states.

    Raises:
        Refusal: there is no such run, it has not ended, or as `push`.
    """
    about = record.read(Path(given))
    if about and merged:
        raise Refusal(f"push: {given} is an export, and sent as it is: --merged goes with a run")
    folder = Path(given) if about else run.there(given)
    if of := record.run_of(folder) if about else folder:
        run.check_ended(of)
    else:
        gone = f"the run of this export is not in {about['run']} any more"
        if not (folder / card.CARD).is_file():
            raise Refusal(f"push: {gone}, and no {card.CARD} is in it: write one, or export again")
        print(f"{gone[0].upper()}{gone[1:]}: its card goes as it is")
    settings = output_folder.settings_of(of) if of else {}
    # The name that a run states is that of its own weights.
    name, how = named({} if about else settings, hub), stated(settings)
    how["private"] = how["private"] and not public
    push(folder, name, merged=merged, **how)
    return name


def at_the_end(folder: Path) -> None:
    """Send what a run with `push_to_hub` has made. Whatever the hub says, the run ends well."""
    settings = output_folder.settings_of(folder)
    try:
        push(folder, named(settings, ""), **stated(settings))
    except Refusal as refusal:
        print(refusal)
