import contextlib
import pickle

import pytest
import torch
from torch import Tensor

import gradtx
from tests.conformance import all_cases, noise
from tests.matrix_problem import eigenvectors, times, unfolded
from tests.optim.problems import descend, gradient, parameters
from tests.references import BETA, RATE, WeightsLoop, follows, named, weights_follow

ROTATIONS = 1e-10  # bases of nearly equal eigenvalues amplify rounding: 1e-16 becomes 1e-13 in 32 steps
# 3 x 5: the first statistics of its longer side have rank 3, so part of that basis is arbitrary.
UNDETERMINED = ("whole",)


def rotated_dims(p: Tensor, sides: str, limit: int, vectors: bool) -> list[int]:
    if p.ndim == 0 or (p.ndim == 1 and not vectors):
        return []
    if sides == "both":
        return [i for i, n in enumerate(p.shape) if n <= limit]
    if p.ndim != 2:
        return []
    i = {"left": 0, "right": 1, "short": 0 if p.shape[0] < p.shape[1] else 1}[sides]
    return [i] if p.shape[i] <= limit else []


def rotated_adam(
    s, t, g, p, lr=0.02, betas=(0.9, 0.95), adam_eps=0.01, statistics="shampoo", sides="both", beta=0.95,
    precondition_frequency=10, max_precondition_dim=10000, precondition_1d=False, start="skip", refresh="qr", offset=1,
    eps=1e-8, order="after",
):  # fmt: skip
    """Adam with slots kept in the rotated basis: momenta are turned when the basis changes."""
    b1, b2 = betas
    dims = rotated_dims(p, sides, max_precondition_dim, precondition_1d)
    due = (t - offset) % precondition_frequency == 0
    if t == 1:
        s.Q = {i: torch.eye(p.shape[i], dtype=p.dtype) for i in dims}
        s.S = {i: torch.zeros(p.shape[i], p.shape[i], dtype=p.dtype) for i in dims}

    def rotate(x, back=False):
        for i in dims:
            x = times(x, s.Q[i] if back else s.Q[i].T, i)
        return x

    def renew(new):
        m = rotate(s.m + 0 * p, back=True)
        s.Q = new
        s.m = rotate(m)

    if refresh == "svd" and (t == 1 or due):
        renew({i: torch.linalg.svd(unfolded(g, i))[0] for i in dims})

    def stepped(n):
        if n == 0:
            return p
        x = rotate(g)
        s.m, s.v = b1 * s.m + (1 - b1) * x, b2 * s.v + (1 - b2) * x**2
        d = s.m / (1 - b1**n) * (1 - b2**n) ** 0.5 / (s.v.sqrt() + adam_eps)
        return p - lr * rotate(d, back=True)

    if order == "after" or refresh == "svd":
        new = stepped(t - 1 if start == "skip" and order == "after" else t)
    if refresh == "svd":
        return new
    weight, x = 1 - beta, dict.fromkeys(dims, g)
    if statistics == "kl":
        weight = (1 - beta) / (1 - beta**t)
        lam = {i: torch.diag(s.Q[i].T @ s.S[i] @ s.Q[i]).clamp(min=eps) for i in dims}
        for i in dims:
            for j in dims:
                if j != i and t > 1:
                    x[i] = times(x[i], torch.diag(lam[j] ** -0.5) @ s.Q[j].T, j)
            x[i] = x[i] / (p.numel() / p.shape[i]) ** 0.5
    for i in dims:
        s.S[i] = (1 - weight) * s.S[i] + weight * unfolded(x[i], i) @ unfolded(x[i], i).T
    if t == 1 or (due and refresh == "eigh"):
        renew({i: eigenvectors(s.S[i]) for i in dims})
    elif due:
        Q = {}
        for i in dims:
            by_size = torch.diag(s.Q[i].T @ s.S[i] @ s.Q[i]).argsort(descending=True)
            s.v = s.v.index_select(i, by_size) if isinstance(s.v, Tensor) else s.v
            Q[i] = torch.linalg.qr(s.S[i] @ s.Q[i][:, by_size])[0]
        renew(Q)
    return stepped(t) if order == "before" else new


def ours(lr=0.02, betas=(0.9, 0.95), adam_eps=0.01, **options):
    inner = gradtx.scale_by_adam_hat(betas, adam_eps)
    return gradtx.chain(gradtx.rotated(inner, **options), gradtx.scale_by_learning_rate(lr))


