"""A token that a run is given is in nothing that it leaves: no file, no output, no W&B record."""

import json
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import get_token
from torch.distributed.elastic.multiprocessing.errors import record

from dpo.core import secrets
from dpo.core.files import read_lines, write_json, write_lines, write_whole
from dpo.core.terminal import guarded
from support.commands import launch, run_flags
from support.hub import Hub
from support.launched import forked
from support.refusing import edited, refusal
from support.tiny import pair

FLAG = "hf_plantedInAFlag0123456789abcdef"
PLANTED = {
    "HF_TOKEN": "hf_plantedInTheEnvironment0123456789",
    "WANDB_API_KEY": "0badc0de" * 5,
    "MY_SECRET": 'planted & "quoted"',
}
PASSWORD = "plantedInAUrl"
REMOTE = {  # of the repository that the run is started in: W&B records it
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "remote.origin.url",
    "GIT_CONFIG_VALUE_0": f"https://me:{PASSWORD}@127.0.0.1/dpo.git",
}
FORMS = ("planted &", r"quoted\"", "planted &amp;")  # of MY_SECRET, as it is, in JSON and in HTML


def holds_none(content: bytes) -> bool:
    needles = (FLAG, PASSWORD, *PLANTED.values(), *FORMS)
    found = [needle for needle in needles if needle.encode() in content]
    assert not found
    return True


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def planted(tiny_model, tiny_data, tmp_path_factory):
    """A run that is given every kind of secret, and data in which one stands, beside what would
    run in a browser and what would steer a terminal. Its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("planted")
    shutil.copytree(tiny_data, folder / "data")
    evil = f"{PLANTED['MY_SECRET']} <script>alert(1)</script> \x1b[31mred"
    rows = [pair(f"{evil} {i}", "It was good.", "It was bad.") for i in range(4)]
    rows = [row | {"vader_chosen": 0.8, "vader_rejected": -0.5} for row in rows]
    (folder / "data/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [*run_flags(tiny_model, folder / "data", folder / "run"), "--hub_token", FLAG]
    return folder / "run", launch("--accelerate_config", "cpu", "--", *flags, **PLANTED, **REMOTE)


def test_no_secret_in_any_file_of_a_run(planted):
    folder, result = planted
    assert result.returncode == 0, result.stderr[-3000:]
    files = everything(folder)
    assert all(map(holds_none, files.values()))
    assert {"recipe.yaml", "report.json", "report.html"} <= {path.name for path in files}
    assert ".wandb" in {path.suffix for path in files}
    assert "***" in (folder / "report.html").read_text()  # the one that stood in the data


def test_no_secret_in_what_a_run_prints(planted):
    _, result = planted
    assert holds_none((result.stdout + result.stderr).encode())
    assert "hub_token" not in result.stdout.splitlines()[0]  # the command that was launched


def test_what_data_say_is_text(planted):
    folder, result = planted
    page = (folder / "report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert "Content-Security-Policy" in page and "default-src 'none'" in page
    assert "\x1b[31m" not in result.stdout + result.stderr


def test_a_run_leaves_no_pickle_to_use(planted):
    folder, _ = planted
    assert not [*folder.rglob("training_args.bin")]
    kinds = {path.suffix for path in folder.iterdir() if path.is_file()}
    assert not kinds & {".bin", ".pt", ".pth", ".pkl"}


def test_no_secret_in_a_run_that_the_hub_refuses(launched, tiny_model, tiny_data, tmp_path):
    """And it is asked when the run has ended, not before."""
    flags = [*run_flags(tiny_model, tiny_data, tmp_path / "run"), f"--hub-token={FLAG}"]
    flags += ["--push_to_hub", "--hub_model_id=me/policy"]
    with Hub() as hub:
        address = hub.url.replace("://", f"://me:{PASSWORD}@")
        first = f"from huggingface_hub import constants; constants.ENDPOINT = {address!r}"
        result = launched(*flags, first=first, **PLANTED)
    assert result.returncode == 0, result.stderr[-2000:]
    last = result.stdout.splitlines()[-1]
    assert last.startswith("push: not sent (the hub does not know the token"), last
    posted = [call for call in hub.asked if call.startswith("POST")]
    assert posted == ["POST /api/repos/create"]
    assert holds_none((result.stdout + result.stderr).encode())
    assert all(map(holds_none, everything(tmp_path / "run").values()))


def test_wandb_keeps_only_what_was_masked(tmp_path):
    """It records what is printed. train.py has imported it when the masking is put on."""
    code = (
        "import train\n"
        "from wandb.sdk.lib import console_capture\n"
        "seen = []; console_capture.capture_stdout(lambda text, n: seen.append(text))\n"
        "from dpo.core import terminal; terminal.guarded(lambda: print('it is', __import__('os')"
        ".environ['MY_SECRET']))()\n"
        "assert '***' in ''.join(seen) and 'planted' not in ''.join(seen), seen\n"
        "raise SystemExit"
    )
    result = forked("train", first=code, **PLANTED)
    assert result.returncode == 0, result.stderr
    assert "it is ***" in result.stdout


@pytest.mark.parametrize(
    "line", [f"hub_token: {FLAG}", f"run_name: {FLAG}", 'model_init_kwargs: {"token": "abc"}']
)
def test_a_recipe_holds_no_token(monkeypatch, tmp_path, line):
    recipe = edited(tmp_path, "learning_rate:", f"{line}\nlearning_rate:")
    message = refusal(monkeypatch, recipe=recipe)
    assert line.partition(":")[0] in message and "edited.yaml" in message
    assert "hf auth login" in message and FLAG not in message


@pytest.mark.parametrize(
    "flags",
    [
        (f"--run_name={FLAG}",),
        ("--run_name", FLAG),
        ('--model_init_kwargs={"token": "abc"}',),
        ("--run_name=of-a-long-secret",),
        ("--dataset_name=https://me:password@host/pairs.jsonl",),
    ],
)
def test_no_other_flag_takes_a_token(monkeypatch, flags):
    monkeypatch.setenv("MY_SECRET", "a-long-secret")
    message = refusal(monkeypatch, *flags)
    assert f"argument {flags[0].partition('=')[0]} holds a token" in message
    assert FLAG not in message and "a-long-secret" not in message


@pytest.mark.parametrize("flags", [["--hub_token", FLAG], [f"--hub-token={FLAG}"]])
def test_the_hub_finds_the_token_of_the_flag(monkeypatch, flags):
    monkeypatch.setenv("HF_TOKEN", "hf_theOneOfTheMachine0123456789")
    assert secrets.take_out(["--beta=1", *flags, "--restart"]) == ["--beta=1", "--restart"]
    assert get_token() == FLAG


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abcdef", "Authorization***"),
        ("{'authorization': 'Basic YWJj'}", "{'authorization***'}"),
        ("https://me:word@host:80/x", "https://***@host:80/x"),
        ("wandb_v1_0123456789abcdefghij", "***"),
        ("the hf_token of TOKENIZERS and https://host/a:b@c", None),
        ("the value of short", None),
        ("a/path/that/is/there", None),
    ],
)
def test_what_is_masked(monkeypatch, text, shown):
    for name in [name for name in os.environ if secrets.NAMES.search(name)]:
        monkeypatch.delenv(name)
    for name, value in {"A_KEY": "short", "HF_TOKEN_PATH": "a/path/that/is/there"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "TOKENIZERS")
    assert secrets.mask(text) == (shown or text)


def test_torchrun_is_told_no_secret(monkeypatch, tmp_path):
    """It prints what the error file of a process says, in a process of its own."""
    monkeypatch.setenv("MY_SECRET", "a-long-secret")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr("sys.argv", ["train.py"])

    def fail():
        raise RuntimeError("it is a-long-secret")

    with pytest.raises(SystemExit):
        guarded(record(fail), alone=False)()
    assert "it is ***" in (tmp_path / "error.json").read_text()
    assert "a-long-secret" not in (tmp_path / "error.json").read_text()


def test_json_stays_json_whatever_is_masked(tmp_path):
    """A quote keeps its escape, and no line end hides a token or cuts a file."""
    said = f'curl -H "Authorization: Bearer a-long-word" x\n{FLAG}\u2028{FLAG}'
    shown = 'curl -H "Authorization***" x\n***\u2028***'
    write_lines(tmp_path / "lines", [{"said": [said]}, {"last": FLAG.encode()}])
    assert read_lines(tmp_path / "lines") == [{"said": [shown]}, {"last": "b'***'"}]
    write_json(tmp_path / "json", {said: {"a": (said, 1.5, None)}})
    assert json.loads((tmp_path / "json").read_text()) == {shown: {"a": [shown, 1.5, None]}}


def test_files_are_written_masked(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_SECRET", "a-long-secret")
    write_whole(tmp_path / "text", "it is a-long-secret")
    assert (tmp_path / "text").read_text() == "it is ***"
