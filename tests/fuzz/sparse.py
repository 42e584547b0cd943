"""Random chains on tables whose gradients are sparse, some inside `lazy_rows`: all ways to run them agree.

A case is its seed. Inside `lazy_rows`, gradients that list rows are those with zeros in all others.
"""

from __future__ import annotations

import dataclasses
import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import gradtx
from gradtx import GradientTransformation, chain
from tests.fuzz import wide
from tests.fuzz.chains import STEPS, Adapted, Case, Gradients, Maker, check_resumed, functional, normal

TREES: list[dict[str, tuple[int, ...]]] = [
    {"table": (7, 3), "b": (3,)},
    {"a": (12, 2), "b": (12, 2), "v": (9,), "w": (3, 4)},
    {"t": (6, 2, 2), "s": (), "one": (1, 3)},
    {"t": (5, 1), "none": (0, 3), "w": (4, 4)},
]


@dataclasses.dataclass(repr=False)
class SparseCase(Case):
    """A case whose tables have gradients of some rows.

    Attributes:
        tables: The names of the tables.
        is_lazy: Whether `lazy_rows` is around all links that keep something by row.
        seed: Decides how rows are listed.
    """

    tables: list[str]
    is_lazy: bool
    seed: int

    def listed(self) -> Case:
        """Return the case with sparse gradients."""
        rng = random.Random(f"listed {self.seed}")
        gradients: Gradients = []
        for step in self.gradients:
            of_tables: dict[str, Tensor | None] = {}
            for name in self.tables:
                gradient = step[name]
                of_tables[name] = None if gradient is None else sparse(rng, gradient)
            gradients.append({**step, **of_tables})
        return Case(self.tx, self.params, gradients, self.extras, False)


def sparse(rng: random.Random, gradient: Tensor) -> Tensor:
    """Return a gradient that lists its rows that are not 0, some in two halves, and perhaps one of zeros."""
    has_gradient = gradient.reshape(len(gradient), -1).ne(0).any(1) if gradient.numel() else gradient.new_zeros(0)
    index = has_gradient.nonzero()[:, 0].tolist()
    values = [gradient[row] for row in index]
    if index and rng.random() < 0.3:
        half = values.pop() / 2
        values += [half, half]
        index.append(index[-1])
    if len(gradient) and rng.random() < 0.2:
        row = rng.randrange(len(gradient))
        index.append(row)
        values.append(torch.zeros_like(gradient[row]))
    rows = torch.stack(values) if values else gradient.new_zeros((0, *gradient.shape[1:]))
    places = torch.tensor([index], dtype=torch.int64)
    return torch.sparse_coo_tensor(places, rows, gradient.shape, check_invariants=True)


class RowMaker(Maker):
    """Draws chains of links that may update rows alone, more often than `Maker`."""

    def alias(self) -> GradientTransformation:
        if self._rng.random() < 0.6:
            return super().alias()
        names = [name for name in wide.ALIASES if name not in ("noisy_sgd", "add_noise")]
        while True:
            factory = getattr(gradtx, self._rng.choice(names))
            numbers = {"lr": self.rate()} if "lr" in factory.spec.arguments.by_name else {}
            tx = factory(**numbers)
            if not set(tx.needs) - {"params"}:
                return tx

    def lazy(self) -> GradientTransformation:
        """A chain in `lazy_rows`, with what keeps nothing by row outside."""
        rng = self._rng
        inner = self.alias() if rng.random() < 0.6 else self.chain(1)
        tx = gradtx.lazy_rows(inner, catch_up=rng.random() < 0.5)
        around: list[Callable[[], GradientTransformation]] = [
            lambda: tx,
            lambda: chain(gradtx.clip_by_global_norm(0.7), tx),
            lambda: chain(tx, gradtx.clip_by_global_norm(0.1)),
            lambda: chain(tx, gradtx.freeze(rng.choice(self._names))),
            lambda: gradtx.skip_nonfinite(tx),
            lambda: gradtx.partition({"a": tx, "b": self.plain()}, {"a": rng.choice(self._names), "b": "*"}),
            lambda: gradtx.with_state_dtype(tx, torch.float64),
        ]
        return rng.choice(around)()

    def plain(self) -> GradientTransformation:
        """An optimizer that leaves rows without a gradient where they are."""
        return gradtx.sgd(lr=self.rate())


