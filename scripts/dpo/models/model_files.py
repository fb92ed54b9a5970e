"""What a model's folder must hold, seen before anything heavy: weights that are whole, a
configuration and a tokenizer that these versions of the libraries know."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from dpo.core.refusal import Refusal, one_line
from dpo.models.loading import some

POINTER = b"version https://git-lfs"
FETCH = (
    "it is the pointer that git leaves without git-lfs: get the file with `git lfs pull` in its "
)
FETCH += "folder, or all with `hf download`, of a data set with --repo-type dataset"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
AGAIN = "copy or download it again"
# Ends of the names of classes that say what else than the next word they predict.
OTHERS = {
    "ForSequenceClassification": "a classifier or reward model",
    "ForTokenClassification": "a classifier of tokens",
    "RewardModel": "a reward model",
    "ForMaskedLM": "a model that fills in masked words",
    "ForQuestionAnswering": "a model that finds answers in a text",
    "ForConditionalGeneration": "a model of more than text, or an encoder-decoder",
    "Model": "a model without a head that predicts words",
}


def is_pointer(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(POINTER)) == POINTER


def check_weights(folder: Path) -> None:
    """See that the safetensors of a model or adapter are whole; no weight is read.

    Raises:
        Refusal: one of them is a pointer of git-lfs, cut off or damaged; or the index names
            others that are not there.
    """
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file() and not (folder / "model.safetensors").is_file():
        named = {*read_json(index).get("weight_map", {}).values()}
        if missing := [name for name in named if not (folder / name).is_file()]:
            raise Refusal(f"{index} names weights that are not there: {some(missing)}: {AGAIN}")
    for file in sorted(folder.glob("*.safetensors")):
        if is_pointer(file):
            raise Refusal(f"{file} holds no weights: {FETCH}")
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise Refusal(
                f"{file} is cut off or damaged ({one_line(error)}), {file.stat().st_size:,} bytes: "
                f"{AGAIN}"
            ) from error


def read_json(file: Path) -> dict[str, Any]:
    """Raises Refusal where a JSON file of a model's folder cannot be read as an object."""
    try:
        if is_pointer(file):
            raise Refusal(f"{file} is not there yet: {FETCH}")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refusal(f"{file} cannot be read: {one_line(error)}: {AGAIN}") from error
    if not isinstance(found, dict):
        raise Refusal(f"{file} is no JSON object: {AGAIN}")
    return found


def config_of(name: str, revision: str | None = None, **how: Any) -> PreTrainedConfig:
    """A model's configuration.

    Raises:
        Refusal: it is not there, is damaged, or is of an architecture that transformers as it
            is installed does not know.
    """
    file = Path(name, "config.json")
    stated = {}
    if Path(name).is_dir():
        if not file.is_file():
            raise Refusal(
                f"model folder {name} has no config.json: give the folder that save_pretrained "
                "wrote"
            )
        stated = read_json(file)
    try:
        return AutoConfig.from_pretrained(name, revision=revision, **how)
    except Exception as error:  # its classes check values in many ways
        if constants.HF_HUB_OFFLINE and not stated:
            raise Refusal(
                f"model {name} is not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE "
                "keeps it from being fetched: unset that, or name a folder"
            ) from error
        if "does not recognize" in str(error) or "Unrecognized model" in str(error):
            wrote = stated.get("transformers_version")
            wrote = f", and was written by {wrote}" if wrote else ""
            kind = stated.get("model_type")
            raise Refusal(
                f"the architecture of model {name} ({kind or 'its config.json has no model_type'}) "
                f"is unknown to transformers {transformers.__version__}{wrote}: choose another "
                "model, or a newer transformers in requirements.txt"
            ) from error
        if "trust_remote_code" in str(error):
            raise needs_code(name, code_in(stated)) from error
        if isinstance(error, OSError) and not stated:
            raise Refusal(
                f"the configuration of model {name} is not to be had from {constants.ENDPOINT}: "
                f"{one_line(error)}: see that name and revision are right, and that your token "
                "(hf auth login) has access if it is gated, or name a folder"
            ) from error
        raise Refusal(
            f"the configuration of model {name} cannot be read: {one_line(error)}: mend its "
            "config.json or what model_init_kwargs change of it, or choose another model"
        ) from error


def code_in(stated: dict[str, Any]) -> set[str]:
    """The files of code that a configuration names."""
    found = set()
    for entry in (stated.get("auto_map") or {}).values():
        classes = entry if isinstance(entry, list) else [entry]  # a slow tokenizer, a fast one
        found |= {f"{target.rsplit('.', 1)[0]}.py" for target in classes if target}
    return found


