"""The paper's equations, held against TRL's own computation and against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from datasets import load_dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from dpo.losses import bradley_terry, completion_logps, implicit_reward

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


def dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta):
    """Mean over pairs of -log σ(r̂(x, y_w) - r̂(x, y_l)) in nats (equation 7)."""
    better = implicit_reward(chosen, reference_chosen, beta)
    worse = implicit_reward(rejected, reference_rejected, beta)
    return -F.logsigmoid(better - worse).mean()


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
    ours = dpo_loss(*logps(model, batch), *reference_logps, beta=BETA)
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
    weight = BETA * torch.sigmoid(r_rejected - r_chosen) / len(chosen)
    expected = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for i in range(len(chosen)):
        chosen, rejected = logps(model, batch)
        for total, part in zip(expected, gradients(model, chosen[i] - rejected[i]), strict=True):
            total -= weight[i] * part
    chosen, rejected = logps(model, batch)
    loss = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=BETA)
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
    assert dpo_loss(zero, zero, zero, zero, beta=0.1).item() == pytest.approx(math.log(2))
    # One pair, margin β (2 − (−1)) = 0.3.
    loss = dpo_loss(*(torch.tensor([x]) for x in (2.0, -1.0, 0.0, 0.0)), beta=0.1)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.3)))
