"""docs/optax-names.md against the installed optax: every name is there, and what is called equal is equal."""

import functools
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradtx
from gradtx._elsewhere import ABSENT, HERE

ROOT = Path(__file__).parent.parent
TABLE = runpy.run_path(str(ROOT / "docs" / "optax_names.py"))
ROWS = list(TABLE["rows"]())
SCHEDULES = [row for row in TABLE["SECTIONS"]["Schedules"] if row.mark == "="]
EQUAL = [row for row in ROWS if row.mark == "=" and row not in SCHEDULES]
TIMES = range(16)  # as far as the longest schedule there goes
LR = 0.05
# optax takes these rows' rates, sums or decays in float32, whatever the dtype of the parameters.
SINGLE = ["contrib.madgrad", "contrib.scale_by_madgrad", "scale_by_factored_rms", "MultiSteps"]
# What remarks may name beside gradtx, optax, torch, and their options.
WORDS = {
    *("ctx.bias_correction", "dadapt_", "eval_params", "grad_fn", "hessian_diag", "init", "nan_to_num", "param_groups"),
    *("state", "update", "value_fn", "yield", "scipy.optimize.linear_sum_assignment"),
    *("chunk_size", "label_smoothing", "log_target", "reduction", "x.detach"),  # torch's
}

# Not importorskip, which would start jax in this process.
needs_optax = pytest.mark.skipif(
    importlib.util.find_spec("optax") is None, reason="optax, of the extra `docs`, is what the table is about"
)


def problem():
    """A matrix and a vector, whose gradients do not depend on them; losses for those that read one."""
    rng = torch.Generator().manual_seed(0)

    def draw():
        return {
            name: torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in (("w", (3, 4)), ("b", (4,)))
        }

    return draw(), [draw() for _ in range(7)], [1.0, 0.7, 1.3, 0.2, 0.9, 0.5, 0.1]


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
        "losses": losses,
        "steps": [row.there for row in EQUAL],
        "schedules": [row.there for row in SCHEDULES],
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


def here(code):
    """The value of what a row has for gradtx."""
    tx = gradtx.adam()
    params = {"w": torch.ones(2)}
    known = {"lr": LR, "tx": tx, "params": params, "updates": params, "torch": torch}
    return eval(code, {**{name: getattr(gradtx, name) for name in gradtx.__all__}, **known})


def test_the_page_is_up_to_date():
    assert (ROOT / "docs" / "optax-names.md").read_text(encoding="utf-8") == TABLE["page"](), "run `make docs-tables`"
    assert (ROOT / "gradtx" / "_elsewhere.py").read_text(encoding="utf-8") == TABLE["module"](), (
        "run `make docs-tables`"
    )


def test_every_name_without_a_namesake_raises_an_error_with_advice_or_a_reason():
    for name in {*HERE, *ABSENT} - set(dir(gradtx)):
        with pytest.raises(AttributeError) as error:
            getattr(gradtx, name)
        advice = f"gradtx has no {name!r}; {HERE.get(name)} (docs/optax-names.md)"
        reason = f"gradtx has no counterpart of {name!r}: {ABSENT.get(name)} (docs/optax-names.md)"
        assert str(error.value) == (advice if name in HERE else reason)


@pytest.mark.nightly  # importing jax takes 10 s, and optax has new names only in new versions
@needs_optax
def test_the_table_has_every_public_name_of_optax_and_no_other():
    assert optax()["version"] in TABLE["INTRO"]
    listed = {name for row in ROWS for name in row.names}
    assert listed == set(optax()["names"])


def test_no_name_stands_twice_except_in_calls():
    told = [name for row in ROWS if row.mark != "=" for name in row.names]
    assert len(set(told)) == len(told)
    assert not set(told) & {name for row in ROWS if row.mark == "=" for name in row.names}


@pytest.mark.parametrize("row", [row for row in ROWS if row.mark == "≈"], ids=lambda row: row.there)
def test_what_stands_for_a_name_exists(row):
    assert here(row.here) is not None


@needs_optax
def test_every_name_in_a_remark_is_one_of_gradtx_optax_or_torch():
    factories = [getattr(gradtx, name) for name in gradtx.__all__]
    ours = {option for factory in factories if hasattr(factory, "spec") for option in factory.spec.arguments.by_name}
    known = {*gradtx.__all__, *ours, *optax()["names"], *optax()["options"], *WORDS}
    heads = {re.search(r"[\w.]+", code)[0] for row in ROWS for code in re.findall("`(.*?)`", row.note)}
    assert {head for head in heads if not (head in known or head.startswith("torch."))} == set()


@needs_optax
@pytest.mark.parametrize("row", EQUAL, ids=lambda row: row.there)
def test_calls_that_are_said_to_be_equal_give_the_same_updates(row):
    params, grads, losses = problem()
    tx = here(row.here)
    state = tx.init(params)
    # float64: sums in another order. A step is compared with the size of the largest.
    tolerance = 1e-6 if row.names[0] in SINGLE else 1e-10
    theirs = optax()["steps"][row.there]
    largest = max(abs(entry) for step in theirs for leaf in step.values() for entry in torch.tensor(leaf).flatten())
    for step, (grad, loss) in enumerate(zip(grads, losses, strict=True)):
        updates, state = tx.update(grad, state, params, value=torch.tensor(loss, dtype=torch.float64))
        params = gradtx.apply_updates(params, updates)
        expected = {name: torch.tensor(value, dtype=torch.float64) for name, value in theirs[step].items()}
        torch.testing.assert_close(updates, expected, rtol=0, atol=tolerance * float(largest))


@needs_optax
@pytest.mark.parametrize("row", SCHEDULES, ids=lambda row: row.there)
def test_schedules_that_are_said_to_be_equal_give_the_same_values(row):
    values = [float(here(row.here)(t)) for t in TIMES]
    assert values == pytest.approx(optax()["schedules"][row.there], rel=0, abs=1e-15)
