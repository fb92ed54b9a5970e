"""make push, on a run that has ended."""

import pytest
from huggingface_hub import constants

import push
from support.commands import at_once, make, once
from support.ended import ended_run
from support.hub import TOKEN, Hub

NAME = "somebody/my-model"


def test_a_run_is_sent(tiny_model, tmp_path):
    run = ended_run(tmp_path / "run", tiny_model)
    with Hub() as hub:
        asked = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        result = make("push", f"RUN={run}", f"HUB={NAME}", **asked, HF_HUB_OFFLINE=None)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Sent: {hub.url}/{NAME}" in result.stdout and "\nNext: " in result.stdout
    assert hub.private == {NAME: True} and not hub.unknown
    sent = hub.files[NAME]
    assert sent["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert not {"recipe.yaml", "report.json", "measured.json", "held_out.json"} & {*sent}
    assert TOKEN not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--run=outputs/none"], "no run and no model at outputs/none; the runs here"),
        (["--hub=mine"], "push: 'mine' is no name of a model on the hub: give org/name"),
        ([], "push: HUB= is missing: give org/name"),
        ([f"--hub={NAME}", "unfinished"], "has not ended: the command that began it goes on with"),
    ],
)
def test_what_cannot_be_sent_is_said(tiny_model, tmp_path, monkeypatch, given, says):
    run = ended_run(tmp_path / "run", tiny_model)
    if "unfinished" in given:
        (run / "report.json").unlink()
    given = [each for each in given if each != "unfinished"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("sys.argv", ["push.py", *once([f"--run={run}", *given])])
    with pytest.raises(SystemExit) as stop:
        push.main()
    assert says in stop.value.code and "\n" not in stop.value.code


def test_a_flag_that_there_is_not_is_answered_at_once():
    said, code = at_once("push.py", "--run=a", "--privat")
    assert code and "unrecognized arguments: --privat" in said
