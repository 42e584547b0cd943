"""Programs of rules that branch by the count, such as Shampoo: they equal steps leaf by leaf, bit for bit."""

import pytest
import torch

import gradtx
from gradtx.execution.leaf_rule import RuleOperation
from gradtx.maths.matrices import inverse_root
from gradtx.state.random import name_key
from tests.optim.problems import assert_equal

F32, F64 = torch.float32, torch.float64
SHAPES = {"matrix": (4, 3), "kernel": (2, 3, 2), "vector": (5,), "norm": (5,), "single": (1,), "empty": (0,), "0-d": ()}
VECTORS = {name: shape for name, shape in SHAPES.items() if len(shape) < 2 and name != "empty"}

EVERYWHERE = {
    "shampoo": gradtx.shampoo(lr=0.1),
    "shampoo with momentum": gradtx.shampoo(
        lr=0.1, momentum=0.5, weight_decay=0.1, preconditioning_compute_steps=3, variant="moskomule"
    ),
    "scalable_shampoo": gradtx.scalable_shampoo(
        lr=0.1, block_size=2, start_preconditioning_step=2, preconditioning_compute_steps=2, weight_decay=0.1
    ),
    "accumulate": gradtx.accumulate(gradtx.shampoo(lr=0.1, preconditioning_compute_steps=2), every=2),
    "skip": gradtx.skip_nonfinite(gradtx.shampoo(lr=0.1)),
    "diagonal psgd_kron": gradtx.psgd_kron(lr=0.1, memory_save_mode="all_diag", balance_every=2),
}
EVERY = {"precondition_frequency": 2}
EVERYWHERE |= {
    "soap": gradtx.soap(lr=0.1, **EVERY),
    "soap of merged dimensions": gradtx.soap(lr=0.1, merge_dims=True, precondition_1d=True, weight_decay=0.1, **EVERY),
    "soap, normalized": gradtx.soap(lr=0.1, normalize_gradient=True, correct_bias=False, max_precondition_dim=3),
    "kl_soap": gradtx.kl_soap(lr=0.1, **EVERY),
    "kl_shampoo": gradtx.kl_shampoo(lr=0.1, **EVERY),
    "soap_laprop": gradtx.soap_laprop(lr=0.1, **EVERY),
    "two-sided eigh of gradients": gradtx.chain(
        gradtx.trace(0.9),
        gradtx.rotated(gradtx.scale_by_adam(), start="identity", refresh="eigh", of="grad", offset=0, **EVERY),
        gradtx.scale(-0.1),
    ),
    "one-sided in 8 bits": gradtx.with_state_dtype(
        gradtx.chain(gradtx.rotated(gradtx.scale_by_adam_hat(), sides="short", **EVERY), gradtx.scale(-0.1)),
        "int8",
        min_size=1,
    ),
    "galore": gradtx.galore(lr=0.1, rank=2, update_proj_gap=2),
    "fira": gradtx.fira(lr=0.1, rank=2, update_proj_gap=3),
    "apollo_low_rank": gradtx.apollo_low_rank(lr=0.1, rank=2, update_proj_gap=3, projection="svd"),
    "low_rank by power": gradtx.low_rank(gradtx.adamw(lr=0.1), rank=2, every=2, projection="power", carry="rotate"),
    "low_rank from the start": gradtx.low_rank(gradtx.adamw(lr=0.1), rank=2, every=3, carry="reset", side="long"),
    "low_rank in accumulate": gradtx.accumulate(gradtx.low_rank(gradtx.adamw(lr=0.1), rank=2, every=2), every=2),
    "soap in skip_nonfinite": gradtx.skip_nonfinite(gradtx.soap(lr=0.1, **EVERY)),
}
EVERYWHERE |= {
    "psgd_kron": gradtx.psgd_kron(lr=0.1, weight_decay=0.1),
    "psgd_kron every third step": gradtx.psgd_kron(lr=0.1, precondition_frequency=3, clip_rms=0.5),
    "psgd_kron of gradients": gradtx.psgd_kron(lr=0.1, momentum_into_precond_update=False),
}


