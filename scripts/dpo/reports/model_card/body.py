"""What a model's card says beneath its front matter."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo.core.stats import said
from dpo.recipe.text import sections
from dpo.reports import published
from dpo.reports.model_card.metadata import base_of, data_of, judge_of, licence_of_base
from dpo.reports.parts.escape import code, fenced, public, shown, table
from dpo.reports.parts.licences import licence_of
from dpo.reports.parts.verdict import definitions, verdict
from dpo.reports.run_report import tiles
from dpo.runs import output_folder
from dpo.runs.tracking import again, server

SPENT = ("Time", "Peak memory", "Speed")
DPO = """\
@inproceedings{rafailov2023direct,
  title     = {Direct Preference Optimization: Your Language Model is Secretly a Reward Model},
  author    = {Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Manning, Christopher D.
               and Ermon, Stefano and Finn, Chelsea},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {36},
  year      = {2023},
  url       = {https://arxiv.org/abs/2305.18290}
}"""


def body(
    folder: Path,
    report: dict[str, Any],
    settings: dict[str, Any],
    found: list[dict[str, Any]],
    asked: list[dict[str, Any]],
    name: str,
    adapter: bool,
    exported: dict[str, Any],
) -> str:
    """The card without its front matter, in Markdown in which no text of others is markup.

    Args:
        settings: what the run states.
        found: the evaluations that there are of it.
        asked: the published suites that it was asked.
        name: that of the hub, or empty.
        adapter: the weights that the card lies beside are an adapter's.
        exported: what these weights are, of an export; empty for the run's own.
    """
    title = title_of(folder, name)
    conversational = report["data"].get("conversational", True)  # not in older runs' reports
    chats = conversational and (folder / "chat_template.jinja").is_file()
    parts = [
        f"# {title if re.fullmatch('[a-zA-Z0-9.-]+', title) else code(title)}",
        _summary(report, settings, adapter),
        *([_these_weights(exported)] if exported else []),
        "## Use\n\n" + _use(name, settings, adapter, chats, exported),
        "## Evaluation\n\n" + _measured(report, found, asked),
        "## Limits\n\n" + _limits(report),
        "## Training\n\n" + _training(folder, report, settings),
        "## Licence\n\n" + _terms(report["model"], data_of(settings)),
        "## Citation\n\nTrained by direct preference optimisation "
        "([arXiv 2305.18290](https://arxiv.org/abs/2305.18290)) with "
        f"[TRL](https://github.com/huggingface/trl).\n\n```bibtex\n{DPO}\n```",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def title_of(folder: Path, name: str) -> str:
    return shown(name.rpartition("/")[2] or folder.resolve().name)


def _summary(report: dict[str, Any], settings: dict[str, Any], adapter: bool) -> str:
    data = ", ".join(code(public(each)) for each in data_of(settings))
    what = "An adapter (LoRA) for" if adapter else "A fine-tuned version of"
    base = base_of(report["model"])
    named = f"[{base}](https://huggingface.co/{base})" if base == report["model"] else ""
    named = named or code(public(report["model"])) + (f" (from {code(base)})" if base else "")
    _, sentences = verdict(report)
    return (
        f"{what} {named}, aligned by direct preference optimisation (DPO) on {data}: "
        f"{report['data']['rows']['train']:,} rows, {report['steps']:,} steps of "
        f"{report['global_batch']} pairs, loss {code(' + '.join(report['loss_type']))}, "
        f"β = {report['beta']:g}.\n\n" + " ".join(shown(sentence) for sentence in sentences)
    )


def _these_weights(exported: dict[str, Any]) -> str:
    """What an export makes of the run's weights, and how near it is."""
    dtype, nats = code(exported["dtype"]), exported["checked"]["nats"]
    of = {
        "full": "all weights",
        "adapter": "the adapter as it was trained",
        "merged": "the adapter added to its base",
        "gguf": "all weights, as one GGUF file",
    }[exported["kind"]]
    how = f"{of}, {dtype}"
    if bits := exported["bits"]:
        how += (
            f" ({bits} bits a weight in linear layers but the head, by bitsandbytes; bfloat16 else)"
        )
    off, moved = (nats[key]["answer"] for key in ("export_from_policy", "policy_from_reference"))
    return (
        f"These weights: {how}. On {exported['checked']['answers']} answers of the data they are "
        f"{nats['export_from_policy']['token']:.2g} nats a token from the policy as it was "
        f"trained; {off:.2g} an answer, where training moved it by {moved:.2g}. What is measured "
        "below is of the policy as it was trained."
    )


def _use(
    name: str, settings: dict[str, Any], adapter: bool, chats: bool, exported: dict[str, Any]
) -> str:
    if exported.get("kind") == "gguf":
        return (
            f"With llama.cpp, once the file is here:\n\n{fenced('llama-server -m *.gguf', 'bash')}"
        )
    trusted = ", trust_remote_code=True" if settings.get("trust_remote_code") else ""
    place = name or "."
    first = "" if name else "From within this folder"
    beside = "peft" if adapter else "bitsandbytes" if exported.get("bits") else ""
    needs = "With transformers" + (f" and {beside}" if beside else "")
    chat = (
        'chat = [{"role": "user", "content": "How was the food?"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n)'
    )
    if not chats:
        chat = 'inputs = tokenizer("How was the food?", return_tensors="pt")'
    python = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{place}"{trusted})\n'
        f'model = AutoModelForCausalLM.from_pretrained("{place}", dtype="auto"{trusted})\n'
        f"{chat}\nanswer = model.generate(**inputs, max_new_tokens=100)\n"
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], '
        "skip_special_tokens=True))"
    )
    begin = f"{first}, with{needs[4:]}" if first else needs
    return f"{begin}:\n\n{fenced(python, 'python')}"


