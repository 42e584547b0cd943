import math

import pytest
import torch

import gradtx
from gradtx.base import torch_names as _torch
from gradtx.maths.polynomials import POLAR_EXPRESS
from tests import references as ref
from tests.matrix_problem import MATRICES, SEEDS, drawn, eigenvectors, follows
from tests.references import TOLERANCE, Loop, Transformed, WeightsLoop, first_update, named

STEPS = 30


def balanced(x, steps=10, eps=1e-8):
    """Record 26: each row's energy to 1/r, each column's to 1/c, then Muon's norm."""
    r, c = x.shape
    B = x**2 + eps
    a, b = torch.ones(r, dtype=x.dtype), torch.ones(c, dtype=x.dtype)
    for _ in range(steps):
        a = 1 / r / (B @ b + eps)
        b = 1 / c / (B.T @ a + eps)
    y = a.sqrt()[:, None] * x * b.sqrt()[None, :]
    return y * r**0.5 / max(y.norm().item(), eps)


def energy(s, t, g, p, **options):
    return p - 0.05 * balanced(g, **options)


def sink_soap(s, t, g, p):
    s.m = 0.95 * s.m + 0.05 * g
    u = 0.95 * s.m + 0.05 * g
    s.L, s.R = 0.95 * s.L + 0.05 * g @ g.T, 0.95 * s.R + 0.05 * g.T @ g
    U, V = eigenvectors(s.L), eigenvectors(s.R)
    return p - 0.05 * U @ balanced(U.T @ u @ V) @ V.T


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", [{}, {"steps": 3, "eps": 0.1}, {"steps": 0}], ids=named)
def test_balanced_energy_follows_the_loop(options, seed):
    tx = gradtx.chain(gradtx.balance_energy(**options), gradtx.scale_by_learning_rate(0.05))
    follows(tx, WeightsLoop(energy, **options), seed, STEPS, MATRICES, tolerance=TOLERANCE)


