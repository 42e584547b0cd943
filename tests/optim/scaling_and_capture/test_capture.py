"""Steps captured by a CUDA graph, `capturable=True`. On the CPU, a tape replays a step as a graph would."""

import contextlib
import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gradtx
from gradtx.base import torch_names
from gradtx.optim.run import DeviceCount
from tests.optim.chains import CHAINS, ON_HOST
from tests.optim.problems import assert_close, assert_equal, parameters, values
from tests.optim.tape import Tape

REPEATABLE = {name: tx for name, tx in CHAINS.items() if name not in ON_HOST}


class NoCountIsRead(TorchDispatchMode):
    """Raises an error if the host reads an integer."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            assert args[0].dtype != torch.int64
        return func(*args, **(kwargs or {}))


@pytest.fixture
def device_counts(monkeypatch):
    """Make the CPU's counts behave like those of a device, which the host does not read."""
    monkeypatch.setattr(DeviceCount, "most", property(lambda count: count.bound))


def pair(tx):
    """Return an optimizer to capture and its twin, with their parameters."""
    made = []
    for _ in range(2):
        params = parameters()
        made.append((gradtx.optim.ChainOptimizer(tx, list(params.items()), capturable=True), params))
    return made


def give_gradients(params, t):
    for i, param in enumerate(params.values()):
        places = torch.arange(param.numel(), dtype=param.dtype).reshape(param.shape)
        gradient = torch.sin((i + 1.0) * places + t)
        if param.grad is None:
            param.grad = gradient
        else:
            param.grad.copy_(gradient)


def repeat(captured, params, twin, expected, steps):
    """Record a step after three others and replay it, while the twin takes ordinary steps."""
    for t in range(steps):
        give_gradients(params, t)
        give_gradients(expected, t)
        if t < 3:
            twin.step()
            captured.step()
            continue
        with gradtx.eagerly():  # as under a tape
            twin.step()
        if t == 3:
            with Tape() as tape:
                captured.step()
        else:
            tape.replay()


def assert_repeats(tx):
    (captured, params), (twin, expected) = pair(tx)
    repeat(captured, params, twin, expected, 9)
    for t in range(9, 12):
        give_gradients(params, t)
        give_gradients(expected, t)
        twin.step()
        captured.step()
    assert_equal(values(params), values(expected))
    for param, other in zip(params.values(), expected.values(), strict=True):
        assert_equal(dict(captured.state[param]), dict(twin.state[other]))


@pytest.mark.parametrize("name", REPEATABLE)
def test_a_captured_step_may_be_repeated(name, device_counts):
    assert_repeats(REPEATABLE[name])


def test_a_schedule_in_the_chain_goes_on_while_a_graph_is_repeated(device_counts):
    schedule = gradtx.warmup_cosine_schedule(t_max=11, max_lr=1e-2, warmup_steps=3)
    assert_repeats(gradtx.adamw(lr=schedule))
    assert_repeats(gradtx.accumulate(gradtx.adamw(lr=schedule), every=2))


def test_the_clock_of_a_wrapper_is_not_read(device_counts):
    schedule = gradtx.exponential_schedule(1e-2, gamma=0.5)
    (optimizer, params), _ = pair(gradtx.accumulate(gradtx.adamw(lr=schedule), every=2))
    give_gradients(params, 0)
    optimizer.step()
    with NoCountIsRead():
        optimizer.step()


@pytest.mark.parametrize("compile", [False, True])
def test_no_tensor_of_the_state_changes_its_place(compile):
    params = parameters(torch.float32)
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(), gradtx.average(0.9))
    optimizer = gradtx.optim.ChainOptimizer(tx, list(params.items()), compile=compile, capturable=True)
    places = set()
    for t in range(4):
        give_gradients(params, t)
        optimizer.step()
        if t:
            states = [optimizer.state[param] for param in params.values()]
            tensors = itertools.chain(params.values(), *(state.values() for state in states))
            places.add(tuple((id(tensor), tensor.data_ptr()) for tensor in tensors))
    assert len(places) == 1


def test_a_step_with_a_rate_on_the_device_follows_it(device_counts):
    params, rate = parameters(), torch.tensor(0.1, dtype=torch.float64)
    optimizer = gradtx.optim.SGD(list(params.items()), lr=rate, capturable=True)
    give_gradients(params, 0)
    optimizer.step()
    with Tape() as tape:
        optimizer.step()
    rate.fill_(0.5)
    before = values(params)
    tape.replay()
    assert_close(
        params.values(), [old - 0.5 * param.grad for old, param in zip(before, params.values(), strict=True)], 1e-14
    )


