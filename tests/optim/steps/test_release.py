"""Gradients released during backward, and gradients consumed by a step."""

import functools
import itertools
import weakref
from unittest import mock

import pytest
import torch

import gradtx
from gradtx import chain
from gradtx.optim.engine import lists
from gradtx.optim.run import OptimizerRun
from gradtx.plans import bundle
from tests.conformance import field
from tests.optim.chains import CHAINS, add_noise
from tests.tiers import by_day, each_case

STEPS = 5


def model(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(6, 10), torch.nn.LayerNorm(10), torch.nn.Linear(10, 10), torch.nn.Linear(10, 3)]
    return torch.nn.Sequential(*layers).to(dtype)


def batch(i, dtype=torch.float64):
    generator = torch.Generator().manual_seed(100 + i)
    return torch.randn(4, 6, generator=generator, dtype=torch.float64).to(dtype)


def backward(net, i):
    loss = net(batch(i, next(net.parameters()).dtype)).square().mean()
    loss.backward()
    return loss.detach()


def trained(tx, released, steps=STEPS, dtype=torch.float64, calls=1, scheduler=None, **options):
    net = model(dtype=dtype)
    optimizer = gradtx.as_optimizer(tx, net.named_parameters(), **options)
    schedule = None if scheduler is None else scheduler(optimizer)
    if released:
        optimizer.release_gradients()
    number = itertools.count()
    for _ in range(steps):
        for _ in range(calls):
            backward(net, next(number))
        optimizer.step()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step()
    return net, optimizer


def tensors(net, optimizer):
    everything = {name: p.detach() for name, p in net.named_parameters()}
    for name, param in net.named_parameters():
        for key, value in optimizer.state[param].items():
            everything[f"{name} {key}"] = value
    return everything


