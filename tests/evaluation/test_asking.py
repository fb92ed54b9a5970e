"""A model is asked what it was trained on: with the tools and template options of the row."""

import datetime
import json
from dataclasses import replace

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from dpo.data.dataset import prepare
from dpo.data.sources.load import load_rows
from dpo.evaluation import generations, measure, prompts
from dpo.evaluation.contestants import Contestant, find, reference_of
from dpo.evaluation.measure import SEED
from dpo.models.chat_template import load_tokenizer
from dpo.models.sampling import Completion, prompt_token_ids, turns
from dpo.recipe.parse import parse
from dpo.runs import output_folder
from dpo.training.reference import digest_of_rows
from support.place import EMBEDDED_MODEL
from support.tiny import pair

TEMPLATE = """\
{%- if tools %}<|im_start|>system
Tools: {{ tools | tojson }}<|im_end|>
{% endif %}
{%- if custom_instructions %}<|im_start|>system
{{ custom_instructions }}<|im_end|>
{% endif %}
{%- if enable_thinking is defined %}<|im_start|>system
thinking: {{ enable_thinking }}<|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
OTHER = TEMPLATE.replace("Tools:", "You may call")
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}, "about": "sums"}}]
THINK, DIRECT = {"enable_thinking": True}, {"enable_thinking": False}
SMOLTALK = {"custom_instructions": "Be brief.", "python_tools": [], "xml_tools": []} | DIRECT
# What a row has, and what of it stands in the prompt that a model sees.
ROWS = [
    ({"tools": TOOLS}, '[{"type": "function"'),
    ({"chat_template_kwargs": DIRECT}, "thinking: False"),
    ({"chat_template_kwargs": THINK}, "thinking: True"),
    ({"tools": TOOLS, "chat_template_kwargs": THINK}, "thinking: True"),
    ({"chat_template_kwargs": SMOLTALK}, "Be brief.<|im_end|>\n<|im_start|>system\nthinking: F"),
    ({}, "<|im_start|>user\nHow was test 5?"),
]
FORMS = {"values": lambda value: value, "JSON": json.dumps}
KNOWN = {"vader_chosen": 0.8, "vader_rejected": -0.5}


def recipe_of(tiny_model, folder, rows: dict[str, list[dict]], *flags: str):
    data = folder / "data"
    data.mkdir()
    for split, some in rows.items():
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    (folder / "template.jinja").write_text(TEMPLATE)
    given = [f"--model_name_or_path={tiny_model}", f"--dataset_name={data}", "--use_cpu"]
    given += [f"--output_dir={folder / 'run'}", "--bf16=false", "--reward_prompts=8"]
    given += ["--quarantine_limit=1", "--reward_samples=2", *flags]
    return parse(["--config", "recipes/smollm2-sentiment.yaml", *given])


def policy_folder(recipe, tiny_model, folder):
    """As if it had been trained: the model with the tokenizer and template of the run."""
    find(str(tiny_model)).load("cpu").save_pretrained(folder)
    load_tokenizer(recipe).save_pretrained(folder)
    return folder


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What every model was asked, as tokens, and in what kind."""
    seen = []

    def note(model, tokenizer, rows, **how):
        seen.append((rows, how["kind"]))
        return [Completion("a", [5], True)] * len(rows)

    monkeypatch.setattr(generations, "sample", note)
    monkeypatch.setattr(generations, "KEPT", tmp_path / "answers")
    return seen


@pytest.mark.parametrize("form", FORMS)
def test_a_model_is_asked_as_it_was_trained(form, tiny_model, tmp_path, asked):
    nothing = {"tools": None, "chat_template_kwargs": None}
    given = [nothing | {key: FORMS[form](value) for key, value in row.items()} for row, _ in ROWS]
    rows = {
        split: [
            pair(f"{split} {i}", "Good.", "Bad.") | KNOWN | more for i, more in enumerate(given)
        ]
        for split in ("train", "test")
    }
    recipe = recipe_of(
        tiny_model, tmp_path, rows, f"--chat_template_path={tmp_path}/template.jinja"
    )
    tokenizer = load_tokenizer(recipe)
    held_out = prepare(recipe, load_rows(recipe), tokenizer)["held-out"].pairs
    trained = list(held_out["prompt_ids"])
    for ids, (_, stands) in zip(trained, ROWS, strict=True):
        assert stands in tokenizer.decode(ids)
    # After training, policy and reference.
    folder = policy_folder(recipe, tiny_model, tmp_path / "policy")
    measure.after_training(recipe, str(folder), held_out, "cpu")
    assert asked == [([ids for ids in trained for _ in range(2)], list)] * 2
    asked.clear()
    # By make evaluate, against the reference, and against a model with a template of its own.
    other = tmp_path / "other"
    find(str(tiny_model)).load("cpu").save_pretrained(other)
    theirs = AutoTokenizer.from_pretrained(tiny_model)
    theirs.chat_template = OTHER
    theirs.save_pretrained(other)
    given = prompts.each_once(prompts.of_pairs(held_out), 200)
    policy, settings = Contestant("policy", str(folder), recipe=recipe), (1, 0.7, 4, SEED)
    how = (reference_of(recipe), find(str(other)), given, held_out, generations.Settings(*settings))
    found = measure.measure(policy, *how, "cpu")
    own = [prompt_token_ids(theirs, prompt) for prompt in given]
    assert asked == [(trained, list), (own, list)]
    alike = [mine == other for mine, other in zip(trained, own, strict=True)]
    assert alike == ["tools" not in row for row, _ in ROWS]
    assert found.kl and len(measure.lines_of(given, found, None)) == len(ROWS)
    # Asked for by hand, from a file of prompts.
    path = tmp_path / "data/test.jsonl"
    assert [prompt_token_ids(tokenizer, prompt) for prompt in prompts.read(str(path))] == trained


