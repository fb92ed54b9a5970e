"""A recipe: one flat YAML file of TRL's own argument names, read strictly.

Nothing heavy is imported at the top: the launcher reads recipes too, and answers at once.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo.core import secrets
from dpo.core.environment import Launch, launched
from dpo.core.files import at_home
from dpo.core.quiet import defer_peft
from dpo.core.refusal import Refusal, unbroken
from dpo.recipe.arguments import BATCH, DEFAULTS, RunArguments, check_data, check_kinds, decides
from dpo.recipe.known import OneLine, check_names, choices, names, usage
from dpo.recipe.strict import check_finite, load_yaml

if TYPE_CHECKING:
    from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments, TrlParser

FOLDER = Path("recipes")


@dataclass
class Recipe:
    """A recipe and the flags given after it, parsed, checked and resolved."""

    name: str
    path: Path
    stated: dict[str, Any]  # by the recipe and the flags, under TRL's names
    defaults: dict[str, Any]  # all else
    global_batch: int  # pairs of one optimizer step, over all processes
    script: ScriptArguments
    training: DPOConfig
    model: ModelConfig
    mixture: DatasetMixtureConfig
    run: RunArguments
    launch: Launch  # of this process, which decides its share of the batch
    flags: frozenset[str] = frozenset()  # names of those given, which win over the recipe

    def place(self, *keys: str) -> str:
        """Where one of the keys was stated, for a message: with the flags, or in the file."""
        return "ARGS" if self.flags & {*keys} else str(self.path)

    @property
    def init(self) -> dict[str, Any]:
        """What the model is loaded with beside keys of their own (`model_init_kwargs`), which may
        be another configuration than its files have: also where it is loaded again."""
        given = self.stated.get("model_init_kwargs") or {}
        return json.loads(given) if isinstance(given, str) else given

    @property
    def reference(self) -> tuple[str, str | None]:
        """Name and revision of the reference: of a model of its own, if one is stated, else of what
        the policy starts from."""
        own, model = self.run.ref_model_name_or_path, self.model
        if own is not None:
            return own, self.run.ref_model_revision
        name: Any = model.model_name_or_path  # named by now
        return name, model.model_revision

    def learned(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Of a run's settings those that decide what is learned, where they are no defaults."""
        stated = self.defaults | settings
        batch = [stated[key] for key in BATCH]
        other = {k: v for k, v in settings.items() if decides(k) and v != self.defaults.get(k)}
        kept = {key: value for key, value in other.items() if key not in BATCH}
        return kept | {"global_batch": batch[0] * batch[1]}


