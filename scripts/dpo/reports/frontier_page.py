"""The true reward that policies reach at each distance from their reference: section 6.1 and the
left of figure 2 of the DPO paper (Rafailov et al. 2023, arXiv 2305.18290)."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from dpo.core.stats import said
from dpo.reports.html import png, render

COLORS = plt.get_cmap("viridis")
LINES = ("-", "--", ":", "-.")


def lines(found: dict) -> dict[tuple[str, float], list[dict]]:
    """The points of each run, from the reference on, by loss type and β."""
    runs: dict[tuple[str, float], list[dict]] = {}
    for point in sorted(found["points"], key=lambda point: point["step"]):
        key = (point["loss_type"], point["beta"])
        runs.setdefault(key, [{"step": 0, **found["reference"]}]).append(point)
    return dict(sorted(runs.items()))


def draw(found: dict) -> Figure:
    """True reward over KL, a line for each loss type and β, its checkpoints as points."""
    runs = lines(found)
    losses, betas = (sorted({key[part] for key in runs}) for part in (0, 1))
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure, axis = plt.subplots(figsize=(7.6, 4.6), layout="tight")
    for (loss, beta), points in runs.items():
        x, y = ([p[name]["mean"] for p in points] for name in ("kl", "reward"))
        across, up = (
            [[abs(p[name][end] - p[name]["mean"]) for p in points] for end in ("low", "high")]
            for name in ("kl", "reward")
        )
        axis.errorbar(
            *(x, y, up, across),
            color=COLORS(betas.index(beta) / max(len(betas) - 1, 1) * 0.9),
            linestyle=LINES[losses.index(loss) % len(LINES)],
            marker="os^D"[losses.index(loss) % 4],
            **{"markersize": 4, "linewidth": 1.3, "elinewidth": 0.6},
            label=f"{loss}, β = {beta:g}",
        )
    axis.set(
        xlabel="KL(policy ‖ reference), nats a sequence",
        ylabel=found["reward_name"],
        xlim=(0, None),
    )
    axis.legend(frameon=False, ncols=len(losses), fontsize=8)
    return figure


def table(found: dict) -> list[list[str]]:
    rows = [["loss", "β", "step", "true reward", "KL, nats a sequence"]]
    for (loss, beta), points in lines(found).items():
        for point in points[1:]:
            values = said(point["reward"], "+.3f"), said(point["kl"])
            rows.append([loss, f"{beta:g}", str(point["step"]), *values])
    rows.append(["reference", "", "0", said(found["reference"]["reward"], "+.3f"), "0"])
    return rows


def markdown(rows: list[list[str]]) -> str:
    """A table of cells as Markdown; the first row is its head."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body]) + "\n"


def files(found: dict) -> dict[str, str | bytes]:
    """What a frontier is written as, by file name."""
    drawn, rows = png(draw(found)), table(found)
    given = {"title": "The reward–KL frontier", "about": found["about"]}
    html = render("frontier", **given, drawn=drawn, table=rows)
    return {"frontier.png": drawn, "frontier.html": html, "frontier.md": markdown(rows)}
