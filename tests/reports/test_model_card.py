"""The card of a policy: valid for the hub, true to what was measured, and not to be broken."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard, constants
from markdown_it import MarkdownIt

from dpo.reports import results
from dpo.reports.model_card import card
from support.ended import FOUND, ended_run, judged
from support.hub import Hub

HOSTILE = "---\nlicense: mit\n---\n# Head | `code`\n```\n<script>alert(1)</script> [x](http://a.b)"


@pytest.fixture
def run(tiny_model, tmp_path):
    model = "models/SmolLM2-135M-Instruct"
    return ended_run(tmp_path / "run", tiny_model, {"model_name_or_path": model})


def written(run) -> tuple[str, ModelCard]:
    card.write(run, results.read(run / "report.json"))
    return (run / "README.md").read_text(), ModelCard.load(run / "README.md")


def test_the_card_states_what_is_known(run):
    text, read = written(run)
    assert read.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert read.data.license == "apache-2.0" and read.data.library_name == "transformers"
    assert read.data.datasets is None  # no data set of the hub
    by_type = {result.metric_type: result for result in read.data.eval_results}
    assert by_type["accuracy"].metric_value == 0.75
    assert by_type["accuracy"].metric_name.endswith("95% interval 0.670 to 0.820")
    assert by_type["win_rate"].metric_value == 0.7 and by_type["kl"].metric_value == 3
    assert by_type["reward"].metric_value == 0.25
    assert "- the preferences, `recipes/data/sentiment`: `apache-2.0`" in text
    for said in ("512 rows, 24 steps of 8 pairs", "CPU (an EPYC)", "trl 1.16.0", "KL is far"):
        assert said in text
    (recipe,) = [part.partition("```")[0] for part in text.split("```yaml\n")[1:]]
    assert yaml.safe_load(recipe)["beta"] == 0.1
    assert "{rafailov2023direct," in text and "None" not in text


def test_no_path_of_this_machine_stands_in_it(tiny_model, tmp_path):
    data = {"dataset_name": None, "datasets": [{"path": "/a/b/mine"}]}
    text, _ = written(ended_run(tmp_path / "other", tiny_model, data))
    assert str(tmp_path) not in text and str(tiny_model) not in text and "/a/b" not in text
    assert "`mine`" in text


def test_the_python_in_it_loads_the_folder(run, monkeypatch, capsys):
    text, _ = written(run)
    code = text.split("```python\n")[1].partition("```")[0]
    monkeypatch.chdir(run)
    exec(code.replace("max_new_tokens=100", "max_new_tokens=4"), {})
    assert capsys.readouterr().out.strip()
    named = card.text(run, results.read(run / "report.json"), "me/mine")
    assert named.count('from_pretrained("me/mine"') == 2 and "# mine\n" in named


def test_evaluations_of_the_policy_join_it_and_a_change_by_hand_is_kept(run):
    before, _ = written(run)
    for name, policy in (("reference", str(run)), ("checkpoint-2-x", f"{run}/checkpoint-2")):
        (run / "evaluations" / name).mkdir(parents=True)
        judge = judged("http://me:secret-password@10.0.0.1/v1", reward=None)
        judge["about"] = {"model": "judge-of-mine"}
        found = {**FOUND, "policy": policy, "against": "m", "judge": judge, "suite": None}
        (run / "evaluations" / name / "evaluation.json").write_text(json.dumps(found))
    card.renew(run)
    after = (run / "README.md").read_text()
    assert before != after and after.count("win rate by `judge-of-mine` | 0.70 (0.60 to 0.80)") == 1
    assert "10.0.0.1" not in after
    own = after.replace("# run", "# My run")
    (run / "README.md").write_text(own)
    assert card.by_hand(run)
    card.renew(run)
    assert (run / "README.md").read_text() == own


def test_no_text_of_others_is_markup(tiny_model, tmp_path):
    evil = ended_run(
        tmp_path / "a <b>|`x",
        tiny_model,
        {"dataset_name": HOSTILE, "model_name_or_path": HOSTILE},
        recipe=HOSTILE,
        machine=HOSTILE,
    )
    text, read = written(evil)
    assert read.data.license is None and read.data.base_model is None
    html = MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])
    assert "<script>" not in html and 'href="http://a.b' not in html and "<b>" not in html
    assert html.count("<h1>") == 1


def test_the_hub_takes_its_front_matter(run, monkeypatch):
    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        _, read = written(run)
        read.validate()
    assert hub.asked == ["POST /api/validate-yaml"]
