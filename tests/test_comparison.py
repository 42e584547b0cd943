"""The README's comparison with other libraries: each line that no other test covers."""

import json
import runpy
from pathlib import Path

import pytest
import pytorch_optimizer
import torch

import gradtx

README = Path(__file__).parent.parent / "README.md"
RATES = torch.tensor([0.1, 0.2], dtype=torch.float64)
START = torch.tensor([1.0, -2.0], dtype=torch.float64)
CLASSES = {
    "torch.optim": torch.optim.AdamW,
    "torch.optim, differentiable": lambda params, lr: torch.optim.AdamW(params, lr=lr, differentiable=True),
    "pytorch_optimizer": pytorch_optimizer.AdamP,
    "gradtx": gradtx.optim.AdamW,
}


def by_class(make, lr):
    """A step of an optimizer that is an object and writes into its parameters."""
    weight = START.clone().requires_grad_()
    optimizer = make([weight], lr=lr)
    weight.grad = weight.detach().clone()
    optimizer.step()
    return weight.detach()


def by_functions(lr):
    tx, params = gradtx.adamw(lr=lr), {"weight": START}
    updates, _ = tx.update(params, tx.init(params), params)
    return gradtx.apply_updates(params, updates)["weight"]


@pytest.mark.parametrize("name", CLASSES)
def test_an_optimizer_that_is_an_object_does_not_run_under_vmap(name):
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        torch.vmap(lambda lr: by_class(CLASSES[name], lr))(RATES)


def test_one_that_is_a_function_does():
    alone = [by_class(torch.optim.AdamW, lr.item()) for lr in RATES]
    torch.testing.assert_close(torch.vmap(by_functions)(RATES), torch.stack(alone), rtol=1e-12, atol=0)


@pytest.mark.parametrize("module", [torch.optim, pytorch_optimizer], ids=lambda module: module.__name__)
def test_classes_of_torch_are_no_transformations(module):
    classes = [item for item in vars(module).values() if isinstance(item, type)]
    found = [item for item in classes if issubclass(item, torch.optim.Optimizer)]
    assert found
    assert not [item for item in found if hasattr(item, "init") and hasattr(item, "update")]


@pytest.mark.parametrize("name", ["AdamW", "AdamP"])
def test_every_chain_here_is_a_torch_optimizer(name):
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), getattr(gradtx, name.lower())(lr=0.1))
    optimizer = gradtx.as_optimizer(tx, [torch.nn.Parameter(START.clone())])
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert issubclass(getattr(gradtx.optim, name), torch.optim.Optimizer)


def test_there_are_as_many_optimizers_as_is_said():
    of_torch = {item for item in vars(torch.optim).values() if isinstance(item, type)} - {torch.optim.Optimizer}
    classes = len(gradtx.optim.__all__) - 2  # without ChainOptimizer and as_optimizer
    assert len(gradtx.get_supported_optimizers()) == classes
    assert f"any chain, and {classes} classes" in README.read_text(encoding="utf-8")
    assert len(pytorch_optimizer.optimizer.OPTIMIZER_LIST) == 128
    assert len([item for item in of_torch if issubclass(item, torch.optim.Optimizer)]) == 15


# The table, which docs/comparison.py writes.

COMPARISON = runpy.run_path(str(README.parent / "docs" / "comparison.py"))
COLUMNS = json.loads(COMPARISON["RECORD"].read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", COMPARISON["LIBRARIES"])
def test_each_column_of_the_table_is_as_a_run_has_it(name):
    try:
        column = COMPARISON["column"](name)
    except ImportError as error:
        pytest.skip(f"{name} is not here ({error}); its column stays as its last run wrote it")
    assert column == COLUMNS[name], "run `make docs-tables`"


def test_the_table_stands_in_the_readme():
    assert README.read_text(encoding="utf-8") == COMPARISON["page"](COLUMNS), "run `make docs-tables`"


def test_the_column_of_optax_counts_the_calls_that_its_tests_run():
    assert COLUMNS["optax"]["cells"][-1] == COMPARISON["calls_of_optax"]()
