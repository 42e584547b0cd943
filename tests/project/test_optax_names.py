"""Calls that docs/optax-names.md says are equal give the same numbers in the installed optax."""

import functools
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradtx

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "optax-names.md"
SECTIONS = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
ROW = re.compile(r"^\| `optax\.(.*?)`(?:, `.*?`)* \| ([=≈]) `(.*?)` \|", re.MULTILINE)
ROWS = {title: ROW.findall(text) for title, text in SECTIONS.items()}
COUNTERPARTS = sorted({here for rows in ROWS.values() for _, _, here in rows})
SCHEDULES = [(there, here) for there, mark, here in ROWS["Schedules"] if mark == "="]
OF_VALUES = ("Schedules", "Functions of trees")
FUNCTIONS = [(there, here) for there, mark, here in ROWS["Functions of trees"] if mark == "="]
STEPS = [(there, here) for title in ROWS if title not in OF_VALUES for there, mark, here in ROWS[title] if mark == "="]
TIMES = range(16)  # as far as the longest schedule there goes
LR = 0.05
# optax takes these rates, sums or decays in float32, whatever the dtype of the parameters.
SINGLE = ["contrib.madgrad(", "contrib.scale_by_madgrad(", "scale_by_factored_rms(", "MultiSteps("]

# Not importorskip, which would start jax in this process.
needs_optax = pytest.mark.skipif(
    importlib.util.find_spec("optax") is None, reason="optax, of the extra `docs`, is what the page is about"
)


def problem():
    """A matrix and a vector, whose gradients do not depend on them; losses for those that read one."""
    rng = torch.Generator().manual_seed(0)

    def draw():
        return {
            name: torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in (("w", (3, 4)), ("b", (4,)))
        }

    return draw(), [draw() for _ in range(7)], [1.0, 0.7, 1.3, 0.2, 0.9, 0.5, 0.1]


def examples_of(grads):
    """Gradients of three examples, the longest of which are clipped at 0.5."""
    return {name: torch.stack([0.1 * grad, grad, -0.3 * grad]) for name, grad in grads.items()}


def takes_examples(call):
    return call.startswith(("contrib.dpsgd", "contrib.differentially_private"))


def as_lists(tree):
    return {name: value.tolist() for name, value in tree.items()}


@functools.cache
def optax():
    """What tests/optax_reference.py says."""
    params, grads, losses = problem()
    asked = {
        "lr": LR,
        "params": as_lists(params),
        "grads": list(map(as_lists, grads)),
        "examples": [as_lists(examples_of(grad)) for grad in grads],
        "losses": losses,
        "steps": {there: "examples" if takes_examples(there) else "grads" for there, _ in STEPS},
        "tree": as_lists(params),
        "other": as_lists(grads[0]),
        "functions": [there for there, _ in FUNCTIONS],
        "schedules": [there for there, _ in SCHEDULES],
        "times": list(TIMES),
    }
    # Each step is taken once, which compiling it would not pay for; and only on the processor.
    quick = {"JAX_DISABLE_JIT": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
    told = subprocess.run(
        [sys.executable, "tests/optax_reference.py"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **quick},
    )
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


def value_of(code):
    """The value of what a row has for gradtx."""
    params = {"w": torch.ones(2)}
    tree, (other, *_), _ = problem()
    known = {"lr": LR, "tx": gradtx.adam(), "params": params, "updates": params, "torch": torch}
    known |= {"tree": tree, "other": other}
    return eval(code, {**{name: getattr(gradtx, name) for name in gradtx.__all__}, **known})


@pytest.mark.parametrize("code", COUNTERPARTS)
def test_what_stands_for_a_name_exists(code):
    assert value_of(code) is not None


# More similar to another name of gradtx than to its counterpart.
CONFUSED = {
    "clip",
    "normalize",
    "amsgrad",
    "scale_by_amsgrad",
    "scale_by_stddev",
    "scale_by_novograd",
    "scale_by_muon",
    "sgdr_schedule",
}


@pytest.mark.parametrize("name", sorted(CONFUSED))
def test_a_name_that_looks_like_another_one_is_told_its_counterpart(name):
    rows = itertools.chain(*ROWS.values())
    here = next(here for there, _, here in rows if there.removeprefix("contrib.").partition("(")[0] == name)
    with pytest.raises(AttributeError, match=f"; use {here.partition('(')[0]}"):
        getattr(gradtx, name)


def test_the_rows_of_the_page_are_read():
    assert f"{len(STEPS) + len(SCHEDULES) + len(FUNCTIONS)} calls" in (ROOT / "docs" / "comparison.md").read_text(
        encoding="utf-8"
    )


@needs_optax
@pytest.mark.parametrize(("there", "here"), STEPS)
def test_calls_that_are_said_to_be_equal_give_the_same_updates(there, here):
    params, grads, losses = problem()
    tx = value_of(here)
    state = tx.init(params)
    # float64: sums in another order. A step is compared with the size of the largest.
    tolerance = 1e-6 if there.startswith(tuple(SINGLE)) else 1e-10
    theirs = optax()["steps"][there]
    largest = max(abs(entry) for step in theirs for leaf in step.values() for entry in torch.tensor(leaf).flatten())
    for step, (grad, loss) in enumerate(zip(grads, losses, strict=True)):
        grad = examples_of(grad) if takes_examples(there) else grad
        updates, state = tx.update(grad, state, params, value=torch.tensor(loss, dtype=torch.float64))
        params = gradtx.apply_updates(params, updates)
        expected = {name: torch.tensor(value, dtype=torch.float64) for name, value in theirs[step].items()}
        torch.testing.assert_close(updates, expected, rtol=0, atol=tolerance * float(largest))


@needs_optax
@pytest.mark.parametrize(("there", "here"), SCHEDULES)
def test_schedules_that_are_said_to_be_equal_give_the_same_values(there, here):
    values = [float(value_of(here)(t)) for t in TIMES]
    assert values == pytest.approx(optax()["schedules"][there], rel=0, abs=1e-15)


@needs_optax
@pytest.mark.parametrize(("there", "here"), FUNCTIONS)
def test_functions_of_trees_that_are_said_to_be_equal_return_the_same(there, here):
    expected = {name: torch.tensor(x, dtype=torch.float64) for name, x in optax()["functions"][there].items()}
    torch.testing.assert_close(value_of(here), expected, rtol=0, atol=1e-12)
