"""The card of a data set of pairs: what they were made of and how, counts, lengths, margins, label
noise, examples and terms. Valid for the hub, with front matter that loads train and test by
default."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import DatasetCard, DatasetCardData

from dpo.core.files import write_whole
from dpo.pairs import asked, picking
from dpo.pairs.folder import ABOUT, CANDIDATES, NO_ANSWER, SPLITS
from dpo.pairs.parts.figures import Figures, against, draw_margins, expected_against, read
from dpo.pairs.scores import LADDER
from dpo.reports.html import png
from dpo.reports.parts import licences
from dpo.reports.parts.escape import code, fenced, public, shown, table, wrapped

CARD, PICTURE = "README.md", "margins.png"
OF_PROMPTS = ("split", "skip", "first", "test_size", "split_seed", "chat_template_kwargs")
SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M"}


def write(folder: Path) -> None:
    """Write README.md and margins.png into a folder that `make pairs` has filled: what pairs.json
    states and candidates.jsonl holds. The same bytes for the same folder; without scores there is
    no picture."""
    made = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    found = read(folder / CANDIDATES, scored=made["judge"]["kind"] != LADDER)
    if found.scored:
        drawn = draw_margins(found, public(made["judge"]["name"]))
        write_whole(folder / PICTURE, png(drawn))
    else:
        (folder / PICTURE).unlink(missing_ok=True)
    name = folder.resolve().name
    card = f"---\n{front_matter(name, made).to_yaml()}\n---\n\n{body(name, made, found)}"
    write_whole(folder / CARD, str(DatasetCard(card)))


def front_matter(name: str, made: dict[str, Any]) -> DatasetCardData:
    """What the hub and `datasets` read: the splits, and the candidates as another configuration."""
    pairs = made["pairs"]
    total = sum(pairs.values())
    size = next((words for below, words in SIZES.items() if total < below), "1M<n<10M")
    splits = [{"split": split, "path": f"{split}.jsonl"} for split in SPLITS if pairs[split]]
    models = [model["name"] for model in made["models"]]
    about: dict[str, Any] = dict(licences.of_pairs(models, made["prompts"]["source"]))
    about["configs"] = [
        {"config_name": "default", "data_files": splits, "default": True},
        {"config_name": "candidates", "data_files": CANDIDATES},
    ]
    return DatasetCardData(
        pretty_name=shown(name),
        tags=["dpo", "preference", "rlhf", "synthetic"],
        task_categories=["text-generation"],
        size_categories=size,
        **about,
    )


def body(name: str, made: dict[str, Any], found: Figures) -> str:
    models = ", ".join(code(public(model["name"])) for model in made["models"])
    judge, pairs = made["judge"], made["pairs"]
    total = sum(pairs.values())
    ladder = judge["kind"] == LADDER
    how = "the larger model's answer chosen, seen by no judge" if ladder else ""
    how = how or f"scored by {code(public(judge['name']))}, paired by {code(made['pick']['how'])}"
    parts = [
        f"# Preference pairs: {code(public(name))}",
        f"{total:,} pairs for DPO, in TRL's conversational format: prompts from "
        f"{code(public(made['prompts']['source']))}, answered by {models}, {how}.",
        fenced(command(name, made)),
        "Columns: `prompt`, `chosen` and `rejected` as messages, and the score of each answer. "
        f"`{CANDIDATES}` (configuration `candidates`) has every answer with its score and why it "
        f"was left out, `{ABOUT}` all settings and counts.",
        "## How they were made\n\n" + settings(made),
        "## Counts\n\n" + counts(made),
        "## Lengths and margins\n\n" + lengths(found),
        "## Label noise\n\n" + noise(made, found),
        "## Examples\n\n" + examples(found),
        "## Licence\n\n" + licences.terms(made),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def command(name: str, made: dict[str, Any]) -> str:
    """The `make pairs` that makes these pairs: all that decides them, stated."""
    sampling, pick, judge, prompts = (made[k] for k in ("sampling", "pick", "judge", "prompts"))
    given = {"PROMPTS": public(prompts["source"])}
    given["MODEL"] = " ".join(public(model["name"]) for model in made["models"])
    if judge["kind"] != LADDER:
        given["JUDGE"] = public(judge["name"])
    given |= {"SAMPLES": sampling["samples"], "PICK": pick["how"], "TO": public(name)}
    dtypes = {model["dtype"] for model in made["models"]}
    parts = {"judge_model": judge.get("model"), "seed": sampling["seeds"]}
    parts |= {("prompts_" * (key == "split")) + key: prompts.get(key) for key in OF_PROMPTS}
    parts |= _without(sampling, "samples", "seeds") | _without(_picking(pick), "how")
    parts |= {"dtype": dtypes.pop() if len(dtypes) == 1 else None}
    flags: list[str] = []
    for key, value in parts.items():
        if value not in (None, ""):
            values = value if isinstance(value, list) else [value]
            texts = (json.dumps(v) if isinstance(v, dict) else str(v) for v in values)
            flags += [f"--{key}", *texts]
    given["ARGS"] = shlex.join(flags)
    words = [f"{k}={shlex.quote(str(v).replace('$', '$$'))}" for k, v in given.items()]
    return " \\\n  ".join(["make pairs", *words])


def _without(section: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in keys}


def _picking(pick: dict[str, Any]) -> dict[str, Any]:
    """How pairs were picked, without the temperature of labels where none was drawn."""
    return pick if pick["how"] == picking.DRAWN else _without(pick, "label_temperature")


def settings(made: dict[str, Any]) -> str:
    rows = [["", ""]]
    for model in made["models"]:
        size = f"{model['parameters']:,} parameters, " if model.get("parameters") else ""
        rows.append(["model", f"{code(public(model['name']))}: {size}{model['dtype']}"])
    prompts = {key: made["prompts"].get(key) for key in OF_PROMPTS}
    sections = {"prompts": prompts, "sampling": made["sampling"], "judge": made["judge"]}
    for section, of in (sections | {"pick": _picking(made["pick"])}).items():
        for key, value in of.items():
            if value not in (None, ""):
                text = public(value) if isinstance(value, str) else json.dumps(value)
                rows.append([f"{section}: {key.replace('_', ' ')}", code(text.strip('"'))])
    if made["cost"]:
        rows.append(["cost of the judge", code(json.dumps(made["cost"]))])
    return table(rows)


def counts(made: dict[str, Any]) -> str:
    prompts, answers = made["prompts"], made["answers"]
    rows = [["", "count"], ["prompts found", f"{prompts['count']:,}"]]
    rows += _reasons("prompts left out", prompts["left_out"], asked.reasons)
    rows += [["prompts asked", f"{prompts['asked']:,}"], ["answers", f"{answers['count']:,}"]]
    rows += _reasons("answers left out", answers["left_out"], NO_ANSWER.get)
    rows += _reasons("prompts without a pair", made["without_pair"], picking.REASONS.get)
    rows += [[f"pairs, {name}", f"{made['pairs'][name]:,}"] for name in SPLITS]
    return table(rows)


def _reasons(what: str, by: dict[str, int], words: Callable[[str], str | None]) -> list[list[str]]:
    """Rows that count reasons: ours in words; others, such as what a judge says, as they are."""
    said = {why: words(why) for why in by}
    said = {why: text if text and text != why else code(why) for why, text in said.items()}
    return [[f"{what}: {said[why]}", f"{count:,}"] for why, count in by.items()]


def lengths(found: Figures) -> str:
    """Quantiles of lengths and margins over all pairs, and how often chosen is the longer."""
    if not len(found):
        return "There is no pair."
    prompt = {"prompt, tokens": found.prompt}
    if not np.isfinite(found.prompt).all():
        prompt = {"prompt, characters": found.characters}
    columns = {**prompt, "chosen, tokens": found.chosen, "rejected, tokens": found.rejected}
    rows = [["", "mean", "5%", "median", "95%", "most"]]
    for name, values in columns.items():
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        rows.append([name, f"{values.mean():,.1f}"])
        rows[-1] += [f"{value:,.0f}" for value in (low, middle, high, values.max())]
    picture = "There are no scores, and so no margins."
    if found.scored:
        low, middle, high = np.quantile(found.margin, [0.05, 0.5, 0.95])
        numbers = (found.margin.mean(), low, middle, high, found.margin.max())
        rows.append(["margin, score", *(f"{number:.3g}" for number in numbers)])
        picture = f"![Margins of the pairs of each split, as a histogram]({PICTURE})"
    shares = [["chosen is", *(name for name in SPLITS if found.of(name).any())]]
    for name, than in {"the longer": 1, "the shorter": -1, "as long": 0}.items():
        signs = np.sign(found.chosen - found.rejected)
        shares.append(
            [name, *(f"{(signs[found.of(s)] == than).mean():.1%}" for s in shares[0][1:])]
        )
    return "\n\n".join([table(rows).strip(), table(shares).strip(), picture])


def noise(made: dict[str, Any], found: Figures) -> str:
    """What is known of labels that people, or the reward itself, would not give."""
    judge, pick = made["judge"], made["pick"]
    if judge["kind"] == LADDER:
        return (
            "Not known. No judge has seen the answers: the larger model's is chosen, also where it "
            "is the worse."
        )
    if pick["how"] == picking.DRAWN and found.scored:
        return _drawn(pick["label_temperature"], found)
    if judge["kind"] == "endpoint":
        if made["orders_disagree"] is None:
            return "Not measured: the judge was not asked with the places of the answers swapped."
        lost = ", ".join(f"{n} times {why}" for why, n in made["undecided"].items())
        lost = lost and f" Where the judge gave no verdict ({lost}), the score goes by the others."
        return (
            f"In {made['orders_disagree']:.1%} of the comparisons the verdict changed with the "
            "places of the two answers: there it was the place that the judge preferred. How often "
            f"people would agree with it where it held is not known.{lost}"
        )
    says = {
        "reward": "Labels follow the known reward without noise: where it is the true reward, "
        "preference accuracy can reach 1.",
        "hand": "One person gave the labels: how often another would agree is not known.",
        "rule": "Labels follow the rule without noise. Whether people would agree with the rule "
        "is not known.",
        "model": "Labels follow the reward model, which gives an answer the same score each time: "
        "a second pass would say nothing. How often people would agree with it is not known; its "
        "accuracy on a benchmark of human preferences is the figure to look for.",
    }
    return says[judge["kind"]]


def _drawn(temperature: float, found: Figures) -> str:
    rows = [["", *(name for name in SPLITS if found.of(name).any())]]
    parts = [found.margin[found.of(name)] for name in rows[0][1:]]
    shares = [against(margins) / len(margins) for margins in parts]
    expected = [expected_against(margins, temperature) for margins in parts]
    rows.append(["labels against the score", *(f"{share:.1%}" for share in shares)])
    rows.append(["by expectation", *(f"{share:.1%}" for share in expected)])
    rows.append(["ceiling of preference accuracy", *(f"{1 - share:.1%}" for share in shares)])
    rows.append(["by expectation", *(f"{1 - share:.1%}" for share in expected)])
    return (
        f"Labels are drawn from Bradley-Terry, σ((score of a - score of b) / {temperature:g}), so "
        "that some go against the score. No evaluation that knows only the labels can agree with "
        f"more of them than the score itself does.\n\n{table(rows)}"
    )


def examples(found: Figures) -> str:
    parts = ["Drawn at random; long texts are cut."] if found.examples else ["There is no pair."]
    for example in found.examples:
        texts = {"prompt": example["prompt"]}
        for side in ("chosen", "rejected"):
            score = example[side]["score"]
            texts[side + ("" if score is None else f", {score:.4g}")] = example[side]["text"]
        parts.append(fenced("\n\n".join(f"[{k}]\n{wrapped(text)}" for k, text in texts.items())))
    return "\n\n".join(parts)
