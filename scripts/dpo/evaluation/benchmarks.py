"""The benchmarks that the field reports, through lm-eval: an optional extra."""

import contextlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from transformers import GenerationConfig, PreTrainedTokenizerBase

from dpo.core.files import write_json
from dpo.core.hashing import digests_of, name_of
from dpo.core.refusal import Refusal, last_line
from dpo.evaluation.contestants import Contestant
from dpo.models import adapters, chat_template, loading
from dpo.recipe.parse import choices

KEPT = Path("cache/suites")
PUBLISHED = ("mt_bench", "alpaca_eval", "arena_hard", "arena_hard_v0.1")  # no tasks: of published/
PYTHON = (sys.executable, "-P")  # no scripts/evaluate.py where tasks import `evaluate`


def check(tasks: list[str], folder: str | None) -> None:
    """See that there are such benchmarks, before anything is generated.

    Args:
        folder: of task files of one's own, as lm-eval reads them.

    Raises:
        Refusal: lm-eval is not installed, or knows no such task.
    """
    if alone := [task for task in tasks if task in PUBLISHED]:
        raise Refusal(f"SUITE={','.join(tasks)}: {alone[0]} is asked alone")
    if not importlib.util.find_spec("lm_eval"):
        raise Refusal(
            "SUITE needs lm-eval: `make evaluate SUITE=...` installs it, or "
            "pip install --requirement requirements-suite.txt"
        )
    code = "import sys; from lm_eval.tasks import TaskManager as T; "
    code += "print(*T(include_path=sys.argv[1] or None).all_tasks)"
    command = [*PYTHON, "-c", code, folder or ""]
    known = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    for task in tasks:
        if task not in known:
            raise Refusal(
                f"SUITE: lm-eval has no task {task!r}: {choices(task, [*PUBLISHED, *known])}"
            )


def run(
    who: Contestant, tasks: list[str], device: str, folder: str | None, limit: int | None
) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Each task's metrics of a model, with lm-eval's standard errors: task, metric, (value, error).

    The chat template is applied where the model has one, since that is how it is used. What a task
    came to is kept by all that decides it: the same reference is asked once for all runs.

    Raises:
        Refusal: a task's data, or a package that it asks for, is not there.
    """
    tokenizer, found = who.tokenizer(), {}
    files = sorted(Path(folder).rglob("*")) if folder else []
    # Python leaves its own beside a task's code as it runs.
    files = [path for path in files if path.is_file() and path.parent.name != "__pycache__"]
    about = [who.digest(), tokenizer.chat_template, who.dtype, limit, digests_of(files)]
    about += [chat_template.end_tokens(None, tokenizer), importlib.metadata.version("lm_eval")]
    about.append(str(who.half()))
    for task in tasks:
        path = KEPT / f"{name_of([*about, task])}.json"
        if not path.is_file():
            results = lm_eval(who, tokenizer, task, device, limit=limit, include_path=folder)
            metrics = {name: _metrics(values) for name, values in results.items()}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, metrics)
        else:
            print(f"{task} of {who.name}: found, not run again")
        found |= json.loads(path.read_text(encoding="utf-8"))
    return found


def lm_eval(
    who: Contestant,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    device: str,
    **how: Any,
) -> dict[str, dict[str, Any]]:
    """What `lm_eval` finds of a model on a task, in a process of its own.

    Args:
        how: other arguments of lm-eval; None is left out.
    """
    adapter = adapters.config_of(who.path, who.revision)
    name = adapter.base_model_name_or_path if adapter else who.path
    revision = adapter.revision if adapter else who.revision
    own, half = None, who.half()
    with contextlib.suppress(OSError):  # it has none
        own = GenerationConfig.from_pretrained(who.path, revision=who.revision)
    spread = loading.device_map(device, who.weight_bytes) == "auto"
    with tempfile.TemporaryDirectory() as place:
        tokenizer.save_pretrained(place)
        model = {
            **who.init,
            "pretrained": name,
            "revision": revision or "main",
            "peft": who.path if adapter else None,
            "tokenizer": place,
            "dtype": who.dtype,
            "attn_implementation": who.attention,
            # Of autocast, which lm-eval switches off unless it is told.
            "mixed_precision_dtype": half and str(half).removeprefix("torch."),
            "trust_remote_code": who.trusted,
            "parallelize": spread,
        }
        given = {
            "model": "hf",
            "model_args": {key: value for key, value in model.items() if value is not None},
            # As everywhere here an answer ends where any end token stands.
            "gen_kwargs": {"eos_token_id": chat_template.end_tokens(own, tokenizer)},
            "tasks": [task],
            "device": device,
            "batch_size": 8,
            "apply_chat_template": bool(tokenizer.chat_template),
            "output_path": place,
            **{key: value for key, value in how.items() if value is not None},
        }
        asked = Path(place, "asked.yaml")
        asked.write_text(yaml.safe_dump(given), encoding="utf-8")
        code, said = shown([*PYTHON, "-m", "lm_eval", "run", "--config", str(asked)])
        written = [*Path(place).rglob("results_*.json")]
        if code or not written:
            raise Refusal(f"SUITE={task} cannot be run: {said}")
        return json.loads(written[0].read_text(encoding="utf-8"))["results"]


def shown(command: list[str]) -> tuple[int, str]:
    """Run a command, showing what it writes to stderr: its exit code, and the last line of that."""
    said = b""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        stderr: Any = process.stderr
        while part := stderr.read1():
            sys.stderr.write(part.decode(errors="replace"))
            said = (said + part)[-4096:]
    return process.returncode, last_line(said.decode(errors="replace"))


def beside(
    policy: Contestant, against: Contestant, tasks: list[str], *how: Any
) -> dict[str, dict[str, dict]] | None:
    """Task, metric, and the values of both models with their standard errors; None without tasks.
    `how` they are run is as `run` takes it."""
    if not tasks:
        return None
    mine, other = (run(who, tasks, *how) for who in (policy, against))
    names = ("policy", "stderr_policy", "against", "stderr_against")
    return {
        task: {
            metric: dict(zip(names, (*found, *other[task][metric]), strict=True))
            for metric, found in metrics.items()
        }
        for task, metrics in mine.items()
    }


def _metrics(values: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    metrics = {}
    for key, value in values.items():
        name, _, which = key.partition(",")
        if isinstance(value, int | float) and which and not name.endswith("_stderr"):
            error = values.get(f"{name}_stderr,{which}")
            error = float(error) if isinstance(error, int | float) else None
            metrics[name if which == "none" else f"{name} ({which})"] = float(value), error
    return metrics
