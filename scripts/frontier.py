"""The DPO paper's reward–KL frontier on the embedded default: `make frontier` runs this.

    make frontier                                                  # 8 runs, an hour on two cores
    make frontier ARGS="--betas 0.05,0.5 --loss_types sigmoid,hinge"

Sweeps β and the loss type (make sweep), keeps checkpoints along each run, and measures each one's
true reward and KL from the reference on held-out prompts. Points are kept as they are measured, in
outputs/frontier/frontier.json: the same command goes on from there. A checkpoint is removed once
it is measured (17 GB in all otherwise).
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse
from pathlib import Path

from dpo.core.terminal import at_once, guarded, parser_of
from dpo.recipe.arguments import positive

RECIPE = "smollm2-sentiment"
INTO = Path("outputs/frontier")


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--betas", default="0.05,0.1,1,5", help="as in the paper (0.05,0.1,1,5)")
    add("--loss_types", default="sigmoid,ipo", help="TRL's loss types (sigmoid,ipo)")
    add("--every", type=positive, default=6, help="steps between the checkpoints of a run (6)")
    add("--limit", type=positive, default=128, help="at most so many held-out prompts (128)")
    add("--samples", type=positive, default=2, help="answers to each (2)")
    add("--output", default=str(INTO), help=f"folder ({INTO})")
    add("arguments", nargs="*", metavar="-- ARGS", help="flags for every run")
    return parser.parse_args()


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(arguments)

import datetime
import json
import shutil
import sys

from tqdm import tqdm

from dpo.core import files
from dpo.core.machine import device_name, measuring_device
from dpo.core.refusal import Refusal
from dpo.core.signals import EXIT_CODE
from dpo.evaluation import generations, measure, prompts
from dpo.evaluation.contestants import policy_of, reference_of
from dpo.evaluation.measure import MAX_NEW_TOKENS, SEED, TEMPERATURE
from dpo.recipe.flags import names_in, refuse
from dpo.recipe.parse import FOLDER, parse
from dpo.reports import frontier_page
from dpo.runs import checkpoints, output_folder, sweeps
from dpo.runs.checkpoints import step_of
from dpo.runs.sweeps import FAILED, LEFT


@guarded
def main() -> None:
    args = arguments()
    into = Path(args.output)
    device = measuring_device()
    recipe = parse(["--config", str(FOLDER / f"{RECIPE}.yaml"), *args.arguments])
    # What is measured is measured here, along the run, and not at its end.
    own = [f"--save_steps={args.every}", "--save_total_limit=99", "--save_only_model=true"]
    own += ["--eval_strategy=no", "--save_strategy=steps"]
    refuse(args.arguments, "the frontier", {*names_in(own), "loss_type", "beta", "output_dir"})
    flags = [*args.arguments, *own]
    sweep = f"loss_type={args.loss_types} beta={args.betas}"
    runs = sweeps.resolved(RECIPE, sweep, into, flags)

    asked = prompts.each_once(prompts.of_pairs(prompts.held_out_pairs(recipe)), args.limit)
    settings = generations.Settings(args.samples, TEMPERATURE, MAX_NEW_TOKENS, SEED)
    path = into / "frontier.json"
    how = {"prompts": len(asked), "samples": args.samples, "every": args.every}
    how["arguments"] = args.arguments
    found = {"points": [], "how": how}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
    if found["how"] != how:
        why = f"points that were measured otherwise ({found['how']})"
        raise Refusal(f"{path} holds {why}: give the same again, or another --output")
    reference = reference_of(recipe)
    for run in runs:
        trained = (run.folder / output_folder.TRAINED).is_file()
        for checkpoint in () if trained else checkpoints.named(run.folder):
            checkpoints.delete(checkpoint)  # weights alone are nothing to go on from
        # Of several GPUs the first, on which they are measured too: three cannot share the batch.
        if sweeps.carry_out([run], ["--gpus", "1"], [None], flags) or run.state == LEFT:
            print("Asked to stop: the same command goes on from here")
            sys.exit(EXIT_CODE)
        if run.state == FAILED:
            continue
        measured = {point["step"] for point in found["points"] if point["run"] == run.name}
        for checkpoint in tqdm(checkpoints.named(run.folder)[::-1], desc=run.name):
            step = step_of(checkpoint)
            if step not in measured:
                there = policy_of(checkpoint, run.folder)
                point = {"run": run.name, "step": step, "beta": run.recipe.training.beta}
                point["loss_type"] = run.recipe.training.loss_type[0]
                answered = measure.measure(
                    there, reference, reference, asked, None, settings, device
                )
                reward = measure.known_reward(asked, answered)
                kl = answered.kl["nats_per_sequence"]
                found["points"].append(point | {"reward": reward["policy"], "kl": kl})
                nothing = {"mean": 0.0, "low": 0.0, "high": 0.0}  # no nat from itself
                found["reference"] = {"reward": reward["against"], "kl": nothing}
                files.write_json(path, found)
            shutil.rmtree(checkpoint)
    failed = [f"{run.name}: {run.last_line()} ({run.log})" for run in runs if run.state == FAILED]
    if not found["points"]:
        raise Refusal(f"there is nothing to draw. Failed: {'; '.join(failed)}")
    found |= {
        "reward_name": "true reward (VADER compound score, -1 to 1)",
        "about": f"{RECIPE}: {len(asked)} held-out prompts, {args.samples} answers each at "
        f"temperature {TEMPERATURE:g}, cut at {MAX_NEW_TOKENS} tokens; {device_name()}; "
        f"{datetime.datetime.now().astimezone():%Y-%m-%d}",
    }
    files.write_json(path, found)
    for name, content in frontier_page.files(found).items():
        files.write_whole(into / name, content)
    print(frontier_page.markdown(frontier_page.table(found)))
    print(f"Written: {into}/frontier.html, frontier.png, frontier.md, frontier.json")
    if failed:
        raise Refusal(f"Not in it, since they failed: {'; '.join(failed)}")
    print("Next: open frontier.html; docs/frontier.md says what to hold it against")


if __name__ == "__main__":
    main()
