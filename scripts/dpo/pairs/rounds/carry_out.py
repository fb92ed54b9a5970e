"""Rounds carried out, one process after another: pairs, training, measuring. What is done already
is not done again, and what a kill has ended goes on."""

import os
import random
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from dpo.core import files
from dpo.core.environment import finding_us
from dpo.core.refusal import Refusal
from dpo.core.terminal import visible
from dpo.pairs import folder
from dpo.pairs.rounds import begin
from dpo.pairs.rounds.plan import JOINED, OFFLINE, Round
from dpo.reports import results
from dpo.reports.rounds import numbers
from dpo.runs import output_folder, sweeps


def say(text: str) -> None:
    print(visible(text), flush=True)


class Asked(Exception):
    """The rounds were asked to stop."""


def wait(process: Any, came: deque[int]) -> int:
    """The exit code of a process, to which signals are handed on.

    Raises:
        Asked: a signal came, before or meanwhile.
    """
    asked = False
    while (code := process.poll()) is None:
        while came:
            asked = True
            process.send_signal(came.popleft())
        time.sleep(0.1)
    if asked or came:
        raise Asked
    return code


def carried_out(command: list[str], log: Path, came: deque[int]) -> None:
    """Run one of our programs to its end.

    Raises:
        Asked: as `wait`.
        Refusal: it failed; the line is the one that it ended with.
    """
    if came:
        raise Asked
    if wait(sweeps.started([sys.executable, *command], log, finding_us(os.environ)), came):
        raise Refusal(f"{visible(sweeps.last_line_of(log))} ({log})")


def make_pairs(each: Round, flags: list[str], came: deque[int]) -> None:
    """The pairs of a round. `flags` are those of pairs.py that all rounds share."""
    command = ["scripts/pairs.py", *flags, "--model", each.model, "--to", str(each.pairs)]
    command += ["--skip", str(each.skip), "--first", str(each.first)]
    carried_out(command, each.pairs.with_name(f"{each.pairs.name}.log"), came)


def train(each: Round, how: list[str], came: deque[int]) -> None:
    """The run of a round."""
    if came:
        raise Asked
    if sweeps.finished(each.run):
        return
    sweeps.start(each.run, how, None, each.flags)
    if wait(each.run.process, came):
        raise Refusal(f"{each.name}: {visible(each.run.last_line())} ({each.run.log})")


def join(rounds: list[Round]) -> dict[str, int]:
    """Write the pairs of the offline run: of those that the start's answers made, to the prompts of
    the first round and of all others, as many as all rounds have trained on, drawn at random.
    Held-out ones are all kept. Returns how many there are."""
    offline, *of_rounds = sorted(rounds, key=lambda each: each.name != OFFLINE)
    parts = [of_rounds[0].pairs, offline.pairs]
    there = sum(folder.read_about(part)["pairs"]["train"] for part in parts)
    wanted = sum(folder.read_about(each.pairs)["pairs"]["train"] for each in of_rounds)
    kept = {*random.Random(0).sample(range(there), min(wanted, there))}
    to, counts = offline.into / JOINED, {}
    to.mkdir(exist_ok=True)
    for split in folder.SPLITS:
        lines = (
            line
            for path in (part / f"{split}.jsonl" for part in parts)
            for line in (path.open(encoding="utf-8") if path.is_file() else ())
        )
        taken = [line for at, line in enumerate(lines) if split == "test" or at in kept]
        counts[split] = len(taken)
        if taken:
            files.write_whole(to / f"{split}.jsonl", "".join(taken))
    return counts


def carry_out(rounds: list[Round], flags: list[str], how: list[str]) -> None:
    """Make, train and measure every round, then the offline run.

    Args:
        flags: of pairs.py, the same for all.
        how: flags for launch.py.

    Raises:
        Asked: to stop; what went on has saved, and the same command goes on from there.
        Refusal: a step failed.
    """
    into = rounds[0].into
    with sweeps.heard() as came:
        for each in rounds:
            if not sweeps.finished(each.run):
                say(f"{each.name}: pairs, prompts {each.asked}, answered by {each.model}")
                make_pairs(each, flags, came)
                offline = each.name == OFFLINE
                counts = join(rounds) if offline else folder.read_about(each.pairs)["pairs"]
                asked = f"1 to {each.skip + each.first}" if offline else each.asked
                note(into, each.name, {"prompts": asked, "pairs": counts})
                say(f"{each.name}: training on {counts['train']} pairs, {each.run.log}")
                train(each, how, came)
            if "measured" not in begin.read(into)["rounds"][each.name]:
                note(into, each.name, of_run(each.run.folder))
                say(f"{each.name}: measuring")
                log = into / f"{each.name}-measured.log"
                command = ["-m", "dpo.pairs.rounds.measured", str(into), each.name]
                carried_out(command, log, came)
                say(f"{each.name}: {numbers.reached(begin.read(into), each.name)}")


def note(into: Path, name: str, more: dict[str, Any]) -> None:
    """Add to what rounds.json says of a round."""
    found = begin.read(into)
    found["rounds"].setdefault(name, {}).update(more)
    files.write_json(into / begin.ABOUT, found)


def of_run(run: Path) -> dict[str, Any]:
    """What of a run's own report belongs beside its rounds."""
    report = results.read(run / output_folder.REPORT)
    pairs = report["pairs"]
    about = {"folder": run.name, "steps": report["steps"], "accuracy": None}
    return about | ({"accuracy": pairs["accuracy"], "held_out": pairs["count"]} if pairs else {})