def test_plain_text_is_asked_as_it_was_trained(tiny_model, tmp_path, asked):
    """Also where the last token of the prompt merges with the answer, as a blank does."""
    ends = ("is", "is ")
    rows = {
        split: [
            {"prompt": f"The {split} {i} {end}", "chosen": "fine." if end[2:] else " fine."}
            | {"rejected": " bad, all of it.", "tools": json.dumps(TOOLS)}
            | KNOWN
            for i, end in enumerate(ends * 2)
        ]
        for split in ("train", "test")
    }
    recipe = recipe_of(tiny_model, tmp_path, rows)
    held_out = prepare(recipe, load_rows(recipe), load_tokenizer(recipe))["held-out"].pairs
    folder = policy_folder(recipe, tiny_model, tmp_path / "policy")
    measure.after_training(recipe, str(folder), held_out, "cpu")
    trained = list(held_out["prompt_ids"])
    # Once: the reference has equal weights here, and so the same answers.
    assert asked == [([ids for ids in trained for _ in range(2)], str)]
    asked.clear()
    given = prompts.of_pairs(held_out)
    assert all(isinstance(prompt, str) for prompt in given)
    policy = Contestant("policy", str(folder), recipe=recipe)
    how = (given, held_out, generations.Settings(1, 0.7, 4, SEED), "cpu")
    reference = reference_of(recipe)
    measure.measure(policy, reference, reference, *how)
    assert asked == [(trained, str)] * 2
    asked.clear()
    # What a run ended with is not drawn again for another.
    policy = replace(reference, path=str(folder))
    kept = generations.Settings(2, measure.TEMPERATURE, measure.MAX_NEW_TOKENS, SEED)
    how = {"skip_pairs": True, "at_once": measure.AT_ONCE}
    found = measure.measure(policy, reference, reference, given, held_out, kept, "cpu", **how)
    assert asked == [] and found.pairs is None and len(found.policy) == len(given)


def test_other_tools_make_another_prompt(tiny_model, tmp_path):
    """Rows repeat each other, and what is held out, by what the model sees of them."""
    same = pair("it", "Good.", "Bad.")

    def said(text: str) -> list[dict]:
        return [{"role": "user", "content": text}]

    def with_(**options) -> dict:
        return same | {"tools": None, "chat_template_kwargs": "{}"} | options

    other = json.dumps([{"name": "another"}])
    reordered = [{"function": TOOLS[0]["function"], "type": "function"}]
    train = [
        with_(),
        with_(tools=json.dumps(TOOLS)),
        with_(tools=other),
        with_(chat_template_kwargs=json.dumps(DIRECT)),
        with_(chat_template_kwargs=json.dumps(THINK)),
        # What the template makes nothing of is nothing; the order of keys is in what it renders.
        with_(chat_template_kwargs=json.dumps({"xml_tools": [], "unheard_of": 1})),
        with_(chat_template_kwargs=json.dumps(DIRECT | {"custom_instructions": ""})),
        with_(tools=json.dumps(reordered)),
    ]
    rows = {"train": train, "test": [with_(tools=other), with_() | {"prompt": said("Else?")}]}
    flag = f"--chat_template_path={tmp_path}/template.jinja"
    recipe = recipe_of(tiny_model, tmp_path, rows, flag)
    linted = prepare(recipe, load_rows(recipe), load_tokenizer(recipe))
    assert {(bad.row, bad.reason) for bad in linted["train"].bad} == {
        (3, "held_out_prompt"),
        (6, "duplicate"),
        (7, "duplicate"),
    }
    given = prompts.of_pairs(linted["train"].pairs)
    assert len(given) == 5 and len(prompts.each_once([*given, *given], 200)) == 5


