"""A step on an asynchronous device: the host neither sends data to it nor waits for it."""

import pytest
import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import gradtx
from gradtx.base import torch_names as _torch
from gradtx.optim.classes import CLASSES
from gradtx.programs import batches
from tests.daily import by_day
from tests.optim.chains import CHAINS, ON_HOST
from tests.optim.problems import SHAPES, assert_close, assert_equal, parameters, values

# To show the value of a schedule on a wrapper's clock in the group, the optimizer reads that clock.
READ = {"accumulate", "accumulate a partition", "skip", "skip an accumulation", "accumulate around skip"}
QUIET = {
    **{name: tx for name, tx in CHAINS.items() if name not in READ},
    "accumulate": gradtx.accumulate(gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw()), every=3),
    "skip": gradtx.skip_nonfinite(gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw())),
}


REPEATABLE = [name for name in CHAINS if name not in ON_HOST]
SCALED = [name for name in QUIET if name not in ON_HOST]


class Traffic(TorchDispatchMode):
    """Records transfers between devices. (Reading a meta tensor raises an error by itself.)"""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        found = {leaf.device for leaf in _pytree.tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)}
        if len(found) > 1 and func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            self.seen.append(str(func))
        return out


def by_lists(name):
    """An operation on lists, also for a factor on the meta device, which torch would read there."""
    together = LISTS(name)
    if together is None or name.rstrip("_") not in ("add", "mul", "div"):
        return together

    def called(tensors, other, **options):
        if not isinstance(other, torch.Tensor):
            return together(tensors, other, **options)
        return [getattr(tensor, name)(other, **options) for tensor in tensors]

    return called


LISTS = _torch.on_lists


@pytest.fixture(params=["lists", "alone"])
def way(request, monkeypatch):
    """How leaves on the meta device run. A mode that intercepts operations, as `Traffic` does, has them run alone."""
    monkeypatch.setattr(torch.nn.Parameter, "is_meta", False)  # ours wait until they have left the meta device
    monkeypatch.setattr(batches, "batches_on", lambda device: device.type != "cpu")
    if request.param == "lists":
        monkeypatch.setattr(_torch, "is_intercepted", lambda: False)
        monkeypatch.setattr(_torch, "on_lists", by_lists)
    return request.param


def on_meta(shapes):
    return {name: torch.nn.Parameter(torch.empty(shape, device="meta")) for name, shape in shapes.items()}


def assert_quiet_steps(optimizer, params, way, **extras):
    """Assert that steps send nothing to the device and read nothing from it; reading a meta tensor is an error."""
    for t in range(4):
        for param in params.values():
            param.grad = torch.empty(param.shape, device="meta")
        with Traffic() as traffic:
            optimizer.step(**extras)
        assert t == 0 or traffic.seen == []  # the first step creates state, possibly from numbers
    ways = {item.way for item in optimizer.explain() if item.name in params}
    assert way in ways


@by_day(
    "lists-design-False", "lists-partition-True", "lists-masked by predicate-False", "lists-masked accumulation-True",
    "lists-record-False", "lists-plain functions-True", "lists-random-False", "lists-map after step-True",
    "lists-adopt-False", "lists-regenerate-True", "lists-prodigy-False", "lists-accumulate-True",
    "alone-identity-False", "alone-nested partition-True", "alone-freeze-False",
    "alone-skip around a masked accumulation-True", "alone-whole tree-False", "alone-two sums-True",
    "alone-average-False", "alone-twice-True", "alone-adam_atan2-False", "alone-pnm-True",
    "alone-schedule free-False", "alone-skip-True",
)  # fmt: skip
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("name", list(QUIET))
def test_a_step_neither_sends_to_the_device_nor_reads_from_it(name, capturable, way):
    if capturable and name in ON_HOST:
        pytest.skip("refused: it reads values or counts on the host")
    params = on_meta(SHAPES)
    optimizer = gradtx.as_optimizer(QUIET[name], list(params.items()), capturable=capturable)
    assert_quiet_steps(optimizer, params, "alone" if name in ON_HOST else way)


MATRICES = {"matrix": (4, 3), "other": (4, 3), "square": (3, 3)}
NO_RATE = (
    "accsgd", "adai", "aggmo", "msvag", "noisy_sgd", "optimistic_gradient_descent", "pid", "pnm", "qhm", "sgdp"
)  # fmt: skip
OPTIONS = {"ranger21": {"num_iterations": 10}, **{name: {"lr": 0.1} for name in NO_RATE}}
LOSSES = ("alig", "momo", "momo_adam")
ALONE = ("apollo_low_rank", "lbfgs", "noisy_sgd")  # random numbers in every step, and a rule of the whole tree
CURVATURE = ("adahessian", "sophia")


