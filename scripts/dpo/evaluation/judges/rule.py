"""A rule as judge: a Python function of the user's that scores each answer."""

import copy
import importlib.util
import math
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo.core.hashing import digest_of
from dpo.core.refusal import Refusal, unbroken
from dpo.core.terminal import visible
from dpo.models.sampling import Messages, said

NAMED = re.compile(r"(?P<file>.+\.py)(:(?P<function>\w+))?")
FUNCTION = "score"
NO_NUMBER = "the rule gives no number"
GIVEN_UP = 100  # failures, before anything had a score


def is_rule(name: str) -> bool:
    return bool(NAMED.fullmatch(name)) and "://" not in name


class Rule:
    """`score(prompt, completion, row) -> float` of a file, `rule.py` or `rule.py:function`.

    The prompt is text, of several turns with who spoke; the completion is the answer's text; `row`
    is the row of the prompts' file as it was found, such as {"prompt": …, "answer": "4"}. The file
    runs with all that this process may do, and says so when it is read.

    Raises:
        Refusal: there is no such file, it ends with an error, or has no such function.
    """

    def __init__(self, name: str):
        parts: Any = NAMED.fullmatch(name)
        path, function = Path(parts["file"]), parts["function"] or FUNCTION
        if not path.is_file():
            raise Refusal(f"JUDGE: no file {path}: a rule is a Python file with score(…)")
        self.name = f"{path.name}:{function}"
        print(visible(f"JUDGE: {path} is your own code, and is run: {function}(prompt, …)"))
        self.file = str(path.resolve())
        self.about = {"kind": "rule", "name": self.name, "sha256": digest_of(path)}
        spec: Any = importlib.util.spec_from_file_location("rule_of_the_user", path)
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(path.resolve().parent))  # it may import what lies beside it
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise Refusal(f"JUDGE: {path} cannot be run: {self.where(error)}") from error
        finally:
            sys.path.pop(0)
        self.function: Any = getattr(module, function, None)
        if not callable(self.function):
            known = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
            raise Refusal(
                f"JUDGE: {path} has no function {function}(prompt, completion, row), only "
                f"{', '.join(known) or 'none'}: name one as {path}:its_name"
            )
        self.told = False  # of a failure, the first
        self.in_a_row: float = 0  # failures since the rule was read, as long as nothing has a score

    def where(self, error: BaseException) -> str:
        """What the user's code raised, and on which of its lines."""
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == self.file]
        line = lines[-1] if lines else getattr(error, "lineno", None)
        place = f", in line {line} of {Path(self.file).name}" if line else ""
        said = error.msg if isinstance(error, SyntaxError) else unbroken(error)
        return f"{type(error).__name__}: {said}{place}"

    def score(
        self, answers: dict[str, tuple[Messages, str, dict[str, Any]]]
    ) -> Iterator[tuple[str, float | None, str | None]]:
        """The score of each answer, by key, or why there is none. The first failure is named, with
        its row."""
        for key, (prompt, answer, row) in answers.items():
            try:
                given = self.function(said(prompt), answer, copy.deepcopy(row))
            except (Exception, SystemExit) as error:
                yield key, None, self.failed(f"raises {self.where(error)}", prompt, error)
                continue
            try:
                value = math.nan if isinstance(given, str) else float(given)
            except (TypeError, ValueError, OverflowError):
                value = math.nan
            if not math.isfinite(value):
                self.failed(f"gives {given!r:.60}, which is no number", prompt)
                yield key, None, NO_NUMBER
            else:
                self.in_a_row = -math.inf
                yield key, value, None

    def failed(self, what: str, prompt: Messages, error: BaseException | None = None) -> str:
        """Tell the first failure; the reason to count it by."""
        if not self.told:
            print(visible(f"JUDGE: {self.name} {what}. The prompt: {said(prompt)!r:.100}"))
            self.told = True
        self.in_a_row += 1
        if self.in_a_row == GIVEN_UP:
            raise Refusal(
                f"JUDGE: {self.name} has failed on {GIVEN_UP} answers and scored none: it {what}"
            )
        return f"the rule raises {type(error).__name__}"