def assert_same_bits(first, second):
    first, second = tensors(*first), tensors(*second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


RELEASABLE = {
    "sgd": lambda: gradtx.sgd(lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda: gradtx.adamw(lr=0.01, weight_decay=0.1),
    "adamw8": lambda: gradtx.adamw(lr=0.01, state_dtype={"exp_avg": "int8", "exp_avg_sq": "int8"}),
    "lion": lambda: gradtx.lion(lr=0.01, weight_decay=0.1),
    "lamb": lambda: gradtx.lamb(lr=0.01),
    "muon": lambda: gradtx.muon(lr=0.01, fallback=gradtx.adamw(lr=0.01)),
    "soap": lambda: gradtx.soap(lr=0.01, precondition_frequency=2),
    "schedule": lambda: gradtx.adamw(lr=gradtx.schedules.linear_schedule(0.1, 1.0, 0.1, total_iters=4)),
    "schedule_free": lambda: gradtx.schedule_free_adamw(lr=0.01),
    "stochastic": lambda: chain(gradtx.adamw(lr=0.01), gradtx.round_stochastically()),
    "compensated": lambda: chain(gradtx.adamw(lr=0.01), gradtx.compensate_rounding()),
    "lookahead": lambda: gradtx.with_lookahead(gradtx.adamw(lr=0.01), 2),
    "accumulate": lambda: gradtx.accumulate(gradtx.adamw(lr=0.01), 2),
    "stale": lambda: chain(gradtx.clip_by_global_norm(0.1, stale=True), gradtx.adamw(lr=0.01)),
    "accumulated stale": lambda: gradtx.accumulate(
        chain(gradtx.clip_by_global_norm(0.1, stale=True), gradtx.adamw(lr=0.01)), 2
    ),
    "noise": lambda: chain(add_noise(), gradtx.sgd(lr=gradtx.cosine_schedule(0.1, T_max=5))),
}


@by_day(
    "sgd-torch.bfloat16", "adamw-torch.float64", "adamw8-torch.bfloat16", "lion-torch.float64", "lamb-torch.bfloat16",
    "muon-torch.float64", "soap-torch.bfloat16", "schedule-torch.float64", "schedule_free-torch.bfloat16",
    "stochastic-torch.float64", "compensated-torch.bfloat16", "lookahead-torch.float64", "accumulate-torch.bfloat16",
    "stale-torch.float64", "accumulated stale-torch.bfloat16", "noise-torch.float64",
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", RELEASABLE)
def test_numbers_equal_those_of_ordinary_steps_bit_for_bit(name, dtype):
    ordinary = trained(RELEASABLE[name](), False, dtype=dtype)
    released = trained(RELEASABLE[name](), True, dtype=dtype)
    assert_same_bits(ordinary, released)
    assert ordinary[1].param_groups[0]["lr"] == released[1].param_groups[0]["lr"]


@pytest.mark.parametrize("name", ["adamw", "accumulate", "schedule", "stale"])
def test_numbers_equal_those_of_ordinary_compiled_steps(name):
    ordinary = trained(RELEASABLE[name](), False, compile=True)
    released = trained(RELEASABLE[name](), True, compile=True)
    assert_same_bits(ordinary, released)
    assert {way.way for way in released[1].explain()} == {"kernels"}


def refused(tx, values):
    """Whether a chain refuses to release gradients."""
    optimizer = gradtx.as_optimizer(tx, [(name, torch.nn.Parameter(p)) for name, p in values.items()])
    try:
        optimizer.release_gradients().remove()
    except ValueError as error:
        return "release_gradients: " in str(error) and "step(consume_gradients=True)" in str(error)
    return False


def sums_over_leaves(tx, values):
    """Whether an ordinary step of a chain has a sum over leaves, or a rule for whole trees."""
    params = {name: torch.nn.Parameter(p) for name, p in values.items()}
    optimizer = gradtx.as_optimizer(tx, list(params.items()))
    for name, gradient in field({name: p.detach() for name, p in params.items()}).items():
        params[name].grad = gradient
    with mock.patch.object(OptimizerRun, "combined", side_effect=InterruptedError):
        try:
            optimizer.step()
        except InterruptedError:
            return True
    return False


@each_case
def test_a_chain_is_refused_if_and_only_if_it_needs_all_gradients(case):
    tx = case.make()
    values = case.noise(3)
    if any(need != "params" for need in tx.needs):
        assert refused(tx, values)
    else:
        assert refused(tx, values) == sums_over_leaves(tx, values)


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw()), "clip_by_global_norm needs the gradients of all"),
        (chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw()), "stale=True"),
        (gradtx.skip_nonfinite(gradtx.adamw()), "skip_nonfinite needs the gradients of all"),
        (CHAINS["whole tree"], "scale_by_mean_of_trees needs the gradients of all"),
        (gradtx.sam(gradtx.sgd(lr=0.1), rho=0.1), "sam needs 'grad_fn'"),
        (gradtx.sophia(), "needs 'hessian_diag'"),
    ],
)
def test_the_error_names_the_link_and_the_way_out(tx, message):
    optimizer = gradtx.as_optimizer(tx, model().named_parameters())
    with pytest.raises(ValueError, match=message):
        optimizer.release_gradients()
    assert not any(p._post_accumulate_grad_hooks for group in optimizer.param_groups for p in group["params"])


def test_each_gradient_is_freed_before_that_of_the_layer_below_is_complete():
    net = torch.nn.Sequential(*[torch.nn.Linear(8, 8, bias=False) for _ in range(5)])
    optimizer = gradtx.optim.AdamW(net.parameters())
    optimizer.release_gradients()
    most = []
    gradients = []
    for param in net.parameters():

        def note(param):
            alive = [reference for reference in gradients if reference() is not None]
            most.append(len(alive) + 1)

        # This hook receives the gradient before the optimizer's hook does.
        param.register_hook(lambda gradient: gradients.append(weakref.ref(gradient)))
        param.register_post_accumulate_grad_hook(note)
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(3):
        net(torch.randn(2, 8)).sum().backward()
        assert all(p.grad is None for p in net.parameters())
        assert not any(reference() is not None for reference in gradients)
        optimizer.step()
    assert max(most) <= 2
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_weights_move_during_backward_and_step_moves_nothing_more():
    net = model()
    optimizer = gradtx.optim.AdamW(net.parameters(), lr=0.1)
    optimizer.release_gradients()
    backward(net, 0)
    moved = [p.detach().clone() for p in net.parameters()]
    assert all(state["step"] == 1 for state in optimizer.state.values())
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(moved, net.parameters(), strict=True))
    assert all(state["step"] == 1 for state in optimizer.state.values())


