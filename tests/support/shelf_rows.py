"""Tiny starts of the shelf's models, and made-up rows with the columns of its data sets."""

import json
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    set_seed,
)

from support.tiny import few_tokens

SMALL = {
    "hidden_size": 64,  # 4-bit weights come in blocks of 64
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 16}
# By how the hub's name begins.
MODELS = {
    "alignment-handbook/zephyr-7b-sft": lambda **more: MistralConfig(**GROUPED, **more),
    "HuggingFaceH4/mistral": lambda **more: MistralConfig(**GROUPED, **more),
    "mistralai/Mistral": lambda **more: MistralConfig(**GROUPED, **more),
    "teknium/OpenHermes": lambda **more: MistralConfig(**GROUPED, **more),
    "cognitivecomputations/dolphin": lambda **more: MistralConfig(**GROUPED, **more),
    "HuggingFaceH4/zephyr-7b-gemma": lambda **more: GemmaConfig(**HEADS, **more),
    "google/gemma-2": lambda **more: Gemma2Config(**HEADS, **more),
    "loubnabnl/smollm2": lambda **more: LlamaConfig(**GROUPED, **more),
    "HuggingFaceTB/smollm2": lambda **more: LlamaConfig(**GROUPED, **more),
    "models/SmolLM2": lambda **more: LlamaConfig(**GROUPED, **more),
    "HuggingFaceTB/SmolLM3": lambda **more: SmolLM3Config(**GROUPED, **more),
    "allenai/tulu-2": lambda **more: LlamaConfig(**SMALL, **more),
    "allenai/Llama-3.1": lambda **more: LlamaConfig(**GROUPED, **more),
    "allenai/OLMo-2": lambda **more: Olmo2Config(**SMALL, **more),
    "princeton-nlp/Llama-3": lambda **more: LlamaConfig(**GROUPED, **more),
    "meta-llama/": lambda **more: LlamaConfig(**GROUPED, **more),
    "RLHFlow/LLaMA3": lambda **more: LlamaConfig(**GROUPED, **more),
    "lomahony/eleuther-pythia": lambda **more: GPTNeoXConfig(**SMALL, **more),
    "insub/gpt2": lambda **more: GPT2Config(n_embd=32, n_layer=2, n_head=4, **more),
    "Qwen/Qwen2": lambda **more: Qwen2Config(**GROUPED, **more),
    "Qwen/Qwen3": lambda **more: Qwen3Config(**HEADS, **more),
}
NO_TEMPLATE = ("lomahony/", "insub/")  # trained on plain text


