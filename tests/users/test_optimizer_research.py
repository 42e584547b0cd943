"""Schedule-free runs, Muon with AdamW for the rest, and several tasks, as ported by researchers on optimizers."""

import pytest
import schedulefree
import torch
from torch import nn

import gradtx
from tests.users.common import assert_same_losses, drawn, perceptron, through_a_file

X, Y = drawn(16, 3, seed=1), drawn(16, 1, seed=2)

# The loop of schedule_free's README: train(), eval() and a checkpoint of the weights to evaluate with.


def train_schedule_free(make, resume_at=None, steps=18):
    model, losses = perceptron(), []
    optimizer = make(model)
    for it in range(steps):
        if it == resume_at:
            optimizer.eval()
            saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
            model = perceptron(seed=5)
            optimizer = make(model)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
        optimizer.train()
        optimizer.zero_grad()
        loss = (model(X) - Y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.eval()
        with torch.no_grad():
            losses += [loss.item(), (model(X + 0.1) - Y).square().mean().item()]
    return losses


@pytest.mark.usefixtures("float64_by_default")
def test_a_schedule_free_loop_with_evaluations_and_a_checkpoint_has_the_losses_of_the_authors_package():
    options = {"lr": 5e-2, "betas": (0.9, 0.99), "weight_decay": 0.05, "warmup_steps": 5}
    theirs = train_schedule_free(lambda model: schedulefree.AdamWScheduleFree(model.parameters(), **options))
    for resume_at in (None, 8):
        ours = train_schedule_free(
            lambda model: gradtx.optim.ScheduleFreeAdamW(model.parameters(), **options), resume_at
        )
        assert_same_losses(ours, theirs)


# Muon for hidden matrices and AdamW for the rest: two optimizers of torch, one of ours.


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 1)
        self.double()

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.head(self.norm(x))


def is_hidden(name, p):
    return p.ndim == 2 and name.startswith("blocks.")


def train_residual(make, steps=20):
    model, losses = Residual(), []
    optimizers = make(model)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda it: min(1.0, (it + 1) / 5)) for optimizer in optimizers
    ]
    for _ in range(steps):
        loss = (model(X) - Y).square().mean()
        loss.backward()
        for part in (*optimizers, *schedulers):
            part.step()
        model.zero_grad()
        losses.append(loss.item())
    return losses


MUON = {"lr": 2e-2, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
ADAMW = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.01}


def theirs_of_two(model):
    hidden = [p for name, p in model.named_parameters() if is_hidden(name, p)]
    rest = [p for name, p in model.named_parameters() if not is_hidden(name, p)]
    return torch.optim.Muon(hidden, **MUON), torch.optim.AdamW(rest, **ADAMW)


def ours_of_one(model):
    branches = {"muon": gradtx.muon(**MUON), "adamw": gradtx.adamw(**ADAMW)}
    tx = gradtx.partition(branches, {"muon": is_hidden, "adamw": "*"})
    return (gradtx.as_optimizer(tx, model.named_parameters()),)


def test_one_optimizer_of_muon_and_adamw_has_the_losses_of_torchs_two_under_the_same_scheduler():
    assert_same_losses(train_residual(ours_of_one), train_residual(theirs_of_two))


# Several tasks with conflicting gradients.


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.left, self.right = perceptron(3, 4, seed=1), perceptron(4, 1, seed=2), perceptron(4, 1, seed=3)

    def losses(self):
        hidden = self.body(X).tanh()
        return (self.left(hidden) - Y).square().mean(), (self.right(hidden) + Y).square().mean()


def projected(first, second):
    """Both gradients without what conflicts; for two tasks the order does not matter."""
    inner = torch.dot(first, second)
    if inner >= 0:
        return first, second
    return first - inner / second.dot(second) * second, second - inner / first.dot(first) * first


def train_tasks_by_hand(steps):
    model, losses = TwoHeads(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    params = list(model.parameters())
    for _ in range(steps):
        of_tasks, flat = model.losses(), []
        for loss in of_tasks:
            grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
            flat.append(torch.cat([g.flatten() for g in filled]))
        first, second = projected(*flat)
        sizes = [p.numel() for p in params]
        for p, a, b in zip(params, first.split(sizes), second.split(sizes), strict=True):
            p.grad = (a + b).view_as(p)
        optimizer.step()
        losses.append(sum(of_tasks).item())
    return losses


def test_pcgrad_in_place_of_backward_has_the_losses_of_the_projection_by_hand():
    model, losses = TwoHeads(), []
    optimizer = gradtx.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(20):
        of_tasks = model.losses()
        losses.append(sum(of_tasks).item())
        gradtx.pcgrad_backward(of_tasks, model.parameters(), reduction="sum")
        optimizer.step()
    assert_same_losses(losses, train_tasks_by_hand(20))