def test_scored_responses_are_compared_with_those_to_the_same_tools(tiny_model, tmp_path):
    rows = [
        {"prompt": f"q{at // 2 % 2}", "response": f"a{at}", "score": at % 2, "tools": tools}
        for at, tools in enumerate([TOOLS] * 4 + [[{"name": "another"}]] * 4)
    ]
    flags = ["--eval_strategy=no", f"--chat_template_path={tmp_path}/template.jinja"]
    recipe = recipe_of(tiny_model, tmp_path, {"train": rows}, *flags)
    tokenizer = load_tokenizer(recipe)
    pairs = prepare(recipe, load_rows(recipe), tokenizer)["train"].pairs
    said = [tokenizer.decode(ids) for ids in pairs["prompt_ids"]]
    assert ["another" in text for text in said] == [False, False, True, True]
    assert all("Tools: [{" in text for text in said)


def test_a_mixture_keeps_what_one_of_its_sources_has(tiny_model, tmp_path):
    for name, more in (("a", {"tools": TOOLS}), ("b", {})):
        folder = tmp_path / name
        folder.mkdir()
        rows = [pair(f"{name} {i}", "Good.", "Bad.") | more for i in range(4)]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixture = [{"path": str(tmp_path / name), "split": "train"} for name in ("a", "b")]
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    flags = [f"--model_name_or_path={tiny_model}", f"--output_dir={tmp_path / 'run'}", "--use_cpu"]
    flags += [f"--chat_template_path={tmp_path}/template.jinja", "--eval_strategy=no"]
    given = tmp_path / "mixed.yaml"
    given.write_text(json.dumps({"datasets": mixture, "max_steps": 1}))
    recipe = parse(["--config", str(given), *flags])
    tokenizer = load_tokenizer(recipe)
    pairs = prepare(recipe, load_rows(recipe), tokenizer)["train"].pairs
    ids = [prompt_token_ids(tokenizer, prompt) for prompt in prompts.of_pairs(pairs)]
    assert ids == list(pairs["prompt_ids"]) and len(ids) == 8


def test_a_judge_is_told_of_tools_and_not_of_switches():
    said = [{"role": "user", "content": "How?"}]
    assert turns({"prompt": said, "options": DIRECT}) == turns(said) == said
    told = turns({"prompt": said, "options": {"tools": TOOLS, **THINK}})
    assert told == [{"role": "system", "content": json.dumps({"tools": TOOLS})}, *said]
    calls = [{"function": {"name": "add"}}]
    asked = [*said, {"role": "assistant", "tool_calls": calls}, {"role": "tool", "content": "3"}]
    (line,) = measure.lines_of(
        [asked],
        measure.Measured(None, None, *[[[generations.Completion("a", [1], True)]]] * 2),
        None,
    )
    assert line["prompt"].splitlines()[1] == f"assistant: {json.dumps(calls)}"


def test_a_judge_gets_one_system_turn():
    """Chat templates take no second one."""
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rain?"}]
    system, *others = turns({"prompt": said, "options": {"tools": TOOLS}})
    assert others == said[1:] and system["role"] == "system"
    assert system["content"].endswith("Be brief.") and json.dumps(TOOLS) in system["content"]


def test_a_run_that_goes_on_another_day_has_the_prompts_of_its_first(tiny_flags, tmp_path):
    """A template may write the date into every prompt, as Llama 3.2's does."""
    (tmp_path / "dated.jinja").write_text(
        "{{ 'Today is ' + strftime_now('%d %B %Y') }}"
        + AutoTokenizer.from_pretrained(EMBEDDED_MODEL).chat_template
    )
    more = ["--use_cpu", f"--chat_template_path={tmp_path / 'dated.jinja'}"]
    recipe = parse(["--config", "recipes/smollm2-sentiment.yaml", *tiny_flags, *more])
    settings, words = tmp_path / "run" / output_folder.SETTINGS, load_tokenizer(recipe)

    def read() -> tuple[str, Dataset]:
        output_folder.claim(recipe).close()
        pairs = prepare(recipe, load_rows(recipe), words)["train"].pairs
        return words.decode(pairs[0]["prompt_ids"]), pairs

    today = datetime.date.today()
    prompt, pairs = read()
    assert f"Today is {today:%d %B %Y}" in prompt
    settings.write_text(settings.read_text().replace(str(today), "2024-02-29"))
    earlier, others = read()
    assert earlier == prompt.replace(f"{today:%d %B %Y}", "29 February 2024")
    assert digest_of_rows(others) != digest_of_rows(pairs)
    assert output_folder.recipe_of(tmp_path / "run").stated == recipe.stated