def noise(seed, dtype=F32):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}


def alone(monkeypatch):
    """Have leaves step one at a time."""
    monkeypatch.setattr(RuleOperation, "refusal", lambda operation, leaf, skips_work: "a test")


def trained(tx, steps=7, without=lambda step: (), **options):
    """An optimizer after some steps, and its parameters."""
    params = {name: torch.nn.Parameter(value) for name, value in noise(0).items()}
    optimizer = gradtx.as_optimizer(tx, params.items(), **options)
    for step in range(1, steps + 1):
        for name, gradient in noise(step).items():
            params[name].grad = None if name in without(step) else gradient
        optimizer.step()
    return optimizer, params


def assert_identical(tx, monkeypatch, **options):
    """Assert that programs take parameters and slots to the same bits; return how each leaf runs."""
    optimizer, params = trained(tx, **options)
    alone(monkeypatch)
    other, expected = trained(tx, **options)
    assert {way.way for way in other.explain() if way.name in VECTORS} == {"alone"}
    for name, param in params.items():
        assert torch.equal(param, expected[name]), name
        for slot, value in other.state[expected[name]].items():
            assert torch.equal(optimizer.state[param][slot], value), (name, slot)
    return {way.name: way.way for way in optimizer.explain()}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_all_leaves_run_in_programs_and_equal_those_alone_bit_for_bit(name, monkeypatch):
    ways = assert_identical(EVERYWHERE[name], monkeypatch)
    assert ways == dict.fromkeys(SHAPES, "lists")


@pytest.mark.parametrize("name", ["shampoo with momentum", "diagonal psgd_kron"])
def test_leaves_of_other_counts_equal_those_alone_bit_for_bit(name, monkeypatch):
    def without(step):
        return {2: ["vector"], 3: ["0-d", "matrix"], 4: ["vector"]}.get(step, [])

    assert_identical(EVERYWHERE[name], monkeypatch, without=without)


@pytest.mark.nightly  # 4 s
def test_annealed_updates_stay_those_of_leaves_alone_once_they_are_rare(monkeypatch):
    assert_identical(EVERYWHERE["psgd_kron"], monkeypatch, steps=520)  # from step 502 on, not every step


@pytest.mark.parametrize("tx", EVERYWHERE.values(), ids=EVERYWHERE)
def test_pure_programs_equal_pure_updates_leaf_by_leaf(tx, monkeypatch, forget_programs):
    def trained():
        fresh = tx._replaced({}, checked=False)
        params = noise(0, F64)
        state = fresh.init(params)
        for step in range(1, 6):
            updates, state = fresh.update(noise(step, F64), state, params)
            params = gradtx.apply_updates(params, updates)
        return params, state

    found = trained()
    alone(monkeypatch)
    forget_programs()
    # Leaf by leaf, Shampoo computes in the same order, but corrections are 0-d tensors, not Python numbers.
    torch.testing.assert_close(found, trained(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.shampoo(lr=0.1, preconditioning_compute_steps=2, stagger=True),
        gradtx.psgd_kron(lr=0.1, probes="random"),
        gradtx.soap(lr=0.1, precondition_1d=True, stagger=True),
        gradtx.low_rank(gradtx.adamw(), rank=2, projection="random"),
    ],
    ids=["in turns", "random", "space in turns", "random space"],
)
def test_leaves_run_alone_if_a_program_would_need_their_names(tx):
    optimizer, _ = trained(tx, steps=2)
    ways = {way.name: way for way in optimizer.explain()}
    assert ways["matrix"].way == "alone"
    assert "has no program" in ways["matrix"].reason


@gradtx.per_tensor(elementwise=True)
def scale_by_turn():
    def update(update, state, param, ctx):
        return update * (1.0 + ctx.turn(1000)), state

    return update


