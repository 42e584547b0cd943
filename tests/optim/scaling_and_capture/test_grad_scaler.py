"""GradScaler: gradients are unscaled, and non-finite steps skipped with their state and counts.

By default the scaler does both, as for torch's optimizers that are not fused. With `amp_scaling=True`, `step` does,
without host reads: `found_inf` and `grad_scale` are the attributes that torch's scaler sets around its call of `step`.
"""

import contextlib
import copy
import math
import pickle

import pytest
import torch

import gradtx
from gradtx.compiler import cpp
from gradtx.optim import device_counts as _device_counts
from tests.conformance import step_extras
from tests.optim.chains import CHAINS
from tests.optim.problems import (
    assert_close,
    assert_equal,
    made,
    parameters,
    saved_and_loaded,
    set_gradients,
    twins,
    unchanged,
    values,
    whole,
)
from tests.tiers import by_day, each_case

SCALE = 2.0**12  # a power of two, so that scaling does not round
BAD = (0, 3, 4, 7)
STEPS = 10


@contextlib.contextmanager
def scaler(optimizer, infinite=False, scale=SCALE):
    optimizer.found_inf = torch.tensor(float(infinite))
    optimizer.grad_scale = None if scale is None else torch.tensor(scale)
    try:
        yield
    finally:
        del optimizer.found_inf, optimizer.grad_scale


def skips(name, t):
    """Whether a gradient is missing, which also happens at steps that are not counted."""
    return (name, t) in {("body.bias", 1), ("head.weight", 3), ("body.bias", 4), ("head.scale", 5)}


def step(optimizer, params, t, skip=skips):
    set_gradients(params, t, skip)
    optimizer.step(**step_extras(optimizer._tx, params))


def scaled_step(optimizer, params, t, skip=skips):
    """Take a step with scaled gradients, one of which is not finite if `t` is bad."""
    set_gradients(params, t, skip)
    grads = [param.grad for param in params.values() if param.grad is not None]
    torch._foreach_mul_(grads, SCALE)
    if t in BAD:
        grads[t % len(grads)].view(-1)[0] = math.inf if t % 2 else math.nan
    with scaler(optimizer, t in BAD):
        optimizer.step(**step_extras(optimizer._tx, params))


def run(optimizer, params, scaled, steps=range(STEPS), skip=skips):
    """Take steps under a scaler, or, without one, only the steps that are not bad."""
    for t in steps:
        if scaled:
            scaled_step(optimizer, params, t, skip)
        elif t not in BAD:
            step(optimizer, params, t, skip)


def compiled(tx, params=None):
    params = parameters() if params is None else params
    return gradtx.as_optimizer(tx, list(params.items()), compile=True), params


def assert_same(optimizer, expected, tolerance):
    """Return parameters, states with their counts, and the hyperparameters that groups show."""
    found, wanted = whole(optimizer, grads=False), whole(expected, grads=False)
    assert_close(found["params"], wanted["params"], tolerance)
    for state, other in zip(found["state"], wanted["state"], strict=True):
        assert [(k, v.dtype, v.shape) for k, v in state.items()] == [(k, v.dtype, v.shape) for k, v in other.items()]
        assert_close(state.values(), other.values(), tolerance)
    assert found["groups"] == wanted["groups"]


@by_day(
    "design", "partition", "masked", "freeze", "accumulate a partition", "skip an accumulation",
    "masked accumulation", "with lookahead", "whole tree", "two sums", "random", "map after step", "adamp",
    "adam_atan2", "pnm", "prodigy",
)  # fmt: skip
@pytest.mark.parametrize("name", CHAINS)
def test_infinite_steps_leave_no_trace_in_parameters_state_counts_or_groups(name):
    (expected, theirs), (optimizer, params) = made(CHAINS[name]), made(CHAINS[name])
    run(expected, theirs, scaled=False)
    run(optimizer, params, scaled=True)
    # If counts are tensors, schedules are computed by torch instead of Python.
    assert_same(optimizer, expected, 1e-13)


@by_day("nested partition", "accumulate a partition", "skip around a masked accumulation", "two sums", "twice", "pnm")
@pytest.mark.parametrize("name", CHAINS)
def test_programs_leave_no_trace_of_infinite_steps(name):
    (expected, theirs), (optimizer, params) = made(CHAINS[name]), compiled(CHAINS[name])
    run(expected, theirs, scaled=False)
    run(optimizer, params, scaled=True)
    assert not optimizer._core.back_ends[0].failed
    assert_same(optimizer, expected, 1e-12)


