"""The page a run ends with: whole in one file, and nothing in it that a model said is markup."""

from html.parser import HTMLParser

import pytest

from dpo.evaluation import generations, measure
from dpo.evaluation.judges import judging
from dpo.models.sampling import Completion
from dpo.reports import run_report
from dpo.runs import metrics
from support.browser import DESKTOP, PHONE, fits, opened, pictures


@pytest.fixture
def results() -> dict:
    prompts = [[{"role": "user", "content": f"How was {i} <b>?"}] for i in range(12)]
    evil = [[Completion("<script>alert(1)</script> & bad", [1, 2], True)] * 2 for _ in prompts]
    good = [[Completion("I love it", [1, 2, 3], True)] * 2 for _ in prompts]
    point = {"rewards/margins": 0.1, "rewards/accuracies": 0.6}
    point |= {"rewards/chosen": 0.2, "rewards/rejected": 0.1}
    log = [
        {"step": 1, "loss": 0.69, **point},
        {"step": 2, "eval_loss": 0.6, "eval_runtime": 1.0}
        | {f"eval_{key}": value for key, value in point.items()},
        {"step": 2, "train_runtime": 3.0, "train_loss": 0.6},
    ]
    return {
        "recipe": "a<i>recipe",
        "model": "model",
        "data": {
            **{"name": "data", "rows": {"train": 4}, "set_aside": {"train": {"same": 1}}},
            "notes": ["plain text is trained on as it stands <script>alert(4)</script>"],
        },
        "global_batch": 4,
        "steps": 2,
        "beta": 0.1,
        "loss_type": ["sigmoid"],
        "curves": run_report.curves(log),
        "alerts": [{"kind": "drift", "step": 2, "says": "<script>alert(3)</script> far"}],
        "settings": {"note": "<img src=x onerror=alert(2)>"},
        "versions": {"trl": "1"},
        "machine": "CPU",
        "finished": "now",
        "seconds": {"train": 60.0, "evaluate": 30.0},
        "peak_memory_gb": 3.0,
        **measured(prompts, evil, good),
    }


def measured(prompts: list, before: list, after: list) -> dict:
    """As a run with a known reward ends: 128 pairs, two answers to each prompt."""
    accuracy = {"mean": 0.7, "low": 0.6, "high": 0.8}
    pairs = {"count": 128, "accuracy": accuracy, "ceiling": 0.9}
    kl = {key: {"mean": 3.0} for key in ("nats_per_sequence", "nats_per_token")}
    found = measure.Measured(pairs, kl, after, before)
    verdicts = judging.by_known_reward(measure.comparisons(prompts, found))
    lines = measure.lines_of(prompts, found, verdicts)
    return measure.results("", prompts, generations.Settings(2, 0.7, 9, 0), found, verdicts, lines)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_is_self_contained_and_escaped(results, tmp_path):
    run_report.write(results, tmp_path)
    page = Tags()
    page.feed((tmp_path / "report.html").read_text())
    tags = [tag for tag, _ in page.seen]
    assert "script" not in tags and "i" not in tags and tags.count("img") == 2
    assert not any("onerror" in attrs for _, attrs in page.seen)
    links = [a[key] for _, a in page.seen for key in ("src", "href") if key in a]
    assert len(links) == 2 and all(link.startswith("data:image/png;base64,") for link in links)
    assert "<script>alert(1)</script> & bad" in page.text  # shown as the text that it is
    assert "drift, step 2: <script>alert(3)</script> far" in page.text
    assert "Data: plain text is trained on as it stands <script>alert(4)</script>" in page.text
    assert page.text.count("How was") == 10  # ten samples side by side
    assert "10 of 12 held-out prompts, drawn at random (seed 0), the first of 2" in page.text
    for words in ("True reward", "Preference accuracy", "KL from the reference", "3.00 nats"):
        assert words in page.text


def test_the_page_opens_on_a_phone_without_network(results, tmp_path):
    run_report.write(results, tmp_path)
    with opened((tmp_path / "report.html").as_uri(), PHONE) as page:
        assert page.errors == []
        assert fits(page)
        assert min(pictures(page)) > 600
        assert page.get_by_text("Preference accuracy", exact=True).first.is_visible()
        assert page.get_by_text("<script>alert(1)</script>").count() == 10


