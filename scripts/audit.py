"""Known advisories against the installed packages: `make audit` runs this.

    python scripts/audit.py

Asks the public advisory service through pip-audit. Fails if it knows one; where it does not
answer, nothing is known, and that is said.
"""

import subprocess
import sys

from dpo.core.refusal import Refusal, last_line
from dpo.core.terminal import guarded, parser_of

SECONDS = 300  # for the service: it is asked about each package


@guarded
def main() -> None:
    parser_of(__doc__).parse_args()
    # OSV's: the registry's own is asked where packages come from, and a mirror that has no
    # advisories looks there like one that knows none.
    command = [sys.executable, "-m", "pip_audit", "-s", "osv", "--local"]
    command.append("--progress-spinner=off")
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        print(f"Not audited: the advisory service did not answer within {SECONDS} s")
        return
    if asked.returncode == 0:
        print("The advisory service knows none")
    elif asked.stdout.strip():  # a table of advisories; what went wrong is on stderr
        print(asked.stdout.strip())
        raise Refusal("Raise the version in requirements.txt")
    else:
        why = last_line(asked.stderr)
        print(f"Not audited: the advisory service does not answer: {why:.200}")


if __name__ == "__main__":
    main()
