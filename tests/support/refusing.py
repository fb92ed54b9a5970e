"""The one line with which a command refuses."""

import sys

import pytest
import torch

import train
from dpo.core.terminal import guarded
from support.commands import once
from support.place import ROOT

RECIPE = ROOT / "recipes/smollm2-sentiment.yaml"


def refusal(monkeypatch, *flags: str, recipe=RECIPE) -> str:
    """The line with which train.py refuses."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(recipe), *once(flags)])
    monkeypatch.setattr(torch.nn.Module, "train", None)  # nothing may get as far as training
    monkeypatch.setattr(train.Leave, "listen", lambda self: self)  # signals are for pytest
    with pytest.raises(SystemExit) as stop:
        train.main()
    message = stop.value.code
    assert isinstance(message, str), message  # so the exit code is 1 and the line is on stderr
    assert "\n" not in message
    return message


def edited(tmp_path, old: str, new: str):
    """The default recipe with one line changed."""
    text = RECIPE.read_text()
    assert old in text
    path = tmp_path / "edited.yaml"
    path.write_text(text.replace(old, new))
    return path


def line_of(call) -> str:
    """The line with which an entry point that does this ends."""
    with pytest.raises(SystemExit) as stop:
        guarded(call)()
    assert isinstance(stop.value.code, str), stop.value.code
    assert "\n" not in stop.value.code
    return stop.value.code
