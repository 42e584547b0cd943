"""Writes that torch counts no version for: each step reads what a state and a group have, as torch does."""

import contextlib
import ctypes

import numpy as np
import pytest
import torch

import gradtx
from gradtx.optim import step as stepping

MODES = {
    "lists": {},
    "compiled": {"compile": True},
    "capturable": {"capturable": True},
    "amp_scaling": {"amp_scaling": True},
    "leaf by leaf": {},
}
TOLERANCE = 1e-12  # the same float64 sums in a different order


def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64)) for _ in range(3)]


def gradients(steps):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(steps, 3, 4, 3, generator=generator, dtype=torch.float64)


def way_of(mode):
    return gradtx.eagerly() if mode == "leaf by leaf" else contextlib.nullcontext()


def take(optimizer, params, of_step, skipped=()):
    for i, (param, gradient) in enumerate(zip(params, of_step, strict=True)):
        param.grad = None if i in skipped else gradient.clone()
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf, optimizer.grad_scale = torch.zeros(()), torch.ones(())
    optimizer.step()


# Counts.


def through_data(step):
    step.data.fill_(7.0)


def through_numpy(step):
    step.detach().numpy()[...] = 7.0


def through_its_address(step):
    """As another process does that shares the memory."""
    ctypes.c_float.from_address(step.data_ptr()).value = 7.0


WRITES = (through_data, through_numpy, through_its_address)


@pytest.mark.parametrize("of_all", [True, False], ids=["all", "one"])
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("mode", MODES)
def test_a_count_that_was_written_without_a_version_counts_as_in_torch(mode, write, of_all):
    found = []
    for module, options in ((torch.optim, {}), (gradtx.optim, MODES[mode])):
        params = parameters()
        optimizer = module.AdamW(params, lr=0.1, **options)
        with way_of(mode) if module is gradtx.optim else contextlib.nullcontext():
            for t, of_step in enumerate(gradients(6)):
                if t == 3:
                    for param in params if of_all else params[:1]:
                        write(optimizer.state[param]["step"])
                take(optimizer, params, of_step)
        counts = [optimizer.state[param]["step"].item() for param in params]
        found.append(([param.detach() for param in params], counts))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=TOLERANCE, atol=TOLERANCE)
    assert found[1][1] == found[0][1]


@pytest.mark.parametrize("options", [{}, {"compile": True}], ids=["lists", "compiled"])
def test_an_interrupt_between_a_step_and_its_counting_counts_nothing_twice(options, monkeypatch):
    """Ctrl-C raises between any two lines of Python."""
    params = parameters()
    optimizer = gradtx.optim.AdamW(params, lr=0.1, **options)
    all_gradients = gradients(6)
    for of_step in all_gradients[:3]:
        take(optimizer, params, of_step)

    def interrupted(targets):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stepping._torch, "count_up_", interrupted)
        with pytest.raises(KeyboardInterrupt):
            take(optimizer, params, all_gradients[3])
    assert [optimizer.state[param]["step"].item() for param in params] == [3.0] * 3
    # What a new optimizer does with this state.
    others = [torch.nn.Parameter(param.detach().clone()) for param in params]
    other = gradtx.optim.AdamW(others, lr=0.1, **options)
    other.load_state_dict(optimizer.state_dict())
    for of_step in all_gradients[4:]:
        take(optimizer, params, of_step)
        take(other, others, of_step)
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in others], rtol=0, atol=0)


# Slots.


@pytest.mark.parametrize("options", [{}, {"compile": True}], ids=["lists", "compiled"])
def test_slots_that_were_written_before_the_first_gradient_are_kept(options):
    """`state_dict()` creates slots; `.data` and collectives write them without a version."""
    params = parameters()
    optimizer = gradtx.optim.AdamW(params, lr=0.1, **options)
    theirs = [torch.nn.Parameter(param.detach().clone()) for param in params]
    reference = torch.optim.AdamW(theirs, lr=0.1)
    of_steps = gradients(4)
    for of_step in of_steps[:2]:
        take(reference, theirs, of_step)
    optimizer._core.states.begin()  # as torch.distributed.checkpoint has it do
    for ours, other in zip(params, theirs, strict=True):
        ours.data.copy_(other.data)
        for key, value in reference.state[other].items():
            optimizer.state[ours][key].data.copy_(value)
    assert optimizer.state_dict()["state"][0]["exp_avg"].equal(reference.state[theirs[0]]["exp_avg"])
    for of_step in of_steps[2:]:
        take(optimizer, params, of_step)
        take(reference, theirs, of_step)
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in theirs], rtol=1e-12, atol=1e-12)


