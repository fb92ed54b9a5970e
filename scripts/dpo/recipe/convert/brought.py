"""A recipe of another tool on its way to ours; and what of TRL's and the alignment handbook's own
takes thought: their data and what they call a loss."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo.core.refusal import Refusal
from dpo.recipe.convert import reasons

HELD_OUT = ("test", "val", "eval", "dev")


@dataclass
class Brought:
    """A recipe on its way: keys of the tool that are left in `old`, ours in `new`, and what is to
    be said of the way."""

    tool: str
    path: Path
    old: dict[str, Any]
    new: dict[str, Any] = field(default_factory=dict)
    renamed: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    warned: list[str] = field(default_factory=list)
    last: str = ""  # the key that was taken last

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, which is then done with; an empty one is none."""
        value = self.old.pop(key, None)
        self.last = key if value is not None else self.last
        return default if value in (None, "", []) else value

    def put(self, key: str, value: Any, *, of: str = "") -> None:
        self.new[key] = value
        if of and of != key:
            self.renamed.append(f"{of} → {key}")

    def drop(self, key: str, reason: str) -> None:
        if self.old.pop(key, None) is not None:
            self.dropped[key] = reason

    def default(self, renamed: dict[str, str], **values: Any) -> None:
        """Give the tool's own defaults, where they are not ours, to what is said nowhere, whichever
        name it may have by `renamed`."""
        self.old = {key: value for key, value in self.old.items() if value not in (None, "")}
        said = {*self.new, *(renamed.get(key, key) for key in self.old)}
        self.old = {k: v for k, v in values.items() if renamed.get(k, k) not in said} | self.old

    def leave(self, key: str, reason: str) -> None:
        """Take a key of ours away again, if it is there."""
        if key in self.new:
            self.dropped[key] = f"{self.new.pop(key)}: {reason}"

    def refuse(self, why: str) -> None:
        raise Refusal(f"{self.path}: {why}")


def listed(value: str | list | None, by: str | None = None) -> list:
    """A key's values: a list of them, or text with blanks, or `by`, between them."""
    return [part.strip() for part in value.split(by)] if isinstance(value, str) else value or []


def sliced(split: str, share: Any) -> str:
    """A split, or the part of it that a share (at most 1) or a number of rows takes."""
    if isinstance(share, float) and share < 1:
        return f"{split}[:{max(round(share * 100), 1)}%]"
    return f"{split}[:{share}]" if isinstance(share, int) and share >= 1 else split


def place(
    b: Brought,
    parts: list[dict],
    tests: list[str],
    held_out: float | None,
    of: str = "",
    streams: bool | None = None,
) -> None:
    """Put data in their keys: one whole data set by its name, several as a mixture.

    Args:
        parts: entries of `datasets`.
        tests: splits of the one data set that are for evaluation.
        held_out: the share or number of the training pairs that is held out where no split is.
        streams: whether rows are read as they come.
    """
    if not parts:
        return
    one = parts[0]
    whole = len(parts) == 1 and "[" not in one.get("split", "")
    if whole and not {"data_files", "data_dir"} & {*one}:
        b.put("dataset_name", one["path"], of=of)
        names = {"name": "dataset_config", "split": "dataset_train_split"}
        b.new |= {names[key]: one[key] for key in names if one.get(key)}
        if tests:
            b.put("dataset_test_split", tests[0])
            held_out = None
    else:
        b.put("datasets", parts, of=of)
    if held_out:
        b.put("test_split_size", held_out)
    if streams:
        b.put("streaming" if "datasets" in b.new else "dataset_streaming", True)


def with_sft(b: Brought, alpha: float, types: list[str] | str, weights: list | None) -> None:
    """Put the losses of a recipe whose rpo_alpha adds one on the chosen completions."""
    types = listed(types)
    b.put("loss_type", [*types, "sft"], of="rpo_alpha")
    b.put("loss_weights", [*(weights or [1.0] * len(types)), float(alpha)])


def mixture(b: Brought) -> None:
    """The alignment handbook's two ways to mix data sets."""
    stated = b.take("dataset_mixture")
    if isinstance(stated, dict):
        entries = stated.get("datasets") or []
        if not all(isinstance(entry, dict) and entry.get("id") for entry in entries):
            b.refuse("dataset_mixture: an entry of datasets has no id, which names its data set")
        entries = [entry for entry in entries if entry.get("weight") != 0]
        tests = [e for e in entries if str(e.get("split", "train")).startswith(HELD_OUT)]
        parts = []
        for entry in (entry for entry in entries if entry not in tests):
            name = entry.get("config")
            split = sliced(entry.get("split", "train"), float(entry.get("weight") or 1))
            part = {"path": entry["id"], "name": None if name == "default" else name}
            parts.append({k: v for k, v in (part | {"split": split}).items() if v})
        if tests:
            said = ", ".join(f"{e['id']} ({e['split']})" for e in tests)
            b.warned.append(
                f"the original trains on its test split: it pools {said} with the training rows "
                "and splits them anew; here test rows are never trained on"
            )
        if any(isinstance(e.get("weight"), float) and e["weight"] < 1 for e in entries):
            b.warned.append(reasons.FIRST_ROWS)
        b.dropped["dataset_mixture: seed"] = "`split_seed` draws what is held out"
        one = [e["split"] for e in tests if len(parts) == 1 and e["id"] == parts[0]["path"]]
        place(b, parts, one, stated.get("test_split_size"), "dataset_mixture")
    mixer = b.take("dataset_mixer")
    if isinstance(mixer, dict):
        splits, configs = b.take("dataset_splits", ["train", "test"]), b.take("dataset_configs", [])
        splits = listed(splits, ",")
        tests = [split for split in splits if split.startswith(HELD_OUT)]
        train = next((split for split in splits if split not in tests), "train")
        names = [*configs, *[None] * len(mixer)]
        parts = [
            {"path": path, "split": sliced(train, float(share)), **({"name": name} if name else {})}
            for (path, share), name in zip(mixer.items(), names, strict=False)
            if share  # of 0 it took no row
        ]
        if len(parts) > 1 and tests:
            b.warned.append(
                "a mixture has no test split here: test_split_size holds out a share of its pairs "
                f"in the place of {', '.join(tests)}"
            )
        place(b, parts, tests, 0.02 if tests else None, "dataset_mixer")


