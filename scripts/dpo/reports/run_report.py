"""What a run ends with: report.json, a picture, and one self-contained HTML page."""

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import TrainerState

from dpo.core.files import write_json, write_whole
from dpo.core.machine import commit, device_name, now, peak_memory_gb, versions
from dpo.core.terminal import visible
from dpo.data.quarantine import Linted, said_of_lengths
from dpo.data.sources.load import Rows
from dpo.models.chat_template import prompt_kind
from dpo.recipe.arguments import resolved
from dpo.recipe.parse import Recipe
from dpo.reports.html import png, render
from dpo.reports.parts import curves as explored
from dpo.reports.parts.run_panels import panels
from dpo.reports.parts.run_picture import draw, histogram, sides
from dpo.reports.parts.verdict import definitions, verdict
from dpo.runs import metrics, output_folder
from dpo.runs.output_folder import REPORT


def curves(log_history: list[dict]) -> dict[str, list[dict]]:
    """What TRL logs, as one list of points for the training batches and one for the held-out
    pairs."""
    names = {"loss": "loss", "margin": "rewards/margins", "accuracy": "rewards/accuracies"}
    names |= {"chosen": "rewards/chosen", "rejected": "rewards/rejected"}
    points = {"train": [], "held_out": []}
    for entry in log_history:
        prefix = "eval_" if "eval_loss" in entry else ""
        if f"{prefix}loss" in entry and f"{prefix}rewards/margins" in entry:
            point = {"step": entry["step"], **{k: entry[prefix + v] for k, v in names.items()}}
            points["held_out" if prefix else "train"].append(point)
    return points


def of_pairs(count: int, found: dict) -> str:
    """How many pairs something was measured on, of how many prompts if there are fewer, and how
    many of them are ties: `124 held-out pairs, 3 of them ties`."""
    prompts, ties = found.get("prompts", count), found.get("ties", 0)
    said = f" of {prompts} prompt{'s' * (prompts > 1)}" if prompts < count else ""
    said += f", {'all' if ties == count else ties} of them ties" if ties else ""
    return f"{count} held-out pairs{said}"


def tiles(report: dict) -> list[tuple[str, str, str]]:
    """The results as (name, value, what it is measured on); the page and the terminal show them."""
    rows, judge, answers = [], report["judge"], report["answers"]
    if judge:
        prompts, reward = report["prompts"], judge["reward"]
        rise, count = reward["difference"], prompts["count"] * prompts["samples"]
        note = f"difference {rise['mean']:+.3f}, 95% interval {rise['low']:+.3f} to "
        note += f"{rise['high']:+.3f}; {count} answers to {prompts['count']} held-out prompts"
        value = f"{reward['against']['mean']:+.2f} → {reward['policy']['mean']:+.2f}"
        rows.append(("True reward", value, note))
    if pairs := report["pairs"]:
        accuracy, ceiling = pairs["accuracy"], pairs["ceiling"]
        note = f"95% interval {accuracy['low']:.2f} to {accuracy['high']:.2f}; "
        note += f"label noise leaves {ceiling:.2f}; " if ceiling is not None else ""
        note += of_pairs(pairs["count"], pairs)
        rows.append(("Preference accuracy", f"0.50 → {accuracy['mean']:.2f}", note))
    if answers:
        length, nats = answers["mean_tokens"], answers["kl"]["nats_per_sequence"]["mean"]
        note = "a sequence, on the policy's own answers"
        rows.append(("KL from the reference", f"{nats:.2f} nats", note))
        value = f"{length['against']['mean']:.1f} → {length['policy']['mean']:.1f}"
        rows.append(("Answer length", value, "tokens, mean, the end token counted"))
        if topic := answers.get("on_topic"):
            value = f"{topic['against']['mean']:.0%} → {topic['policy']['mean']:.0%}"
            rows.append(("On topic", value, named(topic)))
    train, evaluate = (report["seconds"][part] for part in ("train", "evaluate"))
    note = f"training {train:.0f} s, evaluation {evaluate:.0f} s; "
    note += f"peak memory {report['peak_memory_gb']:.1f} GB; {report['machine']}"
    rows.append(("Time", f"{(train + evaluate) / 60:.1f} min", note))
    found = report.get("measured") or {}  # reports of older runs have none
    if peak := found.get("peak_gb"):
        when = "" if peak["of"] == "resident" else ", until training had ended"
        note = f"{peak['of']}{when}; {planned(peak, '.2f', ' GB')}"
        rows.append(("Peak memory", f"{peak['measured']:.2f} GB", note))
    if speed := found.get("pairs_per_second"):
        note = f"{speed['of']}, the first two left out; {planned(speed, '.3g', ' pairs/s')}"
        rows.append(("Speed", f"{speed['measured']:.3g} pairs/s", note))
    return rows


def planned(found: dict[str, Any], form: str, unit: str) -> str:
    """What the plan said of a measurement, and by how much that is above it."""
    if found["planned"] is None:
        return "no plan"
    return f"the plan says {found['planned']:{form}}{unit}, {found['error']:+.0%}"


def named(topic: dict) -> str:
    """What stands beside the share of answers on topic."""
    mean, low, high = (100 * topic["difference"][key] for key in ("mean", "low", "high"))
    return (
        f"answers with a word of what was asked about; difference {mean:+.0f} points, 95% interval "
        f"{low:+.0f} to {high:+.0f}"
    )


def summary(report: dict) -> str:
    data = report["data"]
    rows, aside = data["rows"]["train"], data["set_aside"]["train"]
    why = f", {sum(aside.values())} set aside: {', '.join(aside)}" if aside else ""
    if lengths := data.get("lengths", {}).get("train"):
        why += f"; {said_of_lengths(lengths)}"
    return (
        f"{report['model']} aligned by DPO on {data['name']} ({rows} rows{why}): "
        f"{report['steps']} steps of {report['global_batch']} pairs, β = {report['beta']:g}. "
        f"{report['finished']}"
    )


