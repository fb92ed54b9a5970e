"""A reward model of the field as a judge: a transformer with one logit for a whole conversation."""

from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from dpo.core.refusal import Refusal, one_line
from dpo.evaluation.contestants import DECIDES
from dpo.models import loading, trust
from dpo.models.sampling import Messages
from dpo.models.scoring import padded
from dpo.recipe.hub_names import check_reachable, looks_local

NO_REWARD = "no finite reward"
ROWS = 16  # answers at a time
JUDGES = (
    "vader (the known reward), hand (you, in the terminal), the URL of an OpenAI-compatible "
    "endpoint, a rule of your own (rule.py), or a reward model's folder or hub name"
)


class RewardModel:
    """A sequence classifier with one label, by folder or hub name. Weights load when they score.

    Raises:
        Refusal: there is none of that name, its weights are pickles, it runs only with code of
            its own, it has more labels than one, or no chat template.
    """

    def __init__(self, name: str, device: str = "cpu"):
        self.name, self.device = name, device
        check_files(name)
        trust.check_code(name, None, False)
        try:
            self.config = AutoConfig.from_pretrained(name)
            self.tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise Refusal(
                f"the judge {name} cannot be read: {one_line(error, cause=True)}"
            ) from error
        if (labels := self.config.num_labels) != 1:
            kinds = ", ".join(self.config.architectures or ["a model"])
            why = f"which has one label: it is {kinds} with {labels}"
            raise Refusal(f"the judge {name} is no reward model, {why}")
        if not self.tokenizer.chat_template:
            raise Refusal(f"the judge {name} has no chat template: answers cannot be put to it")
        dtype = str(self.config.dtype).removeprefix("torch.")
        self.about = {"kind": "model", "name": name, "dtype": dtype}
        files = sorted({path for kind in DECIDES for path in Path(name).glob(kind)})
        stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        weights = stamps or getattr(self.config, "_commit_hash", None)
        self.identity = {**self.about, "weights": weights, "template": self.tokenizer.chat_template}

    def score(
        self, answers: dict[str, tuple[Messages, str, dict[str, Any]]]
    ) -> Iterator[tuple[str, float | None, str | None]]:
        """The reward of each answer to its prompt, by key, or why there is none. Longest first:
        what does not fit in memory shows at once."""
        if not answers:
            return
        model, rows = self.model, {}
        text_config = model.config.get_text_config()
        longest = getattr(text_config, "max_position_embeddings", None) or np.inf
        for key, (prompt, answer, _) in answers.items():
            try:
                ids = self.ids([*prompt, {"role": "assistant", "content": answer}])
            except (TemplateError, TypeError, ValueError):
                yield key, None, "the judge's chat template does not take the conversation"
                continue
            if len(ids) > longest:
                yield key, None, f"longer than the {longest} tokens that the judge reads"
            else:
                rows[key] = ids
        # The logit is read at the last token that is not padding. A model without a padding token
        # reads it at the very last one, and takes one row at a time.
        pad = text_config.pad_token_id
        order = sorted(rows, key=lambda key: -len(rows[key]))
        size = ROWS if pad is not None else 1
        with tqdm(total=len(order), desc="Reward model", unit="answer") as progress:
            for start in range(0, len(order), size):
                part = order[start : start + size]
                rewards = logits(model, [rows[key] for key in part], pad)
                for key, reward in zip(part, rewards, strict=True):
                    finite = bool(np.isfinite(reward))
                    yield key, float(reward) if finite else None, None if finite else NO_REWARD
                progress.update(len(part))

    def ids(self, messages: Messages) -> list[int]:
        """A conversation as tokens. The template sets the start token, if there is one; the
        tokenizer must not set another."""
        return self.tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]

    @cached_property
    def model(self) -> Any:
        return self.load()

    def load(self) -> Any:
        """In its own dtype, on one GPU where it fits.

        Raises:
            Refusal: the weights lack a reward head, which transformers would draw at random, or
                have more than the model takes, such as another head.
        """
        kind = AutoModelForSequenceClassification
        needs = partial(loading.weight_bytes, self.config, kind=kind)
        how = {"dtype": "auto", "use_safetensors": True, "output_loading_info": True}
        place = loading.device_map(self.device, needs)
        model, found = kind.from_pretrained(self.name, **how, device_map=place)
        if found["missing_keys"]:
            lacks = ", ".join(sorted(found["missing_keys"])[:3])
            raise Refusal(f"the judge {self.name} is no reward model: its weights lack {lacks}")
        # Left over from the model that it was trained from, and of no use to a judge.
        more = [key for key in found["unexpected_keys"] if not key.startswith("lm_head.")]
        loading.refuse(self.name, type(model).__name__, unexpected=more)
        return model.eval()


def check_files(name: str) -> None:
    """Raises Refusal if a model of that name is not here or on the hub, as safetensors."""
    if Path(name).is_dir():
        files = [path.name for path in Path(name).iterdir()]
    elif looks_local(name):
        raise Refusal(f"no judge {name!r}: {JUDGES}")
    else:
        try:
            files = check_reachable(name, "model")
        except Refusal as error:
            raise Refusal(f"no judge {name!r}: {JUDGES}; and {error}") from error
    if files is not None and not any(file.endswith(".safetensors") for file in files):
        raise Refusal(
            f"the judge {name} has no weights in safetensors, and nothing else is read: a pickle "
            "can run code"
        )


@torch.no_grad()
def logits(model: Any, rows: list[list[int]], pad: int | None) -> np.ndarray:
    """The one logit of each row of token ids, shape (rows,)."""
    seen = padded([[1] * len(row) for row in rows])
    given = {"input_ids": padded(rows, pad or 0), "attention_mask": seen}
    output = model(**{name: tensor.to(model.device) for name, tensor in given.items()})
    return output.logits[:, 0].float().cpu().numpy()
