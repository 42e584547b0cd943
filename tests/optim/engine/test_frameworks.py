"""Steps as frameworks call them are warm, and take changes of what is known at once."""

import contextlib
import random

import pytest
import torch

import gradtx
from tests.optim.engine.test_walk import clipped, walk_of

MODES = [{}, {"compile": True}]
# A step that makes a plan calls thousands of functions, one that constructs the chain calls hundreds.
WARM = 130
SHAPES = [(3, 4), (4,), (2, 2, 2)]


def parameters(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, dtype=dtype, generator=generator)) for shape in SHAPES]


def give_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        value = torch.randn(param.shape, dtype=torch.float64, generator=generator)
        param.grad = value.to(param.dtype) if param.requires_grad else None


# What frameworks do around steps.


class Plainly:
    """A loop that calls nothing but `step`."""

    def __init__(self, optimizer, params):
        self.optimizer, self.params = optimizer, params

    def prepare(self):
        pass

    def step(self):
        self.optimizer.step()

    def end(self):
        pass


class WithAClosure(Plainly):
    """Lightning, skorch, Composer."""

    def step(self):
        self.optimizer.step(lambda: torch.tensor(1.0))


class WithAFrozenParameter(Plainly):
    """Peft."""

    def __init__(self, optimizer, params):
        super().__init__(optimizer, params)
        params[1].requires_grad_(False)
        params[1].grad = None


class WithAScheduler(Plainly):
    def __init__(self, optimizer, params):
        super().__init__(optimizer, params)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.9**t)

    def end(self):
        self.scheduler.step()


class WithSchedulesOfRateAndMomentum(Plainly):
    def __init__(self, optimizer, params):
        super().__init__(optimizer, params)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=40)

    def end(self):
        self.scheduler.step()


class InNewMemory(Plainly):
    """FSDP, BoTorch, pykeen."""

    def prepare(self):
        for param in self.params:
            param.data = param.data.clone()


FRAMEWORKS = [
    Plainly, WithAClosure, WithAFrozenParameter, WithAScheduler, WithSchedulesOfRateAndMomentum, InNewMemory
]  # fmt: skip


@pytest.mark.parametrize("options", MODES, ids=["lists", "compiled"])
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.__name__)
def test_a_step_as_a_framework_calls_it_is_warm_and_equals_torch(framework, options):
    found, calls = [], []
    for module, own in ((torch.optim, {}), (gradtx.optim, options)):
        params = parameters()
        loop = framework(module.AdamW(params, lr=0.1, weight_decay=0.2, **own), params)
        for t in range(12):
            give_gradients(params, t)
            loop.prepare()
            calls, _ = walk_of(loop.step)
            loop.end()
        found.append([param.detach() for param in params])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    assert len(calls) <= WARM


CHAINS = {
    "two groups of prodigy": lambda: gradtx.prodigy(lr=1.0),
    "clip and partition": lambda: clipped(
        gradtx.partition({"m": gradtx.lion(lr=1e-3), "rest": gradtx.adamw(lr=1e-2)}, {"m": "*.weight", "rest": "*"})
    ),
}


@pytest.mark.parametrize("options", MODES, ids=["lists", "compiled"])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_scheduler_of_several_groups_leaves_steps_warm(chain, options):
    found, lengths = [], []
    for is_eager in (False, True):
        params = parameters()
        names = ["a.weight", "b.bias", "c.weight"]
        groups = [{"params": list(zip(names, params, strict=True))}]
        if "groups" in chain:
            groups = [{"params": params[:1], "lr": 0.5}, {"params": params[1:]}]
        optimizer = gradtx.as_optimizer(CHAINS[chain](), groups, **options)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.9**t)
        with gradtx.eagerly() if is_eager else contextlib.nullcontext():
            for t in range(8):
                give_gradients(params, t)
                calls, _ = walk_of(optimizer.step)
                scheduler.step()
        found.append([param.detach() for param in params])
        lengths.append(len(calls))
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-11)
    assert lengths[0] <= 350


# What changes between steps.


def to_another_rate(optimizer, params):
    optimizer.param_groups[0]["lr"] = 0.31


def to_other_betas(optimizer, params):
    optimizer.param_groups[0]["betas"] = (0.7, 0.8)


def to_a_rate_of_zero_and_back(optimizer, params):
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.2


def to_all_parameters(optimizer, params):
    params[1].requires_grad_(True)


def to_a_gradient_of_a_frozen_parameter(optimizer, params):
    params[1].grad = torch.ones_like(params[1])
    optimizer.step()
    params[1].grad = None


def to_fewer_gradients(optimizer, params):
    params[0].requires_grad_(False)
    params[0].grad = None


def to_another_layout(optimizer, params):
    params[0].data = params[0].data.T.contiguous().T


def to_another_place_in_a_larger_tensor(optimizer, params):
    larger = torch.zeros(3, 9, dtype=params[0].dtype)
    larger[:, :4] = params[0].data
    params[0].data = larger[:, :4]


def to_slots_in_other_memory(optimizer, params):
    slot = optimizer.state[params[0]]["exp_avg"]
    slot.data = slot.data * 3


def to_weights_that_exchange_their_memory(optimizer, params):
    others = [param.data.clone() for param in params]
    params[0].data, params[2].data = (
        others[2].reshape(-1)[:8].repeat(2)[:12].reshape(3, 4),
        others[0].reshape(-1)[:8].reshape(2, 2, 2),
    )


