"""TRL's fused head on a CPU, as it is where there is Triton: completion tokens are scored alone."""

import torch
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils


def head_on_completions(device: torch.device) -> None:
    """Score completion tokens only, where there is no Triton as well as where there is, in all
    trainers of this process from now on.

    TRL's fused head leaves the other positions out where it has Triton, and scores every one
    elsewhere, for the sake of compilers that recompile at each new shape. PyTorch on a CPU does
    not. The question is put to one function, answered here for all devices; the kernel below it
    still asks for Triton itself. That kernel's tile of 4096 tokens × 32768 words, half a GB,
    becomes one of 512 × 2048, which stays in a CPU's cache.
    """
    if not trl_utils._use_triton(device):
        trl_utils._use_triton = lambda device: True
        chunked_logprob.TOKEN_CHUNK_SIZE = 512
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = 2048