CASES = [
    {},
    {"precondition_frequency": 3, "beta": 0.8, "statistics": "kl", "eps": 1e-4},
    {"precondition_frequency": 2, "statistics": "kl", "start": "identity", "offset": 0},
    {"precondition_frequency": 1, "start": "identity", "max_precondition_dim": 3},
    {"precondition_frequency": 4, "refresh": "eigh", "start": "identity", "offset": 0, "sides": "short"},
    {"precondition_frequency": 3, "sides": "left", "refresh": "eigh"},
    {"precondition_frequency": 3, "sides": "right"},
    {"precondition_frequency": 3, "sides": "short", "refresh": "svd", "start": "identity"},
    {"lr": RATE, "betas": (BETA, BETA), "beta": BETA, "precondition_frequency": 3, "statistics": "kl"},
    {"order": "before", "precondition_frequency": 1, "refresh": "eigh", "statistics": "kl", "eps": 1e-4},
    {"order": "before", "precondition_frequency": 3, "start": "identity"},
    {"order": "before", "precondition_frequency": 1, "sides": "short"},
    {"order": "before", "precondition_frequency": 2, "refresh": "svd"},
]


@pytest.mark.parametrize("options", CASES, ids=named)
def test_adam_in_it_follows_the_loop_with_slots_in_the_basis(options):
    reference = WeightsLoop(rotated_adam, **options)
    weights_follow(ours(**options), reference, without=UNDETERMINED, steps=30, tolerance=ROTATIONS)


def test_soap_is_adam_in_it():
    tx = gradtx.chain(
        gradtx.rotated(gradtx.scale_by_adam_hat((0.9, 0.95), 0.01), beta=0.8, precondition_frequency=3),
        gradtx.scale_by_learning_rate(0.02),
    )
    soap = gradtx.soap(0.02, (0.9, 0.95), 0.8, 0.01, weight_decay=0.0, precondition_frequency=3)
    follows(tx, soap, tolerance=1e-12)


def test_a_chain_of_linear_links_is_the_same_outside_of_it():
    linear = gradtx.chain(gradtx.trace(0.9), gradtx.add_decayed_weights(0.1), gradtx.scale_by_learning_rate(0.02))
    tx = gradtx.rotated(linear, start="identity", precondition_frequency=2)
    follows(tx, linear, tolerance=1e-12)


def test_merged_dimensions_are_those_of_a_matrix():
    grads = torch.randn(6, 2, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tx = gradtx.rotated(
        gradtx.scale_by_adam_hat(eps=0.1), merge_dims=True, max_precondition_dim=6, precondition_frequency=2
    )
    state, flat = tx.init({"w": grads[0]}), tx.init({"w": grads[0].reshape(6, 2)})
    assert state["rotated"]["scale_by_adam_hat"]["exp_avg"]["w"].shape == (2, 3, 2)
    for g in grads:
        updates, state = tx.update({"w": g}, state)
        other, flat = tx.update({"w": g.reshape(6, 2)}, flat)
        torch.testing.assert_close(updates["w"].reshape(6, 2), other["w"], rtol=1e-12, atol=1e-14)


def test_the_gradient_and_the_parameters_are_rotated_as_the_update():
    seen = []

    @gradtx.per_tensor(needs=("params",), compiles=False)  # programs do not call it
    def look():
        def update(update, state, param, ctx):
            seen.append((update, ctx.grad, param))
            return update, state

        return update

    tx = gradtx.chain(gradtx.scale(2.0), gradtx.rotated(look(), precondition_frequency=1))
    params = {"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(params, state, params)
    update, grad, param = seen[-1]
    torch.testing.assert_close(update, 2 * grad)
    torch.testing.assert_close(param, grad)
    assert not torch.allclose(param, params["w"])


def test_the_inner_clock_is_one_behind_and_slots_stay_at_the_first_step():
    tx = gradtx.rotated(gradtx.scale_by_adam_hat())
    params = {"w": torch.ones(2, 3, dtype=torch.float64)}
    updates, state = tx.update(params, tx.init(params))
    assert updates["w"].abs().max() == 0
    assert state["rotated"]["scale_by_adam_hat"]["exp_avg_sq"]["w"].abs().max() == 0
    assert state["rotated"]["GG_0"]["w"].abs().max() > 0


def test_shared_values_of_the_inner_chain_stay_at_the_first_step():
    tx = gradtx.rotated(gradtx.chain(gradtx.trace(0.5), gradtx.record("norm")))
    params = {"w": torch.ones(2, 3, dtype=torch.float64)}
    _, state = tx.update(params, tx.init(params))
    assert state["rotated"]["record"]["norm"] == 0
    _, state = tx.update(params, state)
    torch.testing.assert_close(state["rotated"]["record"]["norm"], torch.tensor(6.0, dtype=torch.float64).sqrt())


def test_it_nests_in_other_combinators():
    tx = gradtx.accumulate(gradtx.with_lookahead(ours(precondition_frequency=2), k=2), every=2)
    params = parameters()
    descend(gradtx.as_optimizer(tx, params.values()), params, 8)
    assert all(param.isfinite().all() for param in params.values())
    assert repr(pickle.loads(pickle.dumps(tx))) == repr(tx)


UNKNOWN = r"rotated: the inner link 'scale_by_tam' has the slot 's', which cannot be rotated as far as is known; .*"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gradtx.rotated(gradtx.adam), "rotated: inner must be a GradientTransformation, .*call it.*"),
        (lambda: gradtx.rotated(gradtx.scale_by_tam()), UNKNOWN),
        (lambda: gradtx.rotated(gradtx.schedule_free_sgd()), r"rotated: .* averages weights, .* outside rotated"),
    ],
)
def test_what_makes_no_sense_is_an_error(make, message):
    params = {"w": torch.ones(2, 3)}
    with pytest.raises((TypeError, ValueError, AttributeError), match=message):
        make().init(params)


