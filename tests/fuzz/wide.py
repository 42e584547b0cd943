"""Random chains with closures, blocks, projections, rotations and coded state: all ways to run them agree.

Each way is run on chains of all combinators in float32, float64 and bfloat16, and on those of the few that `chains` has
in float32 and float64. Poisoned cases have gradients that are not finite, and skip these calls. A case is its seed.

Bases of eigenvectors and whitening magnify rounding: where moments have not full rank, the last bit of a gradient
moves entries by a hundredth, even in float64. So does `restart(low_rank(chain(clip_by_global_norm, kl_soap)))`: of 400
such chains pure use and the adapter differed in 7, by 2e-4 to 4e-2, since they add up the norm in another order, and
other last bits of the gradients moved each of them by as much in pure use alone. `Sensitivity` tells such cases from
faults: a difference is a fault if it is far above what a change of all gradients by their last bit makes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gradtx
from gradtx import GradientTransformation, chain
from tests.fuzz import chains
from tests.fuzz.chains import (
    STEPS,
    TREES,
    Adapted,
    Case,
    Gradients,
    Maker,
    check_resumed,
    check_same,
    drawn_tensors,
    functional,
    normal,
    present,
)
from tests.optim.problems import assert_equal, saved_and_loaded
from tests.optim.tape import Tape

MORE_TREES: list[Callable[[], Any]] = [
    *TREES,
    lambda: {"q": (4, 6), "k": (4, 6), "b": (4,)},
    lambda: {"experts": (3, 4, 5), "none": (0,), "w": (6, 2), "s": ()},
    lambda: {"w": (40, 33), "b": (40,), "body": [(8, 8), (1, 8)]},
]
RECORDED = 3  # the step that a tape repeats
CODES = ["int8", "int4", "float8", "bfloat16+8", "bfloat16:stochastic", torch.bfloat16, torch.float32, torch.float64]
FACTORIES = {name: value for name in gradtx.__all__ if hasattr(value := getattr(gradtx, name), "spec")}
ALIASES = [name for name, factory in FACTORIES.items() if factory.spec.kind == "alias"]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}


class WideMaker(Maker):
    """Draws chains from all combinators.

    Args:
        rng: The source of choices.
        params: The parameters.
    """

    def __init__(self, rng: random.Random, params: dict[str, Tensor]):
        super().__init__(rng, list(params))
        self._params = params
        self._matrices = [name for name, param in params.items() if param.ndim > 1] or list(params)

    def link(self) -> GradientTransformation:
        if self._rng.random() < 0.1:
            return gradtx.add_noise(eta=0.01, gamma=0.5, seed=self._rng.randrange(2))
        return super().link()

    def alias(self) -> GradientTransformation:
        if self._rng.random() < 0.5:
            return super().alias()
        rng, rate = self._rng, self.rate()
        makers: list[Callable[[], GradientTransformation]] = [
            lambda: gradtx.prodigy(lr=1.0, d0=1e-2),
            lambda: gradtx.dadapt_adam(lr=1.0, d0=1e-2),
            lambda: gradtx.soap(lr=rate, eps=1e-3, precondition_frequency=2),
            lambda: gradtx.kl_soap(lr=rate, eps=1e-3, precondition_frequency=2),
            lambda: gradtx.muon(lr=rate, ns_dtype=None, fallback=gradtx.adamw(lr=rate, eps=1e-3)),
            lambda: gradtx.adan(lr=rate, eps=1e-3),
            lambda: gradtx.ademamix(lr=rate, eps=1e-3),
            lambda: gradtx.adopt(lr=rate, eps=1e-2),
            lambda: gradtx.came(lr=rate),
            lambda: gradtx.galore(lr=rate, rank=1, update_proj_gap=2, eps=1e-3),
            lambda: gradtx.lbfgs(lr=0.1, history=3),
            lambda: gradtx.adabelief(lr=rate, eps=1e-3),
        ]
        if rng.random() < 0.5:
            return rng.choice(makers)()
        return self.any_alias()

    def any_alias(self) -> GradientTransformation:
        """Any optimizer of the library, as its name alone makes it."""
        while True:
            factory = getattr(gradtx, self._rng.choice(ALIASES))
            numbers = {"lr": self.rate()} if "lr" in factory.spec.arguments.by_name else {}
            tx = factory(**numbers)
            if "hessian_diag" not in tx.needs:
                return tx

    def combinator(self, depth: int) -> GradientTransformation:
        if self._rng.random() < 0.35:
            return super().combinator(depth)
        rng = self._rng
        makers: list[Callable[[], GradientTransformation]] = [
            lambda: self.blocks(depth),
            lambda: gradtx.line_search(
                self.chain(depth), max_steps=3, conditions=rng.choice(["armijo", "strong_wolfe"])
            ),
            lambda: gradtx.low_rank(
                self.chain(depth),
                1,
                every=2,
                projection=rng.choice(["svd", "power", "random"]),
                carry=rng.choice(["keep", "reset"]),
            ),
            lambda: self.rotated(depth),
            lambda: gradtx.hyperball(self.chain(depth), lr=0.05),
            lambda: gradtx.trac(self.chain(depth), s_prev=1e-2),
            lambda: gradtx.mechanize(self.chain(depth), s_init=1e-2),
            lambda: gradtx.with_state_dtype(self.chain(depth), rng.choice(CODES), min_size=rng.choice([0, 16])),
            lambda: gradtx.with_state_dtype(self.chain(depth), {"exp_avg*": "int8", "*": torch.float64}, min_size=0),
            lambda: gradtx.restart(self.chain(depth), 4, keep_clock=rng.random() < 0.5),
        ]
        return rng.choice(makers)()

    def rotated(self, depth: int) -> GradientTransformation:
        inner = self.chain(depth)
        if self._rng.random() < 0.5:  # a shared value, the count of the noise
            inner = chain(gradtx.add_noise(eta=0.01, gamma=0.5, seed=0), inner)
        return chain(gradtx.rotated(inner, precondition_frequency=2), gradtx.scale(0.5))

    def blocks(self, depth: int) -> GradientTransformation:
        rng = self._rng
        where = rng.choice(self._matrices)
        rows = next(iter(self._params[where].shape), 0)
        options: list[dict[str, Any]] = [{"batch": 1}, {"heads": 2}, {"heads": 2, "dim": -1}]
        if rows > 1:
            options.append({"sizes": (1, rows - 1)})
        return gradtx.blocks(self.chain(depth), where, **rng.choice(options))

    def whole(self) -> GradientTransformation:
        """A chain with what may stand around or behind it."""
        rng, tx = self._rng, self.chain()
        drawn = rng.random()
        if drawn < 0.2:
            around = rng.choice([gradtx.sam, gradtx.asam, gradtx.gsam, gradtx.wsam, gradtx.friendly_sam])
            return around(tx, rho=0.1)
        if drawn < 0.25:
            return gradtx.looksam(tx, rho=0.1, k=3)
        if drawn < 0.35:
            return chain(tx, gradtx.qk_clip({rng.choice(self._matrices): ("layer", "query")}, tau=2.0))
        if drawn < 0.45:
            return chain(tx, rng.choice([gradtx.round_stochastically(), gradtx.compensate_rounding()]))
        return tx


def drawn_case(seed: int) -> Case:
    """The case of a seed."""
    rng = random.Random(f"wide {seed}")
    dtype = rng.choice([torch.float32, torch.float64, torch.float64, torch.bfloat16])
    draw = normal(seed, dtype)
    params, gradients = drawn_tensors(rng, draw, MORE_TREES)
    tx = WideMaker(rng, params).whole()
    extras: list[dict[str, Any]] = [{} for _ in range(STEPS)]
    if "max_logits" in tx.needs:
        extras = [{"max_logits": {"layer": draw((1,)).float().abs() * 4}} for _ in range(STEPS)]
    takes_closure = bool({"grad_fn", "value_fn", "value"} & set(tx.needs))
    if takes_closure:  # a closure that leaves no gradient at all is refused by links that call it again
        gradients = [step if present(step) else dict(params) for step in gradients]
    return Case(tx, params, gradients, extras, takes_closure)


# Ways to run a case.


class LeafByLeaf(TorchDispatchMode):
    """Watches operations, so that nothing runs over lists."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