def test_schedules_hooks_and_schedulers_go_on_as_ever(recwarn):
    net = model()
    optimizer = gradtx.optim.AdamW(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    calls = []
    optimizer.register_step_pre_hook(lambda *given: calls.append("before"))
    optimizer.register_step_post_hook(lambda *given: calls.append("after"))
    optimizer.release_gradients()
    for i in range(3):
        backward(net, i)
        optimizer.step()
        scheduler.step()
    assert calls == ["before", "after"] * 3
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5**3
    assert not recwarn


def test_a_step_that_has_begun_keeps_its_group_values_and_takes_no_new_group():
    first, second = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    optimizer = gradtx.as_optimizer(gradtx.adamw(lr=0.1, weight_decay=0.0), [first, second])
    optimizer.release_gradients()
    (2 * first).sum().backward()
    with pytest.raises(RuntimeError, match=r"add_param_group: a step has begun .*; call step\(\) first"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    optimizer.param_groups[0].update(lr=0.5, weight_decay=0.1)
    optimizer.state_dict()  # has the slots of links that the new values switch on
    (2 * second).sum().backward()
    optimizer.step()
    assert torch.equal(second, first)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})


def test_removing_the_handle_goes_back_to_whole_steps():
    net = model()
    optimizer = gradtx.optim.AdamW(net.parameters(), lr=0.1)
    handle = optimizer.release_gradients()
    with pytest.raises(RuntimeError, match="already released"):
        optimizer.release_gradients()
    backward(net, 0)
    optimizer.step()
    handle.remove()
    before = [p.detach().clone() for p in net.parameters()]
    backward(net, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert all(p.grad is not None for p in net.parameters())
    optimizer.step()
    optimizer.release_gradients()
    optimizer.zero_grad()
    backward(net, 2)
    optimizer.step()
    ordinary = model()
    reference = gradtx.optim.AdamW(ordinary.parameters(), lr=0.1)
    for i in range(3):
        backward(ordinary, i)
        reference.step()
        reference.zero_grad()
    assert_same_bits((net, optimizer), (ordinary, reference))


def test_a_second_gradient_without_a_step_is_an_error():
    net = model()
    optimizer = gradtx.optim.AdamW(net.named_parameters())
    optimizer.release_gradients()
    backward(net, 0)
    with pytest.raises(RuntimeError, match=r"parameter '3.bias' has a second gradient, .* accumulate\(tx, every\)"):
        backward(net, 1)


def test_a_parameter_without_a_gradient_is_skipped():
    runs = []
    for released in (False, True):
        net = model()
        optimizer = gradtx.optim.AdamW(net.parameters(), lr=0.1)
        if released:
            optimizer.release_gradients()
        for i in range(3):
            if i == 1:
                net[0](batch(i)).square().mean().backward()
            else:
                backward(net, i)
            optimizer.step()
            optimizer.zero_grad()
        runs.append((net, optimizer))
    assert_same_bits(*runs)


def test_a_closure_ends_the_step():
    net = model()
    optimizer = gradtx.optim.AdamW(net.parameters(), lr=0.1)
    optimizer.release_gradients()
    loss = optimizer.step(functools.partial(backward, net, 0))
    assert loss > 0
    assert all(state["step"] == 1 for state in optimizer.state.values())


def test_extras_and_a_grad_scaler_are_refused():
    net = model(dtype=torch.float32)
    optimizer = gradtx.optim.AdamW(net.parameters(), lr=0.1)
    optimizer.release_gradients()
    with pytest.raises(TypeError, match="step does not accept 'value' while gradients are released"):
        optimizer.step(value=1.0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(net(batch(0, torch.float32)).sum()).backward()
    with pytest.raises(RuntimeError, match="GradScaler cannot be used while gradients are released"):
        scaler.step(optimizer)


def test_weights_to_evaluate_with_are_not_trained():
    net = model()
    optimizer = gradtx.as_optimizer(RELEASABLE["schedule_free"](), net.named_parameters())
    optimizer.release_gradients()
    backward(net, 0)
    optimizer.step()
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\)"):
        backward(net, 1)


def test_later_steps_record_no_program_and_make_no_plan(monkeypatch):
    net = model()
    optimizer = gradtx.optim.AdamW(net.parameters(), lr=0.1)
    optimizer.release_gradients()
    backward(net, 0)
    optimizer.step()
    engine = optimizer._core.back_ends[-1]
    monkeypatch.setattr(engine, "_make_plan", None)
    backward(net, 1)
    optimizer.step()
    assert not engine.failed
    assert {way.way for way in optimizer.explain()} == {"lists"}


# Gradients consumed by a whole step.


@by_day("adamw-False", "muon-True", "soap-False", "accumulate-True")
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", ["adamw", "muon", "soap", "accumulate"])
def test_a_step_that_consumes_gradients_equals_one_that_does_not(name, compile):
    runs = []
    for consumes in (False, True):
        net = model()
        optimizer = gradtx.as_optimizer(RELEASABLE[name](), net.named_parameters(), compile=compile)
        for i in range(4):
            net.zero_grad()
            backward(net, i)
            optimizer.step(consume_gradients=consumes)
            assert all((p.grad is None) == consumes for p in net.parameters())
        runs.append((net, optimizer))
    assert_same_bits(*runs)


@pytest.mark.parametrize("norm", [False, True])
def test_a_gradient_is_freed_as_soon_as_its_chunk_is_through(norm, monkeypatch):
    monkeypatch.setattr(bundle, "CHUNK", 64)
    tx = chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw()) if norm else gradtx.adamw()
    params = [torch.nn.Parameter(torch.ones(n)) for n in (64, 200, 64, 30, 30)]
    optimizer = gradtx.as_optimizer(tx, params)
    for _ in range(2):
        gradients = []
        for param in params:
            param.grad = torch.ones_like(param)
            gradients.append(weakref.ref(param.grad))
        alive = []
        columns = lists.Columns.of

        def watched(chunk, *given, columns=columns, gradients=gradients, alive=alive):
            alive.append(sum(gradient() is not None for gradient in gradients))
            return columns(chunk, *given)

        with mock.patch.object(lists.Columns, "of", watched):
            optimizer.step(consume_gradients=True)
        # With 200 entries there are four chunks.
        assert alive[-7:] == [5, 4, 4, 4, 4, 3, 2]
        assert all(gradient() is None for gradient in gradients)


class FailsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ArithmeticError("not today")


COUNTING_CALLS = {
    "accumulate": lambda: gradtx.accumulate(gradtx.adamw(lr=0.1), every=2),
    "outer": lambda: gradtx.outer(gradtx.adamw(lr=0.1), gradtx.sgd(lr=1.0), every=2),
    "adamw": lambda: gradtx.adamw(lr=0.1),
}


def failing_backward(net):
    """The last layer has its gradients, and the first ones do not."""
    hidden = net[2](net[1](net[0](batch(0))))
    with pytest.raises(ArithmeticError):
        net[3](FailsInBackward.apply(hidden)).square().mean().backward()


@pytest.mark.parametrize("give_up", ["the optimizer's", "the model's"])
@pytest.mark.parametrize("name", COUNTING_CALLS)
def test_a_backward_pass_that_raises_and_is_given_up_is_not_counted_in_silence(name, give_up):
    net = model()
    optimizer = gradtx.as_optimizer(COUNTING_CALLS[name](), net.named_parameters())
    optimizer.release_gradients()
    failing_backward(net)
    (optimizer if give_up == "the optimizer's" else net).zero_grad()
    message = "a second gradient, but was updated" if name == "adamw" else r"raised an error, .* call step\(\)"
    with pytest.raises(RuntimeError, match=message):
        backward(net, 1)


def test_a_backward_pass_that_raises_is_counted_by_step():
    runs = []
    for released in (False, True):
        net = model()
        optimizer = gradtx.as_optimizer(COUNTING_CALLS["accumulate"](), net.named_parameters())
        if released:
            optimizer.release_gradients()
        failing_backward(net)
        for i in range(1, 4):
            optimizer.step()
            optimizer.zero_grad()
            backward(net, i)
        optimizer.step()
        runs.append((net, optimizer))
    assert_same_bits(*runs)


def test_calls_are_counted_by_second_gradients_after_passes_that_end():
    runs = []
    for released in (False, True):
        net = model()
        optimizer = gradtx.as_optimizer(COUNTING_CALLS["accumulate"](), net.named_parameters())
        if released:
            optimizer.release_gradients()
        for i in range(4):
            backward(net, i)
            if not released:
                optimizer.step()
                optimizer.zero_grad()
        if released:
            optimizer.step()
        runs.append((net, optimizer))
    assert_same_bits(*runs)
