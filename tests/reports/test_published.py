"""What published suites came to: in the terminal, in the model card, in W&B's numbers."""

import json
from pathlib import Path

from huggingface_hub import ModelCard

from dpo.evaluation.benchmarks import PUBLISHED
from dpo.reports import published, results, wandb_evaluations
from dpo.reports.model_card import card
from dpo.runs import output_folder
from support.ended import ended_run, interval, suite_of

STYLED = {"policy": interval(0.11, 0.1, 0.12), "against": None, "difference": None, "others": 3}


def arena(**more) -> dict:
    sides = {"policy": interval(0.2, 0.1, 0.3), "against": None, "difference": None}
    found = suite_of("p", suite="arena_hard", score={"hard_prompt": sides}, **more)
    return found | {"baselines": {"hard_prompt": "o3"}, "length": {}}


def left(run: Path, name: str, found: dict) -> Path:
    folder = run / "evaluations" / name
    folder.mkdir(parents=True)
    (folder / f"{found['suite']}.json").write_text(json.dumps(found))
    return folder


def test_the_suites_are_the_same_everywhere():
    assert tuple(published.TITLES) == PUBLISHED
    line = next(
        line for line in Path("Makefile").read_text().splitlines() if "PUBLISHED :=" in line
    )
    assert tuple(line.split()[2:]) == PUBLISHED


def test_a_whole_suite_of_the_policy_stands_in_its_card(tiny_model, tmp_path):
    run = ended_run(tmp_path / "run", tiny_model)
    card.write(run, results.read(run / "report.json"))
    left(run, "whole", suite_of(run))
    left(run, "part", suite_of(run, questions=20, judge={"model": "of-a-part"}))
    left(run, "checkpoint-2", suite_of(f"{run}/checkpoint-2", judge={"model": "of-a-checkpoint"}))
    card.renew(run)
    text, read = (run / "README.md").read_text(), ModelCard.load(run / "README.md")
    assert "AlpacaEval 2, judged by `judge-of-mine`" in text
    assert "of-a-part" not in text and "of-a-checkpoint" not in text and "10.0.0.1" not in text
    row = "length-controlled win rate, % | 30.0 (25.0 to 35.0) | 45.0 (40.0 to 50.0)"
    assert row in text
    rates = [each for each in read.data.eval_results if each.dataset_type == "alpaca_eval"]
    assert [each.metric_value for each in rates] == [45, 40]
    assert rates[0].metric_name == (
        "length-controlled win rate, %, by judge-of-mine, 95% interval 40.00 to 50.00"
    )


def test_a_whole_suite_has_numbers_for_wandb(tmp_path):
    (tmp_path / output_folder.WANDB_ID).write_text("abc")
    whole = left(tmp_path, "whole", suite_of(tmp_path))
    left(tmp_path, "part", suite_of(tmp_path, questions=20))
    assert wandb_evaluations.untold(tmp_path) == [whole]
    assert published.headline(suite_of(tmp_path)) == {
        "alpaca_eval/length_controlled_win_rate": 45,
        "alpaca_eval/length_controlled_win_rate_low": 40,
        "alpaca_eval/length_controlled_win_rate_high": 50,
        "alpaca_eval/win_rate": 40,
        "alpaca_eval/win_rate_low": 35,
        "alpaca_eval/win_rate_high": 45,
    }
    styled = published.headline(arena(style_controlled={"hard_prompt": STYLED}))
    assert styled["arena_hard/hard_prompt"] == 20
    assert styled["arena_hard/hard_prompt_style_controlled_high"] == 12


def test_what_keeps_scores_from_standing_beside_published_ones_is_said(capsys):
    published.show(suite_of("p", judge={"model": "org/gpt-4", "published": "gpt-4"}))
    said = capsys.readouterr().out
    assert "45.0 (40.0" in said and "+10.0 (+5.0" in said
    assert "Characters of an answer, policy: 1,200" in said
    assert "A part of" not in said and "Published figures" not in said
    published.show(arena(questions=3, style_controlled={"lacks": "verdicts"}, left_out={"why": 2}))
    said = capsys.readouterr().out
    assert "hard prompt, %" in said and "–" in said and "controlled, %" not in said
    assert "Style is not controlled: it takes verdicts" in said and "left out: 2 (why)" in said
    assert "A part of the suite: 3 of its 805 questions" in said
    assert "Published figures are by gpt-4" in said


def test_what_arena_hard_lacks_of_its_leaderboards_is_said_in_the_card_too(tiny_model, tmp_path):
    run = ended_run(tmp_path / "run", tiny_model)
    judge = {"model": "google/gemini-2.5", "published": "gpt-4.1 or gemini-2.5"}
    found = arena(judge=judge, style_controlled={"hard_prompt": STYLED})
    found["score"]["creative_writing"] = found["score"]["hard_prompt"]
    style, together = published.caveats(found)
    assert style.startswith("Style of hard prompt is controlled by the verdicts on 3 other models")
    assert together == "Creative writing is published by gpt-4.1 and gemini-2.5 together"
    left(run, "arena", found | {"policy": str(run)})
    card.write(run, results.read(run / "report.json"))
    card.renew(run)
    assert style in (run / "README.md").read_text()
    drawn = {"max_new_tokens": 2, "prescribed": {"max_new_tokens": 1024}}
    cut = suite_of(run, judge={"model": "of-cut-answers", "published": "of-cut-answers"}) | drawn
    (said,) = published.caveats(cut)
    assert (
        said == "Answers are drawn with max_new_tokens 2, where the suite has max_new_tokens 1,024"
    )
    left(run, "cut", cut)
    card.renew(run)
    assert "of-cut-answers" not in (run / "README.md").read_text()
    assert [*published.caveats(suite_of("p"))] == [
        "Published figures are by gpt-4: these are none beside them"
    ]


def test_a_damaged_file_of_results_takes_no_other_with_it(tmp_path, capsys):
    left(tmp_path, "one", suite_of(tmp_path))
    folder = tmp_path / "evaluations/one"
    (folder / "mt_bench.json").write_text('{"suite": "mt')
    assert [each["suite"] for each in published.read(folder)] == ["alpaca_eval"]
    assert "mt_bench.json is damaged, and left out" in capsys.readouterr().out