def logged(folder) -> list[dict]:
    """The metrics of a run of eight steps, two evaluations in it, as metrics.jsonl has them."""
    names = {"rewards/margins": 0.1, "rewards/accuracies": 0.6, "rewards/chosen": -0.2}
    names |= {"rewards/rejected": -0.3, "logps/chosen": -40.0, "logps/rejected": -42.0}
    entries = []
    for step in range(1, 9):
        own = {"loss": 0.7 - step / 100, "grad_norm": 9.0 + step, "learning_rate": 2e-5 / step}
        entries.append({"step": step, **own, **names, "seconds": 3.0 * step})
        if step % 4 == 0:
            held_out = {f"eval_{name}": value for name, value in names.items()}
            entries.append({"step": step, "eval_loss": 0.6, **held_out, "seconds": 3.0 * step})
            drift = {"eval_drift_nats_per_token": step / 100, "eval_drift_tokens": 20.0 + step}
            entries.append({"step": step, **drift, "seconds": 3.0 * step})
    folder.joinpath("metrics.jsonl").write_text("".join(map(metrics.line, entries)))
    return entries


TITLES = ["Preference accuracy", "Implicit reward", "DPO loss", "KL from the reference"]
TITLES += ["Length of its own answers", "Gradient norm", "Learning rate", "Log-probability"]


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_curves_of_a_run_are_what_it_logged(results, tmp_path, width):
    logged(tmp_path)
    run_report.write(results, tmp_path)
    with opened((tmp_path / "report.html").as_uri(), width) as page:
        panels = page.locator("figcaption").all_inner_texts()
        assert [said.splitlines()[0] for said in panels] == TITLES
        assert len(pictures(page)) == 1  # the histogram: curves took the other's place
        page.wait_for_timeout(100)
        readouts = [" ".join(said.split()) for said in page.locator(".readout").all_inner_texts()]
        assert "training batches 0.62" in readouts[2] and "held-out pairs 0.6" in readouts[2]
        assert "ln 2: the start 0.6931" in readouts[2]
        assert "chosen training batches -0.2; held-out pairs -0.2" in readouts[1]
        assert readouts[3] == "last held-out pairs 0.08"
        page.get_by_role("button", name="held-out pairs").click()
        page.wait_for_timeout(100)
        assert "held-out" not in page.locator(".readout").nth(2).inner_text()
        assert page.errors == [] and fits(page)


def test_settings_at_their_defaults_are_shown_as_such(results, tmp_path):
    results |= {"settings": {"seed": 3}, "resolved": {"beta": 0.1, "seed": 3}}
    run_report.write(results, tmp_path)
    page = Tags()
    page.feed((tmp_path / "report.html").read_text())
    assert "0.1 (default)" in page.text and "3 (default)" not in page.text


def test_a_run_without_known_reward_or_held_out_pairs_has_a_page_too(results, tmp_path):
    results |= {"prompts": None, "answers": None, "judge": None, "pairs": None, "samples": []}
    results["curves"]["held_out"] = []
    del results["data"]["notes"]  # as in an older run's
    run_report.write(results, tmp_path)
    assert "<small>True reward</small>" not in (tmp_path / "report.html").read_text()


def test_curves_keep_training_and_held_out_points_apart(results):
    assert results["curves"] == {
        "train": [
            {
                **{"step": 1, "loss": 0.69, "margin": 0.1, "accuracy": 0.6},
                **{"chosen": 0.2, "rejected": 0.1},
            }
        ],
        "held_out": [
            {
                **{"step": 2, "loss": 0.6, "margin": 0.1, "accuracy": 0.6},
                **{"chosen": 0.2, "rejected": 0.1},
            }
        ],
    }


def test_curves_are_what_was_logged():
    """A mean margin of zero may be of two pairs that are right and one that is very wrong."""
    entry = {f"rewards/{key}": 0.0 for key in ("margins", "chosen", "rejected")}
    entry["rewards/accuracies"] = 2 / 3
    (point,) = run_report.curves([{"step": 1, "loss": 0.6931, **entry}])["train"]
    assert point["accuracy"] == 2 / 3


LENGTHS = {
    "max_length": 512,
    **{"pairs": 1000, "cut": 120, "left_out": 37, "longest": 4000},
    "fit": {"90%": 890, "95%": 1200, "99%": 2100},
}
# name: (what else the report has of the data, what the summary says)
SAID = {
    "cut and left out": (
        {"lengths": {"train": LENGTHS}},
        "set aside: same; max_length 512: 120 of 1000 pairs are cut, 37 left out; 90% of the pairs "
        "fit in 890 tokens, 95% in 1200, 99% in 2100, all in 4000",
    ),
    "whole": ({"lengths": {"train": LENGTHS | {"cut": 0, "left_out": 0}}}, "512: none is cut"),
    "off": ({"lengths": {"train": LENGTHS | {"max_length": None}}}, "max_length off"),
    "a stream": ({"lengths": {"train": {}}}, "set aside: same)"),
    "an older report": ({}, "set aside: same)"),
}


@pytest.mark.parametrize("more, said", SAID.values(), ids=SAID)
def test_a_report_says_what_max_length_did(results, more, said):
    results["data"] |= more
    assert said in run_report.summary(results)
