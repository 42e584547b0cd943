"""What a call passes besides gradients: scalars and functions of all leaves, and a tensor for each leaf."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradtx.base import tree as _tree
from gradtx.base.complex_views import check_real
from gradtx.base.exact import CPU, exact
from gradtx.base.forward import Transformation
from gradtx.base.messages import describe, nearest
from gradtx.execution.execute import Leaf

# Extras of every chain that are functions, and their results.
FUNCTIONS = {"grad_fn": "gradients", "value_fn": "0-d tensor"}
# The kinds of extras that are functions from which a link computes the gradient.
FUNCTION_KINDS = frozenset(("function", "function?"))
# What a link that computes the gradient from another function tells later links of the loss.
FOLLOWING = ("value", "value_fn")


def check_extras(
    tx: Transformation,
    params: Any,
    extras: dict[str, Any],
    call: str = "update(updates, state, params",
) -> dict[str, str]:
    """Check the extras of a call, and return the kinds of all extras that `tx` knows."""
    kinds, needs = tx._requirements()
    for name in extras:
        if name not in kinds:
            raise TypeError(
                f"{tx._name}: unknown extra {name!r}; {nearest(name, kinds)}"
            )
    has_functions = not FUNCTION_KINDS.isdisjoint(map(kinds.get, extras))
    for typed, _, need in needs:
        if need == "params":
            if params is None:
                raise ValueError(f"{typed} needs params: call {call})")
            continue
        # hessian_diag=None means 'keep the last one', but the key is still required.
        if need in FOLLOWING and has_functions:
            continue
        if extras.get(need) is None and not (need == "hessian_diag" and need in extras):
            # In an optimizer's step, the closure itself serves as a function.
            is_closure = need in FUNCTIONS or kinds.get(need) in FUNCTION_KINDS
            more = "" if is_closure and "closure" in call else f", {need}=..."
            if not more and need not in FUNCTIONS:
                more = ") with a closure that returns residuals and does not call backward("
            raise ValueError(f"{typed} needs {need}: call {call}{more})")
    return kinds


def is_by_leaf(kind: str) -> bool:
    """Whether an extra of this kind has a tensor for each leaf."""
    return kind.startswith("leaf") or kind == "examples"


def split_extras(
    extras: dict[str, Any], kinds: dict[str, str], names: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Split extras into those that all leaves share and those by leaf."""
    scalars = {}
    trees = {}
    for name, value in extras.items():
        if value is None:
            scalars[name] = None
        elif name in FUNCTIONS:
            if not callable(value):
                raise TypeError(
                    f"{name} must be a function params -> {FUNCTIONS[name]}, got {value!r}"
                )
            scalars[name] = value
        elif is_by_leaf(kinds[name]):
            trees[name] = _tree.match(value, names, name, "updates")
            if kinds[name] == "examples":
                check_examples(name, trees[name])
        elif kinds[name] in FUNCTION_KINDS:
            scalars[name] = _function(name, value)
        elif kinds[name].startswith("tensors"):
            scalars[name] = _tensors(name, value)
        elif kinds[name].startswith("outputs"):
            scalars[name] = _outputs(name, value)
        else:
            scalars[name] = as_scalar(name, value)
    return scalars, trees


def check_examples(extra: str, tree: Mapping[str, Any]) -> None:
    """Check that all leaves of an extra have a leading axis of one size."""
    first: tuple[str, int] | None = None
    for name, value in tree.items():
        if value is None:
            continue
        if not value.ndim:
            raise ValueError(
                f"{extra}: leaf {name!r} is 0-d, needs a leading axis with an entry for each example"
            )
        if first is None:
            first = name, len(value)
        elif len(value) != first[1]:
            raise ValueError(
                f"{extra}: leaf {name!r} has {len(value)} examples in its leading axis, but leaf {first[0]!r} has "
                f"{first[1]}"
            )


def _tensors(name: str, value: Any) -> dict[str, Tensor]:
    """Check an extra that is a dict of tensors with its own names, which are not those of leaves."""
    if not isinstance(value, Mapping) or not all(
        isinstance(tensor, Tensor) for tensor in value.values()
    ):
        raise TypeError(f"{name} must be a dict of tensors, got {value!r}")
    return dict(value)


def _outputs(name: str, value: Any) -> Tensor:
    """Check an extra that is one tensor, like the outputs of a model."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {describe(value)}")
    check_real(name, value, name)
    return value


def _function(name: str, value: Any) -> Any:
    """Check an extra that is a function."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {describe(value)}")
    return value


def as_scalar(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        number = value
    elif isinstance(value, numbers.Real):
        number = exact(value, CPU)
    else:
        raise TypeError(f"{name} must be a number or a 0-d tensor, got {value!r}")
    if number.is_complex():
        raise TypeError(f"{name} must be real, got {value!r}")
    if number.ndim:
        raise ValueError(
            f"{name} must be 0-d, got a tensor of shape {tuple(number.shape)}"
        )
    return number.to(torch.promote_types(number.dtype, torch.float32))


def add_extras(leaf: Leaf, trees: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a leaf its entries of the extras by leaf, in the dtype that rules compute in."""
    leaf.extras = dict(leaf.extras)  # all leaves share it
    for extra, values in trees.items():
        value = values[leaf.name]
        if value is not None:
            has_examples = leaf.run.known_extras[extra] == "examples"
            _check_entry(extra, leaf, value, value.shape[:1] if has_examples else ())
            value = value.to(leaf.compute_dtype)
        leaf.extras[extra] = value


def _check_entry(extra: str, leaf: Leaf, value: Tensor, leading: Sequence[int]) -> None:
    name, shape = leaf.name, (*leading, *leaf.shape)
    if leaf.is_complex:
        raise TypeError(
            f"{extra}: leaf {name!r} is complex, but per-leaf extras support only real leaves; pass None"
        )
    check_real(name, value, extra)
    if value.shape != shape:
        raise ValueError(
            f"{extra}: leaf {name!r} has shape {tuple(value.shape)}, needs {tuple(shape)}"
        )
    if value.device != leaf.device:
        raise ValueError(
            f"{extra}: leaf {name!r} is on {value.device}, but its parameter is on {leaf.device}; pass "
            f"{extra} there, by .to(param.device)"
        )


def check_extras_of(leaves: Iterable[Leaf]) -> None:
    """Raise an error for extras that do not fit a leaf."""
    for leaf in leaves:
        for operation in leaf.operations:
            for represented in operation.represents:
                represented.check(leaf)
