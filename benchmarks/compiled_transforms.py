"""Time transforms of training inside `torch.compile`, and the same functions with an update written by hand.

python benchmarks/compiled_transforms.py

MAML (25 tasks, 5 inner steps), a step of 64 networks, and the derivative by the learning rate of a loss after 20 steps,
all of a network with 6 tensors. Each line is a process of its own, with an empty cache and one thread, after torch's
compiler has started.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import interleaved
from compiled_updates import print_table, seconds_in_dynamo, start_compiler
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, stack_module_state, vmap

import gradtx

TASKS, INNER = 25, 5
MEMBERS = 64
STEPS = 20
RATE, MOMENTUM = 0.01, 0.9
SGD = gradtx.sgd(RATE, momentum=MOMENTUM)
ROUNDS = 50

Trees = dict[str, Tensor]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    )


MODEL = network(0)
PARAMS = {name: param.detach() for name, param in MODEL.named_parameters()}


def loss_fn(params: Trees, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(functional_call(MODEL, params, (x,)), y)


def by_hand(rate: Any) -> tuple[Callable[[Trees], Any], Callable[..., Any]]:
    """Return `(init, step)` of gradient descent with momentum."""

    def init(params: Trees) -> Trees:
        return {name: torch.zeros_like(param) for name, param in params.items()}

    def step(params: Trees, momenta: Trees, x: Tensor, y: Tensor) -> Any:
        gradients = grad(loss_fn)(params, x, y)
        momenta = {name: MOMENTUM * momenta[name] + gradients[name] for name in momenta}
        return {name: params[name] - rate * momenta[name] for name in momenta}, momenta

    return init, step


def with_gradtx(rate: Any) -> tuple[Callable[[Trees], Any], Callable[..., Any]]:
    """Return `(init, step)` of the same method."""
    tx = SGD.replace(lr=rate)
    whole = gradtx.train_step(loss_fn, tx)

    def step(params: Trees, state: Any, x: Tensor, y: Tensor) -> Any:
        params, state, _ = whole(params, state, x, y)
        return params, state

    return tx.init, step


WAYS = {"gradtx": with_gradtx, "by hand": by_hand}


def maml(make: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a function of the outer gradient, and its arguments."""
    init, step = make(RATE)

    def after_training(
        params: Trees, x: Tensor, y: Tensor, new_x: Tensor, new_y: Tensor
    ) -> Tensor:
        state = init(params)
        for _ in range(INNER):
            params, state = step(params, state, x, y)
        return loss_fn(params, new_x, new_y)

    def loss(params: Trees, *tasks: Tensor) -> Tensor:
        return vmap(after_training, (None, 0, 0, 0, 0))(params, *tasks).mean()

    tasks = (torch.randn(TASKS, 10, 1) for _ in range(4))
    return grad_and_value(loss), (PARAMS, *tasks)


def ensemble(make: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a step of several networks, and its arguments."""
    init, step = make(RATE)
    stacked, _ = stack_module_state([network(seed) for seed in range(MEMBERS)])
    params = {name: param.detach() for name, param in stacked.items()}
    x = torch.randn(32, 1)
    members = vmap(step, (0, 0, None, None))
    return members, (params, vmap(init)(params), x, x.sin())


def hypergradient(
    make: Callable[..., Any],
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the derivative of the last loss by the learning rate, and its arguments."""
    x = torch.randn(32, 1)

    def last_loss(rate: Tensor, params: Trees) -> Tensor:
        init, step = make(rate)
        state = init(params)
        for _ in range(STEPS):
            params, state = step(params, state, x, x.sin())
        return loss_fn(params, x, x.sin())

    return grad(last_loss), (torch.tensor(RATE), PARAMS)


TRANSFORMS = {
    "MAML": maml,
    "64 members": ensemble,
    "hypergradient": hypergradient,
}


def measure(transform: str, way: str) -> None:
    """Print one line of the table."""
    torch.set_num_threads(1)
    start_compiler()
    function, arguments = TRANSFORMS[transform](WAYS[way])
    compiled = torch.compile(function, fullgraph=True)
    start = time.perf_counter()
    compiled(*arguments)
    first, traced = time.perf_counter() - start, seconds_in_dynamo()
    steps = {
        "eager": lambda: function(*arguments),
        "compiled": lambda: compiled(*arguments),
    }
    eager, later = (1e3 * min(each) for each in interleaved(steps, ROUNDS).values())
    print(
        f"| {transform} | {way} | {first:.1f} | {traced:.1f} | {later:.2f} | {eager:.1f} |"
    )


COLUMNS = (
    *("function", "update", "first call, s", "in dynamo, s"),
    *("later, ms", "eager, ms"),
)


def main() -> None:
    lines = [(transform, way) for transform in TRANSFORMS for way in WAYS]
    print_table(__file__, COLUMNS, lines)


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 1 else main()
