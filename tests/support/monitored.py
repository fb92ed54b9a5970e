"""Pairs of random words, and trainers on them that monitors can watch."""

import json
import math
import random
from pathlib import Path

from transformers import TrainerCallback

from dpo.data.dataset import prepare
from dpo.data.quarantine import check_share
from dpo.data.sources.load import load_rows
from dpo.models.chat_template import load_tokenizer
from dpo.recipe.parse import parse
from dpo.training.build import make_trainer
from support.commands import once
from support.tiny import pair

WORDS = [*"abcdefghijklmnop"]


def words(count: int, draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(count))


def pairs_of(count: int, seed: int, chosen=(8, 8), rejected=(8, 8)) -> list[dict]:
    """Pairs of random words, of lengths in the given ranges: nothing to learn but the lengths."""
    draw = random.Random(seed)
    return [
        pair(
            f"{seed} {i}", words(draw.randint(*chosen), draw), words(draw.randint(*rejected), draw)
        )
        for i in range(count)
    ]


def write(data: Path, train: list[dict], test: list[dict]) -> None:
    data.mkdir(parents=True)
    for split, rows in (("train", train), ("test", test)):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def trainer_on(folder: Path, model: Path, train: list[dict], test: list[dict], *flags: str):
    """What train.py trains with, on these pairs."""
    data = folder / "data"
    if not data.is_dir():
        write(data, train, test)
    given = [
        *(f"--model_name_or_path={model}", f"--dataset_name={data}", "--use_cpu"),
        *(f"--output_dir={folder / 'run'}", f"--reference_cache={folder / 'cache'}"),
        *("--per_device_train_batch_size=8", "--logging_steps=1", "--eval_steps=8"),
        *("--save_strategy=no", "--report_to=none", "--disable_tqdm=true", "--warmup_steps=0"),
    ]
    recipe = parse(once(["--config", "recipes/smollm2-sentiment.yaml", *given, *flags]))
    tokenizer = load_tokenizer(recipe)
    linted = prepare(recipe, load_rows(recipe), tokenizer)
    check_share(linted, recipe.run.quarantine_limit, folder)
    return make_trainer(recipe, tokenizer, linted["train"].pairs, linted["held-out"].pairs)


class Spoil(TrainerCallback):
    """The optimizer's second step writes a weight that is not finite."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            model.lm_head.weight.data[3, 3] = math.inf


def easy(count: int, seed: int) -> list[dict]:
    """Pairs with something to learn, which holds for held-out pairs too."""
    draw = random.Random(seed)
    return [
        pair(f"{seed} {i}", "good " + words(4, draw), "bad " + words(4, draw)) for i in range(count)
    ]
