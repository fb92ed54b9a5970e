"""What README and docs say, and which of their commands another test runs."""

import re
import shlex

from support.commands import make
from support.place import ROOT

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
PLANS = [
    "make plan",
    "make plan RECIPE=qwen-ultrafeedback",
    "make plan RECIPE=zephyr-7b-ultrafeedback GPUS=8 GPU=A100-80GB PRICE=1.8",
]
# Run whole by CI, or by another test.
ELSEWHERE = {
    **dict.fromkeys(FIVE_MINUTES, "test_make_docs.py, all four"),
    "make data": ".ci/run",
    "make train": ".ci/run, cut short",
    'make train ARGS="--keep use"': "test_keeping.py, of a tiny run",
    'make train ARGS="--max_steps 48 --output_dir outputs/longer '
    '--resume_from_checkpoint outputs/smollm2-sentiment/checkpoint-24"': "likewise",
    "make test": ".ci/run",
    "make reproduce": "test_make_reproduce.py, on a tiny model; whole by hand",
    'make reproduce ARGS="--max_steps=2 --reward_prompts=8"': ".ci/run",
    "make install": ".ci/run",
    "make lint": ".ci/run",
    "make audit": ".ci/run",
    "make new": "test_make_new.py",
    "make new RECIPE=my-recipe MODEL=models/SmolLM2-135M-Instruct "
    "DATASET=recipes/data/sentiment": "test_make_new.py, with a name of its own",
    "make new FROM=theirs.yaml RECIPE=my-recipe GPUS=8": "test_converting.py",
    "make embedded-data": "test_make_embedded_data.py, its first batch",
    "make bench": "test_bench.py, on the tiny model",
    'make bench MODEL=Qwen3-0.6B DEVICE=cuda ARGS="--pairs 4 8"': "needs a GPU",
    "make train RECIPE=qwen-ultrafeedback CONFIG=zero3 GPUS=8 NODES=4 NODE_RANK=0 "
    "MAIN=10.0.0.1:29500": "test_machines.py, on the loopback address",
    "make submit": "test_slurm.py, with stand-ins for SLURM's commands",
    "make submit RECIPE=qwen-ultrafeedback CONFIG=zero3 GPUS=8 NODES=4 PARTITION=gpu": "likewise",
    "make check-gpu": "needs a GPU",
    'make check-gpu ARGS="--only parity zero2"': "needs a GPU",
    'make check-gpu ARGS="--only plan"': "needs a GPU",
    'make check-gpu DEVICE=cpu ARGS="--small --only plan"': "test_gpu_plan.py, but for make",
    'make check-gpu DEVICE=cpu ARGS="--small"': "test_make_check_gpu.py, on the tiny model",
    "make test-architectures": ".ci/run",
    "make test-distributed": ".ci/run",
    "make test-faults": ".ci/run",
    "make test-sight": ".ci/run",
    "make test-gemma": "its terms are Gemma's own: run by hand",
    "make test-trl": "needs a checkout of TRL's tests",
    "make clean-cache": "test_reference.py",
    "make shelf": "test_recipes.py, on two recipes, without make",
    "make evaluate": "test_make_evaluate.py",
    "make evaluate RUN=outputs/smollm2-sentiment JUDGE=vader": "test_make_evaluate.py, on a run",
    "make score": "test_make_score.py",
    "make score RUN=outputs/smollm2-sentiment FILE=pairs.jsonl": "test_make_score.py",
    "make score RUN=outputs/smollm2-sentiment FILE=pairs.jsonl SELECT=0.1": "likewise",
    "make compare": "test_make_compare.py",
    'make compare RUNS="outputs/a outputs/b"': "test_make_compare.py, on two tiny runs",
    "make compare RECIPE=smollm2-sentiment": "test_comparison.py, without make",
    "make sweep": "test_make_sweep.py",
    "make sweep RECIPE=qwen-ultrafeedback "
    'SWEEP="beta=0.05,0.1,0.5 learning_rate=1e-6,5e-7"': "test_make_sweep.py, on the tiny model",
    'make sweep RECIPE=qwen-ultrafeedback SWEEP="beta=0.05,0.1 seed=1,2,3"': "test_make_seeds.py, "
    "on the tiny model",
    'make sweep SWEEP="seed=42,1,2,3,4"': "likewise",
    "make sweep RECIPE=smollm2-sentiment "
    'SWEEP="learning_rate=1e-5,2e-5,4e-5"': "test_make_sweep.py, on the tiny model",
    "make sweep RECIPE=smollm2-sentiment "
    'SWEEP="beta=0.01,0.05,0.1,0.5" OUTPUT=outputs/betas': "likewise",
    "make sweep RECIPE=smollm2-sentiment "
    'SWEEP="beta=0.05,0.1 seed=1,2,3" OUTPUT=outputs/seeds': "test_make_seeds.py",
    'make sweep RECIPE=qwen-ultrafeedback SWEEP="beta=0.05,0.1,0.5" WANDB=1': "test_make_sweep.py",
    **dict.fromkeys(PLANS, "test_make_plan.py"),
    "make plan GPU=cpu": "test_make_plan.py, of a short run, without make",
    "make plan GPU=cpu MEMORY=16 GPUS=2": "test_on_cpu.py, without make",
    "make plan RUN=outputs/smollm2-sentiment": "test_make_plan.py, on a tiny run",
    "make pairs": "test_make_pairs.py",
    'make pairs PROMPTS=questions.txt JUDGE=vader SAMPLES=4 ARGS="--max_new_tokens 40"': ""
    "test_make_pairs.py, on a tiny model",
    "make rounds": "test_make_rounds.py",
    "make rounds RECIPE=smollm2-sentiment PROMPTS=recipes/data/sentiment/train.jsonl "
    "JUDGE=vader": "test_make_rounds.py, on a tiny model",
    "make rounds RECIPE=smollm2-sentiment PROMPTS=recipes/data/sentiment/train.jsonl JUDGE=vader "
    'SAMPLES=4 ARGS="--max_new_tokens 40 --max_length_difference 4 --dtype bfloat16 '
    '--batch_size 256 -- --max_steps 12"': "by hand, whole",
    "make frontier": "test_make_frontier.py, on the tiny model",
    "make learn": "test_make_learn.py, on the tiny model, in small",
    "make learn WHAT=noise": "likewise",
    'make learn WHAT=noise ARGS="--small"': "likewise",
    'make learn WHAT=closed_form ARGS="-- --beta 0.25"': "likewise, with another β",
    "make dashboard": "test_make_dashboard.py",
    "make chat": "test_make_chat.py, on a tiny run",
    "make chat RUN=outputs/smollm2-sentiment": "likewise",
    'make chat RUN=outputs/smollm2-sentiment ARGS="--only policy --json" '
    "< questions.txt > answers.jsonl": "likewise",
    "make export": "test_exporting.py, on tiny runs",
    "make export RUN=outputs/smollm2-sentiment": "test_make_export.py, on a tiny run",
    "make export RUN=outputs/smollm2-sentiment DTYPE=bf16": "test_exporting.py, on a tiny run",
    "make export RUN=outputs/lora MERGE=1 TO=released": "likewise",
    "make export RUN=outputs/smollm2-sentiment GGUF=q8_0": "test_exporting.py, on a tiny model",
    "make export RUN=outputs/smollm2-sentiment QUANT=nf4": "test_quantised.py, on a tiny run",
    "make export RUN=outputs/lora QUANT=nf4 HUB=my-name/my-model": "test_export_to_hub.py, no make",
    "make push RUN=outputs/lora/exports/merged-nf4 HUB=my-name/my-model": "likewise",
    "make serve": "test_make_serve.py, on a tiny run",
    "make serve RUN=outputs/smollm2-sentiment": "likewise",
    "make sync": "test_make_sync.py",
    "make push": "test_make_push.py",
    "make push RUN=outputs/smollm2-sentiment HUB=my-name/my-model": "test_make_push.py, a tiny run",
    'make push RUN=outputs/a HUB=my-name/my-model ARGS="--merged"': "test_publishing.py, no make",
    "trl dpo --config recipes/smollm2-sentiment.yaml": "test_recipes.py",
}


def blocks(language: str, text: str = README + DOCS) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def lines_of(text: str) -> list[str]:
    """The commands of a page, in its order."""
    lines = "".join(blocks("bash", text)).splitlines()
    return [line.split(" #")[0].strip() for line in lines]


OWN_DATA = lines_of(page("your-own-data.md"))
ELSEWHERE |= dict.fromkeys(OWN_DATA, "test_make_docs.py, all of that page")


def commands(processes: bool) -> list[str]:
    """Those that tests run, which start several processes or do not."""
    lines = [line.split(" #")[0].strip() for text in blocks("bash") for line in text.splitlines()]
    wanted = {line for line in lines if line and line[0] != "#"} - ELSEWHERE.keys()
    return sorted(line for line in wanted if ("GPUS=" in line) == processes)


def assert_runs(command: str, tiny_flags: list[str]) -> None:
    """A command of the docs, with a tiny model where it trains or reads data."""
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
