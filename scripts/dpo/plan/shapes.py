from transformers import AutoConfig

from dpo.speed.shapes import SHAPES


def config_of(name, revision):
    if "0.6B" in name:
        return AutoConfig.for_model(**SHAPES["Qwen3-0.6B"])
    if "SmolLM" in name:
        return AutoConfig.from_pretrained(name)
    return AutoConfig.for_model(**SHAPES["Llama-3.1-8B"])


KNOWN = {r for r in ("Qwen/Qwen3-0.6B", "alignment-handbook/zephyr-7b-sft-full")}
