"""Tables with sparse gradients, as `nn.Embedding(sparse=True)` has them, in all that surrounds an optimizer's step."""

import contextlib
import copy
import io
import pickle
import random

import pytest
import torch
from torch import nn

import gradtx
from gradtx.optim import offload
from gradtx.optim.engine.base import OTHER_PROGRAMS
from tests.optim.problems import assert_equal

ROWS, WIDTH, STEPS = 10, 4, 5
TOLERANCE = 1e-12  # the same float64 operations in a different order
WAYS = ("lists", "compiled", "eager")
LR = 0.05


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Model(nn.Module):
    """A table and dense layers behind it."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(ROWS, WIDTH, sparse=True, **options)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, index):
        return self.head(self.table(index))


class Bag(nn.Module):
    def __init__(self, mode):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.EmbeddingBag(ROWS, WIDTH, sparse=True, mode=mode)

    def forward(self, index):
        return self.table(index.view(2, -1))


class TableAlone(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(ROWS, WIDTH, sparse=True)

    def forward(self, index):
        return self.table(index)


def batch(t):
    """Indices of step t, some of them twice."""
    return torch.tensor([t % ROWS, 2, 2, 3 * t % ROWS])


def backward(model, t):
    loss = model(batch(t)).square().sum()
    loss.backward()
    return loss


def table(rows=ROWS, shape=(WIDTH,), dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return nn.Parameter(torch.randn(rows, *shape, dtype=dtype))


def gradient_of(param):
    assert param.grad is not None
    return param.grad


def rows_of(param, rows, seed=0, is_coalesced=None):
    """A gradient that lists some rows, perhaps several times."""
    torch.manual_seed(seed)
    values = torch.randn(len(rows), *param.shape[1:], dtype=param.dtype)
    index = torch.tensor([rows], dtype=torch.int64)
    return torch.sparse_coo_tensor(index, values, param.shape, is_coalesced=is_coalesced, check_invariants=False)


def seen(optimizer, params):
    """Weights and state, as copies."""
    return [(param.detach().clone(), copy.deepcopy(optimizer.state.get(param, {}))) for param in params]


@contextlib.contextmanager
def run_as(way):
    """What to pass as `compile` inside of the block."""
    with gradtx.eagerly() if way == "eager" else contextlib.nullcontext():
        yield way == "compiled"


def sparse_adam(module, params, **options):
    return module.SparseAdam(params, lr=LR, **options)


def momentum(module, params, **options):
    return module.SGD(params, lr=LR, momentum=0.9, **options)


def plain(module, params, **options):
    return module.SGD(params, lr=LR, **options)


def adagrad(module, params, **options):
    return module.Adagrad(params, lr=LR, **options)


def adamw(module, params, **options):
    return module.AdamW(params, lr=LR, **options)


def of_both(make, model, train, way="lists", **options):
    """Train a model by our class and by torch's, which must agree; return our optimizer."""
    ours, theirs = model(), model()
    with run_as(way) as compile:
        optimizer = make(gradtx.optim, ours.parameters(), compile=compile, **options)
        train(ours, optimizer)
        train(theirs, make(torch.optim, theirs.parameters(), **options))
    torch.testing.assert_close([*ours.parameters()], [*theirs.parameters()], rtol=TOLERANCE, atol=TOLERANCE)
    return optimizer


def ordinary(model, optimizer, steps=STEPS, **options):
    for t in range(steps):
        optimizer.zero_grad(**options)
        backward(model, t)
        optimizer.step()


# Models and training loops, beside torch's classes.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [sparse_adam, adagrad])
def test_a_table_alone_trains_as_by_torchs_class(make, way):
    of_both(make, TableAlone, ordinary, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [plain, momentum])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"max_norm": 0.5}], ids=str)
def test_a_table_with_dense_siblings_trains_as_by_torchs_class(options, make, way):
    of_both(make, lambda: Model(**options), ordinary, way)


@pytest.mark.parametrize("options", [{"nesterov": True}, {"dampening": 0.5}, {"maximize": True}], ids=str)
def test_options_of_momentum_mean_what_they_mean_in_torch(options):
    of_both(momentum, Model, ordinary, **options)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("make", [sparse_adam, momentum])
def test_a_bag_of_embeddings_trains_as_by_torchs_class(make, mode):
    of_both(make, lambda: Bag(mode), ordinary)


def test_a_maximized_loss_moves_rows_the_other_way():
    of_both(sparse_adam, TableAlone, ordinary, maximize=True)


@pytest.mark.parametrize("make", [sparse_adam, momentum])
def test_gradients_that_are_zeroed_in_place_train_as_by_torchs_class(make):
    def train(model, optimizer):
        ordinary(model, optimizer, set_to_none=False)

    of_both(make, TableAlone, train)