CHANGES = [value for name, value in list(globals().items()) if name.startswith("to_")]


@pytest.mark.parametrize("options", MODES, ids=["lists", "compiled"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize(
    "framework", [WithAFrozenParameter, WithAScheduler, InNewMemory], ids=lambda framework: framework.__name__
)
def test_a_change_between_steps_of_a_framework_counts_as_in_torch(framework, change, options):
    found = []
    for module, own in ((torch.optim, {}), (gradtx.optim, options)):
        params = parameters()
        optimizer = module.AdamW(params, lr=0.1, weight_decay=0.2, **own)
        loop = framework(optimizer, params)
        for t in range(8):
            give_gradients(params, t)
            loop.prepare()
            if t == 5:
                change(optimizer, params)
            loop.step()
            loop.end()
        found.append([param.detach() for param in params])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


def on_overlapping_memory(params):
    memory = torch.linspace(-1, 1, 14, dtype=torch.float64)
    params[0].data = memory[:12].view(3, 4)
    params[1].data = memory[10:14]


def on_memory_of_another_dtype(params):
    params[0].grad = None
    params[0].data = params[0].data.float()


@pytest.mark.parametrize("options", MODES, ids=["lists", "compiled"])
@pytest.mark.parametrize("move", [on_overlapping_memory, on_memory_of_another_dtype], ids=lambda move: move.__name__)
def test_weights_in_memory_of_another_kind_step_as_single_leaves(move, options):
    found = []
    for is_eager in (False, True):
        params = parameters()
        optimizer = gradtx.optim.AdamW(params, lr=0.1, **options)
        with gradtx.eagerly() if is_eager else contextlib.nullcontext():
            for t in range(8):
                params[2].data = params[2].data.clone()
                if t == 4:
                    move(params)
                give_gradients(params, t)
                optimizer.step()
        found.append([param.detach() for param in params])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", MODES, ids=["lists", "compiled"])
def test_replaced_weights_are_freed_by_the_next_step(options):
    params = parameters()
    optimizer = gradtx.optim.AdamW(params, lr=0.1, **options)
    for t in range(4):
        give_gradients(params, t)
        if t == 2:  # another plan is kept beside the first
            params[1].grad = None
        optimizer.step()
    give_gradients(params, 4)
    first = params[0].data.untyped_storage()._weak_ref()
    for param in params:
        param.data = param.data.clone()
    optimizer.step()
    assert torch.UntypedStorage._expired(first)
    torch.UntypedStorage._free_weak_ref(first)


# Numbers that schedulers write.


def refusals_of_steps(tx, edits):
    """Whether a step is refused after each edit of a group."""
    param = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = gradtx.as_optimizer(tx, [param])
    refusals = []
    for edit in edits:
        param.grad = torch.ones(3, 2)
        optimizer.param_groups[0].update(edit)
        try:
            optimizer.step()
        except ValueError:
            refusals.append(True)
        else:
            refusals.append(False)
    return refusals


def refusals_of_constructor(factory, start, edits):
    present, refusals = dict(start), []
    for edit in edits:
        present |= edit
        try:
            factory(**present)
        except ValueError:
            refusals.append(True)
        else:
            refusals.append(False)
    return refusals


# Factories whose bodies compare numbers with each other or with bounds, and numbers on both sides.
BOUNDED = {
    "product": (gradtx.srmm, {"lr": 0.1, "proximal": 1.0}, {"lr": (1e-3, 3.0), "proximal": (1e-2, 30.0)}),
    "root": (gradtx.accsgd, {"lr": 0.1, "kappa": 100.0, "xi": 9.0}, {"kappa": (1.0, 1e4), "xi": (1.0, 200.0)}),
    "range": (gradtx.adamw, {"lr": 0.1}, {"lr": (-0.1, 1e9), "eps": (-1e-9, 1e-3)}),
    "off": (gradtx.sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"momentum": (0.0, 1.0)}),
}


@pytest.mark.parametrize("bounds", BOUNDED)
def test_numbers_of_groups_are_refused_where_the_constructor_refuses_them(bounds):
    factory, start, ranges = BOUNDED[bounds]
    rng = random.Random(0)
    number_of_refusals = 0
    for _ in range(12):
        edits = []
        for _ in range(12):
            names = rng.sample(sorted(ranges), rng.randint(1, len(ranges)))
            edit = {}
            for name in names:
                low, high = ranges[name]
                near = 10 ** rng.uniform(-4, 0) * high
                edit[name] = rng.choice((low, near, near, near, high))
            edits.append(edit)
        refusals = refusals_of_steps(factory(**start), edits)
        assert refusals == refusals_of_constructor(factory, start, edits)
        number_of_refusals += sum(refusals)
    assert number_of_refusals


def test_numbers_of_a_scheduler_do_not_construct_the_chain_again_and_again(monkeypatch):
    constructed = []
    replaced = type(gradtx.adamw())._replaced

    def counted(self, *arguments, **options):
        constructed.append(self)
        return replaced(self, *arguments, **options)

    param = torch.nn.Parameter(torch.ones(2))
    optimizer = gradtx.optim.AdamW([param], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=300)
    param.grad = torch.ones(2)
    optimizer.step()
    monkeypatch.setattr(type(gradtx.adamw()), "_replaced", counted)
    for _ in range(299):
        scheduler.step()
        optimizer.step()
    assert len(constructed) < 20