@each_case
def test_every_transformation_skips_infinite_steps(case):
    start = {name: torch.nn.Parameter(value) for name, value in case.noise(3, {"matrix": (3, 4)}).items()}
    (expected, theirs), (optimizer, params) = made(case.make(), twins(start)), made(case.make(), twins(start))
    run(expected, theirs, scaled=False, steps=range(5))
    run(optimizer, params, scaled=True, steps=range(5))
    assert_same(optimizer, expected, 1e-12)


@pytest.mark.parametrize("name", ["adamp", "design"])
def test_compiled_steps_under_a_scaler_equal_eager_ones_and_compile_once(name):
    (expected, theirs), (optimizer, params) = made(CHAINS[name]), compiled(CHAINS[name])
    run(expected, theirs, scaled=False)
    run(optimizer, params, scaled=True, steps=range(6))  # every pattern of missing gradients has occurred
    texts = cpp.outcome.cache_info().misses
    run(optimizer, params, scaled=True, steps=range(6, STEPS))
    assert cpp.outcome.cache_info().misses == texts
    assert not optimizer._core.back_ends[0].failed
    assert_same(optimizer, expected, 1e-12)


@pytest.mark.parametrize("compile", [False, True])
def test_steps_with_and_without_a_scaler_may_alternate(compile):
    optimizer, params = compiled(CHAINS["design"]) if compile else made(CHAINS["design"])
    expected, theirs = made(CHAINS["design"])
    run(expected, theirs, scaled=False)
    for t in range(STEPS):
        run(optimizer, params, scaled=t in BAD or t % 2 == 0, steps=[t])
    assert_same(optimizer, expected, 1e-12)


@pytest.mark.parametrize(
    "again",
    [
        lambda optimizer, params: copy.deepcopy((optimizer, params)),
        lambda optimizer, params: pickle.loads(pickle.dumps((optimizer, params))),
        lambda optimizer, params: reloaded(optimizer, params),
    ],
    ids=["deepcopy", "pickle", "checkpoint"],
)
def test_runs_under_a_scaler_go_on_after_copies_and_checkpoints(again):
    expected, theirs = made(CHAINS["design"])
    run(expected, theirs, scaled=False)
    optimizer, params = made(CHAINS["design"])
    run(optimizer, params, scaled=True, steps=range(6))
    optimizer, params = again(optimizer, params)
    run(optimizer, params, scaled=True, steps=range(6, STEPS))
    assert_same(optimizer, expected, 1e-13)


def reloaded(optimizer, params):
    fresh, own = made(CHAINS["design"], twins(params))
    fresh.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    return fresh, own


def test_counts_are_not_read_where_a_device_has_them(monkeypatch):
    monkeypatch.setattr(_device_counts.DeviceCount, "most", property(lambda count: count.bound))  # as on another device
    for optimizer, params in (made(gradtx.adamw()), compiled(gradtx.adamw())):
        scaled_step(optimizer, params, 1, skip=lambda name, t: False)  # state comes with the first gradient
        with monkeypatch.context() as patch:
            for name in ("__int__", "__bool__", "__float__", "item", "tolist"):
                patch.setattr(torch.Tensor, name, lambda tensor: pytest.fail("read"))
            run(optimizer, params, scaled=True, steps=range(2, 6))


@pytest.mark.parametrize("name", ["design", "random"])  # skips on the device, and on the host
@pytest.mark.parametrize("infinite", [False, True])
def test_gradients_are_left_unscaled_as_by_every_other_optimizer(name, infinite):
    optimizer, params = made(CHAINS[name])
    set_gradients(params)
    wanted = [param.grad.clone() for param in params.values()]
    torch._foreach_mul_([param.grad for param in params.values()], SCALE)
    with scaler(optimizer, infinite):
        optimizer.step()
    assert_equal([param.grad for param in params.values()], wanted)