def own_reference(b: Brought, start: str | None, *keys: str) -> None:
    """Put the reference, which one of the keys names, if it is another model than the policy starts
    from."""
    for key in keys:
        if (name := b.take(key)) not in (None, start):
            b.put("ref_model_name_or_path", name, of=key)
        elif name:
            b.dropped[key] = reasons.REFERENCE
    if "ref_model_name_or_path" not in b.new:
        b.drop("ref_model_revision", reasons.REFERENCE)


def said_otherwise(b: Brought, start: str | None, system: str) -> None:
    """Put the reference, and say what a system prompt before all prompts (its key is `system`) and
    a chat template of another tool's are here."""
    own_reference(b, start, "ref_model")
    if b.old.get(system):
        b.warned.append(
            f"{system}: the original puts it before every prompt: give the rows a column `system`"
        )
    if template := b.old.get("template"):
        b.warned.append(f"template: {template}: {reasons.TEMPLATE}")


def trains_adapter(
    b: Brought, how: str, kind: str, bits: str, starts: str, base: str, by: str | None = None
) -> bool:
    """Whether another tool trains a LoRA adapter, and not all weights; and if so, in how many bits
    the others are, and the adapter that it starts from.

    Args:
        kind: what the tool calls `how` it trains, and further `bits`, `starts` (with `by` between
            them) and `base` what it calls the others and its model.
    """
    if how not in ("lora", "full"):
        b.refuse(f"{kind}: {how}: here all weights are trained, or a LoRA adapter")
    if how == "full":
        return False
    b.put("use_peft", True, of=kind)
    width = b.take(bits)
    if width in (4, 8):
        b.put(f"load_in_{width}bit", True, of=bits)
    elif width:
        b.warned.append(f"{bits}: {width}: weights in 4 or 8 bits are what there is")
    if names := listed(b.take(starts), by):
        if len(names) > 1:
            said = (by or ", ").join(names)
            b.refuse(f"{starts}: {said}: merge them first, and name the result")
        b.drop(base, "the adapter to start from names its base")
        b.put("model_name_or_path", names[0], of=starts)
    return True


def trl(b: Brought) -> None:
    """Older TRL and the alignment handbook: most keys are TRL's own."""
    if b.old.get("reference_free"):
        b.refuse("reference_free: TRL has no DPO loss without a reference any more")
    mixture(b)
    names = ("ref_model", "ref_model_name_or_path", "reference_model_name_or_path")
    own_reference(b, b.old.get("model_name_or_path"), *names)
    if alpha := b.take("rpo_alpha"):
        with_sft(b, alpha, b.take("loss_type", "sigmoid"), b.take("loss_weights"))
    if text := b.take("chat_template"):
        if str(text).endswith(".jinja"):
            b.put("chat_template_path", text, of="chat_template")
        else:
            b.dropped["chat_template"] = "put it in a .jinja file, and name that"
            b.warned.append(f"chat_template: {reasons.TEMPLATE}")


def columns(b: Brought, mapping: dict[str, str | None], layout: str | None) -> None:
    """Columns of a data set by their names there, and how its rows are read."""
    mapping = {ours: theirs for ours, theirs in mapping.items() if theirs and theirs != ours}
    for key, value in (("column_mapping", mapping), ("preference_layout", layout)):
        if value and b.new.setdefault(key, value) != value:
            b.warned.append(
                f"data sets differ in {key}, which is one for all here: {value} is lost"
            )


def interleaved(b: Brought, parts: list[dict], asked: bool, until_one: bool, shares: Any) -> None:
    """Give the data sets that another tool draws from in turns the shares of a mixture.

    Args:
        parts: entries of `datasets`.
        asked: whether it draws in turns; else it takes all rows of each.
        until_one: whether it ends with the first data set that has no row left: so does TRL.
        shares: how often it draws from each, as a list or as text with commas; None: as often.
    """
    if not asked or len(parts) < 2:
        return
    weights = listed(shares, ",") or [1] * len(parts)
    if not until_one or len(weights) != len(parts):
        why = "no row is drawn twice an epoch" if not until_one else f"{shares} is not one for each"
        b.warned.append(
            f"the original draws from its data sets in turns; here all rows of each, as {why}"
        )
        return
    for part, share in zip(parts, weights, strict=True):
        part["fraction"] = float(share)
