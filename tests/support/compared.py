"""Folders of runs with results that are made up, to be compared."""

import json

import numpy as np
import yaml

EVIL = "<script>alert(1)</script> | \x1b[31m [/bold]"


def a_run(folder, margins, rewards=None, digest="d", **settings):
    """The folder of a finished run with these margins on held-out pairs, and rewards of answers."""
    folder.mkdir(parents=True)
    stated = {"recipe": "r", "model_name_or_path": "m", **settings, "output_dir": str(folder)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(stated))
    margins = np.array(margins, dtype=float)
    point = {f"rewards/{key}": 0.1 for key in ("margins", "accuracies", "chosen", "rejected")}
    lines = [
        {"step": step, "loss": 0.7 - step / 100, **point, "seconds": 60.0} for step in range(1, 5)
    ]
    lines += [
        {"step": step, "eval_loss": loss, "seconds": 60.0}
        | {f"eval_{key}": value for key, value in point.items()}
        for step, loss in ((2, 0.5), (4, 0.6))
    ]
    lines += [{"step": 4, "eval_drift_nats_per_token": 0.1, "eval_drift_tokens": 9.0}]
    lines[-1]["seconds"] = 60.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    right = (margins > 0).mean()
    report = {
        "preference_accuracy": {"after": right, "low": right - 0.1, "high": right + 0.1},
        "margin": {"after": margins.mean(), "low": 0.0, "high": 1.0},
        "margins": margins.tolist(),
        "held_out_digest": digest,
        "alerts": [],
        "versions": {"trl": "1"},
        "machine": "CPU",
        "data": {"name": "d", "rows": {"train": 4}, "set_aside": {"train": {}}},
        "seconds": {"train": 60.0, "evaluate": 30.0},
        "peak_memory_gb": 1.0,
        "mean_tokens": {"before": 20.0, "after": 25.0},
        "samples": [
            {"prompt": f"{EVIL} {i}", "before": EVIL, "after": f"{folder.name} says {EVIL}"}
            | {"reward_before": 0.1, "reward_after": 0.2}
            for i in range(3)
        ],
    }
    if rewards is not None:
        report["answers"] = {"after": np.array(rewards)[:, None].tolist()}
        report["true_reward"] = {"after": float(np.mean(rewards)), "difference": 0.1}
        report["true_reward"] |= {"low": -0.1, "high": 0.2}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def evaluated(folder, preferred, name="reference-vader", against="m", temperature=0.7):
    """Add an evaluation in which a judge has preferred the run's answers so."""
    into = folder / "evaluations" / name
    into.mkdir(parents=True)
    rate = dict.fromkeys(("mean", "low", "high"), float(np.nanmean(preferred)))
    asked = [f"prompt {at}" for at in range(len(preferred))]
    found = {
        "against": against,
        "prompts": {"samples": 1, "temperature": temperature, "max_new_tokens": 40},
        "judge": {"win_rate": rate, "length_controlled_win_rate": None},
        "answers": {"mean_tokens": {"difference": rate}, "kl": {"nats_per_sequence": rate}},
        "suite": {"ifeval": {"acc": {"policy": 0.5, "against": 0.25, "stderr_policy": 0.01}}},
        "samples": [
            {"prompt": prompt, "policy": f"{folder.name}!", "against": "?"}
            | {"reward_policy": None, "reward_against": None}
            for prompt in asked[:2]
        ],
    }
    (into / "evaluation.json").write_text(json.dumps(found))
    lines = [
        json.dumps({"prompt": prompt, "preferred": None if np.isnan(value) else value}) + "\n"
        for prompt, value in zip(asked, preferred, strict=True)
    ]
    (into / "answers.jsonl").write_text("".join(lines))
