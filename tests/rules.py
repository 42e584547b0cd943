"""Helpers for tests of rules: one-line transformations, and runs of some steps."""

import torch

import gradtx
from gradtx import GradientTransformation, Scalar, chain, per_tensor, whole_tree

VECTORS = {"a": (3,), "b": (2, 2), "c": ()}
FLAT = {"a": (3,), "b": (3,), "c": (3,)}


def ones(**changes):
    return {"a": torch.ones(3), "b": torch.ones(2, 2), "c": torch.tensor(1.0), **changes}


def made(update, init=None, evaluate=None, **options):
    """The transformation of a rule without arguments."""

    @per_tensor(**options)
    def rule():
        return update if init is None else (init, update) if evaluate is None else (init, update, evaluate)

    return rule()


def run(tx, steps, params=None, grads=None, **extras):
    """Updates and state after some steps, at the same parameters."""
    params, grads = ones() if params is None else params, ones() if grads is None else grads
    state, updates = tx.init(params), None
    for _ in range(steps):
        updates, state = tx.update(grads, state, params, **extras)
    return updates, state


def constant(value):
    return lambda *args: value


def halve_init(params):
    return {"calls": torch.zeros(())}


def halve(updates, state, params):
    halves = {name: None if u is None else u / 2 for name, u in updates.items()}
    return halves, {"calls": state["calls"] + 1}


HALVE = GradientTransformation(halve_init, halve)


WRAPPINGS = {
    "alone": lambda tx: tx,
    "chain": lambda tx: chain(gradtx.trace(0.9), tx),
    "partition": lambda tx: gradtx.partition({"x": tx, "y": gradtx.scale(1.0)}, {"x": "a", "y": "*"}),
    "masked": lambda tx: gradtx.masked(tx, "a"),
    "accumulate": lambda tx: gradtx.accumulate(tx, every=1),
    "skip_nonfinite": gradtx.skip_nonfinite,
    "with_lookahead": gradtx.with_lookahead,
}


@whole_tree(needs=("params", "grad_fn"))
def look_ahead(distance: Scalar = 1.0):
    """The gradient some way downhill, minus a running mean that is kept as a slot, and a count."""

    def init(params):
        return {"mean": {name: torch.zeros_like(p) for name, p in params.items()}, "calls": torch.zeros(())}

    def update(updates, state, params, ctx):
        there = ctx.grad_fn({name: params[name] - distance * u for name, u in updates.items()})
        mean = {name: 0.5 * state["mean"][name] + 0.5 * g for name, g in there.items()}
        new = {name: there[name] + 0 * ctx.grad[name] for name in updates}
        return new, {"mean": mean, "calls": state["calls"] + 1}

    return init, update


def double(params):
    return {name: 2 * p for name, p in params.items()}


def noisy(draw, init=None):
    @per_tensor(random=True)
    def noise_rule(seed: int = 0):
        update = lambda update, state, param, ctx: (draw(ctx.rng, update), state)  # noqa: E731
        return update if init is None else (init, update)

    return noise_rule


normal, rademacher = noisy(lambda rng, like: rng.normal(like)), noisy(lambda rng, like: rng.rademacher(like))
uniform = noisy(lambda rng, like: rng.uniform(like))


def count_init(param):
    return {"sum": torch.zeros_like(param)}