def config_of(name: str, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    (family,) = [family for begin, family in MODELS.items() if name.startswith(begin)]
    return family(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_start(name: str, folder: Path) -> Path:
    """An untrained model of the architecture, with some of the embedded model's tokens."""
    start = folder / "start"
    tokenizer = few_tokens(start)
    if name.startswith(NO_TEMPLATE):
        (start / "chat_template.jinja").unlink()
    set_seed(0)
    AutoModelForCausalLM.from_config(config_of(name, tokenizer)).save_pretrained(start)
    return start


def said(role: str, content: str) -> dict:
    return {"content": content, "role": role}


def turns(i: int) -> tuple[str, list[dict], list[dict]]:
    """A question, and two whole conversations that begin with it."""
    question = f"What is {i} and {i}?"
    asked = said("user", question)
    good, bad = said("assistant", f"It is {2 * i}."), said("assistant", "Who knows." + "!" * i)
    return question, [asked, good], [asked, bad]


def ultrafeedback(i: int) -> dict:
    prompt, chosen, rejected = turns(i)
    return {
        "prompt": prompt,
        "prompt_id": f"{i:064x}",
        "chosen": chosen,
        "rejected": rejected,
        "messages": chosen,
        "score_chosen": 8.5,
        "score_rejected": 4.0,
    }


def trl_ultrafeedback(i: int) -> dict:
    _, chosen, rejected = turns(i)
    scores = {"score_chosen": 8.5, "score_rejected": 4.0}
    return {"chosen": chosen, "rejected": rejected, **scores}


def argilla_ultrafeedback(i: int) -> dict:
    prompt, chosen, rejected = turns(i)
    return {
        "source": "evol_instruct",
        "instruction": prompt,
        "chosen_response": chosen[1]["content"],
        "rejected_response": rejected[1]["content"],
        "chosen_avg_rating": 4.75,
        "rejected_avg_rating": 2.0,
        "chosen_model": "gpt-4",
    }


def cleaned_ultrafeedback(i: int) -> dict:
    prompt, chosen, rejected = turns(i)
    return {
        "source": "sharegpt",
        "prompt": prompt,
        "chosen": chosen,
        "chosen-rating": 5.0,
        "chosen-model": "gpt-4",
        "rejected": rejected,
        "rejected-rating": 3.25,
        "rejected-model": "llama-2-7b-chat",
    }


def dpo_mix(i: int) -> dict:
    _, chosen, rejected = turns(i)
    ratings = {"chosen_rating": 5.0, "rejected_rating": 4.0}
    return {"dataset": "argilla/x", "chosen": chosen, "rejected": rejected, **ratings}


def orca(i: int) -> dict:
    prompt, chosen, rejected = turns(i)
    system = said("system", "You are a helpful assistant.")
    return {"chosen": [system, *chosen], "rejected": [system, *rejected], "prompt": prompt}


def smoltalk(i: int) -> dict:
    prompt, chosen, rejected = turns(i)
    options = {
        "custom_instructions": "",
        "enable_thinking": False,
        "python_tools": [],
        "xml_tools": [],
    }
    pair = {"chosen": chosen, "rejected": rejected, "prompt": prompt}
    return {**pair, "chat_template_kwargs": options, "source": "x"}


def tulu_3(i: int) -> dict:
    prompt, chosen, rejected = turns(i)
    return {"id": f"{i}", "prompt": prompt, "chosen": chosen, "rejected": rejected, "source": "x"}


def olmo_2(i: int) -> dict:
    more = {
        "chosen_rating": 5.0,
        "rejected_rating": 1.0,
        "chosen_model": "a",
        "rejected_model": "b",
    }
    return tulu_3(i) | more


def simpo(i: int) -> dict:
    prompt, chosen, rejected = turns(i)
    return {
        "prompt_id": f"{i:064x}",
        "prompt": prompt,
        "all_generated_responses": [chosen[1]["content"], rejected[1]["content"]],
        "all_rm_scores": [0.16, 0.11],
        "chosen": chosen,
        "rejected": rejected,
    }


def hh(i: int) -> dict:
    prompt, chosen, rejected = turns(i)
    dialogue = f"\n\nHuman: Hello.\n\nAssistant: Hello!\n\nHuman: {prompt}\n\nAssistant: "
    return {
        "chosen": dialogue + chosen[1]["content"],
        "rejected": dialogue + rejected[1]["content"],
    }


def imdb(i: int) -> dict:
    text = f"This film number {i} is one of those that one"
    return {"text": text, "chosen": f"{text} loves at once.", "rejected": f"{text} soon forgets."}


def helpsteer_3(i: int) -> dict:
    prompt, chosen, rejected = turns(i)
    return {
        "domain": "general",
        "language": "english",
        "context": [said("user", "Hello."), said("assistant", "Hello!"), said("user", prompt)],
        "response1": chosen[1]["content"],
        "response2": rejected[1]["content"],
        "overall_preference": (-3, -1, 2)[i % 3],
        "individual_preference": [
            {"score": -1, "reasoning": "Clear.", "feedback1": "Right.", "feedback2": "Wrong."}
        ],
    }


def sentiment(i: int) -> dict:
    prompt, chosen, rejected = turns(i)
    return {
        "prompt": [said("user", prompt)],
        "chosen": chosen[1:],
        "rejected": rejected[1:],
        "vader_chosen": 0.4,
        "vader_rejected": 0.0,
    }


def made_here(i: int) -> dict:
    """As `make pairs` writes them."""
    prompt, chosen, rejected = turns(i)
    pair = {"prompt": [said("user", prompt)], "chosen": chosen[1:], "rejected": rejected[1:]}
    return {**pair, "score_chosen": 2.5, "score_rejected": -0.5}


# By how the hub's name begins.
ROWS = {
    "HuggingFaceH4/ultrafeedback_binarized": ultrafeedback,
    "trl-lib/ultrafeedback_binarized": trl_ultrafeedback,
    "argilla/ultrafeedback-binarized-preferences-cleaned": cleaned_ultrafeedback,
    "argilla/ultrafeedback-binarized-preferences": argilla_ultrafeedback,
    "argilla/dpo-mix-7k": dpo_mix,
    "HuggingFaceH4/orca_dpo_pairs": orca,
    "HuggingFaceTB/smoltalk2": smoltalk,
    "allenai/llama-3.1-tulu-3": tulu_3,
    "allenai/olmo-2": olmo_2,
    "princeton-nlp/": simpo,
    "Anthropic/hh-rlhf": hh,
    "insub/imdb": imdb,
    "nvidia/HelpSteer3": helpsteer_3,
    "recipes/data/sentiment": sentiment,
    "outputs/": made_here,
}


def hub_folder(name: str, keys: dict, folder: Path) -> Path:
    """A folder in hub layout with the splits that a recipe asks for, sixteen rows each."""
    make = next(rows for begin, rows in ROWS.items() if name.startswith(begin))
    splits = {keys.get("dataset_train_split", "train"), keys.get("dataset_test_split", "test")}
    config = "default"
    for entry in keys.get("datasets", []):
        splits |= {entry.get("split", "train").split("[")[0]}
        config = entry.get("name", config)
    folder = folder / "data" / name
    folder.mkdir(parents=True)
    card = f"---\nconfigs:\n  - config_name: {config}\n    data_files:\n"
    for number, split in enumerate(sorted(splits)):
        rows = [make(100 * number + i) for i in range(1, 17)]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        card += f"      - {{split: {split}, path: {number}.jsonl}}\n"
    (folder / "README.md").write_text(card + "---\n")
    return folder
