"""Recipes of other tools as they were found: their keys, which tool they are of, and whether they
are of DPO."""

import itertools
import re
import shlex
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from dpo.core.refusal import Refusal
from dpo.recipe.convert.brought import Brought
from dpo.recipe.convert.old_keys import DROPPED, RENAMED, TOOLS
from dpo.recipe.parse import FOLDER
from dpo.recipe.strict import load_json, load_yaml

# Keys that other trainers have and DPO has not, and words of names.
OTHER = {
    "an SFT": "packing dataset_text_field completion_only_loss assistant_only_loss max_seq_length",
    "KTO": "desirable_weight undesirable_weight",
    "CPO or SimPO": "cpo_alpha simpo_gamma",
    "PPO or GRPO": "num_generations reward_model_path kl_coef vf_coef num_ppo_epochs reward_funcs",
    "a reward model": "center_rewards_coefficient",
}
METHODS = ("sft", "orpo", "kto", "cpo", "simpo", "ppo", "grpo", "rm", "reward")
OURS = ("dpo", "apo", "ipo", "pref", "align")
FILE = re.compile(r"[^=]+\.(ya?ml|json|toml)")
SHELL = (".sh", ".bash", ".zsh", ".slurm", ".sbatch")
PYTHON = (".py", ".ipynb")
# Programs that train with DPO, the surest first (LLaMA-Factory's stage is a flag), and those that
# train otherwise.
PROGRAMS = (  # a word and the one before it
    r"[ /]\w*dpo\w*\.py$|trl[. ](scripts\.)?dpo$",
    r"[ /](train\w*|rlhf)\.py$|^[^-]\S* (\S+\.)?(train|rlhf)$|\.train$",
)
OTHER_PROGRAM = re.compile(r"(.*/)?\w*(sft|finetune|reward|kto|orpo|cpo|ppo|grpo)\w*\.py")


def plain(word: str) -> Any:
    """What YAML makes of a flag's value: a number, a truth, a list, or text."""
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:
        return word


