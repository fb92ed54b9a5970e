"""make serve: what is served, by which server, and what is said before it starts."""

import importlib.util
import json
import os
import shutil
import socket
import sys

import pytest
import torch

from dpo.core.refusal import Refusal
from dpo.evaluation.contestants import Contestant
from dpo.use import serving
from dpo.use.run import Used
from support.commands import at_once


def test_an_adapter_is_served_from_its_newest_merged_export(
    tiny_model, tiny_adapter, tmp_path, capsys
):
    policy = Contestant("run", str(tiny_adapter))
    run = Used(tmp_path, None, policy, policy)
    with pytest.raises(Refusal, match=r"served merged with its base: make export RUN=\S+ MERGE=1"):
        serving.served(run)
    (tmp_path / "report.json").write_text('{"finished": "now"}')
    exports = {"merged-nf4": (4, "now"), "merged-float32": (None, "now")}
    exports |= {"merged-bfloat16": (None, "now"), "merged-int8": (8, "now")}
    exports["merged-float16"] = (None, "of the run that was here before")
    for at, (name, (bits, ended)) in enumerate(exports.items()):
        (folder := tmp_path / "exports" / name).mkdir(parents=True)
        about = {"run": str(tmp_path), "run_ended": ended, "bits": bits}
        (folder / "export.json").write_text(json.dumps(about))
        os.utime(folder, (at, at))
    assert serving.served(run) == tmp_path / "exports/merged-bfloat16"
    assert not capsys.readouterr().out
    for name in ("merged-float32", "merged-bfloat16"):
        shutil.rmtree(tmp_path / "exports" / name)
    assert serving.served(run) == tmp_path / "exports/merged-int8"
    assert "merged-int8 has 8 bits a weight" in capsys.readouterr().out
    full = Used(tmp_path, None, Contestant("run", str(tiny_model)), policy)
    assert serving.served(full) == tiny_model


def test_a_port_that_is_taken_is_said():
    with socket.socket() as other:
        other.bind((serving.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Refusal, match=f"port {port} cannot be had .*: give another PORT="):
            serving.check_port(port)
    serving.check_port(port)
    with pytest.raises(Refusal, match="port 99999 cannot be had"):
        serving.check_port(99999)


@pytest.mark.parametrize("has", [{"vllm"}, {"fastapi"}, set()])
def test_the_server_is_what_is_installed(has, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in has or None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if not has:
        with pytest.raises(Refusal, match=r"needs fastapi.* --requirement requirements-serve.txt"):
            serving.command(tmp_path, 8001, False)
        return
    program, *rest = serving.command(tmp_path, 8001, True)
    assert program == f"{sys.prefix}/bin/{'vllm' if 'vllm' in has else 'transformers'}"
    assert rest == [
        *("serve", str(tmp_path), "--host", "127.0.0.1", "--port", "8001", "--trust-remote-code")
    ]


def test_how_to_ask_it_is_python_and_json(tmp_path):
    folder = tmp_path / 'a "run"'
    for chats in (True, False):
        curl, empty, *python = serving.tried(folder, 8001, chats).splitlines()
        assert len(python) == 3 and not empty and compile("\n".join(python), "told", "exec")
        asked = json.loads(curl.split(" -d ")[1].strip("'"))
        assert asked["model"] == str(folder) and ("messages" in asked) == chats
        # In plain text past the chat template, where a run was trained so.
        assert ("/v1/chat/completions " in curl) == ("client.chat." in python[1]) == chats


def test_what_is_misspelt_is_answered_at_once():
    said, code = at_once("serve.py", "--run=x", "--port=no")
    assert code == 2 and "--port" in said
    said, code = at_once("serve.py", "--run=outputs/none")
    assert code == 1 and "no run and no model at outputs/none" in said