@pytest.mark.parametrize("compile", [False, True])
def test_a_rule_of_the_user_that_reads_names_runs_alone(compile):
    tx = gradtx.chain(scale_by_turn(), gradtx.scale(-1.0))
    ones = {name: torch.ones(2) for name in ("a", "b", "c")}
    expected = {name: -(1.0 + name_key(name) % 1000) * value for name, value in ones.items()}
    assert len({value[0].item() for value in expected.values()}) == 3
    params = {name: torch.nn.Parameter(torch.zeros(2)) for name in ones}
    optimizer = gradtx.as_optimizer(tx, params.items(), compile=compile)
    for name, param in params.items():
        param.grad = ones[name]
    optimizer.step()
    assert {way.way for way in optimizer.explain()} == {"alone"}
    updates, _ = tx.update(ones, tx.init(ones))
    for name, value in expected.items():
        assert torch.equal(params[name], value)
        assert torch.equal(updates[name], value)


def test_a_root_is_not_computed_twice_for_a_sum_that_follows(monkeypatch):
    tx = gradtx.chain(gradtx.scale_by_shampoo(), gradtx.clip_by_global_norm(1.0), gradtx.scale(-0.1))
    optimizer, _ = trained(tx, steps=2)
    ways = {way.name: way for way in optimizer.explain()}
    assert ways["vector"].way == "alone"
    assert "would run twice" in ways["vector"].reason


@gradtx.per_tensor(dims=(2, 2), compiles="lists")
def whiten(every: int, phase: int, first: bool):
    def root_of(u):
        return inverse_root(u @ u.T + torch.eye(len(u), dtype=u.dtype), 0.5)

    def update(u, state, p, ctx):
        root = ctx.every(every, phase, lambda: root_of(u), lambda: state["root"], first=first)
        return root @ u, {"root": root}

    return {"root": lambda param: torch.eye(len(param), dtype=param.dtype)}, update


@pytest.mark.parametrize(
    ("first", "phase", "expected"),
    [(False, 0, [3, 6]), (True, 0, [1, 3, 6]), (True, 1, [1, 4, 7]), (True, 2, [1, 2, 5])],
)
def test_work_that_is_due_in_the_first_step_too_is_skipped_in_others(first, phase, expected, roots):
    weight = torch.nn.Parameter(torch.eye(3, dtype=F64))
    optimizer = gradtx.as_optimizer(gradtx.chain(whiten(3, phase, first), gradtx.scale(-0.1)), [weight])
    steps = []
    for step in range(1, 8):
        weight.grad = torch.randn(3, 3, generator=torch.Generator().manual_seed(step), dtype=F64)
        before = len(roots())
        optimizer.step()
        steps += [step] * (len(roots()) - before)
    assert steps == expected
    assert {way.way for way in optimizer.explain()} == {"lists"}


@pytest.mark.parametrize("tx", [EVERYWHERE["shampoo"], EVERYWHERE["psgd_kron"]], ids=["shampoo", "psgd_kron"])
def test_kernels_leave_these_rules_to_programs_over_lists(tx):
    optimizer, _ = trained(tx, steps=2, compile=True)
    assert {way.way for way in optimizer.explain() if way.name in VECTORS} == {"lists"}


# Roots.


@pytest.fixture
def roots(monkeypatch):
    """The dtypes of the matrices whose eigenvalues are computed; in float32, this fails while `fails` is set."""
    seen = []
    original = torch.linalg.eigh

    def eigh(x):
        if not x.is_meta:
            seen.append(x.dtype)
            if roots.fails and x.dtype == F32:
                raise torch.linalg.LinAlgError("failed to converge")
        return original(x)

    def roots():
        return seen

    roots.fails = False
    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    return roots


