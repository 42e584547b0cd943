"""Random chains of few combinators on odd trees, over rates by vmap and compiled; `wide` runs them in all other ways.

A case is its seed: chain, tree, gradients and dtype follow from it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

import gradtx
from gradtx import GradientTransformation, chain
from gradtx.base import tree as _tree
from tests.optim.problems import assert_equal, saved_and_loaded, whole

STEPS = 9
Gradients = list[dict[str, Tensor | None]]
Draw = Callable[[tuple[int, ...]], Tensor]

TREES: list[Callable[[], Any]] = [
    lambda: {"w": (3, 4), "b": (3,)},
    lambda: {"w": (2, 2), "s": (), "none": (0,)},
    lambda: {"body": {"w": (2, 3), "b": (2,)}, "head": {"conv": (2, 3, 2, 2), "s": ()}},
    lambda: {"list": [(3,), (2, 2), ()], "deep": {"er": {"w": (1,)}}},
    lambda: {"empty": (0, 3), "w": (4, 4), "b": (1, 1)},
]


@dataclasses.dataclass
class Case:
    """A chain with its parameters, gradients and other inputs."""

    tx: GradientTransformation
    params: dict[str, Tensor]
    gradients: Gradients
    extras: list[dict[str, Any]]
    takes_closure: bool

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.params.values())).dtype

    def __repr__(self) -> str:
        shapes = {name: tuple(param.shape) for name, param in self.params.items()}
        missing = [[name for name, grad in step.items() if grad is None] for step in self.gradients]
        return f"{self.tx!r}\n  {shapes}, {self.dtype}, without gradient: {missing}"


class Maker:
    """Draws chains.

    Args:
        rng: The source of choices.
        names: The names of the leaves, for selectors.
        rate: The learning rate of every optimizer that takes one; None for any.
    """

    def __init__(self, rng: random.Random, names: list[str], rate: Any = None):
        self._rng = rng
        self._names = names
        self._rate = rate

    def chain(self, depth: int = 2) -> GradientTransformation:
        """Links, an optimizer or a combinator, and links behind it."""
        links = [self.link() for _ in range(self._rng.randrange(3))]
        links.append(self.optimizer(depth))
        if self._rng.random() < 0.3:
            links.append(self.behind())
        return chain(*links)

    def optimizer(self, depth: int) -> GradientTransformation:
        if depth and self._rng.random() < 0.65:
            return self.combinator(depth - 1)
        return self.alias()

    def rate(self) -> Any:
        options = [0.05, 0.05, 0.05, gradtx.wsd_schedule(0.1, 2, 3, 3), gradtx.Schedule(falling_rate)]
        drawn = self._rng.choice(options)  # also where it is not used: the rest of the chain stays the same
        return drawn if self._rate is None else self._rate

    def alias(self) -> GradientTransformation:
        rng, rate = self._rng, self.rate()
        options: dict[str, Any] = {}
        if rng.random() < 0.25:
            options["maximize"] = True
        decays = {**options, "weight_decay": rng.choice([0.0, 0.1])}
        if rng.random() < 0.3:
            decays["mask"] = self.where()
        makers: list[Callable[[], GradientTransformation]] = [
            lambda: gradtx.sgd(lr=rate, momentum=rng.choice([0.0, 0.9]), **options),
            lambda: gradtx.sgd(lr=rate, momentum=0.9, nesterov=True, **decays),
            lambda: gradtx.adam(lr=rate, eps=1e-3, amsgrad=rng.random() < 0.3, **options),
            lambda: gradtx.adamw(lr=rate, eps=1e-3, **decays),
            lambda: gradtx.lion(lr=rate, **decays),
            lambda: gradtx.rmsprop(lr=rate, eps=1e-2, **options),
            lambda: gradtx.adagrad(lr=rate, eps=1e-2, **options),
            lambda: gradtx.nadam(lr=rate, eps=1e-3, **options),
            lambda: gradtx.radam(lr=rate, eps=1e-3, **options),
            lambda: gradtx.lamb(lr=rate, eps=1e-2, **options),
            lambda: gradtx.adamp(lr=rate, eps=1e-3, **options),
            lambda: gradtx.adafactor(lr=rate, relative_step=False, **options),
        ]
        return rng.choice(makers)()

    def link(self) -> GradientTransformation:
        """A link in front of an optimizer."""
        rng = self._rng
        makers: list[Callable[[], GradientTransformation]] = [
            lambda: gradtx.clip_by_global_norm(0.7),
            lambda: gradtx.centralize(),
            lambda: gradtx.ema(0.5),
            lambda: gradtx.trace(0.5),
            lambda: gradtx.scale(0.5),
            lambda: gradtx.record("norm"),
            lambda: gradtx.masked(gradtx.clip_by_global_norm(0.5), self.where()),
            lambda: gradtx.add_decayed_weights(0.1),
            lambda: gradtx.accumulate(gradtx.ema(0.5), 2),
        ]
        return rng.choice(makers)()

    def behind(self) -> GradientTransformation:
        """A link behind an optimizer."""
        makers: list[Callable[[], GradientTransformation]] = [
            lambda: gradtx.scale_by_caution(),
            lambda: gradtx.freeze(self._rng.choice(self._names)),
            lambda: gradtx.lookahead(k=3),
            lambda: gradtx.average(decay=0.9),
            lambda: gradtx.add_decayed_weights(0.01),
            lambda: gradtx.scale(0.5),
        ]
        return self._rng.choice(makers)()

    def combinator(self, depth: int) -> GradientTransformation:
        rng = self._rng
        makers: list[Callable[[], GradientTransformation]] = [
            lambda: gradtx.accumulate(self.chain(depth), rng.choice([2, 3])),
            lambda: gradtx.skip_nonfinite(self.chain(depth)),
            lambda: self.partition(depth),
            lambda: chain(gradtx.masked(self.chain(depth), self.where()), gradtx.scale(0.1)),
            lambda: gradtx.graft(self.chain(depth), self.alias()),
            lambda: gradtx.with_lookahead(
                self.chain(depth), k=rng.choice([2, 3]), pullback_momentum=rng.choice(["none", "reset", "pullback"])
            ),
            lambda: gradtx.restart(self.chain(depth), 4, keep_clock=rng.random() < 0.5),
            lambda: gradtx.schedule_free(rng.choice([chain(), gradtx.scale_by_adam()]), lr=0.05, beta=0.9),
        ]
        return rng.choice(makers)()

    def partition(self, depth: int) -> GradientTransformation:
        first = self._rng.choice(self._names)
        labels: Any = {"a": first, "b": "*"} if len(self._names) > 1 else {"a": "*"}
        if self._rng.random() < 0.3:
            labels = by_rank
        elif self._rng.random() < 0.2:
            labels = always_b  # the first branch is idle
        transforms = {"a": self.chain(depth), "b": self.chain(depth)}
        return gradtx.partition(transforms, labels)

    def where(self) -> Any:
        return self._rng.choice([self._rng.choice(self._names), is_matrix])


def falling_rate(step: Any) -> Any:
    return 0.1 * 0.9**step


def by_rank(name: str, param: Tensor) -> str:
    return "a" if param.ndim > 1 else "b"


def always_b(name: str, param: Tensor) -> str:
    return "b"


def is_matrix(name: str, param: Tensor) -> bool:
    return param.ndim > 1


def shaped(tree: Any, make: Callable[[tuple[int, ...]], Any]) -> Any:
    if isinstance(tree, tuple):
        return make(tree)
    if isinstance(tree, list):
        return [shaped(item, make) for item in tree]
    return {key: shaped(item, make) for key, item in tree.items()}


def normal(seed: int, dtype: torch.dtype) -> Draw:
    """A function that draws tensors of a shape."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    return draw


