"""Combinators that say in what precision a chain keeps its state: `with_state_dtype`."""

from __future__ import annotations

from typing import Any

from gradtx._runs import Scope
from gradtx._storage import MIN_SIZE, StateDtype, Storage
from gradtx.core import GradientTransformation, check_transformation
from gradtx.factories import Combinator, combinator

__all__ = ["with_state_dtype"]


class Stored(Combinator):
    """Has a transformation keep its slots in another way; it has no state of its own."""

    def __init__(self, tx: GradientTransformation, storage: Storage):
        self._tx = tx
        self._storage = storage

    def expand(self, scope: Scope, name: str) -> list[Any]:
        return self._tx._expand(scope.stored_inside(self._storage))


@combinator(static=("state_dtype", "min_size"), example=lambda tx: {"tx": tx, "state_dtype": "int8"})
def with_state_dtype(tx: GradientTransformation, state_dtype: StateDtype, min_size: int = MIN_SIZE):
    """Keep the state of a chain in fewer bits; every rule computes in float32 at least.

    A slot `exp_avg` becomes its codes, in the shape of the parameter, and `exp_avg.scale`, one float32 number for a
    block of entries. Codes leave some slots as they are: those of leaves below `min_size` entries, those not shaped as
    their parameter, and numbers. A pattern without wildcard codes its slot in any case.

    Args:
        tx: The transformation.
        state_dtype: One of

            - a floating-point dtype, for all slots;
            - the name of a code: "int8" (1.06 bytes an entry), "int4" (0.63), "float8" (1.06), "bfloat16+8" (3, with a
              relative error of 2^-16), "bfloat16:stochastic" (2, rounded at random, without bias);
            - a `Codec`;
            - a dict slot pattern -> one of these; the first match counts, other slots stay as they are.
        min_size: How many entries a leaf has at least if its slots are coded.

    Returns:
        A transformation with the state of `tx`, otherwise stored. A link inside that has a `state_dtype` keeps it.

    Raises:
        TypeError: something that is not a transformation, dtype or code.
        ValueError: an unknown code; at init a pattern that matches no slot.

    Example:
        >>> tx = gradtx.with_state_dtype(gradtx.adam(), {"exp_avg": "int8", "exp_avg_sq": torch.bfloat16})
        >>> state = tx.init({"w": torch.zeros(64, 64)})
        >>> {slot: values["w"].dtype for slot, values in state["scale_by_adam"].items()}
        {'exp_avg': torch.int8, 'exp_avg.scale': torch.float32, 'exp_avg_sq': torch.bfloat16}

    Source: Dettmers et al. 2022, arXiv:2110.02861. Departures: codes are computed, without tables, softsign and square
    root; blocks lie in rows, so that a shard of a parameter is a shard of its codes.
    """
    check_transformation("with_state_dtype", "tx", tx)
    return Stored(tx, Storage("with_state_dtype", state_dtype, min_size))
