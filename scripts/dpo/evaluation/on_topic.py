"""Whether answers name what they were asked about: cheap, and no judge of what they say of it."""

import re
from collections import Counter
from dataclasses import asdict

import numpy as np

from dpo.core.stats import bootstrap, share

COMMON = 0.1  # of all prompts, or of all answers: a word in more of them is no subject
FEWEST = 20  # prompts: of fewer it cannot be told which words they share
WORDS = re.compile(r"[^\W\d_]{3,}")
STEM = 5  # letters: a shorter word is met by itself and its plural alone


def measure(asked: list[str], policy: list[list[str]], against: list[list[str]]) -> dict | None:
    """The share of answers with a word of their prompt's subject, of either model and how they
    differ, with intervals over prompts; `prompts` says how many have a subject.

    A subject is made of the words of a prompt that stand in at most a tenth of all prompts and in
    at most a tenth of the answers of `against`: what the prompts share, and what any answer has,
    is none.

    Args:
        asked: shape (prompts,); `policy` and `against`: answers, shape (prompts, samples).

    Returns:
        None of fewer than FEWEST prompts with a subject, or if no answer names one.
    """
    of_prompts = Counter(word for said in asked for word in words(said))
    theirs = [words(answer) for row in against for answer in row]
    of_answers = Counter(word for said in theirs for word in said)
    subjects = [
        {
            word
            for word in words(said)
            if of_prompts[word] <= COMMON * len(asked) and of_answers[word] <= COMMON * len(theirs)
        }
        for said in asked
    ]
    if sum(map(bool, subjects)) < FEWEST:
        return None
    mine, other = (
        np.array(
            [
                [names(subject, answer) for answer in row]
                for subject, row in zip(subjects, rows, strict=True)
                if subject
            ]
        ).mean(axis=1)
        for rows in (policy, against)
    )
    if not (mine.any() or other.any()):  # as of a script without blanks between words
        return None
    return {
        "prompts": len(mine),
        "policy": asdict(share(mine)),
        "against": asdict(share(other)),
        "difference": asdict(bootstrap(mine - other)),
    }


def words(text: str) -> set[str]:
    """The words of a text of three letters or more, in lower case and without a plural's s."""
    return {word.removesuffix("s") for word in WORDS.findall(text.casefold())}


def names(subject: set[str], answer: str) -> bool:
    """Whether an answer has a word of the subject, or one that begins with it: puppetry names a
    puppet show."""
    said = words(answer)
    return any(
        word in said or (len(word) >= STEM and any(each.startswith(word) for each in said))
        for word in subject
    )
