"""Answers to prompts, a block of them at a time, kept as they come: whoever asks the same model the
same, after a kill, with another judge or another way of picking, finds them."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils.memory import clear_device_cache
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from dpo.core.hashing import name_of
from dpo.evaluation import generations
from dpo.evaluation.contestants import Contestant
from dpo.evaluation.generations import Settings
from dpo.models import adapters, chat_template, model_files
from dpo.models.sampling import Completion, prompt_token_ids

if TYPE_CHECKING:
    from dpo.pairs.asked import Block

APART = 1_000_000  # between the seeds of splits, so that none draws what another drew
ALONE = 0.9  # of a GPU's memory, for vLLM that has it for itself


@dataclass
class Asked:
    """A model that answers, `batch` rows at a time. It is loaded when the first answer lacks."""

    who: Contestant
    device: str
    batch: int
    loaded: Any = field(default=None, repr=False)
    by_vllm: bool = False

    def __post_init__(self) -> None:
        self.tokenizer: PreTrainedTokenizerBase = self.who.tokenizer()
        self.digest = self.who.digest()
        self.size = replace(self.who, dtype="int8").weight_bytes()  # a byte each
        installed = self.device.startswith("cuda") and importlib.util.find_spec("vllm")
        self.by_vllm = bool(installed) and not adapters.config_of(self.who.path, self.who.revision)

    @cached_property
    def control(self) -> re.Pattern | None:
        """The tokens that no answer may spell (chat_template.py)."""
        return chat_template.ChatTemplate(self.tokenizer, list).control

    @cached_property
    def config(self) -> Any:
        """The configuration of the model; of an adapter, of its base."""
        who = self.who
        adapter = adapters.config_of(who.path, who.revision)
        name = adapter.base_model_name_or_path if adapter else who.path
        revision = adapter.revision if adapter else who.revision
        return model_files.config_of(name, revision, trust_remote_code=who.trusted)

    @property
    def dtype(self) -> str:
        """What its weights are loaded in."""
        own = str(self.config.dtype or "float32").removeprefix("torch.")
        return own if self.who.dtype == "auto" else self.who.dtype

    def of(self, block: Block, settings: Settings) -> tuple[Path, list[list[int]], Settings]:
        """Where the answers to a block are kept, its prompts' tokens, and its own seed."""
        ids = [prompt_token_ids(self.tokenizer, prompt) for prompt in block.prompts()]
        own = settings.seed + APART * block.part + block.start * settings.samples
        settings = replace(settings, seed=own)
        who, half = self.who, str(self.who.half())
        about = [self.digest, who.dtype, who.attention, self.device.split(":")[0], half, ids]
        about += [asdict(settings), self.batch, self.by_vllm]
        return generations.KEPT / f"{name_of(about)}.jsonl", ids, settings

    def kept(self, block: Block, settings: Settings) -> list[list[Completion]] | None:
        """The answers to each prompt of a block; None as long as some lack."""
        path, ids, settings = self.of(block, settings)
        found = generations.read(path, len(ids) * settings.samples, self.batch)
        whole = len(found) == len(ids) * settings.samples
        return generations.grouped(found, settings.samples) if whole else None

    def draw(self, block: Block, settings: Settings, bar: tqdm) -> None:
        """Draw what lacks of the answers to a block, and keep it."""
        path, ids, settings = self.of(block, settings)
        rows = dict(enumerate(row for row in ids for _ in range(settings.samples)))
        found = generations.read(path, len(rows), self.batch)
        bar.update(len(found))
        missing = {at: row for at, row in rows.items() if at not in found}
        if not missing:
            return
        with self.who.autocast(self.device):
            if self.by_vllm:
                if self.loaded is None:
                    self.loaded = generations.engine_of(self.who, settings.seed, ALONE)
                stops = chat_template.end_tokens(own_config(self.who), self.tokenizer)
                how = (self.tokenizer, missing, settings, stops)
                generations.keep(path, generations.by_vllm(self.loaded, *how))
                bar.update(len(missing))
                return
            if self.loaded is None:
                self.loaded = self.who.load(self.device)
            how = (self.tokenizer, missing, settings, list, self.batch, bar)
            for part in generations.generated(self.who, self.loaded, *how):
                generations.keep(path, part)

    def release(self) -> None:
        """Make room for the next one."""
        self.loaded = None
        clear_device_cache(garbage_collection=True)


def own_config(who: Contestant) -> GenerationConfig | None:
    """The generation_config.json of a model; None if it has none."""
    try:
        return GenerationConfig.from_pretrained(who.path, revision=who.revision)
    except OSError:
        return None
