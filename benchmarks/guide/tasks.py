"""The tasks: small networks on data that installed packages ship, or that is made here. All are functions of trees."""

from __future__ import annotations

import functools
import itertools
import math
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor
from torch.nn import functional

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """A problem to train on.

    Attributes:
        name, title: How commands and pages call it.
        params: Returns the initial weights of a seed.
        loss: `loss(params, batch)`.
        batch: Returns the batch of a step.
        steps: The number of gradients.
        grid_seeds: The seeds of the grid; None for all. If fewer, the best rate and its neighbours train again
            with all seeds.
        held_out: The loss that counts, as a function of the weights; None for the training loss.
    """

    name: str
    title: str
    params: Callable[[int], Params]
    loss: Callable[[Params, Any], Tensor]
    batch: Callable[[int], Any]
    steps: int
    held_out: Callable[[Params], Tensor] | None = None
    grid_seeds: int | None = None


def linear(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    """Return weights with the scale of torch's linear layers."""
    bound = 1 / math.sqrt(columns)
    return (2 * torch.rand(rows, columns, generator=generator) - 1) * bound


def perceptron(*sizes: int) -> Callable[[int], Params]:
    """Return the function that makes the weights of a fully connected network."""

    def params(seed: int) -> Params:
        generator = torch.Generator().manual_seed(seed)
        weights: Params = {}
        for i, (columns, rows) in enumerate(itertools.pairwise(sizes)):
            weights[f"{i}.weight"] = linear(generator, rows, columns)
            weights[f"{i}.bias"] = torch.zeros(rows)
        return weights

    return params


def applied(
    params: Params, x: Tensor, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """Apply a fully connected network."""
    layers = len(params) // 2
    for i in range(layers):
        x = x @ params[f"{i}.weight"].T + params[f"{i}.bias"]
        if i < layers - 1:
            x = activation(x)
    return x


def drawn(step: int, count: int, size: int) -> Tensor:
    """Return the indices of a batch."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randint(count, (size,), generator=generator)


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images and labels to train on, and held-out ones."""
    numbers, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = numbers[order].float() / 16 - 0.3, labels[order]
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def convolutional(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv1.weight": linear(generator, 8, 9).reshape(8, 1, 3, 3),
        "conv1.bias": torch.zeros(8),
        "conv2.weight": linear(generator, 16, 72).reshape(16, 8, 3, 3),
        "conv2.bias": torch.zeros(16),
        "head.weight": linear(generator, 10, 256),
        "head.bias": torch.zeros(10),
    }


def convolutional_loss(params: Params, batch: Tensor) -> Tensor:
    images, labels, *_ = digits()
    x = images[batch].reshape(-1, 1, 8, 8)
    x = functional.relu(
        functional.conv2d(x, params["conv1.weight"], params["conv1.bias"], padding=1)
    )
    x = functional.conv2d(
        x, params["conv2.weight"], params["conv2.bias"], stride=2, padding=1
    )
    x = functional.relu(x).flatten(1)
    return functional.cross_entropy(
        x @ params["head.weight"].T + params["head.bias"], labels[batch]
    )


# A transformer on bytes.

WIDTH, HEADS, BLOCKS, CONTEXT = 96, 4, 2, 48


@functools.cache
def text() -> Tensor:
    """Return the bytes of some modules of the standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = (
        "argparse",
        "ast",
        "datetime",
        "decimal",
        "inspect",
        "pathlib",
        "typing",
        "unittest/mock",
    )
    files = [folder / f"{name}.py" for name in names]
    content = b"".join(path.read_bytes() for path in files if path.exists())
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).long()


def transformer(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    params = {
        "embedding": torch.randn(256, WIDTH, generator=generator) * 0.05,
        "position": torch.randn(CONTEXT, WIDTH, generator=generator) * 0.05,
    }
    for i in range(BLOCKS):
        for name in ("query", "key", "value", "out"):
            params[f"{i}.{name}"] = linear(generator, WIDTH, WIDTH)
        params[f"{i}.up"] = linear(generator, 4 * WIDTH, WIDTH)
        params[f"{i}.down"] = linear(generator, WIDTH, 4 * WIDTH)
        params[f"{i}.norm1"] = torch.ones(WIDTH)
        params[f"{i}.norm2"] = torch.ones(WIDTH)
    params["norm"] = torch.ones(WIDTH)
    params["head"] = linear(generator, 256, WIDTH)
    return params


def normalized(x: Tensor, scale: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * scale


def attended(params: Params, i: int, x: Tensor) -> Tensor:
    batch, length, _ = x.shape
    query, key, value = (
        (x @ params[f"{i}.{name}"].T).reshape(batch, length, HEADS, -1).transpose(1, 2)
        for name in ("query", "key", "value")
    )
    scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH / HEADS)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, -1e9).softmax(-1)
    return (weights @ value).transpose(1, 2).reshape(batch, length, WIDTH) @ params[
        f"{i}.out"
    ].T


def transformer_loss(params: Params, batch: Tensor) -> Tensor:
    tokens, targets = batch[:, :-1], batch[:, 1:]
    x = params["embedding"][tokens] + params["position"]
    for i in range(BLOCKS):
        x = x + attended(params, i, normalized(x, params[f"{i}.norm1"]))
        hidden = functional.gelu(
            normalized(x, params[f"{i}.norm2"]) @ params[f"{i}.up"].T
        )
        x = x + hidden @ params[f"{i}.down"].T
    logits = normalized(x, params["norm"]) @ params["head"].T
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def characters(step: int) -> Tensor:
    starts = drawn(step, len(text()) - CONTEXT - 1, 8)
    return torch.stack(
        [text()[start : start + CONTEXT + 1] for start in starts.tolist()]
    )


# Tabular regression with heavy-tailed noise on the targets.


@functools.cache
def table() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    features, targets = (
        torch.as_tensor(a).float() for a in load_diabetes(return_X_y=True)
    )
    features = features / features.std(0)
    targets = (targets - targets.mean()) / targets.std()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(targets), generator=generator)
    features, targets = features[order], targets[order]
    uniform = torch.rand(300, generator=generator, dtype=torch.float64)
    noise = 0.5 * torch.tan(math.pi * (0.998 * uniform + 0.001 - 0.5)).float()  # Cauchy
    return features[:300], targets[:300] + noise, features[300:], targets[300:]


def tabular_loss(params: Params, batch: Tensor) -> Tensor:
    x, y, *_ = table()
    return (applied(params, x[batch], torch.tanh)[:, 0] - y[batch]).square().mean()


def tabular_held_out(params: Params) -> Tensor:
    *_, x, y = table()
    return (applied(params, x, torch.tanh)[:, 0] - y).square().mean()


# An autoencoder, a differential equation, wrong labels.


def autoencoder_loss(params: Params, batch: Tensor) -> Tensor:
    images, *_ = digits()
    return (applied(params, images[batch], torch.tanh) - images[batch]).square().mean()


def physics_residuals(params: Params, batch: Tensor) -> Tensor:
    """Return the residuals of u'' + 4 pi^2 sin(2 pi x) = 0 with u = 0 at both ends."""

    def u(x: Tensor) -> Tensor:
        return x * (1 - x) * applied(params, x.reshape(1, 1), torch.tanh)[0, 0]

    second = torch.vmap(torch.func.grad(torch.func.grad(u)))(batch)
    return second + 4 * math.pi**2 * torch.sin(2 * math.pi * batch)


def physics_loss(params: Params, batch: Tensor) -> Tensor:
    return physics_residuals(params, batch).square().mean()


def collocation(step: int) -> Tensor:
    return torch.rand(32, generator=torch.Generator().manual_seed(step))


@functools.cache
def wrong_labels() -> Tensor:
    _, labels, *_ = digits()
    generator = torch.Generator().manual_seed(1)
    are_wrong = torch.rand(len(labels), generator=generator) < 0.2
    others = torch.randint(1, 10, labels.shape, generator=generator)
    return torch.where(are_wrong, (labels + others) % 10, labels)


def noisy_labels_loss(params: Params, batch: Tensor) -> Tensor:
    images, *_ = digits()
    return functional.cross_entropy(
        applied(params, images[batch], torch.relu), wrong_labels()[batch]
    )


def noisy_labels_held_out(params: Params) -> Tensor:
    *_, images, labels = digits()
    return functional.cross_entropy(applied(params, images, torch.relu), labels)


TASKS = {
    task.name: task
    for task in (
        Task(
            "digits",
            "Digits, a small convolutional network",
            convolutional,
            convolutional_loss,
            lambda step: drawn(step, 1200, 32),
            240,
        ),
        Task(
            "chars",
            "Bytes of Python sources, a transformer",
            transformer,
            transformer_loss,
            characters,
            200,
            grid_seeds=1,
        ),
        Task(
            "tabular",
            "A table with heavy-tailed noise",
            perceptron(10, 32, 32, 1),
            tabular_loss,
            lambda step: drawn(step, 300, 32),
            200,
            tabular_held_out,
        ),
        Task(
            "autoencoder",
            "An autoencoder of digits",
            perceptron(64, 32, 8, 32, 64),
            autoencoder_loss,
            lambda step: drawn(step, 1200, 64),
            300,
        ),
        Task(
            "physics",
            "A differential equation",
            perceptron(1, 16, 16, 1),
            physics_loss,
            collocation,
            300,
        ),
        Task(
            "noisy_labels",
            "Digits with 20% wrong labels",
            perceptron(64, 64, 10),
            noisy_labels_loss,
            lambda step: drawn(step, 1200, 64),
            300,
            noisy_labels_held_out,
        ),
    )
}
