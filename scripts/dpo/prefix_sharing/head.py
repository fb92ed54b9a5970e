"""TRL's fused head on a CPU, as it is where there is Triton: completion tokens are scored alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

# What TRL's fused head goes by, as it is in the pinned version.
STOCK_HEAD = (
    trl_utils._use_triton,
    chunked_logprob.TOKEN_CHUNK_SIZE,
    trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE,
)


def head_on_completions(device: torch.device) -> None:
    """Score completion tokens only, where there is no Triton as well as where there is.

    TRL's fused head leaves the other positions out where it has Triton, and scores every one
    elsewhere, for the sake of compilers that recompile at each new shape. PyTorch on a CPU does
    not. The question is put to one function, answered here for all devices; the kernel below it
    still asks for Triton itself. That kernel's tile of 4096 tokens × 32768 words, half a GB,
    becomes one of 512 × 2048, which stays in a CPU's cache.
    """
    if not STOCK_HEAD[0](device):
        _set_head(lambda device: True, 512, 2048)


def stock_head() -> None:
    """Undo `head_on_completions`, for all trainers of this process."""
    _set_head(*STOCK_HEAD)


def _set_head(leaves_out: Callable[[torch.device], bool], tokens: int, words: int) -> None:
    trl_utils._use_triton = leaves_out
    chunked_logprob.TOKEN_CHUNK_SIZE = tokens
    trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = words
