"""What a rule keeps for each leaf: a dict of these, in place of `init`, says how slots start and what they are.

A slot is stored in few bits, rotated, or projected according to its kind, so a rule need not know of any of these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx.base.exact import exact, exact_dtype
from gradtx.base.messages import shortly

__all__ = ["Slot", "ema", "linear", "rounded", "scalar", "square", "start"]


@dataclasses.dataclass(frozen=True)
class Slot:
    """A slot of a rule.

    Attributes:
        first: Function of the parameter that returns the first value: a tensor, a list of tensors, or None for a leaf
            without the slot.
        kind: "linear" for a vector in the space of the update, "square" for values that are never negative, one for
            each coordinate, "scalar" for a number that does not depend on coordinates; "" if nothing is known. Only
            linear slots are float16 beside float16 weights, because squares of small gradients would be 0.
        decay: The decay b of a running average `b * slot + (1 - b) * update`; None for other slots.
        fading: What a gradient of 0 multiplies the slot by: the decay of an average of updates or squares, a momentum,
            1 if it stays. None if that is not known.
        slow: Whether a step may change a value by little of its size, as in sums, slow weights and averages of weights,
            which 16 bits would round away. Such slots have at least float32, unless `state_dtype` says otherwise.
        rounded: Whether only leaves with 16-bit weights have it.
        follows: For such a slot, the function of the other slots and the weights that gives its value where a run with
            exact weights continues; None if there is none.
        is_weight: Whether it holds weights, such as initial ones, slow ones or an average. A code that
            mixes entries, as "factored" does, would move single ones far and leaves such a slot as it is.
        relative: Whether its first value is the learning rate to which later ones are compared: that of construction,
            although a warm-up may have overwritten it before the first step.
    """

    first: Callable[[Tensor], Any]
    kind: str = ""
    decay: Any = None
    slow: bool = False
    rounded: bool = False
    follows: Callable[[Mapping[str, Any], Tensor], Tensor] | None = None
    is_weight: bool = False
    relative: bool = False
    fading: Any = None

    def __post_init__(self) -> None:
        if not callable(self.first):
            raise TypeError(
                f"slots: the first value of a slot must be a function of the parameter, got {shortly(self.first)}; "
                "slots.ema(decay) declares an average of updates with that decay, slots.square() one of squares and "
                "slots.linear() any other vector, which both start at 0"
            )
        if not isinstance(self.slow, bool):
            raise TypeError(
                f"slots: slow must be True or False, got {shortly(self.slow)}; slots have no decay but that of "
                "slots.ema(decay)"
            )

    @classmethod
    def of(cls, declared: Slot | Callable[[Tensor], Any]) -> Slot:
        """Return the slot that a rule declares by a slot or by a function of the parameter."""
        return declared if isinstance(declared, Slot) else cls(declared)

    @property
    def starts_at_zero(self) -> bool:
        """Whether its first value is known to be 0 in all entries."""
        return self.first is torch.zeros_like

    @property
    def starts_alike(self) -> bool:
        """Whether its first value is known to be the same for all parameters of one shape, dtype and device."""
        return self.starts_at_zero or isinstance(self.first, _Same)


def linear(
    first: Callable[[Tensor], Any] = torch.zeros_like,
    slow: bool = False,
    decay: Any = None,
) -> Slot:
    """Declare a vector in the space of the update, such as a momentum, or with `slow` a sum; it starts at zero.

    A gradient of 0 multiplies it by `decay`, if that is known.
    """
    return Slot(first, "linear", slow=slow, fading=decay)


def ema(decay: Any) -> Slot:
    """Declare a running average of the rule's update, `decay * slot + (1 - decay) * update`, from zero."""
    return Slot(torch.zeros_like, "linear", decay, fading=decay)


def square(
    first: Callable[[Tensor], Any] = torch.zeros_like,
    slow: bool = False,
    decay: Any = None,
) -> Slot:
    """Declare values that are never negative, such as averages of squares, or with `slow` sums; they start at zero.

    A gradient of 0 multiplies them by `decay`, if that is known: 1 for a maximum.
    """
    return Slot(first, "square", slow=slow, fading=decay)


def start(slow: bool = False) -> Slot:
    """Declare a slot that starts as the parameter: a copy of weights, or with `slow` an average that follows them."""
    return Slot(_itself, "linear", slow=slow, is_weight=True)


def weights(first: Callable[[Tensor], Any]) -> Slot:
    """Declare weights that are no vector in the space of the update, such as some of the initial ones."""
    return Slot(first, is_weight=True)


def rounded(
    slot: Slot, follows: Callable[[Mapping[str, Any], Tensor], Tensor] | None = None
) -> Slot:
    """Declare a slot that only leaves with 16-bit weights have, for what others compute from their exact weights.

    Args:
        slot: The slot.
        follows: `(state, param) -> value`, which computes it from the other slots and exact weights, so that a
            checkpoint of exact weights loads into 16-bit ones, and the other way round.
    """
    return dataclasses.replace(slot, rounded=True, follows=follows)


def scalar(value: Any = 0.0) -> Slot:
    """Declare an exact number (0-d float64) for each leaf.

    Args:
        value: The first value: a number, a 0-d tensor, or a function of the parameter that returns one.
    """

    def first(param: Tensor) -> Tensor:
        number: Any = value(param) if callable(value) else value
        if isinstance(number, Tensor):
            return exact(number, param.device)
        return param.new_full((), number, dtype=exact_dtype(param))

    return Slot(first if callable(value) else _Same(first), "scalar")


def filled(value: Any) -> Callable[[Tensor], Tensor]:
    """Return the first value of a slot filled with a number, which may be a 0-d tensor."""

    def first(param: Tensor) -> Tensor:
        # A sum, because `full_like` would synchronize.
        return (torch.zeros_like(param) + value).to(param.dtype)

    return _Same(first)


@dataclasses.dataclass(frozen=True)
class _Same:
    """A first value that depends on the shape, dtype and device of a parameter alone."""

    first: Callable[[Tensor], Tensor]

    def __call__(self, param: Tensor) -> Tensor:
        return self.first(param)


def window(size: int) -> Slot:
    """Declare a list of vectors in the space of the update, such as the last gradients; all start at zero."""
    return linear(lambda param: [torch.zeros_like(param) for _ in range(size)])


def _itself(param: Tensor) -> Tensor:
    return param


def declared(
    slots: Mapping[str, Slot | Callable[[Tensor], Any] | None],
) -> dict[str, Slot]:
    """Return the slots of a rule's dict, in which None stands for no slot."""
    return {name: Slot.of(slot) for name, slot in slots.items() if slot is not None}


def init_of(slots: Mapping[str, Slot]) -> Callable[[Tensor], dict[str, Any]]:
    """Return the `init` of a rule that declares its slots."""

    def init(param: Tensor) -> dict[str, Any]:
        values = {}
        for name, slot in slots.items():
            value = slot.first(param)
            if value is not None:
                values[name] = value
        return values

    return init
