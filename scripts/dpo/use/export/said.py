"""What an export ends with in the terminal."""

import shlex
from pathlib import Path
from typing import Any

from dpo.use.export.check import SHARE

LOAD = {
    "adapter": 'AutoPeftModelForCausalLM.from_pretrained("{}")',
    "gguf": "llama-server -m {}/*.gguf",
}


def say(folder: Path, about: dict[str, Any]) -> None:
    """Print what was checked and written."""
    found, nats, ended = (about["checked"][key] for key in ("answers", "nats", "ended"))
    off, rounding = nats["export_from_policy"], nats["rounded_policy_from_policy"]
    moved = nats["policy_from_reference"]["answer"]
    print(
        f"Checked on {found} answers: {off['token']:.2g} nats a token from the run's policy, of "
        f"which rounding to {about['dtype']} makes {rounding['token']:.2g}; an answer "
        f"{off['answer']:.2g}, where training moved it by {moved:.2g}"
    )
    if about["bits"]:
        say_of_pairs(about)
    prompts, most = about["checked"]["prompts"], ended["max_new_tokens"]
    print(
        f"Checked on {prompts} prompts: the same tokens; {ended['export']} sampled answers end "
        f"within {most} tokens, of the policy's {ended['policy']}"
    )
    if about["base_was_quantised"]:
        print("It was trained on a base of fewer bits, and is exported on that base as it is")
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"Written: {folder} ({about['kind']}, {about['dtype']}, {size:,.1f} MB)")
    if about["kind"] == "adapter":
        print(f"It needs its base, {about['base']}; MERGE=1 adds it to that")
    if about["bits"]:
        print("Whoever loads it needs bitsandbytes beside transformers")


def say_of_pairs(about: dict[str, Any]) -> None:
    """Print what quantising has left of the policy's preferences, and warn where it is little."""
    pairs = about["checked"]["pairs"]
    off, moved = pairs["export_from_policy"], pairs["policy_from_reference"]
    print(
        f"Checked on {pairs['count']} pairs, over a reference in the same bits: "
        f"{pairs['ranked_alike']} are ranked as by the policy; the margin of a pair is off by "
        f"{pairs['learning_lost']:.2g} nats, where training moved it by {moved:.2g}"
    )
    if off > SHARE * moved:
        more = {4: "QUANT=int8 or DTYPE=bfloat16", 8: "DTYPE=bfloat16"}[about["bits"]]
        print(
            f"WARNING: {about['dtype']} itself moves the margin of a pair by {off:.2g} nats, "
            f"training by {moved:.2g}: see how it answers before others do, or take {more}"
        )


def following(folder: Path, about: dict[str, Any]) -> str:
    """What to do with an export."""
    load = LOAD.get(about["kind"], 'AutoModelForCausalLM.from_pretrained("{}")').format(folder)
    return f"{load}, or make chat RUN={shlex.quote(about['run'])}"