def compared(report: dict) -> str | None:
    """What the policy is compared with, where that is not what it started from."""
    if not (own := report.get("reference")):
        return None
    return (
        f"The policy started from {report['model']}; its reference is {own}. Arrows, rewards and "
        "KL go from the reference to the policy: what earlier rounds have brought is in them."
    )


def along(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """What the policy said at each evaluation, by prompt and way of decoding."""
    by_prompt: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        by_prompt.setdefault((row["prompt"], row["decoding"]), []).append(row)
    return by_prompt


def page(report: dict, entries: list[dict]) -> str:
    """The report as one page, with the curves of a run's lines of metrics.jsonl."""
    code = {"commit": report["commit"]} if report.get("commit") else {}
    tone, said = verdict(report)
    along_it = panels(entries, report)
    return render(
        "run",
        explored.SCRIPTS if along_it else (),
        title=report["recipe"],
        summary=summary(report),
        tone=tone,
        sentences=said,
        definitions=definitions(report),
        notes=report["data"].get("notes", []),  # reports of older runs have none
        compared=compared(report),
        sides=sides(report),
        alerts=report["alerts"],
        tiles=tiles(report),
        histogram=png(histogram(report)) if report["judge"] else None,
        data=explored.data_of(along_it) if along_it else None,
        drawn=png(draw(report, known=False)),
        samples=report["samples"],
        prompts=report["prompts"],
        along=along(report.get("completions", [])),
        resolved=report.get("resolved", {}),
        stated=report["settings"],
        surroundings={**report["versions"], "machine": report["machine"], **code},
        commands=commands(report),
    )


def commands(report: dict) -> dict[str, str]:
    """What to do next, each with its command."""
    folder = shlex.quote(report.get("policy") or "")
    command = f"make evaluate RUN={folder}{_prompts(report)}"
    asked = {"Hold its answers against the reference's": command}
    if not report["judge"]:
        asked = {"Have a judge say who wins": f"{command} JUDGE=hand"}
    name = shlex.quote(report["recipe"])
    sweep = f"make sweep RECIPE={name} SWEEP=seed=1,2,3"
    return {
        **asked,
        "Set it beside other runs of the recipe": f"make compare RECIPE={name}",
        "See by how much another seed of the recipe as it stands differs": sweep,
        "Watch it beside all others": "make dashboard",
    }


def _prompts(report: dict) -> str:
    """What `make evaluate` has to be told where a run has no held-out prompts."""
    return "" if report["pairs"] else " PROMPTS=prompts.jsonl"


def write(report: dict, folder: Path) -> list[Path]:
    """Write report.png, report.html and, last, report.json: it marks the run as finished."""
    write_whole(folder / "report.png", png(draw(report)))
    write_whole(folder / "report.html", page(report, metrics.read(folder)))
    write_json(folder / REPORT, report)
    return [folder / "report.html", folder / REPORT]


def about(
    recipe: Recipe,
    rows: tuple[list[Rows], list[Rows]],
    data: dict[str, Linted],
    trained: TrainerState,
    alerts: list[dict[str, Any]],
) -> dict[str, Any]:
    """What a report says of a training: of what, on what, how it went, and by which software."""
    return {
        "recipe": recipe.name,
        "model": recipe.model.model_name_or_path,
        "reference": recipe.run.ref_model_name_or_path,  # None: what the policy started from
        "data": {
            "name": ", ".join(dict.fromkeys(source.name for source in rows[0])),
            "rows": {split: linted.rows for split, linted in data.items()},
            "set_aside": {split: linted.set_aside for split, linted in data.items()},
            "left_out": {split: linted.left_out for split, linted in data.items()},
            "lengths": {split: linted.lengths() for split, linted in data.items()},
            "notes": data["train"].notes,
            "conversational": prompt_kind(data["train"].pairs.features) is list,
        },
        "global_batch": recipe.global_batch,
        "steps": trained.global_step,
        "beta": recipe.training.beta,
        "loss_type": recipe.training.loss_type,
        "curves": curves(metrics.read(Path(recipe.training.output_dir)) or trained.log_history),
        "alerts": alerts,
        "settings": output_folder.settings(recipe),
        "resolved": {
            **resolved(recipe.defaults | recipe.stated | {"bf16": recipe.training.bf16}),
            "global_batch": recipe.global_batch,
        },
        "versions": versions(),
        "commit": commit(),
        "machine": device_name(),
        "finished": now(),
    }


def spent(folder: Path, **seconds: float) -> dict[str, Any]:
    """What a report says at the end: time and memory, and the answers that the run has shown."""
    completions = metrics.completions(folder)
    return {"seconds": seconds, "peak_memory_gb": peak_memory_gb(), "completions": completions}


def show(results: dict, written: list[Path], policies: list[Path], kept: str) -> None:
    """The results in the terminal, where they and the policies lie, what is kept and comes next."""
    table = Table(title=results["recipe"], title_justify="left", show_header=False)
    for row in tiles(results):
        table.add_row(*row)
    Console().print(table)
    print(visible(" ".join(verdict(results)[1])))
    if said := compared(results):
        print(visible(said))
    for note in results["data"]["notes"]:
        print(f"Data: {visible(note)}")
    print(f"Policy: {', '.join(map(str, policies))}\nReport: {', '.join(map(str, written))}")
    print(kept)
    print(f"Next: make evaluate RUN={shlex.quote(str(policies[0]))}{_prompts(results)}")
