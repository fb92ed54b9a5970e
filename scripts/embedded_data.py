"""Rebuild the embedded preference data, recipes/data/sentiment, from its seed.

    python scripts/embedded_data.py                     # some 10 minutes on two cores
    python scripts/embedded_data.py --output /some/dir  # elsewhere, to compare

The controlled experiment of the DPO paper (arXiv 2305.18290, section 6.1) in small: the policy's
own answers, compared by a reward that is known. What is here are the prompts and the settings; all
else is `make pairs` (docs/pairs.md). For every prompt SmolLM2-135M-Instruct answers eight times. Of
the answers that it ended itself, the two of like length that differ most in the VADER compound
score v, in [-1, 1], make a pair, and the label is drawn from the Bradley-Terry model (the paper's
equation 1) with reward r = 4 v: p(a preferred to b) = sigmoid((v_a - v_b) / 0.25). So some labels
are wrong, as people's are, and the data card says how many. Like length, because positive answers
tend to be longer, and a policy would learn length for sentiment.

Train and test prompts speak of different subjects. The same seed gives the same bytes on the same
kind of CPU; on another kind, rounding may change some answers.
"""

import dpo  # noqa: F401  first, that no library speaks

# isort: split
import argparse
import json
import random
import shutil
import tempfile
from pathlib import Path

from dpo.core.files import write_lines
from dpo.core.terminal import at_once, guarded, parser_of

FOLDER = Path("recipes/data/sentiment")
QUESTIONS = (
    "Review {} in one sentence.",
    "How was {}? Answer in one sentence.",
    "What do you think of {}? Answer in one sentence.",
    "Write a one-sentence review of {}.",
)
TEST_SUBJECTS = 32  # of 160: 32 x 4 questions = 128 test prompts, 512 train prompts
LABEL_TEMPERATURE = 0.25  # a reward of 4 v
LENGTH_DIFFERENCE = 4  # tokens, at most, between the two answers of a pair
SETTINGS = {
    "model": "models/SmolLM2-135M-Instruct",
    "dtype": "bfloat16",  # twice as fast here, and the answers are the same in kind
    "samples": 8,
    "temperature": 0.7,
    "max_new_tokens": 40,
    "batch_size": 256,  # answers that are drawn together: part of the seed
    "judge": "vader",
    "pick": "bradley-terry",
    "max_length_difference": LENGTH_DIFFERENCE,
    "label_temperature": LABEL_TEMPERATURE,
    "near_duplicate": 1,
}
WRITTEN = ("train.jsonl", "test.jsonl", "candidates.jsonl", "margins.png")
OF_THE_CARD = f"""
## Of these prompts

{len(QUESTIONS)} questions about each of the subjects in `subjects.txt`, the subjects of train and
test apart; nothing in it was written or taken elsewhere (`scripts/embedded_data.py`). The answers
are a small model's: they are often untrue, and praise or blame nobody real.
"""


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--output", type=Path, default=FOLDER, help=f"folder ({FOLDER})")
    return parser.parse_args()


if __name__ == "__main__":  # --help and what is misspelt, before what takes seconds to import
    at_once(arguments)

import torch

import pairs
from dpo.pairs import begin


def prompts() -> dict[str, list[str]]:
    """The prompts of each split, subjects shuffled by a fixed seed, no subject in both."""
    subjects = (FOLDER / "subjects.txt").read_text().splitlines()
    random.Random(0).shuffle(subjects)
    split = {"train": subjects[TEST_SUBJECTS:], "test": subjects[:TEST_SUBJECTS]}
    return {
        name: [question.format(subject) for subject in part for question in QUESTIONS]
        for name, part in split.items()
    }


def make(asked: dict[str, list[str]], work: Path) -> Path:
    """The folder of the pairs of these prompts, by split, made in `work`."""
    source, made = work / "prompts", work / FOLDER.name
    source.mkdir()
    for split, questions in asked.items():
        write_lines(source / f"{split}.jsonl", [{"prompt": question} for question in questions])
    flags = [f"--{name}={value}" for name, value in SETTINGS.items()]
    args = pairs.arguments([f"--prompts={source}", f"--to={made}", *flags])
    begin.begin(args, made, 0, 1)
    return made


@guarded
def main() -> None:
    output = arguments().output
    # The number of threads can change the last bit of a sum, and with it an answer.
    torch.set_num_threads(2)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        made = make(prompts(), Path(work))
        counts = json.loads((made / "pairs.json").read_text(encoding="utf-8"))["pairs"]
        for name in WRITTEN:
            shutil.copy(made / name, output / name)
        card = (made / "README.md").read_text(encoding="utf-8")
        (output / "README.md").write_text(card + OF_THE_CARD, encoding="utf-8")
    print(f"Wrote {', '.join(f'{n} {split}' for split, n in counts.items())} pairs to {output}")
    print("Next: make data shows them as the model will see them")


if __name__ == "__main__":
    main()
