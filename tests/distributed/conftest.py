"""Ten steps by several processes, and what one process learns in them."""

import functools
from pathlib import Path

import pytest
from filelock import FileLock

from support.several import MOVES, TRAINED, ten_steps


@pytest.fixture(scope="session")
def learn(launched, tiny_model, tiny_adapter, tiny_data):
    """Ten steps of full fine-tuning, of a new adapter, or on from one: what the run printed."""

    def learn(folder: Path, trained: str, config: str, processes: int, *more: str) -> str:
        start = tiny_adapter if trained == "adapter" else tiny_model
        flags = [*ten_steps(start, tiny_data, folder), *TRAINED[trained], *more]
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
