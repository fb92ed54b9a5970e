"""Tokens are shown in whole characters, wherever tokens split them."""

import io
from functools import cache

import pytest
from datasets import Dataset
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import data
from dpo.data.characters import pieces, shown
from dpo.data.quarantine import Linted
from dpo.reports import data_page
from support.browser import fits, opened
from support.place import EMBEDDED_MODEL

PHONE = 360  # pixels wide


@cache
def byte_level():
    return AutoTokenizer.from_pretrained(EMBEDDED_MODEL)


@cache
def byte_fallback():
    """As sentencepiece's: words begin with ▁, and what the vocabulary lacks is spelt in bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    tokens += ["▁", *"abcdefghijklmnopqrstuvwxyz", "你", "▁a", "▁b"]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    merges = [("▁", "a"), ("▁", "b")]
    of = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    of.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    of.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=of, bos_token="<s>", eos_token="</s>")


TEXTS = {
    "Chinese": "你好，世界不好",
    "emoji": "so 😀 and 🎉!",
    "a family, flags, a tone of skin, a keycap": "👨‍👩‍👧 🇩🇪🇫🇷 👍🏽 1️⃣",
    "Arabic and Hebrew": "مرحبا بالعالم, שָׁלוֹם",
    "Hindi and Tamil": "नमस्ते दुनिया, வணக்கம்",
    "Korean syllables, and letters to join": "한국어 " + "\u1112\u1161\u11ab",
    "Thai": "ก็น้ำใจ",
    "letters with marks": "e\u0301 a\u030a\u0323 Zoë",
    "mathematics and old scripts": "𝔸 𒀀 ∀x∈ℝ",
    "plain": "a b  ab\n\tend",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("of", [byte_level, byte_fallback])
def test_characters_are_whole(text, of):
    tokenizer = of()
    ids = tokenizer(text)["input_ids"]
    found = pieces(ids, tokenizer)
    assert "".join(piece.text for piece in found) == text and "\ufffd" not in text
    assert all("\ufffd" not in piece.text for piece in found)
    # Every token is in one piece, and none is larger than it must be: no mark is at an end of one.
    assert [piece.start for piece in found] == [0, *(piece.stop for piece in found[:-1])]
    assert found[-1].stop == len(ids)
    joiners = "\u200d\ufe0f\u20e3\U0001f3fd\u0301\u1161\u094d"
    assert not any(piece.text[0] in joiners for piece in found if piece.text)
    if text.isascii():
        assert max(piece.stop - piece.start for piece in found[1:]) == 1


def test_a_special_token_stands_alone():
    tokenizer = byte_level()
    ids = tokenizer("你<|im_end|>\n好")["input_ids"]
    broken = [*ids[:1], *ids[2:]]  # a part of a character, that nothing makes whole
    for given, text in ((ids, "你<|im_end|>\n好"), (broken, "\ufffd<|im_end|>\n好")):
        found = pieces(given, tokenizer)
        assert "".join(piece.text for piece in found) == text
        assert [piece.text for piece in found if piece.special] == ["<|im_end|>"]


def pair(prompt: str, chosen: str, rejected: str) -> dict:
    texts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {f"{k}_ids": byte_level()(text)["input_ids"] for k, text in texts.items()}


def test_a_character_of_prompt_and_completion_is_the_completions():
    """Where the prompt's last token merges with the completion, it may end within a character."""
    whole = pair("你", "好", "不")
    split = whole | {"prompt_ids": whole["prompt_ids"][:1]}
    split |= {
        f"{n}_ids": whole["prompt_ids"][1:] + whole[f"{n}_ids"] for n in ("chosen", "rejected")
    }
    parts = shown(split, byte_level(), None, "keep_start")
    said = {name: "".join(piece.text for piece in found) for name, (_, found) in parts.items()}
    assert said == {"prompt": "", "chosen": "你好", "rejected": "你不"}