MOST = 4096  # processes that a message counts up to
STRATEGIES = ("eval_strategy", "save_strategy", "logging_strategy")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a recipe's keys.

    Raises:
        Refusal: the file is missing, is not YAML, is not a mapping, repeats a key, or holds a
            token.
    """
    if not path.is_file():
        raise Refusal(f"no recipe at {path}: {choices(path.stem, names(FOLDER))}; see make list")
    try:
        keys = load_yaml(path, path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Refusal(f"{path}: not YAML: {error}") from error
    if not isinstance(keys, dict):
        raise Refusal(f"{path}: a recipe is a mapping of argument names to values")
    for key, value in keys.items():
        if key == "hub_token":
            words = f"a recipe is shared: take it out, and {secrets.INSTEAD}"
            raise Refusal(f"{path}: hub_token: {words}")
        secrets.refuse(f"{path}: {key}", value)
        if isinstance(value, str) and (variable := re.search(r"\$(\{[^}]*\}|[A-Za-z_]\w*)", value)):
            raise Refusal(
                f"{path}: {key} is {value}: a recipe knows no {variable[0]}: write what it stands "
                f'for, or give it where a shell does: ARGS="--{key} {value}"'
            )
        if value is False and key in STRATEGIES:  # YAML's own reading of a plain `no`
            keys[key] = "no"
    return at_home(keys)


def _as_flags(keys: dict[str, Any], several: set[str]) -> tuple[list[str], dict[str, Any]]:
    """Split YAML keys into command-line flags and values that no flag can express.

    Flags go through argparse's own type checks, so that `beta: high` in a file is refused just as
    `--beta high` is. `several` are the keys whose flag takes more than one value.
    """
    flags: list[str] = []
    rest: dict[str, Any] = {}
    for key, value in keys.items():
        listed = isinstance(value, list)
        plain = not listed or (key in several and not any(isinstance(v, dict) for v in value))
        if value is None or not plain:
            rest[key] = value
        elif listed:
            flags += [f"--{key}", *map(str, value)]
        else:
            flags.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags, rest


def share_batch(per_device: int, accumulation: int, processes: int) -> tuple[int, int]:
    """Keep a global batch on any number of processes.

    As a recipe is written, per-device batch × accumulation is the batch of one optimizer step.
    Several processes share it: they accumulate less, and where that is not enough take fewer pairs
    at a time, so that what is learned stays the same.

    Returns the per-device batch and the accumulation of each process.

    Raises:
        Refusal: the processes do not divide the global batch.
    """
    batch = per_device * accumulation
    if batch % processes:
        divisors = [str(n) for n in range(1, min(batch, MOST) + 1) if batch % n == 0]
        raise Refusal(
            f"{processes} processes cannot share a global batch of {batch} pairs evenly: run on "
            f"{', '.join(divisors)}, or change per_device_train_batch_size × "
            "gradient_accumulation_steps"
        )
    share = batch // processes
    micro = next(n for n in range(min(per_device, share), 0, -1) if share % n == 0)
    return micro, share // micro


def data_workers(values: dict[str, Any], launch: Launch) -> int:
    """Processes that make the next batches while a GPU computes. On a CPU they would take what
    computes, and a stream comes in another order through several."""
    import torch

    on_cpu = values["use_cpu"] or launch.no_gpu
    streams = values["dataset_streaming"] or values["streaming"]
    return 0 if on_cpu or streams or not torch.cuda.is_available() else 2


def make_parser() -> TrlParser:
    """TRL's parser over TRL's arguments and our own; one-line errors, no abbreviations."""
    defer_peft()
    from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments, TrlParser

    class Parser(OneLine, TrlParser):
        pass

    parser = Parser(
        (ScriptArguments, DPOConfig, ModelConfig, DatasetMixtureConfig, RunArguments),
        prog="train.py",
        allow_abbrev=False,
        description="Train a policy with DPO as a recipe says; flags after it win over it.",
    )
    parser.set_defaults(**DEFAULTS)
    return parser


def parse(argv: list[str], launch: Launch | None = None) -> Recipe:
    """Read `--config recipes/<name>.yaml`, then the flags after it.

    Args:
        launch: how this process was launched; by default as its environment says.

    Raises:
        Refusal: one line that names the file or flag, what is wrong with it and the choices.
    """
    path, keys, argv = look(argv)
    return resolve(make_parser(), path, path.stem, keys, argv, launch)


def look(argv: list[str]) -> tuple[Path, dict[str, Any], list[str]]:
    """The recipe's path, its keys and the flags after it, of which the names are known. Or answer
    `--help`. All of it at once: nothing heavy is imported.

    Raises:
        Refusal: as `parse`.
    """
    if "-h" in argv or "--help" in argv:
        print(usage())
        raise SystemExit(0)
    if "--config" not in argv[:-1]:
        raise Refusal("no recipe: --config recipes/<name>.yaml names it, and --help lists the rest")
    at = argv.index("--config")
    path, argv = Path(argv[at + 1]), argv[:at] + argv[at + 2 :]
    keys = read_yaml(path)
    check_names(path, keys, argv)
    return path, keys, argv


def resolve(
    parser: TrlParser,
    path: Path,
    name: str,
    keys: dict[str, Any],
    argv: list[str],
    launch: Launch | None = None,
) -> Recipe:
    """The recipe of `keys`, which stand in the file at `path`, and of the flags after them.

    Raises:
        Refusal: as `parse`.
    """
    launch = launch or launched()
    given = check_names(path, keys, argv)
    # Where the launcher has no GPU to use, these are what makes the same recipe run. `use_cpu`
    # would turn DeepSpeed off; without a backend processes would not find each other.
    if launch.on_cpu:
        parser.set_defaults(use_cpu=True)
    if launch.no_gpu and launch.processes is not None:
        parser.set_defaults(ddp_backend="gloo")
    parser.set_defaults(dataloader_num_workers=None)  # until all else is known
    defaults = vars(parser.parse_known_args([])[0])
    several = {action.dest for action in parser._actions if action.nargs}
    check_kinds(path, keys, parser)
    flags, rest = _as_flags(keys, several)
    parser.set_defaults(**rest)
    # Once alone, so that an error names the file; flags on the command line are checked below.
    parser.prog = str(path)
    parser.parse_known_args(flags)
    parser.prog = "ARGS"
    values = vars(parser.parse_args(flags + argv))
    stated = {k: value for k, value in values.items() if k in keys or value != defaults[k]}
    # A reference that moves cannot be scored beforehand, nor rows that are not there yet.
    moves = values["sync_ref_model"] or values["dataset_streaming"] or values["streaming"]
    if moves and "precompute_ref_log_probs" not in {*keys, *given}:  # validate.py refuses it
        values["precompute_ref_log_probs"] = False
    if values["dataloader_num_workers"] is None:
        values["dataloader_num_workers"] = data_workers(values, launch)
        if not values["dataloader_num_workers"]:  # and what torch takes beside workers alone
            beside = ("prefetch_factor", "multiprocessing_context")
            values |= {f"dataloader_{key}": None for key in beside}
            values["dataloader_persistent_workers"] = False
    for key in BATCH:
        if values[key] < 1:  # before it is divided by
            where = "ARGS" if key in given else path
            raise Refusal(f"{where}: {key} is {values[key]}: give 1 or more")
    per_device, accumulated = (values[key] for key in BATCH)
    shared = share_batch(per_device, accumulated, launch.processes or 1)
    values |= dict(zip(BATCH, shared, strict=True))
    for each in (values, stated):  # a run that was killed is the same with a slash at its end
        if "://" not in (each.get("output_dir") or "://"):
            each["output_dir"] = os.path.normpath(each["output_dir"])
    try:
        script, training, model, mixture, run = parser.parse_dict(values)
    except (ArithmeticError, ValueError, TypeError) as error:
        check_finite(values, lambda key: "ARGS" if key in given else path)
        hint = " (without a GPU: --bf16 false)" if "bf16" in str(error) else ""
        said = unbroken(error)
        where = "ARGS" if any(key in said for key in given) else path
        raise Refusal(f"{where}: {said}{hint}") from error
    parts = (script, training, model, mixture, run)
    batch = per_device * accumulated
    recipe = Recipe(name, path, stated, defaults, batch, *parts, launch, given)
    check_data(recipe)
    return recipe
