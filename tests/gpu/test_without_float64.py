"""A GPU without float64, such as Apple's: every chain runs there, in float32."""

import functools

import pytest
import torch
from torch import Tensor

import gradtx
from tests.conformance import each_case, is_estimate, of_each_kind, plain_cases
from tests.gpu.problem import Problem, loss, noise, on_host, pure, worst

PLAIN, OF_EACH_KIND = plain_cases(), of_each_kind()
# A difference of losses in float32 has other rounding errors.
PLAIN = [case for case in PLAIN if not is_estimate(case)]
OF_EACH_KIND = [case for case in OF_EACH_KIND if not is_estimate(case)]
STEPS = 3
# Numbers are exact to 2^-24 there.
TOLERANCE = 1e-4
# Functions of lists are kept by device; this index is that of no other test.
INDEX = 7


@pytest.fixture
def move(counted):
    """Moves a tree to the device, in float32."""

    def moved(tree, index=INDEX):
        narrow = torch.utils._pytree.tree_map(lambda x: single(x) if isinstance(x, Tensor) else x, tree)
        return counted.to(narrow, index=index)

    with counted.without_float64():
        yield moved


def single(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.float64 else x


def unmoved(tree):
    return tree


@each_case(PLAIN, OF_EACH_KIND)
def test_steps_equal_those_on_the_cpu(case, move):
    found, expected = (Problem(case, each, torch.float32).run(range(STEPS)) for each in (move, unmoved))
    assert worst(found.values(), expected.values()) < TOLERANCE


@each_case(OF_EACH_KIND)
def test_eager_steps_equal_those_on_the_cpu(case, move):
    with gradtx.eagerly():
        found, expected = (Problem(case, each, torch.float32).run(range(STEPS)) for each in (move, unmoved))
    assert worst(found.values(), expected.values()) < TOLERANCE


@each_case(PLAIN, OF_EACH_KIND)
def test_pure_updates_equal_those_on_the_cpu(case, move):
    found, expected = (pure(case, each, STEPS, torch.float32) for each in (move, unmoved))
    assert worst(found, expected) < TOLERANCE


@pytest.mark.parametrize(
    "lr", [torch.tensor(0.1, dtype=torch.float64), gradtx.linear_schedule(0.1)], ids=["tensor", "schedule"]
)
@pytest.mark.parametrize("options", [{}, {"state_dtype": "int8"}], ids=["", "codes"])
def test_numbers_of_all_kinds_reach_the_device(lr, options, move):
    start = noise({"w": torch.empty(3, 4), "v": torch.empty(3, 4)}, 1)

    def run(moved):
        params = {name: torch.nn.Parameter(leaf) for name, leaf in moved(start).items()}
        optimizer = gradtx.optim.AdamW(params.items(), lr=lr, **options)
        for t in range(STEPS):
            for name, gradient in moved(noise(start, t)).items():
                params[name].grad = gradient
            optimizer.step()
        return on_host(params)

    assert worst(run(move), run(unmoved)) < TOLERANCE


def test_a_device_without_kernels_is_one_warning(move):
    param = torch.nn.Parameter(move(torch.ones(3)))
    param.grad = move(torch.ones(3))
    optimizer = gradtx.optim.AdamW([param], compile=True)
    with pytest.warns(RuntimeWarning, match="lists of tensors: there are no kernels for pretend$"):
        optimizer.step()
    optimizer.step()  # another warning would be an error


def test_a_sweep(move):
    def run(moved):
        swept = gradtx.sweep(
            lambda params, batch: loss(params),
            gradtx.adamw,
            moved(noise({"w": torch.empty(3, 4), "v": torch.empty(5)}, 1)),
            lambda step: moved(torch.zeros(1)),
            {"lr": [0.1, 0.2]},
            steps=STEPS,
        )
        return {str(i): torch.tensor(record["loss"]) for i, record in enumerate(swept.records)}

    first = functools.partial(move, index=0)  # the device that autograd knows
    assert worst(run(first), run(unmoved)) < TOLERANCE