@pytest.mark.parametrize("name", ["design", "random"])  # skips on the device, and on the host
@pytest.mark.parametrize("infinite", [False, True])
def test_consumed_gradients_are_gone_whether_or_not_the_step_is_skipped(name, infinite):
    """Otherwise, a loop without `zero_grad` would add to infinite gradients, and skip all further steps."""
    optimizer, params = made(CHAINS[name])
    set_gradients(params)
    with scaler(optimizer, infinite):
        optimizer.step(consume_gradients=True)
    assert all(param.grad is None for param in params.values())


def test_gradients_in_half_precision_are_unscaled_before_they_are_rounded():
    """After unscaling, they are below the smallest number of float16."""
    params = {"a": torch.nn.Parameter(torch.ones(3, dtype=torch.float16))}
    optimizer, _ = made(gradtx.adam(lr=0.25, eps=0.0, state_dtype=torch.float32), params)
    params["a"].grad = torch.tensor([1e-4, -1e-4, 2e-4], dtype=torch.float16)
    kept = params["a"].grad.float() / 2.0**14
    with scaler(optimizer, scale=2.0**14):
        optimizer.step()
    assert_close([params["a"]], [torch.tensor([0.75, 1.25, 0.75], dtype=torch.float16)], 0)
    assert_close([optimizer.state[params["a"]]["exp_avg"]], [0.1 * kept], 1e-6)


def test_a_schedule_does_not_advance_at_skipped_steps():
    schedule = gradtx.cosine_schedule(0.1, T_max=20)
    optimizer, params = made(gradtx.sgd(lr=schedule))
    for t in range(3):
        scaled_step(optimizer, params, t)  # the first step is bad
    assert optimizer.param_groups[0]["lr"] == schedule(2)


def test_what_can_not_work_under_a_scaler_is_refused():
    optimizer, params = made(gradtx.adamw())
    set_gradients(params)
    with unchanged(optimizer), scaler(optimizer), pytest.raises(RuntimeError, match="closures are not supported"):
        optimizer.step(lambda: 1 / 0)
    optimizer, params = made(gradtx.sam(gradtx.sgd(lr=0.1)))
    with (
        unchanged(optimizer),
        scaler(optimizer),
        pytest.raises(RuntimeError, match="train in bfloat16, without a scaler"),
    ):
        optimizer.step(lambda: 1 / 0)
    optimizer, params = made(gradtx.adahessian(lr=0.1))
    set_gradients(params)
    with unchanged(optimizer), scaler(optimizer), pytest.raises(RuntimeError, match="hessian_diag cannot be estimated"):
        optimizer.step()


CLOSURES = {
    "adamw": gradtx.adamw(),
    "momo": gradtx.momo(),
    "line_search": gradtx.line_search(gradtx.sgd(lr=0.1)),
    "lbfgs": gradtx.lbfgs(),
    "looksam": gradtx.looksam(gradtx.sgd(lr=0.1), k=2),
    **{name: getattr(gradtx, name)(gradtx.sgd(lr=0.1)) for name in ("sam", "asam", "gsam", "friendly_sam", "wsam")},
}


@pytest.mark.parametrize("name", CLOSURES)
def test_a_closure_whose_gradients_a_scaler_has_scaled_is_refused(name):
    params = parameters(torch.float32)
    optimizer = gradtx.as_optimizer(CLOSURES[name], list(params.values()))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def closure():
        optimizer.zero_grad()
        loss = sum(param.square().sum() for param in params.values())
        scaler.scale(loss).backward()
        return loss

    closure()
    before = [param.detach().clone() for param in params.values()]
    with pytest.raises(RuntimeError, match="closures are not supported under an enabled GradScaler"):
        scaler.step(optimizer, closure)
    assert_equal(list(params.values()), before)
    assert not optimizer.state
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    scaler = disabled
    scaler.step(optimizer, closure)


# torch's own scaler.