@pytest.mark.parametrize("way", WAYS)
def test_two_backward_passes_add_up_also_in_rows_that_both_list(way):
    def train(model, optimizer):
        for t in range(STEPS):
            optimizer.zero_grad()
            backward(model, t)
            backward(model, t + 1)
            optimizer.step()

    of_both(momentum, Model, train, way)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20),
    ],
    ids=["StepLR", "OneCycleLR"],
)
def test_groups_and_schedulers_of_rates_and_momentum_are_obeyed(scheduler):
    def make(module, params, **options):
        first, *others = params
        return momentum(module, [{"params": [first], "lr": 0.2}, {"params": others}], **options)

    def train(model, optimizer):
        schedule = scheduler(optimizer)
        for t in range(8):
            optimizer.zero_grad()
            backward(model, t)
            optimizer.step()
            schedule.step()

    of_both(make, Model, train)


def test_a_schedule_in_the_chain_follows_the_steps_with_sparse_gradients():
    schedule = gradtx.linear_schedule(0.1, total_iters=8)
    results = []
    for is_sparse in (True, False):
        param = table()
        optimizer = gradtx.optim.SGD([param], lr=schedule)
        rates = []
        for t in range(6):
            gradient = rows_of(param, [t, 2], t)
            param.grad = gradient if is_sparse else gradient.to_dense()
            if t == 3:
                param.grad = None
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])
        results.append([rates, param.detach()])
    assert results[0][0] == results[1][0]
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("way", WAYS)
def test_closures_and_consumed_gradients_train_as_by_torchs_class(way):
    def train(model, optimizer):
        is_ours = isinstance(optimizer, gradtx.optim.SGD)

        def closure():
            optimizer.zero_grad()
            return backward(model, 1)

        for _ in range(3):
            optimizer.step(closure, **({"consume_gradients": True} if is_ours else {}))
            if is_ours:
                assert all(param.grad is None for param in model.parameters())
        if is_ours:
            optimizer.step(closure, max_iter=2)
        else:
            optimizer.step(closure)
            optimizer.step(closure)

    of_both(momentum, Model, train, way)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_that_are_sparse_dense_empty_or_none_in_turn_take_torchs_dense_steps_and_count_once_each(way):
    draw = random.Random(0)
    ours, theirs = ([table(seed=0), table(seed=1), table(3, (), seed=2)] for _ in range(2))
    reference = momentum(torch.optim, theirs)
    counts = [0, 0, 0]
    with run_as(way) as compile:
        optimizer = momentum(gradtx.optim, ours, compile=compile)
        for t in range(30):
            for i, (param, other) in enumerate(zip(ours, theirs, strict=True)):
                kind = draw.choice(["sparse", "dense", "none", "empty"])
                rows = [] if kind == "empty" else [draw.randrange(len(param)) for _ in range(3)]
                gradient = None if kind == "none" else rows_of(param, rows, t)
                other.grad = None if gradient is None else gradient.to_dense()
                param.grad = other.grad if kind == "dense" else gradient
                counts[i] += gradient is not None
            optimizer.step()
            reference.step()
            if t % 9 == 4:
                optimizer.load_state_dict(optimizer.state_dict())
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
            assert [int(optimizer.state[param].get("step", 0)) for param in ours] == counts


def test_an_empty_gradient_counts_as_a_step_as_in_torch():
    ours, theirs = table(), table()
    optimizers = sparse_adam(gradtx.optim, [ours]), sparse_adam(torch.optim, [theirs])
    for rows in ([], [1, 2], [], [2]):
        for param, optimizer in zip((ours, theirs), optimizers, strict=True):
            param.grad = rows_of(param, rows)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    assert optimizers[0].state[ours]["step"] == 4


def test_frozen_tables_stay_as_they_are():
    model = Model()
    optimizer = momentum(gradtx.optim, model.parameters())
    model.table.weight.requires_grad_(False)
    before = model.table.weight.detach().clone()
    ordinary(model, optimizer, 2)
    assert_equal(model.table.weight, before)
    params = [table(), table()]
    tx = gradtx.chain(gradtx.freeze(lambda name, param: name == "first"), gradtx.sgd(0.1))
    optimizer = gradtx.as_optimizer(tx, zip(("first", "second"), params, strict=True))
    for param in params:
        param.grad = rows_of(param, [1])
    optimizer.step()
    assert [not torch.equal(param, table()) for param in params] == [False, True]


def test_hooks_anomaly_detection_and_a_compiled_training_step_work_as_with_dense_gradients():
    calls = []

    def train(model, optimizer):
        if isinstance(optimizer, gradtx.optim.SGD):
            optimizer.register_step_pre_hook(lambda *arguments: calls.append("before"))
            optimizer.register_step_post_hook(lambda *arguments: calls.append("after"))
        with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
            ordinary(model, optimizer, 2)

    of_both(momentum, Model, train)
    assert calls == ["before", "after"] * 2


