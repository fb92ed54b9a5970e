"""make chat: in a terminal, and over a pipe."""

import json

import pytest
from transformers import AutoTokenizer, TextStreamer

from dpo.core.refusal import Refusal
from dpo.evaluation.contestants import find
from dpo.models.sampling import prompt_token_ids, sample
from dpo.use.chat import piped, speakers, terminal
from dpo.use.chat.speakers import Drawing, Speaker, Unasked
from support.commands import at_once

SAID = "How was the soup?"


@pytest.fixture
def two(chatty_model):
    """The same model twice, under the two names."""
    return [Speaker(name, find(str(chatty_model)), "cpu") for name in ("policy", "reference")]


@pytest.fixture
def how():
    return Drawing(seed=3, temperature=0.7, max_new_tokens=40)


def test_both_get_the_same_random_numbers_and_remember_their_own(two, how, capsys):
    talk = terminal.Talk(two, how)
    talk.ask(SAID)
    mine, other = capsys.readouterr().out.splitlines()
    assert mine.removeprefix("policy> ") == other.removeprefix("reference> ") != ""
    # As an evaluation would draw it.
    ids = prompt_token_ids(two[0].tokenizer, [{"role": "user", "content": SAID}])
    drawn = {"temperature": 0.7, "max_new_tokens": 40, "seed": 3}
    (said,) = sample(two[0].model, two[0].tokenizer, [ids], **drawn)
    user = {"role": "user", "content": SAID}
    assert two[0].messages == [user, {"role": "assistant", "content": said.text}]
    talk.ask("And the tea?")
    assert len(two[1].messages) == 4
    assert "And the tea?" in two[1].tokenizer.decode(two[1].token_ids("So?"))
    assert SAID in two[1].tokenizer.decode(two[1].token_ids("So?"))
    talk.command("/reset")
    assert two[0].messages == two[1].messages == []


def test_words_come_as_they_are_drawn(two, how):
    heard = []
    said = two[0].answer(SAID, how, heard.append)
    assert len([words for words in heard if words]) > 1 and "".join(heard).strip() == said.text


def test_what_steers_a_terminal_is_shown(two, how, capsys, monkeypatch):
    def answer(self, text, how, hear):
        hear("\x1b[31mred\n")
        return speakers.Completion("", [1], True)

    monkeypatch.setattr(Speaker, "answer", answer)
    terminal.Talk(two, how).ask(SAID)
    assert "policy> \\x1b[31mred\n" in capsys.readouterr().out
    assert piped.one_line("\x1b]0;a\\b\nc") == "\\\\x1b]0;a\\\\b\\nc"


def test_ctrl_c_stops_an_answer(two, how, capsys, monkeypatch):
    """What was said until then is kept, and the other one answers."""
    put, count = TextStreamer.put, iter(range(100))

    def interrupted(self, value):
        put(self, value)
        if next(count) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(TextStreamer, "put", interrupted)
    terminal.Talk(two, how).ask(SAID)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(" [stopped]") and not second.endswith("[stopped]")
    assert two[0].messages[-1]["role"] == "assistant"
    assert two[1].messages[-1]["content"].startswith(two[0].messages[-1]["content"])


def test_ctrl_c_over_a_pipe_ends_it_without_half_an_answer(two, how, capsys, monkeypatch):
    def interrupted(self, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(TextStreamer, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        piped.answer_lines([SAID, SAID], two, how, "", as_json=False)
    assert not capsys.readouterr().out


def test_commands(two, how, tmp_path):
    talk = terminal.Talk(two, how)
    assert talk.command("/sytem Be brief.").startswith("No command /sytem; there are:\n  /reset ")
    assert "/save FILE" in talk.command("/help") and talk.command("/quit") is None
    talk.command("/system Be brief.")
    assert two[1].messages == [{"role": "system", "content": "Be brief."}]
    two[1].answer(SAID, how)
    talk.command("/reset")
    assert two[1].messages == [{"role": "system", "content": "Be brief."}]
    assert talk.command("/seed 7") == "Answers are drawn with seed 7" and how.seed == 7
    two[1].answer(SAID, how)
    talk.command("/seed 8")
    two[1].answer(SAID, how)
    assert two[1].seeds == [7, 8]
    talk.command("/reset")
    talk.command("/seed 7")
    assert "give a whole number" in talk.command("/seed x") and how.seed == 7
    file = tmp_path / "said.jsonl"
    assert talk.command(f"/save {file}") == f"Written: {file}"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["model"] for line in lines] == ["policy", "reference"]
    assert lines[0]["messages"] == two[0].messages and lines[0]["seeds"] == []
    assert "not there yet" in talk.command(f"/save {file}")
    assert "name another file" in talk.command("/save ~nobody-of-this-name/said.jsonl")
    assert "No such file" in talk.command(f"/save {tmp_path}/none/said.jsonl")


def test_a_conversation_that_is_too_long_is_refused(two, how, capsys):
    two[0].room = 20
    talk = terminal.Talk(two, how)
    talk.ask("word " * 30)
    said = capsys.readouterr().out
    assert "tokens, and the policy room for 20: /reset begins anew" in said
    assert two[0].messages == [] and len(two[1].messages) == 2


def test_a_model_without_a_template_is_asked_in_plain_text(chatty_model, how, capsys):
    speaker = Speaker("policy", find(str(chatty_model)), "cpu", plain=True)
    assert speaker.token_ids(SAID) == AutoTokenizer.from_pretrained(chatty_model)(SAID)["input_ids"]
    talk = terminal.Talk([speaker], how)
    assert "takes no system turn" in talk.command("/system Be brief.")
    with pytest.raises(Unasked):
        speaker.token_ids("")
    with pytest.raises(Refusal, match="--system: the policy is asked without a chat template"):
        piped.answer_lines([SAID], [speaker], how, "Be brief.", as_json=False)
    assert not capsys.readouterr().out


def test_over_a_pipe_each_line_is_answered_alone(two, how, capsys):
    alone = two[0].answer(SAID, how).text
    lines = ["Another question\n", "\n", f"{SAID}\n", "/reset\n"]
    piped.answer_lines(lines, two[:1], how, "", as_json=False)
    said = capsys.readouterr().out.split("\n")
    assert len(said) == 4 and said[1] == piped.one_line(alone)
    piped.answer_lines(lines, two, how, "", as_json=False)
    assert capsys.readouterr().out.split("\n")[2:4] == [
        f"policy\t{said[1]}",
        f"reference\t{said[1]}",
    ]
    two[0].begin()
    two[0].room = len(two[0].token_ids(SAID)) + 5
    with pytest.raises(Refusal, match="1 of 2 prompts were not answered"):
        piped.answer_lines(["word " * 30, SAID], two, how, "", as_json=True)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["policy"] == first["reference"] == "" and second["seed"] == 3
    assert second["ended"].keys() == {"policy", "reference"}


def test_what_is_misspelt_is_answered_at_once():
    said, code = at_once("chat.py", "--run=x", "--only=polcy")
    assert code == 2 and "choose from" in said and "reference" in said
    said, code = at_once("chat.py", "--run=outputs/none")
    assert code == 1 and "no run and no model at outputs/none" in said
