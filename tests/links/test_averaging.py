import pytest
import torch

import gradtx
from tests import references as ref

RISING = gradtx.linear_schedule(0.8, start_factor=0.25, total_iters=20)


def momentum(s, t, g):
    s.m = g if t == 1 else 0.9 * s.m + (1 - 0.3) * g
    return s.m


def adam(s, t, g):
    m, v = ref.adam_moments(s, t, g, (0.9, 0.99))
    return m / (v.sqrt() + 1e-8)


BASES = {  # name -> the transformation, and the same direction with its momentum in `m`
    "momentum": (gradtx.chain(gradtx.trace(0.9, dampening=0.3), gradtx.scale_by_learning_rate(0.1)), momentum, 0.1),
    "adam": (gradtx.adam(lr=0.02, betas=(0.9, 0.99)), adam, 0.02),
}


def lookahead(s, t, g, p, direction, lr, k=5, alpha=0.5, pullback_momentum="none"):
    if t == 1:
        s.slow = p
    fast = p - lr * direction(s, t, g)
    if t % k:
        return fast
    s.slow = s.slow + alpha * (fast - s.slow)
    if pullback_momentum == "reset":
        s.m = 0 * s.m
    elif pullback_momentum == "pullback":
        s.slow_m = s.slow_m + alpha * (s.m - s.slow_m)
        s.m = s.slow_m
    return s.slow


@pytest.mark.parametrize("options", [{}, {"k": 3, "alpha": 0.8}, {"k": 1, "alpha": 0.3}, {"alpha": RISING}], ids=str)
@pytest.mark.parametrize("base", BASES)
def test_lookahead_as_the_last_link_follows_the_loop(base, options):
    tx, direction, lr = BASES[base]
    reference = ref.WeightsLoop(lookahead, direction=direction, lr=lr, **options)
    ref.follows(gradtx.chain(tx, gradtx.lookahead(**options)), reference)


@pytest.mark.parametrize("mode", ["none", "reset", "pullback"])
@pytest.mark.parametrize("options", [{}, {"k": 3, "alpha": 0.8}, {"k": 2, "alpha": RISING}], ids=str)
@pytest.mark.parametrize("base", BASES)
def test_with_lookahead_follows_the_loop_in_its_three_modes(base, options, mode):
    tx, direction, lr = BASES[base]
    reference = ref.WeightsLoop(lookahead, direction=direction, lr=lr, pullback_momentum=mode, **options)
    ref.follows(gradtx.with_lookahead(tx, pullback_momentum=mode, **options), reference)


def test_with_lookahead_pulls_back_every_momentum_slot_of_its_base():
    def direction(s, t, g):
        s.m = 0.5 * s.m + g  # two momenta in one tensor: of the gradient, and of that
        s.m2 = 0.8 * s.m2 + 0.2 * s.m
        return s.m2

    def rule(s, t, g, p):
        if t == 1:
            s.slow = p
        fast = p - 0.1 * direction(s, t, g)
        if t % 3:
            return fast
        s.slow, s.slow_m, s.slow_m2 = ((a + b) / 2 for a, b in ((s.slow, fast), (s.slow_m, s.m), (s.slow_m2, s.m2)))
        s.m, s.m2 = s.slow_m, s.slow_m2
        return s.slow

    base = gradtx.chain(gradtx.trace(0.5), gradtx.ema(0.8), gradtx.scale_by_learning_rate(0.1))
    tx = gradtx.with_lookahead(base, k=3, alpha=0.5, pullback_momentum="pullback")
    ref.follows(tx, ref.WeightsLoop(rule))


def averaged(s, t, g, p, decay=None, start=0, debias=False):
    update = -0.1 * g
    new = p + update
    s.ema = decay * s.ema + (1 - decay) * new if debias and t > start else 0.0
    if t <= start:
        s.average = new
    elif debias:
        s.average = s.ema / (1 - decay ** (t - start))
    elif decay is None:
        s.average = s.average + (new - s.average) / (t - start)
    else:
        s.average = decay * (p if t == 1 else s.average) + (1 - decay) * new
    return update


def evaluation_weights(tx):
    """What `eval_params` gives after every step of a run, and the weights themselves."""
    step, weights, history = ref.Transformed(tx), [], []

    def spy(grads, params):
        updates = step(grads, params)
        weights.append(gradtx.apply_updates(params, updates))
        history.append(tx.eval_params(step.state, weights[-1]))
        return updates

    ref.run(spy)
    return history, weights


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start": 7},
        {"decay": 0.8},
        {"decay": 0.8, "start": 3, "debias": True},
        {"decay": 0.8, "debias": True},
        {"decay": 0.8, "start": 7},
        {"decay": RISING},
        {"decay": 0.0},
    ],
    ids=str,
)
def test_average_gives_the_weights_to_evaluate_with_that_the_loop_gives(options):
    expected, reference = [], ref.Loop(averaged, **options)

    def spy(grads, params):
        updates = reference(grads, params)
        expected.append({name: slots.average for name, slots in reference.slots.items()})
        return updates

    ref.run(spy)
    history, _ = evaluation_weights(gradtx.chain(gradtx.scale(-0.1), gradtx.average(**options)))
    ref.compare(history, expected)


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.chain(gradtx.sgd(lr=0.1), gradtx.lookahead(k=4)),
        gradtx.with_lookahead(gradtx.sgd(lr=0.1, momentum=0.9), k=4, pullback_momentum="pullback"),
    ],
    ids=str,
)
def test_lookahead_evaluates_with_the_slow_weights(tx):
    history, weights = evaluation_weights(tx)
    # the slow weights are those of the last synchronisation, where the parameters equal them
    slow = [weights[t - t % 4 - 1] for t in range(4, len(weights) + 1)]
    ref.compare(history, history[:3] + slow, 1e-15)
    assert ref.distance(history[4:5], weights[4:5]) > 1e-3


def test_with_lookahead_lists_its_modes_for_an_unknown_one():
    message = r"^with_lookahead: pullback_momentum must be 'none', 'reset' or 'pullback', got 'pull'$"
    with pytest.raises(ValueError, match=message):
        gradtx.with_lookahead(gradtx.sgd(), pullback_momentum="pull")


def test_the_average_of_a_leaf_waits_for_its_gradients_and_stays_when_it_is_frozen():
    params = {name: torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)) for name in ("present", "absent")}
    optimizer = gradtx.as_optimizer(gradtx.chain(gradtx.sgd(lr=1.0), gradtx.average(0.5)), list(params.items()))
    for names in (("present", "absent"), ("present",), ("present",), ("present", "absent")):
        for name, param in params.items():
            param.grad = -torch.ones_like(param) if name in names else None
        optimizer.step()
    # Weights 1, 2, 3, 4 and 1, 1, 1, 2; each average moves half of the way in the updates of its leaf alone.
    expected = {"present": 0.5 * 4 + 0.25 * 3 + 0.125 * 2 + 0.0625 * 1, "absent": 0.5 * 2 + 0.25 * 1}
    for name, param in params.items():
        assert optimizer.state[param]["average"].tolist() == [expected[name]] * 2
