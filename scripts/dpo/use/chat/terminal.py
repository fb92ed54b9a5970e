"""A conversation in a terminal, until it is left."""

import readline  # noqa: F401  lines can be edited, and called back
from dataclasses import asdict
from pathlib import Path

from dpo.core import files
from dpo.core.terminal import visible
from dpo.use.chat.speakers import Drawing, Speaker, Unasked, untold

COMMANDS = {
    "/reset": "forget what was said",
    "/system TEXT": "begin anew, and tell them this first; without TEXT nothing",
    "/seed N": "of the random numbers that both get",
    "/save FILE": "what was said, a line of JSON for each",
    "/quit": "leave, as Ctrl-D does",
    "/help": "this list; what begins with a blank is said as it stands",
}


def listed() -> str:
    return "\n".join(f"  {name:<13} {what}" for name, what in COMMANDS.items())


class Talk:
    """What is said to all speakers, each of which has heard its own answers."""

    def __init__(self, speakers: list[Speaker], how: Drawing):
        self.speakers, self.how = speakers, how
        self.begin("")

    def begin(self, system: str) -> str:
        self.system = system
        for speaker in self.speakers:
            speaker.begin(system)
        return "What was said is forgotten"

    def tell(self, system: str) -> str:
        silent = [speaker.name for speaker in self.speakers if not speaker.chats]
        if system and silent:
            return untold(silent[0])
        return self.begin(system)

    def seed(self, given: str) -> str:
        if not given.isdecimal():
            return f"/seed {given}: give a whole number from 0 on"
        self.how.seed = int(given) % 2**32
        return f"Answers are drawn with seed {self.how.seed}"

    def save(self, given: str) -> str:
        lines = [
            {"model": each.name, "temperature": self.how.temperature}
            | {"seeds": each.seeds, "messages": each.messages}
            for each in self.speakers
        ]
        try:
            path = Path(given).expanduser()
            if not given or path.exists():
                return f"/save {given}: name a file that is not there yet"
            files.write_lines(path, lines)
        except (OSError, RuntimeError) as error:  # a home that is nobody's
            return f"/save {given}: {getattr(error, 'strerror', error)}: name another file"
        return f"Written: {path}"

    def command(self, line: str) -> str | None:
        """Carry out a command, and return what to say of it; None to leave."""
        name, _, given = line.partition(" ")
        given = given.strip()
        match name:
            case "/reset":
                return self.begin(self.system)
            case "/system":
                return self.tell(given)
            case "/seed":
                return self.seed(given)
            case "/save":
                return self.save(given)
            case "/quit":
                return None
            case "/help":
                return listed()
        return f"No command {name}; there are:\n{listed()}"

    def ask(self, text: str) -> None:
        """Print what each of the speakers says, word by word."""
        for speaker in self.speakers:
            print(f"{speaker.name}> ", end="", flush=True)
            try:
                said = speaker.answer(
                    text, self.how, lambda words: print(visible(words), end="", flush=True)
                )
            except Unasked as error:
                print(visible(str(error)))
                continue
            if not said.token_ids:
                print(" [stopped]")
            elif not said.finished:
                print(f" [cut at {len(said.token_ids)} tokens]")
            else:
                print()


def talk(speakers: list[Speaker], how: Drawing, system: str) -> None:
    """Talk until Ctrl-D, Ctrl-C at the prompt, or /quit."""
    conversation = Talk(speakers, how)
    if system:
        print(conversation.tell(system))
    settings = ", ".join(f"{name} {value}" for name, value in asdict(how).items())
    print(f"{settings}; /help lists the commands")
    while True:
        try:
            line = input("you> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line.startswith("/"):
            said = conversation.command(line)
            if said is None:
                return
            print(visible(said))
        elif line.strip():
            conversation.ask(line.strip())
