"""The front matter of a model's card, which the hub reads: base model, data, licence, results."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from dpo.recipe.hub_names import looks_local
from dpo.reports import published, results
from dpo.reports.parts.escape import public, shown
from dpo.reports.parts.licences import licence_of


def front_matter(
    report: dict[str, Any],
    settings: dict,
    found: list[dict],
    asked: list[dict],
    title: str,
    adapter: bool,
    exported: dict[str, Any],
    name: str,
) -> ModelCardData:
    """What the hub reads: base model, data and licence where they are known, and the results: of
    the run, of what was `found` of it since, and of published suites that were `asked`.

    Args:
        exported: what an export is that the card is of; empty for the run's own weights.
        name: that of the hub, or empty.
    """
    about: dict[str, Any] = dict(licence_of_base(report["model"]))
    about |= descent(report["model"], settings, adapter, exported, name)
    if data := [each for each in data_of(settings) if on_hub(each)]:
        about["datasets"] = data
    each_of = (*map(_results, [report, *found]), *map(_published, asked))
    if reached := [*chain(*each_of)]:
        about |= {"model_name": shown(title), "eval_results": reached}
    tags = ["dpo", "trl", "preference-optimization"]
    if bits := exported.get("bits"):
        tags += ["bitsandbytes", f"{bits}-bit"]
    if exported.get("kind") == "gguf":
        tags.append("gguf")  # no library's: several read it
    else:
        about["library_name"] = "peft" if adapter else "transformers"
    return ModelCardData(pipeline_tag="text-generation", tags=tags, **about)


def descent(
    model: str, settings: dict[str, Any], adapter: bool, exported: dict[str, Any], name: str
) -> dict[str, str]:
    """Which model of the hub it comes from, and how, as `base_model_relation` has it. A quantised
    export is no quantised base: it is one of the run's own weights, where the run sends those."""
    whole = settings.get("hub_model_id") if settings.get("push_to_hub") else None
    quantised = exported.get("bits") or exported.get("kind") == "gguf"
    if whole and quantised and whole != name:
        return {"base_model": whole, "base_model_relation": "quantized"}
    base = base_of(model)
    relation = "adapter" if adapter else "finetune"
    return {"base_model": base, "base_model_relation": relation} if base else {}


def on_hub(name: str) -> bool:
    """Whether a name can be one of the hub, and is no folder here."""
    with suppress(HFValidationError):
        validate_repo_id(name)
        return not looks_local(name) and not Path(name).exists()
    return False


def base_of(model: str) -> str | None:
    """The hub's name of a model: its own, or what the card in its folder says it comes from."""
    if on_hub(model):
        return model
    with suppress(OSError, ValueError):
        base = (metadata_load(Path(model) / "README.md") or {}).get("base_model")
        return base if isinstance(base, str) and on_hub(base) else None
    return None


def licence_of_base(model: str) -> dict[str, str]:
    """The licence of a model as its own card has it, or that of the model that it comes from."""
    base = base_of(model)
    return licence_of(model) or (licence_of(base) if base else {})


def data_of(settings: dict[str, Any]) -> list[str]:
    """The data sets of a run, by their names or paths."""
    several = [each["path"] for each in settings.get("datasets") or ()]
    return [*dict.fromkeys(map(str, several or filter(None, [settings.get("dataset_name")])))]


def evaluations(folder: Path) -> Iterator[dict[str, Any]]:
    """What `make evaluate` has found of the policy; not of its checkpoints."""
    for path in sorted(folder.glob("evaluations/*/evaluation.json")):
        found = results.read(path)
        if not Path(found["policy"]).name.startswith("checkpoint-"):
            yield found


def suites(folder: Path) -> Iterator[dict[str, Any]]:
    """What published suites have come to of the policy, whole; not of its checkpoints."""
    for path in sorted(folder.glob("evaluations/*")):
        for found in published.read(path):
            if published.whole(found) and not Path(found["policy"]).name.startswith("checkpoint-"):
                yield found


def judge_of(found: dict[str, Any]) -> str:
    """Who judged; of an endpoint the model behind it, whose address is of nobody's concern."""
    judge = found["judge"]
    return public(str(judge["about"].get("model") or judge["name"]))


def _results(found: dict[str, Any]) -> Iterator[EvalResult]:
    """The results of a report or an evaluation in the form of the hub's `model-index`. It has no
    field for an interval: that stands in the name."""
    pairs, judge, kl = found["pairs"], found["judge"], (found["answers"] or {}).get("kl")
    source = (found["prompts"] or {}).get("source") or found.get("data", {}).get("name", "")
    measured = []
    if pairs:
        measured.append(("accuracy", "Preference accuracy", pairs["accuracy"]))
    if judge and "win_rate" in judge:
        who, whom = judge_of(found), public(found.get("against") or "the reference")
        measured.append(("win_rate", f"Win rate against {whom} by {who}", judge["win_rate"]))
    if judge and judge.get("reward"):
        rise = judge["reward"]["difference"]
        measured.append(("reward", f"Rise of the reward of {judge_of(found)}", rise))
    if kl:
        measured.append(("kl", "KL from the reference, nats", kl["nats_per_sequence"]))
    for kind, name, value in measured:
        low, high = value.get("low"), value.get("high")
        interval = "" if low is None else f", 95% interval {low:.3f} to {high:.3f}"
        yield EvalResult(
            task_type="text-generation",
            dataset_type="preferences",
            dataset_name=shown(public(source)) or "held-out preferences",
            metric_type=kind,
            metric_name=shown(name) + interval,
            metric_value=round(value["mean"], 4),
        )


def _published(found: dict[str, Any]) -> Iterator[EvalResult]:
    """The scores of a published suite in the same form."""
    for name, part in published.scores(found):
        if of := part["policy"]:
            judge = shown(public(found["judge"]["model"]))
            interval = f"95% interval {of['low']:.2f} to {of['high']:.2f}"
            yield EvalResult(
                task_type="text-generation",
                dataset_type=found["suite"],
                dataset_name=published.TITLES[found["suite"]],
                metric_type="win_rate" if name.endswith("%") else "score",
                metric_name=f"{shown(name)}, by {judge}, {interval}",
                metric_value=round(of["mean"], 4),
            )
