import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import gradtx
from gradtx.maths import matrices
from gradtx.maths.entries import blended


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(n, rank=None, seed=0):
    x = rand(n, rank or n, seed=seed)
    return x @ x.T


@pytest.mark.parametrize("shape", [(3, 4, 2), (5,), (1, 7)])
def test_a_gram_matrix_and_a_product_act_on_their_dimension(shape):
    x = rand(*shape)
    letters = "abc"[: len(shape)]
    for i in range(len(shape)):
        other = letters.replace(letters[i], "z")
        expected = torch.einsum(f"{letters},{other}->{letters[i]}z", x, x)
        torch.testing.assert_close(matrices.gram(x, i), expected)
        matrix = rand(shape[i], shape[i], seed=1)
        expected = torch.einsum(f"z{letters[i]},{letters}->{other}", matrix, x)
        torch.testing.assert_close(matrices.multiplied(x, matrix, i), expected)


@pytest.mark.parametrize(
    ("shape", "limit", "expected"),
    [
        ((1, 2, 512, 1, 2048, 1, 3, 4), 1024, (1024, 2048, 12)),
        ((1, 2, 768, 1, 2048), 1024, (2, 768, 2048)),
        ((3, 2, 2), 100, (12,)),
        ((1, 1), 10, ()),
        ((), 10, ()),
        ((5,), 3, (5,)),
        ((0, 4), 10, (0, 4)),
    ],
    ids=str,
)
def test_neighbouring_dimensions_merge_up_to_a_limit(shape, limit, expected):
    assert matrices.merged(shape, limit) == expected


@pytest.mark.parametrize(("shape", "size"), [((5, 7), 3), ((4, 4, 2), 2), ((3,), 8), ((6, 2), 6)], ids=str)
def test_blocks_are_joined_to_what_was_cut(shape, size):
    x = rand(*shape)
    pieces = matrices.blocks(x, size)
    assert all(max(piece.shape) <= size for piece in pieces)
    assert torch.equal(matrices.joined(pieces, shape, size), x)


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
def test_an_inverse_root_to_its_power_is_the_inverse(exponent):
    x = spd(4)
    root = matrices.inverse_root(x, exponent)
    power = torch.linalg.matrix_power(root, round(1 / exponent))
    torch.testing.assert_close(power @ x, torch.eye(4, dtype=x.dtype))


def test_a_ridge_is_relative_to_the_largest_eigenvalue_and_a_floor_lifts_the_small_ones():
    x = torch.diag(torch.tensor([4.0, 1.0, -1e-18], dtype=torch.float64))
    lifted = matrices.inverse_root(x, 1.0, ridge=0.25)
    torch.testing.assert_close(lifted.diagonal(), torch.tensor([0.2, 0.5, 1.0], dtype=x.dtype))
    floored = matrices.inverse_root(x, 1.0, floor=0.5)
    torch.testing.assert_close(floored.diagonal(), torch.tensor([0.25, 1.0, 2.0], dtype=x.dtype))
    assert matrices.inverse_root(torch.zeros(2, 2), 0.5, ridge=1.0).diagonal().tolist() == pytest.approx([1e8, 1e8])


MATRICES = {
    "distinct": spd(4),
    "one twice": torch.diag(torch.tensor([1.0, 1.0, 2.0, 3.0], dtype=torch.float64)),
    "identity": torch.eye(4, dtype=torch.float64),
    "low rank": spd(4, rank=1) + 0.1 * torch.eye(4, dtype=torch.float64),
}


@pytest.mark.parametrize("ridge", [None, 0.3])
@pytest.mark.parametrize("name", MATRICES)
def test_the_derivative_of_a_root_is_the_difference_quotient_also_at_equal_eigenvalues(name, ridge):
    x, direction, weights, h = MATRICES[name], spd(4, seed=1), rand(4, 4, seed=2), 1e-5
    if ridge is not None and name == "identity":
        pytest.skip("the largest eigenvalue of an identity has no derivative")
    f = lambda s: (weights * matrices.inverse_root(x + s * direction, 0.25, ridge=ridge)).sum()  # noqa: E731
    zero = torch.zeros((), dtype=torch.float64)
    quotient = (f(zero + h) - f(zero - h)) / (2 * h)
    torch.testing.assert_close(torch.func.grad(f)(zero), quotient, rtol=1e-6, atol=1e-6)
    batched = torch.vmap(torch.func.grad(f))(zero[None])
    torch.testing.assert_close(batched[0], quotient, rtol=1e-6, atol=1e-6)


def with_positive_entries(basis):
    """A basis whose first row is positive: the signs of columns are arbitrary, and differ between nearby matrices."""
    return basis * basis[0].detach().sign()


