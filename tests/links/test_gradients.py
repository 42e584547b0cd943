import pytest
import torch
from torch import nn

import gradtx
from tests.matrix_problem import drawn
from tests.references import BETA, TOLERANCE, Loop, arguments, follows, named


def window(s, t, g, p, window_size=100, lamb=5.0, filter_type="mean", warmup=True):
    s.kept = [g, *(s.kept or [])][:window_size]
    s.seen.add(t < window_size)
    slow = sum(s.kept)
    if filter_type == "mean":
        slow = slow / len(s.kept)
    return g if warmup and t < window_size else g + lamb * slow


WINDOWS = [
    {},
    {"warmup": False},
    {"window_size": 5, "lamb": 2.0},
    {"window_size": 5, "lamb": 0.5, "filter_type": "sum", "warmup": False},
    {"window_size": 1, "filter_type": "sum"},
    {"window_size": 12, "lamb": BETA},
]


@pytest.mark.parametrize("options", WINDOWS, ids=str)
def test_the_window_follows_the_loop(options):
    reference = Loop(window, **options)
    follows(gradtx.amplify_slow_gradients_window(**options), reference, rate=-0.02)
    assert arguments(gradtx.amplify_slow_gradients_window) == arguments(window)


def test_an_unknown_filter_is_refused():
    with pytest.raises(
        ValueError, match=r"^amplify_slow_gradients_window: filter_type must be 'mean' or 'sum', got 'med"
    ):
        gradtx.amplify_slow_gradients_window(filter_type="median")


STEPS = 30


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