def drawn_tensors(rng: random.Random, draw: Draw, trees: Sequence[Callable[[], Any]]) -> tuple[Any, Gradients]:
    """Parameters by name, and their gradients in each step."""
    tree = shaped(rng.choice(trees)(), draw)
    params, _ = _tree.flatten(tree, "params")
    often = rng.choice([0.0, 0.3])  # how often a gradient is missing
    gradients: Gradients = []
    for _ in range(STEPS):
        step: dict[str, Tensor | None] = {}
        for name, param in params.items():
            gradient = draw(tuple(param.shape))
            step[name] = None if rng.random() < often else gradient
        gradients.append(step)
    return params, gradients


def drawn_case(seed: int, rate: Any = None) -> Case:
    """The case of a seed."""
    rng = random.Random(seed)
    dtype = rng.choice([torch.float32, torch.float64])
    params, gradients = drawn_tensors(rng, normal(seed, dtype), TREES)
    names = list(params)
    tx = drawn_chain(seed, names, rate)
    takes_closure = "grad_fn" in tx.needs
    if takes_closure:
        gradients = [{name: params[name] for name in names} for _ in range(STEPS)]  # the closure makes them
    return Case(tx, params, gradients, [{} for _ in range(STEPS)], takes_closure)


def poisoned(case: Any, seed: int) -> Any:
    """A case that skips gradients that are not finite, perhaps behind a frozen leaf or in one of two branches."""
    rng = random.Random(f"poison {seed}")
    gradients: Gradients = []
    for step in case.gradients:
        poisoned = dict(step)
        present = [name for name, gradient in step.items() if gradient is not None and gradient.numel()]
        if present and rng.random() < 0.35:
            name = rng.choice(present)
            poisoned[name] = step[name].clone()
            poisoned[name].view(-1)[rng.randrange(step[name].numel())] = rng.choice([math.nan, math.inf])
        gradients.append(poisoned)
    tx = gradtx.skip_nonfinite(case.tx)
    other = rng.choice(list(case.params))
    where = rng.choice(["all", "frozen", "branch"])
    if where == "frozen" and len(case.params) > 1:
        tx = chain(gradtx.freeze(other), tx)
    elif where == "branch":
        finite = chain(gradtx.zero_nans(), gradtx.clip_by_value(1.0), gradtx.skip_nonfinite(gradtx.nadam(lr=0.05)))
        tx = gradtx.partition({"a": tx, "b": finite}, lambda name, param: "b" if name == other else "a")
    return dataclasses.replace(case, tx=tx, gradients=gradients)


