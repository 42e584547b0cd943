"""Parameters that require no gradient have no state; state follows a model that moves before the first step."""

import copy

import pytest
import torch

import gradtx
from tests.optim.problems import assert_close, assert_equal, set_gradients

MODULES = pytest.mark.parametrize("module", [gradtx.optim, torch.optim], ids=["gradtx", "torch"])
TOLERANCE = 1e-12  # the same float64 sums in a different order


class Adapted(torch.nn.Module):
    """A large frozen layer, a frozen layer that may be unfrozen, and two adapters of low rank."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.large = torch.nn.Linear(64, 64)
        self.middle = torch.nn.Linear(64, 64)
        self.down = torch.nn.Linear(64, 2, bias=False)
        self.up = torch.nn.Linear(2, 64, bias=False)
        for layer in (self.large, self.middle):
            layer.requires_grad_(False)
        self.double()

    def forward(self, x):
        return self.middle(self.large(x) + self.up(self.down(x)))


def train(model, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        batch = torch.randn(8, 64, generator=generator, dtype=model.up.weight.dtype)
        model(batch).square().mean().backward()
        optimizer.step()


def bytes_of_state(optimizer):
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return sum(tensor.nbytes for tensor in tensors)


def names_in(optimizer, model):
    """The names of the parameters with an entry in the state dict, and the keys of each entry."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    name_of = {id(param): name for name, param in model.named_parameters()}
    entries = optimizer.state_dict()["state"]
    return {name_of[id(params[number])]: set(entry) for number, entry in entries.items()}


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_state_of_a_model_with_adapters_is_as_large_as_torchs(steps):
    sizes = []
    for module in (gradtx.optim, torch.optim):
        model = Adapted()
        optimizer = module.AdamW(model.parameters())
        train(model, optimizer, steps)
        sizes.append(bytes_of_state(optimizer))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adagrad", "RMSprop"])
def test_frozen_parameters_have_no_entry_in_a_state_dict_until_they_step_as_in_torch(name):
    entries, weights = [], []
    for module in (gradtx.optim, torch.optim):
        model = Adapted()
        optimizer = getattr(module, name)(model.parameters(), lr=0.01)
        train(model, optimizer, 2)
        before = names_in(optimizer, model)
        model.middle.requires_grad_(True)
        train(model, optimizer, 2, seed=1)
        model.middle.requires_grad_(False)
        train(model, optimizer, 2, seed=2)
        entries.append((before.keys(), names_in(optimizer, model).keys()))
        weights.append(list(model.parameters()))
    if name == "Adagrad":  # torch's alone has state from construction on
        assert entries[0] == ({"down.weight", "up.weight"}, entries[1][1] - {"large.weight", "large.bias"})
    elif name == "SGD":  # torch's has no entries without momentum
        assert entries[0][0] == {"down.weight", "up.weight"}
    else:
        assert entries[0] == entries[1]
    assert_close(weights[0], weights[1], TOLERANCE)


def test_a_parameter_that_gets_a_gradient_although_it_requires_none_steps_as_in_torch():
    results = []
    for module in (gradtx.optim, torch.optim):
        param = torch.nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)
        optimizer = module.AdamW([param], lr=0.1)
        param.grad = torch.arange(3, dtype=torch.float64)
        optimizer.step()
        results.append(param)
    assert_close([results[0]], [results[1]], TOLERANCE)


def test_an_unfrozen_parameter_is_in_the_state_dict_before_its_first_gradient():
    model = Adapted()
    optimizer = gradtx.optim.AdamW(model.parameters())
    train(model, optimizer, 1)
    model.middle.requires_grad_(True)
    assert names_in(optimizer, model)["middle.weight"] == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("tx", [gradtx.prodigy(), gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.lion())])
def test_a_parameter_unfrozen_later_takes_over_what_the_others_share(tx):
    model = Adapted()
    optimizer = gradtx.as_optimizer(tx, model.named_parameters())
    train(model, optimizer, 3)
    model.middle.requires_grad_(True)
    train(model, optimizer, 2)
    shared = {"d", "d_numerator"} & optimizer.state[model.up.weight].keys()
    for key in shared:
        assert_equal(optimizer.state[model.middle.weight][key], optimizer.state[model.up.weight][key])
    assert optimizer.state[model.middle.weight]["step"] == 2