# name: (the longest row, where it is cut, what is marked as cut, and the marks of tokens)
CUT = {
    "off": (None, "keep_start", "", "好⁽2⁾▏ world"),
    "the end": (2 + 2, "keep_start", " world", "你⁽2⁾"),
    "within a character": (2 + 1, "keep_start", "好 world", "好⁽2⁾▏ world"),
    "the start": (3, "keep_end", "", "你⁽2⁾"),
}


@pytest.mark.parametrize("most, mode, cut, marked", CUT.values(), ids=CUT)
def test_what_is_cut_is_told(most, mode, cut, marked):
    parts = shown(pair("你", "好 world", "好 world"), byte_level(), most, mode)
    words, found = parts["chosen"]
    assert "".join(piece.text for piece in found if not piece.kept) == cut
    assert ("of them cut" in words) == bool(cut)
    lines = "".join(str(data.marked(found)) for _, found in parts.values())
    assert marked in lines and ("✂" in str(data.marked(found))) == (cut == " world")


def printed(parts: dict, **how) -> str:
    console = Console(record=True, width=80, file=io.StringIO(), **how)
    data.show_pairs(console, {1: parts})
    return console.export_text(styles=bool(how))


def test_tokens_are_told_apart_with_and_without_colour():
    parts = shown(
        pair("你好 hello there", "😀 yes", "no<|im_end|>"), byte_level(), None, "keep_start"
    )
    plain = printed(parts)
    assert "你好 hello there\n" in plain and "你⁽2⁾▏好⁽2⁾▏ hello▏ there" in plain
    colour = printed(parts, force_terminal=True, color_system="truecolor")
    assert "▏" not in colour.partition("row 1")[2] and "\x1b[4;" in colour  # every other underlined


def of_page(texts: list[str]) -> str:
    """The page of a few pairs and tables, as make data writes it."""
    tokenizer = byte_level()
    rows = [pair(text, f"{text} {'good ' * 40}", "x" * 400 + "<|im_end|>") for text in texts]
    numbered = [row | {"row": n, "merged": 0} for n, row in enumerate(rows, 1)]
    linted = {"train": Linted(Dataset.from_list(numbered), "explicit", len(rows), max_length=64)}
    lengths = {"train": data.lengths_of(linted["train"].pairs, 64, "keep_start")}
    parts = {row["row"]: shown(row, tokenizer, 64, "keep_start") for row in numbered}
    name = "a/model/with-a-long-name/" * 6
    return data_page.page("mine", name, linted, lengths, ["chosen is longer"], parts)


def test_the_page_escapes_what_data_say():
    page = of_page(["<script>alert(1)</script>", "\x1b[31m\u202ered", "<b onclick=x>"])
    assert "<script" not in page and "onclick=x>" not in page
    assert "\x1b" not in page and "\u202e" not in page
    assert "Content-Security-Policy" in page and "width=device-width" in page


def test_the_page_fits_a_phone(tmp_path):
    (tmp_path / "data.html").write_text(of_page([*TEXTS.values(), "long" * 200]))
    with opened(f"file://{tmp_path}/data.html", PHONE) as page:
        assert fits(page) and not page.errors
        wide = "[...document.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right >"
        assert page.evaluate(f"{wide} innerWidth + 1 && !e.closest('.numbers')).length") == 0
        # What is written from right to left begins at the right, and every other token is shaded.
        side = "getComputedStyle([...document.querySelectorAll('div.tokens.prompt')].find("
        assert page.evaluate(f"{side} e => e.textContent.includes('مرحبا'))).direction") == "rtl"
        shades = "[...new Set([...document.querySelectorAll('.tokens.chosen :is(i, b)')].map("
        count = f"{shades}e => getComputedStyle(e).backgroundColor))].length"
        assert page.evaluate(count) >= 2
        assert page.evaluate("document.querySelectorAll('.many').length") > 3