def drawn_chain(seed: int, names: list[str], rate: Any) -> GradientTransformation:
    """The chain of a seed with another rate."""
    choices = random.Random(f"chain {seed}")
    tx = Maker(choices, names, rate).chain()
    return gradtx.sam(tx, rho=0.1) if choices.random() < 0.1 else tx


# Ways to run a case.


# Loss of the cases whose chain takes a closure; by leaf, since a leaf may be out of it.


def loss_of(values: dict[str, Tensor], names: set[str]) -> Tensor:
    terms = [torch.zeros((), dtype=torch.float64)]
    for name in sorted(names):
        value = values[name].double()
        terms.append(0.25 * value.square().sum() - torch.cos(3 * value).sum() / 3)
    return torch.stack(terms).sum()


def gradients_of(values: dict[str, Tensor], names: set[str]) -> dict[str, Tensor | None]:
    gradients: dict[str, Tensor | None] = dict.fromkeys(values)
    for name in names:
        value = values[name].detach().double()
        gradients[name] = (0.5 * value + torch.sin(3 * value)).to(values[name].dtype)
    return gradients


def present(step: dict[str, Tensor | None]) -> set[str]:
    return {name for name, gradient in step.items() if gradient is not None}


def functional(
    case: Case, nudge: Callable[[Tensor], Tensor] = lambda gradient: gradient, counts: str = "leaves"
) -> dict[str, Tensor]:
    """Final parameters by pure functions, in which every leaf counts its steps; `nudge` changes each gradient."""

    def nudged(gradients: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
        return {name: None if gradient is None else nudge(gradient) for name, gradient in gradients.items()}

    tx, params = case.tx, dict(case.params)
    state = tx.init(params, counts=counts)
    for step, extras in zip(case.gradients, case.extras, strict=True):
        names, grads, extras = present(step), nudged(step), dict(extras)
        if case.takes_closure:

            def grad_fn(values: Any, names: set[str] = names) -> Any:
                return nudged(gradients_of(values, names))

            def value_fn(values: Any, names: set[str] = names) -> Tensor:
                return loss_of(values, names)

            grads = grad_fn(params)
            given = {"grad_fn": grad_fn, "value_fn": value_fn, "value": value_fn(params)}
            extras.update({name: value for name, value in given.items() if name in tx.needs})
        updates, state = tx.update(grads, state, params, **extras)
        params = gradtx.apply_updates(params, updates)
    return params


class Adapted:
    """A case by the adapter, with its parameters in a number of groups."""

    def __init__(self, case: Case, groups: int = 1, **options: Any):
        self.case = case
        self.named = {name: Parameter(param.clone()) for name, param in case.params.items()}
        named = list(self.named.items())
        rows = [{"params": named[i::groups]} for i in range(min(groups, len(named)))]
        self.optimizer = gradtx.as_optimizer(case.tx, rows, **options)

    def values(self) -> dict[str, Tensor]:
        return {name: param.detach().clone() for name, param in self.named.items()}

    def steps(self, first: int = 0, last: int = STEPS, **options: Any) -> dict[str, Tensor]:
        for i in range(first, last):
            step, extras = self.case.gradients[i], self.case.extras[i]
            if self.case.takes_closure:
                self.optimizer.step(self._closure(present(step)), **extras, **options)
                continue
            for name, param in self.named.items():
                gradient = step[name]
                param.grad = None if gradient is None else gradient.clone()
            self.optimizer.step(**extras, **options)
        return self.values()

    def _closure(self, names: set[str]) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            values = {name: param.detach() for name, param in self.named.items()}
            for name, gradient in gradients_of(values, names).items():
                self.named[name].grad = gradient
            return loss_of(values, names)

        return closure

    def give_in_place(self, i: int) -> None:
        """Write the gradients of a step into the tensors of the step before."""
        for name, param in self.named.items():
            gradient = self.case.gradients[i][name]
            if param.grad is None:
                param.grad = gradient.clone()
            else:
                param.grad.copy_(gradient)

    def places(self) -> list[tuple[str, int]]:
        """Where the tensors of the state are."""
        places: list[tuple[str, int]] = []
        for state in self.optimizer.state.values():
            places.extend((key, tensor.data_ptr()) for key, tensor in state.items())
        return places

    def released_steps(self) -> dict[str, Tensor]:
        """Steps during backward."""
        self.optimizer.release_gradients()
        for step in self.case.gradients:
            terms = [(self.named[name] * step[name]).sum() for name in sorted(present(step))]
            if terms:
                torch.stack(terms).sum().backward()
            self.optimizer.step()
        return self.values()


def assert_near(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, what: str) -> None:
    def message(text: str) -> str:
        return f"{what}: {text}"

    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=message)


