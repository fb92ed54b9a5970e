"""Did the model get better? `make evaluate` runs this.

    make evaluate RUN=outputs/smollm2-sentiment                  # policy against its reference
    make evaluate RUN=outputs/smollm2-sentiment JUDGE=vader      # and who wins, by a judge
    make evaluate RUN=outputs/a/checkpoint-100 AGAINST=outputs/b JUDGE=hand
    make evaluate RUN=outputs/a JUDGE=http://localhost:8000/v1 JUDGE_MODEL=my-judge
    make evaluate RUN=outputs/a SUITE=ifeval,gsm8k               # benchmarks, before and after
    make evaluate RUN=outputs/a SUITE=mt_bench PROMPTS=FastChat JUDGE=https://… JUDGE_MODEL=gpt-4
    make evaluate RUN=outputs/a SUITE=alpaca_eval PROMPTS=alpaca_eval JUDGE=https://… JUDGE_MODEL=…
    make evaluate RUN=outputs/a SUITE=arena_hard PROMPTS=arena-hard-auto JUDGE=https://… …

On held-out pairs: accuracy and margin of the implicit reward, also by length and by category. On
held-out prompts, or those of a file: both models answer with the same random numbers; lengths,
ends, variety, the policy's KL from its reference, and with a judge the win rate. Answers are kept
in cache/answers, and verdicts beside the evaluation: a second judge, or a second try, goes on from
there.
"""

import argparse
from functools import partial

import dpo  # noqa: F401  first, that no library speaks
from dpo.core.terminal import guarded, parser_of
from dpo.recipe.arguments import not_negative, positive
from dpo.runs import output_folder


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, prog="evaluate.py", allow_abbrev=False)
    add = parser.add_argument
    add("--run", required=True, help="a run's folder, or any model's folder or hub name")
    add("--against", default="", help="another of these (default: what the run started from)")
    add("--judge", default="", help="vader, hand, an endpoint's URL, rule.py, or a reward model")
    add("--judge_model", default="", help="the model that judges behind an endpoint")
    add("--judge_price", default="", help="dollars for a million tokens in and out: 0.15,0.60")
    add("--judge_parallel", type=positive, default=4, help="requests at a time (4)")
    add("--judge_timeout", type=not_negative, default=60, help="seconds for a request (60)")
    add("--prompts", default="", help="a file of prompts (default: the recipe's held-out ones)")
    add(
        "--limit", type=positive, default=None, help="at most so many prompts (200; of a suite all)"
    )
    add("--samples", type=positive, default=1, help="answers to each prompt (1)")
    add("--temperature", type=not_negative, default=None, help="of sampling (as after training)")
    add("--max_new_tokens", type=positive, default=None, help="where an answer is cut (256)")
    add("--seed", type=partial(positive, least=0), default=None, help="of the answers")
    add(
        "--skip_pairs",
        "--skip-pairs",
        action="store_true",
        help="measure answers alone, no held-out pairs",
    )
    suites = "benchmarks of lm-eval: ifeval,gsm8k; or one of mt_bench, alpaca_eval, arena_hard"
    add("--suite", default="", help=suites)
    add("--suite_tasks", default=None, help="a folder of benchmarks of your own, as lm-eval's")
    add("--suite_limit", type=positive, default=None, help="questions of each benchmark (all)")
    return parser.parse_args()


def published(args: argparse.Namespace) -> None:
    from dpo.evaluation.published import alpaca_eval, arena_hard, asking, mt_bench  # late, likewise
    from dpo.reports import published, wandb_evaluations
    from dpo.reports.model_card import card

    asking.check_flags(args)
    suites = {"mt_bench": mt_bench, "alpaca_eval": alpaca_eval}
    path, found = suites.get(args.suite, arena_hard).evaluate(args)
    published.show(found)
    run = path.parents[2]
    card.renew(run)
    print(f"Written: {path}, and beside it the answers and judgements.jsonl")
    wandb_evaluations.say(run)
    print("Next: docs/benchmarks.md says what of it may stand beside published scores")


@guarded
def main() -> None:
    args = arguments()
    output_folder.check_there(args.run)
    # Late: what is misspelt is answered at once.
    from dpo.evaluation.benchmarks import PUBLISHED
    from dpo.evaluation.command import evaluate

    if args.suite in PUBLISHED:
        return published(args)
    from dpo.reports import evaluation_page, wandb_evaluations
    from dpo.reports.model_card import card

    folder, lines, results = evaluate(args)
    evaluation_page.write(results, lines, folder)
    evaluation_page.show(results)
    card.renew(folder.parents[1])
    print(f"Written: {folder}/evaluation.html, evaluation.json and answers.jsonl")
    wandb_evaluations.say(folder.parents[1])
    if not args.judge:
        print("Next: who wins? The same again with JUDGE=vader, hand, a reward model or a URL")
    else:
        print('Next: make compare RUNS="..." shows it beside other runs')


if __name__ == "__main__":
    main()
