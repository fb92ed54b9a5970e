"""The true reward that policies reach at each distance from their reference: section 6.1 and the
left of figure 2 of the DPO paper (Rafailov et al. 2023, arXiv 2305.18290)."""

from __future__ import annotations

import gc
import html
from dataclasses import asdict

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from dpo.core.stats import bootstrap
from dpo.evaluation import generations
from dpo.evaluation.contestants import Contestant
from dpo.evaluation.judges.known_reward import vader_score
from dpo.models import scoring
from dpo.models.sampling import Completion, Messages, prompt_token_ids
from dpo.reports.evaluation_page import said
from dpo.reports.html import document, picture, png

COLORS = plt.get_cmap("viridis")
LINES = ("-", "--", ":", "-.")


def measure(
    policy: Contestant,
    reference: PreTrainedModel,
    prompts: list[Messages],
    settings: generations.Settings,
) -> dict:
    """True reward of a policy's answers, and its KL from the reference on them in nats a sequence,
    each with a 95% interval over prompts."""
    tokenizer, device = policy.tokenizer(), str(reference.device)
    with policy.autocast(device):
        model = policy.load(device)
        drawn = generations.draw(policy, model, tokenizer, prompts, settings)
        ids = [prompt_token_ids(tokenizer, prompt) for prompt in prompts]
        own = [
            (prompt, answer.token_ids)
            for prompt, row in zip(ids, drawn, strict=True)
            for answer in row
        ]
        how = (own, tokenizer.pad_token_id, settings.temperature)
        nats = scoring.score(model, *how) - scoring.score(reference, *how)
    del model
    gc.collect()
    found = generations.kl(nats.reshape(len(prompts), -1), generations.lengths(drawn))
    return {"reward": reward_of(drawn), "kl": found["nats_per_sequence"]}


def reward_of(drawn: list[list[Completion]]) -> dict:
    scores = np.array([[vader_score(answer.text) for answer in row] for row in drawn])
    return asdict(bootstrap(scores.mean(axis=1)))


def start(
    reference: Contestant,
    model: PreTrainedModel,
    prompts: list[Messages],
    settings: generations.Settings,
) -> dict:
    """The reference itself, which is no nat from itself."""
    with reference.autocast(str(model.device)):
        drawn = generations.draw(reference, model, reference.tokenizer(), prompts, settings)
    nothing = {"mean": 0.0, "low": 0.0, "high": 0.0}
    return {"reward": reward_of(drawn), "kl": nothing}


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
    start = said(found["reference"]["reward"], "+.3f")
    rows.append(["reference", "", "0", start, "0"])
    return rows


def markdown(rows: list[list[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body]) + "\n"


def page(found: dict, drawn: bytes) -> str:
    cells = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table(found)
    )
    says = "True reward over KL from the reference, a line for each loss type and β"
    return document(
        "The reward–KL frontier",
        f"""<p class="dim">{html.escape(found["about"])}</p>{picture(drawn, says)}
<h2>Every point, with 95% intervals over prompts</h2><table>{cells}</table>""",
    )


def files(found: dict) -> dict[str, str | bytes]:
    """What a frontier is written as, by file name."""
    drawn = png(draw(found))
    return {
        "frontier.png": drawn,
        "frontier.html": page(found, drawn),
        "frontier.md": markdown(table(found)),
    }
