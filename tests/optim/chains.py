"""Chains of every kind for the adapter's tests, over the parameters of `problems`."""

from __future__ import annotations

import torch

import gradtx
from gradtx import chain

WARM_UP = gradtx.warmup_cosine_schedule(40, max_lr=3e-2, init_lr=1e-3, warmup_steps=5)


@gradtx.per_tensor
def scale_by_two_sums(factor: gradtx.Scalar = 1.0):
    """Divide by the norm of the tree, then by the mean size of the result; the second sum depends on the first."""

    def update(update, state, param, ctx):
        square = yield {"square": update.square().sum()}
        update = update / (square["square"].sqrt() + 1)
        size = yield {"sum": update.abs().sum(), "count": update.new_full((), update.numel())}
        yield factor * update / (size["sum"] / size["count"] + 1e-3), state

    return update


@gradtx.per_tensor(elementwise=True)
def take_turns():
    """Swap two slots at every step while updating them, as in positive-negative momentum."""

    def init(param):
        return {"even": torch.zeros_like(param), "odd": torch.ones_like(param)}

    def update(update, state, param, ctx):
        return update + 0.1 * state["odd"], {"even": state["odd"], "odd": 0.9 * state["even"] + update}

    return init, update


@gradtx.per_tensor(elementwise=True)
def swap_slots():
    """Swap two slots unchanged."""

    def init(param):
        return {"one": torch.zeros_like(param), "other": torch.ones_like(param)}

    def update(update, state, param, ctx):
        return update + 0.1 * state["one"], {"one": state["other"], "other": state["one"]}

    return init, update


@gradtx.per_tensor(random=True)
def add_noise(size: gradtx.Scalar = 0.1, seed: int = 3):
    """Draw random numbers at init and at every step, of both kinds."""

    def init(param, rng):
        return {"drift": rng.normal(param)}

    def update(update, state, param, ctx):
        drift = 0.9 * state["drift"] + 0.1 * ctx.rng.rademacher(update)
        return update + size * ctx.rng.normal(update) + 0.01 * drift, {"drift": drift}

    return init, update


@gradtx.whole_tree
def scale_by_mean_of_trees(factor: gradtx.Scalar = 1.0):
    """Apply a function of whole trees, with slots and a shared value."""

    def init(params):
        return {
            "mean": {n: torch.zeros_like(p) for n, p in params.items()},
            "size": torch.zeros((), dtype=torch.float64),
        }

    def update(updates, state, params, ctx):
        size = torch.stack([u.square().sum().to(torch.float64) for u in updates.values()]).sum().sqrt()
        mean = {name: 0.9 * state["mean"][name] + 0.1 * u for name, u in updates.items()}
        return {name: factor * m / (size + 1) for name, m in mean.items()}, {"mean": mean, "size": size}

    return init, update


@gradtx.whole_tree(needs=("grad_fn", "params"))
def gradient_ahead(rate: gradtx.Scalar = 0.1):
    """Return the gradient at the point that a step of plain descent would reach."""

    def update(updates, state, params, ctx):
        return ctx.grad_fn({name: params[name] - rate * update for name, update in updates.items()}), state

    return update


@gradtx.per_tensor(needs=("value",))
def scale_by_value():
    def update(update, state, param, ctx):
        return ctx.value * update, state

    return update


def plain_init(params):
    return {"mean": {name: torch.zeros_like(p) for name, p in params.items()}}


def plain_update(updates, state, params=None):
    mean = {name: 0.5 * state["mean"][name] + u for name, u in updates.items()}
    return mean, {"mean": mean}


def is_matrix(name: str, param: torch.Tensor) -> bool:
    return param.ndim == 2


BIAS_OR_NOT = {"bias": ("*.bias", "*.scale"), "weight": "*"}
NESTED = gradtx.partition(
    {
        "head": gradtx.partition(
            {"scale": gradtx.sgd(lr=0.1), "rest": chain(gradtx.clip_by_global_norm(0.5), gradtx.adam(lr=1e-2))},
            {"scale": "*.scale", "rest": "*"},
        ),
        "body": chain(gradtx.clip_by_global_norm(0.2), gradtx.sgd(lr=0.1, momentum=0.9)),
    },
    {"head": "head.*", "body": "body.*"},
)

