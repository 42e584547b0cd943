"""Four models with their losses, and a loop that trains one while it is watched."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import gradtx

SEED = 0  # of models, data and batches


class Convolutions(nn.Module):
    """Images of ten classes, with a residual block and both kinds of norms."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.GELU())
        self.head = nn.Linear(12 * 4, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.stem(x), 2)
        x = nn.functional.adaptive_avg_pool2d(x + self.block(x), 2)
        return self.head(x.flatten(1))

    def loss(self, t, scale=1.0):
        patterns = torch.randn(10, 3, 8, 8, generator=generator(0))
        noise = generator(1 + t)
        labels = torch.randint(10, (24,), generator=noise)
        x = patterns[labels] + 0.7 * torch.randn(24, 3, 8, 8, generator=noise)
        return cross_entropy(self((scale * x).to(self.head.weight.dtype)), labels)


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        heads = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """The next token of sequences in which each token follows from the one before, mostly."""

    def __init__(self, tied=True, drop=0.0):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(24, 24), nn.Embedding(12, 24)
        self.layers = nn.ModuleList(Layer(24) for _ in range(2))
        self.norm = nn.LayerNorm(24)
        self.lm_head = nn.Linear(24, 24, bias=False)
        if tied:
            self.lm_head.weight = self.tokens.weight
        self.drop = drop
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, x, noise=None):
        x = self.tokens(x) + self.positions.weight[: x.shape[1]]
        for layer in self.layers:
            if self.drop and torch.rand((), generator=noise) < self.drop:
                continue
            x = layer(x)
        return self.lm_head(self.norm(x))

    def loss(self, t):
        order, noise = torch.randperm(24, generator=generator(0)), generator(1 + t)
        tokens = [torch.randint(24, (16,), generator=noise)]
        for _ in range(12):
            other = torch.randint(24, (16,), generator=noise)
            tokens.append(torch.where(torch.rand(16, generator=noise) < 0.1, other, order[tokens[-1]]))
        x = torch.stack(tokens, 1)
        return cross_entropy(self(x[:, :-1], noise).flatten(0, 1), x[:, 1:].flatten())


class Perceptron(nn.Module):
    """A regression of three layers with ReLU."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(12, 32), nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, x):
        return self.out(self.two(self.one(x).relu()).relu())

    def batch(self, t, noise=0.1):
        weights, stream = torch.randn(12, 2, generator=generator(0)), generator(1 + t)
        x = torch.randn(32, 12, generator=stream)
        return x, (x @ weights / 4).sin() + noise * torch.randn(32, 2, generator=stream)

    def loss(self, t, noise=0.1):
        x, y = self.batch(t, noise)
        return mse_loss(self(x), y)


class Tasks(nn.Module):
    """A classification and a regression with a common trunk, and experts that a router chooses by batches."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 24), nn.LayerNorm(24), nn.Tanh())
        self.experts = nn.ModuleList(nn.Linear(24, 24) for _ in range(4))
        self.classes, self.values = nn.Linear(24, 5), nn.Linear(24, 2)

    def batch(self, t):
        patterns, noise = torch.randn(5, 16, generator=generator(0)), generator(1 + t)
        labels = torch.randint(5, (32,), generator=noise)
        x = patterns[labels] + torch.randn(32, 16, generator=noise)
        return x, labels, x[:, :2].sin(), int(torch.randint(4, (), generator=noise))

    def losses(self, t, zeros=False):
        """The losses of both tasks, through one expert; with zeros for what this step does not use."""
        x, labels, values, expert = self.batch(t)
        x = self.trunk(x)
        x = x + self.experts[expert](x).tanh()
        if zeros:
            x = x + sum(0 * other(x) for other in self.experts)
        return cross_entropy(self.classes(x), labels), mse_loss(self.values(x), values)

    def loss(self, t):
        first, second = self.losses(t)
        return first + second

    def loss_in_turn(self, t):
        """The loss of one task, in every second step of the other."""
        return self.losses(t)[t % 2]


def generator(seed):
    return torch.Generator().manual_seed(SEED + seed)


@dataclass
class Run:
    """What to train, and how.

    Attributes:
        tx: The chain, or a function of the model that returns an optimizer.
        model: Creates the model.
        loss: The loss of a model at a step.
        steps, every: As for `diagnose`.
        micro: The calls of `step` in each step of the loop.
        prepare: Changes the new model.
        params: What the optimizer gets of the model.
        scheduler: Creates torch's scheduler from the optimizer.
        after: Called with the model, the optimizer and the step.
        reset: Resets the gradients.
        noted: Whether losses are noted.
        dtype: Of the weights.
    """

    tx: Any
    model: Any
    loss: Any = None
    steps: int = 120
    every: int = 4
    micro: int = 1
    prepare: Any = None
    params: Any = None
    scheduler: Any = None
    after: Any = None
    reset: Any = torch.optim.Optimizer.zero_grad
    noted: bool = True
    dtype: torch.dtype = torch.float32
    losses: list[float] = field(default_factory=list)

    def findings(self):
        torch.manual_seed(SEED)
        net = self.model().to(self.dtype)
        if self.prepare is not None:
            self.prepare(net)
        params = list(net.named_parameters()) if self.params is None else self.params(net)
        optimizer = self.tx(net) if not hasattr(self.tx, "update") else gradtx.as_optimizer(self.tx, params)
        scheduler = None if self.scheduler is None else self.scheduler(optimizer)
        loss_of = self.loss or type(net).loss
        self.losses = []
        with gradtx.watch(optimizer, every=self.every) as seen:
            for t in range(self.steps):
                for i in range(self.micro):
                    self.reset(optimizer)
                    loss = loss_of(net, t * self.micro + i)
                    loss.backward()
                    optimizer.step()
                    if self.noted:
                        seen.note(loss)
                self.losses.append(loss.item())
                if scheduler is not None:
                    on_plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                    scheduler.step(*[loss.item()] if on_plateau else [])
                if self.after is not None:
                    self.after(net, optimizer, t)
        return seen.diagnose()


def adamw(**options):
    return gradtx.adamw(**{"lr": 3e-3, **options})


def sgd(**options):
    return gradtx.sgd(**{"lr": 0.05, "momentum": 0.9, **options})


def evaluated(net, optimizer, t):
    """An evaluation every 40 steps."""
    if t % 40 == 39:
        with optimizer.eval_params():
            pass