@contextlib.contextmanager
def capturing():
    """Make optimizers believe that a CUDA graph is being captured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradtx.base.torch_names.NEVER_CAPTURED", ())
        patch.setattr("gradtx.base.torch_names.is_captured", lambda device: True)
        yield


def test_a_capture_without_capturable_is_refused_as_by_torch():
    params = parameters()
    optimizer = gradtx.optim.AdamW(list(params.items()))
    give_gradients(params, 0)
    before = values(params)
    refusal = r"^AdamW: a CUDA graph would replay .*; pass capturable=True to AdamW$"
    with capturing(), pytest.raises(RuntimeError, match=refusal):
        optimizer.step()
    assert_equal(values(params), before)


def test_the_first_step_with_some_gradients_is_no_step_to_capture():
    params = parameters()
    optimizer = gradtx.optim.AdamW(list(params.items()), capturable=True)
    give_gradients(params, 0)
    refusal = r"creates state, .*; call step\(\) once before the capture"
    with capturing(), pytest.raises(RuntimeError, match=refusal):
        optimizer.step()
    optimizer.step()
    next(iter(params.values())).grad = None
    with capturing(), pytest.raises(RuntimeError, match=r"creates state"):
        optimizer.step()
    optimizer.step()
    with capturing():
        optimizer.step()


def test_nothing_is_captured_on_the_processor():
    assert not torch_names.is_captured(torch.device("cpu"))


@pytest.mark.parametrize(
    ("tx", "culprit"),
    [
        (gradtx.shampoo(), "scale_by_shampoo has the host wait"),
        (gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.galore(2)), "low_rank has the host wait"),
        (gradtx.polargrad(method="exact"), "scale_by_nuclear_norm has the host wait"),
        (gradtx.clip_singular_values(kind="soft"), "clip_singular_values has the host wait"),
        (gradtx.mousse(), "scale_by_mousse has the host wait"),
        (gradtx.asgo(), "scale_by_asgo has the host wait"),
        (gradtx.line_search(gradtx.sgd(lr=1.0)), "line_search has the host wait"),
        (CHAINS["whole tree"], "has the host wait"),
        (CHAINS["plain functions"], "has the host wait"),
        (gradtx.accumulate(gradtx.soap(), 2), "scale_by_soap has the host wait in first updates, which acc"),
        (gradtx.restart(gradtx.kl_shampoo(), 9), "kl_shampoo has the host wait in first updates, which restart"),
    ],
)
def test_links_that_need_the_host_are_refused_by_name(tx, culprit):
    with pytest.raises(ValueError, match=f"^ChainOptimizer: capturable: .*{culprit}"):
        gradtx.as_optimizer(tx, [torch.nn.Parameter(torch.zeros(2, 2))], capturable=True)


def test_a_captured_step_takes_the_hessian_diagonal_and_estimates_none():
    params = [torch.nn.Parameter(torch.ones(2))]
    optimizer = gradtx.optim.SophiaH(params, capturable=True)
    params[0].grad = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"with capturable=True, every step needs step\(hessian_diag="):
        optimizer.step()
    optimizer.step(hessian_diag=[torch.ones(2)])
    with capturing():
        optimizer.step(hessian_diag=[torch.ones(2)])


def test_a_capture_may_not_contain_a_first_update_that_waits(device_counts):
    params = [torch.nn.Parameter(torch.eye(3))]
    optimizer = gradtx.optim.SOAP(params, capturable=True)
    params[0].grad = torch.eye(3)
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.ones(())  # skipped, as far as the host knows
    optimizer.step()
    with capturing(), pytest.raises(RuntimeError, match="may have skipped all steps so far"):
        optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf
    optimizer.step()
    with capturing():
        optimizer.step()


def test_what_excludes_capturable_is_refused():
    params = [torch.nn.Parameter(torch.zeros(2))]
    with pytest.raises(ValueError, match="capturable cannot be combined with state_device"):
        gradtx.optim.SGD(params, capturable=True, state_device="cpu")
    with pytest.raises(RuntimeError, match="release_gradients cannot be combined with capturable"):
        gradtx.optim.SGD(params, capturable=True).release_gradients()


def test_state_of_a_capturable_run_continues_in_torch_and_back():
    def trained(optimizer, params, steps):
        for t in steps:
            give_gradients(params, t)
            optimizer.step()

    params, expected = parameters(), parameters()
    optimizer = gradtx.optim.AdamW(params.values(), capturable=True)
    trained(optimizer, params, range(3))
    trained(torch.optim.AdamW(expected.values()), expected, range(3))
    theirs = torch.optim.AdamW(params.values())
    theirs.load_state_dict(optimizer.state_dict())
    again = gradtx.optim.AdamW(params.values(), capturable=True)
    again.load_state_dict(theirs.state_dict())
    trained(again, params, range(3, 5))
    assert {float(state["step"]) for state in again.state.values()} == {5.0}


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.adamw(lr=gradtx.warmup_cosine_schedule(t_max=11, max_lr=1e-2, warmup_steps=3)),
        gradtx.accumulate(gradtx.sgd(lr=gradtx.linear_schedule(0.1, total_iters=9)), every=2),
    ],
    ids=["of the optimizer's clock", "of an inner clock"],
)
@pytest.mark.parametrize("capturable", [False, True])
def test_a_schedule_goes_on_after_a_checkpoint_whose_steps_a_graph_has_repeated(tx, capturable, device_counts):
    (captured, params), (twin, expected) = pair(tx)
    repeat(captured, params, twin, expected, 7)
    assert captured.state_dict()["param_groups"] == twin.state_dict()["param_groups"]
    again = gradtx.optim.ChainOptimizer(tx, list(params.items()), capturable=capturable)
    again.load_state_dict(captured.state_dict())
    for t in range(7, 12):
        give_gradients(params, t)
        give_gradients(expected, t)
        again.step()
        twin.step()
    assert_close(params.values(), expected.values(), 1e-13)


def test_a_number_that_was_written_over_a_schedule_stays_in_a_checkpoint(device_counts):
    params = parameters()
    optimizer = gradtx.optim.SGD(list(params.items()), lr=gradtx.linear_schedule(0.1, total_iters=9), capturable=True)
    for t in range(3):
        give_gradients(params, t)
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.5


def test_weights_to_evaluate_with_follow_the_count_of_the_device(device_counts):
    momentum = gradtx.linear_schedule(0.9, total_iters=9)
    (captured, params), (twin, expected) = pair(gradtx.schedule_free_sgd(0.1, momentum=momentum))
    repeat(captured, params, twin, expected, 8)
    with captured.eval_params(), twin.eval_params():
        assert_close(params.values(), expected.values(), 1e-13)
