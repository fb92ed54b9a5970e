"""What README and docs say can be done is done here, as they say it."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from dpo import losses
from dpo.core.refusal import Refusal
from dpo.data.lint import REASONS
from dpo.data.starting import data_of
from dpo.recipe.arguments import LAYOUTS
from dpo.recipe.parse import make_parser, parse, read_yaml
from dpo.runs.output_folder import claim
from support.commands import make
from support.docs import DEVELOPMENT, DOCS, ELSEWHERE, PAGES, README, blocks, page
from support.notebook import PATH as NOTEBOOK
from support.place import ROOT
from support.rows import GOOD, RECIPE, changed, lint, said, write

GUIDES = ("your-own-data.md", "choosing.md", "when-a-run-goes-wrong.md", "comparing.md")


def test_the_python_of_the_readme_runs(tiny_model):
    (code,), (rule,) = blocks("python", README), blocks("python", page("pairs.md"))
    exec(code.replace("outputs/smollm2-sentiment", str(tiny_model)), {})
    known = {}
    exec(rule, known)
    right, wrong = (known["score"]("Two plus two?", said, {"answer": "4"}) for said in "45")
    assert right > wrong


def test_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    output = make().stdout
    assert max(map(len, output.splitlines())) <= 100
    for target in phony.split():
        assert f"  make {target} " in output, target
        assert re.search(rf"^make {target}( |$)", DEVELOPMENT, flags=re.MULTILINE), target


def test_the_docs_name_every_config():
    text = (ROOT / "docs/scaling.md").read_text()
    for path in (ROOT / "accelerate_configs").glob("*.yaml"):
        assert f"| `{path.stem}` |" in text, path


def test_the_docs_name_every_layout_and_every_reason():
    text = (ROOT / "docs/data.md").read_text()
    for name in LAYOUTS:
        assert f"| `{name}` |" in text, name
    for name, says in REASONS.items():
        assert f"| `{name}` | {says}" in text, name


def test_every_path_that_the_readme_names_is_there():
    made_by_a_run = ("outputs", "models", "cache", ".venv", "resolved.yaml")
    made_by_a_run += ("train/", "eval/", "evaluate/", "rewards/")  # what W&B shows
    made_by_a_run += ("rule.py", "sums.py", "recipes/sums.yaml")  # the reader's own
    names = re.findall(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:md|txt|toml|yaml|py))`", README + DOCS)
    assert names
    for name in names:
        if not name.startswith(made_by_a_run):
            assert (ROOT / name).exists() or (ROOT / "scripts/dpo" / name).exists(), name


def anchors(page: Path) -> set[str]:
    """What a link into a page can name: its headings, as GitHub spells them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("of", [*PAGES, ROOT / NOTEBOOK], ids=lambda path: path.name)
def test_every_link_leads_somewhere(of):
    for target in re.findall(r"\]\(([^)\s]+)\)", of.read_text()):
        path, _, anchor = target.partition("#")
        if not path.startswith("http"):
            there = of.parent / path if path else of
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def tree(text: str) -> list[str]:
    """The paths of a tree that is drawn by indentation, two blanks a level, a remark after each."""
    paths: list[str] = []
    above: list[str] = []
    for line in text.splitlines():
        name = line.split()[0]
        above[(len(line) - len(line.lstrip())) // 2 :] = [name]
        paths.append("".join(above))
    return paths


def test_the_tree_of_the_docs_is_the_tree():
    (drawn,) = [text for text in blocks("text") if text.startswith("recipes/")]
    paths = tree(drawn)
    assert len(paths) == len({*paths})
    for path in paths:
        assert (ROOT / path).exists(), path
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        assert path.name == "__init__.py" or name in paths, f"docs/development.md lacks {name}"


def test_the_readme_is_a_front_door():
    assert len(README.splitlines()) < 140
    for room in sorted((ROOT / "scripts/dpo").iterdir()):
        if room.is_dir() and room.name[0] != "_":
            assert f"`{room.name}/`" in README, room


def test_the_picture_of_the_readme_is_there():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).stat().st_size < 300_000


def test_the_tests_that_the_docs_name_are_there():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", DOCS)
    assert len(named) > 40
    for name in named:
        assert f"def {name}(" in tests, name


