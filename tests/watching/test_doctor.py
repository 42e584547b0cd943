"""Forty planted faults are named first or second with their remedy; forty healthy runs have no finding."""

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.optim import lr_scheduler

import gradtx
from tests.tiers import by_day
from tests.watching.runs import Convolutions, Perceptron, Run, Tasks, Transformer, adamw, evaluated, generator, sgd

ADAM, RATE = gradtx.scale_by_adam(), gradtx.scale_by_learning_rate(3e-3)


# What is done to a model, an optimizer or a gradient.


def head_times(factor):
    def prepare(net):
        net.head.weight.data *= factor

    return prepare


def without(*names):
    def prepare(net):
        for name in names:
            net.get_submodule(name).requires_grad_(False)

    return prepare


def only(*names):
    """Train some modules only, of a model all of whose parameters the optimizer gets."""

    def prepare(net):
        net.requires_grad_(False)
        for name in names:
            net.get_submodule(name).requires_grad_(True)

    return prepare


class Adapted(nn.Module):
    """A linear layer that is frozen, and an adapter of rank 4."""

    def __init__(self, linear):
        super().__init__()
        self.base = linear.requires_grad_(False)
        self.a = nn.Linear(linear.in_features, 4, bias=False)
        self.b = nn.Linear(4, linear.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return self.base(x) + 2 * self.b(self.a(x))


def adapt(net):
    net.requires_grad_(False)
    for layer in net.layers:
        for name in ("qkv", "out", "up", "down"):
            setattr(layer, name, Adapted(getattr(layer, name)))


def untie(net):
    net.lm_head.weight = nn.Parameter(net.tokens.weight.detach())


def kill(*names, at=0):
    """Set biases so low that no unit is active, at a step."""

    def after(net, optimizer, t):
        if t == at:
            for name in names:
                net.get_submodule(name).bias.data.fill_(-1e3)

    return after


def kill_at_once(*names):
    return lambda net: kill(*names)(net, None, 0)


def written(rates):
    """Write the rate of each step into all groups."""

    def after(net, optimizer, t):
        for group in optimizer.param_groups:
            group["lr"] = rates(t)

    return after


def poison(net, optimizer, t):
    if t == 60:
        net.one.weight.data[0, 0] = float("nan")


def add_up(optimizer):
    pass


def to_zeros(optimizer):
    optimizer.zero_grad(set_to_none=False)


# Losses.


def detach(net):
    net.stem.register_forward_hook(lambda module, inputs, output: output.detach())


def images_of_bytes(net, t):
    return net.loss(t, scale=255.0)


def one_task(net, t):
    return net.losses(t)[0]


def task_times_zero(net, t):
    first, second = net.losses(t)
    return first + 0 * second


def with_a_closed_gate(net, t):
    """The regression from the first layer, and from the second, whose gate is 0."""
    x, y = net.batch(t)
    first = net.one(x).relu()
    return mse_loss(net.out(first + 0.0 * net.two(first).relu()), y)


def with_one_expert(net, t):
    """Both losses, all through the first expert."""
    x, labels, values, _ = net.batch(t)
    x = net.trunk(x)
    x = x + net.experts[0](x).tanh()
    return nn.functional.cross_entropy(net.classes(x), labels) + mse_loss(net.values(x), values)


def margins(net, t):
    """A hinge loss, which reaches 0."""
    x, _ = net.batch(t)
    return (1 - net(x)[:, 0] * x[:, 0].sign()).relu().mul(x[:, 0].abs() > 0.5).mean()


# Optimizers of models.


class Adversaries(nn.Module):
    """A generator of points and a discriminator, trained in turn by one optimizer."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(), nn.Linear(16, 1))

    def loss(self, t):
        noise = generator(t)
        self.generator.requires_grad_(t % 2 == 0)
        self.discriminator.requires_grad_(t % 2 == 1)
        made = self.generator(torch.randn(32, 4, generator=noise))
        if t % 2 == 0:
            return binary_cross_entropy_with_logits(self.discriminator(made), torch.ones(32, 1))
        real = torch.randn(32, 2, generator=noise) + 1
        logits = self.discriminator(torch.cat([real, made.detach()]))
        return binary_cross_entropy_with_logits(logits, torch.cat([torch.ones(32, 1), torch.zeros(32, 1)]))


def muon_everywhere(net):
    matrices = [name for name, param in net.named_parameters() if param.ndim == 2]
    tx = gradtx.partition({"muon": gradtx.muon(lr=0.02), "adamw": adamw()}, {"muon": tuple(matrices), "adamw": "*"})
    return gradtx.as_optimizer(tx, net.named_parameters())


def slow_trunk(net):
    groups = {"slow": [], "fast": []}
    for name, param in net.named_parameters():
        groups["slow" if name.startswith("trunk") else "fast"].append((name, param))
    return [{"params": groups["slow"], "lr": 1e-7}, {"params": groups["fast"]}]


def head_only(net):
    net.requires_grad_(False)
    net.head.requires_grad_(True)
    return gradtx.as_optimizer(adamw(lr=1e-2), net.head.named_parameters())


def linear_lr(total, start=1e-3):
    return lambda optimizer: lr_scheduler.LinearLR(optimizer, start, total_iters=total)


def warm_up_then_cosine(optimizer):
    parts = [linear_lr(10, 0.1)(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, 110)]
    return lr_scheduler.SequentialLR(optimizer, parts, [10])


def chained(*links):
    return gradtx.chain(*links)


CLASSIFIER, LANGUAGE, REGRESSION, BOTH = Convolutions, Transformer, Perceptron, Tasks

# Name -> the kinds that name it, a word of the remedy, and the run.
FAULTS = {
    # Convolutions.
    "a clip far below the gradients of images": (
        "bound always acts", "raise it", Run(chained(gradtx.clip_by_global_norm(1e-4), sgd()), CLASSIFIER)),
    "betas of AdamW in the wrong order": (
        "betas in the wrong order", "(0.9, 0.999)", Run(adamw(betas=(0.999, 0.9)), CLASSIFIER)),
    "LinearLR that outlasts the run": (
        "never left warm-up", "shorten the warm-up", Run(adamw(), CLASSIFIER, scheduler=linear_lr(2000))),
    "CosineAnnealingLR that rises again": (
        "schedule ended", "let it fall over", Run(
            sgd(), CLASSIFIER, scheduler=lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 40))),
    "initial logits in the thousands": (
        "loss starts high", "scale", Run(adamw(), CLASSIFIER, prepare=head_times(3e4))),
    "images of bytes through a large head": (
        "loss starts high", "scale", Run(
            gradtx.adam(lr=1e-4), CLASSIFIER, loss=images_of_bytes, prepare=head_times(300.0))),
    "gradients of images that nothing resets": (
        "gradients add up", "zero_grad", Run(sgd(lr=1e-3), CLASSIFIER, reset=add_up)),
    "a detached stem": ("no gradient", "detach", Run(adamw(), CLASSIFIER, prepare=detach)),
    "a rate of SGD that is a thousand times too large": (
        ("rate too large", "loss has risen"), "divide the rate", Run(sgd(lr=50.0), CLASSIFIER)),
    "images in bfloat16": (
        "steps lost in rounding", "float32", Run(adamw(lr=1e-5), CLASSIFIER, dtype=torch.bfloat16)),
    "a stem that was frozen for a test": (
        "frozen", "requires_grad_(True)", Run(adamw(), CLASSIFIER, prepare=without("stem"))),
    # A transformer.
    "Lion at a hundred times its rate": (
        ("rate too large", "loss has risen"), "divide the rate", Run(gradtx.lion(lr=3e-2), LANGUAGE, steps=200)),
    "decay of a hundred": (
        "decay outweighs the step", "divide weight_decay", Run(adamw(lr=1e-3, weight_decay=100.0), LANGUAGE)),
    "embeddings with Muon": ("embedding with Muon", "muon_for", Run(muon_everywhere, LANGUAGE)),
    "an eps of 1": ("eps decides", "lower eps", Run(adamw(eps=1.0), LANGUAGE)),
    "a clip behind Adam": (
        "clip behind the rule", "before scale_by_adam", Run(
            chained(ADAM, gradtx.clip_by_global_norm(1.0), RATE), LANGUAGE)),
    "betas of NAdam in the wrong order": (
        "betas in the wrong order", "(0.9, 0.999)", Run(gradtx.nadam(betas=(0.999, 0.9)), LANGUAGE)),
    "a warm-up by hand that outlasts the run": (
        "never left warm-up", "shorten the warm-up", Run(
            adamw(), LANGUAGE, prepare=None, after=written(lambda t: 1e-6 * (t + 1)))),
    "a head that was to be tied": ("leaves twice", "one parameter", Run(adamw(), LANGUAGE, prepare=untie)),
    "Adam at a rate of 1": ("rate too large", "divide the rate", Run(gradtx.adam(lr=1.0), LANGUAGE)),
    "a constant factor of 3e-7": (
        "rate too small", "raise the rate", Run(chained(ADAM, gradtx.scale(-3e-7)), LANGUAGE)),
    # A perceptron whose units die.
    "a layer that dies at step 20": (
        "dead leaves", "active", Run(adamw(), REGRESSION, after=kill("two", at=20))),
    "a layer that dies in the middle": (
        "dead leaves", "active", Run(sgd(), REGRESSION, after=kill("one", at=55))),
    "a layer that is dead from the start": (
        "dead leaves", "active", Run(adamw(), REGRESSION, prepare=kill_at_once("two"))),
    "units that a large first rate kills": (
        ("dead leaves", "rate too large", "loss has risen"), "rate", Run(
            sgd(lr=30.0, momentum=0.0), REGRESSION, after=written(lambda t: 30.0 if t < 3 else 0.05))),
    "a gate that is closed": ("dead leaves", "product with 0", Run(adamw(), REGRESSION, loss=with_a_closed_gate)),
    "a rate that jumps": (
        ("loss has risen", "rate too large"), "rate", Run(
            sgd(), REGRESSION, after=written(lambda t: 0.05 if t < 80 else 1.3))),
    "a minus that is missing": (
        "uphill", "scale_by_learning_rate", Run(chained(ADAM, gradtx.scale(3e-3)), REGRESSION)),
    "a weight that becomes NaN": ("not finite", "eagerly", Run(adamw(), REGRESSION, after=poison)),
    "a memory of 20,000 steps": (
        "memory longer than the run", "use about", Run(sgd(lr=1e-5, momentum=0.99995), REGRESSION)),
    # Two tasks.
    "a task without a loss": ("no gradient", "forward pass", Run(adamw(), BOTH, loss=one_task)),
    "a task times 0": ("dead leaves", "product with 0", Run(adamw(), BOTH, loss=task_times_zero)),
    "experts that are never chosen": ("no gradient", "forward pass", Run(adamw(), BOTH, loss=with_one_expert)),
    "a trunk with a rate of nothing": (
        "groups unequal", "raise the rate of group 0", Run(adamw(), BOTH, params=slow_trunk)),
    "decay of 30 with experts": (
        "decay outweighs the step", "divide weight_decay", Run(adamw(weight_decay=30.0), BOTH)),
    "betas of experts in the wrong order": (
        "betas in the wrong order", "(0.9, 0.999)", Run(
            chained(gradtx.clip_by_global_norm(1.0), adamw(betas=(0.999, 0.9))), BOTH, loss=Tasks.loss_in_turn)),
    "LambdaLR that is 0 from the middle on": (
        "schedule ended", "last", Run(
            adamw(), BOTH, scheduler=lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda t: max(0, 1 - t / 60)))),
    "an average of two tasks that no evaluation uses": (
        "averages not evaluated", "eval_params", Run(chained(adamw(), gradtx.average(0.99)), BOTH)),
    "a trunk that freeze covers": ("never moved", "freeze", Run(chained(gradtx.freeze("trunk*"), adamw()), BOTH)),
    "a schedule of the chain that ends": (
        "schedule ended", "let it last", Run(
            adamw(lr=gradtx.linear_schedule(3e-3, 1.0, 0.0, total_iters=40)), BOTH, loss=Tasks.loss_in_turn)),
}  # fmt: skip


@by_day("a layer that dies at step 20", "betas of AdamW*", "LinearLR*", "Lion*", "initial logits*", "a rate that jumps")
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_first_or_second_with_its_remedy(name):
    kinds, word, run = FAULTS[name]
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    first = [finding for finding in run.findings()[:2] if finding.kind in kinds]
    assert first
    assert any(word in finding.remedy for finding in first), first


HEALTHY = {
    # Convolutions.
    "OneCycleLR": Run(adamw(), CLASSIFIER, scheduler=lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=120)),
    "SGD and a cosine": Run(sgd(nesterov=True, weight_decay=5e-4), CLASSIFIER, scheduler=lambda optimizer: (
        lr_scheduler.CosineAnnealingLR(optimizer, 120))),
    "betas that are equal": Run(adamw(betas=(0.95, 0.95)), CLASSIFIER),
    "Lion": Run(gradtx.lion(lr=3e-4, weight_decay=0.1), CLASSIFIER),
    "a frozen backbone": Run(adamw(lr=1e-2), CLASSIFIER, prepare=only("head")),
    "a head alone": Run(head_only, CLASSIFIER),
    "Muon": Run(gradtx.muon_for, CLASSIFIER),
    "RMSprop": Run(gradtx.rmsprop(lr=1e-3), CLASSIFIER),
    "an average that is evaluated": Run(chained(adamw(), gradtx.average(0.99)), CLASSIFIER, after=evaluated),
    "AdaFactor in bfloat16": Run(
        gradtx.adafactor_torch(lr=1e-2), CLASSIFIER, dtype=torch.bfloat16),
    # A transformer.
    "a warm-up and a cosine of torch": Run(
        chained(gradtx.clip_by_global_norm(1.0), adamw(betas=(0.9, 0.95))), LANGUAGE, scheduler=warm_up_then_cosine),
    "an adapter": Run(adamw(lr=1e-2, weight_decay=0.0), LANGUAGE, prepare=adapt),
    "Lion with its own rate": Run(gradtx.lion(lr=3e-4, weight_decay=0.1), LANGUAGE),
    "Muon with tied weights": Run(gradtx.muon_for, LANGUAGE),
    "no schedule": Run(gradtx.schedule_free_adamw(lr=1e-2), LANGUAGE, after=evaluated),
    "ADOPT": Run(gradtx.adopt(lr=3e-3, betas=(0.9, 0.9999)), LANGUAGE, noted=False),
    "Adan": Run(gradtx.adan(lr=3e-3, betas=(0.98, 0.92, 0.99)), LANGUAGE),
    "layers that are dropped": Run(
        adamw(lr=1e-3, weight_decay=0.01), lambda: Transformer(drop=0.4), loss=Transformer.loss),
    "four micro-batches": Run(gradtx.accumulate(adamw(), every=4), LANGUAGE, steps=200),
    "untied weights": Run(adamw(), lambda: Transformer(tied=False), loss=Transformer.loss),
    # A perceptron.
    "steps of a rate": Run(gradtx.adam(lr=1e-2), REGRESSION, scheduler=lambda optimizer: (
        lr_scheduler.StepLR(optimizer, 40, 0.1))),
    "a plateau": Run(sgd(), REGRESSION, scheduler=lambda optimizer: (
        lr_scheduler.ReduceLROnPlateau(optimizer, patience=10))),
    "warm restarts of torch": Run(adamw(), REGRESSION, scheduler=lambda optimizer: (
        lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 30))),
    "cycles of torch": Run(sgd(), REGRESSION, scheduler=lambda optimizer: (
        lr_scheduler.CyclicLR(optimizer, 0.005, 0.05, step_size_up=20))),
    "Prodigy": Run(gradtx.prodigy(lr=1.0), REGRESSION),
    "a loss that reaches 0": Run(sgd(lr=0.1), REGRESSION, loss=margins, steps=300, every=6),
    "a loss without noise": Run(
        gradtx.adam(lr=1e-2), REGRESSION, loss=lambda net, t: net.loss(0, noise=0.0), steps=300, every=6),
    "some dead units": Run(adamw(), REGRESSION, prepare=lambda net: net.one.bias.data[:24].fill_(-10)),
    "lookahead": Run(chained(adamw(), gradtx.lookahead(k=5)), REGRESSION),
    "8 bits": Run(adamw(state_dtype="int8"), REGRESSION),
    # Two tasks.
    "two tasks": Run(adamw(weight_decay=0.01), BOTH),
    "two tasks in turn": Run(adamw(weight_decay=0.01), BOTH, loss=Tasks.loss_in_turn),
    "two tasks in turn at the default distance": Run(adamw(), BOTH, loss=Tasks.loss_in_turn, steps=300, every=50),
    "two tasks in turn with gradients of 0": Run(adamw(), BOTH, loss=Tasks.loss_in_turn, reset=to_zeros),
    "heads of other micro-batches": Run(
        gradtx.accumulate(adamw(weight_decay=0.01), every=2), BOTH, loss=Tasks.loss_in_turn, micro=2),
    "heads of other calls of outer": Run(
        gradtx.outer(sgd(), gradtx.sgd(lr=1.0), every=4), BOTH, loss=Tasks.loss_in_turn),
    "adversaries": Run(adamw(lr=1e-3, weight_decay=0.01), Adversaries, steps=200),
    "experts in a chain with a clip": Run(
        chained(gradtx.clip_by_global_norm(1.0), adamw(lr=1e-3, weight_decay=0.01)), BOTH, steps=200),
    "SGD with decay and experts": Run(sgd(weight_decay=5e-4), BOTH),
    "experts with gradients of 0": Run(
        adamw(weight_decay=0.01), BOTH, loss=lambda net, t: sum(net.losses(t, zeros=True))),
}  # fmt: skip


@by_day("two tasks in turn*", "an adapter", "layers that are dropped", "OneCycleLR")
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_of_another_model_has_no_finding(name):
    assert HEALTHY[name].findings() == []


def test_there_are_forty_of_each():
    assert len(FAULTS) >= 40
    assert len(HEALTHY) >= 40