def test_a_root_that_is_not_due_is_not_computed(roots):
    vectors = len(VECTORS) - 1  # a 0-d leaf has no root
    tx = gradtx.shampoo(lr=0.1, preconditioning_compute_steps=3)
    params = {name: torch.nn.Parameter(noise(0)[name]) for name in VECTORS}
    optimizer = gradtx.as_optimizer(tx, params.items())
    counts = []
    for step in range(1, 8):
        for name, param in params.items():
            param.grad = noise(step)[name]
        before = len(roots())
        optimizer.step()
        counts.append(len(roots()) - before)
    assert counts == [vectors if (step - 1) % 3 == 0 else 0 for step in range(1, 8)]


def test_a_basis_that_is_not_due_is_not_computed(monkeypatch):
    factorized = []
    original = torch.linalg.qr

    def qr(x):
        factorized.append(x.shape)
        return original(x)

    monkeypatch.setattr(torch.linalg, "qr", qr)
    tx = gradtx.soap(lr=0.1, precondition_frequency=3)
    weight = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = gradtx.as_optimizer(tx, [("matrix", weight)])
    params = {"matrix": torch.ones(4, 3)}
    state = tx.init(params)
    counts = []
    for step in range(1, 8):
        gradient = noise(step)["matrix"]
        weight.grad = gradient
        optimizer.step()
        after_step = len(factorized)
        _, state = tx.update({"matrix": gradient}, state, params)
        counts.append((after_step, len(factorized) - after_step))
        factorized.clear()
    assert [way.way for way in optimizer.explain()] == ["lists"]
    expected = {4: (2, 2), 7: (2, 2)}  # one for each side; the first bases are eigenvectors
    assert counts[1:] == [expected.get(step, (0, 0)) for step in range(2, 8)]


def test_a_root_that_fails_in_single_precision_is_computed_in_double_precision(roots):
    _, expected = trained(EVERYWHERE["shampoo"])
    roots.fails = True
    optimizer, params = trained(EVERYWHERE["shampoo"])
    assert {way.way for way in optimizer.explain()} == {"lists"}
    assert F64 in roots()
    for name, param in params.items():
        # The roots of the first statistics, which are nearly singular, are less accurate in single precision.
        torch.testing.assert_close(param, expected[name], rtol=2e-2, atol=2e-2)


ROOTS = {
    "shampoo": gradtx.shampoo(momentum=0.5),
    "scalable_shampoo": gradtx.scalable_shampoo(block_size=3, preconditioning_compute_steps=1),
}


def with_gradients(tx, shapes):
    """An optimizer after two steps, and its parameters."""
    params = []
    for i, shape in enumerate(shapes):
        params.append(torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(i))))
    optimizer = gradtx.as_optimizer(tx, params)
    for _ in range(2):
        for param in params:
            param.grad = param.detach().sin()
        optimizer.step()
    return optimizer, params


def tensors_of(optimizer, param):
    return [tensor.clone() for tensor in (param.detach(), *optimizer.state[param].values())]


@pytest.mark.parametrize("tx", [*ROOTS.values(), gradtx.polargrad(lr=0.1, method="exact")], ids=[*ROOTS, "polargrad"])
def test_a_gradient_of_nan_makes_its_own_leaf_nan_and_the_others_step(tx):
    shapes = [(4, 3), (5, 5), (4, 3), (2, 6)]
    optimizer, params = with_gradients(tx, shapes)
    other, expected = with_gradients(tx, shapes)
    params[2].grad = torch.full((4, 3), torch.nan)
    optimizer.step()
    other.step()
    assert params[2].isnan().all()
    for i in (0, 1, 3):
        assert_equal(tensors_of(optimizer, params[i]), tensors_of(other, expected[i]))


# Lists.


def test_counts_of_leaves_are_numbers_of_the_program(bundled):
    trained(EVERYWHERE["psgd_kron"], steps=2)
    equal = {key: dtype for signature, _ in bundled for key, dtype in signature.equal.items()}
    assert equal == {"since_update": torch.int64, "updates": torch.int64}
