"""Steps whose gradients come and go make no plan, record nothing and write no text, and keep nothing alive."""

import gc
import random
import weakref

import pytest
import torch

import gradtx
from gradtx.compiler import cpp
from gradtx.optim.engine.base import Engine
from gradtx.plans import bundle, phases

CHAINS = {
    "adamw": lambda: gradtx.adamw(lr=1e-2),
    "clip": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(lr=1e-2)),
    "muon": lambda: gradtx.muon(lr=1e-2, fallback=gradtx.adamw(lr=1e-2)),
    "prodigy": gradtx.prodigy,
    "schedule free": lambda: gradtx.schedule_free_adamw(lr=1e-2),
    "adafactor": lambda: gradtx.adafactor(lr=1e-2, relative_step=False),
    "lamb": lambda: gradtx.lamb(lr=1e-2),
    "soap": lambda: gradtx.soap(lr=1e-2, precondition_frequency=3),
}
SHAPES = [(6, 4), (6,), (4, 6), (4,), (6, 4), (6,)]
WAYS = pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def step(optimizer, params, present):
    for i, param in enumerate(params):
        param.grad = torch.linspace(-1.0, 1.0, param.numel()).view_as(param) if i in present else None
    optimizer.step()


def some(rng):
    return {i for i in range(len(SHAPES)) if rng.random() < 0.5}


@pytest.fixture
def work(monkeypatch):
    """The kinds of work that steps have done which warm ones should not do."""
    done = []

    def noted(owner, name, kind):
        original = getattr(owner, name)

        def wrapper(*args, **options):
            done.append(kind)
            return original(*args, **options)

        monkeypatch.setattr(owner, name, wrapper)

    noted(Engine, "_make_plan", "planned")
    noted(phases, "record", "recorded")
    noted(bundle, "list_function", "written")
    noted(cpp, "compiled", "compiled")
    return done


@WAYS
@pytest.mark.parametrize("name", CHAINS)
def test_warm_steps_of_any_pattern_only_run(name, compile, work):
    params, rng = parameters(), random.Random(0)
    optimizer = gradtx.as_optimizer(CHAINS[name](), params, compile=compile)
    step(optimizer, params, set(range(len(SHAPES))))
    assert "planned" in work
    for i in range(len(SHAPES)):  # each leaf has another count
        step(optimizer, params, set(range(i)))
    step(optimizer, params, set(range(len(SHAPES))))
    work.clear()
    for _ in range(30):
        step(optimizer, params, some(rng))
    step(optimizer, params, set(range(len(SHAPES))))
    assert not work


@WAYS
def test_explain_says_what_the_last_step_did(compile):
    params = parameters()
    optimizer = gradtx.as_optimizer(CHAINS["clip"](), params, compile=compile)
    for present in (set(range(6)), {0, 1}, set(), {2, 3, 5}, set(range(6))):
        step(optimizer, params, present)
        way = "kernels" if compile else "lists"
        told = optimizer.explain()
        assert [item.way for item in told] == [way if i in present else "absent" for i in range(6)]
        assert {launch.parameters for launch in told.launches} == ({len(present)} if compile and present else set())


@WAYS
@pytest.mark.parametrize("name", CHAINS)
def test_gradients_weights_and_parameters_that_are_gone_are_freed(name, compile):
    params, rng = parameters(), random.Random(0)
    optimizer = gradtx.as_optimizer(CHAINS[name](), params, compile=compile)
    for present in (set(range(6)), some(rng), some(rng), set(range(6)), {0, 1, 5}):
        step(optimizer, params, present)
        gradients = [weakref.ref(param.grad) for param in params if param.grad is not None]
        optimizer.zero_grad()
        assert all(gradient() is None for gradient in gradients)
    for present in (set(range(6)), {0, 1, 5}):
        old = [weakref.ref(param.untyped_storage()) for param in params]
        for param in params:
            param.data = param.data.clone()
        step(optimizer, params, present)
        assert all(storage() is None for storage in old)
    gone = weakref.ref(params[5])
    for group in optimizer.param_groups:
        group["params"][:] = [param for param in group["params"] if param is not gone()]
    optimizer.state.pop(params.pop(), None)
    param = group = None
    step(optimizer, params, {0, 1, 2, 3, 4})
    gc.collect()
    assert gone() is None


@WAYS
@pytest.mark.parametrize("name", CHAINS)
def test_nothing_grows_over_many_steps(name, compile):
    def live():
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    params, rng = parameters(), random.Random(0)
    optimizer = gradtx.as_optimizer(CHAINS[name](), params, compile=compile)
    for _ in range(50):  # until all leaves have had other counts
        step(optimizer, params, some(rng))
    step(optimizer, params, set(range(6)))
    before = live()
    for _ in range(100):
        step(optimizer, params, some(rng))
    step(optimizer, params, set(range(6)))
    assert live() <= before


@WAYS
def test_a_rule_that_takes_none_writes_where_programs_find_it(compile, work):
    params, rng = parameters(), random.Random(0)
    optimizer = gradtx.as_optimizer(gradtx.accumulate(CHAINS["adamw"](), every=2), params, compile=compile)
    reference = [torch.nn.Parameter(param.detach().clone()) for param in params]
    line_by_line = gradtx.as_optimizer(gradtx.accumulate(CHAINS["adamw"](), every=2), reference)
    for t in range(12):
        present = some(rng) if t % 3 else set(range(len(SHAPES)))
        if t == 4:
            work.clear()
        step(optimizer, params, present)
        assert t < 4 or "planned" not in work
        with gradtx.eagerly():
            step(line_by_line, reference, present)
        torch.testing.assert_close(params, reference, rtol=1e-5, atol=1e-7)


def moved(optimizer, param):
    param.data = param.data.clone()


def replaced(optimizer, param):
    state = optimizer.state[param]
    for key in ("exp_avg", "exp_avg_sq"):
        state[key] = state[key].clone()


def relocated(optimizer, param):
    for slot in optimizer.state[param].values():
        slot.data = slot.data.clone()


def laid_out_otherwise(optimizer, param):
    param.data = param.data.t().contiguous().t() if param.ndim == 2 else param.data


def counted(optimizer, param):
    optimizer.state[param]["step"].data.fill_(40.0)


@WAYS
@pytest.mark.parametrize(
    "edit",
    [moved, replaced, relocated, laid_out_otherwise, counted],
    ids=["moved", "replaced", "relocated", "laid out otherwise", "counted"],
)
def test_a_leaf_that_changes_while_it_is_absent_steps_as_it_is_when_it_is_back(edit, compile):
    params, rng = parameters(), random.Random(0)
    expected = [torch.nn.Parameter(param.detach().clone()) for param in params]
    optimizers = [
        (gradtx.optim.AdamW(params, compile=compile), params),
        (torch.optim.AdamW(expected, foreach=False), expected),
    ]
    everything = set(range(len(SHAPES)))
    for t in range(24):
        present = some(rng) if t % 6 else everything
        absent = rng.sample(sorted(everything - present), k=len(everything - present) // 2)
        for optimizer, of_optimizer in optimizers:
            step(optimizer, of_optimizer, present)
            for i in absent:
                edit(optimizer, of_optimizer[i])
        torch.testing.assert_close(params, expected, rtol=1e-5, atol=1e-7)