# Comparisons.


class Sensitivity:
    """How far the result of a case moves if the last bits of its gradients change."""

    def __init__(self, case: Case, expected: dict[str, Tensor], counts: str = "leaves"):
        self._case = case
        self._expected = expected
        self._counts = counts
        self._largest: float | None = None

    def largest(self) -> float:
        if self._largest is None:
            self._largest = 0.0
            for seed in range(4):
                generator = torch.Generator().manual_seed(seed)

                def nudge(gradient: Tensor, generator: torch.Generator = generator) -> Tensor:
                    eps = torch.finfo(gradient.dtype).eps
                    signs = torch.randn(gradient.shape, dtype=torch.float64, generator=generator).sign()
                    return (gradient.double() * (1 + eps * signs)).to(gradient.dtype)

                moved = functional(self._case, nudge, self._counts)
                self._largest = max(self._largest, distance(moved, self._expected))
        return self._largest

    def check(self, actual: dict[str, Tensor], what: str) -> bool:
        """Whether results are near; False if they differ as much as the last bits of gradients let them."""
        apart = distance(actual, self._expected)
        if apart <= TOLERANCES[self._case.dtype]:
            return True
        if apart <= 10 * self.largest():
            return False
        raise AssertionError(f"{what}: {apart:.2g} apart, the last bits of gradients move it by {self.largest():.2g}")