@pytest.mark.filterwarnings("ignore")  # from the compiler, about code that it cannot trace
def test_a_training_step_under_torch_compile_takes_the_plain_steps():
    def train(model, optimizer):
        def step(index):
            optimizer.zero_grad()
            model(index).square().sum().backward()
            optimizer.step()

        compiled = torch.compile(step, backend="eager") if isinstance(optimizer, gradtx.optim.SGD) else step
        for t in range(3):
            compiled(batch(t))

    of_both(momentum, Model, train)


# Shapes, dtypes and codes.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 3, 2), (0,)], ids=str)
@pytest.mark.parametrize("rows", [7, 1])
def test_rows_of_any_shape_step_as_in_a_dense_gradient(rows, shape, way):
    ours, theirs = table(rows, shape), table(rows, shape)
    with run_as(way) as compile:
        optimizers = [momentum(gradtx.optim, [param], compile=compile) for param in (ours, theirs)]
        for t in range(3):
            theirs.grad = rows_of(theirs, [t % rows, 4 % rows], t)
            ours.grad, theirs.grad = theirs.grad, theirs.grad.to_dense()
            for optimizer in optimizers:
                optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("make", [sparse_adam, momentum])
def test_a_table_without_rows_only_counts(make):
    param = nn.Parameter(torch.zeros(0, WIDTH))
    param.grad = rows_of(param, [])
    optimizer = make(gradtx.optim, [param])
    optimizer.step()
    optimizer.step()
    assert optimizer.state[param]["step"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("make", [sparse_adam, momentum, adamw])
@pytest.mark.parametrize("way", WAYS)
def test_rows_step_as_a_table_of_these_rows_alone_in_any_dtype(way, make, dtype):
    rows = [1, 2, 5]
    param = table(dtype=dtype)
    alone = nn.Parameter(param.detach()[rows].clone())
    with run_as(way) as compile:
        optimizers = [make(gradtx.optim, [each], compile=compile) for each in (param, alone)]
        for t in range(3):
            param.grad = rows_of(param, rows, t)
            alone.grad = gradient_of(param)._values().clone()
            for optimizer in optimizers:
                optimizer.step()
    assert_equal(param.detach()[rows], alone.detach())


CODES = (torch.bfloat16, "int8", "int4", "float8", "bfloat16+8", "bfloat16:stochastic")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(64,), (2, 33)], ids=str)
@pytest.mark.parametrize("state_dtype", CODES, ids=str)
def test_coded_rows_keep_their_blocks_and_step_as_a_table_of_these_rows_alone(state_dtype, shape, way):
    for make in (
        lambda: gradtx.adamw(LR, state_dtype=state_dtype),
        lambda: gradtx.sgd(LR, momentum=0.9, state_dtype=state_dtype),
    ):
        rows = torch.arange(0, 200, 2)
        param = table(200, shape, torch.float32)
        alone = nn.Parameter(param.detach()[rows].clone())
        with run_as(way) as compile:
            optimizers = [gradtx.as_optimizer(make(), {"w": each}.items(), compile=compile) for each in (param, alone)]
            for t in range(3):
                param.grad = rows_of(param, rows.tolist(), t)
                alone.grad = gradient_of(param)._values().clone()
                for optimizer in optimizers:
                    optimizer.step()
        assert_equal(param.detach()[rows], alone.detach())


def test_rows_whose_coded_momentum_is_not_zero_move_without_a_gradient():
    param = table(200, (64,), torch.float32)
    optimizer = gradtx.as_optimizer(gradtx.sgd(LR, momentum=0.9, state_dtype="int8"), [param])
    for rows in ([3, 150], [7]):
        before = param.detach().clone()
        param.grad = rows_of(param, rows)
        optimizer.step()
    assert optimizer.state[param]["momentum_buffer"].dtype == torch.int8
    assert (param != before).any(1).nonzero()[:, 0].tolist() == [3, 7, 150]


@pytest.mark.parametrize(
    ("state_dtype", "shape"), [("factored", (200, 64)), ("int8", (5000,)), ("int4", (5000,))], ids=str
)
def test_a_code_that_rows_share_is_refused_by_name_before_anything_is_written(state_dtype, shape):
    param = table(shape[0], shape[1:], torch.float32)
    optimizer = gradtx.as_optimizer(gradtx.adam(LR, state_dtype=state_dtype), {"w": param}.items())
    param.grad = torch.ones_like(param)
    optimizer.step()
    before = seen(optimizer, [param])
    param.grad = rows_of(param, [1])
    with pytest.raises(RuntimeError, match=f"'w' has a sparse gradient, but the code '{state_dtype}.*'exp_avg' covers"):
        optimizer.step()
    assert_equal(seen(optimizer, [param]), before)
    param.grad = gradient_of(param).to_dense()
    optimizer.step()


