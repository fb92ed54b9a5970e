"""What an export ends with in the terminal."""

from pathlib import Path
from typing import Any

LOAD = {
    "adapter": 'AutoPeftModelForCausalLM.from_pretrained("{}")',
    "gguf": "llama-server -m {}/*.gguf",
}


def say(folder: Path, about: dict[str, Any]) -> None:
    """Print what was checked, written, and what to do next."""
    found, nats, ended = (about["checked"][key] for key in ("answers", "nats", "ended"))
    off, rounding = nats["export_from_policy"], nats["rounded_policy_from_policy"]
    moved = nats["policy_from_reference"]["answer"]
    print(
        f"Checked on {found} answers: {off['token']:.2g} nats a token from the run's policy, of "
        f"which rounding to {about['dtype']} makes {rounding['token']:.2g}; an answer "
        f"{off['answer']:.2g}, where training moved it by {moved:.2g}"
    )
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
    load = LOAD.get(about["kind"], 'AutoModelForCausalLM.from_pretrained("{}")').format(folder)
    print(f"Next: {load}, or make chat RUN={about['run']}")