def test_a_link_for_whole_trees_is_an_error():
    @gradtx.whole_tree
    def halve():
        return lambda updates, state, params, ctx: ({name: 0.5 * u for name, u in updates.items()}, state)

    with pytest.raises(
        TypeError, match="halve: processes whole trees, whose slots rotated cannot transform; move it outside"
    ):
        gradtx.rotated(halve()).init({"w": torch.ones(2, 2)})


@pytest.mark.parametrize(
    "link",
    [
        gradtx.scale_by_ademamix(),
        gradtx.scale_by_belief(),
        gradtx.scale_by_acprop(),
        gradtx.scale_by_adamax(),
        gradtx.scale_by_pnm(),
        gradtx.scale_by_adapnm(),
        gradtx.scale_by_adadelta(),
        gradtx.scale_by_kate(),
    ],
)
def test_direction_rules_run_in_the_bases_of_the_first_gradient(link):
    tx = gradtx.rotated(link, start="skip", precondition_frequency=100)
    first, *grads = [noise(seed, {"w": (4, 3)}) for seed in range(5)]
    params = {"w": torch.zeros(4, 3, dtype=torch.float64)}
    _, state = tx.update(first, tx.init(params), params)
    left, right = state["rotated"]["Q_0"]["w"], state["rotated"]["Q_1"]["w"]
    plain = link.init(params)
    for grad in grads:
        updates, state = tx.update(grad, state, params)
        inside, plain = link.update({"w": left.mT @ grad["w"] @ right}, plain, params)
        expected = {"w": left @ inside["w"] @ right.mT}
        torch.testing.assert_close(updates, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("fault", ["raises", "is not finite"])
def test_factors_that_fail_are_computed_again_in_float64(fault, monkeypatch):
    eigh = torch.linalg.eigh

    def failing(x):
        if x.dtype == torch.float64:
            return eigh(x)
        if fault == "raises":
            raise torch.linalg.LinAlgError("did not converge")
        values, vectors = eigh(x)
        return values, vectors * torch.nan

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    grads = {"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(0))}
    tx = gradtx.scale_by_soap()
    _, state = tx.update(grads, tx.init(grads))
    basis = state["scale_by_soap"]["Q_0"]["w"]
    assert basis.dtype == torch.float32
    torch.testing.assert_close(basis.mT @ basis, torch.eye(3))


def test_coded_second_moments_change_places_with_the_columns():
    """Of entries, not of their codes, whose scales belong to blocks."""

    def last_update(state_dtype):
        tx = gradtx.soap(lr=0.1, precondition_frequency=2, eps=1e-3, state_dtype=state_dtype)
        params = {"w": torch.zeros(64, 64)}
        state = tx.init(params)
        scales = torch.logspace(-1, 1, 64)
        for t in range(5):
            noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(t))
            updates, state = tx.update({"w": scales.roll(13 * t)[:, None] * noise}, state, params)
        return updates["w"]

    plain, coded = last_update(None), last_update({"exp_avg_sq": "int8"})
    assert (plain - coded).norm() < 0.02 * plain.norm()


@pytest.mark.parametrize("around", [lambda tx: gradtx.low_rank(tx, 1), gradtx.rotated])
def test_accumulation_inside_of_other_coordinates_is_refused_at_once(around):
    with pytest.raises(TypeError, match=r"accumulate also processes leaves without a gradient.*move it outside"):
        around(gradtx.accumulate(gradtx.scale_by_adam(), 2))


@pytest.mark.parametrize(
    "around",
    [
        lambda tx: gradtx.rotated(tx, precondition_frequency=2),
        lambda tx: gradtx.low_rank(tx, 2, every=2, projection="power"),
        lambda tx: gradtx.low_rank(tx, 2, every=2, carry="rotate"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_links_inside_may_keep_wider_state_than_the_leaf(around, dtype):
    inner = gradtx.chain(gradtx.trace(0.5), gradtx.scale_by_adam(eps=0.1, state_dtype=torch.float64), gradtx.trace(0.3))
    tx = gradtx.chain(around(inner), gradtx.scale(-0.1))
    generator = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(4, 3, generator=generator).to(dtype), "b": torch.zeros(3, dtype=dtype)}
    of_optimizer = {name: torch.nn.Parameter(value.clone()) for name, value in params.items()}
    optimizer = gradtx.as_optimizer(tx, list(of_optimizer.items()))
    exact = {name: value.double() for name, value in params.items()}
    state, exact_state = tx.init(params), tx.init(exact)
    for _ in range(5):
        grads = {name: torch.randn(value.shape, generator=generator).to(dtype) for name, value in params.items()}
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
        exact_updates, exact_state = tx.update({n: g.double() for n, g in grads.items()}, exact_state, exact)
        exact = gradtx.apply_updates(exact, exact_updates)
        for name, param in of_optimizer.items():
            param.grad = grads[name]
        optimizer.step()
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for name, param in of_optimizer.items():
        torch.testing.assert_close(param.detach(), params[name])
        torch.testing.assert_close(params[name].double(), exact[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(3,), (3, 4)])
def test_a_mean_of_squares_over_a_whole_leaf_has_no_order_to_follow(shape):
    """Amos keeps one number for a vector; the bases of the leaf are sorted again in every second step."""
    tx, params = gradtx.rotated(gradtx.amos(), precondition_frequency=2), {"w": torch.ones(shape)}
    state = tx.init(params)
    for t in range(5):
        grads = {"w": torch.sin(torch.arange(params["w"].numel()) + t + 1.0).reshape(shape)}
        updates, state = tx.update(grads, state, params)
        assert updates["w"].isfinite().all()


def averages_of(tx):
    """The slots that a rule declares as averages of its updates, and their decays."""
    slots = getattr(tx._body, "slots", {})
    return {name: slot.decay for name, slot in slots.items() if slot.decay is not None}


def test_every_slot_that_is_declared_an_average_of_updates_is_one():
    declared = 0
    for case in all_cases():
        tx = case.make()
        averages = averages_of(tx) if case.factory.spec.kind == "rule" else {}
        if not averages:
            continue
        declared += 1
        params = {"w": torch.zeros(2, 3, dtype=torch.float64)}
        state = tx.init(params)
        expected = dict.fromkeys(averages, params["w"])
        for t in range(3):
            update = gradient(params["w"], t)
            known = {"value": torch.tensor(1.0), "hessian_diag": {"w": update}}
            extras = {name: value for name, value in known.items() if name in tx.needs}
            _, state = tx.update({"w": update}, state, params, **extras)
            for slot, decay in averages.items():
                expected[slot] = decay * expected[slot] + (1 - decay) * update
                torch.testing.assert_close(state[case.factory.__name__][slot]["w"], expected[slot])
    assert declared >= 15


@pytest.mark.parametrize("make", [gradtx.soap, gradtx.kl_soap])
def test_a_program_multiplies_matrices_as_often_as_an_eager_step(make):
    """It takes the average of updates from the rotated update, too, and does not rotate it once more."""
    counts = []
    for surroundings in (gradtx.eagerly(), contextlib.nullcontext()):
        param = torch.nn.Parameter(torch.ones(6, 4))
        optimizer = gradtx.as_optimizer(make(lr=0.1), [param])
        with surroundings:
            for i in range(3):
                param.grad = torch.linspace(-1.0, 1.0, 24).reshape(6, 4) * (i + 1)
                with torch.profiler.profile(acc_events=True) as profile:
                    optimizer.step()
        counts.append(sum(event.name == "aten::mm" for event in profile.events()))
    assert counts[0] == counts[1] > 0
