"""Newton-Muon's inputs and Sinkhorn's balance, against plain float64 loops, and the helper that measures inputs."""

import pytest
import torch
from torch import nn

import gradtx
from tests.matrix_problem import MATRICES, SEEDS, eigenvectors, follows
from tests.references import TOLERANCE, WeightsLoop, named

STEPS = 30


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def preconditioned(grads, grams, every=64, rate=0.05, start=0.001, ridge=0.2, blocks=1):
    """The updates of one matrix; `grams` by step, each k x n x n."""
    n = grads[0].shape[1] // blocks
    eye = torch.eye(n, dtype=torch.float64)
    C, K = [start * eye] * blocks, [eye] * blocks
    for t, g in enumerate(grads, start=1):
        if t % every == 0 and t in grams:
            C = [c + rate * (gram - c) for c, gram in zip(C, grams[t], strict=True)]
            K = [torch.linalg.inv(c + (ridge * c.trace() / n + 1e-8) * eye) for c in C]
        yield torch.cat([g[:, i * n : i * n + n] @ k for i, k in enumerate(K)], dim=1)


@pytest.mark.parametrize(
    "options",
    [{}, {"every": 3}, {"every": 2, "rate": 0.5, "start": 0.1, "ridge": 0.7}, {"every": 4, "blocks": 3}],
    ids=named,
)
def test_gradients_times_inverse_inputs_follow_the_loop(options):
    blocks, steps = options.get("blocks", 1), 130 if not options else STEPS
    grads, factors = [drawn(4, 6, seed=t) for t in range(steps)], drawn(steps, blocks, 6 // blocks, 9, seed=99)
    grams = {t: factors[t - 1] @ factors[t - 1].mT / 9 for t in range(1, steps + 1) if t != 12}  # none at step 12
    tx, state = gradtx.precondition_inputs(**options), None
    for t, expected in enumerate(preconditioned(grads, grams, **options), start=1):
        tree = {"w": grads[t - 1], "bias": grads[t - 1][0], "other": grads[t - 1]}
        state = tx.init(tree) if state is None else state
        gram = {"w": grams[t] if blocks > 1 else grams[t][0]} if t in grams else {}
        updates, state = tx.update(tree, state, **({"input_gram": gram} if t != 1 else {}))
        assert (updates["w"] - expected).abs().max() < TOLERANCE * expected.abs().max()
        assert updates["bias"].equal(tree["bias"])
        assert updates["other"].equal(tree["other"])


def test_grams_that_do_not_fit_are_errors():
    params = {"w": torch.ones(2, 6)}
    tx = gradtx.precondition_inputs(every=1, blocks=2)
    with pytest.raises(ValueError, match=r"input_gram\['w'\] has shape \(6, 6\), needs \(2, 3, 3\)"):
        tx.update(params, tx.init(params), input_gram={"w": torch.eye(6)})
    with pytest.raises(ValueError, match="precondition_inputs: 4 blocks do not divide the columns of 'w', 6"):
        gradtx.precondition_inputs(blocks=4).init(params)
    with pytest.raises(TypeError, match="input_gram"):
        tx.update(params, tx.init(params), input_gram=torch.eye(3))
    with pytest.raises(ValueError, match="rate must be"):
        gradtx.precondition_inputs(rate=1.5)
    message = r"no matrix has a name of input_gram, module\.w; matrices: w"
    with pytest.raises(ValueError, match=f"precondition_inputs: {message}"):
        tx.update(params, tx.init(params), input_gram={"module.w": torch.eye(3).repeat(2, 1, 1)})


def test_a_gram_of_one_group_is_no_error_for_another_group():
    model, tx = network(), gradtx.precondition_inputs(every=1)
    optimizer = gradtx.as_optimizer(tx, [{"params": [(n, p)]} for n, p in model.named_parameters()])
    with gradtx.collect_input_grams(model, "0.*") as grams:
        model(drawn(8, 3)).square().mean().backward()
    optimizer.step(input_gram=grams)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()


def test_grams_are_means_over_vectors_and_passes_and_hooks_go_away():
    model, inputs = network(), (drawn(5, 7, 3), drawn(5, 7, 3, seed=1))
    with gradtx.collect_input_grams(model) as grams:
        for x in inputs:
            model(x)
    model(drawn(2, 3))
    assert set(grams) == {"0.weight", "2.weight"}
    for name, vectors in (("0.weight", inputs), ("2.weight", [model[:2](x) for x in inputs])):
        flat = torch.cat([x.reshape(-1, x.shape[-1]) for x in vectors]).float()
        torch.testing.assert_close(grams[name], (flat.T @ flat / len(flat)).detach())
    with gradtx.collect_input_grams(model, "2.*") as grams:
        model(inputs[0])
    assert set(grams) == {"2.weight"}


def test_an_optimizer_steps_with_collected_grams():
    model = network()
    tx = gradtx.chain(gradtx.precondition_inputs(every=2, rate=1.0, ridge=0.1), gradtx.scale_by_learning_rate(0.1))
    optimizer, x = gradtx.as_optimizer(tx, model.named_parameters()), drawn(8, 3)
    for t in (1, 2):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        with gradtx.collect_input_grams(model, "0.*") as grams:
            loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(**({"input_gram": grams} if t == 2 else {}))
    C = grams["0.weight"].double()
    K = torch.linalg.inv(C + (0.1 * C.trace() / 3 + 1e-8) * torch.eye(3))
    moved = {n: (before[n] - p.detach()) / 0.1 for n, p in model.named_parameters()}
    torch.testing.assert_close(moved["0.weight"], model[0].weight.grad @ K)
    torch.testing.assert_close(moved["2.weight"], model[2].weight.grad)


def test_what_is_not_a_model_with_such_layers_is_an_error():
    with pytest.raises(TypeError, match=r"collect_input_grams: model must be a torch.nn.Module"), \
         gradtx.collect_input_grams([]):  # fmt: skip
        pass
    with pytest.raises(ValueError, match=r"1\.weight"), gradtx.collect_input_grams(network(), "1.weight"):
        pass


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
