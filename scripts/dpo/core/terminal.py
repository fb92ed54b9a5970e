"""What leaves a program by its terminal: no secret, no text that steers the terminal, and of an
error one line."""

import argparse
import contextlib
import datetime
import functools
import gc
import io
import itertools
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from dpo.core import secrets, signals
from dpo.core.environment import DEBUG, Launch, forget_ranks, launched
from dpo.core.files import at_home
from dpo.core.refusal import Refusal, unbroken

# Control characters but tab and newline, and those that turn the direction of writing.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
SCRIPTS = Path(__file__).resolve().parents[2]
STAY = datetime.timedelta(seconds=1)
LONGEST = 600  # characters of what a library says
BUGS = (ArithmeticError, AttributeError, LookupError, NameError, TypeError)


def parser_of(doc: str | None, **how: Any) -> argparse.ArgumentParser:
    """A script's parser, whose help is the script's docstring as it stands."""
    width = min(shutil.get_terminal_size().columns, 100) - 2
    form = functools.partial(argparse.RawDescriptionHelpFormatter, width=width)
    return argparse.ArgumentParser(description=doc, formatter_class=form, **how)


def visible(text: str) -> str:
    """Text of data, models and file names as text: an escape sequence shows as `\\x1b[31m`."""
    return STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def mask_output() -> None:
    """Mask secrets in all that this process writes to stdout and stderr.

    The streams themselves are changed: a logger or progress bar may hold one already. W&B does the
    same when it is imported, and keeps what goes through; ours comes first if it is put on later.
    """
    for stream in (sys.stdout, sys.stderr):
        write = stream.write
        if not hasattr(write, "masks"):

            def masked(text: str, write: Callable[[str], int] = write) -> int:
                write(secrets.mask(text))
                return len(text)

            masked.masks = True
            stream.write = masked


def without_debug(argv: list[str]) -> tuple[list[str], bool]:
    """The arguments without a bare `--debug`, and whether there was one. transformers has an
    argument of this name that takes a value."""
    given = [*itertools.pairwise([*argv, "--"])]
    kept = [each for each, after in given if each != "--debug" or not after.startswith("--")]
    return kept, len(kept) < len(argv)


def line_of(error: Exception, debug: bool) -> str:
    """One line for an error that no check foresaw: what was raised, by whom, and where its
    traceback is, masked: in a file, or, to `debug`, on the terminal."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [f.f_code for f in frames if SCRIPTS in Path(f.f_code.co_filename).parents]
    here = bool(ours) and frames[-1].f_code is ours[-1]
    who = type(error).__module__.partition(".")[0]  # some libraries raise errors of their own
    if who == "builtins":
        who = "a library" if here else frames[-1].f_globals.get("__name__", "").partition(".")[0]
    said = unbroken(error) or "no reason is given"
    said = said if len(said) < LONGEST else f"{said[:LONGEST]} …"
    trace = secrets.mask("".join(traceback.format_exception(error)))
    if debug:
        print(visible(trace), file=sys.stderr, flush=True)
        where = "its traceback is above"
    else:
        kept = {"mode": "w", "encoding": "utf-8", "delete": False}
        with tempfile.NamedTemporaryFile(prefix="traceback-", suffix=".txt", **kept) as file:
            file.write(trace)
        where = f"its traceback is in {file.name}, or here with --debug"
    what = f"{type(error).__name__}: {said}"
    if isinstance(error, AssertionError) or (here and isinstance(error, BUGS)):
        return f"{what}. That is a fault of this repository, and not of what you gave it; {where}"
    at = f" as {Path(ours[-1].co_filename).name} asked it to {ours[-1].co_name}" if ours else ""
    return (
        f"{what}. {who} says so{at}: change what you gave it, or, if nothing is wrong with that, "
        f"it is a fault of {who} or of this repository; {where}"
    )


def guarded(main: Callable[[], object], alone: bool = True) -> Callable[[], None]:
    """An entry point of which no secret leaves by arguments, output, error or error file, and that
    ends with one line, whatever is raised in it. Of several processes the first to end says it.

    The line of a Refusal shows what data and file names say as text. An error that no check
    foresaw leaves its traceback in a file. Where it runs `alone`, as one process, it does so
    whatever ranks are left over in the environment.
    """

    @functools.wraps(main)
    def run() -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal's encoding may lack characters
                stream.reconfigure(errors="backslashreplace")
        mask_output()
        sys.argv[1:], debug = without_debug(sys.argv[1:])
        if debug:
            os.environ[DEBUG] = "1"  # for the processes that are started
        launch = launched()
        gc.freeze()  # what was imported stays
        gc.enable()
        try:
            sys.argv[1:] = at_home(secrets.take_out(sys.argv[1:]))
            if alone:
                forget_ranks()
            main()
            sys.stdout.flush()
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except BrokenPipeError:  # whoever reads has read enough, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
        except Refusal as refusal:
            refusal.code = once(str(refusal), launch)
            raise
        except Exception as error:
            # torchrun shows what torch's `record` has written there, in another process.
            if launch.errors and launch.errors.is_file():
                launch.errors.write_text(secrets.mask(launch.errors.read_text()))
            raise SystemExit(once(error, launch)) from error

    return run


def at_once(answer: Callable[[], object], alone: bool = True) -> None:
    """Answer `--help` and what is misspelt before a script imports what takes seconds.

    Until a guarded entry point runs, Python looks for no cycles to free: imports leave hardly any,
    and the search takes a fifth of their time.
    """
    guarded(answer, alone)()
    sys.excepthook = quiet_when_interrupted
    gc.disable()


def quiet_when_interrupted(kind: type[BaseException], *error: Any) -> None:
    """Show what ends a program before its guarded entry point runs, but for Ctrl-C."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, *error)


def end(code: int) -> NoReturn:
    """End this process as it is: nothing is shut down, and no other is waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stay_for_others() -> None:
    """Let the processes of a run that end for one reason end together: where one has gone, another
    that is still connecting to it says an error of its own. One that ends alone goes after STAY.
    """
    group = sys.modules.get("torch.distributed")
    if group and group.is_available() and group.is_initialized():
        with contextlib.suppress(RuntimeError):  # not all have come, or the store has gone
            store = group.distributed_c10d._get_default_store()
            store.set(f"ends/{group.get_rank()}", "")
            ends = [f"ends/{rank}" for rank in range(group.get_world_size())]
            store.wait(ends, STAY)


def once(error: Exception | str, launch: Launch) -> str | int:
    """The line to end with, if no other process of the run has said one, else the exit code."""
    stay_for_others()
    if not signals.first_to_end(launch.told_in):
        return 1
    line = error if isinstance(error, str) else line_of(error, launch.debug)
    return visible(secrets.mask(line)).replace("\n", r"\n")
