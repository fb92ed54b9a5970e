"""Bytes of a process that trains on a CPU, where the machine's memory holds all: beside what a GPU
would hold there are the libraries, and what glibc keeps of freed memory. It gives nothing back
while it trains (launch.KEPT_MEMORY), and so a process has the most that it ever needed."""

from __future__ import annotations

import functools

import psutil
from transformers import PreTrainedConfig

from dpo.core.machine import give_back
from dpo.plan.arithmetic import peak
from dpo.plan.arithmetic.counted import Kept, Pairs
from dpo.plan.arithmetic.lengths import Lengths
from dpo.plan.arithmetic.memory import Setting, Sizes

# Of what comes and goes in a step, what glibc holds beside it, in holes between blocks that stay:
# up to 2.37 its posix_memalign, by which PyTorch asks, takes no hole of the very size that it is
# asked for. An adapter's layers leave a hole for almost every block that they keep. Measured with
# glibc 2.36 (docs/plan.md): 0.38 to 0.46 of full fine-tuning, 1.2 with LoRA.
HELD, HELD_BY_ADAPTERS = 0.45, 1.2
DRAWN = 3  # rows of the vocabulary for each answer that is drawn: logits, warped, and their shares


@functools.cache
def libraries() -> float:
    """Resident bytes of a process that has imported what training does and has read a recipe and
    its data: of this one, which has. To be called before anything is counted."""
    import dpo.evaluation.measure
    import dpo.training.build  # noqa: F401

    give_back()  # of a run that plans itself when it has ended
    return float(psutil.Process().memory_info().rss)


def drawn(
    config: PreTrainedConfig, answers: int, tokens: int, itemsize: int
) -> tuple[float, float]:
    """Bytes of keys and values of so many answers drawn together, at so many tokens with their
    prompts, and of what the next token of each is drawn from."""
    text = config.get_text_config()
    asked = getattr(text, "num_attention_heads", None) or 1  # a state-space model has none
    heads = getattr(text, "num_key_value_heads", None) or asked
    width = getattr(text, "head_dim", None) or text.hidden_size // asked
    kept = 2 * text.num_hidden_layers * heads * width * itemsize * answers * tokens
    return float(kept), float(DRAWN * answers * text.vocab_size * 4)


def after(config: PreTrainedConfig, found: Lengths, itemsize: int) -> tuple[float, float]:
    """What the answers take that are drawn when training has ended, as `drawn` has it."""
    from dpo.evaluation.measure import AT_ONCE, MAX_NEW_TOKENS  # seconds, for a CPU alone

    tokens = int(found.pairs[:, 0].max()) + MAX_NEW_TOKENS
    return drawn(config, min(found.answers, AT_ONCE), tokens, itemsize)


def terms(
    sizes: Sizes, setting: Setting, kept: Kept, pairs: Pairs, answers: tuple[float, float]
) -> dict[str, float]:
    """Bytes of a process at its peak, by what they are: of a training step, or of answers drawn
    when training has ended and its memory was given back.

    Args:
        setting: `live` if the reference is ever in memory beside the policy and its optimizer. It
            lies in its file's pages, on top of the most that was ever needed otherwise.
        answers: as `drawn` has them; 0 where there are none.
    """
    share = HELD_BY_ADAPTERS if sizes.frozen else HELD
    step = peak.terms(sizes, setting, kept, pairs)
    step["slack"] = share * sum(step[name] for name in ("gradients", "activations", "at work"))
    after = dict.fromkeys(step, 0.0)
    after["policy"] = (sizes.frozen or sizes.trained) * setting.loaded.itemsize
    after["activations"], after["at work"] = answers
    after["slack"] = HELD * sum(answers)
    found = max(step, after, key=lambda moment: sum(moment.values()))
    return found | {"libraries": libraries()}
