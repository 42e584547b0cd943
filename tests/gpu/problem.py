"""A problem for a GPU, real or pretended, and for the CPU: several leaves of each shape, extras and closures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import gradtx
from tests import conformance
from tests.conformance import SHAPES, Case, drawn
from tests.references import compare_trees

# Two leaves of each shape, without which nothing runs in batches.
TWICE = {f"{name}{i}": shape for i in ("", 2) for name, shape in SHAPES.items()}
Params = dict[str, torch.nn.Parameter]
Move = Callable[[Any], Any]  # moves a tree to the device


def on_host(tree: Any) -> Any:
    """Copies of the tensors of a tree on the CPU."""
    return torch.utils._pytree.tree_map(lambda x: x.detach().cpu().clone() if isinstance(x, Tensor) else x, tree)


def loss(params: Mapping[str, Tensor]) -> Tensor:
    terms = [(0.25 * p.square() - 0.15 * (2 * p).cos() + 0.25 * p).sum() for p in params.values()]
    return sum(terms[1:], terms[0])


def field(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of `loss`."""
    return {name: (0.5 * p + 0.3 * (2 * p).sin() + 0.25).to(p.dtype) for name, p in params.items()}


def noise(params: Mapping[str, Tensor], t: int) -> dict[str, Tensor]:
    """Gradients of a step, on the CPU."""
    return {name: drawn(100 * t + i, tuple(p.shape)).clone().to(p.dtype) for i, (name, p) in enumerate(params.items())}


def _slowed(tx: gradtx.GradientTransformation) -> gradtx.GradientTransformation:
    """A link without a rate in small steps: some of its own would step exactly onto 0, up to rounding."""
    try:
        return tx if tx._is_optimizer else gradtx.chain(tx, gradtx.scale(0.1))
    except ValueError:  # it has to be last
        return tx


class Problem:
    """An optimizer of a case, and its parameters, on a device."""

    def __init__(
        self, case: Case, move: Move, dtype: torch.dtype = torch.float64, spread: Move | None = None, **options: Any
    ):
        self.case = case
        self.move = move
        start = case.noise(1, TWICE, dtype)
        self.params: Params = {name: torch.nn.Parameter(p) for name, p in (spread or move)(start).items()}
        self.optimizer = gradtx.as_optimizer(_slowed(case.make()), self.params.items(), **options)
        self.needs = set(case.example.needs)
        self.functions = conformance.functions(case.example)

    def values(self) -> dict[str, Tensor]:
        return on_host(dict(self.params))

    def prepare(self, t: int, without: tuple[str, ...] = ()) -> dict[str, Any]:
        """Set the gradients of a step, in the same memory, and return its extras."""
        for name, gradient in noise(self.params, t).items():
            param = self.params[name]
            if name in without:
                param.grad = None
            elif param.grad is None:
                param.grad = gradient.to(param.device)
            else:
                param.grad.copy_(gradient)
        if "grad_sample" in self.needs:
            for param in self.params.values():
                param.grad_sample = None if param.grad is None else conformance.examples_of(param.grad)
            return {}
        given = conformance.extras(self.case.example, {name: p.detach().cpu() for name, p in self.params.items()})
        return self.move({name: value for name, value in given.items() if not callable(value)})

    def closure(self) -> Tensor:
        at = {name: p.detach() for name, p in self.params.items()}
        for name, gradient in field(at).items():
            self.params[name].grad = gradient
        return loss(at)

    def step(self, extras: dict[str, Any]) -> None:
        if self.functions:
            residuals = {"residual_fn": lambda: conformance.residuals(self.params)}
            self.optimizer.step(**extras, **residuals)
        elif {"grad_fn", "value_fn"} & self.needs:
            extras.pop("value", None)
            self.optimizer.step(self.closure, **extras)
        else:
            self.optimizer.step(**extras)

    def run(self, steps: range, without: tuple[str, ...] = ()) -> Problem:
        for t in steps:
            self.step(self.prepare(t, without))
        return self


def assert_near(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    """Fail at the first leaf with an entry that differs by the tolerance or more."""
    __tracebackhide__ = True
    found = {name: found[name].to(value.dtype) for name, value in expected.items()}
    compare_trees(found, expected, tolerance, absolute=True)


def pure(case: Case, move: Move, steps: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The weights after some pure updates."""
    tx, params = case.make(), move(case.noise(1, TWICE, dtype))
    state = tx.init(params)
    for t in range(steps):
        host = {name: p.detach().cpu() for name, p in params.items()}
        given = conformance.extras(tx, host)
        if "grad_fn" in given:
            given["grad_fn"] = field
        if "value_fn" in given:
            given["value_fn"] = loss
        updates, state = tx.update(move(noise(params, t)), state, params, **move(given))
        params = gradtx.apply_updates(params, updates)
    return on_host(params)
