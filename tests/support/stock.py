"""Stock TRL, after a test in which something was switched on for the whole process."""

from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

# What TRL's fused head goes by, as it is in the pinned version.
STOCK_HEAD = (
    trl_utils._use_triton,
    chunked_logprob.TOKEN_CHUNK_SIZE,
    trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE,
)


def stock_head() -> None:
    """Undo `head_on_completions`, for all trainers of this process."""
    uses_triton, chunked_logprob.TOKEN_CHUNK_SIZE, words = STOCK_HEAD
    trl_utils._use_triton, trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = uses_triton, words
