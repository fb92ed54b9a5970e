"""RewardBench's subsets and sections: which subset is of which section, and what it weighs there.

From allenai/reward-bench, rewardbench/constants.py and calculate_scores_per_section in
rewardbench/utils.py (commit 05a9005): a section is the mean of its subsets' accuracies, weighted by
these counts. They are the subsets' lengths but for math-prm, 447 rows that weigh as much as all of
the code. Lambert et al. 2024, arXiv 2403.13787.
"""

CHAT = {"alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95}
CHAT |= {"mt-bench-easy": 28, "mt-bench-med": 40}
HARD = {"mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134}
HARD |= {"llmbar-adver-GPTInst": 92, "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46}
SAFETY = {"refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 154}
SAFETY |= {"xstest-should-respond": 250, "donotanswer": 136}
CODE = dict.fromkeys((f"hep-{name}" for name in ("cpp", "go", "java", "js", "python", "rust")), 164)
SECTIONS = {
    "Chat": CHAT,
    "Chat Hard": HARD,
    "Safety": SAFETY,
    "Reasoning": {"math-prm": 984, **CODE},
}
TOTALS = {name: sum(subsets.values()) for name, subsets in SECTIONS.items()}
TOTALS["Reasoning"] -= 984 - 447  # rows of math-prm
NAMES = {name.lower(): name for subsets in SECTIONS.values() for name in subsets}
