"""Libraries as they are imported: what they say of themselves, and nobody who runs a command can
change, is not shown; and what they import of others, for a use that few commands have, waits for
that use. What they would tell others of it is not told."""

import builtins
import importlib.util
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

# Calls of one library by another that the next version will have otherwise.
OF_VERSIONS = (FutureWarning, DeprecationWarning, PendingDeprecationWarning)
# Loggers, and how what they need not say begins: bitsandbytes would have a faster kernel for 4-bit
# weights on a CPU, one that gives no gradient, and says at every product of 8 bits that it rounds;
# DeepSpeed is imported by others, on a CPU too; a head that is the embedding is in no checkpoint;
# long rows are tokenised to be counted, and then cut; the ends of a turn are set on purpose
# (chat_template.py); and where a model cannot be counted without data, the plan says so.
LOGGED = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast from",
    "torch._subclasses.fake_tensor": "failed while attempting to run meta for",
    "DeepSpeed": "Setting accelerator to CPU",
    "transformers.trainer": "There were missing keys in the checkpoint model loaded: "
    "['lm_head.weight'].",
    "transformers.tokenization_utils_base": "Token indices sequence length is longer than",
    "transformers.trainer_utils": "The tokenizer has new PAD/BOS/EOS tokens that differ from",
}
# What is printed as a module is imported: by transformers, where W&B is kept offline.
PRINTED = "[INFO] Running in WANDB offline mode"


def printed(*values: Any, to: Callable[..., None] = builtins.print, **how: Any) -> None:
    """`print`, without the line that is named above."""
    if not (values and isinstance(values[0], str) and values[0] == PRINTED):
        to(*values, **how)


def hush() -> None:
    """Leave out what is named above, unless Python is asked for warnings (-W, PYTHONWARNINGS)."""
    # `datasets` would ask a server for the name of all that it loads, a local folder's too, to have
    # it counted, and wait for the answer.
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    if sys.warnoptions:
        return
    for category in OF_VERSIONS:
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("ignore", "'pin_memory' argument is set as true")  # without a GPU
    for name, beginning in LOGGED.items():
        logging.getLogger(name).addFilter(
            lambda record, beginning=beginning: not record.getMessage().startswith(beginning)
        )
    builtins.print = printed


class OfPeft(type):
    """A class with the instances of peft's class of the same name: none where peft is not."""

    def __instancecheck__(cls, instance: Any) -> bool:
        peft = sys.modules.get("peft")
        return peft is not None and isinstance(instance, getattr(peft, cls.__name__))


def defer_peft() -> None:
    """Have transformers' arguments imported without peft. They would take it, and with it the code
    of all models, for two classes, of which an object may be one."""
    if "peft" in sys.modules or "transformers.trainer_utils" in sys.modules:
        return
    stand_in = types.ModuleType("peft")
    stand_in.__spec__ = importlib.util.find_spec("peft")
    for name in ("PeftModel", "PeftMixedModel"):
        setattr(stand_in, name, OfPeft(name, (), {}))
    sys.modules["peft"] = stand_in
    try:
        importlib.import_module("transformers.trainer_utils")
    finally:
        del sys.modules["peft"]
