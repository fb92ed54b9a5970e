"""Bytes on the disk of what a run writes: checkpoints, and the policy when it has ended."""

from dpo.plan.arithmetic.memory import SHARDED, ZERO, Setting, Sizes, item_sizes, optimizer_bytes


def checkpoint(sizes: Sizes, setting: Setting, only_model: bool = False) -> float:
    """Bytes of a checkpoint: what is trained, and the optimizer's states with DeepSpeed's float32
    masters. ZeRO-1 and 2, and FSDP, write what is trained twice: in files of their own too.

    Args:
        only_model: `save_only_model`.
    """
    config, weights = setting.config, sizes.trained * item_sizes(sizes, setting)[1]
    if only_model:
        return weights
    twice = config in ("zero1", "zero2", "fsdp2")
    parts = setting.gpus if config in (*ZERO, *SHARDED) else 1
    return weights * (1 + twice) + optimizer_bytes(sizes, setting) * parts


def policy(sizes: Sizes, setting: Setting, merged: bool) -> float:
    """Bytes of what the run leaves: the policy, or an adapter and what it makes of its base.

    Args:
        merged: `save_merged`.
    """
    trained = sizes.trained * item_sizes(sizes, setting)[1]
    return trained + merged * sizes.frozen * setting.loaded.itemsize