@by_day(
    "lists-a2grad", "lists-adafactor", "lists-adam_atan2", "lists-adamod", "lists-adanorm", "lists-ademamix",
    "lists-apollo", "lists-cocob", "lists-dadapt_lion", "lists-dog", "lists-ftrl", "lists-kate", "lists-lbfgs",
    "lists-momo", "lists-muown", "lists-novograd", "lists-polar_adam_atan2", "lists-qhm", "lists-sadam", "lists-sgd",
    "lists-signsgd", "lists-soap_muon", "lists-swats",
)  # fmt: skip
@pytest.mark.parametrize("name", sorted(CLASSES.keys() - set(CURVATURE)))
@pytest.mark.parametrize("way", ["lists"], indirect=True)
def test_a_step_of_each_class_neither_sends_to_the_device_nor_reads_from_it(name, way):
    params = on_meta(MATRICES)
    optimizer = gradtx.load_optimizer(name)(list(params.items()), **OPTIONS.get(name, {}))
    extras = {"value": torch.empty((), device="meta")} if name in LOSSES else {}
    assert_quiet_steps(optimizer, params, "alone" if name in ALONE else way, **extras)


@pytest.mark.parametrize("way", ["lists"], indirect=True)
def test_bases_are_not_computed_in_every_step_where_the_host_does_not_know_what_is_due(way):
    params = on_meta(MATRICES)
    rate = torch.empty((), device="meta")  # with it, the host knows none of the scalars of a program
    optimizer = gradtx.as_optimizer(gradtx.soap(lr=rate), params.items())
    assert_quiet_steps(optimizer, params, "alone")


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("way", ["lists"], indirect=True)
def test_a_step_under_a_grad_scaler_waits_for_nothing(name, way):
    """The scaler's flag also determines counts, so these are on the device from the first such step on."""
    params = on_meta(SHAPES)
    optimizer = gradtx.as_optimizer(QUIET[name], list(params.items()))
    optimizer.found_inf, optimizer.grad_scale = torch.empty(2, device="meta")
    assert_quiet_steps(optimizer, params, way)
    assert {optimizer.state[param]["step"].device.type for param in params.values()} == {"meta"}


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_cuda(tx, dtype=torch.float64):
    params = {name: torch.nn.Parameter(param.detach().cuda()) for name, param in parameters(dtype).items()}
    return gradtx.as_optimizer(tx, list(params.items())), params


@needs_cuda
@pytest.mark.parametrize("name", QUIET)
def test_a_step_on_a_gpu_waits_for_nothing(name):
    optimizer, params = on_cuda(QUIET[name])
    for param in params.values():
        param.grad = torch.ones_like(param)
    optimizer.step()  # may load kernels, and creates state
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.parametrize("name", SCALED)
def test_a_step_under_a_grad_scaler_on_a_gpu_waits_for_nothing(name):
    optimizer, params = on_cuda(QUIET[name], torch.float32)
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0)
    scaler.scale(torch.ones((), device="cuda"))
    for t in range(4):
        for param in params.values():
            param.grad = torch.full_like(param, float("inf") if t == 2 else 1.0)
        torch.cuda.set_sync_debug_mode("error" if t else "default")  # the first step may load kernels and creates state
        try:
            scaler.step(optimizer)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        scaler.update()
    assert max(optimizer.state[param]["step"].item() for param in params.values()) == 3.0


@needs_cuda
@pytest.mark.parametrize("name", CHAINS)
def test_steps_on_a_gpu_equal_those_on_the_cpu(name):
    optimizer, params = on_cuda(CHAINS[name])
    twins = parameters()
    reference = gradtx.as_optimizer(CHAINS[name], list(twins.items()))
    for t in range(4):
        for param, twin in zip(params.values(), twins.values(), strict=True):
            twin.grad = torch.full_like(twin, 0.1 * (t + 1)) + 0.1 * twin.detach()
            param.grad = twin.grad.cuda()
        optimizer.step()
        reference.step()
    # Elementary functions on the two devices differ in the last bit.
    assert_close([param.cpu() for param in params.values()], twins.values(), 1e-10)


@needs_cuda
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", REPEATABLE)
def test_a_cuda_graph_repeats_a_step(name, compile):
    tx = CHAINS[name]
    params, twins = ({key: torch.nn.Parameter(p.detach().cuda()) for key, p in parameters().items()} for _ in range(2))
    captured, twin = (
        gradtx.as_optimizer(tx, list(of.items()), compile=compile, capturable=True) for of in (params, twins)
    )
    for param in (*params.values(), *twins.values()):
        param.grad = torch.ones_like(param)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            captured.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for t in range(3):
        for param in params.values():
            param.grad.fill_(1.0 - t)
        graph.replay()
    for t in (-1, -1, 0, 1, 2):
        for param in twins.values():
            param.grad.fill_(1.0 if t < 0 else 1.0 - t)
        twin.step()
    assert_close([param.cpu() for param in params.values()], [param.cpu() for param in twins.values()], 1e-12)


@needs_cuda
def test_a_capture_without_capturable_is_refused():
    optimizer, params = on_cuda(gradtx.adamw())
    for param in params.values():
        param.grad = torch.ones_like(param)
    optimizer.step()
    with pytest.raises(RuntimeError, match="pass capturable=True"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


@needs_cuda
def test_a_grad_scaler_on_a_gpu_skips_steps_with_infinite_gradients():
    optimizer, params = on_cuda(gradtx.adamw(), torch.float32)
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