def test_balanced_rows_and_columns_have_equal_norms():
    tx = gradtx.balance_energy(steps=100)
    update = tx.update({"w": drawn(3, 5)}, tx.init({}))[0]["w"]
    torch.testing.assert_close(update.square().sum(1), torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(update.square().sum(0), torch.full((5,), 0.6, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_sink_soap_is_a_chain(seed):
    bases = gradtx.rotated(
        gradtx.balance_energy(), of="grad", beta=0.95, refresh="eigh", order="before", precondition_frequency=1
    )
    tx = gradtx.chain(gradtx.trace_ema(0.95, nesterov=True), bases, gradtx.scale_by_learning_rate(0.05))
    follows(tx, WeightsLoop(sink_soap), seed, STEPS, MATRICES, tolerance=TOLERANCE)


def test_a_leaf_that_is_no_matrix_is_an_error():
    with pytest.raises(ValueError, match="balance_energy: leaf 'b' has shape"):
        gradtx.balance_energy().init({"b": torch.ones(3)})


WIDE = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def shape_scale(s, t, g, p, adjust=None, factor=0.2, view="matrix"):
    rows, cols = (p.shape[0], p.numel() // p.shape[0]) if view == "flatten" else p.shape[-2:]
    return g * (factor * math.sqrt(max(rows, cols)) if adjust == "match_rms_adamw" else math.sqrt(max(1, rows / cols)))


def neurons(s, t, g, p, beta=0.95, eps=1e-10, axis="rows", rms=None):
    out = []
    matrices = g.reshape(-1, *g.shape[-2:])
    if t == 1:
        s.q = [torch.zeros(g.shape[-2], dtype=g.dtype) for _ in matrices]
    for n, u in enumerate(matrices):
        s.q[n] = beta * s.q[n] + (1 - beta) * (u**2).mean(1)
        v = u / (s.q[n].sqrt() + eps)[:, None]
        out.append(v * (u.norm() if rms is None else rms * math.sqrt(u.numel())) / max(v.norm().item(), eps))
    return torch.stack(out).reshape(g.shape)


def only(*names):
    """The part of a stepper's input with these leaves; the others stay."""

    def cut(make):
        step = None

        def one(grads, params):
            nonlocal step
            step = step or make()
            return step({n: grads[n] for n in names}, {n: params[n] for n in names})

        return one

    return cut


def follows_on_matrices(tx, rule, **options):
    cut = only("matrix", "kernel", "rows")
    ref.follows(cut(lambda: Transformed(tx)), cut(lambda: Loop(rule, **options)), rate=-0.02, tolerance=1e-12)


@pytest.mark.parametrize(
    ("make", "rule", "options"),
    [
        (gradtx.scale_by_shape, shape_scale, {"view": "batch"}),
        (gradtx.scale_by_shape, shape_scale, {"view": "flatten", "adjust": "original"}),
        (gradtx.scale_by_shape, shape_scale, {"view": "flatten", "adjust": "match_rms_adamw", "factor": 0.7}),
        (gradtx.normalize_neurons, neurons, {}),
        (gradtx.normalize_neurons, neurons, {"beta": 0.3, "eps": 0.2}),
        (gradtx.normalize_neurons, neurons, {"beta": 0.3, "rms": 0.4}),
    ],
    ids=named,
)
def test_the_updates_follow_the_loop(make, rule, options):
    follows_on_matrices(make(**options), rule, **options)


# Name -> (triples, steps), from the papers and codes.
J = (3.4445, -4.7750, 2.0315)
SETS = {
    "simple": ([J], 5),
    "quintic": (
        [
            (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        ],
        5,
    ),
    "cans": (
        [
            (8.4703, -25.1081, 18.6293), (4.1828, -3.1087, 0.5806), (3.9619, -2.9541, 0.5630),
            (3.2866, -2.4647, 0.5074), (2.2737, -1.6447, 0.4162),
        ],
        5,
    ),
    "deepseekv4": ([J] * 8 + [(2.0, -1.5, 0.5)], 10),
    "cubic5": (
        [
            (3.3656576, -3.3420992, 0.0), (2.5744352, -1.4957376, 0.0), (2.5368962, -1.4312570, 0.0),
            (2.4418906, -1.2764040, 0.0), (2.2230472, -0.9630650, 0.0),
        ],
        5,
    ),
    "newton_schulz": ([(2.0, -1.5, 0.5)], 12),
}  # fmt: skip


def orthogonal(x, triples, steps, start="fro"):
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T, triples, steps, start).T
    x = x / x.norm()
    if start == "schatten4":
        x = x / (x @ x.T).norm().sqrt()
    if start == "aol":
        x = x / (x @ x.T).abs().sum(1, keepdim=True).sqrt()
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    for i in range(steps):
        a, b, c = triples[min(i, len(triples) - 1)]
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("start", ["fro", "schatten4", "aol"])
@pytest.mark.parametrize("name", SETS)
def test_a_named_set_is_its_polynomials_with_its_own_number_of_steps(name, start):
    triples, steps = SETS[name]
    for seed in (1, 2):
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for matrix in (x, x.T):
            tx = gradtx.orthogonalize(name, start=start)
            result = torch.tensor(first_update(tx, matrix.tolist()), dtype=torch.float64)
            expected = orthogonal(matrix, triples, steps, start)
            torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    again = gradtx.orthogonalize(tuple(triples), steps, start=start)
    assert first_update(again, x.tolist()) == first_update(gradtx.orthogonalize(name, start=start), x.tolist())


def test_polar_express_takes_every_singular_value_from_a_thousandth_to_1():
    values = torch.logspace(-3, 0, 200, dtype=torch.float64)
    for a, b, c in POLAR_EXPRESS:
        values = a * values + b * values**3 + c * values**5
    assert (values - 1).abs().max() < 1e-12


@pytest.mark.parametrize("start", ["fro", "schatten4", "aol"])
def test_matrices_of_zeros_and_of_rank_one_stay_finite(start):
    tx = gradtx.orthogonalize("quintic", start=start)
    assert first_update(tx, [[0.0, 0.0], [0.0, 0.0]]) == [[0.0, 0.0], [0.0, 0.0]]
    update = torch.tensor(first_update(tx, [[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]]))
    assert update[1].abs().max() == 0
    assert abs(update.norm() - 1) < 0.05


@pytest.mark.parametrize(
    ("adjust", "tall", "wide"),
    [
        (None, 2.0, 1.0), ("original", 2.0, 1.0), ("spectral", 2.0, 0.5), ("max_dim", math.sqrt(8), math.sqrt(8)),
        ("match_rms_adamw", 0.2 * math.sqrt(8), 0.2 * math.sqrt(8)), ("none", 1.0, 1.0),
    ],
)  # fmt: skip
def test_each_name_of_a_shape_scale(adjust, tall, wide):
    tx = gradtx.scale_by_shape(adjust)
    grads = {"tall": torch.ones(8, 2, dtype=torch.float64), "wide": torch.ones(2, 8, dtype=torch.float64)}
    updates, _ = tx.update(grads, tx.init(grads))
    assert [updates[name][0, 0].item() for name in ("tall", "wide")] == pytest.approx([tall, wide], rel=1e-15)


def test_a_dtype_decides_what_is_iterated_in_and_the_update_keeps_its_own():
    narrow = gradtx.orthogonalize(dtype=torch.bfloat16).update({"w": WIDE}, {"step": torch.tensor(0)})[0]["w"]
    exact = gradtx.orthogonalize().update({"w": WIDE}, {"step": torch.tensor(0)})[0]["w"]
    assert narrow.dtype == torch.float64
    assert torch.equal(narrow, narrow.bfloat16().double())
    assert 1e-6 < (narrow - exact).abs().max() < 0.1


SOFT = (
    0.1091613623, 0.07085664498, 0.05210528973, 0.05457295795, 0.05011334061, 0.03334622198, 0.05022104481,
    0.1053727358, 0.1187323776, 0.1185061091, 0.1185059576, 0.1185059576, 0.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mixture", "start"),
    [("newton_schulz", "soft", "schatten4"), ("quintic", (0.2, -0.3, 0.5), "fro"), ("simple", (0.7,), "fro")],
)
def test_a_mixture_sums_the_iterates(name, mixture, start):
    weights = SOFT if mixture == "soft" else mixture
    for matrix in (WIDE, WIDE.T):
        result = first_update(gradtx.orthogonalize(name, start=start, mixture=mixture), matrix.tolist())
        expected = sum(c * orthogonal(matrix, SETS[name][0], i, start) for i, c in enumerate(weights))
        torch.testing.assert_close(torch.tensor(result, dtype=torch.float64), expected, rtol=1e-10, atol=1e-10)


def powered(s, t, g, p, power=0.0, eps=1e-7):
    if p.shape[0] > p.shape[1]:
        return powered(s, t, g.T, p.T, power, eps).T
    size, eye, h = max(g.norm().item(), eps), torch.eye(len(g), dtype=g.dtype), power / 2
    E = g @ g.T / size**2 - eye
    return (eye + h * E + h * (h - 1) / 2 * E @ E) @ orthogonal(g, SETS["newton_schulz"][0], 12) * size**power


@pytest.mark.parametrize("power", [0.25, -0.25, gradtx.Schedule(lambda step: 0.25 - 0.02 * step)], ids=named)
def test_a_power_follows_the_loop(power):
    cut = only("matrix", "rows", "whole")
    tx, reference = gradtx.orthogonalize("newton_schulz", power=power), Loop(powered, power=power)
    ref.follows(cut(lambda: Transformed(tx)), cut(lambda: reference), rate=-0.02, steps=30, tolerance=1e-10)


def test_a_power_of_zero_and_no_balance_change_nothing():
    expected = first_update(gradtx.orthogonalize(), WIDE.tolist())
    assert first_update(gradtx.orthogonalize(power=0.0, balance=0), WIDE.tolist()) == expected
    square = WIDE[:, :3].tolist()
    assert first_update(gradtx.orthogonalize(balance=3), square) == first_update(gradtx.orthogonalize(), square)
    balanced = gradtx.orthogonalize("newton_schulz", balance=60, view="flatten")
    with gradtx.eagerly():
        rows = torch.tensor(first_update(balanced, WIDE.T.reshape(4, 1, 3).tolist())).flatten(1).norm(dim=1)
    torch.testing.assert_close(rows, torch.full((4,), math.sqrt(3 / 4)), rtol=1e-4, atol=0)


def test_a_zero_matrix_stays_zero():
    for options in ({"power": -0.5}, {"balance": 2}, {"mixture": "soft"}):
        assert first_update(gradtx.orthogonalize(**options), [[0.0, 0.0]]) == [[0.0, 0.0]]
    assert first_update(gradtx.orthogonalize(), [[0.0, 0.0]]) == [[0.0, 0.0]]
    assert first_update(gradtx.normalize_neurons(), [[0.0, 0.0], [1.0, 1.0]])[0] == [0.0, 0.0]


@pytest.mark.parametrize("make", [gradtx.orthogonalize, gradtx.scale_by_shape, gradtx.normalize_neurons], ids=named)
def test_a_vector_is_an_error_that_names_it_at_init_and_at_update(make):
    params = {"layer": {"bias": torch.ones(3)}}
    message = rf"^{make.__name__}: leaf 'layer.bias' has shape \(3,\), needs .*2 dimensions; .*partition"
    with pytest.raises(ValueError, match=message):
        make().init(params)
    with pytest.raises(ValueError, match=message):
        make().update(params, {"step": torch.tensor(0)}, params)


@pytest.mark.parametrize("shape", [(40, 24), (24, 100)])
@pytest.mark.parametrize("as_optimizer", [False, True])
def test_products_in_bfloat16_go_through_float32_where_the_processor_has_none(shape, as_optimizer, monkeypatch):
    grads = {"w": torch.randn(shape, generator=torch.Generator().manual_seed(1))}

    def direction():
        tx = gradtx.chain(gradtx.orthogonalize(dtype=torch.bfloat16), gradtx.scale(-1.0))
        if not as_optimizer:
            return tx.update(grads, tx.init(grads))[0]["w"]
        weight = torch.nn.Parameter(torch.zeros(shape))
        weight.grad = grads["w"].clone()
        gradtx.as_optimizer(tx, [weight]).step()
        return weight.detach()

    def multiplications(has_units):
        monkeypatch.setattr(_torch, "multiplies_in_bfloat16", lambda: has_units)
        dtypes = set()

        def note(operator, args, kwargs):
            if operator in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                dtypes.add(args[0].dtype)
            return operator(*args, **kwargs)

        with _torch.intercepting(note):
            result = direction()
        return result, dtypes

    emulated, in_float32 = multiplications(False)
    native, in_bfloat16 = multiplications(True)
    assert in_bfloat16 == {torch.bfloat16}
    assert in_float32 == {torch.float32}
    assert torch.equal(emulated, emulated.bfloat16().float())
    # Sums in another order change roundings of products to bfloat16, by 2^-8 of an entry.
    torch.testing.assert_close(emulated, native, rtol=0, atol=2**-6)


@pytest.mark.parametrize("bound", [0.5, 2.0])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
def test_singular_values_are_clipped_or_bounded_smoothly(shape, bound):
    for seed in (1, 2):
        x = drawn(*shape, seed=seed)
        left, values, right = torch.linalg.svd(x, full_matrices=False)
        hard, soft = values.clamp(max=bound), values / (1 + (values / bound) ** 2).sqrt()
        for kind, expected, tolerance in (("hard", hard, 1e-4), ("soft", soft, 1e-12)):
            tx = gradtx.clip_singular_values(bound, kind)
            update = tx.update({"w": x}, tx.init({}))[0]["w"]
            torch.testing.assert_close(update, left @ torch.diag(expected) @ right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
def test_the_hard_clip_is_the_formula_with_the_iteration(shape):
    """By singular values: o and s are the iteration's values for those of x and of o b - x."""
    x, bound = drawn(*shape, seed=3), 0.7
    left, values, right = torch.linalg.svd(x, full_matrices=False)

    def iterated(values):
        size = values.norm().item()
        values = values / size
        for a, b, c in POLAR_EXPRESS:
            values = a * values + b * values**3 + c * values**5
        return values

    o = iterated(values)
    w = bound * o - values
    expected = 0.5 * (bound * o + values - w * iterated(w) * o)
    tx = gradtx.clip_singular_values(bound)
    update = tx.update({"w": x}, tx.init({}))[0]["w"]
    torch.testing.assert_close(update, left @ torch.diag(expected) @ right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": 0.0}, r"clip_singular_values: bound must be in \(0, inf\), got 0.0"),
        ({"kind": "firm"}, r"clip_singular_values: kind must be 'hard' or 'soft', got 'firm'"),
    ],
    ids=named,
)
def test_the_bound_of_singular_values_is_positive_and_of_a_known_kind(options, message):
    with pytest.raises(ValueError, match=message):
        gradtx.clip_singular_values(**options)
