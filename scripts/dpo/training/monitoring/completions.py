"""What the policy says while it trains: the same few prompts at every evaluation, beside what its
reference said."""

from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from dpo.core import files
from dpo.core.terminal import visible
from dpo.runs import metrics, output_folder, tracking
from dpo.runs.tracking import again

SHOWN = 160  # characters of a line in the terminal


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    files.write_lines(folder / output_folder.COMPLETIONS, rows)


def add(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Keep the answers of an evaluation: in completions.jsonl, a line in the terminal, and in the
    W&B run a table of all so far, under one name: what is logged last is what its page shows."""
    write(folder, [*metrics.completions(folder), *rows])
    every, row = metrics.completions(folder), rows[0]  # secrets in the file are masked
    said = " ".join(f"{row['prompt']} → {row['policy']}".split())
    tqdm.write(visible(f"{'says':>8}  step {row['step']}  {said}")[:SHOWN])

    tracking.to_wandb(lambda wandb: again.log_completions(wandb, every))


def forget_after(folder: Path, step: int) -> None:
    """Take away what lies past the checkpoint that a run goes on from."""
    if (folder / output_folder.COMPLETIONS).is_file():
        write(folder, [row for row in metrics.completions(folder) if row["step"] <= step and step])