def trained(make, steps=8):
    """Train with an infinite third loss."""
    params = parameters(torch.float32)
    optimizer = make(params)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    for t in range(steps):
        optimizer.zero_grad()
        loss = sum((param * (t + 1)).sin().sum() for param in params.values())
        scaler.scale(loss * float("inf") if t == 2 else loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return params, optimizer, scaler


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("compile", [False, True])
def test_a_grad_scaler_skips_steps_with_infinite_gradients_as_with_torch(compile, inside):
    options = {"compile": compile, "amp_scaling": inside}
    params, optimizer, scaler = trained(lambda ps: gradtx.optim.AdamW(ps.values(), lr=0.1, **options))
    theirs, _, reference = trained(lambda ps: torch.optim.AdamW(ps.values(), lr=0.1))
    # Eight float32 roundings.
    assert_close(params.values(), theirs.values(), 1e-6)
    assert scaler.get_scale() == reference.get_scale()
    assert {optimizer.state[param]["step"].item() for param in params.values()} == {7.0}


def calls_of_step(optimizer):
    """Whether each of two steps under a GradScaler, of which the second is skipped, calls `step`."""
    (param,) = optimizer.param_groups[0]["params"]
    calls = []
    step = optimizer.step
    optimizer.step = lambda *args, **kwargs: calls.append(step(*args, **kwargs))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    counts = []
    for factor in (1.0, math.inf):
        optimizer.zero_grad()
        scaler.scale(factor * param.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        counts.append(len(calls))
    return counts


def test_a_skipped_step_is_not_called_as_with_torchs_class_unless_step_itself_skips():
    def param():
        return [torch.nn.Parameter(torch.ones(2))]

    assert calls_of_step(torch.optim.AdamW(param(), foreach=False)) == [1, 1]
    assert calls_of_step(gradtx.optim.AdamW(param())) == [1, 1]
    assert calls_of_step(gradtx.as_optimizer(gradtx.adamw(), param())) == [1, 1]
    assert calls_of_step(torch.optim.AdamW(param(), fused=True)) == [1, 2]
    assert calls_of_step(gradtx.optim.AdamW(param(), amp_scaling=True)) == [1, 2]
    assert calls_of_step(gradtx.as_optimizer(gradtx.adamw(), param(), amp_scaling=True)) == [1, 2]
    assert calls_of_step(gradtx.optim.AdamW(param(), capturable=True)) == [1, 2]
    again = copy.deepcopy(gradtx.optim.AdamW(param(), amp_scaling=True))
    assert calls_of_step(again) == [1, 2]


@pytest.mark.filterwarnings("ignore:Using backward")
def test_what_a_grad_scaler_would_spoil_is_still_refused():
    """A Hessian of the scaled loss, and gradients that are used before they are unscaled."""
    for tx, released in ((gradtx.adahessian(lr=0.1), False), (gradtx.adamw(), True)):
        param = torch.nn.Parameter(torch.ones(2))
        optimizer = gradtx.as_optimizer(tx, [param])
        if released:
            optimizer.release_gradients()
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(param.square().sum()).backward(create_graph=not released)
        with pytest.raises(
            (RuntimeError, AssertionError), match=r"hessian_diag cannot be estimated|gradients are released"
        ):
            scaler.step(optimizer)


@pytest.mark.parametrize("inside", [False, True])
def test_frozen_and_idle_parameters_do_not_disturb_steps_under_a_scaler(inside):
    def run(module, **options):
        params = [torch.nn.Parameter(torch.ones(2), requires_grad=i != 1) for i in range(3)]
        optimizer = module.AdamW(params, lr=0.1, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for t in range(4):
            optimizer.zero_grad()
            loss = params[0].sin().sum() + (params[2].cos().sum() if t > 1 else 0.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return params

    assert_close(run(gradtx.optim, amp_scaling=inside), run(torch.optim), 1e-6)


def test_a_skipped_step_of_a_grad_scaler_changes_no_state_and_no_schedule():
    schedule = gradtx.cosine_schedule(0.1, T_max=20)
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=schedule), gradtx.lookahead(k=2))
    params, optimizer, _ = trained(lambda params: gradtx.as_optimizer(tx, list(params.items())), steps=2)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    for param in params.values():
        param.grad = torch.full_like(param, float("inf"))
    with unchanged(optimizer):
        scaler.step(optimizer)
    assert optimizer.param_groups[0]["lr"] == schedule(2)


def test_a_grad_scaler_unscales_before_clipping():
    params = parameters(torch.float32)
    optimizer = gradtx.optim.SGD(params.values(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    before = values(params)
    scaler.scale(sum(param.sum() for param in params.values())).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(params.values(), 1e-3)
    scaler.step(optimizer)
    moved = torch.cat([(param.detach() - old).flatten() for param, old in zip(params.values(), before, strict=True)])
    assert_close([moved.norm()], [torch.tensor(1e-4)], 1e-3)  # differences of float32 weights of size 1