def needs_code(name: str, code: Iterable[str]) -> Refusal:
    """What is said of a model that needs its own code, where the recipe does not trust it."""
    files = f" ({', '.join(sorted(code))})" if code else ""
    return Refusal(
        f"model {name} runs only with code of its own{files}: read it, and state "
        "trust_remote_code: true if you trust who wrote it, or choose another model"
    )


def check_config(name: str, revision: str | None = None, trusted: bool = False, **how: Any) -> None:
    """Refuse what is no causal language model, as TRL would load it: by its `architectures`.

    Raises:
        Refusal: it is an encoder-decoder, a classifier, a model without a head, or names no
            architecture; its pad token is none of its vocabulary; or as `config_of`.
    """
    config = config_of(name, revision, trust_remote_code=trusted, **how)
    if not getattr(config, "architectures", None):
        raise Refusal(
            f"the config.json of model {name} names no `architectures`: give it those of the model "
            f'that it was made from, such as "{CAUSAL.get(config.model_type, "LlamaForCausalLM")}"'
        )
    check_kind(name, config, trusted)
    text = config.get_text_config()
    pad, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if pad is not None and rows and not -rows <= pad < rows:
        raise Refusal(
            f"the config.json of model {name} has pad_token_id {pad}, and vocab_size {rows}: "
            "take pad_token_id out of it"
        )


def check_kind(name: str, config: PreTrainedConfig, trusted: bool) -> None:
    """See that a model predicts the next word of a text, by its `architectures`, or by the kind of
    its configuration where that names none.

    Raises:
        Refusal: it is an encoder, an encoder-decoder, a classifier, a model without a head or of
            more than text.
    """
    own = trusted and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    named = (getattr(config, "architectures", None) or [CAUSAL.get(config.model_type)])[0]
    kind = named or config.model_type
    decoder = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    what = next((words for end, words in OTHERS.items() if kind.endswith(end)), None)
    if config.is_encoder_decoder:
        what = "an encoder-decoder"
    elif own:
        return
    elif kind in CAUSAL.values():
        what = "an encoder, which sees the words to predict"
        if config.model_type not in MASKED or decoder:
            return
    elif not what and (named is None or config.model_type not in CAUSAL):
        what = "of another kind"
        if config.get_text_config() is not config or hasattr(config, "vision_config"):
            what = "a model of more than text"
    if what:
        raise Refusal(
            f"model {name} is a {kind}, {what}: a causal language model is trained here, such as a "
            "LlamaForCausalLM: choose one"
        )


def check_trainable(name: str, revision: str | None, trusted: bool, adapter: bool) -> None:
    """Refuse quantised weights: transformers would train some after a fashion, in full, and others
    not. An adapter goes on those of bitsandbytes.

    Raises:
        Refusal: the model is quantised, in another way or without an adapter.
    """
    config = config_of(name, revision, trust_remote_code=trusted)
    stated = getattr(config, "quantization_config", None)
    if not stated:
        return
    stated = stated if isinstance(stated, dict) else stated.to_dict()
    method = getattr(stated.get("quant_method"), "value", stated.get("quant_method"))
    if not (adapter and method == "bitsandbytes"):
        raise Refusal(
            f"model {name} is quantised ({method or 'its config.json does not say how'}), and such "
            "weights are not trained: name the model that it was made from, as it is or with "
            "--use_peft --load_in_4bit"
        )


def tokenizer_of(
    name: str, revision: str | None = None, trusted: bool = False
) -> PreTrainedTokenizerBase:
    """A model's tokenizer.

    Raises:
        Refusal: it is not there, is damaged, or is of a format that the libraries as they are
            installed do not know.
    """
    folder = Path(name)
    if folder.is_dir():
        there = [folder / file for file in TOKENIZERS if (folder / file).is_file()]
        if not there and not [*folder.glob("tokenization*.py")]:
            raise Refusal(
                f"model folder {name} has no tokenizer ({', '.join(TOKENIZERS[:3])}): copy the "
                "tokenizer's files there from the model that it was made from"
            )
        for file in [*there, folder / "tokenizer_config.json"]:
            if file.is_file() and is_pointer(file):
                raise Refusal(f"the tokenizer's {file} is not there yet: {FETCH}")
            if file.is_file() and file.suffix == ".json":
                read_json(file)
    try:
        found = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trusted)
        found("a text")  # some fail only as they are used
    except Exception as error:  # tokenizers raises no other
        raise Refusal(
            f"the tokenizer of {name} cannot be loaded: {one_line(error)}. Its files are damaged, "
            f"not all there, or of a newer format than transformers {transformers.__version__} and "
            f"tokenizers {tokenizers.__version__} read: copy them again from the model that it was "
            "made from, or save them anew with save_pretrained"
        ) from error
    return found
