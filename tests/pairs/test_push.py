"""Pairs on the hub: private, the files of the data set alone, and never lost."""

import json
import socket

import pytest
from huggingface_hub import constants

from dpo.pairs import card
from dpo.pairs.folder import OURS
from dpo.pairs.push import check_push, push
from support.hub import TOKEN, Hub
from support.pairs import SETTINGS, pairs_folder

NAME = "somebody/my-pairs"
ROWS = [
    ("train", "a bakery", "Good.", 0.5, "Bad.", -0.5),
    ("test", "a shop", "Yes.", 1.0, "No.", 0),
]


@pytest.fixture
def hub(monkeypatch):
    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
    assert not hub.unknown


@pytest.fixture
def folder(tmp_path):
    prompts = SETTINGS["prompts"] | {"source": str(tmp_path / "asked.txt")}
    folder = pairs_folder(tmp_path / "my-pairs", ROWS, prompts=prompts)
    (folder / "answers").mkdir()  # what a killed command goes on from
    for name in ("answers/0.jsonl", "notes.txt", ".half.json", "train.jsonl.bak"):
        (folder / name).write_text("not for others")
    card.write(folder)
    return folder


def line(call, *given) -> str:
    with pytest.raises(SystemExit) as stop:
        call(*given)
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    return stop.value.code


def test_a_private_data_set_of_the_hub_gets_the_files_of_the_pairs_and_no_others(hub, folder):
    check_push(NAME)
    assert push(folder, NAME) == f"{hub.url}/datasets/{NAME}"
    assert hub.private == {NAME: True}
    sent = hub.files[NAME]
    about = json.loads(sent.pop("pairs.json"))
    assert sent == {name: (folder / name).read_bytes() for name in OURS if name != "pairs.json"}
    kept = json.loads((folder / "pairs.json").read_text())
    assert kept["prompts"].pop("source") == str(folder.parent / "asked.txt")
    assert about["prompts"].pop("source") == "asked.txt" and about == kept


def test_pairs_that_are_there_are_sent_again(hub, folder):
    hub.private[NAME] = True
    check_push(NAME)
    push(folder, NAME)
    assert {*hub.files[NAME]} == {*OURS}


def test_nothing_goes_to_a_public_data_set(hub, folder):
    hub.private[NAME] = False
    for said in (line(check_push, NAME), line(push, folder, NAME)):
        assert said.startswith(f"push: {NAME} is a public data set of the hub")
    assert not hub.files and hub.private == {NAME: False}


@pytest.mark.parametrize("fault", ["the hub fails", "nobody answers", "the token is not taken"])
def test_pairs_that_are_not_sent_are_written_and_a_command_sends_them(
    hub, folder, monkeypatch, fault
):
    if fault == "the hub fails":
        hub.status = 403
    elif fault == "nobody answers":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    else:
        monkeypatch.setenv("HF_TOKEN", "hf_" + "b" * 34)
    check_push(NAME)  # an outage may be over when the pairs are made
    said = line(push, folder, NAME)
    assert said.startswith(f"push: the pairs are written to {folder}, and not sent (")
    assert f"hf upload {NAME} {folder} . --repo-type dataset --private --include " in said
    assert all(f"--include {name}" in said for name in OURS)
    assert not hub.files and (folder / "train.jsonl").stat().st_size


@pytest.mark.parametrize("name", ["pairs", "a/b/c", "datasets/a/b", "me/--x", "me/", "", "me/a b"])
def test_a_name_that_the_hub_cannot_have_is_told_before_anything_is_sampled(hub, name):
    assert line(check_push, name) == (
        f"push: {name!r} is no name of a data set on the hub: give org/name"
    )
    assert not hub.asked


def test_a_token_is_missed_before_anything_is_sampled(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert line(check_push, NAME).startswith("push: there is no token of the hub: log in")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert line(check_push, NAME).startswith("push: HF_HUB_OFFLINE switches the hub off")
    assert not hub.asked
