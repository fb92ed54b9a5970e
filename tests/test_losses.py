"""The paper's equations, held against TRL's own computation and against closed forms."""

import math

import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from dpo.losses import (
    bradley_terry,
    completion_logps,
    dpo_loss,
    gradient_weight,
    implicit_reward,
    optimal_logps,
)

BETA = 0.3


@pytest.fixture(scope="module")
def trainer(tiny_model, tiny_data, tmp_path_factory):
    """A stock DPOTrainer whose policy has been moved away from its reference."""
    args = DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("stock")),
        beta=BETA,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        per_device_train_batch_size=4,
        model_init_kwargs={"dtype": "float32"},
    )
    data = load_dataset(str(tiny_data), split="train")
    trainer = DPOTrainer(str(tiny_model), args=args, train_dataset=data)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in trainer.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return trainer


@pytest.fixture(scope="module")
def batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


@pytest.fixture(scope="module")
def reference(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def logps(model, batch):
    """Chosen and rejected log-probabilities of a TRL batch."""
    keys = ("input_ids", "attention_mask", "completion_mask")
    return completion_logps(model, *(batch[key] for key in keys)).chunk(2)


def mean_loss(chosen, rejected, reference_chosen, reference_rejected, beta):
    """Equation 7: the mean over pairs, by log-probabilities."""
    better = implicit_reward(chosen, reference_chosen, beta)
    worse = implicit_reward(rejected, reference_rejected, beta)
    return dpo_loss(better, worse).mean()


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


def relative_error(ours, theirs):
    difference = torch.stack([(a - b).norm() for a, b in zip(ours, theirs, strict=True)]).norm()
    return (difference / torch.stack([b.norm() for b in theirs]).norm()).item()


def test_loss_and_gradient_are_those_of_trl(trainer, batch, reference):
    model = trainer.model
    stock = trainer.compute_loss(model, batch)
    with torch.no_grad():
        reference_logps = logps(reference, batch)
    ours = mean_loss(*logps(model, batch), *reference_logps, beta=BETA)
    assert abs(stock.item() - math.log(2)) > 1e-3  # the policy has left its reference
    # The log-probabilities are 138 nats at most, which float32 tells apart in steps of 1.5e-5.
    assert ours.item() == pytest.approx(stock.item(), abs=BETA * 1.5e-5)
    # The gradient has σ of the margin for a factor, which is that far off.
    assert relative_error(gradients(model, ours), gradients(model, stock)) < BETA * 1.5e-5


def test_gradient_is_the_analytic_one(trainer, batch, reference):
    """−β σ(r̂_l − r̂_w) [∇ log π(y_w) − ∇ log π(y_l)], section 4 of the paper, pair by pair."""
    model = trainer.model
    with torch.no_grad():
        reference_chosen, reference_rejected = logps(reference, batch)
    chosen, rejected = logps(model, batch)
    r_chosen = implicit_reward(chosen, reference_chosen, BETA).detach()
    r_rejected = implicit_reward(rejected, reference_rejected, BETA).detach()
    weight = BETA * gradient_weight(r_chosen, r_rejected) / len(chosen)
    expected = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for i in range(len(chosen)):
        chosen, rejected = logps(model, batch)
        for total, part in zip(expected, gradients(model, chosen[i] - rejected[i]), strict=True):
            total -= weight[i] * part
    chosen, rejected = logps(model, batch)
    loss = mean_loss(chosen, rejected, reference_chosen, reference_rejected, beta=BETA)
    assert relative_error(gradients(model, loss), expected) < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_completion_logps_sum_the_completion_tokens_and_no_others(reference, temperature):
    """Rows of different prompt and completion lengths, against one token at a time."""
    rows = [([5, 6, 7, 8], [9, 10]), ([11], [12, 13, 14])]
    width = 6
    input_ids = torch.full((2, width), 2)
    attention_mask, completion_mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    expected = []
    for row, (prompt, completion) in enumerate(rows):
        tokens = prompt + completion
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        attention_mask[row, : len(tokens)] = 1
        completion_mask[row, len(prompt) : len(tokens)] = 1
        total = 0.0
        for i, token in enumerate(completion):
            prefix = torch.tensor([prompt + completion[:i]])
            logits = reference(prefix).logits[0, -1] / temperature
            total += logits.log_softmax(-1)[token].item()
        expected.append(total)
    ours = completion_logps(reference, input_ids, attention_mask, completion_mask, temperature)
    assert ours.tolist() == pytest.approx(expected, abs=1e-4)


def test_bradley_terry_and_the_loss_in_closed_form():
    assert bradley_terry(torch.tensor(math.log(3.0)), 0.0).item() == pytest.approx(0.75)
    zero = torch.zeros(2)
    assert mean_loss(zero, zero, zero, zero, beta=0.1).item() == pytest.approx(math.log(2))
    # One pair, margin β (2 − (−1)) = 0.3.
    loss = mean_loss(*(torch.tensor([x]) for x in (2.0, -1.0, 0.0, 0.0)), beta=0.1)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.3)))


def test_the_weight_of_a_pair_is_the_slope_of_its_loss():
    """By autograd, on pairs that the policy has in the right order, the wrong one, and none."""
    chosen = torch.tensor([2.0, -1.0, 0.0, 9.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-1.0, 3.0, 0.0, -9.0], dtype=torch.float64, requires_grad=True)
    dpo_loss(chosen, rejected).sum().backward()
    weight = gradient_weight(chosen, rejected)
    assert torch.allclose(-chosen.grad, weight, rtol=1e-12, atol=0)
    assert torch.allclose(rejected.grad, weight, rtol=1e-12, atol=0)
    assert weight[2] == 0.5 and weight[1] > 0.98 > 0.05 > weight[0] > weight[3] > 0


@pytest.mark.parametrize("beta", [0.05, 0.3, 5.0])
def test_no_policy_has_more_reward_less_kl_than_the_closed_form(beta):
    """Its value is β log Z(x) (the paper's appendix A.1), gradient ascent by autograd finds no more
    and arrives at it, and its implicit reward is the reward but for that constant."""
    generator = torch.Generator().manual_seed(3)
    reference, rewards = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
    reference = reference.log_softmax(-1)

    def value(logps):
        return (logps.exp() * (rewards - beta * (logps - reference))).sum(-1)

    optimal = optimal_logps(reference, rewards, beta)
    constant = beta * (reference + rewards / beta).logsumexp(-1)
    assert torch.allclose(optimal.exp().sum(-1), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(value(optimal), constant)
    implied = implicit_reward(optimal, reference, beta)
    assert torch.allclose(implied, rewards - constant[:, None])
    assert torch.allclose(
        bradley_terry(implied[:, 0], implied[:, 1]), bradley_terry(rewards[:, 0], rewards[:, 1])
    )

    scores = reference.clone().requires_grad_()
    search = torch.optim.LBFGS([scores], max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        lost = -value(scores.log_softmax(-1)).sum() / beta
        lost.backward()
        return lost

    search.step(loss)
    found = scores.detach().log_softmax(-1)
    assert (value(found) <= value(optimal) + 1e-9).all()
    assert torch.allclose(value(found), value(optimal), atol=1e-4)
    assert (value(reference) < value(optimal) - 1e-3).all()
