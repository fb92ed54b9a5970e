"""A reference of its own that cannot be one is refused in a line, which names its key."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo.evaluation.contestants import reference_of
from dpo.models import adapters
from dpo.recipe.parse import parse
from dpo.recipe.text import sections
from support.models import edit
from support.refusing import RECIPE, refusal

WEIGHTS = "model.safetensors"


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def cut_off(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def without_a_layer(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    kept = {name: weight for name, weight in weights.items() if "layers.1." not in name}
    save_file(kept, folder / WEIGHTS, {"format": "pt"})


def other_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<another>"])
    tokenizer.save_pretrained(folder)


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def fewer_rows(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(100)
    model.save_pretrained(folder)


def changed(**keys: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **keys)


def adapter(folder: Path) -> None:
    """Saved where its base was."""
    base = shutil.copytree(folder, folder.with_name("base"))
    shape = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    no_weights(folder)
    (folder / "config.json").unlink()
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), shape).save_pretrained(folder)


def trained_adapter(folder: Path) -> None:
    """A run's: beside it lies what it makes of its base."""
    merged = shutil.copytree(folder, folder.with_name("merged"))
    adapter(folder)
    merged.rename(folder / adapters.MERGED)


WRONG = {
    "no weights": (no_weights, r"has no weights .* or name another with --ref_model_name_or_path"),
    "cut off": (cut_off, "cut off or damaged"),
    "pickled": (pickled, "has weights in pytorch_model.bin, a pickle, and only safetensors"),
    "a layer is missing": (without_a_layer, r"missing: model\.layers\.1\..* would be random"),
    "other tokens": (other_tokens, r"ref_model_name_or_path is \S+: it has other tokens than"),
    "no tokenizer": (no_tokenizer, "has no tokenizer"),
    "fewer rows": (fewer_rows, r"the reference \S+ has 100 rows in its embedding and its tok"),
    "few positions": (
        changed(max_position_embeddings=20),
        r"the longest pair \d+ tokens: the reference \S+ has 20 positions: give --max_length 20",
    ),
    "quantised": (
        changed(quantization_config={"quant_method": "gptq", "bits": 4}),
        "it is quantised: name the model that it was made from",
    ),
    "a classifier": (
        changed(architectures=["LlamaForSequenceClassification"]),
        "is a LlamaForSequenceClassification, a classifier or reward model",
    ),
    "an adapter": (
        adapter,
        "an adapter, and a reference is a whole model: name what peft's merge",
    ),
    "a trained adapter": (trained_adapter, r"a reference is a whole model: name \S+/merged$"),
    "code of its own": (
        changed(model_type="own", auto_map={"AutoConfig": "configuration_own.Own"}),
        "runs only with code of its own",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_one_line_says_what_is_wrong_with_it(wrong, tiny_model, tiny_flags, tmp_path, monkeypatch):
    spoil, says = WRONG[wrong]
    folder = Path(shutil.copytree(tiny_model, tmp_path / "reference"))
    spoil(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refusal(monkeypatch, *tiny_flags, f"--ref_model_name_or_path={folder}")
    assert re.search(says, said), said


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--ref_model_name_or_path=nowhere/at/all"], "with --ref_model_name_or_path"),
        (["--ref_model_name_or_path= "], "ref_model_name_or_path is  : give a folder or a name of"),
        (["--ref_model_revision=v2"], "it does nothing unless ref_model_name_or_path is stated"),
    ],
    ids=["no folder", "blank", "a revision of none"],
)
def test_keys_that_name_none_are_refused(flags, says, tiny_flags, monkeypatch):
    assert says in refusal(monkeypatch, *tiny_flags, *flags)


def test_a_number_is_no_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.read_text() + "\nref_model_name_or_path: 7\n")
    with pytest.raises(SystemExit, match=r"ref_model_name_or_path is 7: give a name or a folder"):
        parse(["--config", str(path), "--use_cpu"])


def test_it_decides_what_is_learned_and_what_a_policy_is_held_against(tiny_model):
    given = ["--config", str(RECIPE), "--use_cpu"]
    plain = parse(given)
    own = parse([*given, f"--ref_model_name_or_path={tiny_model}", "--ref_model_revision=v2"])
    assert plain.reference == (plain.model.model_name_or_path, "main")
    assert own.reference == (str(tiny_model), "v2")
    learned = own.learned(own.stated)
    assert learned["ref_model_name_or_path"] == str(tiny_model)
    assert learned.keys() - plain.learned(plain.stated).keys() == {
        *("ref_model_name_or_path", "ref_model_revision"),
    }
    against = reference_of(own)
    assert (against.path, against.revision) == own.reference
    # It is asked as the policy was, by the tokenizer and the template of the recipe.
    assert against.tokenizer().vocab_size == reference_of(plain).tokenizer().vocab_size != 2048
    text = sections({"beta": 0.1, "ref_model_name_or_path": "a/b"}, [*own.defaults])
    assert text.index("### Model") < text.index("ref_model_name_or_path: a/b") < text.index("beta")