CHAINS = {
    "design": chain(
        gradtx.clip_by_global_norm(1.0),
        gradtx.centralize(),
        gradtx.scale_by_atan2(betas=(0.9, 0.99)),
        gradtx.project_scale_invariant(weight_decay=0.01),
        gradtx.scale_by_learning_rate(WARM_UP),
        gradtx.lookahead(k=5, alpha=0.5),
    ),
    "identity": chain(),
    "partition": gradtx.partition(
        {"bias": gradtx.sgd(lr=0.1, momentum=0.9), "weight": gradtx.adamw(lr=WARM_UP)}, BIAS_OR_NOT
    ),
    "nested partition": NESTED,
    "masked": chain(gradtx.masked(gradtx.add_decayed_weights(0.1), "*.weight"), gradtx.adam(lr=1e-2)),
    "masked by predicate": chain(gradtx.masked(gradtx.clip_by_global_norm(0.5), is_matrix), gradtx.adam(lr=1e-2)),
    "freeze": chain(gradtx.clip_by_global_norm(0.5), gradtx.adam(lr=1e-2), gradtx.freeze("head.*")),
    "accumulate": gradtx.accumulate(chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(lr=WARM_UP)), every=3),
    "accumulate a partition": gradtx.accumulate(
        gradtx.partition({"bias": gradtx.sgd(lr=0.1, momentum=0.9), "weight": gradtx.adamw(lr=WARM_UP)}, BIAS_OR_NOT),
        every=2,
    ),
    "skip": gradtx.skip_nonfinite(chain(gradtx.clip_by_global_norm(0.5), gradtx.adam(lr=WARM_UP))),
    "skip an accumulation": gradtx.skip_nonfinite(gradtx.accumulate(gradtx.adamw(lr=WARM_UP), every=2)),
    "accumulate around skip": gradtx.accumulate(gradtx.skip_nonfinite(gradtx.adamw(lr=WARM_UP)), every=2),
    "masked accumulation": chain(
        gradtx.masked(gradtx.accumulate(gradtx.ema(0.5), every=2), "*.weight"), gradtx.sgd(lr=WARM_UP)
    ),
    "skip around a masked accumulation": gradtx.skip_nonfinite(
        chain(gradtx.masked(gradtx.accumulate(gradtx.ema(0.5), every=2), "*.weight"), gradtx.sgd(lr=0.1))
    ),
    "with lookahead": gradtx.with_lookahead(gradtx.adamw(lr=1e-2), k=4, pullback_momentum="pullback"),
    "record": chain(
        gradtx.record("before"),
        gradtx.clip_by_global_norm(0.5),
        gradtx.record("after"),
        gradtx.sgd(lr=0.1, momentum=0.9),
    ),
    "whole tree": chain(scale_by_mean_of_trees(2.0), gradtx.scale(-0.5)),
    "plain functions": chain(gradtx.GradientTransformation(plain_init, plain_update), gradtx.scale(-0.1)),
    "two sums": chain(scale_by_two_sums(), gradtx.adamw(lr=1e-2)),
    "slots that change places": chain(take_turns(), swap_slots(), gradtx.sgd(lr=0.1)),
    "random": chain(add_noise(), gradtx.sgd(lr=0.1, momentum=0.9)),
    "average": chain(gradtx.sgd(lr=0.1), gradtx.average(decay=0.9)),
    "map after step": chain(gradtx.sgd(lr=0.1), gradtx.map_after_step(torch.tanh, before=True)),
    "twice": chain(gradtx.ema(0.5), gradtx.adam(lr=1e-2), gradtx.trace(0.3), gradtx.trace(0.2)),
    "adamp": gradtx.adamp(lr=1e-2, weight_decay=0.1, nesterov=True),
    "adopt": gradtx.adopt(lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True),
    "adam_atan2": gradtx.adam_atan2(
        lr=1e-2, weight_decay=0.1, decoupled_wd=True, cautious_factor=0.3, orthog_grad=True, clip_to_grok=True
    ),
    "regenerate": gradtx.adam_atan2(lr=1e-2, regen_reg_rate=0.1, decoupled_wd=True, wasserstein_reg=True),
    "pnm": gradtx.pnm(lr=0.1, weight_decay=0.1),
    "dadapt_sgd": gradtx.dadapt_sgd(lr=0.1, d0=0.01, momentum=0.5),
    "prodigy": gradtx.prodigy(lr=0.1, d0=0.01, weight_decay=0.1),
    "schedule free": gradtx.schedule_free_adamw(lr=1e-2, weight_decay=0.1, warmup_steps=4),
}

ON_HOST = ("whole tree", "plain functions", "random")  # chains whose steps read values or counts on the host
