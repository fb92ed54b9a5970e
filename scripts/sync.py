"""Send to W&B what runs have kept offline: `make sync` runs this.

make sync                                  # all that is waiting under outputs/
make sync RUN=outputs/smollm2-sentiment    # one run
"""

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from dpo.core.refusal import Refusal
from dpo.core.terminal import guarded, parser_of
from dpo.runs import output_folder, tracking
from dpo.runs.output_folder import RUNS, run_folder


def waiting(folder: Path) -> dict[str, list[Path]]:
    """What was not sent yet, by W&B run. One that was killed and went on has several parts. One
    that goes on is left out: W&B would take what it has so far for all."""
    parts = defaultdict(list)
    for part in sorted(folder.glob("**/wandb/offline-run-*")):
        there = [*part.glob("*.wandb")] and not [*part.glob("*.wandb.synced")]
        if there and not output_folder.going_on(part.parents[1]):
            parts[part.name.rsplit("-", 1)[-1]].append(part)
    return dict(parts)


@guarded
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--run", default="", help="a run's folder (default: all under outputs/)")
    args = parser.parse_args()
    folder = run_folder(args.run) if args.run else RUNS
    if folder is None:
        raise Refusal(f"no run at {args.run}")
    runs = waiting(folder)
    if not runs:
        print(f"Nothing is waiting under {folder}")
        return
    if not tracking.has_key():
        raise Refusal(f"{len(runs)} W&B runs are waiting: wandb login, then make sync again")
    if not tracking.reachable(tracking.base_url()):
        raise Refusal(f"{tracking.base_url()} gives no answer: {len(runs)} W&B runs still wait")
    wandb, failed = str(Path(sys.executable).with_name("wandb")), []
    for number, (name, parts) in enumerate(runs.items(), start=1):
        print(f"{number} of {len(runs)}: {parts[0].parent.parent} ({name})", flush=True)
        environment = {k: v for k, v in os.environ.items() if k != "WANDB_MODE"}
        sent = subprocess.run([wandb, "sync", "--yes", *map(str, parts)], env=environment)
        left = [part for part in parts if not [*part.glob("*.wandb.synced")]]
        if sent.returncode or left:
            failed.append(name)
    print(f"Sent: {len(runs) - len(failed)} of {len(runs)}")
    if failed:
        raise Refusal(f"not sent: {', '.join(failed)}; they are still there: make sync again")
    print("Next: open the runs at the addresses above")


if __name__ == "__main__":
    main()
