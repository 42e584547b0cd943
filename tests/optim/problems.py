"""Shared helpers of the adapter's tests: named parameters, gradients, training loops, and comparisons."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

import gradtx
from tests.conformance import drawn

SHAPES = {"body.weight": (3, 4), "body.bias": (3,), "head.weight": (2, 3), "head.scale": ()}

Skip = Callable[[str, int], bool]


def parameters(
    dtype: torch.dtype = torch.float64, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> dict[str, torch.nn.Parameter]:
    """Return fresh parameters by name, with the same values in every call."""
    return {
        name: torch.nn.Parameter(drawn(i, shape).to(dtype, copy=True)) for i, (name, shape) in enumerate(shapes.items())
    }


def made(tx: gradtx.GradientTransformation, params: Mapping[str, Tensor] | None = None) -> tuple[Any, Any]:
    """Return an optimizer and its named parameters."""
    params = parameters() if params is None else params
    return gradtx.as_optimizer(tx, list(params.items())), params


def both(run: Callable[[Any], Any]) -> list[Any]:
    """Return the results of `run` with our optimizers and with torch's."""
    return [run(module) for module in (gradtx.optim, torch.optim)]


def gradient(param: Tensor, t: int) -> Tensor:
    """Return the gradient of step `t` (from 0), a smooth function of the parameter whose sign differs between steps."""
    p = param.detach()
    return 0.5 * p + 0.3 * (2 * p).sin() + 0.7 * drawn(100 + t, tuple(p.shape)).to(p.dtype)


def loss_of(params: Mapping[str, Tensor]) -> Tensor:
    """Return a loss whose gradient is that of `gradient` without its noise."""
    terms = [(0.25 * p.square() - 0.15 * (2 * p).cos()).to(torch.float64).sum() for p in params.values()]
    return torch.stack(terms).sum()


def set_gradients(params: Mapping[str, Tensor], t: int = 0, skip: Skip = lambda name, t: False) -> None:
    for name, param in params.items():
        param.grad = None if skip(name, t) else gradient(param, t)


def descend(
    optimizer: torch.optim.Optimizer,
    params: Mapping[str, Tensor],
    steps: int = 30,
    start: int = 0,
    after: Callable[[], Any] = lambda: None,
    skip: Skip = lambda name, t: False,
) -> None:
    """Take steps with the gradients of `gradient`, None where `skip(name, t)`; call `after` at the end of each step."""
    for t in range(start, start + steps):
        set_gradients(params, t, skip)
        optimizer.step()
        after()


def functional(
    tx: gradtx.GradientTransformation, params: Mapping[str, Tensor], steps: int, skip: Skip = lambda name, t: False
) -> tuple[dict[str, Tensor], Any]:
    """Take the same steps with pure functions; return the final parameters and state."""
    values = {name: param.detach().clone() for name, param in params.items()}
    state = tx.init(values)
    for t in range(steps):
        grads = {name: None if skip(name, t) else gradient(value, t) for name, value in values.items()}
        updates, state = tx.update(grads, state, values)
        values = gradtx.apply_updates(values, updates)
    return values, state


def values(params: Mapping[str, Tensor] | Iterable[Tensor]) -> list[Tensor]:
    found = params.values() if isinstance(params, Mapping) else params
    return [param.detach().clone() for param in found]


def twins(params: Mapping[str, Tensor]) -> dict[str, torch.nn.Parameter]:
    """Return independent parameters with the same values."""
    return {name: torch.nn.Parameter(param.detach().clone()) for name, param in params.items()}


def saved_and_loaded(value: Any) -> Any:
    """Save a value to a file and load it with `weights_only=True`."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Comparisons.


def assert_equal(actual: Any, expected: Any) -> None:
    """Assert the same structure, the same bits in every tensor, and equality of all other leaves."""
    got, spec = _pytree.tree_flatten(actual)
    wanted, expected_spec = _pytree.tree_flatten(expected)
    assert spec == expected_spec
    for a, b in zip(got, wanted, strict=True):
        if not isinstance(b, Tensor):
            assert a is b or a == b  # an unchanged NaN is the same object
            continue
        assert isinstance(a, Tensor)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        same = (
            a.detach().reshape(-1).contiguous().view(torch.uint8),
            b.detach().reshape(-1).contiguous().view(torch.uint8),
        )
        assert torch.equal(*same), f"{a} is not {b}"


def assert_close(actual: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=tolerance, atol=tolerance)


def whole(optimizer: torch.optim.Optimizer, grads: bool = True) -> Any:
    """Return copies of groups, states, parameters and gradients."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    found = {
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        "state": [dict(optimizer.state[param]) if param in optimizer.state else None for param in params],
        "params": params,
        "grads": [param.grad for param in params if grads],
    }
    return _pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, found)


@contextlib.contextmanager
def unchanged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Assert that the block leaves groups, states, parameters and gradients bit-identical."""
    before = whole(optimizer)
    yield
    assert_equal(whole(optimizer), before)


def hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}
