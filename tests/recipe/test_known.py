"""What is misspelt, and `--help`, is answered before anything heavy is imported."""

import pytest

from dpo.recipe import known
from dpo.recipe.parse import make_parser
from support.commands import at_once
from support.place import ROOT

NAMED = ("--recipe=smollm2-sentiment",)
ROUNDS = (*NAMED, "--prompts=smollm2-sentiment", "--judge=vader")
RECIPE = ("--config", "recipes/smollm2-sentiment.yaml")


def flags_of(parser) -> dict:
    return {flag: (it.dest, it.nargs) for flag, it in parser._option_string_actions.items()}


def test_the_sources_as_text_have_the_arguments_that_trl_has():
    there = make_parser()
    assert flags_of(known.parser()) == flags_of(there)
    helps = {it.dest: it.help for it in there._actions if it.dest != "help"}
    read = {name: argument.about.get("help") for name, argument in known.arguments().items()}
    # The flag that says no to an argument has its help too.
    assert read == helps


def test_help_begins_with_what_is_ours(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = known.usage().splitlines()
    assert max(map(len, lines)) < 100
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings[1].startswith("This repository (") and headings[-1] == "Several data sets:"
    titles = [heading.split(" (")[0].rstrip(":") for heading in headings[1:]]
    assert tuple(dict.fromkeys(titles)) == known.TITLES
    said = "\n".join(lines)
    assert all(f"\n  --{name} " in said for name in known.arguments())
    assert "(default: end)" in said  # hub_strategy, which is ours


@pytest.mark.parametrize(
    ("script", "arguments", "code", "words"),
    [
        ("launch.py", ["--help"], 0, "a file in recipes/"),
        ("launch.py", ["--", "--help"], 0, "This repository ("),
        ("launch.py", ["--", "--betaa=1"], 1, "unknown argument '--betaa=1': did you mean: beta, "),
        ("launch.py", ["--", "1"], 1, "ARGS: '1' belongs to no flag"),
        ("launch.py", ["--", "--beta=1", "--beta", "2"], 1, "beta stands twice"),
        ("launch.py", ["--recipe=qwen-ultrafeedbak"], 1, "did you mean: qwen-ultrafeedback"),
        ("launch.py", ["--accelerate_config=zero9"], 1, "no CONFIG 'zero9': one of: cpu, "),
        ("train.py", ["--help"], 0, "This repository ("),
        ("train.py", ["--beta=1"], 1, "no recipe: --config recipes/<name>.yaml names it"),
        ("train.py", [*RECIPE, "--betaa=1"], 1, "unknown argument '--betaa=1': did you mean: beta"),
        ("train.py", ["--config", "recipes/qwn.yaml"], 1, "no recipe at recipes/qwn.yaml: "),
        ("evaluate.py", ["--nothing=1"], 2, "the following arguments are required: --run"),
        ("bench.py", ["--stepps=1"], 2, "unrecognized arguments: --stepps=1"),
        ("data.py", ["--help"], 0, "make data RECIPE="),
        ("data.py", [*RECIPE, "--betaa=1"], 1, "unknown argument '--betaa=1': did you mean: beta"),
        ("compare.py", ["--nothing"], 2, "unrecognized arguments: --nothing"),
        ("sweep.py", ["--nothing"], 2, "the following arguments are required: --recipe"),
        ("new.py", ["--nothing"], 2, "unrecognized arguments: --nothing"),
        ("sync.py", ["--run=nowhere"], 1, "no run at nowhere"),
        (
            "sweep.py",
            ["--recipe=nope", "--sweep=beta=1,2"],
            1,
            "no RECIPE 'nope': none has a name like it",
        ),
        ("sweep.py", [*NAMED, "--sweep=betta=1,2"], 1, "SWEEP: unknown argument 'betta': did you"),
        ("sweep.py", [*NAMED, "--sweep="], 1, "nothing to sweep: SWEEP="),
        ("new.py", [], 1, "RECIPE= is missing: make new "),
        ("compare.py", ["--runs=outputs/nowhere"], 1, "no run at outputs/nowhere; the runs here"),
        ("evaluate.py", ["--run=outputs/nowhere"], 1, "no run and no model at outputs/nowhere; "),
        ("bench.py", ["--model=nope"], 1, "no model nope: one of SmolLM2-135M, "),
        ("rounds.py", [], 2, "the following arguments are required: --recipe"),
        ("rounds.py", [*NAMED, "--prompts=x", "--judge=vader", "--samplez=2"], 2, "--samplez=2"),
        ("rounds.py", [*NAMED, "--prompts=x"], 1, "JUDGE=: name who judges without asking anybody"),
        ("rounds.py", [*NAMED, "--judge=vader"], 1, "PROMPTS= is missing"),
        ("rounds.py", [*ROUNDS, "--to=x"], 1, "--to: make rounds says it in every round itself"),
        ("rounds.py", [*ROUNDS, "--reference=mine"], 2, "argument --reference: invalid choice"),
        ("rounds.py", [*ROUNDS, "--", "--betaa=1"], 1, "unknown argument '--betaa=1': did you"),
        ("launch.py", ["--gpus=none"], 1, "GPUS=none is not a number"),
    ],
)
def test_it_is_answered_at_once(script, arguments, code, words):
    said, ended = at_once(script, *arguments)
    assert words in said and ended == code


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.py")))
def test_every_script_has_help_at_once(script, tmp_path):
    """And does nothing else."""
    said, ended = at_once(script, "--help", cwd=tmp_path)
    assert ended == 0 and (script in said or "make " in said)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("arguments", [["--list"], ["--recipe=qwen-ultrafeedback"]])
def test_another_folder_has_no_recipes(arguments, tmp_path):
    said, ended = at_once("launch.py", *arguments, cwd=tmp_path)
    assert ended == 1 and f"no folder recipes in {tmp_path}: run this where" in said


def test_whatever_lies_among_the_recipes_they_are_listed(tmp_path):
    for folder in ("recipes", "accelerate_configs"):
        (tmp_path / folder / "a folder.yaml").mkdir(parents=True)
        (tmp_path / folder / "empty.yaml").touch()
        (tmp_path / folder / "latin.yaml").write_bytes("# für dich".encode("latin-1"))
    said, ended = at_once("launch.py", "--list", cwd=tmp_path)
    assert ended == 0 and said.count("  empty ") == said.count("  latin  f") == 2
