"""The card of pairs: valid for the hub, right in its figures, and not to be broken by any text."""

import json
import shlex
import tracemalloc
from pathlib import Path

import datasets
import pytest
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from dpo.data.dataset import prepare
from dpo.data.sources.load import load, load_rows
from dpo.evaluation import prompts
from dpo.models.chat_template import load_tokenizer
from dpo.pairs import card
from dpo.pairs.parts import figures
from dpo.recipe.parse import parse
from support.pairs import SETTINGS, answer, pairs_folder
from support.tiny import pair

# Margins 1, -0.5, 0.5, 2 in train and 0.5 in test; chosen has 3 words, rejected 1, 3, 4, 1 and 2.
ROWS = [
    ("train", "a bakery", "It was good.", 0.5, "Bad.", -0.5),
    ("train", "a café", "It was fair.", 0.0, "It was good.", 0.5),
    ("train", "a shop", "It was good.", 0.5, "Was it so good?", 0.0),
    ("train", "a bar", "It was great!", 1.0, "Awful!", -1.0),
    ("test", "a zoo", "It was good.", 0.5, "Not good.", 0.0),
]
VADER = {"kind": "reward", "name": "vader"}
DRAWN = {"how": "bradley-terry", "min_margin": 0.0, "label_temperature": 0.5}
HOSTILE = (
    "---\nlicense: mit\n---\n# Head | cell | `code`\n````\n```\n~~~\n<script>alert(1)</script>"
    "<img src=x> ![x](http://a.b/c.png) [x](javascript:alert(1)) http://a.b \x1b[31m\u202eright "
    "{{ 1 }} $x$ & **bold**\r\n| a | b |\n|---|---|\n</code></pre>"
)


def written(folder: Path) -> tuple[str, DatasetCard]:
    card.write(folder)
    return (folder / "README.md").read_text(encoding="utf-8"), DatasetCard.load(folder / card.CARD)