def filled(text: str, known: dict[str, str]) -> str:
    """Shell text with the variables that are known, and with products and quotients of numbers."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    text = re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda m: known.get(m[1] or m[2], m[0]), text)
    text = re.sub(r"\$\(expr ([^()]+)\)|`expr ([^`]+)`", lambda m: f"$(({m[1] or m[2]}))", text)
    for inner in re.findall(r"\$\(\(([\w\s*/$]+)\)\)", text):  # as batch sizes are divided
        words = [str(known.get(word, word)) for word in re.findall(r"\w+|[*/]", inner)]
        if all(word.isdigit() or word in "*/" for word in words):
            value = int(words[0])
            for sign, number in zip(words[1::2], words[2::2], strict=True):
                value = value * int(number) if sign == "*" else value // int(number)
            text = text.replace(f"$(({inner}))", str(value))
    return text


def flags_of(path: Path, text: str) -> dict[str, Any]:
    """The flags of a training command in a shell script, its variables filled in, over the keys of
    the file that it hands on to; "" has the number of processes that the launcher is given.

    Raises:
        Refusal: a flag stands twice, the file is not there, or the command trains otherwise.
    """
    text = re.sub(r"(?m)^\s*#.*$", "", text).replace("\\\n", " ")
    known: dict[str, str] = {}
    several: dict[str, set[str]] = {}  # values of a variable that a branch or a loop decides on
    text = re.sub(r"(?m)\b(then|else|do)[ \t]+(?=\w+=)|;[ \t]*(?=else\b|fi\b)", r"\1\n ", text)
    sets = (
        r"(?m)^(\s*)(?:export\s+)?(\w+)=(\"[^\"]*\"|'[^']*'|\S*)[ \t]*$|^\s*for (\w+) in ([^;\n]+)"
    )
    for one in re.finditer(sets, text):
        name, value = one[2] or one[4], one[5] or (one[3] or "").strip("\"'")
        value = " ".join(filled(value, known).split())
        if one[5]:
            several.setdefault(name, set()).update(value.split())
        elif one[1].strip("\n") and {name} & (known.keys() | several.keys()):
            several.setdefault(name, {known[name]}).add(value)
        known[name] = value
    text = re.sub(sets, "", text)
    for name in several:
        if len(several[name]) > 1 and re.search(rf"\$(\{{{name}\}}|{name}\b)", text):
            said = ", ".join(sorted(several[name]))
            raise Refusal(f"FROM: {path}: ${name} has several values ({said}): write one")
    text = re.sub(r";(?=\s)|\n", " ; ", filled(text, known))  # ends of commands
    text = " ".join(text.split())
    try:
        command = shlex.split(text)
    except ValueError:
        command = text.split()
    found: dict[str, Any] = {}
    pairs = [f"{before} {word}" for before, word in itertools.pairwise(["", *command])]
    scripts = [i for kind in PROGRAMS for i, pair in enumerate(pairs) if re.search(kind, pair)]
    at = scripts[0] if scripts else -1
    if other := None if scripts else next(filter(OTHER_PROGRAM.fullmatch, command), None):
        raise Refusal(f"FROM: {path}: this is no DPO: it starts {other}")
    names = {"num_processes": 1, "num_nodes": 1, "nproc_per_node": 1}
    alike = {"nnodes": "num_nodes", "num_gpus": "nproc_per_node"}
    before = [f"NPROC_PER_NODE={known.get('NPROC_PER_NODE', '')}", *command[: max(at, 0)], ""]
    for word, after in itertools.pairwise(before):
        name, _, value = word.lstrip("-").partition("=")
        name, value = name.replace("-", "_"), value or after
        name = alike.get(name, name.lower())
        if name in names and value.isdigit():
            names[name] = int(value)
    key, file = None, None
    for word in command[at + 1 :]:
        # What ends the command, says where it writes, or hands on the script's own arguments.
        if re.match(r"&|;|\||done$|\d?>|\$[@*]", word):
            break
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") or (equals and not key):
            key = name.replace("-", "_")
            if key in found:
                raise Refusal(f"FROM: {path}: --{key} stands twice: keep one")
            found[key] = [value] if equals else []
            key = key if word.startswith("--") else None
        elif key:
            found[key].append(word)
        elif at >= 0 and FILE.fullmatch(word):
            file = word
    flat = {}
    for key, words in found.items():
        value = True if not words else plain(words[0]) if len(words) == 1 else words
        no = key.startswith("no_")
        flat[key.removeprefix("no_")] = value is not True if no else value
    processes = max(names["num_processes"], names["nproc_per_node"])  # in all, or of a machine
    gpus = max(processes, min(processes, 8) * names["num_nodes"])
    if file := flat.pop("config", file):
        beside = (folder / str(file) for folder in (Path(), *path.resolve().parents))
        there = next(filter(Path.is_file, beside), None)
        if there is None:
            many = f" GPUS={gpus}" if gpus > 1 else ""
            raise Refusal(
                f"FROM: {path} hands on to {file}, which is not here: give that file, with "
                f"FROM={file}{many}, or put it beside the script"
            )
        flat = read(there)[0] | flat
    return flat | ({"": gpus} if gpus > 1 else {})


def read(path: Path) -> tuple[dict[str, Any], int | None]:
    """A recipe's keys, and the number of GPUs that it says it is for.

    Raises:
        Refusal: no such file, or none that holds keys, each once.
    """
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if FILE.fullmatch(p.name))
        raise Refusal(f"FROM: {path} is a folder: give a file of it: {', '.join(inside)}")
    if not path.is_file():
        raise Refusal(f"FROM: no file {path}")
    if path.suffix in PYTHON:
        raise Refusal(
            f"FROM: {path} is a Python program, which is not run: write what it gives DPOConfig "
            "and the names of its model and data as a YAML file, key: value, and give that"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(f"FROM: {path} is no text: {error}") from error
    kind = ".sh" if path.suffix in SHELL or text.startswith("#!") else path.suffix
    by_kind = {".sh": flags_of, ".json": load_json, ".toml": lambda _, text: tomllib.loads(text)}
    try:
        keys = by_kind.get(kind, load_yaml)(path, text)
    except tomllib.TOMLDecodeError as error:
        raise Refusal(f"{path}: not TOML: {error}") from error
    if not isinstance(keys, dict) or not keys:
        raise Refusal(f"FROM: {path}: no keys: a recipe is YAML, JSON, TOML or a shell script")
    gpus = keys.pop("", None) or keys.get("num_processes")  # as `trl dpo` takes it
    said = re.search(r"#.*?\b(\d+)\s*(?:x\s*)?(?:(?!G[iB])[A-Z]\w*\s+)?GPUs?\b", text)
    for key, value in keys.items():  # YAML has 5e-7 as text
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
            keys[key] = float(value)
    return {str(k): v for k, v in keys.items()}, gpus or (int(said[1]) if said else None)


def told(path: Path, keys: dict[str, Any], ours: set[str]) -> str:
    """The tool that a recipe is of, by the keys that only one of them has.

    Raises:
        Refusal: it is of none that is known, or of several.
    """
    if path.resolve().parent == FOLDER.resolve() and not {*keys} - ours:
        raise Refusal(f"FROM: {path} is a recipe of ours already: copy it under another name")
    known = {tool: {*renamed, *dropped} for tool, (renamed, dropped) in TOOLS.items()}
    of = Counter(itertools.chain({*ours, *RENAMED, *DROPPED}, *known.values()))
    own = {tool: [k for k in keys if k in known[tool] and of[k] == 1] for tool in TOOLS}
    if own["open-instruct"] == ["max_seq_length"]:  # TRL's SFT had it as well
        own["open-instruct"] = []
    signs = {"axolotl": "base_model", "LLaMA-Factory": "stage", "ms-swift": "rlhf_type"}
    most = max(own.values(), key=len)
    tools = [tool for tool, found in own.items() if found and len(found) == len(most)]
    tools = [tool for tool in tools if signs.get(tool) in keys] or tools
    if len(tools) > 1:
        said = "; ".join(f"{tool}: {', '.join(own[tool])}" for tool in tools)
        raise Refusal(f"FROM: {path} could be of several tools ({said}): take out those of one")
    if tools:
        return tools[0]
    if not {*keys} & {"model_name_or_path", "dataset_name", "dataset_mixer", "dataset_mixture"}:
        raise Refusal(
            f"FROM: {path} has keys of no tool that is known: TRL, alignment-handbook, "
            f"{', '.join(TOOLS)} are (its keys: {', '.join([*keys][:8])})"
        )
    mixed = {"dataset_mixer", "dataset_mixture"} & {*keys}
    return "alignment-handbook" if mixed else "TRL"


def refuse_others(b: Brought) -> None:
    """Refuse what of TRL is no DPO, by keys that only its trainer has, or by what it is called."""
    if b.tool in TOOLS and b.tool != "open-instruct":  # they say it themselves
        return
    for what, names in OTHER.items() if b.tool not in TOOLS else ():
        found = [key for key in names.split() if b.old.get(key)]
        if found:
            b.refuse(f"this is no DPO, but {what}: it has {', '.join(found)}")
    own = [b.old.get(key) for key in ("hub_model_id", "output_dir", "run_name", "exp_name")]
    for names in (own, [b.path.stem, b.path.parent.name]):
        words = {word for name in names for word in re.split(r"[^a-z]+", str(name or "").lower())}
        if any(ours in word for word in words for ours in OURS):
            return
        for method in METHODS:
            if method in words:
                b.refuse(f"this is no DPO, but {method.upper()}, as its name says")
