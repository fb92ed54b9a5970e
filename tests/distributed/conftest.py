"""Ten steps by several processes, and what one process learns in them."""

import functools
import json
from pathlib import Path

import pytest
from filelock import FileLock

from support.several import MOVES, TRAINED, ten_steps


@pytest.fixture(scope="session")
def bare_data(tiny_data, tmp_path_factory) -> Path:
    """The tiny data without a known reward: nothing is generated when training has ended."""
    folder = tmp_path_factory.mktemp("tiny") / "bare"
    folder.mkdir()
    for file in tiny_data.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [{k: v for k, v in row.items() if not k.startswith("vader")} for row in rows]
        (folder / file.name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def learn(launched, tiny_model, tiny_adapter, bare_data):
    """Ten steps of full fine-tuning, of a new adapter, or on from one: what the run printed."""

    def learn(folder: Path, trained: str, config: str, processes: int, *more: str) -> str:
        start = tiny_adapter if trained == "adapter" else tiny_model
        flags = [*ten_steps(start, bare_data, folder), *TRAINED[trained], *more]
        result = launched(*flags, config=config, processes=processes)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result.stdout

    return learn


@pytest.fixture(scope="session")
def one_process(learn, launched):
    """The folder of one process's run, by what is trained: run once for all workers of pytest,
    when it is first asked for."""

    @functools.cache
    def one_process(trained: str) -> Path:
        folder = launched.kept / f"one-{trained}"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not (folder / "run/report.json").exists():
                moves = MOVES if trained == "moved" else ()
                learn(folder / "run", "full" if moves else trained, "cpu", 1, *moves)
        return folder / "run"

    return one_process
