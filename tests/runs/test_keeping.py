"""What a finished run keeps: enough to use, evaluate and continue it, each weight once, or less."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dpo.recipe.parse import parse
from dpo.runs import checkpoints, keeping, metrics, output_folder
from support.commands import TIMES, at_once, make, run_flags
from support.place import ROOT

CHANGES = {"os.link", "os.rename", "os.remove", "os.rmdir"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".*checkpoint*")) + sorted(
        path.name for path in folder.glob("*checkpoint*")
    )


def test_a_finished_run_has_its_weights_once(finished):
    folder, _, result = finished
    policy = folder / "model.safetensors"
    assert policy.samefile(folder / "checkpoint-4/model.safetensors")
    assert not policy.samefile(folder / "checkpoint-2/model.safetensors")
    for step in (2, 4):
        checkpoints.checked(folder / f"checkpoint-{step}")
    kept, then = result.stdout.splitlines()[-2:]
    assert kept.startswith(f"Kept: {keeping.size_of(folder)} in {folder}, 2 checkpoints included; ")
    assert kept.endswith("without: the same command with --keep use") and then.startswith("Next: ")


def test_the_best_checkpoint_of_an_adapter_is_the_one_that_the_policy_is(
    launched, tiny_model, tiny_data, tmp_path
):
    best = ("--load_best_model_at_end", "--metric_for_best_model=loss", "--greater_is_better=true")
    adapter = ("--use_peft", "--lora_target_modules", "q_proj", "--report_to=none")
    flags = run_flags(tiny_model, tiny_data, tmp_path / "run")
    result = launched(*flags, *best, *adapter)
    assert result.returncode == 0, result.stderr[-3000:]
    policy, last = (
        tmp_path / "run" / at / "adapter_model.safetensors" for at in (".", "checkpoint-4")
    )
    assert policy.samefile(tmp_path / "run/checkpoint-2/adapter_model.safetensors")
    assert not policy.samefile(last) and checkpoints.checked(last.parent)


def killed_at(step: int, folder: Path, what: str) -> bool:
    """Tidy in a process of its own, which ends right before its change of that number on the disk.
    Returns whether it came so far."""
    if (child := os.fork()) == 0:
        seen = 0

        def hook(event: str, args: tuple) -> None:
            nonlocal seen
            seen += event in CHANGES
            if event in CHANGES and seen == step:
                os._exit(9)

        sys.addaudithook(hook)
        keeping.keep(folder, what)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("what", ["continue", "use"])
def test_a_run_that_is_killed_while_it_tidies_is_usable(what, finished, tmp_path):
    """Before each single change; the same command ends what it began."""
    there, _, _ = finished
    weights, step, came = (there / "model.safetensors").read_bytes(), 0, True
    while came:
        step += 1
        folder = Path(shutil.copytree(there, tmp_path / str(step)))  # links become copies
        (folder / "broken-checkpoint-3").mkdir()
        came = killed_at(step, folder, what)
        assert (folder / "model.safetensors").read_bytes() == weights
        for checkpoint in checkpoints.named(folder):
            checkpoints.checked(checkpoint)
        if what == "continue":
            assert checkpoints.newest(folder) == folder / "checkpoint-4"
        keeping.keep(folder, what)
        assert (folder / "model.safetensors").read_bytes() == weights
        if what == "use":
            assert not names(folder)
            continue
        assert names(folder) == ["broken-checkpoint-3", "checkpoint-2", "checkpoint-4"]
        assert not [*folder.rglob(f"{keeping.LINKING}*")]
        linked = folder / "checkpoint-4/model.safetensors"
        assert linked.samefile(folder / "model.safetensors") and checkpoints.checked(linked.parent)
    assert step > 2


def test_a_disk_without_links_keeps_both(finished, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(finished[0], tmp_path / "run"))

    def link(*paths):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    said = keeping.keep(folder, "continue")
    assert said.endswith("could not be made smaller: Operation not permitted")
    assert checkpoints.newest(folder) == folder / "checkpoint-4"


def test_what_is_not_the_policy_is_no_copy_of_it(finished, tmp_path):
    """Another's weights under that name, a checkpoint without its manifest, no policy at all."""
    folder = Path(shutil.copytree(finished[0], tmp_path / "run"))
    policy, last = folder / "model.safetensors", folder / "checkpoint-4"
    shutil.copy(folder / "checkpoint-2/model.safetensors", policy)
    keeping.keep(folder, "continue")
    assert not policy.samefile(last / "model.safetensors") and checkpoints.checked(last)
    shutil.copy(last / "model.safetensors", policy)
    (last / checkpoints.MANIFEST).unlink()
    keeping.keep(folder, "continue")
    assert not policy.samefile(last / "model.safetensors")
    policy.unlink()
    assert keeping.keep(folder, "use").endswith("could not be made smaller: no policy is in it")
    assert last.is_dir()


