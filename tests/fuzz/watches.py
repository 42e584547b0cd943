"""Random nested chains, watched and unwatched: the same bits of weights, state, gradients and random streams.

A seed says which two combinators are nested: each in each, in turn. What is inside and behind them, the tree, the
gradients, the way to step and how often the watch measures are drawn. A third of the chains has a rule of a user's that
draws from torch's stream, or counts its calls, in some of its leaves or all.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import gradtx
from gradtx import GradientTransformation, chain
from tests.fuzz.chains import STEPS, Adapted, Case, check_same, drawn_tensors, normal, present
from tests.fuzz.wide import CODES, MORE_TREES, LeafByLeaf, WideMaker
from tests.optim.problems import assert_equal

ATTEMPTS = 8
# The keyword arguments of `Adapted`, and of its `steps`.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lists": ({}, {}),
    "two groups": ({"groups": 2}, {}),
    "consumed": ({}, {"consume_gradients": True}),
    "capturable": ({"capturable": True}, {}),
    "leaf by leaf": ({}, {}),
    "scaled": ({}, {}),
    "scaled by the step": ({"amp_scaling": True}, {}),
    "pure": ({}, {}),
    "compiled": ({"compile": True}, {}),  # only if a caller asks for it, since it takes long
}


CALLS: list[int] = []


@gradtx.per_tensor
def noisy():
    return lambda update, state, param, ctx: (update + 0.1 * torch.randn_like(update), state)


@gradtx.per_tensor
def counting(eps: gradtx.Scalar = 1e-3):
    def update(update: Tensor, state: Any, param: Any, ctx: Any) -> Any:
        CALLS.append(1)
        size = update.abs().sum().item()  # so that no program runs it
        return update * (1 + 0.01 * len(CALLS)) / (1 + eps * size), state

    return update


class NestedMaker(WideMaker):
    """Draws what is in two combinators, and their arguments."""

    def nested(self, outer: str, inner: str) -> GradientTransformation:
        """Return a chain with one combinator in another."""
        core = self.chain(depth=0)
        if self._rng.random() < 0.35:
            core = chain(self.impure(), core)
        return self.around(outer, self.beside(self.around(inner, core)))

    def beside(self, tx: GradientTransformation) -> GradientTransformation:
        """A chain, perhaps with a link in front or behind."""
        drawn = self._rng.random()
        if drawn < 0.3:
            return chain(self.link(), tx)
        return chain(tx, self.behind()) if drawn < 0.5 else tx

    def impure(self) -> GradientTransformation:
        rule = self._rng.choice([noisy, counting])()
        return gradtx.masked(rule, self._rng.choice(self._names)) if self._rng.random() < 0.7 else rule

    def around(self, name: str, tx: GradientTransformation) -> GradientTransformation:
        return COMBINATORS[name](self, tx)

    def pick(self, *options: Any) -> Any:
        return self._rng.choice(options)

    def matrix(self) -> Any:
        return self._rng.choice(self._matrices)


def every_other(step: Any) -> Any:
    return step % 2 == 0


def _sam(maker: NestedMaker, tx: GradientTransformation) -> GradientTransformation:
    around = maker.pick(gradtx.sam, gradtx.asam, gradtx.gsam, gradtx.wsam, gradtx.friendly_sam)
    return around(tx, rho=0.1)


def _rounded(maker: NestedMaker, tx: GradientTransformation) -> GradientTransformation:
    return chain(tx, maker.pick(gradtx.round_stochastically, gradtx.compensate_rounding)())


def _low_rank(maker: NestedMaker, tx: GradientTransformation) -> GradientTransformation:
    projection = maker.pick("svd", "power", "random")
    return gradtx.low_rank(tx, 1, every=2, projection=projection, carry=maker.pick("keep", "reset"))


def _blocks(maker: NestedMaker, tx: GradientTransformation) -> GradientTransformation:
    return gradtx.blocks(tx, maker.matrix(), **maker.pick({"batch": 1}, {"heads": 2}, {"heads": 2, "dim": -1}))


def _partition(maker: NestedMaker, tx: GradientTransformation) -> GradientTransformation:
    return gradtx.partition({"a": tx, "b": maker.chain(depth=0)}, {"a": maker.matrix(), "b": "*"})


COMBINATORS: dict[str, Callable[[NestedMaker, GradientTransformation], GradientTransformation]] = {
    "accumulate": lambda m, tx: gradtx.accumulate(tx, m.pick(2, 3), use_grad_mean=m.pick(True, False)),
    "apply_if": lambda m, tx: gradtx.apply_if(tx, every_other),
    "blend_by_agreement": lambda m, tx: gradtx.blend_by_agreement(tx),
    "blocks": _blocks,
    "cautious_decay_after": lambda m, tx: gradtx.cautious_decay_after(tx, 0.1, 0.05),
    "graft": lambda m, tx: m.pick(gradtx.graft(tx, m.alias()), gradtx.graft(m.alias(), tx)),
    "hyperball": lambda m, tx: gradtx.hyperball(tx, lr=0.05),
    "line_search": lambda m, tx: gradtx.line_search(tx, max_steps=3, conditions=m.pick("armijo", "strong_wolfe")),
    "looksam": lambda m, tx: gradtx.looksam(tx, rho=0.1, k=3),
    "low_rank": _low_rank,
    "mask_if": lambda m, tx: gradtx.mask_if(tx, every_other),
    "masked": lambda m, tx: gradtx.masked(tx, m.where()),
    "maximized": lambda m, tx: gradtx.adamw(lr=m.rate(), maximize=True) if m.pick(0, 0, 1) else chain(tx, m.behind()),
    "mechanize": lambda m, tx: gradtx.mechanize(tx, s_init=1e-2),
    "outer": lambda m, tx: gradtx.outer(tx, m.pick(gradtx.sgd(lr=0.5), gradtx.sgd(lr=0.7, momentum=0.9)), every=2),
    "partition": _partition,
    "restart": lambda m, tx: gradtx.restart(tx, m.pick(2, 3), keep_clock=m.pick(True, False)),
    "rotated": lambda m, tx: gradtx.rotated(tx, precondition_frequency=2),
    "rounded": _rounded,
    "sam": _sam,
    "scale_by_norm_ratio": lambda m, tx: gradtx.scale_by_norm_ratio(tx),
    "schedule_free": lambda m, tx: gradtx.schedule_free(tx, lr=0.05, beta=0.9),
    "skip_nonfinite": lambda m, tx: gradtx.skip_nonfinite(tx),
    "trac": lambda m, tx: gradtx.trac(tx, s_prev=1e-2),
    "with_lookahead": lambda m, tx: gradtx.with_lookahead(
        tx, k=2, pullback_momentum=m.pick("none", "reset", "pullback")
    ),
    "with_state_dtype": lambda m, tx: gradtx.with_state_dtype(tx, m.pick(*CODES), min_size=0),
}
PAIRS = list(itertools.product(COMBINATORS, COMBINATORS))


@dataclasses.dataclass
class Nested:
    """A case, the way to step, and the options of the watch.

    Attributes:
        make: Makes the case, whose rules start to count again.
        way: One of `WAYS`.
        watch: The arguments of `gradtx.watch`.
    """

    make: Callable[[], Case]
    way: str
    watch: dict[str, Any]

    def __repr__(self) -> str:
        return f"{self.way}, {self.watch}, {self.make()!r}"


def made_case(seed: int, attempt: int = 0) -> Case:
    """A case with the combinators of a seed; another attempt has another chain inside, and another tree."""
    rng = random.Random(f"nested {seed} {attempt}")
    dtype = rng.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16])
    params, gradients = drawn_tensors(rng, normal(seed, dtype), MORE_TREES)
    outer, inner = PAIRS[seed % len(PAIRS)]
    tx = NestedMaker(rng, params).nested(outer, inner)
    takes_closure = bool({"grad_fn", "value_fn", "value"} & set(tx.needs))
    if takes_closure:
        gradients = [step if present(step) else dict(params) for step in gradients]
    return Case(tx, params, gradients, [{} for _ in range(STEPS)], takes_closure)


def drawn_case(seed: int) -> Nested:
    """The case of a seed.

    Raises:
        ValueError: If one of the combinators refuses each of several chains.
    """
    rng = random.Random(f"watch {seed}")
    watch = {"every": rng.choice([1, 2, 3]), "per": rng.choice(["leaf", "all"])}
    way = rng.choice([way for way in WAYS if way != "compiled"])
    for attempt in range(ATTEMPTS):
        try:
            case = made_case(seed, attempt)
            case.tx.init(case.params)
        except (ValueError, TypeError):
            continue
        return Nested(functools.partial(made_case, seed, attempt), way, watch)
    raise ValueError(f"{PAIRS[seed % len(PAIRS)]}: refused")


class Trained:
    """A case by an optimizer, watched or not.

    Attributes:
        adapted: The case, after its steps.
        drawn: The next number of torch's stream.
    """

    def __init__(self, nested: Nested, is_watched: bool):
        torch.manual_seed(0)
        CALLS.clear()
        case = nested.make()
        options, self._step_options = WAYS[nested.way]
        self.adapted = Adapted(case, **options)
        seen = gradtx.watch(self.adapted.optimizer, **nested.watch) if is_watched else None
        if nested.way.startswith("scaled"):
            self._scaled_steps()
        elif nested.way == "leaf by leaf":
            with LeafByLeaf():
                self.adapted.steps()
        else:
            self.adapted.steps(**self._step_options)
        self.drawn = torch.rand(())
        if seen is not None:
            seen.close()
            assert seen.samples or seen.uncounted or not any(map(present, case.gradients)), "nothing was measured"
            repr(seen)

    def _scaled_steps(self) -> None:
        """Steps under a GradScaler, one of which it skips."""
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
        for i, step in enumerate(self.adapted.case.gradients):
            scale = float(scaler.scale(torch.ones(())))
            for name, param in self.adapted.named.items():
                gradient = step[name]
                param.grad = None if gradient is None else gradient * (float("inf") if i == 4 else scale)
            if any(param.grad is not None for param in self.adapted.named.values()):
                scaler.step(self.adapted.optimizer)
                scaler.update()


def check_pure(nested: Nested) -> None:
    """The pure form against a pure update leaf by leaf."""
    ends: list[Any] = []
    for is_watched in (False, True):
        torch.manual_seed(0)
        CALLS.clear()
        case = nested.make()
        params, state = dict(case.params), case.tx.init(case.params, counts="leaves")
        for step in case.gradients:
            if is_watched:
                updates, state, _ = gradtx.watched(case.tx).update(step, state, params)
            else:
                with LeafByLeaf():
                    updates, state = case.tx.update(step, state, params)
            params = gradtx.apply_updates(params, updates)
        ends.append((params, state, torch.rand(())))
    assert_equal(ends[1], ends[0])


def run(seed: int, way: str = "") -> str:
    """One case, watched and unwatched; 'refused' if its combinators refuse each other or the way to step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            nested = drawn_case(seed)
            nested.way = way or nested.way
            if nested.make().takes_closure and nested.way != "leaf by leaf":
                nested.way = "lists"
            unwatched = Trained(nested, is_watched=False)
        except (ValueError, TypeError, RuntimeError):
            return "refused"
        if nested.way == "pure":
            check_pure(nested)
        watched = Trained(nested, is_watched=True)
        check_same(watched.adapted.optimizer, unwatched.adapted.optimizer, f"watched, {nested!r}", grads=True)
        assert torch.equal(watched.drawn, unwatched.drawn), f"torch's stream moved: {nested!r}"
    return "passed"