def distance(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, of large entries relative to these; infinite where one is no number."""
    largest = 0.0
    for name, value in expected.items():
        one, other = actual[name].double(), value.double()
        if not torch.equal(one.isfinite(), other.isfinite()):
            return float("inf")
        apart = ((one - other) / other.abs().clamp(min=1)).nan_to_num(0.0).abs()
        if apart.numel():
            largest = max(largest, float(apart.max()))
    return largest


def check_ways(case: Case) -> bool:
    """Pure use and the adapter, over lists and leaf by leaf."""
    pure = functional(case)
    sensitivity = Sensitivity(case, pure)
    adapted = Adapted(case)
    near = sensitivity.check(adapted.steps(), "adapter against pure use")
    near = sensitivity.check(Adapted(case, groups=2).steps(), "two groups against pure use") and near
    with LeafByLeaf():
        near = sensitivity.check(functional(case), "pure use leaf by leaf") and near
        near = sensitivity.check(Adapted(case).steps(), "adapter leaf by leaf against pure use") and near
    near = check_pure_programs(case) and near
    consumed = Adapted(case)
    consumed.steps(consume_gradients=True)
    check_same(consumed.optimizer, adapted.optimizer, "consuming gradients")
    return near


def check_pure_programs(case: Case) -> bool:
    """Pure use over lists, for which one count of all leaves is needed, against pure use leaf by leaf."""
    with LeafByLeaf():
        alone = functional(case, counts="calls")
    sensitivity = Sensitivity(case, alone, "calls")
    return sensitivity.check(functional(case, counts="calls"), "pure programs against pure use leaf by leaf")


def check_released(case: Case) -> None:
    """Steps during backward, bit for bit as whole steps."""
    if case.takes_closure or any(case.extras):
        return
    released, expected = Adapted(case), Adapted(case)
    try:
        handle = released.optimizer.release_gradients()
    except ValueError:
        return
    handle.remove()
    released.released_steps()
    expected.steps()
    check_same(released.optimizer, expected.optimizer, "released gradients")


def check_captured(case: Case) -> bool:
    """Steps with `capturable=True`, over lists and leaf by leaf, resumed, and repeated as by a CUDA graph."""
    try:
        captured = Adapted(case, capturable=True)
    except ValueError:  # a link needs the host
        return True
    sensitivity = Sensitivity(case, functional(case))
    near = sensitivity.check(captured.steps(), "capturable against pure use")
    with LeafByLeaf():
        near = sensitivity.check(Adapted(case, capturable=True).steps(), "capturable leaf by leaf") and near
    check_resumed(Adapted(case, capturable=True), Adapted(case, capturable=True))
    return (case.takes_closure or any(case.extras) or check_repeated(with_all_gradients(case))) and near


def check_repeated(case: Case) -> bool:
    """A recorded step that is repeated, and tensors that stay in their places."""
    repeated, stepping = Adapted(case, capturable=True), Adapted(case, capturable=True)
    places: list[Any] = []
    tape = Tape()
    for i in range(STEPS):
        stepping.give_in_place(i)
        repeated.give_in_place(i)
        stepping.optimizer.step()
        places.append(stepping.places())
        if RECORDED < i < STEPS - 1:
            tape.replay()
            continue
        with tape if i == RECORDED else contextlib.nullcontext():
            repeated.optimizer.step()
    assert all(place == places[1] for place in places[1:]), "a tensor of the state has changed its place"
    return Sensitivity(case, stepping.values()).check(repeated.values(), "repeated steps")


def with_all_gradients(case: Case) -> Case:
    """The case with zeros in place of missing gradients: a graph is for one set of gradients."""
    gradients: Gradients = []
    for step in case.gradients:
        complete = {name: step[name] for name in case.params}
        for name, param in case.params.items():
            if complete[name] is None:
                complete[name] = torch.zeros_like(param)
        gradients.append(complete)
    return dataclasses.replace(case, gradients=gradients)


def check_resumed_purely(case: Case) -> None:
    """The state of pure use through a file in the middle."""
    if case.takes_closure:
        return
    ends: list[Any] = []
    for through_file in (False, True):
        params, state = dict(case.params), case.tx.init(case.params, counts="leaves")
        for i, (step, extras) in enumerate(zip(case.gradients, case.extras, strict=True)):
            if through_file and i == 4:
                state = saved_and_loaded(state)
            updates, state = case.tx.update(step, state, params, **extras)
            params = gradtx.apply_updates(params, updates)
        ends.append((params, state))
    assert_equal(ends[1], ends[0])


def run(seed: int, draw_case: Callable[[int], Case] = drawn_case) -> str:
    """All ways of one case; 'refused' if its chain does not fit, 'sensitive' if rounding decides its result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            case = draw_case(seed)
            case.tx.init(case.params)
        except (ValueError, TypeError):
            return "refused"
        near = check_ways(case)
        check_resumed(Adapted(case), Adapted(case))
        check_resumed_purely(case)
        check_released(case)
        near = check_captured(case) and near
    return "passed" if near else "sensitive"


def run_poisoned(seed: int, draw_case: Callable[[int], Case] = drawn_case) -> str:
    """A case with gradients that are not finite; 'refused' also if a closure makes the gradients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if draw_case(seed).takes_closure:
                return "refused"
        except (ValueError, TypeError):
            return "refused"
    return run(seed, lambda seed: chains.poisoned(draw_case(seed), seed))
