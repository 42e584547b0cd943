"""Complex parameters step as in torch.optim, that is, as their real views; links that cannot do so refuse them."""

import copy
import pickle
import re
import warnings

import pytest
import torch

import gradtx
from gradtx.plans import bundle as lists
from tests.conformance import Case, plain_cases
from tests.optim.problems import assert_close, assert_equal, saved_and_loaded
from tests.tiers import each_case

# The same operations in a different order.
TOLERANCE = 1e-12
SHAPES = {"matrix": (3, 4), "vector": (5,), "number": (), "empty": (0, 2)}
DECAY = {"weight_decay": 0.1}
CASES = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "nesterov": True, **DECAY}),
    ("SGD", {"momentum": 0.8, "dampening": 0.3, "maximize": True}),
    ("Adam", {"betas": (0.8, 0.95), "eps": 1e-3}),
    ("Adam", {"amsgrad": True, "maximize": True, **DECAY}),
    ("AdamW", {"betas": (0.7, 0.9), **DECAY}),
    ("AdamW", {"amsgrad": True, **DECAY}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.2, **DECAY}),
    ("Adadelta", {"rho": 0.8, "maximize": True, **DECAY}),
    ("RMSprop", {"alpha": 0.9, **DECAY}),
    ("RMSprop", {"centered": True, "momentum": 0.5}),
    ("NAdam", {"momentum_decay": 1e-3, **DECAY}),
    ("NAdam", {"decoupled_weight_decay": True, "maximize": True, **DECAY}),
    ("RAdam", {"betas": (0.8, 0.9), **DECAY}),
    ("RAdam", {"decoupled_weight_decay": True, **DECAY}),
    ("Adamax", {"maximize": True, **DECAY}),
    ("ASGD", {"lambd": 1e-2, "t0": 5.0, **DECAY}),
    ("Rprop", {"etas": (0.4, 1.3), "maximize": True}),
]
NAMES = sorted({name for name, _ in CASES})