@MODULES
@pytest.mark.parametrize("full", [False, True], ids=["without frozen entries", "with frozen entries"])
def test_checkpoints_with_and_without_entries_of_frozen_parameters_continue(module, full):
    source = Adapted()
    if full:
        source.requires_grad_(True)
    theirs = module.AdamW(source.parameters(), lr=0.01)
    train(source, theirs, 3)
    source.large.requires_grad_(False), source.middle.requires_grad_(False)
    model = copy.deepcopy(source)
    ours = gradtx.optim.AdamW(model.parameters(), lr=0.01)
    ours.load_state_dict(theirs.state_dict())
    assert ("large.weight" in names_in(ours, model)) == full
    train(model, ours, 3)
    train(source, theirs, 3)
    assert_close(list(model.parameters()), list(source.parameters()), TOLERANCE)


def test_memory_counts_only_parameters_that_require_a_gradient():
    model = Adapted().float()
    optimizer = gradtx.optim.AdamW(model.parameters())
    train(model, optimizer, 1)
    plan = gradtx.memory(gradtx.adamw(lr=1e-3), model)
    assert plan.state == bytes_of_state(optimizer)
    assert plan.gradients == sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert plan.weights == sum(p.nbytes for p in model.parameters())


def test_the_constructor_needs_no_memory_for_state_and_still_checks_every_parameter():
    huge = torch.nn.Parameter(torch.empty(1).expand(2**20, 2**20), requires_grad=True)
    optimizer = gradtx.optim.AdamW([huge])
    assert bytes_of_state(optimizer) == 0
    with pytest.raises(ValueError, match=r"orthogonalize: leaf '0' has shape"):
        gradtx.optim.Muon([torch.nn.Parameter(torch.ones(3))])


# Models that move.


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, "traced"])
@pytest.mark.parametrize("tx", [gradtx.adamw(lr=0.1), gradtx.chain(gradtx.sgd(lr=0.1), gradtx.lookahead(k=2))])
def test_state_follows_a_model_that_changes_its_dtype_before_the_first_step(tx, compile):
    results = []
    for early in (True, False):
        model = Adapted().float()
        if early:
            model.double()
        optimizer = gradtx.as_optimizer(tx, model.named_parameters(), compile=bool(compile))
        model.double()
        train(model, optimizer, 3)
        results.append([param.detach() for param in model.parameters()])
        for state in optimizer.state.values():
            assert {value.dtype for key, value in state.items() if value.ndim} <= {torch.float64}
    assert_equal(*results)


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
def test_used_state_of_less_precision_is_an_error_that_names_parameter_and_remedy(compile):
    model = Adapted().float()
    optimizer = gradtx.optim.AdamW(model.named_parameters(), compile=compile)
    train(model, optimizer, 2)
    model.double()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=r"'down.weight' is torch.float64 .*created for torch.float32 .*load_state_dict"
    ):
        train(model, optimizer, 1)
    assert_equal(model.state_dict(), before)
    optimizer.load_state_dict(optimizer.state_dict())  # as the error suggests
    train(model, optimizer, 1)
    assert optimizer.state[model.up.weight]["exp_avg"].dtype is torch.float64
    assert optimizer.state[model.up.weight]["step"] == 3


def test_an_error_in_the_first_step_leaves_no_state_behind():
    @gradtx.per_tensor
    def fail():
        def init(param):
            return {"slot": torch.zeros_like(param)}

        def update(update, state, param, ctx):
            raise KeyError("mine")

        return init, update

    param = torch.nn.Parameter(torch.ones(2))
    optimizer = gradtx.as_optimizer(gradtx.chain(fail(), gradtx.sgd()), [param])
    set_gradients({"w": param})
    before = dict(optimizer.state[param])
    with pytest.raises(KeyError, match="mine"):
        optimizer.step()
    assert_equal(dict(optimizer.state[param]), before)


# Weights that torch only stores.

