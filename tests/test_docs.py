"""What README and docs say can be done is done here, as they say it."""

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, make

from dpo.data.formats.layouts import LAYOUTS
from dpo.data.lint import REASONS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob(".github/*.md")]
README = PAGES[0].read_text()
DOCS = "".join(path.read_text() for path in PAGES[1:])
DEVELOPMENT = (ROOT / "docs/development.md").read_text()
FIVE_MINUTES = [  # README's four commands from pairs to a verdict
    "make new RECIPE=my-recipe MODEL=models/SmolLM2-135M-Instruct DATASET=pairs.jsonl",
    "make data RECIPE=my-recipe",
    "make train RECIPE=my-recipe",
    "make evaluate RUN=outputs/my-recipe",
]
# Run whole by CI, or by another test.
ELSEWHERE = {
    "make data": ".ci/run",
    "make train": ".ci/run, cut short",
    "make test": ".ci/run",
    "make install": ".ci/run",
    "make lint": ".ci/run",
    "make audit": ".ci/run",
    "make new": "test_data.py",
    "make new RECIPE=my-recipe MODEL=models/SmolLM2-135M-Instruct "
    "DATASET=recipes/data/sentiment": "test_data.py, with a name of its own",
    **dict.fromkeys(FIVE_MINUTES, "below, all four"),
    "make new FROM=theirs.yaml RECIPE=my-recipe GPUS=8": "test_converting.py",
    "make embedded-data": "test_embedded_data.py, its first batch",
    "make bench": "test_bench.py, on the tiny model",
    'make bench MODEL=Qwen3-0.6B DEVICE=cuda ARGS="--pairs 4 8"': "needs a GPU",
    "make train RECIPE=qwen-ultrafeedback CONFIG=zero3 GPUS=8 NODES=4 NODE_RANK=0 "
    "MAIN=10.0.0.1:29500": "test_distributed.py, on the loopback address",
    "make submit": "test_slurm.py, with stand-ins for SLURM's commands",
    "make submit RECIPE=qwen-ultrafeedback CONFIG=zero3 GPUS=8 NODES=4 PARTITION=gpu": "likewise",
    "make check-gpu": "needs a GPU",
    'make check-gpu ARGS="--only parity zero2"': "needs a GPU",
    'make check-gpu DEVICE=cpu ARGS="--small"': "test_check_gpu.py, on the tiny model",
    "make test-architectures": ".ci/run",
    "make test-distributed": ".ci/run",
    "make test-faults": ".ci/run",
    "make test-sight": ".ci/run",
    "make test-gemma": "its terms are Gemma's own: run by hand",
    "make test-trl": "needs a checkout of TRL's tests",
    "make clean-cache": "test_reference.py",
    "make evaluate": "test_evaluate.py",
    "make evaluate RUN=outputs/smollm2-sentiment JUDGE=vader": "test_evaluate.py, on a tiny run",
    "make compare": "test_compare.py",
    'make compare RUNS="outputs/a outputs/b"': "test_compare.py, on two tiny runs",
    "make compare RECIPE=smollm2-sentiment": "test_compare.py, without make",
    "make sweep": "test_sweep.py",
    "make sweep RECIPE=qwen-ultrafeedback "
    'SWEEP="beta=0.05,0.1,0.5 learning_rate=1e-6,5e-7"': "test_sweep.py, on the tiny model",
    'make sweep RECIPE=qwen-ultrafeedback SWEEP="beta=0.05,0.1,0.5" WANDB=1': "test_sweep.py",
    "make frontier": "test_frontier.py, on the tiny model",
    "make dashboard": "test_dashboard.py",
    "make sync": "test_wandb_run.py",
    "trl dpo --config recipes/smollm2-sentiment.yaml": "test_recipes.py",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README + DOCS, flags=re.DOTALL)


def commands() -> list:
    lines = [line.split("  #")[0].strip() for text in blocks("bash") for line in text.splitlines()]
    return [
        pytest.param(line, marks=[pytest.mark.distributed] if "GPUS=" in line else [])
        for line in sorted({line for line in lines if line} - ELSEWHERE.keys())
    ]


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_docs_runs(command, tiny_flags):
    words = shlex.split(command)
    assert words[0] == "make", f"{command}: no test runs it"
    if words[1:2] in (["train"], ["data"]):
        given = next((word[5:] for word in words if word.startswith("ARGS=")), "")
        words = [word for word in words if not word.startswith("ARGS=")]
        words.append(f"ARGS={given} {shlex.join(tiny_flags)}")  # each once, as make() hands it on
    result = make(*words[1:])
    assert result.returncode == 0, result.stderr[-3000:]
    if words[1:2] == ["train"]:
        assert "report.html" in result.stdout


@pytest.mark.sight
def test_five_minutes_with_pairs_of_ones_own(tmp_path, tiny_model, request):
    """As README says it, with its row, on the tiny model, under a name that no recipe has."""
    assert "\n".join(FIVE_MINUTES) in re.sub(r" +#.*", "", README)
    (row,) = map(json.loads, blocks("json"))
    rows = [row | {"prompt": f"{row['prompt']} ({i})"} for i in range(20)]
    pairs, name = tmp_path / "pairs.jsonl", "readme-example"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    request.addfinalizer(lambda: (ROOT / f"recipes/{name}.yaml").unlink(missing_ok=True))
    flags = {
        "train": "--max_steps=2 --report_to=none",
        "evaluate": "--max_new_tokens=4 --limit=2",
    }
    ours = {"my-recipe": name, "models/SmolLM2-135M-Instruct": str(tiny_model)}
    for command in FIVE_MINUTES:
        for theirs, mine in (ours | {"pairs.jsonl": str(pairs)}).items():
            command = command.replace(theirs, mine)
        words = shlex.split(command)[1:]
        result = make(*words, f"ARGS={flags.get(words[0], '')}")
        assert result.returncode == 0, result.stderr[-3000:]
    assert next(ROOT.glob(f"outputs/{name}/evaluations/*/evaluation.html"))


def test_the_recipe_of_the_docs_trains(tmp_path, tiny_model, tiny_data, request):
    """Written where docs/recipes.md says, under a name that no recipe has, and removed again."""
    (text,) = blocks("yaml")
    path = ROOT / "recipes/readme-example.yaml"
    request.addfinalizer(lambda: path.unlink(missing_ok=True))
    path.write_text(text)
    flags = [
        *(f"--model_name_or_path={tiny_model}", f"--dataset_name={tiny_data}", "--max_steps=2"),
        *(f"--output_dir={tmp_path / 'run'}", "--reward_prompts=2", "--eval_steps=2"),
        *("--per_device_train_batch_size=2", "--gradient_accumulation_steps=1", "--bf16=false"),
        f"--reference_cache={tmp_path / 'cache'}",
    ]
    result = make("train", "RECIPE=readme-example", f"ARGS={shlex.join(flags)}")
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "run/report.html").is_file()


def test_the_python_of_the_readme_runs(tiny_model):
    (code,) = blocks("python")
    exec(code.replace("outputs/smollm2-sentiment", str(tiny_model)), {})


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
    made_by_a_run = ("outputs", "models", "cache", ".venv")
    names = re.findall(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:md|txt|toml|yaml|py))`", README + DOCS)
    assert names
    for name in names:
        if not name.startswith(made_by_a_run):
            assert (ROOT / name).exists() or (ROOT / "scripts/dpo" / name).exists(), name


def anchors(page: Path) -> set[str]:
    """What a link into a page can name: its headings, as GitHub spells them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if not path.startswith("http"):
            there = page.parent / path if path else page
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
