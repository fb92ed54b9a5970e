"""make export HUB=: what passes its checks is sent, exactly that, and once."""

import json
import shutil
import socket
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

import export
from dpo.core.refusal import Refusal
from dpo.reports import results
from dpo.reports.model_card import card
from dpo.runs import publish
from dpo.use import push as pushing
from dpo.use.export import check

NAME = "somebody/my-model"
SENT = {"README.md", "chat_template.jinja", "config.json", "generation_config.json"}
SENT |= {"model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def run(wide_run) -> Path:
    return wide_run


@pytest.fixture
def exporting(run, monkeypatch):
    """make export of the run, in this process."""

    def call(*given: str) -> None:
        monkeypatch.setattr("sys.argv", ["export.py", f"--run={run}", *given])
        export.main()

    return call


def refused(call, *given: str) -> str:
    with pytest.raises(SystemExit) as stop:
        call(*given)
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    return stop.value.code


def test_an_export_is_sent_private_with_its_card_and_once(hub, run, exporting, capsys):
    exporting("--quant=nf4", f"--hub={NAME}")
    folder = run / "exports/merged-nf4"
    assert hub.private == {NAME: True} and {*hub.files[NAME]} == SENT
    for name in SENT - {"README.md"}:
        assert hub.files[NAME][name] == (folder / name).read_bytes()
    sent = hub.files[NAME]["README.md"].decode()
    tags, text = ModelCard(sent).data.tags, ModelCard(sent).text
    assert {"4-bit", "bitsandbytes"} <= {*tags} and text.count(f'from_pretrained("{NAME}"') == 2
    assert "the adapter added to its base, `nf4` (4 bits a weight in linear layers" in text
    assert str(run) not in sent and f"Sent: {hub.url}/{NAME}" in capsys.readouterr().out
    hub.asked.clear()
    exporting("--quant=nf4", f"--hub={NAME}")
    assert "Nothing new, it is there already" in capsys.readouterr().out and hub.commits == 1
    assert not [call for call in hub.asked if call.startswith("PUT") or "/commit/" in call]


def test_what_the_hub_refuses_is_kept_and_goes_on(hub, run, exporting):
    hub.status = 403
    folder = run / "exports/merged-int8"
    said = refused(exporting, "--quant=int8", f"--hub={NAME}")
    assert said.startswith("push: not sent (the token may not write there")
    assert said.endswith(f"This goes on: make push RUN={folder} HUB={NAME}")
    assert (folder / "export.json").is_file() and not hub.files
    hub.status = 200
    pushing.send(str(folder), NAME)
    assert {*hub.files[NAME]} == SENT
    assert len([call for call in hub.asked if call.startswith("PUT")]) == 1
    assert "HUB= is missing" in refused(pushing.send, str(folder), "")
    with pytest.raises(Refusal, match="is an export, and sent as it is: --merged goes with a run"):
        pushing.send(str(folder), NAME, merged=True)


def test_nothing_is_sent_of_what_fails_a_check(hub, run, exporting, monkeypatch):
    monkeypatch.setattr(check, "SHARE", 0.0)
    assert "rounds away what was learned" in refused(
        exporting, "--merge", "--dtype=bf16", f"--hub={NAME}"
    )
    assert not hub.asked and not [*run.glob("exports/*")]


def test_what_would_not_be_sent_is_not_made(hub, run, exporting, monkeypatch):
    said = refused(exporting, f"--hub={NAME}")
    assert "an adapter of a model in a folder of this machine" in said
    assert said.endswith("send both as one with MERGE=1")
    assert "'mine' is no name of a model" in refused(exporting, "--merge", "--hub=mine")
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token of the hub" in refused(exporting, "--merge", f"--hub={NAME}")
    assert not hub.asked and not [*run.glob("exports/*")]


EXPORT = {
    "dtype": "nf4",
    "bits": 4,
    "checked": {
        "answers": 8,
        "nats": {
            "export_from_policy": {"token": 0.1, "answer": 1.0},
            "policy_from_reference": {"token": 0.5, "answer": 4.0},
        },
    },
}


@pytest.mark.parametrize(
    ("kind", "settings", "base", "relation", "library"),
    [
        ("merged", {}, "org/base", "finetune", "transformers"),
        ("adapter", {"bits": None}, "org/base", "adapter", "peft"),
        ("gguf", {"bits": None, "dtype": "q8_0"}, "org/base", "finetune", None),
        # Of what the run itself sends, it is what it was quantised from.
        ("merged", {"push_to_hub": True, "hub_model_id": "me/whole"}, "me/whole", "quantized", ""),
    ],
)
def test_the_card_says_what_an_export_is(run, kind, settings, base, relation, library):
    about = EXPORT | {"kind": kind} | {k: v for k, v in settings.items() if k in EXPORT}
    report = results.read(run / "report.json") | {"model": "org/base"}
    stated = (run / "recipe.yaml").read_text()
    hub = {k: v for k, v in settings.items() if k not in EXPORT}
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in hub.items())
    (run / "recipe.yaml").write_text(stated + lines)
    data = ModelCard(card.text(run, report, "me/other", exported=about)).data
    assert (data.base_model, data.base_model_relation) == (base, relation)
    assert data.library_name == (library if library != "" else "transformers")


def test_an_export_goes_with_the_card_of_the_run_that_it_is_of(
    hub, run, exporting, tmp_path, capsys
):
    to = tmp_path / "released"
    exporting("--merge", f"--to={to}")
    exporting("--merge")
    own, moved = (to / "README.md").read_text(), tmp_path / "moved"
    shutil.copytree(run, moved)
    pushing.send(str(to), NAME)
    assert f'from_pretrained("{NAME}"' in hub.files[NAME]["README.md"].decode()
    # Trained anew in its place, it is another's.
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(report | {"finished": "2026-01-01 00:00:00"}))
    pushing.send(str(to), NAME)
    assert hub.files[NAME]["README.md"].decode() == own
    assert f"not in {run} any more: its card goes as it is" in capsys.readouterr().out
    pushing.send(f"{moved}/exports/merged-float32", "me/other")
    assert 'from_pretrained("me/other"' in hub.files["me/other"]["README.md"].decode()
    config = (to / "config.json").read_text()
    (to / "config.json").write_text(config + " ")
    assert "config.json is not what was checked" in refused(pushing.send, str(to), NAME)
    (to / "config.json").write_text(config)
    (to / "README.md").unlink()
    assert "no README.md is in it: write one" in refused(pushing.send, str(to), NAME)


def test_a_hub_that_does_not_answer_is_not_waited_for(hub, run, exporting, monkeypatch, capsys):
    monkeypatch.setattr(publish, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        said = refused(exporting, "--merge", f"--hub={NAME}")
    assert f"Asking {url} for {NAME}" in capsys.readouterr().out
    assert said.startswith("push: not sent (") and "This goes on: make push" in said
