"""Prompts in, a line each, and answers out: what a pipe talks to."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict

from dpo.core.refusal import Refusal
from dpo.core.terminal import visible
from dpo.use.chat.speakers import Drawing, Speaker, Unasked, untold


def one_line(text: str) -> str:
    """An answer on one line: its line breaks as `\\n`, and nothing that steers a terminal."""
    return visible(text).replace("\\", "\\\\").replace("\n", "\\n")


def answer_lines(
    lines: Iterable[str], speakers: list[Speaker], how: Drawing, system: str, as_json: bool
) -> None:
    """Answer each line alone, with nothing of the others in mind, as soon as it is read. Empty
    lines are passed over.

    One speaker's answers stand as they are, a line each; those of two come after their names, a
    line and a tab each. As JSON a line has the prompt, the answers, and whether each ended by
    itself.

    Raises:
        Refusal: one of them takes no `system` turn; or when all are through, if some could not be
            asked.
    """
    if system and (silent := [speaker.name for speaker in speakers if not speaker.chats]):
        raise Refusal(f"--system: {untold(silent[0])}: leave it out")
    asked = left_out = 0
    for line in lines:
        if not (text := line.strip()):
            continue
        asked += 1
        answers, ended = {}, {}
        try:
            for speaker in speakers:
                speaker.begin(system)
                said = speaker.answer(text, how)
                answers[speaker.name], ended[speaker.name] = said.text, said.finished
        except Unasked as error:
            left_out += 1
            print(f"Prompt {asked}: {visible(str(error))}", file=sys.stderr)
            answers = {speaker.name: "" for speaker in speakers}
        if as_json:
            entry = {"prompt": text, **answers, "ended": ended, **asdict(how)}
            print(json.dumps(entry, ensure_ascii=False), flush=True)
            continue
        for name, said in answers.items():
            before = f"{name}\t" if len(speakers) > 1 else ""
            print(f"{before}{one_line(said)}", flush=True)
    if left_out:
        raise Refusal(f"{left_out} of {asked} prompts were not answered, as said above")
