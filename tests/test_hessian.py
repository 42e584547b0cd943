"""Hutchinson's estimate of the Hessian's diagonal."""

import pytest
import torch

import gradtx
from tests.references import gradients, problem
from tests.tiers import by_day

CUBIC = {"a": torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64), "b": torch.tensor(2.0, dtype=torch.float64)}


def cubic(params):
    """A loss whose Hessian is diagonal: 6 p."""
    return sum((p**3).sum() for p in params.values())


def coupled(params):
    flat = torch.cat([p.flatten() for p in params.values()])
    return (flat.sum() ** 2) / 2 + (flat**3).sum() + (flat[0] * flat[-1]).sin()


def by_autograd(params):
    """Gradients as one makes them without torch.func."""
    with torch.enable_grad():
        grads = torch.autograd.grad(coupled(params), list(params.values()), create_graph=True)
    return dict(zip(params, grads, strict=True))


def flat_hessian(loss, params):
    flat = torch.cat([p.flatten() for p in params.values()])

    def of_flat(x):
        parts = x.split([p.numel() for p in params.values()])
        return loss({name: part.view_as(p) for (name, p), part in zip(params.items(), parts, strict=True)})

    return torch.autograd.functional.hessian(of_flat, flat)


@pytest.mark.parametrize("seed", [0, 7])
def test_one_rademacher_vector_is_exact_for_a_diagonal_hessian(seed):
    found = gradtx.hutchinson_hessian_diag(torch.func.grad(cubic), CUBIC, seed)
    for name, p in CUBIC.items():
        torch.testing.assert_close(found[name], 6 * p, rtol=0, atol=0)


@pytest.mark.slow
@by_day("rademacher-0.2-func", "gaussian-2.0-autograd")
@pytest.mark.parametrize("grad_fn", [torch.func.grad(coupled), by_autograd], ids=["func", "autograd"])
@pytest.mark.parametrize(("distribution", "tolerance"), [("rademacher", 0.2), ("gaussian", 2.0)])
def test_the_mean_of_many_samples_is_the_diagonal(grad_fn, distribution, tolerance):
    found = gradtx.hutchinson_hessian_diag(
        grad_fn, CUBIC, torch.Generator().manual_seed(3), n_samples=2000, distribution=distribution
    )
    flat = torch.cat([found[name].flatten() for name in CUBIC])
    # The standard error is sqrt(sum of squared off-diagonal entries / n), about 0.05; gaussian: 2 H_ii^2 more, 0.6.
    torch.testing.assert_close(flat, flat_hessian(coupled, CUBIC).diagonal(), rtol=0, atol=tolerance)


def test_a_sample_is_z_times_the_hessian_times_z_with_z_from_the_generator():
    found = gradtx.hutchinson_hessian_diag(torch.func.grad(coupled), CUBIC, torch.Generator().manual_seed(5))
    rng = torch.Generator().manual_seed(5)
    z = {name: (2 * torch.randint(0, 2, p.shape, generator=rng) - 1).double() for name, p in CUBIC.items()}
    z = torch.cat([z[name].flatten() for name in CUBIC])
    flat = torch.cat([found[name].flatten() for name in CUBIC])
    torch.testing.assert_close(flat, z * (flat_hessian(coupled, CUBIC) @ z), rtol=1e-14, atol=1e-13)
    again = gradtx.hutchinson_hessian_diag(torch.func.grad(coupled), CUBIC, 5)
    for name in CUBIC:
        assert torch.equal(again[name], found[name])


def test_both_signs_come_up_equally_often_and_no_global_generator_is_touched():
    params = {"w": torch.zeros(20000)}
    before = torch.get_rng_state()
    signs = []
    # the sum's square couples all entries: z * sum(z) has the signs of z
    grad_fn = torch.func.grad(lambda p: p["w"].sum() ** 2 / 2)
    for seed in (0, 1):
        signs.append(gradtx.hutchinson_hessian_diag(grad_fn, params, seed)["w"].sign())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(0.47 < (one > 0).float().mean() < 0.53 for one in signs)
    assert 0.47 < (signs[0] == signs[1]).float().mean() < 0.53


def test_spatial_average_is_that_of_the_transformation():
    params = {"kernel": torch.tensor([[[1.0, -3.0]]]), "matrix": torch.tensor([[1.0, -3.0]])}
    found = gradtx.hutchinson_hessian_diag(torch.func.grad(cubic), params, 0, spatial_average=True)
    assert found["kernel"].tolist() == [[[12.0, 12.0]]]
    assert found["matrix"].tolist() == [[6.0, 18.0]]


def test_leaves_without_second_derivatives_get_zeros():
    def loss(params):
        return (params["curved"] ** 2).sum() + 3 * params["linear"].sum()

    params = {name: torch.ones(2) for name in ("curved", "linear", "unused")} | {"absent": None}

    def grad_fn(params):
        present = {name: p for name, p in params.items() if p is not None}
        return torch.func.grad(loss)(present) | {"unused": None, "absent": None}

    found = gradtx.hutchinson_hessian_diag(grad_fn, params, 0)
    assert found["curved"].tolist() == [2.0, 2.0]
    assert found["linear"].tolist() == found["unused"].tolist() == [0.0, 0.0]
    assert found["absent"] is None


def test_it_feeds_adahessian_under_vmap():
    def train(lr):
        tx, params = gradtx.adahessian(lr=lr), CUBIC
        state = tx.init(params)
        for i in range(3):
            diag = gradtx.hutchinson_hessian_diag(torch.func.grad(coupled), params, i)
            updates, state = tx.update(torch.func.grad(coupled)(params), state, params, hessian_diag=diag)
            params = gradtx.apply_updates(params, updates)
        return params["a"]

    rates = torch.tensor([0.05, 0.1], dtype=torch.float64)
    together = torch.vmap(train, randomness="same")(rates)
    for one, rate in zip(together, rates, strict=True):
        torch.testing.assert_close(one, train(rate), rtol=1e-12, atol=1e-12)


def test_gradients_that_are_cut_off_are_an_error_that_says_how_to_make_them():
    def grad_fn(params):
        return {name: g.detach() for name, g in gradients(params, 1).items()}

    with pytest.raises(ValueError, match=r"hutchinson_hessian_diag: the gradients are detached.*create_graph=True"):
        gradtx.hutchinson_hessian_diag(grad_fn, problem(), 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"generator": 0, "n_samples": 0}, ValueError, r"n_samples must be in \[1, inf\), got 0"),
        ({"generator": 0, "distribution": "uniform"}, ValueError, r"must be 'rademacher' or 'gaussian', got 'uniform'"),
    ],
    ids=str,
)
def test_bad_arguments_are_errors(arguments, error, message):
    with pytest.raises(error, match=f"^hutchinson_hessian_diag: .*{message}"):
        gradtx.hutchinson_hessian_diag(torch.func.grad(cubic), CUBIC, **arguments)