STORED_ONLY = [name for name in ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn_x2") if hasattr(torch, name)]


def adapted(name):
    """A frozen base that torch only stores, and an adapter that trains."""
    codes = torch.zeros(4, 4, dtype=torch.uint8).view(getattr(torch, name))
    model = torch.nn.Module()
    model.base, model.adapter = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    model.base.weight = torch.nn.Parameter(codes, requires_grad=False)
    return model


def assert_trains_the_adapter(model, optimizer):
    before = model.adapter.weight.detach().clone()
    for _ in range(2):
        model.adapter.weight.grad = torch.ones_like(model.adapter.weight)
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    optimizer.explain()
    assert not torch.equal(model.adapter.weight, before)
    assert model.base.weight.view(torch.uint8).eq(0).all()
    assert all(not tensor.numel() for key, tensor in optimizer.state[model.base.weight].items() if key != "step")


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("make", ["AdamW", "Muon", "SOAP", "SGD", "ScheduleFreeAdamW"])
@pytest.mark.parametrize("name", STORED_ONLY)
def test_a_base_that_torch_only_stores_is_left_alone(name, make, compile):
    model = adapted(name)
    options = {"fallback": gradtx.adamw()} if make == "Muon" else {}
    optimizer = getattr(gradtx.optim, make)(model.named_parameters(), lr=0.1, compile=compile, **options)
    assert_trains_the_adapter(model, optimizer)


@pytest.mark.parametrize("name", STORED_ONLY)
def test_a_base_that_torch_only_stores_is_left_alone_by_all_that_reads_parameters(name):
    model = adapted(name)
    assert_trains_the_adapter(model, gradtx.muon_for(model))
    model = adapted(name)
    frozen = gradtx.chain(gradtx.freeze("base*"), gradtx.adamw())
    assert_trains_the_adapter(model, gradtx.as_optimizer(frozen, model.named_parameters()))
    model = adapted(name)
    parts = gradtx.partition({"low": gradtx.sgd(lr=0.1), "rest": gradtx.adamw()}, {"low": "base*", "rest": "*"})
    assert_trains_the_adapter(model, gradtx.as_optimizer(parts, model.named_parameters()))
    model = adapted(name)
    optimizer = gradtx.optim.AdamW([model.adapter.weight])
    optimizer.add_param_group({"params": [model.base.weight]})
    assert_trains_the_adapter(model, optimizer)
    optimizer.release_gradients().remove()
    assert gradtx.memory(gradtx.adamw(), model).slots == {"exp_avg": 64, "exp_avg_sq": 64}


@pytest.mark.parametrize("name", STORED_ONLY)
def test_pure_use_creates_no_state_for_leaves_that_torch_only_stores(name):
    params = {key: param.detach() for key, param in adapted(name).named_parameters()}
    tx = gradtx.adamw(lr=0.1)
    state = tx.init(params)
    assert state["scale_by_adam"]["exp_avg"].keys() == {"adapter.weight"}
    for _ in range(3):
        gradients = {"base.weight": None, "adapter.weight": torch.ones(4, 4)}
        updates, state = tx.update(gradients, state, params)
        params = gradtx.apply_updates(params, updates)
    assert updates["base.weight"] is None


def test_a_gradient_of_weights_that_torch_only_stores_is_a_named_error():
    weight = torch.zeros(4, 4, dtype=torch.uint8).view(torch.float8_e4m3fn)
    refusal = "'w' has dtype torch.float8_e4m3fn, which torch stores but does not add to; keep .* or pass no gradient"
    tx = gradtx.adamw()
    with pytest.raises(TypeError, match=refusal):
        tx.update({"w": weight}, tx.init({"w": weight}), {"w": weight})
    param = torch.nn.Parameter(weight)
    optimizer = gradtx.optim.AdamW([("w", param)])
    param.grad = weight.clone()
    with pytest.raises(TypeError, match=refusal):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float32, None], ids=str)
def test_a_frozen_weight_that_torch_only_stores_keeps_its_bits_whatever_its_gradient_is(dtype):
    base = torch.tensor([1.0, -2.0, 0.5]).to(torch.float8_e4m3fn)
    params = {"base": base, "w": torch.ones(2)}
    tx = gradtx.chain(gradtx.adamw(lr=0.1), gradtx.freeze("base"))
    grads = {"base": None if dtype is None else torch.ones(3).to(dtype), "w": torch.ones(2)}
    updates, _ = tx.update(grads, tx.init(params), params)
    stepped = gradtx.apply_updates(params, updates)
    assert stepped["base"].dtype == base.dtype
    assert torch.equal(stepped["base"].view(torch.uint8), base.view(torch.uint8))
    assert not torch.equal(stepped["w"], params["w"])