# Gradients that are no rows of their parameter.

ROWS_OF_MANY = 150
BAD = {
    "single entries": (lambda param: param.detach().to_sparse(), RuntimeError, "is sparse in 2 dimensions.*to_dense"),
    "a row behind the last": (lambda param: rows_of(param, [1, ROWS]), ValueError, f"row {ROWS}.* rows 0 to 9"),
    "a negative row": (lambda param: rows_of(param, [-1, 2]), ValueError, "lists row -1"),
    "a coalesced row behind the last": (
        lambda param: rows_of(param, [1, 12], is_coalesced=True),
        ValueError,
        "lists row 12",
    ),
    "a coalesced negative row": (lambda param: rows_of(param, [-3, 2], is_coalesced=True), ValueError, "lists row -3"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("gradient", "error", "match"), BAD.values(), ids=BAD)
def test_a_bad_gradient_is_an_error_that_names_the_table_and_changes_nothing(gradient, error, match, way):
    params = [table(), table(seed=1), table(3, (), seed=2)]
    with run_as(way) as compile:
        optimizer = gradtx.optim.AdamW(zip("abc", params, strict=True), lr=LR, compile=compile)
        for t in range(3):
            for param in params:
                param.grad = rows_of(param, [t % len(param), 2], t)
            optimizer.step()
        before = seen(optimizer, params)
        params[1].grad = gradient(params[1])
        with pytest.raises(error, match=f"AdamW: the gradient of parameter 'b' .*{match}"):
            optimizer.step()
        assert_equal(seen(optimizer, params), before)
        params[1].grad = rows_of(params[1], [1])
        optimizer.step()
    assert [optimizer.state[param]["step"] for param in params] == [4, 4, 4]


def rows_of_ones(param, rows):
    index = torch.tensor([rows])
    return torch.sparse_coo_tensor(index, torch.ones(len(rows), *param.shape[1:]), param.shape, check_invariants=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sparse", [("p", "q"), ("p",), ("q",)], ids=str)
def test_a_table_that_shares_rows_with_another_parameter_that_steps_is_one_named_error(sparse, way):
    base = torch.zeros(20, 4)
    named = {"p": nn.Parameter(base[:10]), "q": nn.Parameter(base[5:15])}
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.1, momentum=0.9), named.items(), compile=way == "compiled")
    for name, param in named.items():
        param.grad = rows_of_ones(param, [6]) if name in sparse else torch.ones_like(param)
    for _ in range(2):
        with (
            gradtx.eagerly() if way == "eager" else contextlib.nullcontext(),
            pytest.raises(RuntimeError, match=r"'[pq]' has a sparse gradient, and shares memory with parameter '[pq]'"),
        ):
            optimizer.step()
    assert not base.any()
    named["q"].data = base[10:]  # which ends the matter
    optimizer.step()
    assert base.any()


def test_rows_that_a_gradient_falsely_claims_to_have_coalesced_are_added_up():
    param = table()
    before = param.detach().clone()
    param.grad = rows_of(param, [2, 2, 1], is_coalesced=True)
    expected = rows_of(param, [2, 2, 1]).to_dense()
    gradtx.optim.SGD([param], lr=1.0).step()
    torch.testing.assert_close(param.detach(), before - expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["Muon", "SOAP", "Shampoo", "Lamb", "Prodigy", "LBFGS"])
def test_rules_of_whole_leaves_refuse_rows_and_take_the_dense_gradient_that_the_error_suggests(name):
    param = table()
    optimizer = getattr(gradtx.optim, name)([("table", param)])
    for t in range(2):
        param.grad = rows_of(param, [t, 2], t).to_dense()
        optimizer.step()
    before = seen(optimizer, [param])
    param.grad = rows_of(param, [1, 2, 2])
    with pytest.raises(RuntimeError, match=rf"{name}: parameter 'table' has a sparse gradient.*to_dense\(\)"):
        optimizer.step()
    assert_equal(seen(optimizer, [param]), before)
    param.grad = gradient_of(param).to_dense()
    optimizer.step()
    assert optimizer.state[param]["step"] == 3


