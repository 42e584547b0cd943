"""The library's schedules in an optimizer: shown in advance, overridden by written values, and on their own clock."""

import contextlib
import warnings

import pytest
import torch

import gradtx
from tests.optim.problems import assert_close, descend, functional, made, parameters, saved_and_loaded, twins

SCHEDULE = gradtx.Schedule(lambda step: 0.5 ** (step + 1))  # exact even where torch computes it in float32
TOLERANCE = 1e-12  # the same float64 sums in a different order


def lr_at_each_step(optimizer, params, steps):
    shown = []
    for t in range(steps):
        shown.append(optimizer.param_groups[0]["lr"])
        descend(optimizer, params, 1, start=t)
    return shown


def test_a_group_shows_the_value_that_the_next_step_will_use():
    optimizer, params = made(gradtx.sgd(lr=SCHEDULE))
    assert lr_at_each_step(optimizer, params, 3) == [SCHEDULE(0), SCHEDULE(1), SCHEDULE(2)]
    expected, _ = functional(gradtx.sgd(lr=SCHEDULE), parameters(), 3)
    assert_close(params.values(), expected.values(), TOLERANCE)


def test_a_schedule_inside_a_tuple_is_shown_there():
    beta = gradtx.linear_schedule(0.9, start_factor=0.5, total_iters=4)
    optimizer, params = made(gradtx.adam(betas=(beta, 0.99)))
    descend(optimizer, params, 2)
    assert optimizer.param_groups[0]["betas"] == (beta(2), 0.99)


def test_schedules_follow_the_largest_step_of_the_parameters():
    optimizer, params = made(gradtx.sgd(lr=SCHEDULE))
    descend(optimizer, params, 3, skip=lambda name, t: name != "body.bias")
    before = params["head.scale"].detach().clone()
    descend(optimizer, params, 1, start=3)
    moved = params["head.scale"].detach() - before
    assert_close([moved], [-SCHEDULE(3) * params["head.scale"].grad], TOLERANCE)


def test_another_value_written_over_a_schedule_is_a_lasting_override():
    optimizer, params = made(gradtx.sgd(lr=SCHEDULE))
    descend(optimizer, params, 2)
    optimizer.param_groups[0]["lr"] = 0.7
    assert lr_at_each_step(optimizer, params, 3) == [0.7, 0.7, 0.7]


@pytest.mark.parametrize("earlier", [0.3, SCHEDULE], ids=["number", "schedule"])
def test_a_schedule_written_into_a_group_is_followed_from_the_next_step(earlier):
    rising = gradtx.linear_schedule(0.9, start_factor=0.2, total_iters=6)
    optimizer, params = made(gradtx.sgd(lr=earlier))
    descend(optimizer, params, 2)
    optimizer.param_groups[0]["lr"] = rising
    descend(optimizer, params, 1, start=2)
    assert optimizer.state_dict()["param_groups"][0]["lr"] == rising(3)
    before = params["head.scale"].detach().clone()
    descend(optimizer, params, 1, start=3)
    assert_close([params["head.scale"].detach() - before], [-rising(3) * params["head.scale"].grad], TOLERANCE)


def test_an_override_concerns_its_own_group():
    params = list(parameters().items())
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=SCHEDULE), [{"params": params[:2]}, {"params": params[2:]}])
    optimizer.param_groups[1]["lr"] = 0.7
    descend(optimizer, dict(params), 2)
    assert [group["lr"] for group in optimizer.param_groups] == [SCHEDULE(2), 0.7]


def test_the_shown_value_written_back_is_no_override():
    optimizer, params = made(gradtx.sgd(lr=SCHEDULE))
    for group in optimizer.param_groups:
        group["lr"] = float(group["lr"])
    assert lr_at_each_step(optimizer, params, 3) == [SCHEDULE(0), SCHEDULE(1), SCHEDULE(2)]


def test_a_group_may_have_a_schedule_of_its_own():
    params = list(parameters().items())
    halved = gradtx.Schedule(lambda step: 0.25**step)
    optimizer = gradtx.as_optimizer(
        gradtx.sgd(lr=SCHEDULE), [{"params": params[:2]}, {"params": params[2:], "lr": halved}]
    )
    descend(optimizer, dict(params), 2)
    assert [group["lr"] for group in optimizer.param_groups] == [SCHEDULE(2), 0.0625]