def cells(text: str, name: str) -> list[str]:
    """The cells after the first of the row of a table that begins with this name."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.split("|")[2:-1]]


def test_the_card_is_valid_and_states_what_it_holds(tmp_path):
    text, read = written(pairs_folder(tmp_path / "my-pairs", ROWS))
    assert read.data.pretty_name == "my-pairs" and read.data.license is None
    assert read.data.size_categories == "n<1K" and "preference" in read.data.tags
    default, candidates = read.data.to_dict()["configs"]
    assert [split["split"] for split in default["data_files"]] == ["train", "test"]
    assert candidates["data_files"] == "candidates.jsonl"
    assert cells(text, "prompts found") == ["9"] and cells(text, "prompts asked") == ["8"]
    assert cells(text, "prompts left out: the same prompt is there already") == ["1"]
    assert cells(text, "answers left out: cut at max_new_tokens before it ended") == ["3"]
    assert cells(text, "answers left out: `a word of the judge`") == ["1"]
    assert cells(text, "prompts without a pair: all answers have the same score") == ["2"]
    assert cells(text, "pairs, train") == ["4"] and cells(text, "pairs, test") == ["1"]
    assert cells(text, "model") == ["`org/small`: 1,234 parameters, float32"]
    assert cells(text, "chosen, tokens") == ["3.0", "3", "3", "3", "3"]
    assert cells(text, "rejected, tokens") == ["2.2", "1", "2", "4", "4"]
    assert cells(text, "margin, score") == ["0.7", "-0.3", "0.5", "1.8", "2"]
    assert cells(text, "the longer") == ["50.0%", "100.0%"]
    assert cells(text, "the shorter") == ["25.0%", "0.0%"]
    assert cells(text, "as long") == ["25.0%", "0.0%"]
    assert cells(text, "prompt, characters")[-1] == str(len("How was a bakery?"))
    assert text.count("[chosen, ") == 3 and "Never chosen." not in text
    assert "](margins.png)" in text


def test_the_command_says_again_all_that_decided_the_pairs(tmp_path):
    text, _ = written(pairs_folder(tmp_path / "my-pairs", ROWS))
    command = text.partition("```text\n")[2].partition("\n```")[0]
    _, _, *words = shlex.split(command.replace("\\\n", ""))
    given = dict(word.split("=", 1) for word in words)
    arguments = shlex.split(given.pop("ARGS"))
    assert given == {
        "PROMPTS": "prompts.txt",
        "MODEL": "org/small",
        "JUDGE": "vader",
        "SAMPLES": "2",
        "PICK": "best-worst",
        "TO": "my-pairs",
    }
    expected = "--skip 0 --test_size 0.1 --split_seed 42 --dtype float32 --temperature 0.7"
    expected += " --top_p 1.0 --max_new_tokens 40 --seed 0 1 --min_margin 0.1"
    assert {*expected.split()} <= {*arguments}
    assert not {"--prompts_split", "--first"} & {*arguments}
    assert '{"enable_thinking": false}' in arguments and "--label_temperature" not in arguments


def test_everybody_reads_the_pairs_and_nothing_beside_them(tmp_path, tiny_model):
    folder = pairs_folder(tmp_path / "my-pairs", ROWS)
    card.write(folder)
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in found.items()} == {"train": 4, "test": 1}
    how = {"cache_dir": str(tmp_path / "cache"), "split": "train"}
    assert len(datasets.load_dataset(str(folder), "candidates", **how)) == 6
    ours = load(str(folder))
    assert {name: (len(rows.data), rows.notes) for name, rows in ours.items()} == {
        "train": (4, []),
        "test": (1, []),
    }
    flags = ["--config", "recipes/smollm2-sentiment.yaml", "--use_cpu"]
    flags += [f"--dataset_name={folder}", f"--model_name_or_path={tiny_model}"]
    recipe = parse([*flags, f"--output_dir={tmp_path}/run"])
    linted = prepare(recipe, load_rows(recipe), load_tokenizer(recipe))
    assert [len(linted[name].pairs) for name in ("train", "held-out")] == [4, 1]
    assert prompts.read(str(folder))  # it refuses a folder in which something is not read


def test_a_file_that_the_card_does_not_name_is_named_as_not_read(tmp_path):
    folder = pairs_folder(tmp_path / "my-pairs", ROWS)
    card.write(folder)
    for name in ("extra.jsonl", "more-pairs.json"):
        (folder / name).write_text("{}")
    (note,) = load(str(folder))["train"].notes
    assert note.startswith("files that are not read: extra.jsonl, more-pairs.json (")


def test_no_text_breaks_the_card(tmp_path, monkeypatch):
    secret = "s3cret-" + "x" * 30
    monkeypatch.setenv("SOME_API_KEY", secret)
    cut = "a" * 780 + f" {secret}"  # where the card cuts a text
    rows = [(split, said, HOSTILE, 1.0, cut, 0.0) for split in ("train", "test") for said in ("x",)]
    rows.append(("train", HOSTILE, "Fine.", 1.0, f"Key {secret}", 0.0))
    calm, hostile = (
        pairs_folder(tmp_path / name, of) for name, of in (("calm", ROWS[-3:]), ("hostile", rows))
    )
    made = json.loads((hostile / "pairs.json").read_text())
    made["models"][0]["name"] = made["judge"]["name"] = made["prompts"]["source"] = HOSTILE
    for section in (made["prompts"], made["answers"]):
        section["left_out"][HOSTILE] = section["left_out"].popitem()[1]
    (hostile / "pairs.json").write_text(json.dumps(made))

    def kinds(text: str) -> list[str]:
        tokens = MarkdownIt().enable("table").parse(text)
        every = [t for token in tokens for t in (token, *(token.children or ()))]
        return [t.type for t in every if t.type not in ("text", "code_inline")]

    (_, good), (text, read) = written(calm), written(hostile)
    assert kinds(read.text) == kinds(good.text)  # the same headings, tables, code, one picture
    assert "html_block" not in kinds(read.text) and kinds(read.text).count("image") == 1
    assert read.data.license is None and len(read.data.to_dict()["configs"]) == 2
    assert not {"\x1b", "\u202e", "\r"} & {*text} and "\\x1b[31m\\u202eright" in text
    assert "s3cret" not in text and "***" in text


def test_nothing_in_the_card_says_where_on_this_machine_it_was_made(tmp_path):
    folder = pairs_folder(tmp_path / "my-pairs", ROWS)
    made = json.loads((folder / "pairs.json").read_text())
    made["models"][0]["name"] = str(tmp_path / "models/policy")
    made["prompts"]["source"] = "~/prompts.jsonl"
    made["judge"] = {"kind": "rule", "name": "../mine/rule.py:score"}
    (folder / "pairs.json").write_text(json.dumps(made))
    text, _ = written(folder)
    assert "MODEL=policy" in text and "`prompts.jsonl`" in text and "JUDGE=rule.py:score" in text
    assert not any(word in text for word in (str(tmp_path), "~/", "../", "mine"))


def test_the_card_and_the_picture_are_the_same_each_time(tmp_path):
    folder = pairs_folder(tmp_path / "my-pairs", ROWS)
    text, _ = written(folder)
    picture = (folder / "margins.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert written(folder)[0] == text and (folder / "margins.png").read_bytes() == picture


def test_pairs_without_scores_have_no_margins(tmp_path):
    """What a ladder has in the place of scores is whose answer it is."""
    rows = [(split, said, good, 1.0, bad, 0.0) for split, said, good, _, bad, _ in ROWS]
    ladder = {"kind": "ladder", "name": "ladder"}
    folder = pairs_folder(tmp_path / "my-pairs", rows, judge=ladder)
    (folder / "margins.png").write_bytes(b"of other pairs")
    text, _ = written(folder)
    assert not (folder / "margins.png").exists() and "![" not in text
    assert "There are no scores, and so no margins." in text and "JUDGE=" not in text
    assert cells(text, "chosen, tokens")[0] == "3.0" and "\n[chosen]\n" in text


def test_labels_that_are_drawn_have_a_ceiling(tmp_path):
    text, _ = written(pairs_folder(tmp_path / "my-pairs", ROWS, pick=DRAWN))
    assert cells(text, "labels against the score") == ["25.0%", "0.0%"]
    assert cells(text, "ceiling of preference accuracy") == ["75.0%", "100.0%"]
    # sigmoid(-|margin| / 0.5): 0.1192, 0.2689, 0.2689, 0.0180 in train, 0.2689 in test
    table = text.partition("| labels against")[2]
    expected, ceiling = [row for row in table.splitlines() if row.startswith("| by expectation")]
    assert expected == "| by expectation | 16.9% | 26.9% |"
    assert ceiling == "| by expectation | 83.1% | 73.1% |"


@pytest.mark.parametrize(
    "kind, disagree, says",
    [
        ("reward", None, "Labels follow the known reward without noise"),
        ("rule", None, "Whether people would agree with the rule is not known."),
        ("model", None, "a second pass would say nothing"),
        ("endpoint", 0.125, "In 12.5% of the comparisons the verdict changed with the places"),
        ("endpoint", None, "Not measured"),
        ("hand", None, "One person gave the labels"),
        ("ladder", None, "Not known. No judge has seen the answers"),
    ],
)
def test_what_is_known_of_label_noise_is_said_of_every_judge(tmp_path, kind, disagree, says):
    given = {"judge": {"kind": kind, "name": "judge"}, "undecided": {}}
    given |= {"orders_disagree": disagree}
    text, _ = written(pairs_folder(tmp_path / "my-pairs", ROWS, **given))
    assert says in text.partition("## Label noise")[2].partition("## ")[0]


# What the cards of the models and of the prompts say, and what that of the pairs states.
LICENCES = {
    "one model": (["license: apache-2.0"], None, "apache-2.0"),
    "two alike": (["license: mit", "license: mit"], None, "mit"),
    "two that differ": (["license: mit", "license: gemma"], None, None),
    "one unknown": (["license: mit", "tags: [x]"], None, None),
    "prompts alike": (["license: mit"], "license: mit", "mit"),
    "prompts that differ": (["license: mit"], "license: cc-by-nc-4.0", None),
    "a broken card": (["license: [mit"], None, None),
    "no text": (["license: [mit, gpl]"], None, None),
    "a name of its own": (["license: other\nlicense_name: own\nother: x"], None, "other"),
}


@pytest.mark.parametrize("models, asked, stated", LICENCES.values(), ids=LICENCES)
def test_a_licence_is_stated_where_it_is_known_to_be_one(tmp_path, models, asked, stated):
    names = []
    for at, front in enumerate([*models, *([asked] if asked else [])]):
        (tmp_path / f"m{at}").mkdir()
        (tmp_path / f"m{at}/README.md").write_text(f"---\n{front}\n---\n# A card\n")
        names.append(str(tmp_path / f"m{at}"))
    given = {"models": [SETTINGS["models"][0] | {"name": name} for name in names[: len(models)]]}
    given["prompts"] = SETTINGS["prompts"] | ({"source": names[-1]} if asked else {})
    text, read = written(pairs_folder(tmp_path / "my-pairs", ROWS, **given))
    assert read.data.license == stated
    assert (read.data.get("license_name") == "own") == (stated == "other")
    terms = text.partition("## Licence")[2]
    assert ("No `license` is stated above" in terms) == (stated is None)
    assert "- answers of `m0`: " in terms
    assert ("- prompts from `prompts.txt`: not known here" in terms) == (asked is None)


def test_an_empty_split_is_not_promised(tmp_path):
    folder = pairs_folder(tmp_path / "my-pairs", ROWS[:4])
    (folder / "test.jsonl").unlink()
    _, read = written(folder)
    (files,) = read.data.to_dict()["configs"][0]["data_files"]
    assert files == {"split": "train", "path": "train.jsonl"}
    assert [*load(str(folder))] == ["train"]


def test_memory_does_not_grow_with_the_texts(tmp_path):
    """40 MB of answers to 10,000 prompts: of each pair some numbers are kept."""
    path = tmp_path / "candidates.jsonl"
    answers = [answer("word " * 400, 1.0), answer("word " * 400, 0.0)]
    row = {"prompt": pair("x", "", "")["prompt"], "split": "train", "row": 0, "answers": answers}
    path.write_text((json.dumps(row | {"pairs": [[0, 1]], "why": None}) + "\n") * 10_000)
    assert path.stat().st_size > 40e6
    tracemalloc.start()
    found = figures.read(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 10_000 and found.margin.mean() == 1
    assert most < 3e6
