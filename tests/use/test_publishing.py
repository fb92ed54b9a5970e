"""A policy on the hub: private, the files of the model and its card alone, and no byte twice."""

import json
import socket

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

import reproduce
from dpo.core.refusal import Refusal
from dpo.recipe import header
from dpo.recipe.parse import FOLDER, parse
from dpo.recipe.validate import check_values
from dpo.reports import results
from dpo.reports.model_card import card
from dpo.runs import sweeps
from dpo.use import push as pushing
from support.ended import ended_run

NAME = "somebody/my-model"
MODEL = {"chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"}
MODEL |= {"tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def run(tiny_model, tmp_path):
    return ended_run(tmp_path / "run", tiny_model)


def line(call, *given, **how) -> str:
    with pytest.raises(SystemExit) as stop:
        call(*given, **how)
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    return stop.value.code


def test_a_private_model_gets_the_policy_and_its_card_and_nothing_else(hub, run, capsys):
    for mine in ("notes.py", "tokenizer_notes.txt", "vocab_of_customers.csv", "old.safetensors"):
        (run / mine).write_text("nobody else's")
    assert pushing.push(run, NAME) == f"{hub.url}/{NAME}"
    assert hub.private == {NAME: True}
    sent = hub.files[NAME]
    readme = sent.pop("README.md").decode()
    assert sent == {name: (run / name).read_bytes() for name in MODEL}
    assert readme.count(f'from_pretrained("{NAME}"') == 2
    assert ModelCard(readme).data.library_name == "transformers"
    assert not [each for each in sent.values() if str(run).encode() in each]
    said = capsys.readouterr().out
    assert f"To {NAME} (private): " in said and "model.safetensors 0.3 MB" in said
    assert f"Sent: {hub.url}/{NAME}" in said


def test_a_models_own_code_goes_with_it(run):
    config = json.loads((run / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "own_code.OwnForCausalLM"}
    (run / "config.json").write_text(json.dumps(config))
    for name in ("own_code.py", "what_it_imports.py"):
        (run / name).write_text("# a model's own")
    assert {"own_code.py", "what_it_imports.py"} < {path.name for path in pushing.sent_of(run)}


def test_what_is_there_is_not_sent_again(hub, run, capsys):
    pushing.push(run, NAME)
    hub.asked.clear()
    pushing.push(run, NAME)
    assert "Nothing new, it is there already" in capsys.readouterr().out and hub.commits == 1
    assert not [call for call in hub.asked if call.startswith("PUT") or "/commit/" in call]
    own = "---\nlicense: mit\n---\n\n# My own words\n"
    (run / "README.md").write_text(own)
    pushing.push(run, NAME)
    assert hub.files[NAME]["README.md"].decode() == own and hub.commits == 2
    assert not [call for call in hub.asked if call.startswith("PUT")]


def test_a_push_that_failed_goes_on(hub, run):
    """The weights are there by then."""
    hub.status = 403
    said = line(pushing.push, run, NAME)
    assert said == (
        "push: not sent (the token may not write there: take one that may, or another org/name). "
        f"This goes on: make push RUN={run} HUB={NAME}"
    )
    assert not hub.files and len(hub.stored) == 1
    hub.status = 200
    pushing.push(run, NAME)
    assert {*hub.files[NAME]} == {*MODEL, "README.md"}
    assert len([call for call in hub.asked if call.startswith("PUT")]) == 1


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("nobody answers", "it is not to be reached from here"),
        ("the token is not taken", "the hub does not know the token: log in"),
        ("no such organisation", "the token may not write there"),
    ],
)
def test_an_outage_leaves_one_line(hub, run, monkeypatch, fault, says):
    name = "nobody/my-model" if fault == "no such organisation" else NAME
    if fault == "nobody answers":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    elif fault == "the token is not taken":
        monkeypatch.setenv("HF_TOKEN", "hf_" + "b" * 34)
    said = line(pushing.push, run, name)
    assert said.startswith(f"push: not sent ({says}") and "hf_" not in said
    assert said.endswith(f"This goes on: make push RUN={run} HUB={name}") and not hub.files


