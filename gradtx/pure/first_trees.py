"""First states that consist of zeros: for trees of a structure that is known, they are made of layouts alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.ambient import runs_eagerly
from gradtx.base.forward import Transformation
from gradtx.base.plain import SHAPE, are_dense
from gradtx.base.recent import Recent
from gradtx.plans.hyperparameters import hyperparameters_of
from gradtx.pure import tree_run as _pure
from gradtx.pure.structures import (
    TensorSpec,
    UnsuitableError,
    plain,
    structure_of,
    tree_of,
)

MOST_TENSORS = 2**16  # of all first states that are kept


class FirstTree:
    """The first state of trees with one structure and layout.

    Args:
        params: The tensors of such a tree.
        state: Its first state, all of whose tensors are zeros.
    """

    def __init__(self, params: list[Tensor], state: dict[str, Any]):
        zeros: list[Tensor] = []
        self._structure = structure_of(state, zeros)
        self._fits = _torch.layout_check(params)
        like: dict[TensorSpec, int] = {}
        for i, param in enumerate(params):
            like.setdefault(TensorSpec.of(torch.zeros_like(param, device="meta")), i)
        self.size = len(zeros)
        # For each tensor, the index of a parameter of the same layout, or a function that makes it.
        self._sources: list[int | Callable[[], Tensor]] = []
        for tensor in zeros:
            spec = TensorSpec.of(tensor)
            i = like.get(spec._replace(device=torch.device("meta")))
            if i is not None and params[i].device == spec.device:
                self._sources.append(i)
            else:
                self._sources.append(functools.partial(_zeros, spec))

    def of(self, params: list[Tensor]) -> dict[str, Any] | None:
        """Return the first state of a tree; None if its tensors have another layout."""
        if not self._fits(*params):
            return None
        zeros_like = torch.zeros_like
        zeros = [
            zeros_like(params[source]) if type(source) is int else source()  # type: ignore[operator]
            for source in self._sources
        ]
        return tree_of(self._structure, iter(zeros))


def _zeros(spec: TensorSpec) -> Tensor:
    return spec.empty().zero_()


_FIRST_TREES: Recent[Any, FirstTree] = Recent()


def _known(tx: Transformation) -> tuple[Any, Recent[Any, FirstTree]]:
    """Return the structure of a chain, and the first states of chains that differ in numbers alone."""
    structure = tx._once("structure", tx._structure)
    return structure, Recent() if structure is None else _FIRST_TREES


def _key_of(tx: Transformation, params: Any, counts: str, tensors: list[Tensor]) -> Any:
    """Return what first states depend on besides dtypes and strides, and add the tensors of a tree to `tensors`.

    It is None where rules run line by line. The names of leaves belong to it, as selectors may ask for them.
    """
    if runs_eagerly() or _torch.is_intercepted() or _torch.inside_transform():
        return None
    try:
        structure = plain(structure_of(params, tensors, opens=True))
        of_chain, _ = tx._once("first trees", functools.partial(_known, tx))
        options = hyperparameters_of(tx).structure, counts, torch.get_default_dtype()
        key = of_chain, structure, tuple(map(SHAPE, tensors)), options
        hash(key)  # an option may have none
    except (UnsuitableError, TypeError):
        return None
    return key if tensors and are_dense(tensors) else None


def init(tx: Transformation, params: Any, counts: str) -> dict[str, Any]:
    """Return the first state of a tree, as `tree_run.init` does."""
    tensors: list[Tensor] = []
    key = _key_of(tx, params, counts, tensors)
    if key is None:
        return _pure.init(tx, params, counts)
    _, known = tx._once("first trees", functools.partial(_known, tx))
    first = known.get(key)
    state = None if first is None else first.of(tensors)
    if state is not None:
        return state
    state, is_zero = _pure.started(tx, params, counts)
    if is_zero:
        first = FirstTree(tensors, state)
        known.put(key, first, size=first.size, most=MOST_TENSORS)
    return state
