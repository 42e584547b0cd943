"""Resuming a run whose learning rate follows a schedule: the schedule that the code gives applies."""

import copy
import warnings

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

import gradtx
from tests.optim.problems import assert_equal, descend, made, parameters, saved_and_loaded

BEFORE, AFTER = 4, 3
SHORT = gradtx.cosine_schedule(0.1, T_max=8)


def resumed(saved, tx):
    """An optimizer of `tx` that continues from a state dict, the rates of its next steps, and what loading warned."""
    optimizer, params = made(tx)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.load_state_dict(copy.deepcopy(saved))
    rates = []
    for t in range(AFTER):
        rates.append(optimizer.param_groups[0]["lr"])
        descend(optimizer, params, 1, start=BEFORE + t)
    return optimizer, rates, [str(warning.message) for warning in caught]


def saved_after(tx, write=lambda optimizer: None):
    optimizer, params = made(tx)
    descend(optimizer, params, BEFORE)
    write(optimizer)
    return optimizer.state_dict()


def values_of(schedule):
    return [float(schedule(BEFORE + t)) for t in range(AFTER)]


@pytest.mark.parametrize(
    "schedule",
    [
        SHORT,
        gradtx.cosine_schedule(0.1, T_max=80),
        gradtx.cosine_schedule(0.3, T_max=8),
        gradtx.warmup_cosine_schedule(20, max_lr=0.2, warmup_steps=6),
    ],
    ids=["the same", "a longer run", "another peak", "another kind"],
)
@pytest.mark.parametrize("make", [gradtx.adamw, gradtx.sgd])
def test_the_schedule_that_the_code_gives_applies_in_silence(make, schedule):
    _, rates, messages = resumed(saved_after(make(lr=SHORT)), make(lr=schedule))
    assert rates == pytest.approx(values_of(schedule), rel=1e-12)
    assert messages == []


@pytest.mark.parametrize("source", ["gradtx", "torch"])
def test_a_number_that_became_a_schedule_follows_it_and_one_warning_shows_the_line_that_restores_the_number(source):
    if source == "gradtx":
        saved = saved_after(gradtx.adamw(lr=0.01))
    else:
        params = parameters()
        theirs = torch.optim.AdamW(params.values(), lr=0.01)
        descend(theirs, params, BEFORE)
        saved = theirs.state_dict()
    optimizer, rates, (message,) = resumed(saved, gradtx.adamw(lr=SHORT))
    assert rates == pytest.approx(values_of(SHORT), rel=1e-12)
    assert "lr follows cosine_schedule" in message
    line = message[message.index("optimizer.param_groups") :]
    exec(line, {"optimizer": optimizer})
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_a_schedule_that_became_a_number_keeps_the_saved_number_as_in_torch():
    saved = saved_after(gradtx.adamw(lr=SHORT))
    _, rates, messages = resumed(saved, gradtx.adamw(lr=0.5))
    assert rates == [pytest.approx(float(SHORT(BEFORE)))] * AFTER
    assert messages == []


@pytest.mark.parametrize("when", ["before the last step", "after it"])
def test_a_number_written_over_a_schedule_stays_in_effect(when):
    def write(optimizer):
        optimizer.param_groups[0]["lr"] = 0.7

    tx = gradtx.adamw(lr=SHORT)
    if when == "after it":
        saved = saved_after(tx, write)
    else:
        optimizer, params = made(tx)
        write(optimizer)
        descend(optimizer, params, BEFORE)
        saved = optimizer.state_dict()
    _, rates, messages = resumed(saved, tx)
    assert rates == [0.7] * AFTER
    assert messages == []


def test_a_schedule_of_one_beta_applies_beside_the_other_beta():
    def betas(last):
        return gradtx.adamw(betas=(gradtx.linear_schedule(0.5, last), 0.99))

    optimizer, _, messages = resumed(saved_after(betas(0.9)), betas(0.95))
    assert messages == []
    assert optimizer.param_groups[0]["betas"][0] == pytest.approx(gradtx.linear_schedule(0.5, 0.95)(BEFORE + AFTER))


def test_a_distributed_checkpoint_follows_the_schedule_of_the_code():
    model = torch.nn.Linear(3, 2)
    optimizer = gradtx.optim.AdamW(model.named_parameters(), lr=SHORT)
    for _ in range(BEFORE):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    saved = get_optimizer_state_dict(model, optimizer)
    longer = gradtx.cosine_schedule(0.1, T_max=80)
    again = gradtx.optim.AdamW(model.named_parameters(), lr=longer)
    set_optimizer_state_dict(model, again, saved)
    assert again.param_groups[0]["lr"] == pytest.approx(float(longer(BEFORE)))


