"""The type of a refusal, which is told from other exits, and what an error says in one line."""

LONGEST = 400  # characters of what an error says


class Refusal(SystemExit):
    """Ends a command since something that it was given is wrong: `Refusal(line)`, and the line says
    what, where, and what to give instead. The process ends with code 1.

    Exits that hand a code on, as a launcher's do, stay a SystemExit.
    """


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def last_line(text: str) -> str:
    """What a program said last, of all that it wrote."""
    lines = (line.strip() for line in reversed(text.splitlines()))
    return next((line for line in lines if line), "it said nothing")


def unbroken(error: object) -> str:
    """All that an error says, without line breaks."""
    return " ".join(str(error).split())


def one_line(error: BaseException, cause: bool = False) -> str:
    """All that an error says, or what caused it if a library has wrapped that, on one line of
    bounded length."""
    said = unbroken((cause and error.__cause__) or error).rstrip(".") or type(error).__name__
    return said if len(said) < LONGEST else f"{said[:LONGEST]} …"
