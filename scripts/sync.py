"""Send to W&B what runs have kept offline, or could not send: `make sync` runs this.

make sync                                  # all that is waiting under outputs/
make sync RUN=outputs/smollm2-sentiment    # one run
"""

import os
import subprocess
import sys
from pathlib import Path

from dpo.core.refusal import Refusal, first_line
from dpo.core.terminal import at_once, guarded, parser_of
from dpo.runs import output_folder
from dpo.runs.output_folder import RUNS, run_folder


def asked() -> Path:
    """The folder under which runs wait.

    Raises:
        Refusal: there is no such run.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--run", default="", help="a run's folder (default: all under outputs/)")
    args = parser.parse_args()
    folder = run_folder(args.run) if args.run else RUNS
    if folder is None:
        raise Refusal(f"no run at {args.run}")
    return folder


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(asked)

from dpo.reports import results, wandb_evaluations
from dpo.runs import tracking
from dpo.runs.tracking import again, server


def send_kept(parts: list[Path]) -> bool:
    """Send the parts of a run that was offline from its start to its end, by W&B's own program."""
    wandb, folder = str(Path(sys.executable).with_name("wandb")), parts[0].parents[1]
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_MODE"}
    sent = subprocess.run([wandb, "sync", "--yes", *map(str, parts)], env=environment)
    if (folder / output_folder.SETTINGS).is_file():
        made = output_folder.settings_of(folder).get("output_dir", folder)
        if Path(made).resolve() != folder.resolve():  # where W&B's program looks for them
            print(f"{folder} was made as {made}: tables and files of it may lack in W&B")
    return not sent.returncode and not left(parts)


def send_rest(parts: list[Path]) -> bool:
    """Tell W&B what it lacks of a run that was online, from its output folder: what was sent again
    by W&B's own program would be there twice."""
    from dpo.training.monitoring.wandb_run import add_report

    folder = parts[0].parents[1]
    try:
        again.open_online(folder)
    except Exception as error:  # of the client, the server, or what is between them
        print(f"W&B: {first_line(error)}")
        return False
    tracking.to_wandb(lambda wandb: again.tell(wandb, folder))
    found = results.read(folder / output_folder.REPORT)
    if found:
        add_report(folder, str(output_folder.settings_of(folder)["recipe"]))
    tracking.finish(results.headline(found) if found else {}, code=0 if found else 1)
    return not left(parts)


def left(parts: list[Path]) -> list[Path]:
    return [part for part in parts if not [*part.glob("*.wandb.synced")]]


@guarded
def main() -> None:
    folder = asked()
    runs = again.parts(folder)
    known = sorted(path.parent for path in folder.glob(f"**/{output_folder.WANDB_ID}"))
    evaluated = [run for run in known if wandb_evaluations.untold(run)]
    waiting = len({*evaluated, *(parts[0].parents[1] for parts in runs.values())})
    if not waiting:
        print(f"Nothing is waiting under {folder}")
        return
    if not server.key():
        raise Refusal(f"{waiting} W&B runs are waiting: wandb login, then make sync again")
    if trouble := server.trouble():
        raise Refusal(f"{trouble}: {waiting} W&B runs still wait")
    failed: dict[Path, str] = {}
    for number, (name, parts) in enumerate(runs.items(), start=1):
        run = parts[0].parents[1]
        print(f"{number} of {len(runs)}: {run} ({name})", flush=True)
        online = (again.path_of(run) or "").endswith(f"/{name}")
        if not (send_rest(parts) if online else send_kept(parts)):
            failed[run] = name
    for run in (run for run in evaluated if run not in failed):
        print(f"Evaluations of {run}", flush=True)
        if why := wandb_evaluations.tell(run):
            print(f"W&B: {why}")
            failed[run] = str(run)
    print(f"Sent: {waiting - len(failed)} of {waiting}")
    if failed:
        raise Refusal(
            f"not sent: {', '.join(failed.values())}; they are still there: make sync again"
        )
    print("Next: open the runs at the addresses above")


if __name__ == "__main__":
    main()
