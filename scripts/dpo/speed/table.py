"""What a benchmark ends with: its table, shown and written, and a picture of it."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from dpo.core.files import write_whole
from dpo.reports.html import png
from dpo.reports.parts.run_picture import AFTER, BEFORE

# The figures of a row, and how each is written.
FORMS = {"pairs_per_second": ".3g", "tokens_per_second": ",.0f", "peak_memory_gb": ".1f"}
FORMS |= {"mfu": ".0%", "ratio_to_stock": ".2f"}


def table(rows: list[dict]) -> list[list[str]]:
    """Header and cells, as shown and as written."""
    cells = [["variant", "pairs/s", "tokens/s", "peak GB", "useful MFU", "× stock"]]
    for row in rows:
        said = {key: format(row[key], form) for key, form in FORMS.items() if row[key] is not None}
        said = dict.fromkeys(FORMS, "–") | {"peak_memory_gb": "out of memory"} | said
        cells.append([row["name"], *said.values()])
    return cells


def title(row: dict) -> str:
    computed = row["stock_tokens_per_token"]
    return (
        f"{row['model']}, {row['pairs_per_micro_batch']} pairs a micro-batch, lengths of "
        f"{row['lengths'].removesuffix('-lengths')} (stock TRL computes {computed:.2f} tokens for "
        "each that has to be)"
    )


def picture(groups: dict[str, list[dict]], where: str) -> bytes:
    """Pairs a second of every variant, as a PNG."""
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(8, 2.6 * len(groups)), layout="tight", squeeze=False
    )
    for axis, (name, rows) in zip(axes.flat, groups.items(), strict=True):
        speeds = [row["pairs_per_second"] or 0 for row in rows]
        colors = [BEFORE if "TRL" in row["name"] else AFTER for row in rows]
        bars = axis.barh([row["name"] for row in rows], speeds, color=colors)
        ratios = [row["ratio_to_stock"] for row in rows]
        axis.bar_label(bars, [f"{r:.2f}×" if r else "–" for r in ratios], padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(name.split(" (")[0], loc="right")
        axis.set_xlabel(f"pairs a second, {where}")
    return png(figure)


def show(rows: list[dict]) -> None:
    header, *cells = table(rows)
    shown = Table(*header, title=title(rows[0]), title_justify="left")
    for line in cells:
        shown.add_row(*line)
    Console().print(shown)


def write(results: dict, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[dict]] = {}
    for row in results["rows"]:
        groups.setdefault(title(row), []).append(row)
    text = [f"{results['machine']}, {results['dtype']}, torch {results['torch']}."]
    for name, rows in groups.items():
        header, *cells = table(rows)
        lines = [header, ["---"] * len(header), *cells]
        text.append(f"**{name}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    files = {
        "bench.json": json.dumps(results, indent=1),
        "bench.md": "\n\n".join(text) + "\n",
        "bench.png": picture(groups, results["machine"]),
    }
    for name, content in files.items():
        write_whole(folder / name, content)
    return [folder / name for name in files]