class TwoHeads(torch.nn.Module):
    """Two parameters, of which a step may give one or both a gradient."""

    def __init__(self):
        super().__init__()
        self.one, self.other = (torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
def test_a_distributed_checkpoint_keeps_the_updates_that_the_schedule_has_counted(flat, tmp_path):
    halving = gradtx.Schedule(lambda step: 0.5**step)
    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    def built():
        model = TwoHeads()
        return model, gradtx.as_optimizer(gradtx.sgd(lr=halving), model.named_parameters())

    def moved(model, optimizer, names):
        """How far each call moves the parameters that have a gradient."""
        rates = []
        for name in names:
            optimizer.zero_grad()
            param = getattr(model, name)
            before, param.grad = param.item(), torch.ones_like(param)
            optimizer.step()
            rates.append(before - param.item())
        return rates

    model, optimizer = built()
    assert moved(model, optimizer, ["one", "other", "one"]) == [1.0, 0.5, 0.25]
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    checkpoint.save(saved, checkpoint_id=tmp_path, no_dist=True)
    model, optimizer = built()
    template = get_optimizer_state_dict(model, optimizer, options=options)
    checkpoint.load(template, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(model, optimizer, template, options=options)
    assert moved(model, optimizer, ["other", "one"]) == [0.125, 0.0625]


def test_a_schedule_of_an_inner_clock_applies_at_the_saved_count_of_that_clock():
    def tx(rate):
        return gradtx.accumulate(gradtx.sgd(lr=rate), every=2)

    longer = gradtx.cosine_schedule(0.1, T_max=80)
    optimizer, _ = made(tx(longer))
    optimizer.load_state_dict(saved_after(tx(SHORT)))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(float(longer(BEFORE // 2)))


# Tuples, of which each item is a number, a tensor or a schedule.


def falling(start):
    return gradtx.Schedule(lambda t: start - 0.05 * t)


ITEMS = {
    "number": lambda start: start,
    "float32 tensor": torch.tensor,
    "float64 tensor": lambda start: torch.tensor(start, dtype=torch.float64),
    "schedule": falling,
}
PAIRS = [(one, other) for one in ITEMS for other in ITEMS if "schedule" in (one, other)]


def with_betas(kinds, second=0.9):
    return gradtx.adamw(lr=0.01, betas=(ITEMS[kinds[0]](0.8), ITEMS[kinds[1]](second)))


@pytest.mark.parametrize("kinds", PAIRS, ids=" and ".join)
def test_a_schedule_beside_any_item_of_a_tuple_goes_on_after_a_resume(kinds):
    optimizer, params = made(with_betas(kinds))
    descend(optimizer, params, BEFORE)
    saved = saved_and_loaded(optimizer.state_dict())
    weights = {name: torch.nn.Parameter(param.detach().clone()) for name, param in params.items()}
    again, _ = made(with_betas(kinds), weights)
    again.load_state_dict(saved)
    for one, values in ((optimizer, params), (again, weights)):
        descend(one, values, AFTER, start=BEFORE)
    assert_equal(list(weights.values()), list(params.values()))
    ours, theirs = again.param_groups[0]["betas"], optimizer.param_groups[0]["betas"]
    assert ours == theirs
    at = [float(falling(start)(BEFORE + AFTER)) for start in (0.8, 0.9)]
    assert [value for value, kind in zip(ours, kinds, strict=True) if kind == "schedule"] == pytest.approx(
        [value for value, kind in zip(at, kinds, strict=True) if kind == "schedule"]
    )


@pytest.mark.parametrize("kind", ["number", "float32 tensor", "float64 tensor"])
def test_beside_a_schedule_the_number_of_the_checkpoint_applies_as_everywhere(kind):
    kinds = ("schedule", kind)
    saved = saved_after(with_betas(kinds, second=0.75))  # which float32 holds exactly
    optimizer, _, messages = resumed(saved, with_betas(kinds, second=0.5))
    assert messages == []
    assert optimizer.param_groups[0]["betas"] == pytest.approx((0.8 - 0.05 * (BEFORE + AFTER), 0.75))


def test_a_tuple_written_over_a_schedule_stays_in_effect():
    def write(optimizer):
        optimizer.param_groups[0]["betas"] = (0.3, 0.6)

    saved = saved_after(with_betas(("schedule", "float32 tensor")), write)
    optimizer, _, messages = resumed(saved, with_betas(("schedule", "float32 tensor")))
    assert optimizer.param_groups[0]["betas"] == (0.3, 0.6)
    assert messages == []


def test_a_number_of_the_checkpoint_beside_a_schedule_is_checked():
    saved = saved_after(with_betas(("schedule", "number")))
    saved["param_groups"][0]["betas"] = (0.5, 1.5)
    optimizer, _ = made(with_betas(("schedule", "number")))
    with pytest.raises(ValueError, match=r"betas\[1\] must be in \[0, 1\), got 1.5"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