def check_same(actual: torch.optim.Optimizer, expected: torch.optim.Optimizer, how: str, grads: bool = False) -> None:
    """The same bits in parameters, state and groups, and in gradients."""
    try:
        assert_equal(whole(actual, grads), whole(expected, grads))
    except AssertionError as error:
        raise AssertionError(f"{how}: {error}") from error


def check_resumed(first: Adapted, second: Adapted, grads: bool = True) -> None:
    """A case saved in the middle and loaded into a new optimizer, bit for bit; and a deep copy."""
    first.steps(0, 5)
    second.steps(0, 2)
    saved = saved_and_loaded(first.optimizer.state_dict())
    with torch.no_grad():
        for name, param in second.named.items():
            param.copy_(first.named[name])
    second.optimizer.load_state_dict(saved)
    copied, params = copy.deepcopy((first.optimizer, first.named))
    third = copy.copy(first)
    third.optimizer, third.named = copied, params
    for each in (first, second, third):
        each.steps(5)
    check_same(second.optimizer, first.optimizer, "resumed", grads)
    check_same(third.optimizer, first.optimizer, "deep-copied", grads)


def check_vmap(seed: int) -> None:
    """Over rates, against a loop."""
    # None equals a decay in a chain, which it might cancel: rounding would decide a direction.
    rates = torch.tensor([0.012, 0.05, 0.2], dtype=torch.float64)
    case = drawn_case(seed)
    names = list(case.params)

    def run(rate: Any) -> dict[str, Tensor]:
        return functional(dataclasses.replace(case, tx=drawn_chain(seed, names, rate)))

    together = torch.vmap(run)(rates)
    apart = [run(float(rate)) for rate in rates]
    stacked = {name: torch.stack([values[name] for values in apart]) for name in case.params}
    tolerance = 1e-10 if case.dtype == torch.float64 else 1e-5
    assert_near(together, stacked, tolerance, "vmap against a loop")


def check_compiled(seed: int) -> None:
    case = drawn_case(seed)
    eager = Adapted(case).steps()
    compiled = Adapted(case, compile=True).steps()
    assert_near(compiled, eager, 1e-5 if case.dtype == torch.float32 else 1e-10, "compiled against eager")


def run(seed: int) -> str:
    """The vmap over rates of a case; 'refused' if its chain says that it does not fit the tree."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            case = drawn_case(seed)
            case.tx.init(case.params)
        except (ValueError, TypeError):
            return "refused"
        check_vmap(seed)
    return "passed"