def test_what_another_process_tidies_is_left_to_it(finished, tmp_path):
    folder = Path(shutil.copytree(finished[0], tmp_path / "run"))
    with output_folder.lock(folder):
        assert "by another process" in keeping.keep(folder, "use")
        assert (folder / "checkpoint-4").is_dir()
        keeping.keep(folder, "use", ours=True)
    assert not (folder / "checkpoint-4").exists()


def test_the_launcher_tidies_a_finished_run_at_once(finished, tmp_path):
    """By a flag, and by the recipe's own key; of the same recipe with other flags train.py does."""
    for name in ("scripts", "accelerate_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    folder = tmp_path / "outputs/smollm2-sentiment"
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copytree(finished[0], folder)
    recipe = parse(["--config", "recipes/smollm2-sentiment.yaml", "--keep=use"])
    stated = {"recipe": recipe.name, **output_folder.settings(recipe)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(stated))
    policy = folder / "model.safetensors"
    said, code = at_once("launch.py", cwd=tmp_path)
    assert not code and "2 checkpoints included" in said
    assert policy.samefile(folder / "checkpoint-4/model.safetensors")
    said, code = at_once("launch.py", "--", "--keep", "use", cwd=tmp_path)
    assert not code and said.endswith("in outputs/smollm2-sentiment, no checkpoint\n")
    shutil.copytree(finished[0] / "checkpoint-4", folder / "checkpoint-4")
    with (tmp_path / "recipes/smollm2-sentiment.yaml").open("a") as file:
        file.write("keep: use\n")
    said, code = at_once("launch.py", cwd=tmp_path)
    assert not code and said.endswith("no checkpoint\n") and policy.is_file()


def ended(folder: Path) -> tuple[bytes, list[dict]]:
    """Weights, and everything that was logged."""
    logged = [{k: v for k, v in each.items() if k not in TIMES} for each in metrics.read(folder)]
    return (folder / "model.safetensors").read_bytes(), logged


def test_a_finished_run_goes_on_and_is_made_smaller(launched, tiny_model, tiny_data, tmp_path):
    """For more steps it is to the bit what it would have been in one go, where its learning rate
    does not depend on their number."""

    def flags(name: str, steps: int, *more: str) -> list[str]:
        own = run_flags(tiny_model, tiny_data, tmp_path / name)
        constant = ("--lr_scheduler_type=constant", "--warmup_steps=0", "--report_to=none")
        return [*own, *constant, f"--max_steps={steps}", *more]

    assert launched(*flags("short", 4)).returncode == 0
    assert launched(*flags("whole", 6)).returncode == 0
    refused = launched(*flags("short", 6))
    last = tmp_path / "short/checkpoint-4"
    hint = f"For more steps: another --output_dir, and --resume_from_checkpoint {last}"
    assert refused.returncode and refused.stderr.rstrip().endswith(hint)

    begun = (tmp_path / "short/model.safetensors").stat()
    more = flags("longer", 6, f"--resume_from_checkpoint={last}")
    result = launched(*more)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Continuing from {last}" in result.stdout
    assert ended(tmp_path / "longer") == ended(tmp_path / "whole")
    now = (tmp_path / "short/model.safetensors").stat()
    assert (begun.st_ino, begun.st_mtime_ns) == (now.st_ino, now.st_mtime_ns)
    # Killed after its first checkpoint, the same command goes on from that.
    for name in ("report.json", "trainer_state.json"):
        (tmp_path / "longer" / name).unlink()
    result = launched(*more)
    assert f"Continuing from {tmp_path}/longer/checkpoint-6" in result.stdout, result.stderr
    assert ended(tmp_path / "longer") == ended(tmp_path / "whole")
    for gone, then in ((last.parent, last), (last.parent / "checkpoint-3", last)):
        refused = launched(*flags("other", 6, f"--resume_from_checkpoint={gone}"))
        assert f"give {then} or " in refused.stderr and "leave it out" not in refused.stderr
    # As many steps or fewer are no continuing.
    refused = launched(*flags("less", 3, f"--resume_from_checkpoint={last}"))
    assert "other settings: max_steps (4, now 3): give those again" in refused.stderr

    wrong = launched(*flags("short", 4, "--keep=all"))
    assert "keep is all: give continue (" in wrong.stderr and "use (no checkpoint)" in wrong.stderr
    made = make("train", "ARGS=" + " ".join(flags("short", 4, "--keep=use")))
    assert made.returncode == 0, made.stderr[-3000:]
    assert "Trained and evaluated already" in made.stdout
    assert made.stdout.rstrip().endswith(f"in {tmp_path}/short, no checkpoint")
    assert not names(tmp_path / "short")
    policy = load_file(tmp_path / "short/model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in policy.values())
    assert json.loads((tmp_path / "short/report.json").read_text())["steps"] == 4
    # What has gone on from there needs it no more.
    assert "Trained and evaluated already" in launched(*more).stdout
    for steps, name, *given in ((6, "short"), (6, "x", f"--resume_from_checkpoint={last}")):
        refused = launched(*flags(name, steps, *given))
        line = refused.stderr.rstrip().splitlines()[-1]
        assert refused.returncode and "kept no checkpoint" in line


def test_a_run_that_was_moved_goes_on_and_ends_with_its_best(
    launched, tiny_model, tiny_data, tmp_path
):
    """What transformers writes down of the best checkpoint is its path."""
    best = ("--load_best_model_at_end", "--metric_for_best_model=entropy", "--eval_strategy=steps")
    best += ("--greater_is_better=true", "--report_to=none", "--lr_scheduler_type=constant")

    def train(name: str, steps: int, *more: str):
        flags = run_flags(tiny_model, tiny_data, tmp_path / name)
        return launched(*flags, *best, f"--max_steps={steps}", *more)

    assert train("short", 4).returncode == 0
    state = json.loads((tmp_path / "short/trainer_state.json").read_text())
    name = Path(state["best_model_checkpoint"]).name
    shutil.move(tmp_path / "short", tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "short")
    (tmp_path / "short" / name / "trainer_state.json").write_text(json.dumps(state))  # another run
    given = f"--resume_from_checkpoint={tmp_path}/moved/checkpoint-4"
    result = train("longer", 6, given)
    assert result.returncode == 0, result.stderr[-3000:]
    after = json.loads((tmp_path / "longer/trainer_state.json").read_text())
    best_of = Path(after["best_model_checkpoint"])
    assert best_of in {tmp_path / "moved" / name, tmp_path / "longer/checkpoint-6"}
    weights = (best_of / "model.safetensors").read_bytes()
    assert (tmp_path / "longer/model.safetensors").read_bytes() == weights
    shutil.rmtree(tmp_path / "moved" / name)
    refused = train("none", 6, given)
    assert refused.returncode and f"{name}, the best checkpoint so far, is not" in refused.stderr


@pytest.mark.parametrize("harm", ["cut off", "a shard", "the index"])
def test_no_checkpoint_goes_where_the_policy_beside_it_is_damaged(harm, finished, tmp_path):
    folder = Path(shutil.copytree(finished[0], tmp_path / "run"))
    weights = folder / "model.safetensors"
    if harm == "cut off":
        weights.unlink()
        weights.write_bytes((finished[0] / weights.name).read_bytes()[:-9])
    else:
        index = json.dumps({"weight_map": {"a": weights.name, "b": "model-2.safetensors"}})
        index = index if harm == "a shard" else index[:9]
        (folder / "model.safetensors.index.json").write_text(index)
    there, said = names(folder), keeping.keep(folder, "use")
    assert names(folder) == there and there and "2 checkpoints included" in said
    which = {"cut off": weights.name, "a shard": "model-2.safetensors"}
    which = which.get(harm, "model.safetensors.index.json")
    assert said.endswith(f"It could not be made smaller: its policy is damaged ({which})")