@pytest.mark.parametrize("function", [matrices.eigenbasis, matrices.orthonormal])
def test_the_derivative_of_a_basis_is_the_difference_quotient(function):
    x, direction, weights, h = spd(4), spd(4, seed=1), rand(4, 4, seed=2), 1e-6
    if function is matrices.orthonormal:
        x, direction = rand(4, 4), rand(4, 4, seed=1)
    f = lambda s: (weights * with_positive_entries(function(x + s * direction))).sum()  # noqa: E731
    zero = torch.zeros((), dtype=torch.float64)
    quotient = (f(zero + h) - f(zero - h)) / (2 * h)
    torch.testing.assert_close(torch.func.grad(f)(zero), quotient, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch.func.jvp's
@pytest.mark.parametrize("shape", [(4, 4), (5, 3)], ids=["square", "tall"])
@pytest.mark.parametrize("function", [matrices.left_basis, matrices.eigenbasis, matrices.orthonormal])
def test_the_second_derivative_of_a_basis_is_the_difference_quotient_of_the_first(function, shape):
    x, direction, weights, h = rand(*shape), rand(*shape, seed=1), rand(*shape, seed=2), 1e-5

    def f(s):
        moved = x + s * direction
        basis = function(moved @ moved.T if function is matrices.eigenbasis else moved)
        return (weights * with_positive_entries(basis)[:, : shape[1]]).sum()

    slope = torch.func.grad(f)
    zero = torch.zeros((), dtype=torch.float64)
    quotient = (slope(zero + h) - slope(zero - h)) / (2 * h)
    for second in (torch.func.jacfwd(slope), torch.func.jacrev(slope), torch.func.jacfwd(torch.func.jacfwd(f))):
        torch.testing.assert_close(second(zero), quotient, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch.func.jvp's
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e-30])
@pytest.mark.parametrize("x", [torch.diag(torch.tensor([1.0, 2.0, 2.0, 5.0])), torch.zeros(3, 3), torch.ones(3, 3)])
@pytest.mark.parametrize("function", [matrices.left_basis, matrices.eigenbasis, matrices.orthonormal])
def test_two_derivatives_of_bases_of_small_and_singular_matrices_are_finite(function, x, scale):
    weights = rand(*x.shape).float()
    f = lambda s: (function(scale * x * s) * weights).sum()  # noqa: E731
    one = torch.ones(())
    assert torch.func.grad(f)(one).isfinite()
    assert torch.func.jvp(f, (one,), (one,))[1].isfinite()
    if scale == 1:
        assert torch.func.hessian(f)(one).isfinite()


@pytest.mark.parametrize("x", [torch.zeros(3, 3), torch.eye(3), torch.ones(3, 3), torch.zeros(0, 0)], ids=str)
def test_derivatives_of_singular_matrices_are_finite(x):
    scale = torch.ones((), requires_grad=True)
    for function in (matrices.eigenbasis, matrices.orthonormal, lambda x: matrices.inverse_root(x, 0.5, floor=1e-4)):
        (slope,) = torch.autograd.grad(function(scale * x).sum(), scale)
        assert slope.isfinite()


def test_a_basis_has_its_largest_eigenvalue_first():
    x = spd(4)
    basis = matrices.eigenbasis(x)
    values = (basis.T @ x @ basis).diagonal()
    assert (values.diff() < 0).all()
    torch.testing.assert_close(basis @ basis.T, torch.eye(4, dtype=x.dtype))


def test_without_gradients_nothing_more_than_the_factorization_is_computed_and_the_value_is_the_same():
    x = spd(4)
    with torch.no_grad():
        plain = matrices.inverse_root(x, 0.25), matrices.eigenbasis(x), matrices.orthonormal(x)
    for a, b in zip(
        plain, (matrices.inverse_root(x, 0.25), matrices.eigenbasis(x), matrices.orthonormal(x)), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (2, 4, 3), (2, 2, 3, 4)], ids=str)
def test_newton_schulz_makes_the_rows_or_columns_orthogonal(shape):
    x = matrices.newton_schulz(rand(*shape), [(1.5, -0.5, 0.0)] * 60, 1e-7)
    square = x.mT @ x if shape[-2] > shape[-1] else x @ x.mT
    eye = torch.eye(square.shape[-1], dtype=x.dtype).expand_as(square)
    torch.testing.assert_close(square, eye)


@pytest.mark.parametrize("weight", [0.25, torch.tensor(0.25, dtype=torch.float64)], ids=["number", "tensor"])
def test_a_blend_is_that_of_its_formula_also_in_a_batch_and_in_its_derivative(weight):
    old, new = rand(3, 4), rand(3, 4, seed=1)
    torch.testing.assert_close(blended(old, new, weight), 0.75 * old + 0.25 * new, rtol=1e-15, atol=1e-15)
    assert blended(old.float(), new.float(), weight).dtype == torch.float32
    weights = torch.tensor([0.25, 0.5], dtype=torch.float64)
    batch = torch.vmap(lambda w: blended(old, new, w))(weights)
    torch.testing.assert_close(batch[1], (old + new) / 2, rtol=1e-15, atol=1e-15)
    slope = torch.func.grad(lambda w: blended(old, new, w).sum())(weights[0])
    torch.testing.assert_close(slope, (new - old).sum())