def drawn_case(seed: int) -> SparseCase:
    """The case of a seed."""
    rng = random.Random(f"sparse {seed}")
    dtype = rng.choice([torch.float32, torch.float64])
    draw = normal(seed, dtype)
    params = {name: draw(shape) for name, shape in rng.choice(TREES).items()}
    names = [name for name, param in params.items() if param.ndim]
    tables = [name for name in names if rng.random() < 0.7] or names[:1]
    share, often = rng.choice([0.2, 0.5, 1.0]), rng.choice([0.0, 0.3])
    gradients: Gradients = []
    for _ in range(STEPS):
        step: dict[str, Tensor | None] = {}
        for name, param in params.items():
            gradient = draw(tuple(param.shape))
            if name in tables:
                kept = torch.tensor([rng.random() < share for _ in range(len(param))], dtype=dtype)
                gradient = gradient * kept.reshape(-1, *[1] * (param.ndim - 1))
            step[name] = None if rng.random() < often else gradient
        gradients.append(step)
    is_lazy, maker = rng.random() < 0.6, RowMaker(random.Random(f"chain {seed}"), list(params))
    tx = maker.lazy() if is_lazy else maker.chain()
    extras: list[dict[str, Any]] = [{} for _ in range(STEPS)]
    return SparseCase(tx, params, gradients, extras, False, tables, is_lazy, seed)


def run(seed: int) -> str:
    """All ways of one case; 'refused' if its chain does not fit, 'sensitive' if rounding decides its result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            case = drawn_case(seed)
            case.tx.init(case.params)
        except (ValueError, TypeError):
            return "refused"
        return check(case)


WAYS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "an optimizer": lambda case: Adapted(case).steps(),
    "two groups": lambda case: Adapted(case, groups=2).steps(),
    "leaf by leaf": lambda case: _leaf_by_leaf(lambda: Adapted(case).steps()),
    "pure use leaf by leaf": lambda case: _leaf_by_leaf(lambda: functional(case)),
    "capturable": lambda case: Adapted(case, capturable=True).steps(),
}


def check(case: SparseCase) -> str:
    """Check all ways of a case, with sparse gradients and, inside `lazy_rows`, with dense ones."""
    listed = case.listed()
    try:
        expected = functional(listed)
    except RuntimeError as error:
        _check_refusal(listed, str(error))
        return "refused"
    dense = wide.distance(functional(case), Adapted(case).steps())
    if dense > wide.TOLERANCES[case.dtype]:
        return "sensitive"  # without sparse gradients, too: signs decide, which other fuzzers look at
    sensitivity, near = wide.Sensitivity(listed, expected), True
    if case.is_lazy:
        near = sensitivity.check(functional(case), "dense gradients")
    for way, trained in WAYS.items():
        try:
            found = trained(listed)
        except ValueError as error:
            if way == "capturable" and "capturable" in str(error):
                continue
            raise
        near = sensitivity.check(found, way) and near
    check_resumed(Adapted(listed), Adapted(listed), grads=False)
    return "passed" if near else "sensitive"


def _leaf_by_leaf(function: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    with wide.LeafByLeaf():
        return function()


def _check_refusal(case: Case, message: str) -> None:
    """Check that an optimizer refuses what pure use refuses, and that the error says why."""
    assert "cannot update its rows alone: " in message, message
    try:
        Adapted(case).steps()
    except RuntimeError as error:
        assert "cannot update its rows alone: " in str(error), error  # noqa: PT017
        return
    raise AssertionError(f"pure use refuses, an optimizer does not: {message}")


def check_compiled(seed: int) -> str:
    """Compiled steps of a case."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            listed = drawn_case(seed).listed()
            listed.tx.init(listed.params)
            expected = functional(listed)
        except (ValueError, TypeError, RuntimeError):
            return "refused"
        near = wide.Sensitivity(listed, expected).check(Adapted(listed, compile=True).steps(), "compiled")
    return "passed" if near else "sensitive"
