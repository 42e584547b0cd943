"""Resuming a run whose learning rate follows a schedule: the schedule that the code gives applies."""

import copy
import warnings

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import gradtx
from tests.optim.problems import descend, made, parameters

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


def test_a_schedule_of_an_inner_clock_applies_at_the_saved_count_of_that_clock():
    def tx(rate):
        return gradtx.accumulate(gradtx.sgd(lr=rate), every=2)

    longer = gradtx.cosine_schedule(0.1, T_max=80)
    optimizer, _ = made(tx(longer))
    optimizer.load_state_dict(saved_after(tx(SHORT)))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(float(longer(BEFORE // 2)))