def test_a_blend_with_a_small_weight_keeps_its_digits_in_single_precision():
    weight = 1 - torch.tensor(0.999, dtype=torch.float64)  # 1 - 0.999 in float32 would be 1e-5 off
    result = blended(torch.zeros(1), torch.ones(1), weight)
    torch.testing.assert_close(result.double(), weight.reshape(1), rtol=1e-7, atol=0)


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (1, 1), (4, 0), (0, 0)], ids=str)
def test_an_orthonormal_factor_is_that_of_a_whole_decomposition(shape):
    x = rand(*shape)
    with torch.no_grad():
        assert torch.equal(matrices.orthonormal(x), torch.linalg.qr(x).Q)


def test_what_is_large_counts_as_finite_though_its_sum_is_not():
    assert matrices._is_finite(torch.full((4,), 3e38))
    assert not matrices._is_finite(torch.tensor([1.0, torch.inf]))
    assert not matrices._is_finite(torch.tensor([1.0, torch.nan]))


@pytest.fixture
def in_strips(monkeypatch):
    """Products in strips from three rows on."""
    monkeypatch.setattr(matrices, "LEAST_ROWS", 3)
    monkeypatch.setattr(matrices, "LEAST_ENTRIES", 9)


SHAPES = [(3, 3), (4, 4), (7, 11), (12, 13)]


@pytest.mark.parametrize("shape", [*SHAPES, (2, 5, 9)], ids=str)
def test_a_product_in_strips_is_the_plain_one_and_symmetric(shape, in_strips):
    x = rand(*shape)
    square = matrices.symmetric_product(x, x.mT)
    torch.testing.assert_close(square, x @ x.mT, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(square, square.mT, rtol=1e-14, atol=1e-14)
    step = matrices.symmetric_product(square, square, square, -0.3, 0.7)
    torch.testing.assert_close(step, -0.3 * square + 0.7 * square @ square, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_in_strips_works_in_a_batch_a_derivative_and_on_the_meta_device(shape, in_strips):
    x = rand(3, *shape)
    product = torch.vmap(lambda matrix: matrices.symmetric_product(matrix, matrix.mT))
    torch.testing.assert_close(product(x), x @ x.mT, rtol=1e-14, atol=1e-14)
    matrix = x[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: matrices.symmetric_product(y, y.mT), matrix)
    assert matrices.symmetric_product(x[0].to("meta"), x[0].mT.to("meta")).shape == (shape[0], shape[0])


@pytest.mark.parametrize(("shape", "share"), [((768, 768), 0.625), ((511, 2000), 1.0), ((1024, 512), 1.0)], ids=str)
def test_large_products_take_five_eighths_of_the_multiplications(shape, share):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        square = matrices.symmetric_product(x, x.mT)
    assert counter.get_total_flops() == share * 2 * shape[0] * shape[0] * shape[1]
    torch.testing.assert_close(square, x @ x.mT)
    torch.testing.assert_close(square, square.mT)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_muon_of_large_matrices_steps_as_torchs_does(compile, in_strips):
    """Products in strips, in pure use and in programs over lists, which run them with `compile=True`, too."""
    start = {"wide": rand(6, 8), "tall": rand(9, 4, seed=1)}
    params = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    twins = [torch.nn.Parameter(value.clone()) for value in start.values()]
    optimizer = gradtx.as_optimizer(gradtx.muon(0.02, weight_decay=0.1, ns_dtype=None), params.items(), compile=compile)
    pure = gradtx.muon(0.02, weight_decay=0.1, ns_dtype=None)
    state, values = pure.init(start), start
    expected = LoopMuon(twins)
    for t in range(3):
        grads = {name: rand(*value.shape, seed=10 + t) for name, value in start.items()}
        for param, twin, grad in zip(params.values(), twins, grads.values(), strict=True):
            param.grad = twin.grad = grad
        optimizer.step()
        expected.step()
        updates, state = pure.update(grads, state, values)
        values = gradtx.apply_updates(values, updates)
    assert {item.way for item in optimizer.explain()} == {"lists"}
    for name, twin in zip(start, twins, strict=True):
        torch.testing.assert_close(params[name], twin, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(values[name], twin.detach(), rtol=1e-12, atol=1e-12)


class LoopMuon:
    """Muon in float64, as torch.optim.Muon steps in bfloat16."""

    def __init__(self, params):
        self.params = params
        self.buffers = [torch.zeros_like(param) for param in params]

    @torch.no_grad()
    def step(self):
        for param, buffer in zip(self.params, self.buffers, strict=True):
            buffer.lerp_(param.grad, 0.05)
            x = param.grad.lerp(buffer, 0.95)
            x = x / x.norm()
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
            param.mul_(1 - 0.02 * 0.1).add_(x, alpha=-0.02 * max(1, param.shape[0] / param.shape[1]) ** 0.5)


def test_members_of_a_batch_of_which_one_fails_in_single_precision_are_factorized_in_double(monkeypatch):
    eigh = torch.linalg.eigh

    def failing(x):
        if x.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return eigh(x)

    x = torch.stack([spd(6, seed=seed) for seed in range(3)]).float()
    expected = torch.func.vmap(matrices.eigenbasis)(x.double()).float()
    monkeypatch.setattr(torch.linalg, "eigh", failing)
    torch.testing.assert_close(torch.func.vmap(matrices.eigenbasis)(x), expected)
