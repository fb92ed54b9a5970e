"""The type of a refusal, which is told from other exits of a process."""


class Refusal(SystemExit):
    """Ends a command since something that it was given is wrong: `Refusal(line)`, and the line says
    what, where, and what to give instead. The process ends with code 1.

    Exits that hand a code on, as a launcher's do, stay a SystemExit.
    """
