"""Folders of runs that have ended, with a real policy and results that are made up."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml


def interval(mean: float, low: float, high: float) -> dict[str, float]:
    return {"mean": mean, "low": low, "high": high}


def judged(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "about": {"name": name},
        "win_rate": interval(0.7, 0.6, 0.8),
        "length_controlled_win_rate": None,
        "reward": {
            "policy": interval(0.5, 0.4, 0.6),
            "against": interval(0.25, 0.15, 0.35),
            "difference": interval(0.25, 0.1, 0.4),
        },
        **more,
    }


PAIRS = {"count": 128, "accuracy": interval(0.75, 0.67, 0.82), "ceiling": 0.9}
LENGTHS = {
    "policy": interval(25, 20, 30),
    "against": interval(24, 19, 29),
    "difference": interval(1, -2, 4),
}
FOUND = {
    "format": 2,
    "prompts": {"source": "the data, held out", "count": 12, "samples": 2},
    "pairs": PAIRS,
    "answers": {
        "mean_tokens": LENGTHS,
        "kl": {"nats_per_sequence": interval(3, 2, 4), "nats_per_token": interval(0.1, 0, 0.2)},
    },
    "judge": None,
}


def ended_run(folder: Path, model: Path, settings: dict[str, Any] | None = None, **report) -> Path:
    """A run of the recipe `mine` on `model`, whose weights its policy has, with all that a run
    leaves beside them."""
    shutil.copytree(model, folder)
    stated = {"model_name_or_path": str(model), "dataset_name": "recipes/data/sentiment"}
    stated |= {"beta": 0.1, "bf16": False, "output_dir": str(folder), **(settings or {})}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"recipe": "mine", **stated}))
    found = {
        **FOUND,
        "judge": judged("vader"),
        "recipe": "mine",
        "model": stated["model_name_or_path"],
        "data": {"name": "sentiment", "rows": {"train": 512}, "set_aside": {"train": {"same": 1}}},
        "global_batch": 8,
        "steps": 24,
        "beta": 0.1,
        "loss_type": ["sigmoid"],
        "alerts": [{"kind": "drift", "step": 2, "says": "KL is far"}],
        "versions": {"trl": "1.16.0", "torch": "2.13.0"},
        "commit": "0123456789ab",
        "machine": "CPU (an EPYC)",
        "finished": "2026-11-28 02:03 UTC",
        "seconds": {"train": 60.0, "evaluate": 30.0},
        "peak_memory_gb": 3.0,
        **report,
    }
    (folder / "report.json").write_text(json.dumps(found))
    for left in ("trainer_state.json", "held_out.json", "drift.json", "measured.json"):
        (folder / left).write_text("{}")
    for left in ("metrics.jsonl", "quarantine.jsonl", "report.html", "wandb-run", ".half.json"):
        (folder / left).write_text("not for others")
    checkpoint = folder / "checkpoint-24"
    checkpoint.mkdir()
    for left in ("optimizer.pt", "model.safetensors", "manifest.json"):
        (checkpoint / left).write_text("not for others")
    return folder


def suite_of(policy: Path | str, **more: Any) -> dict[str, Any]:
    """What AlpacaEval 2 has come to of a policy, all of it."""
    rates = {side: interval(0.3, 0.25, 0.35) for side in ("policy", "against")}
    rates |= {"policy": interval(0.4, 0.35, 0.45), "difference": interval(0.1, 0.05, 0.15)}
    return {
        "suite": "alpaca_eval",
        "policy": str(policy),
        "against": "m",
        "judge": {"url": "http://10.0.0.1/v1", "model": "judge-of-mine", "published": "gpt-4"},
        "questions": 805,
        "whole": 805,
        "win_rate": rates,
        "length_controlled_win_rate": rates | {"policy": interval(0.45, 0.4, 0.5)},
        "length": {"policy": 1200.4, "against": 900.0, "baseline": 2000.0},
        "left_out": {},
        **more,
    }