def test_nothing_goes_to_a_public_model_unless_that_is_asked_for(hub, run):
    hub.private[NAME] = False
    assert line(pushing.push, run, NAME).startswith(f"push: {NAME} is a public model of the hub")
    assert not hub.files and not hub.stored
    pushing.push(run, NAME, private=False)
    assert {*hub.files[NAME]} == {*MODEL, "README.md"}


def test_an_adapter_is_sent_alone_or_with_its_base(hub, tiny_adapter, tiny_model, tmp_path):
    run = ended_run(tmp_path / "run", tiny_adapter)
    said = line(pushing.push, run, NAME)
    assert "an adapter of a model in a folder of this machine" in said and "--merged" in said
    assert line(pushing.push, run, NAME, merged=True).startswith(f"push: {run} has no merged/")
    config = run / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tiny_model), "somebody/base"))
    pushing.push(run, NAME)
    sent = hub.files[NAME]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {*sent}
    assert "model.safetensors" not in sent
    assert ModelCard(sent["README.md"].decode()).data.library_name == "peft"
    (run / "merged").mkdir()
    save_file({"a": torch.ones(2)}, run / "merged/model.safetensors")
    pushing.push(run, "somebody/whole", merged=True)
    assert {*hub.files["somebody/whole"]} == {"README.md", "model.safetensors"}
    readme = hub.files["somebody/whole"]["README.md"].decode()
    assert ModelCard(readme).data.library_name == "transformers"


def test_an_outage_of_the_hub_costs_no_run(hub, run, capsys):
    settings = {"push_to_hub": True, "hub_model_id": NAME}
    recipe = yaml.safe_load((run / "recipe.yaml").read_text()) | settings
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    hub.status = 500
    pushing.at_the_end(run)
    said = capsys.readouterr().out
    assert "push: not sent (" in said and f"make push RUN={run} HUB={NAME}" in said
    hub.status = 200
    pushing.at_the_end(run)
    assert "Sent: " in capsys.readouterr().out and hub.private == {NAME: True}


def test_the_policy_that_arrives_is_the_one_that_was_trained(hub, run, tmp_path):
    pushing.push(run, NAME)
    (tmp_path / "came.safetensors").write_bytes(hub.files[NAME]["model.safetensors"])
    came, was = load_file(tmp_path / "came.safetensors"), load_file(run / "model.safetensors")
    assert came.keys() == was.keys() and all(torch.equal(came[name], was[name]) for name in was)


def test_the_card_that_is_sent_states_what_the_report_says(hub, run):
    pushing.push(run, NAME)
    report = results.read(run / "report.json")
    assert hub.files[NAME]["README.md"].decode() == card.text(run, report, NAME)


def test_runs_that_are_one_of_several_or_made_again_are_not_sent(tmp_path, monkeypatch):
    flags, started = ["--push_to_hub=true", f"--hub_model_id={NAME}"], []
    (run,) = sweeps.resolved("smollm2-sentiment", "beta=0.2", tmp_path, flags)
    assert not run.recipe.training.push_to_hub and run.recipe.training.hub_model_id == NAME
    monkeypatch.setattr(sweeps, "started", lambda command, *_: started.extend(command))
    sweeps.start(run, [], None, flags)
    assert [each for each in started if "push_to_hub" in each] == ["--push_to_hub=false"]
    path = FOLDER / "smollm2-sentiment.yaml"
    asked = reproduce.Asked(path.stem, "", "", flags, header.expected(path))
    again = reproduce.expectation(asked)[1]
    assert not again.training.push_to_hub and again.training.output_dir.startswith("outputs/repro")
    # Without the flag, a name that nothing is sent to is a mistake still.
    with pytest.raises(Refusal, match=r"hub_model_id is .*: it does nothing"):
        check_values(parse(["--config", str(path), flags[1]]))