def test_a_partition_sends_the_table_to_sparse_adam_and_matrices_to_muon_as_the_error_suggests():
    ours, theirs = Model(), Model()
    tx = gradtx.partition(
        {"table": gradtx.sparse_adam(LR), "rest": gradtx.sgd(LR, momentum=0.9)},
        lambda name, param: "table" if "table" in name else "rest",
    )
    optimizer = gradtx.as_optimizer(tx, ours.named_parameters())
    others = [sparse_adam(torch.optim, theirs.table.parameters()), momentum(torch.optim, theirs.head.parameters())]
    for t in range(STEPS):
        for model in (ours, theirs):
            model.zero_grad()
            backward(model, t)
        for each in (optimizer, *others):
            each.step()
    torch.testing.assert_close([*ours.parameters()], [*theirs.parameters()], rtol=TOLERANCE, atol=TOLERANCE)


# Steps that fail.


@pytest.mark.parametrize("way", WAYS)
def test_a_closure_that_is_interrupted_leaves_tables_and_counts(way):
    params = [table(), table(3, (), seed=1)]
    is_interrupted = False

    def closure():
        params[0].grad, params[1].grad = rows_of(params[0], [1, 2]), torch.ones(3)
        if is_interrupted:
            raise KeyboardInterrupt
        return torch.tensor(1.0)

    with run_as(way) as compile:
        optimizer = adamw(gradtx.optim, params, compile=compile)
        for _ in range(3):
            optimizer.step(closure)
        before, is_interrupted = seen(optimizer, params), True
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(closure)
        assert_equal(seen(optimizer, params), before)
        is_interrupted = False
        optimizer.step(closure)
    assert [optimizer.state[param]["step"] for param in params] == [4, 4]


def test_a_rule_that_fails_leaves_table_slots_and_counts():
    is_broken = False

    @gradtx.per_tensor(elementwise=True)
    def scale_by_last():
        def init(param):
            return {"last": torch.zeros_like(param)}

        def update(update, state, param, ctx):
            if is_broken:
                raise ArithmeticError("a rule of the user's")
            return update + state["last"], {"last": update}

        return init, update

    params = [table(), table(8, (3,), seed=1), table(3, (), seed=2)]
    tx = gradtx.chain(gradtx.scale_by_adam(), scale_by_last(), gradtx.scale(-LR))
    optimizer = gradtx.as_optimizer(tx, zip("abc", params, strict=True))

    def gradients(t):
        for param in params[:2]:
            param.grad = rows_of(param, [t, 2, 3], t)
        params[2].grad = torch.ones(3)

    for t in range(3):
        gradients(t)
        optimizer.step()
    before, is_broken = seen(optimizer, params), True
    gradients(3)
    with gradtx.eagerly(), pytest.raises(ArithmeticError, match="a rule of the user's"):
        optimizer.step()
    assert_equal(seen(optimizer, params), before)
    is_broken = False
    optimizer.step()
    assert [optimizer.state[param]["step"] for param in params] == [4, 4, 4]


def test_a_row_that_is_nan_is_found_where_it_arises_and_changes_nothing():
    param = table()
    optimizer = gradtx.optim.AdamW([param], lr=LR)
    with gradtx.eagerly(nan="raise"):
        param.grad = rows_of(param, [1, 2])
        optimizer.step()
        before = seen(optimizer, [param])
        gradient_of(param)._values()[1, 1] = float("nan")
        with pytest.raises(FloatingPointError, match="leaf '0' at step 2: 1 of 8 entries of its gradient"):
            optimizer.step()
        assert_equal(seen(optimizer, [param]), before)


def test_state_that_is_written_replaced_or_cleared_between_steps_is_obeyed():
    param = table()
    optimizer = momentum(gradtx.optim, [param])
    for t in range(3):
        param.grad = rows_of(param, [t])
        optimizer.step()
    optimizer.state[param]["momentum_buffer"].zero_()
    before = param.detach().clone()
    param.grad = rows_of(param, [7])
    optimizer.step()
    assert (param != before).any(1).nonzero()[:, 0].tolist() == [7]
    optimizer.state[param]["step"] = torch.tensor(10.0)
    param.data = param.data.clone()
    param.grad = rows_of(param, [7])
    optimizer.step()
    assert optimizer.state[param]["step"] == 11
    optimizer.state.clear()
    optimizer.step()
    assert optimizer.state[param]["step"] == 1


# Scalers.


