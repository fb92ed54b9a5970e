"""The models that are held against each other: a run's policy, its reference, any other model."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from dpo.core.hashing import digest_of_all
from dpo.core.refusal import Refusal
from dpo.data import fits
from dpo.models import adapters, loading, model_files, rope, trust
from dpo.models.chat_template import load_tokenizer
from dpo.models.config_check import check_weights
from dpo.recipe.parse import Recipe
from dpo.runs import checkpoints, output_folder
from dpo.runs.output_folder import known_runs, run_folder

# Of a folder; a run's holds much besides.
DECIDES = ("*.safetensors", "tokenizer*", "config.json", "generation_config.json")
DECIDES += ("*.jinja", "*.py")  # its template and its code


@dataclass
class Contestant:
    """A model under the name that it is shown by.

    `path` is what loads: a folder or a hub name, at `revision`. `recipe` is that of the run which
    it belongs to, None for another model; `init` is what that loads it with.
    """

    name: str
    path: str
    revision: str | None = None
    recipe: Recipe | None = None
    dtype: str = "auto"
    attention: str | None = None
    trusted: bool = False
    init: dict[str, Any] = field(default_factory=dict)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its own; a reference is asked as its policy was, with the template of the recipe."""
        of = self.recipe
        if of and self.path in (of.model.model_name_or_path, of.reference[0]):
            tokenizer = load_tokenizer(of)
        else:
            tokenizer = model_files.tokenizer_of(self.path, self.revision, self.trusted)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # as TRL has it
        return tokenizer

    def load(self, device: str) -> PreTrainedModel:
        """The model; an adapter on its base. In the dtype that it was trained in: rounding the
        weights would round away what was learned."""
        model = adapters.load(
            self.path,
            **self.init,
            revision=self.revision,
            trust_remote_code=self.trusted,
            dtype=self.dtype,
            attn_implementation=self.attention,
            use_safetensors=True,
            device_map=loading.device_map(device, self.weight_bytes),
        )
        fits.check_rows(model.config, self.tokenizer(), self.path)
        rope.forget_longer_batches(model)
        return model.eval()

    def weight_bytes(self) -> int:
        """Of the model that `load` gives: of an adapter, its base's."""
        adapter = adapters.config_of(self.path, self.revision)
        name = adapter.base_model_name_or_path if adapter else self.path
        revision = adapter.revision if adapter else self.revision
        trusted = {"trust_remote_code": self.trusted}
        config = model_files.config_of(name, revision, **trusted)
        return loading.weight_bytes(config, self.dtype, **trusted)

    def half(self) -> torch.dtype | None:
        """The half precision that its run computes in; None for that of the weights."""
        args = self.recipe.training if self.recipe else None
        if args is None or not (args.fp16 or args.bf16):
            return None
        return torch.float16 if args.fp16 else torch.bfloat16

    def autocast(self, device: str) -> torch.autocast:
        """The precision that its run computes in; for another model that of its weights."""
        half = self.half()
        return torch.autocast(device.split(":")[0], half or torch.bfloat16, enabled=bool(half))

    def digest(self) -> str:
        """A hash of all that decides what it answers: weights, tokenizer, configuration and code,
        or the commit of a hub model; of an adapter its shape, with its base's."""
        folder, digest = Path(self.path), hashlib.sha256()
        adapter = adapters.config_of(self.path, self.revision)
        if folder.is_dir():
            files = sorted({path for kind in DECIDES for path in folder.glob(kind)})
            digest.update(digest_of_all(files, folder).encode())
            if adapter:
                digest.update(adapters.shape_of(folder).encode())
        else:
            name = CONFIG_NAME if adapter else "config.json"
            config = cached_file(self.path, name, revision=self.revision)
            digest.update(extract_commit_hash(config, None).encode())
        if adapter:
            base = Contestant("", adapter.base_model_name_or_path, adapter.revision)
            digest.update(base.digest().encode())
        if self.init:
            digest.update(json.dumps(self.init, sort_keys=True).encode())
        return digest.hexdigest()


def policy_of(folder: Path, run: Path | None = None) -> Contestant:
    """The policy that a run has saved; in a checkpoint of `run`, as it was there.

    Raises:
        Refusal: it has saved none yet.
    """
    recipe = output_folder.recipe_of(run or folder)
    merged = folder / adapters.MERGED
    path = merged if merged.is_dir() else folder
    if not any(path.glob("*.safetensors")):
        whole = checkpoints.last_whole(run or folder)
        raise Refusal(
            f"{folder} holds no policy yet: let its run end"
            + (f", or name its checkpoint {whole}" if whole else "")
        )
    return Contestant(str(folder), str(path), recipe=recipe, **_as_trained(recipe))


def reference_of(recipe: Recipe) -> Contestant:
    """What the policy of a recipe starts from, or the reference of its own that it states."""
    name, revision = recipe.reference
    return Contestant(name, name, revision, recipe, **_as_trained(recipe))


def _as_trained(recipe: Recipe) -> dict:
    model = recipe.model
    return {
        "dtype": model.dtype,
        "attention": model.attn_implementation,
        "trusted": recipe.training.trust_remote_code,
        "init": recipe.init,
    }


def find(name: str, like: Contestant | None = None) -> Contestant:
    """The policy of a run or of a checkpoint, or a model by its folder or hub name, computed as
    `like` is.

    Raises:
        Refusal: there is nothing of that name.
    """
    if not name:
        raise Refusal(f"no model is named; {known_runs()}")
    if folder := run_folder(name):
        return policy_of(folder)
    if Path(name).is_dir() and (run := run_folder(str(Path(name).parent))):
        return policy_of(Path(name), run)
    output_folder.check_there(name)
    check_weights(name)
    trust.check_code(name, None, False)
    if not adapters.config_of(name):
        model_files.check_config(name)
    return Contestant(name.rstrip("/"), name, dtype=like.dtype if like else "auto")
