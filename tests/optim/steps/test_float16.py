"""Weights of float16: squares of their gradients are smaller than float16 holds, so they are kept in float32."""

import fnmatch
import functools
import inspect

import pytest
import torch

import gradtx
from tests.conformance import extras, factories, functions, noise, tensors
from tests.examples import example_of
from tests.tiers import by_day

SHAPES = {"matrix": (8, 6), "conv": (4, 3, 2, 2), "vector": (10,)}
# Far above the smallest float16, 6e-8, and far below its root.
SIZE = 1e-4
STEPS = 50
# Steps of this size are far above the rounding of weights of 0.05.
MOVE = 0.05

# Methods whose way says nothing about the dtype of their state, and why.
UNFIT = {
    "dadapt_*": "its steps grow from some that are smaller than the rounding of float16 weights",
    "dog": "as above",
    "ldog": "as above",
    "prodigy": "as above",
    "mezo": "does not read gradients, along which the others go",
    "lbfgs": "diverges along random gradients, in float64 as well",
    "distributed_shampoo": "multiplies the rounding of its average by roots of matrices that are almost singular",
}
METHODS = {
    factory.__name__: factory
    for factory in factories()
    if factory.spec.kind == "alias"
    and not any(fnmatch.fnmatch(factory.__name__, name) for name in UNFIT)
    and not functions(factory(**example_of(factory)))  # links with derivatives of their own refuse float16
}


def _arguments(factory):
    """The arguments that a factory needs, and inner optimizers: others as users have them."""
    if factory is gradtx.kl_shampoo:  # whose own eps makes it diverge along these gradients, in float64 as well
        return example_of(factory)
    parameters = inspect.signature(factory).parameters
    return {
        name: value
        for name, value in example_of(factory).items()
        if parameters[name].default is inspect.Parameter.empty or name in ("fallback", "base")
    }


@functools.cache
def _gradients(t):
    """Gradients with a common direction, which float16 holds exactly."""
    direction, other = noise(1, SHAPES), noise(t + 2, SHAPES)
    return {name: (SIZE * (direction[name] + 0.5 * other[name])).half() for name in SHAPES}


def _way(tx, dtype, mode="pure"):
    """The distance that each leaf has moved after some steps along given gradients."""
    start = {name: weight.to(dtype) for name, weight in noise(0, SHAPES, torch.float16, 0.05).items()}
    end = _run(tx, start) if mode == "pure" else _stepped(tx, start, mode == "compiled")
    return {name: (end[name].double() - start[name].double()).norm().item() for name in SHAPES}


def _extras(tx, params, gradients):
    found = extras(tx, params)
    constants = {"value": torch.tensor(1.0), "value_fn": lambda _: torch.tensor(1.0), "grad_fn": lambda _: gradients}
    return {name: constants.get(name, value) for name, value in found.items()}


def _run(tx, params):
    state = tx.init(params)
    for t in range(STEPS):
        gradients = {name: grad.to(params[name].dtype) for name, grad in _gradients(t).items()}
        updates, state = tx.update(gradients, state, params, **_extras(tx, params, gradients))
        params = gradtx.apply_updates(params, updates)
    return params


def _stepped(tx, start, compiled):
    params = {name: torch.nn.Parameter(weight.clone()) for name, weight in start.items()}
    optimizer = gradtx.as_optimizer(tx, params.items(), compile=compiled)
    for t in range(STEPS):

        def closure(t=t):
            for name, param in params.items():
                param.grad = _gradients(t)[name].to(param.dtype)
            return torch.tensor(1.0)

        closure()
        given = _extras(tx, {name: param.detach() for name, param in params.items()}, None)
        if "value_fn" in given:
            given["value_fn"] = lambda: torch.tensor(1.0)
        calls = "grad_fn" in given
        given.pop("grad_fn", None)
        optimizer.step(closure if calls else None, **given)
    return {name: param.detach() for name, param in params.items()}


@pytest.mark.parametrize("mode", ["pure", "default", "compiled"])
@pytest.mark.parametrize("name", METHODS)
@by_day(
    "adamw-*",
    *(f"{name}-pure" for name in ("acprop", "adabelief", "adafactor", "adopt", "came", "lamb", "muon", "rmsprop")),
    *(f"{name}-pure" for name in ("adahessian", "kl_shampoo", "kl_soap", "psgd_kron", "shampoo", "soap", "splus")),
    *(f"{name}-default" for name in ("adabelief", "adan", "soap")),
    *(f"{name}-compiled" for name in ("adabelief", "adan")),
)
@pytest.mark.filterwarnings("ignore")
def test_weights_of_float16_go_as_far_as_those_of_float64_along_small_gradients(name, mode):
    tx = METHODS[name](**_arguments(METHODS[name]))
    expected = _way(tx, torch.float64)
    if min(expected.values()) < MOVE and "lr" in tx.hyperparams:
        tx = tx.replace(lr=tx.hyperparams["lr"] * MOVE / min(expected.values()))
        expected = _way(tx, torch.float64)
    way = _way(tx, torch.float16, mode)
    for leaf, distance in expected.items():
        assert distance > MOVE / 4
        # The rounding of weights, and of averages of gradients.
        assert way[leaf] == pytest.approx(distance, rel=0.05), leaf