@pytest.mark.parametrize("steps", [4, 5, 6])
def test_a_schedule_inside_accumulate_follows_its_clock(steps):
    tx = gradtx.accumulate(gradtx.sgd(lr=SCHEDULE), every=3)
    optimizer, params = made(tx)
    shown = lr_at_each_step(optimizer, params, steps)
    assert shown == [SCHEDULE(t // 3) for t in range(steps)]
    expected, _ = functional(tx, parameters(), steps)
    assert_close(params.values(), expected.values(), TOLERANCE)


def test_a_loaded_value_equal_to_the_schedule_at_the_loaded_count_is_no_override():
    optimizer, params = made(gradtx.adamw(lr=SCHEDULE))
    descend(optimizer, params, 3)
    again, own = made(gradtx.adamw(lr=SCHEDULE))
    again.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert lr_at_each_step(again, own, 3) == [SCHEDULE(3), SCHEDULE(4), SCHEDULE(5)]


def test_a_hyperparameter_that_the_checkpoint_lacks_keeps_its_schedule():
    optimizer, params = made(gradtx.sgd(lr=SCHEDULE))
    descend(optimizer, params, 2)
    saved = saved_and_loaded(optimizer.state_dict())
    del saved["param_groups"][0]["lr"]
    again, own = made(gradtx.sgd(lr=SCHEDULE))
    again.load_state_dict(saved)
    assert lr_at_each_step(again, own, 2) == [SCHEDULE(2), SCHEDULE(3)]


def test_a_group_of_a_schedule_is_saved_as_plain_numbers():
    optimizer, params = made(gradtx.adamw(lr=gradtx.cosine_schedule(0.1, T_max=9)))
    descend(optimizer, params, 2)
    assert type(optimizer.state_dict()["param_groups"][0]["lr"]) is float


def test_a_schedule_of_a_plain_function_is_as_exact_as_under_a_scheduler_of_torch():
    def rate(step):
        return 0.1 / (step + 1)

    optimizer, params = made(gradtx.sgd(lr=gradtx.Schedule(rate)))
    other = twins(params)
    reference = torch.optim.SGD(other.values(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(reference, rate)
    descend(optimizer, params, 5)
    descend(reference, other, 5, after=scheduler.step)
    assert_close(params.values(), other.values(), TOLERANCE)


# One count for schedules: the updates in which any parameter had a gradient.

HALVING = gradtx.Schedule(lambda step: 0.5**step)
ALTERNATING = [("a",), ("b",), ("a",), ("a", "b"), (), ("b",), ("a", "b"), ("a", "b"), ("b",), ("b",), ("a",)]
RATES = [0.5**t for t in range(10)]
DO_NOTHING = {
    "alone": lambda tx: tx,
    "skip_nonfinite": gradtx.skip_nonfinite,
    "accumulate": lambda tx: gradtx.accumulate(tx, 1),
    "apply_if": lambda tx: gradtx.apply_if(tx, lambda step: step >= 0),
    "masked": lambda tx: gradtx.masked(tx, "*"),
    "chain": lambda tx: gradtx.chain(gradtx.scale(1.0), tx),
}
MODES = {
    "lists": {},
    "line by line": {},
    "released": {},
    "consuming": {},
    "compiled": {"compile": True},
    "capturable": {"capturable": True},
    "scaled": {"amp_scaling": True},
}
AS_ITSELF = {"capturable": ("alone", "masked", "chain"), "released": ("alone", "masked", "chain")}


def alternating(mode="lists", wrapper="alone", **options):
    tx = gradtx.chain(DO_NOTHING[wrapper](gradtx.sgd(lr=HALVING)), gradtx.freeze("frozen"))
    params = {name: torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)) for name in ("a", "b", "frozen")}
    optimizer = gradtx.as_optimizer(tx, list(params.items()), **MODES[mode], **options)
    if mode == "released":
        optimizer.release_gradients()
    return optimizer, params


def rates_of(optimizer, params, calls, mode="lists"):
    """How far the parameters with a gradient move in each call in which a trainable one has one."""
    rates = []
    for names in calls:
        before = {name: param.item() for name, param in params.items()}
        if mode == "released" and names:
            sum(params[name] for name in names).sum().backward()
        elif mode != "released":
            for name, param in params.items():
                param.grad = torch.ones_like(param) if name in names else None
        if mode == "scaled":
            optimizer.found_inf, optimizer.grad_scale = torch.zeros(()), torch.ones(())
        with gradtx.eagerly() if mode == "line by line" else contextlib.nullcontext():
            optimizer.step(consume_gradients=mode == "consuming")
        moved = {before[name] - params[name].item() for name in names if name != "frozen"}
        assert len(moved) <= 1
        rates.extend(moved)
    return rates


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wrapper", DO_NOTHING)
def test_a_schedule_follows_the_updates_in_which_any_parameter_had_a_gradient(wrapper, mode):
    if wrapper not in AS_ITSELF.get(mode, DO_NOTHING):
        pytest.skip("refused")
    optimizer, params = alternating(mode, wrapper)
    calls = [(), *ALTERNATING[:3], ("frozen",), *ALTERNATING[3:]]
    assert rates_of(optimizer, params, calls, mode) == RATES
    if wrapper == "alone" and mode != "scaled":
        assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.5**10


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("at", range(1, len(ALTERNATING)))
def test_a_resumed_run_goes_on_at_the_update_at_which_it_was_saved(at, mode):
    optimizer, params = alternating(mode)
    rates = rates_of(optimizer, params, ALTERNATING[:at], mode)
    saved = saved_and_loaded(optimizer.state_dict())
    again, params = alternating(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load_state_dict(saved)
    assert rates + rates_of(again, params, ALTERNATING[at:], mode) == RATES


@pytest.mark.parametrize("mode", ["lists", "compiled", "capturable", "scaled"])
def test_states_have_no_further_key_where_one_parameter_has_a_gradient_in_every_update(mode):
    optimizer, params = alternating(mode)
    rates_of(optimizer, params, [("a", "b"), ("a", "b", "frozen"), ("a", "b")], mode)
    if mode != "capturable":  # whose graphs may repeat steps in any order
        rates_of(optimizer, params, [("a",), ("a", "b")], mode)
    assert {key for entry in optimizer.state_dict()["state"].values() for key in entry} == {"step"}


def test_counts_that_a_user_writes_move_the_schedule_by_as_much():
    optimizer, params = alternating()
    assert rates_of(optimizer, params, [("a",), ("b",), ("a", "b"), ("a", "b")]) == [1.0, 0.5, 0.25, 0.125]
    for param in (params["a"], params["b"]):
        optimizer.state[param]["step"].data.fill_(5)
    assert rates_of(optimizer, params, [("a", "b"), ("a", "b")]) == [0.5**6, 0.5**7]
    optimizer.state[params["a"]]["missed_updates"].data.fill_(0)
    assert rates_of(optimizer, params, [("a", "b"), ("a", "b")]) == [0.5**7, 0.5**8]
    optimizer.state[params["a"]]["missed_updates"] = torch.tensor(2)
    assert rates_of(optimizer, params, [("a", "b"), ("a", "b")]) == [0.5**11, 0.5**12]
    for param in (params["a"], params["b"]):
        del optimizer.state[param]["missed_updates"]
    assert rates_of(optimizer, params, [("a", "b"), ("a",)]) == [0.5**11, 0.5**12]
    optimizer.state.clear()
    assert rates_of(optimizer, params, [("a", "b"), ("a", "b")]) == [1.0, 0.5]


def test_torchs_classes_carry_the_missed_updates_along():
    optimizer, params = alternating()
    rates_of(optimizer, params, ALTERNATING[:3])
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1)) for _ in params], lr=0.1)
    reference.load_state_dict(optimizer.state_dict())
    again, params = alternating()
    again.load_state_dict(reference.state_dict())
    assert rates_of(again, params, ALTERNATING[3:]) == RATES[3:]