def _measured(report: dict[str, Any], found: list[dict], asked: list[dict]) -> str:
    """What was measured when training had ended, and by each `make evaluate` since."""
    rows = [[n, code(v), code(note)] for n, v, note in tiles(report) if n not in SPENT]
    parts = ["The run measured nothing: it had no held-out pairs."]
    if rows:
        first = "When training had ended, on pairs and prompts that were held out:"
        parts = [first, table([["", "reference → policy", "measured on"], *rows]).strip()]
    parts += [f"{name}: {what}" for name, what in definitions(report).items()]
    for each in found:
        parts.append(f"Against {code(public(each['against']))}, on {_prompts(each)}:")
        parts.append(table([["", "95% interval in brackets"], *_rows(each)]).strip())
    for each in asked:
        title, judge = published.TITLES[each["suite"]], code(public(each["judge"]["model"]))
        parts.append(f"{title}, judged by {judge}, with 95% intervals:")
        sides = [code(public(each["against"])), "policy"]
        parts.append(table([["", *sides], *_scores(each)]).strip())
        parts += [shown(f"{line}.") for line in published.caveats(each)]
    return "\n\n".join(parts)


def _prompts(found: dict[str, Any]) -> str:
    prompts = found["prompts"]
    if not prompts:
        return "held-out pairs"
    return f"{prompts['count']} prompts of {code(public(prompts['source']))}"


def _rows(found: dict[str, Any]) -> Iterator[list[str]]:
    judge, pairs, answers = (found[key] or {} for key in ("judge", "pairs", "answers"))
    if judge:
        yield [f"win rate by {code(judge_of(found))}", said(judge["win_rate"])]
    if controlled := judge.get("length_controlled_win_rate"):
        yield ["the same, length-controlled", said(controlled)]
    if pairs:
        yield ["preference accuracy", said(pairs["accuracy"])]
    if answers.get("mean_tokens"):
        yield ["tokens of an answer", said(answers["mean_tokens"]["policy"], ".1f")]
    for task, metrics in (found.get("suite") or {}).items():
        for metric, of in metrics.items():
            reached = f"{of['against']:.4f} → {of['policy']:.4f}"
            yield [code(f"{task}, {metric}"), reached]


def _scores(found: dict[str, Any]) -> Iterator[list[str]]:
    form, sides = ".2f" if found["suite"] == "mt_bench" else ".1f", ("against", "policy")
    for name, part in published.scores(found):
        yield [shown(name), *(said(part[side], form) for side in sides)]


def _limits(report: dict[str, Any]) -> str:
    """What a reader should know before this is relied on."""
    lines = [
        "What was not measured above is not known. Nothing here tests truth, safety or bias.",
        "Intervals are over held-out prompts or pairs, of one run: another seed may differ more.",
        "Preferences say what their labellers, or a rule, preferred; where labels are noisy the "
        "policy has learned of the noise as well.",
    ]
    lines += [
        f"While it trained, at step {alert['step']}: {shown(alert['says'])}"
        for alert in report["alerts"]
    ]
    return "\n".join(f"- {line}" for line in lines)


def _public(value: Any) -> Any:
    """A setting without paths of this machine, however deep they stand."""
    if isinstance(value, dict):
        return {key: _public(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_public(each) for each in value]
    return public(value) if isinstance(value, str) else value


def _training(folder: Path, report: dict[str, Any], settings: dict[str, Any]) -> str:
    rows = [["", ""]]
    how = (output_folder.measurements(folder) or {}).get("how", {})
    count = how.get("processes", 1)
    machine = report["machine"] + (f", {count} processes" if count > 1 else "")
    rows.append(["hardware", code(machine)])
    rows += [[name.lower(), code(f"{value}; {note}")] for name, value, note in tiles(report)
             if name in SPENT]  # fmt: skip
    rows.append(["finished", code(report["finished"])])
    rows.append(["versions", code(", ".join(f"{k} {v}" for k, v in report["versions"].items()))])
    if report.get("commit"):
        rows.append(["commit of the recipes", code(report["commit"])])
    aside = report["data"]["set_aside"]["train"]
    if aside:
        why = ", ".join(f"{count}: {reason}" for reason, count in aside.items())
        rows.append(["rows set aside", code(why)])
    if path := again.path_of(folder):
        base = server.base_url().replace("https://api.wandb.ai", "https://wandb.ai")
        entity, project, run = path.split("/")
        rows.append(["curves", f"[Weights & Biases]({base}/{entity}/{project}/runs/{run})"])
    recipe = sections(_public(settings), [*settings]).strip()
    return (
        f"The recipe {code(report['recipe'])}; what it does not state has TRL's default, or that "
        f"of these recipes.\n\n{fenced(recipe, 'yaml')}\n\n{table(rows)}"
    )


def _terms(model: str, data: list[str]) -> str:
    """Which terms are known to apply: what the cards of model and data say on this machine."""
    lines = [("the model that it was trained from", model, licence_of_base(model))]
    lines += [("the preferences", each, licence_of(each, "dataset")) for each in data]
    return "\n".join(
        f"- {what}, {code(public(name))}: "
        + (code(" ".join(licence.values())) if licence else "not known here")
        for what, name, licence in lines
    ) + (
        "\n\n`license` above, where it is stated, is what the card of the former says. It is no "
        "legal advice: look at each before this is shared."
    )