def test_the_tests_that_run_commands_elsewhere_are_there():
    files = {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert {*re.findall(r"test_\w+\.py", str(ELSEWHERE))} <= files


def test_the_contents_name_every_page_and_the_guides_are_short():
    contents = page("README.md")
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"]({path.name})" in contents, path.name
    for section in contents.split("\n## ")[1:]:
        assert len(section.splitlines()) < 15, section
    for name in GUIDES:
        assert len(page(name).splitlines()) < 120, name


def rows(text: str, header: str) -> list[list[str]]:
    """The cells of a page's table, by the first words of its header."""
    table = text[text.index(f"\n| {header}") + 1 :].split("\n\n")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return lines[2:]


def test_what_published_recipes_took_is_what_the_recipes_state():
    defaults = vars(make_parser().parse_known_args([])[0])
    shapes = json.loads((ROOT / "recipes/data/shapes.json").read_text())
    sizes = {name: shape["parameters"] for shape in shapes for name in shape["names"]}
    taken, losses_taken, warm, falling = [], Counter(), 0, 0
    for path in (ROOT / "recipes").rglob("*.yaml"):
        keys = defaults | read_yaml(path)
        if path.stem == "smollm2-sentiment":  # published by nobody
            continue
        size, few = sizes[keys["model_name_or_path"]], keys["max_steps"] > 0
        kind = ", QLoRA" if keys["load_in_4bit"] else ", LoRA" if keys["use_peft"] else ""
        losses_taken += Counter(keys["loss_type"])
        warm += keys["warmup_steps"] == 0.1
        falling += str(keys["lr_scheduler_type"]).startswith(("linear", "cosine"))
        row = [
            f"[{path.stem}](../{path.relative_to(ROOT)})",
            (f"{size / 1e9:.2g}B" if size >= 1e9 else f"{size / 1e6:.0f}M") + kind,
            " + ".join(keys["loss_type"]),
            f"{keys['beta']:g}",
            f"{keys['learning_rate']:g}".replace("e-0", "e-"),
            str(keys["per_device_train_batch_size"] * keys["gradient_accumulation_steps"]),
            f"{keys['max_steps']} steps" if few else f"{keys['num_train_epochs']:g}",
            str(keys["max_length"]),
        ]
        taken.append((size, path.stem, row))
    text = page("choosing.md")
    assert rows(text, "recipe |") == [row for *_, row in sorted(taken)]
    counted = (
        "Of the {} published recipes below {} took `sigmoid`, {} `sigmoid_norm`, {} `apo_zero`."
    )
    counts = [losses_taken.pop(name) for name in ("sigmoid", "sigmoid_norm", "apo_zero")]
    assert not losses_taken and counted.format(len(taken), *counts) in text
    assert f"as {warm} of the {len(taken)} did" in text and f"cosine, as {falling} did" in text
    betas = [row[3] for *_, row in taken if row[2] == "sigmoid"]
    assert f"from {min(betas)} to {max(betas)} for one loss" in text


# Files of the table of what can go wrong: name, text, and what is said of them.
WRONG = {
    "say which is which with make new … COLUMNS=": ("names.csv", "question,good,bad\na,b,c\n" * 2),
    "single answers with a label of good or bad": (
        *("kto.jsonl", '{"prompt": "a", "completion": "b", "label": true}\n' * 2),
    ),
    "single answers with none to compare them with": (
        *("sft.jsonl", '{"prompt": "a", "completion": "b"}\n' * 2),
    ),
    "prompts alone": ("prompts.jsonl", '{"prompt": "a"}\n' * 2),
    "does not say which of them is better": (
        "numbers.jsonl",
        '{"question": "q", "response_1": "x", "response_2": "y", "preference": 0}\n'
        '{"question": "q", "response_1": "x", "response_2": "y", "preference": 1}\n',
    ),
    "4 fields for 3 columns": ("comma.csv", "prompt,chosen,rejected\na,b,c\na,b,c,d\n"),
    "mend the line or take it out": ("cut.jsonl", '{"prompt": "a", "chosen"\n'),
    "is not one of .jsonl, .ndjson, .json, .csv": ("sheet.xlsx", "x"),
    "fewer than two pairs": ("one.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'),
}
AS_IT_IS = [
    {"prompt": "a", "chosen": "b", "rejected": "c"},
    {"prompt": "a", "response_a": "b", "response_b": "c", "preferred": "A"},
    {
        "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}],
    },
    {
        "conversations": [{"from": "human", "value": "a"}],
        **{"chosen": {"from": "gpt", "value": "b"}, "rejected": {"from": "gpt", "value": "c"}},
    },
]


@pytest.mark.parametrize("says", WRONG)
def test_a_file_that_is_wrong_is_answered_as_the_guide_says(says, tmp_path):
    assert f"| *{says}* |" in page("your-own-data.md")
    name, text = WRONG[says]
    (tmp_path / name).write_text(text)
    with pytest.raises(Refusal, match=re.escape(says)):
        data_of(str(tmp_path / name), {}, True)


@pytest.mark.parametrize(
    "says, row, flag",
    [
        ("rows are set aside", {"chosen": said("")}, "--max_length=128"),
        ("are left out for length", {}, "--max_length=12"),
    ],
)
def test_rows_that_are_wrong_are_answered_as_the_guide_says(says, row, flag, tiny_model, tmp_path):
    assert f"| *{says}* |" in page("your-own-data.md")
    write(tmp_path, [*GOOD, changed(**row)])
    with pytest.raises(Refusal, match=says):
        lint(tiny_model, tmp_path, tmp_path, flag)


def test_a_folder_of_another_run_is_answered_as_the_guide_says(tmp_path, tiny_model):
    assert "| *holds a run with other settings* |" in page("your-own-data.md")
    flags = [f"--output_dir={tmp_path}", f"--model_name_or_path={tiny_model}", "--use_cpu"]
    recipe = [parse(["--config", str(RECIPE), *flags, f"--beta={beta}"]) for beta in (0.1, 0.2)]
    claim(recipe[0]).close()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(Refusal, match="holds a run with other settings: beta"):
        claim(recipe[1])


def test_the_commonest_layouts_are_read_as_they_are(tmp_path):
    for number, row in enumerate(AS_IT_IS):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(f"{json.dumps(row)}\n" * 4)
        lines, pairs = data_of(str(path), {}, True)
        assert pairs == 3 and not any("column_mapping" in line for line in lines)


def test_every_alert_is_in_the_monitors_and_in_the_guide():
    code = "".join(path.read_text() for path in ROOT.glob("scripts/dpo/training/monitoring/*.py"))
    kinds = {*re.findall(r"(?:tell|stop)\(\s*\"([a-z ]+)\"", code)}
    assert len(kinds) == 8
    monitors, guide = page("monitors.md"), page("when-a-run-goes-wrong.md")
    for kind in kinds:
        assert f"\n## {kind.capitalize()}\n" in monitors and f"*{kind}*" in guide, kind


def test_what_the_guide_by_symptom_quotes_is_what_is_said():
    sources = [*ROOT.glob("scripts/**/*.py"), *ROOT.glob("scripts/**/*.html")]
    code = " ".join(path.read_text() for path in sources).lower()
    quoted = re.findall(r"(?<![*\w])\*([^*\n]+)\*(?!\*)", page("when-a-run-goes-wrong.md"))
    assert len({*quoted}) > 12
    for phrase in quoted:
        assert phrase.lower() in code, phrase


def test_the_equations_stand_beside_functions_that_are_there():
    named = re.findall(r"(?m)^```\n\n`(\w+)`", page("dpo.md"))
    assert len(named) == 6
    for name in named:
        assert callable(getattr(losses, name)), name


def test_what_the_page_on_dpo_says_of_beta_is_what_the_frontier_measured():
    measured = {
        row[1]: row[3:5]
        for row in rows(page("frontier.md"), "loss | β | step")
        if row[0] == "sigmoid" and row[2] == "24"
    }
    shown = rows(page("dpo.md"), "β | true reward")
    assert {beta: numbers for beta, *numbers in shown} == measured


def test_what_the_guide_on_comparing_says_of_seeds_was_measured():
    for number in (
        "0.11 to 0.26",
        "± 0.048",
        "0.093",
        "about 4 seeds of each recipe, of 0.1 about 14",
    ):
        assert number in page("comparing.md") and number in page("seeds.md"), number
