"""DPO finds the optimum that the paper says it finds, on a space small enough to list.

Three prompts, nine completions each. Of a pair, each completion is preferred as often as
Bradley-Terry has it for a known reward r; the optimum of the KL-constrained objective is
π*(y|x) ∝ π_ref(y|x) exp(r(x, y) / β) (equation 4). DPO says nothing about what lies outside the
completions that were compared, so the distributions are those over the nine.
"""

import numpy as np

from dpo.learn import closed_form, listed

BETA = 1.0


def normalise(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def test_dpo_converges_to_the_closed_form_optimum(tmp_path):
    size = closed_form.Size()
    found = listed.trained(tmp_path, BETA, 1, size.labels, size.epochs, [])
    reference, policy, reward = (np.array(found[n]) for n in ("reference", "policy", "rewards"))

    optimum = normalise(reference + reward / BETA)
    start, end = normalise(reference), normalise(policy)
    distance = 0.5 * np.abs(end - optimum).sum(axis=1)
    before = 0.5 * np.abs(start - optimum).sum(axis=1)
    assert before.mean() > 0.1  # there was something to learn
    assert (distance < 0.05).all(), distance

    implicit = BETA * (policy - reference)
    centred = implicit - implicit.mean(axis=1, keepdims=True)
    truth = reward - reward.mean(axis=1, keepdims=True)
    assert np.corrcoef(centred.ravel(), truth.ravel())[0, 1] > 0.99

    # What make learn prints of it is the same, computed with dpo.losses.
    said = closed_form.numbers(found, BETA)
    assert np.isclose(said["before"], before.mean()) and np.isclose(said["after"], distance.mean())
    assert np.isclose(said["error"], np.sqrt(((centred - truth) ** 2).mean()))
    assert np.isclose(said["kl"], (end * np.log(end / start)).sum(axis=1).mean())
    assert np.isclose(said["kl_optimal"], (optimum * np.log(optimum / start)).sum(axis=1).mean())
    assert np.isclose(said["inside"], np.exp(policy).sum(axis=1).mean())
