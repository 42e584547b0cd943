"""Chains of every kind on an asynchronous device: the host neither sends data to it nor waits for it.

The device is the pretended GPU of tests/gpu, or a real one with GRADTX_GPU=cuda.
"""

import pytest
import torch

import gradtx
from tests.gpu.conftest import gpu  # noqa: F401
from tests.optim.chains import CHAINS, ON_HOST
from tests.optim.problems import assert_close, assert_equal, parameters, values
from tests.tiers import by_day

# To show the value of a schedule on a wrapper's clock in the group, the optimizer reads that clock.
READ = {"accumulate", "accumulate a partition", "skip", "skip an accumulation", "accumulate around skip"}
QUIET = {
    **{name: tx for name, tx in CHAINS.items() if name not in READ},
    "accumulate": gradtx.accumulate(gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw()), every=3),
    "skip": gradtx.skip_nonfinite(gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw())),
}
REPEATABLE = [name for name in CHAINS if name not in ON_HOST]
SCALED = [name for name in QUIET if name not in ON_HOST]


@pytest.fixture
def moved(gpu):  # noqa: F811
    """Creates an optimizer of a chain, and its parameters, on the device."""

    def made(tx, dtype=torch.float64, **options):
        params = {name: torch.nn.Parameter(gpu.to(p.detach())) for name, p in parameters(dtype).items()}
        return gradtx.as_optimizer(tx, list(params.items()), **options), params

    return made


def give_gradients(params, value=1.0):
    for param in params.values():
        if param.grad is None:
            param.grad = torch.empty_like(param)
        param.grad.fill_(value)


@by_day(
    "design", "partition", "masked by predicate", "masked accumulation", "record", "plain functions", "random",
    "map after step", "adopt", "regenerate", "prodigy", "accumulate", "identity", "nested partition", "freeze",
    "skip around a masked accumulation", "whole tree", "two sums", "average", "twice", "schedule free", "skip",
)  # fmt: skip
@pytest.mark.parametrize("name", QUIET)
def test_a_step_waits_for_nothing(name, moved, gpu):  # noqa: F811
    optimizer, params = moved(QUIET[name])
    give_gradients(params)
    optimizer.step()  # creates state, possibly from numbers
    for _ in range(3):
        with gpu.counting() as seen:
            optimizer.step()
        assert not seen.waits


@by_day("design", "partition", "two sums", "average", "prodigy", "accumulate", "record", "masked accumulation")
@pytest.mark.parametrize("name", SCALED)
def test_a_step_under_a_grad_scaler_waits_for_nothing(name, moved, gpu):  # noqa: F811
    """The scaler's flag also determines counts, so these are on the device from the first such step on."""
    optimizer, params = moved(QUIET[name])
    for bad in (0.0, 0.0, 1.0, 0.0):
        give_gradients(params)
        optimizer.grad_scale, optimizer.found_inf = gpu.to([torch.full((), 4.0), torch.full((), bad)])
        with gpu.counting() as seen:
            optimizer.step()
        assert {optimizer.state[param]["step"].device.type for param in params.values()} == {gpu.name}
    assert not seen.waits
    assert max(optimizer.state[param]["step"].item() for param in params.values()) == 3.0


@by_day("design", "nested partition", "schedule free", "adopt", "regenerate", "whole tree")
@pytest.mark.parametrize("name", CHAINS)
def test_steps_equal_those_on_the_cpu(name, moved):
    optimizer, params = moved(CHAINS[name])
    twins = parameters()
    reference = gradtx.as_optimizer(CHAINS[name], list(twins.items()))
    for t in range(4):
        for param, twin in zip(params.values(), twins.values(), strict=True):
            twin.grad = torch.full_like(twin, 0.1 * (t + 1)) + 0.1 * twin.detach()
            param.grad = twin.grad.to(param.device)
        optimizer.step()
        reference.step()
    # Elementary functions on the two devices differ in the last bit.
    assert_close([param.detach().cpu() for param in params.values()], twins.values(), 1e-10)


@by_day("False-design", "False-two sums", "False-accumulate", "False-partition", "False-average")
@pytest.mark.parametrize("name", REPEATABLE)
@pytest.mark.parametrize("compile", [False, True])
def test_a_graph_repeats_a_step(name, compile, moved, gpu):  # noqa: F811
    if compile and not gpu.is_real:
        pytest.skip("torch compiles for no pretended GPU")
    (captured, params), (twin, twins) = (moved(CHAINS[name], compile=compile, capturable=True) for _ in range(2))
    for _ in range(2):
        give_gradients(params)
        captured.step()
    for t in range(3):
        give_gradients(params, 1.0 - t)
        with gpu.capturing():
            captured.step()
    for t in (-1, -1, 0, 1, 2):
        give_gradients(twins, 1.0 if t < 0 else 1.0 - t)
        twin.step()
    assert_close([p.detach().cpu() for p in params.values()], [p.detach().cpu() for p in twins.values()], 1e-12)


def test_a_capture_without_capturable_is_refused(moved, gpu):  # noqa: F811
    optimizer, params = moved(gradtx.adamw())
    give_gradients(params)
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"pass capturable=True"), gpu.capturing():
        optimizer.step()


def test_a_grad_scaler_skips_steps_with_infinite_gradients(moved, gpu):  # noqa: F811
    if not gpu.is_real:
        pytest.skip("torch has a GradScaler for no pretended GPU")
    optimizer, params = moved(gradtx.adamw(), torch.float32)
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0)
    for bad in (False, True, False):
        before = values(params)
        optimizer.zero_grad()
        loss = sum(param.square().sum() for param in params.values())
        scaler.scale(loss * float("inf") if bad else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if bad:
            assert_equal(values(params), before)
    assert {optimizer.state[param]["step"].item() for param in params.values()} == {2.0}