def test_slots_that_nothing_has_written_begin_with_the_weights_of_the_first_step():
    params = parameters()
    optimizer = gradtx.as_optimizer(gradtx.chain(gradtx.sgd(lr=0.1), gradtx.lookahead(k=2)), params)
    optimizer._core.states.begin()
    for param in params:
        param.data.add_(1.0)  # weights that are loaded in between
    take(optimizer, params, torch.zeros(3, 4, 3, dtype=torch.float64))
    for param in params:
        assert optimizer.state[param]["slow"].equal(param.detach())


# Parameters.

SHARING = {
    "prodigy": gradtx.prodigy(lr=1.0),
    "d-adaptation": gradtx.dadapt_adam(lr=1.0),
    "apply_if": gradtx.apply_if(gradtx.adamw(lr=0.1), lambda step: step % 3 > 0),
}


@pytest.mark.parametrize("mode", ["lists", "compiled", "leaf by leaf"])
@pytest.mark.parametrize("chain", SHARING)
def test_a_parameter_in_the_place_of_another_one_takes_no_shared_value_back(chain, mode):
    """It has no gradient in the steps after the exchange, in which others write the value that all share."""
    found = []
    for exchanges in (False, True):
        params = parameters()
        optimizer = gradtx.as_optimizer(SHARING[chain], params, **MODES[mode])
        with way_of(mode):
            for t, of_step in enumerate(gradients(8) + 5.0):  # of one sign, so that distances grow
                if exchanges and t == 3:
                    new = torch.nn.Parameter(params[0].detach().clone())
                    optimizer.param_groups[0]["params"][0] = new
                    optimizer.state[new] = optimizer.state.pop(params[0])
                    params[0] = new
                take(optimizer, params, of_step, skipped=(0,) if t in (3, 4) else ())
        found.append([param.detach() for param in params])
    torch.testing.assert_close(found[1], found[0], rtol=TOLERANCE, atol=TOLERANCE)


# Groups.


@pytest.mark.parametrize("options", [{}, {"compile": True}], ids=["lists", "compiled"])
def test_a_rate_in_an_array_that_is_edited_in_place_is_obeyed_as_in_torch(options):
    found = []
    for module in (torch.optim, gradtx.optim):
        params, rate = parameters(), np.array(0.1)
        own = options if module is gradtx.optim else {}
        optimizer = module.AdamW([{"params": params, "lr": rate}], **own)
        for t, of_step in enumerate(gradients(6)):
            if t == 3:
                rate[...] = 0.5
            take(optimizer, params, of_step)
        found.append([param.detach() for param in params])
    torch.testing.assert_close(found[1], found[0], rtol=TOLERANCE, atol=TOLERANCE)
    saved = optimizer.state_dict()["param_groups"][0]["lr"]
    assert (type(saved), saved) == (float, 0.5)


@pytest.mark.parametrize("betas", [np.array([0.9, 0.99]), (np.array(0.9), np.array(0.99))], ids=["array", "tuple"])
def test_betas_in_arrays_that_are_edited_in_place_are_obeyed(betas):
    params, others = parameters(), parameters()
    optimizer = gradtx.optim.AdamW([{"params": params, "betas": betas}], lr=0.1)
    reference = torch.optim.AdamW(others, betas=(0.9, 0.99), lr=0.1)
    for t, of_step in enumerate(gradients(6)):
        if t == 3:
            first = betas[:1] if isinstance(betas, np.ndarray) else betas[0]
            first[...] = 0.5
            reference.param_groups[0]["betas"] = (0.5, 0.99)
        take(optimizer, params, of_step)
        take(reference, others, of_step)
    expected = [param.detach() for param in others]
    torch.testing.assert_close([param.detach() for param in params], expected, rtol=TOLERANCE, atol=TOLERANCE)
