"""Which terms apply to pairs: those of the model, the prompts and the judge, as far as their own
cards say them on this machine."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load, try_to_load_from_cache

from dpo.reports.parts.escape import code, public

KEYS = ("license", "license_name", "license_link")


def licence_of(name: str, repo_type: str = "model") -> dict[str, str]:
    """What the card of a model or data set says of its licence: KEYS of its front matter. Of a
    folder its README.md, of a name of the hub the card if it lies in the hub's cache; the hub is
    not asked. Empty where nothing is known."""
    card: Any = Path(name) / "README.md"
    try:
        if not Path(name).exists():
            card = try_to_load_from_cache(name, "README.md", repo_type=repo_type)
        found: dict[str, Any] = (isinstance(card, str | Path) and metadata_load(card)) or {}
    except (OSError, ValueError, yaml.YAMLError):  # no card, or none that can be read
        return {}
    texts = {key: found[key] for key in KEYS if isinstance(found.get(key), str)}
    return texts if "license" in texts else {}


def of_pairs(models: list[str], prompts: str) -> dict[str, str]:
    """The licence that the card of the pairs states: that of all models, if it is one and the card
    of the prompts names no other. Empty where that is not so."""
    found = [licence_of(model) for model in models]
    if asked := licence_of(prompts, "dataset"):
        found.append(asked)
    return found[0] if all(each == found[0] for each in found) else {}


def terms(made: dict[str, Any]) -> str:
    """What of the terms of the model, the prompts and the judge is known, and what is not."""
    models = [model["name"] for model in made["models"]]
    judge, prompts = made["judge"], made["prompts"]["source"]
    found = [_term("answers of", model, licence_of(model)) for model in models]
    found.append(_term("prompts from", prompts, licence_of(prompts, "dataset")))
    name = judge["name"]
    if judge["kind"] == "model":
        found.append(_term("scores of", name, licence_of(name)))
    elif judge["kind"] == "endpoint":
        found.append(
            f"- verdicts of {code(public(name))}: the terms of that service and of the model "
            "behind it; some do not allow training on what they say. Not looked up here."
        )
    stated = of_pairs(models, prompts)
    says = "No `license` is stated above: not all of these are known, or they differ."
    if stated:
        says = f"`license` above is what the cards of the models say: {code(stated['license'])}."
    return "\n".join(found) + (
        f"\n\n{says} It is no legal advice: some licences ask for more of who trains on a model's "
        "answers, such as a name or a notice. Look at each before this is shared."
    )


def _term(what: str, name: str, licence: dict[str, str]) -> str:
    said = code(" ".join(licence.values())) if licence else "not known here"
    return f"- {what} {code(public(name))}: {said}"