@pytest.mark.parametrize("options", [{}, {"amp_scaling": True}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("make", [sparse_adam, momentum])
@pytest.mark.parametrize("infinite_at", [None, 0, 2])
def test_a_scaler_unscales_rows_and_skips_a_step_with_an_infinite_one(infinite_at, make, options):
    torch.set_default_dtype(torch.float32)
    ours, theirs = Model(), Model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    optimizer = make(gradtx.optim, ours.parameters(), **options)
    reference = make(gradtx.optim, theirs.parameters())
    for t in range(4):
        ours.zero_grad()
        theirs.zero_grad()
        scaler.scale(ours(batch(t)).square().sum()).backward()
        before = seen(optimizer, ours.parameters())
        if t == infinite_at:
            gradient_of(ours.table.weight)._values()[0, 0] = float("inf")
        else:
            backward(theirs, t)
            reference.step()
        scaler.step(optimizer)
        scaler.update()
        if t == infinite_at:
            assert_equal([weight for weight, _ in seen(optimizer, ours.parameters())], [weight for weight, _ in before])
        else:
            gradients = [[gradient_of(param).to_dense() for param in model.parameters()] for model in (ours, theirs)]
            torch.testing.assert_close(*gradients)
    torch.testing.assert_close([*ours.parameters()], [*theirs.parameters()])
    for param, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert optimizer.state[param]["step"] == reference.state[other]["step"]


# Checkpoints and copies.


def saved_by_torch(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("make", [sparse_adam, momentum, adamw])
@pytest.mark.parametrize("how", ["load", "deepcopy", "pickle"])
@pytest.mark.parametrize("way", WAYS)
def test_a_run_resumes_bit_for_bit_from_a_dense_checkpoint_or_a_copy(way, how, make):
    param = table()
    with run_as(way) as compile:
        optimizer = make(gradtx.optim, [param], compile=compile)
        for t in range(3):
            param.grad = rows_of(param, [t, 2, 5], t)
            optimizer.step()
        param.grad = None
        if how == "load":
            other = nn.Parameter(param.detach().clone())
            resumed = make(gradtx.optim, [other], compile=compile)
            state_dict = saved_by_torch(optimizer)
            assert all(value.shape in ((), param.shape) for value in state_dict["state"][0].values())
            resumed.load_state_dict(state_dict)
        elif how == "deepcopy":
            other, resumed = copy.deepcopy((param, optimizer))
        else:
            other, resumed = pickle.loads(pickle.dumps((param, optimizer)))
        for t in range(3, 6):
            for each, stepping in ((param, optimizer), (other, resumed)):
                each.grad = rows_of(each, [t, 2, 7], t)
                stepping.step()
    assert_equal(seen(optimizer, [param]), seen(resumed, [other]))


@pytest.mark.parametrize("make", [sparse_adam, momentum])
def test_a_checkpoint_of_torchs_class_continues_in_ours_and_back(make):
    """Of torch's SGD, the momentum of sparse gradients is sparse itself."""
    ours, theirs = table(), table()
    reference = make(torch.optim, [theirs])
    for t in range(3):
        theirs.grad = rows_of(theirs, [t, 2, 5], t)
        reference.step()
    optimizer = make(gradtx.optim, [ours])
    optimizer.load_state_dict(reference.state_dict())
    ours.data.copy_(theirs.data)

    def go_on(start):
        for t in range(start, start + 3):
            for param, each in ((ours, optimizer), (theirs, reference)):
                param.grad = rows_of(param, [t, 2], t)
                each.step()
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)

    go_on(3)
    reference = make(torch.optim, [theirs])
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    go_on(6)


# Options of the step.


@pytest.mark.parametrize("make", [sparse_adam, momentum, adamw])
@pytest.mark.parametrize("way", WAYS)
def test_released_gradients_step_bit_for_bit_as_ordinary_ones(way, make):
    models = Model(), Model()
    with run_as(way) as compile:
        optimizers = [make(gradtx.optim, model.parameters(), compile=compile) for model in models]
        handle = optimizers[0].release_gradients()
        for t in range(STEPS):
            for model, optimizer in zip(models, optimizers, strict=True):
                optimizer.zero_grad()
                backward(model, t)
                optimizer.step()
            assert models[0].table.weight.grad is None
        handle.remove()
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            backward(model, STEPS)
            optimizer.step()
    first, second = (seen(optimizer, model.parameters()) for model, optimizer in zip(models, optimizers, strict=True))
    assert_equal(first, second)


def test_released_gradients_of_a_table_are_accumulated_over_several_backward_passes():
    models = TableAlone(), TableAlone()
    tx = gradtx.accumulate(gradtx.sgd(LR, momentum=0.9), every=3)
    released, ordinary = (gradtx.as_optimizer(tx, model.parameters()) for model in models)
    released.release_gradients()
    for t in range(9):
        backward(models[0], t)
        ordinary.zero_grad()
        backward(models[1], t)
        ordinary.step()
    released.step()
    assert_equal([*models[0].parameters()], [*models[1].parameters()])


@pytest.mark.parametrize("make", [sparse_adam, momentum])
def test_state_on_the_host_steps_bit_for_bit_as_beside_the_table(make, monkeypatch):
    monkeypatch.setattr(offload, "is_elsewhere", lambda param: True)
    models = Model(), Model()
    optimizers = (
        make(gradtx.optim, models[0].parameters(), state_device="cpu"),
        make(gradtx.optim, models[1].parameters()),
    )
    for t in range(STEPS):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            backward(model, t)
            optimizer.step()
    assert_equal([*models[0].parameters()], [*models[1].parameters()])


@pytest.mark.parametrize("make", [sparse_adam, momentum])
def test_a_capturable_optimizer_steps_as_another_one_outside_of_graphs(make):
    models = Model(), Model()
    optimizers = [
        make(gradtx.optim, model.parameters(), capturable=is_capturable)
        for model, is_capturable in zip(models, (True, False), strict=True)
    ]
    for t in range(STEPS):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            backward(model, t)
            optimizer.step()
    first, second = ([*model.parameters()] for model in models)
    torch.testing.assert_close(first, second, rtol=TOLERANCE, atol=TOLERANCE)


# Combinators.


@pytest.mark.parametrize("way", WAYS)
def test_accumulate_takes_the_mean_over_the_union_of_rows(way):
    ours, theirs = table(), table()
    with run_as(way) as compile:
        tx = gradtx.accumulate(gradtx.sparse_adam(LR), every=3)
        optimizer = gradtx.as_optimizer(tx, [ours], compile=compile)
        reference = sparse_adam(torch.optim, [theirs])
        for cycle in range(3):
            gradients = [rows_of(ours, [(t + cycle) % ROWS, 2, 3 * cycle], t) for t in range(3)]
            for gradient in gradients:
                ours.grad = gradient
                optimizer.step()
            theirs.grad = (sum(gradients[1:], gradients[0]) / 3).coalesce()
            reference.step()
            torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("way", WAYS)
def test_accumulate_is_the_same_for_sparse_dense_and_no_gradients_in_turn(way):
    """Also of a table whose sibling has no gradient."""
    ours, theirs = ([table(seed=0), table(seed=1)] for _ in range(2))
    tx = gradtx.accumulate(gradtx.sgd(LR, momentum=0.9), every=3)
    with run_as(way) as compile:
        optimizers = [gradtx.as_optimizer(tx, params, compile=compile) for params in (ours, theirs)]
        for t in range(18):
            for i, (param, other) in enumerate(zip(ours, theirs, strict=True)):
                gradient = rows_of(param, [t % ROWS, 2], t)
                param.grad = (gradient, gradient.to_dense(), None, gradient, gradient)[(t + i) % 5]
                other.grad = None if param.grad is None else gradient.to_dense()
            for optimizer in optimizers:
                optimizer.step()
            torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
            for param, other in zip(ours, theirs, strict=True):
                assert optimizers[0].state[param]["step"] == optimizers[1].state[other]["step"]


def test_a_step_with_a_row_that_is_not_finite_is_skipped_by_skip_nonfinite():
    ours, theirs = table(), table()
    optimizer = gradtx.as_optimizer(gradtx.skip_nonfinite(gradtx.sparse_adam(LR)), [ours])
    reference = sparse_adam(torch.optim, [theirs])
    for t in range(5):
        ours.grad, theirs.grad = rows_of(ours, [t, 2], t), rows_of(theirs, [t, 2], t)
        if t == 3:
            ours.grad._values()[0, 0] = float("nan")
        else:
            reference.step()
        optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


# What a run says of itself.


@pytest.mark.parametrize("make", [sparse_adam, momentum, adamw])
@pytest.mark.parametrize("way", ["lists", "compiled"])
@pytest.mark.parametrize("per", ["leaf", "all"])
def test_a_watch_sees_the_rows_that_step_and_changes_nothing(per, way, make):
    models = Model(), Model()
    optimizers = [make(gradtx.optim, model.parameters(), compile=way == "compiled") for model in models]
    watch = gradtx.watch(optimizers[0], every=1, per=per)
    for t in range(8):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            backward(model, t)
            if t == 5:
                model.table.weight.grad = gradient_of(model.table.weight).to_dense()
            optimizer.step()
    assert_equal([*models[0].parameters()], [*models[1].parameters()])
    assert watch.steps == list(range(1, 9))
    watch.diagnose()
    if per == "leaf":
        leaf = optimizers[0].explain()[0].name
        record = next(each for each in watch.records if each["link"] == "step" and each["leaf"] == leaf)
        rows = batch(0).unique()
        other = Model()
        backward(other, 0)
        norm = gradient_of(other.table.weight).to_dense()[rows].norm().item()
        assert record["norm_before"] == pytest.approx(norm, rel=1e-6)  # a watch sums in float32


@pytest.mark.parametrize("way", WAYS)
def test_explain_names_the_table_and_how_it_was_updated(way):
    model = Model()
    with run_as(way) as compile:
        optimizer = momentum(gradtx.optim, model.named_parameters(), compile=compile)
        ordinary(model, optimizer, 2)
        explanation = optimizer.explain()
    ways = {each.name: each.way for each in explanation}
    assert ways["table.weight"] == {"lists": "lists", "compiled": "kernels", "eager": "alone"}[way]
    assert "table.weight" in str(explanation)


# What `explain` says.


@pytest.mark.parametrize("compiled", [False, True], ids=["lists", "kernels"])
def test_explain_says_how_many_rows_stepped_and_the_bytes_that_they_moved(compiled):
    param, bias = table(1000, (8,), torch.float32), torch.nn.Parameter(torch.zeros(3))
    optimizer = gradtx.as_optimizer(gradtx.adamw(LR), {"w": param, "b": bias}.items(), compile=compiled)
    param.grad, bias.grad = rows_of(param, [1, 5, 5]), torch.ones(3)
    optimizer.step()
    explanation = optimizer.explain()
    (rows,) = explanation.rows
    of_two_rows = 2 * 8 * 4
    # Weights, gradient and two averages; all but the gradient are written.
    assert (rows.name, rows.rows, rows.of) == ("w", 2, 1000)
    assert (rows.read, rows.written) == (4 * of_two_rows, 3 * of_two_rows)
    assert "w: 2 of 1,000 rows, 256 bytes read, 192 bytes written" in str(explanation)
    assert {way.name: way.way for way in explanation} == dict.fromkeys("wb", "kernels" if compiled else "lists")
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.explain().rows == []


# Programs.


@pytest.mark.parametrize("compiled", [False, True], ids=["lists", "kernels"])
def test_few_programs_run_any_number_of_rows(compiled):
    """A rule of a user may do something else for more rows, so it is recorded for each size: these are few."""
    calls = []

    @gradtx.per_tensor(elementwise=True)
    def counted():
        def update(update, state, param, ctx):
            calls.append(len(update))
            return -update, state

        return update

    param = table(ROWS_OF_MANY, (4,), torch.float64)
    optimizer = gradtx.as_optimizer(counted(), [param], compile=compiled)
    expected = param.detach().clone()
    for count in range(1, 120):
        param.grad = rows_of(param, list(range(count)))
        expected -= param.grad.to_dense()
        optimizer.step()
    torch.testing.assert_close(param.detach(), expected)
    assert set(calls) <= {16, 32, 64, 128}
    assert len(calls) < 30


def test_sums_behind_a_rule_count_the_listed_rows_alone():
    """Rows of zeros that only fill up a leaf would add the steps that a rule makes of them."""

    @gradtx.per_tensor(elementwise=True)
    def plus_one():
        return lambda update, state, param, ctx: (update + 1, state)

    tx = gradtx.chain(plus_one(), gradtx.clip_by_global_norm(1.0), gradtx.scale(-1.0))
    param = table(ROWS_OF_MANY, (4,), torch.float64)
    before = param.detach().clone()
    optimizer = gradtx.as_optimizer(tx, [param])
    param.grad = rows_of(param, [0, 3, 7])
    moved = param.grad.to_dense()[[0, 3, 7]] + 1
    optimizer.step()
    torch.testing.assert_close(before[[0, 3, 7]] - param.detach()[[0, 3, 7]], moved / (moved.norm() + 1e-6))
    (way,) = optimizer.explain()
    assert (way.way, way.reason) == ("alone", OTHER_PROGRAMS)


@pytest.mark.parametrize("compiled", [False, True], ids=["lists", "kernels"])
def test_tables_of_two_kinds_change_their_numbers_of_rows_independently(compiled):
    """One has a program for any number of rows, the other one for few numbers."""
    tx = gradtx.partition({"a": gradtx.adagrad(0.1), "b": gradtx.lazy_rows(gradtx.sgd(0.1))}, {"a": "a", "b": "b"})
    params = {name: table(ROWS_OF_MANY, (4,), torch.float64) for name in "ab"}
    twins = {name: torch.nn.Parameter(param.detach().clone()) for name, param in params.items()}
    optimizer = gradtx.as_optimizer(tx, params.items(), compile=compiled)
    others = torch.optim.Adagrad([twins["a"]], 0.1), torch.optim.SGD([twins["b"]], 0.1)
    draw = random.Random(0)
    for counts in ((3, 3), (70, 3), (70, 70), (2, 70), (130, 20), (9, 17)):
        for name, count in zip("ab", counts, strict=True):
            params[name].grad = rows_of(params[name], draw.sample(range(ROWS_OF_MANY), count))
            twins[name].grad = params[name].grad.clone()
        optimizer.step()
        for other in others:
            other.step()
    for name in "ab":
        torch.testing.assert_close(params[name], twins[name], rtol=1e-12, atol=1e-12)
