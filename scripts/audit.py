"""Known advisories against the installed packages: `make audit` runs this.

    python scripts/audit.py

Compares every installed version with scripts/advisories.yaml, which is kept by hand, and asks the
public advisory service as well, through pip-audit, where it answers. Fails if either knows one.
"""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import yaml
from packaging.version import Version

from dpo.core.refusal import Refusal
from dpo.core.terminal import guarded

KNOWN = Path(__file__).with_name("advisories.yaml")
SECONDS = 300  # for the service: it is asked about each package


def installed() -> dict[str, str]:
    """Versions by name, names in small letters."""
    return {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}


def affected(advisories: list[dict[str, str]], versions: dict[str, str]) -> list[str]:
    """A line for each advisory against one of the versions."""
    lines = []
    for entry in advisories:
        name, first, fixed = entry["package"], entry.get("from", "0"), entry["below"]
        version = versions.get(name.lower())
        if version and Version(first) <= Version(version) < Version(fixed):
            lines.append(f"{name} {version}: {entry['id']}, {entry['says']}; mended in {fixed}")
    return lines


def ask() -> str | None:
    """What the service knows, None if it knows nothing or does not answer, which is said.

    OSV's: the registry's own is asked where packages come from, and a mirror that has no advisories
    looks there like one that knows none.
    """
    command = [sys.executable, "-m", "pip_audit", "-s", "osv", "--local"]
    command.append("--progress-spinner=off")
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        print(f"the advisory service did not answer within {SECONDS} s")
        return None
    if asked.returncode == 0:
        print("the advisory service knows none")
    elif asked.stdout.strip():  # a table of advisories; what went wrong is on stderr
        return asked.stdout
    else:
        print(f"no advisory service: {asked.stderr.strip().splitlines()[-1]:.200}")
    return None


@guarded
def main() -> None:
    advisories, versions = yaml.safe_load(KNOWN.read_text(encoding="utf-8")), installed()
    found = affected(advisories, versions)
    print(
        f"{len(versions)} packages, {len(advisories)} advisories kept by hand, {len(found)} apply"
    )
    said = ask()
    if found or said:
        print("\n".join([*found, said or ""]).strip())
        raise Refusal("Raise the version in requirements.txt")


if __name__ == "__main__":
    main()