def _dtypes(optimizer):
    return [{key: value.dtype for key, value in state.items()} for state in optimizer.state.values()]


def _one_step(optimizer, gradient=SIZE):
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.full_like(param, gradient)
    optimizer.step()


@pytest.mark.parametrize(("dtype", "of_square"), [(torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_squares_are_float32_beside_float16_and_averages_are_as_the_weights(dtype, of_square):
    optimizer = gradtx.optim.AdamW([torch.nn.Parameter(torch.ones(3, dtype=dtype))])
    _one_step(optimizer)
    assert _dtypes(optimizer) == [{"step": torch.float32, "exp_avg": dtype, "exp_avg_sq": of_square}]


def test_factors_and_what_a_rule_of_your_own_does_not_declare_are_float32_beside_float16():
    @gradtx.per_tensor
    def scale_by_own_square():
        def init(param):
            return {"square": torch.zeros_like(param)}

        def update(update, state, param, ctx):
            square = state["square"] + update.square()
            return update / square.sqrt(), {"square": square}

        return init, update

    params = {"w": torch.ones(4, 4, dtype=torch.float16)}
    for tx in (gradtx.scale_by_shampoo(), gradtx.soap(), scale_by_own_square()):
        for path, tensor in tensors(tx.init(params)).items():
            if tensor.is_floating_point() and "['exp_avg']" not in path:
                assert tensor.dtype == torch.float32, path


def test_state_dtype_keeps_squares_in_float16_where_it_says_so():
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    optimizer = gradtx.optim.AdamW([param], state_dtype=torch.float16)
    _one_step(optimizer)
    assert optimizer.state[param]["exp_avg_sq"].dtype == torch.float16


@pytest.mark.parametrize("code", ["int8", "float8"])
@pytest.mark.parametrize("compile", [False, True])
def test_leaves_too_small_for_a_code_keep_squares_in_float32(code, compile):
    small = torch.nn.Parameter(torch.zeros(5, dtype=torch.float16))
    large = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.float16))
    optimizer = gradtx.optim.AdamW([small, large], lr=1e-3, state_dtype=code, weight_decay=0.0, compile=compile)
    for _ in range(10):
        _one_step(optimizer)
    assert optimizer.state[small]["exp_avg_sq"].dtype == torch.float32
    for param in (small, large):
        torch.testing.assert_close(param.detach(), torch.full_like(param, -0.01), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", ["AdamW", "Adam", "RMSprop", "Adagrad", "NAdam", "SGD"])
def test_a_checkpoint_of_torch_beside_float16_weights_continues(name, compile):
    # Gradients large enough for torch's squares, which are float16.
    options = {"momentum": 0.9} if name == "SGD" else {"eps": 1e-4}
    twin = torch.nn.Parameter(torch.linspace(-1, 1, 16, dtype=torch.float16))
    theirs = getattr(torch.optim, name)([twin], lr=0.01, **options)
    for _ in range(3):
        _one_step(theirs, 0.5)
    param = torch.nn.Parameter(twin.detach().clone())
    ours = getattr(gradtx.optim, name)([param], lr=0.01, compile=compile, **options)
    ours.load_state_dict(theirs.state_dict())
    for _ in range(3):
        _one_step(theirs, 0.25)
        _one_step(ours, 0.25)
    torch.testing.assert_close(param, twin, rtol=0.0, atol=2e-3)  # torch rounds after each operation
    reloaded = getattr(torch.optim, name)([twin], lr=0.01, **options)
    reloaded.load_state_dict(ours.state_dict())
    _one_step(reloaded, 0.25)


def test_a_checkpoint_of_gradtx_with_squares_in_float16_continues():
    def trained(state_dtype=None):
        param = torch.nn.Parameter(torch.zeros(5, dtype=torch.float16))
        return param, gradtx.optim.AdamW([param], lr=1e-2, state_dtype=state_dtype)

    _, old = trained(torch.float16)
    _one_step(old, 0.5)
    param, optimizer = trained()
    optimizer.load_state_dict(old.state_dict())
    _one_step(optimizer, 0.5)
    assert optimizer.state[param]["step"] == 2
    assert optimizer.state[param]["exp_avg_sq"].dtype == torch.float32