@pytest.fixture(autouse=True)
def float64_by_default():
    """Make float64 the default dtype, in which torch's optimizers store some values, as ours always do."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def drawn(seed, shape=(3, 4), dtype=torch.complex128):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def parameters(view=False, seed=0):
    """Return complex parameters, or their real views, and a real parameter."""
    params = {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        value = drawn(100 * seed + i, shape)
        params[name] = torch.nn.Parameter(torch.view_as_real(value) if view else value)
    params["real"] = torch.nn.Parameter(drawn(100 * seed + 50, (2, 3), torch.float64))
    return params


def set_gradients(params, t, skips=False):
    for i, param in enumerate(params.values()):
        param.grad = None
        if skips and (i + t) % 4 == 3:
            continue
        if i == len(SHAPES):
            param.grad = drawn(1000 * t + i, param.shape, torch.float64)
            continue
        gradient = drawn(1000 * t + i, list(SHAPES.values())[i])
        param.grad = gradient if param.is_complex() else torch.view_as_real(gradient)


def descend(optimizer, params, steps, start=1, skips=False, **extras):
    for t in range(start, start + steps):
        set_gradients(params, t, skips)
        optimizer.step(**extras)


def real_values(params):
    return [torch.view_as_real(p.detach().clone()) if p.is_complex() else p.detach().clone() for p in params.values()]


def torch_and_ours(name, options, **ours):
    params, twins = parameters(), parameters()
    reference = getattr(torch.optim, name)(params.values(), lr=0.03, **options)
    return reference, params, getattr(gradtx.optim, name)(twins.items(), lr=0.03, **options, **ours), twins


# Comparison with torch.


@pytest.mark.parametrize("skips", [False, True], ids=["all gradients", "some gradients"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_twenty_steps_equal_torch(name, options, skips):
    reference, params, optimizer, twins = torch_and_ours(name, options)
    descend(reference, params, 20, skips=skips)
    descend(optimizer, twins, 20, skips=skips)
    assert_close(real_values(twins), real_values(params), TOLERANCE)
    for param, twin in zip(params.values(), twins.values(), strict=True):
        expected = {key: value for key, value in reference.state[param].items() if value is not None}
        for key in expected.keys() & optimizer.state[twin].keys():
            kept, value = optimizer.state[twin][key], torch.as_tensor(expected[key])
            assert kept.shape == value.shape
            assert kept.is_complex() == value.is_complex()


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_stays_single_and_follows_torch(name):
    value, gradients = drawn(0, (6,), torch.complex64), [drawn(t, (6,), torch.complex64) for t in range(5)]
    params = [torch.nn.Parameter(value.clone()) for _ in range(2)]
    optimizers = [getattr(torch.optim, name)(params[:1], lr=0.03), getattr(gradtx.optim, name)(params[1:], lr=0.03)]
    for gradient in gradients:
        for param, optimizer in zip(params, optimizers, strict=True):
            param.grad = gradient.clone()
            optimizer.step()
    assert params[1].dtype == torch.complex64
    assert_close([params[1]], [params[0]], 1e-5)  # float32 rounding
    slots = [slot for slot in optimizers[1].state[params[1]].values() if slot.ndim]
    assert {slot.dtype for slot in slots} <= {torch.complex64}


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_go_to_torch_and_back(name):
    reference, params, optimizer, twins = torch_and_ours(name, DECAY if name != "Rprop" else {})
    descend(reference, params, 4)
    descend(optimizer, twins, 4)
    other, others, ours_again, last = torch_and_ours(name, {})
    ours_again.load_state_dict(saved_and_loaded(reference.state_dict()))
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    for param, other_param, last_param in zip(params.values(), others.values(), last.values(), strict=True):
        other_param.data.copy_(param.data)
        last_param.data.copy_(param.data)
    descend(reference, params, 3, start=5)
    descend(ours_again, last, 3, start=5)
    descend(other, others, 3, start=5)
    assert_close(real_values(last), real_values(params), TOLERANCE)
    assert_close(real_values(others), real_values(params), TOLERANCE)


def test_a_gradient_of_the_other_kind_is_an_error():
    for param, gradient in ((drawn(0, (3,)), drawn(1, (3,)).real), (drawn(0, (3,)).real, drawn(1, (3,)))):
        tx = gradtx.adam()
        with pytest.raises(TypeError, match=f"'w' has a gradient of dtype {gradient.dtype}"):
            tx.update({"w": gradient}, tx.init({"w": param}), {"w": param})
        with pytest.raises(RuntimeError, match="grad"):
            torch.nn.Parameter(param.clone()).grad = gradient  # torch's own error


# Comparison with the real view.


def steps_of(case, view):
    """Return the weights after some steps of a case, as real views."""
    params = parameters(view)
    tx = case.make()
    extras = {"value": torch.tensor(2.0)} if "value" in tx.needs else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about chains that do not descend
        optimizer = gradtx.as_optimizer(tx, list(params.items()))
    descend(optimizer, params, 5, **extras)
    return real_values(params)


REFUSED = r"is complex, which this link does not support.* keep torch\.view_as_real\(tensor\) as the parameter"


@each_case
def test_every_factory_steps_as_with_real_views_or_refuses_by_name(case: Case):
    try:
        weights = steps_of(case, view=False)
    except TypeError as error:
        assert re.search(REFUSED, str(error))  # noqa: PT017  # most factories raise nothing
        return
    assert_close(weights, steps_of(case, view=True), TOLERANCE)


TAKEN = ["lamb", "lars", "ldog", "novograd", "adanorm", "lion", "prodigy", "lbfgs", "schedule_free_adamw", "adan"]


@pytest.mark.parametrize("name", TAKEN)
def test_methods_with_norms_and_sums_take_complex_parameters(name):
    case = next(case for case in plain_cases() if str(case) == name)
    steps_of(case, view=False)  # must not raise


@pytest.mark.parametrize(
    ("tx", "link"),
    [
        (gradtx.muon(lr=0.1), "orthogonalize"),
        (gradtx.adafactor(), "scale_by_factored_rms"),
        (gradtx.sm3(lr=0.1), "scale_by_sm3"),
        (gradtx.centralize(), "centralize"),
        (gradtx.adamp(), "project_scale_invariant"),
        (gradtx.clip_adaptive(), "clip_adaptive"),
        (gradtx.soap(), "scale_by_soap"),
        (gradtx.lars(lr=0.1, min_ndim=2), "scale_by_lars"),
        (gradtx.sophia(), "scale_by_sophia"),
        (gradtx.blocks(gradtx.adam(), "matrix", heads=3), "blocks"),
        (gradtx.graft(gradtx.sgd(lr=0.1), gradtx.adam()), "graft"),
    ],
    ids=repr,
)
def test_links_that_read_more_than_entries_and_norms_refuse_a_complex_leaf_by_name(tx, link):
    params = parameters()
    before = real_values(params)
    with pytest.raises(TypeError, match=rf"^{link}: leaf 'matrix' {REFUSED}"):
        gradtx.as_optimizer(tx, list(params.items()))
    with pytest.raises(TypeError, match=rf"^{link}: leaf 'matrix' {REFUSED}"):
        tx.init({name: param.detach() for name, param in params.items()})
    assert_equal(real_values(params), before)


# Modes of running a step.


def chain():
    return gradtx.chain(gradtx.clip_by_global_norm(2.0), gradtx.adamw(lr=0.03, weight_decay=0.1))


def pure(tx, steps=5):
    values = {name: param.detach() for name, param in parameters().items()}
    state = tx.init(values)
    for t in range(1, steps + 1):
        gradients = parameters()
        set_gradients(gradients, t)
        updates, state = tx.update({name: param.grad for name, param in gradients.items()}, state, values)
        values = gradtx.apply_updates(values, updates)
    return values, state


def test_pure_updates_equal_those_of_an_optimizer_and_keep_complex_slots():
    values, state = pure(chain())
    params = parameters()
    optimizer = gradtx.as_optimizer(chain(), list(params.items()))
    descend(optimizer, params, 5)
    assert_close(params.values(), values.values(), TOLERANCE)
    for name, param in params.items():
        slot = state["scale_by_adam"]["exp_avg_sq"][name]
        assert (slot.shape, slot.dtype) == (param.shape, param.dtype)
        assert_close([slot], [optimizer.state[param]["exp_avg_sq"]], TOLERANCE)


def test_complex_leaves_go_through_lists_with_real_ones():
    params = parameters()
    optimizer = gradtx.as_optimizer(chain(), list(params.items()))
    descend(optimizer, params, 1)
    assert {way.way for way in optimizer.explain()} == {"lists"}


@pytest.mark.parametrize("tx", [chain(), gradtx.lamb(lr=0.1), gradtx.sgd(lr=0.1, momentum=0.9)], ids=repr)
def test_compiled_steps_equal_the_default(tx):
    params, twins = parameters(), parameters()
    optimizer = gradtx.as_optimizer(tx, list(params.items()), compile=True)
    descend(optimizer, params, 4)
    assert "kernels" in {way.way for way in optimizer.explain() if way.name != "real"}
    descend(gradtx.as_optimizer(tx, list(twins.items())), twins, 4)
    assert_close(real_values(params), real_values(twins), TOLERANCE)


def large(value, gradients, make, view):
    param = torch.nn.Parameter(torch.view_as_real(value.clone()) if view else value.clone())
    optimizer = make([param])
    for gradient in gradients:
        param.grad = torch.view_as_real(gradient.clone()) if view else gradient.clone()
        optimizer.step()
    return param.detach() if view else torch.view_as_real(param.detach())


def assert_large_leaves_step_as_real_views(transposed, compile):
    shape = (2**9 + 1, 2**9)
    assert shape[0] * shape[1] > lists.CHUNK
    value, *gradients = [drawn(t, shape) for t in range(3)]
    if transposed:
        value = value.T
        gradients = [gradient.T for gradient in gradients]
    weights = []
    for view in (False, True):
        weights.append(large(value, gradients, lambda p: gradtx.optim.AdamW(p, lr=0.1, compile=compile), view))
    assert_close(weights[:1], weights[1:], TOLERANCE)


@pytest.mark.parametrize("transposed", [False, True])
def test_large_leaves_are_updated_in_parts(transposed):
    assert_large_leaves_step_as_real_views(transposed, compile=False)


@pytest.mark.parametrize("transposed", [False, True])
def test_large_leaves_are_updated_by_compiled_programs(transposed):
    assert_large_leaves_step_as_real_views(transposed, compile=True)


def test_leaves_that_are_not_contiguous_and_gradients_that_are_conjugate_views():
    base = drawn(0, (4, 6))
    param = torch.nn.Parameter(base.clone()[:, ::2])
    expected = torch.nn.Parameter(base[:, ::2].contiguous().clone())
    optimizers = [make(p) for make, p in ((gradtx.optim.Adam, [param]), (torch.optim.Adam, [expected]))]
    for t in range(1, 4):
        gradient = drawn(t, (4, 3))
        param.grad, expected.grad = gradient.conj(), gradient.conj().resolve_conj()
        assert param.grad.is_conj()
        for optimizer in optimizers:
            optimizer.step()
    assert_close([param], [expected], TOLERANCE)
    tx, leaf = gradtx.adam(), {"w": drawn(0, (3,)).conj()}
    updates, _ = tx.update(leaf, tx.init(leaf), leaf)
    resolved = {"w": leaf["w"].resolve_conj()}
    expected_updates, _ = tx.update(resolved, tx.init(resolved), resolved)
    assert_close(updates.values(), expected_updates.values(), TOLERANCE)


def test_derivatives_go_through_steps():
    def size_after(lr):
        tx, values = gradtx.adam(lr=lr), {"w": drawn(0, (3,))}
        state = tx.init(values)
        for _ in range(3):
            gradients = torch.func.grad(lambda at: (at["w"].abs().square() * torch.arange(1.0, 4.0)).sum())(values)
            updates, state = tx.update(gradients, state, values)
            values = gradtx.apply_updates(values, updates)
        return values["w"].abs().square().sum()

    lr, step = torch.tensor(0.1), 1e-6
    quotient = (size_after(lr + step) - size_after(lr - step)) / (2 * step)
    torch.testing.assert_close(torch.func.grad(size_after)(lr), quotient, rtol=1e-6, atol=0)


# Everything around a step.


def test_a_resumed_run_is_bitwise_the_same():
    params = parameters()
    optimizer = gradtx.as_optimizer(chain(), list(params.items()))
    descend(optimizer, params, 3)
    twins = {name: torch.nn.Parameter(param.detach().clone()) for name, param in params.items()}
    resumed = gradtx.as_optimizer(chain(), list(twins.items()))
    resumed.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    copied, copied_params = copy.deepcopy((optimizer, params))
    pickled, pickled_params = pickle.loads(pickle.dumps((optimizer, params)))
    for other, others in ((optimizer, params), (resumed, twins), (copied, copied_params), (pickled, pickled_params)):
        descend(other, others, 3, start=4)
        assert_equal(real_values(others), real_values(params))


@pytest.mark.parametrize("stored", ["int8", "int4", "bfloat16+8", "bfloat16:stochastic", torch.bfloat16, torch.float32])
def test_stored_slots_are_those_of_the_real_view_and_change_into_each_other(stored):
    value, gradients = drawn(0, (64, 80)), [drawn(t, (64, 80)) for t in range(1, 4)]
    weights = [
        large(value, gradients, lambda params: gradtx.optim.AdamW(params, lr=0.1, state_dtype=stored), view)
        for view in (False, True)
    ]
    assert_equal(weights[0], weights[1])
    param = torch.nn.Parameter(value.clone())
    plain = gradtx.optim.AdamW([param], lr=0.1)
    coded = gradtx.optim.AdamW([param], lr=0.1, state_dtype=stored)
    for gradient in gradients:
        param.grad = gradient.clone()
        plain.step()
    coded.load_state_dict(plain.state_dict())
    plain.load_state_dict(coded.state_dict())
    slot = plain.state[param]["exp_avg"]
    assert (slot.dtype, slot.shape) == (param.dtype, param.shape)
    param.grad = gradients[0].clone()
    coded.step()


def test_averaged_weights_are_complex_in_evaluation_and_in_its_checkpoints():
    params = parameters()
    optimizer = gradtx.optim.ScheduleFreeAdamW(params.items(), lr=0.1)
    descend(optimizer, params, 3)
    trained = real_values(params)
    optimizer.eval()
    evaluated = real_values(params)
    saved = saved_and_loaded(optimizer.state_dict())
    optimizer.train()
    assert_equal(real_values(params), trained)
    other = {name: torch.nn.Parameter(param.detach().clone()) for name, param in params.items()}
    loaded = gradtx.optim.ScheduleFreeAdamW(other.items(), lr=0.1)
    loaded.load_state_dict(saved)
    loaded.train()
    assert_equal(real_values(other), trained)
    assert not torch.equal(evaluated[0], trained[0])


def test_a_file_of_trees_keeps_complex64_and_refuses_complex128_by_name(tmp_path):
    pytest.importorskip("safetensors")
    tx, params = gradtx.adam(), {"w": drawn(0, (3,), torch.complex64)}
    _, state = tx.update(params, tx.init(params), params)
    gradtx.save(tmp_path / "run.safetensors", params, state)
    assert_equal(gradtx.load(tmp_path / "run.safetensors", params, tx.init(params)), (params, state))
    wide = {"w": drawn(0, (3,))}
    with pytest.raises(TypeError, match=r"save: 'params\.w' has dtype torch\.complex128.* use torch\.save"):
        gradtx.save(tmp_path / "wide.safetensors", wide, tx.init(wide))


# Parameters that are still refused.


def test_half_precision_and_conjugate_parameters_are_refused_by_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ComplexHalf is experimental
        half = torch.zeros(2, dtype=torch.complex32)
    with pytest.raises(TypeError, match=r"params: leaf 'w' has dtype torch\.complex32, needs torch\.complex64"):
        gradtx.adam().init({"w": half})
    with pytest.raises(ValueError, match=r"parameter 'w' is a conjugate view.*resolve_conj"):
        gradtx.optim.SGD([("w", torch.nn.Parameter(drawn(0, (2,)).conj()))])


def test_complex_extras_and_losses_are_refused():
    params, tx = {"w": torch.ones(2)}, gradtx.scale_by_sophia()
    with pytest.raises(TypeError, match=r"hessian_diag: leaf 'w' has dtype torch\.complex128, needs real entries"):
        tx.update(params, tx.init(params), params, hessian_diag={"w": drawn(0, (2,))})
    with pytest.raises(TypeError, match="value must be real"):
        gradtx.adam().update(params, gradtx.adam().init(params), params, value=torch.tensor(1j))
    leaf = {"w": drawn(0, (2,))}
    state = gradtx.adam().init(leaf)
    with pytest.raises(
        TypeError, match="hessian_diag: leaf 'w' is complex, but per-leaf extras support only real leaves"
    ):
        gradtx.adam().update(leaf, state, leaf, hessian_diag={"w": torch.ones(2)})
    with pytest.raises(TypeError, match=r"gradients of task 0: leaf 'w' has dtype torch\.complex128, needs real"):
        gradtx.pcgrad([{"w": drawn(0, (2,))}, {"w": drawn(1, (2,))}])


def test_complex_updates_are_not_added_to_real_parameters():
    with pytest.raises(TypeError, match=r"leaf 'w' has dtype torch\.complex128, but its parameter has torch\.float64"):
        gradtx.apply_updates({"w": torch.ones(2)}, {"w": drawn(0, (2,))})


def test_a_state_of_another_shape_is_an_error_and_changes_nothing():
    params = parameters()
    optimizer = gradtx.optim.Adam(params.items(), lr=0.1)
    descend(optimizer, params, 2)
    before, state = real_values(params), copy.deepcopy(optimizer.state_dict()["state"])
    for damage in (drawn(0, (3, 3)), drawn(0, (3, 4)).real, torch.zeros(3, 4, dtype=torch.int64)):
        broken = copy.deepcopy(optimizer.state_dict())
        broken["state"][0]["exp_avg"] = damage
        with pytest.raises((ValueError, TypeError), match=r"'matrix'.*'exp_avg'"):
            optimizer.load_state_dict(broken)
        assert_equal(real_values(params), before)
        assert_equal(optimizer.state_dict()["state"], state)
