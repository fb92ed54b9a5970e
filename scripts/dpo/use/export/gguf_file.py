"""An export as a GGUF file, which llama.cpp and what is built on it read: made by llama.cpp's own
converter, read back by transformers."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo.core.refusal import Refusal, last_line
from dpo.use.export import check
from dpo.use.export.check import Expected

CONVERTER = "convert_hf_to_gguf"
# What each of its formats may make of a token's log-probability, in nats in the mean.
OUTTYPES = {"f32": 1e-4, "f16": 5e-3, "bf16": 2e-2, "q8_0": 2e-2}
PLACE = Path(sys.prefix, "gguf")  # apart from other packages: it brings a `gguf` of its own


def check_installed() -> None:
    """Raises Refusal if the converter is not there."""
    if not (PLACE / f"{CONVERTER}.py").is_file():
        raise Refusal(
            f"GGUF= needs {CONVERTER}, which is not installed: {sys.executable} -m pip install "
            f"--no-deps --target {PLACE} --requirement requirements-gguf.txt"
        )


def convert(folder: Path, outtype: str, file: Path) -> None:
    """Write the weights, tokenizer and template of an export to a GGUF file.

    Raises:
        Refusal: the converter does not know the architecture or the tokenizer, or cannot write.
    """
    print(f"Converting to GGUF ({outtype})", flush=True)
    program = str(PLACE / f"{CONVERTER}.py")  # started so, it finds what lies beside it first
    command = [sys.executable, program, str(folder), "--outfile", str(file)]
    # Code of others: it gets no token, and nothing to fetch with.
    secret = ("TOKEN", "KEY", "SECRET", "PASSWORD")
    kept = {k: v for k, v in os.environ.items() if not any(word in k.upper() for word in secret)}
    environment = kept | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--outtype", outtype], env=environment, capture_output=True, text=True
    )
    if done.returncode or not file.is_file():
        raise Refusal(
            f"{CONVERTER} cannot convert this model: {last_line(done.stderr)}: export without GGUF="
        )


def of_file(file: Path, expected: Expected, outtype: str) -> dict[str, Any]:
    """`check.check` of what transformers reads from a GGUF file, in float32.

    llama.cpp ends an answer at the file's end token and at those that it knows by name to end a
    turn; here the first must be one of the policy's ends, and answers are drawn with all of them.
    """
    import gguf  # late: only what reads a file needs it

    how = {"gguf_file": file.name}
    # Tokenizer, configuration and weights are each taken from a reading of the whole file, which
    # takes seconds where the vocabulary is large.
    with patch.object(gguf, "GGUFReader", functools.cache(gguf.GGUFReader)):
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, **how)
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **how)
    if tokenizer.eos_token_id not in expected.ends:
        check.wrong(f"its end token is {tokenizer.eos_token_id}, the policy ends {expected.ends}")
    model.generation_config.eos_token_id = expected.ends
    return check.check(model.eval(), tokenizer, expected, outtype, OUTTYPES[outtype])
