"""Rates and first weights that transfer between the widths of a model (muP)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Literal, TypeAlias

from torch import Tensor, nn

from gradtx.arguments import Static
from gradtx.base.messages import describe
from gradtx.base.selectors import Selector, Where, listed, named_in_model
from gradtx.combinators.selection import Fork
from gradtx.links.scaling import scale
from gradtx.rules import combinator

__all__ = ["init_for_width", "scale_by_width", "width_multipliers"]


# By the name of a leaf: the size of each dimension over that of the base, or None if it is not a width.
Entries: TypeAlias = tuple[float | None, ...]

Multipliers: TypeAlias = Mapping[str, Entries]

Shapes: TypeAlias = nn.Module | Mapping[str, Tensor] | Mapping[str, tuple[int, ...]]


@combinator
def scale_by_width(
    multipliers: Static[Multipliers],
    rule: Literal["adam", "sgd", "adam_eps"] = "adam",
):
    r"""Scale the updates of wide layers so that one learning rate fits all widths (muP).

    With $w$ the widths of a leaf in the order of its dimensions and $m$ the last of them (the number of inputs of a
    hidden matrix), the update is multiplied by

    | rule | no width | one width | two widths |
    |---|---|---|---|
    | "adam" | 1 | 1 | $1/m$ |
    | "sgd" | 1 | $m$ | $w_{out} / w_{in}$, the entries of dimensions 0 and 1 |
    | "adam_eps" | 1 | 1 | $m$ |

    Place it directly before decoupled weight decay and `scale_by_learning_rate`: the decay is then $\eta \lambda$ at
    all widths, as mup's default; place it after the decay for mup's `decoupled_wd=True`. "adam" suits directions whose
    entries have size 1 (Adam, Lion); "sgd" gradients and their averages. "adam_eps" in front of `scale_by_adam`, in
    addition to "adam" behind it, makes Adam's eps act as $\epsilon / m$.

    Use it with `init_for_width`, and divide by $m$ in the forward pass of the readout; attention logits are divided by
    the head's size instead of its root. `scale_by_shape("spectral")` of Muon and `lmo` transfer by themselves: then
    only the leaves of the fallback need this link.

    Args:
        multipliers: As from `width_multipliers`. Keys are names, or patterns as in `partition`.
        rule: One of these.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        TypeError: If `multipliers` is not a dict.
        ValueError: If an entry has more than two widths, if a leaf has no entry, or if a key matches no leaf.

    Example:
        >>> widths = {"hidden": (4.0, 4.0), "bias": (4.0,)}  # 4 times as wide as the base
        >>> grads = {"hidden": torch.ones(1, 1), "bias": torch.ones(1)}
        >>> tx = gradtx.scale_by_width(widths)
        >>> tx.update(grads, tx.init(grads))[0]
        {'hidden': tensor([[0.2500]]), 'bias': tensor([1.])}

    Source: Yang et al. 2022, Tensor Programs V, arXiv:2203.03466; microsoft/mup; "adam_eps": appendix B.3, as in
    Megatron-LM. Departures: none.
    """
    if not isinstance(multipliers, Mapping):
        raise TypeError(
            "scale_by_width: multipliers must be a dict of name -> widths, as from width_multipliers, got "
            f"{describe(multipliers)}"
        )
    names: dict[float, list[str]] = defaultdict(list)
    for name, entries in multipliers.items():
        names[_factor(name, entries, rule)].append(name)
    wheres = tuple(map(tuple, names.values()))
    selector = Selector("scale_by_width", tuple(names), wheres)
    return Fork(selector, {factor: scale(factor) for factor in names})


def _widths(entries: Entries) -> list[float]:
    return [width for width in entries if width is not None]


def _main(widths: list[float]) -> float:
    """Return the last width, or 1 if there is none."""
    return [1.0, *widths][-1]


def _factor(name: str, entries: Entries, rule: str) -> float:
    widths = _widths(entries)
    if len(widths) > 2:
        raise ValueError(
            f"scale_by_width: leaf {name!r} has {len(widths)} dimensions that are widths; muP has a rule for at most 2"
        )
    main = _main(widths)
    if len(widths) < 2:
        return main if rule == "sgd" else 1.0
    factors = {
        "adam": 1 / main,
        "sgd": (entries[0] or 1.0) / (entries[1] or 1.0),
        "adam_eps": main,
    }
    return factors[rule]


def width_multipliers(
    shapes: Shapes, base: Shapes, delta: Shapes | None = None
) -> dict[str, Entries]:
    """Return the width of each dimension of each parameter, relative to a base model.

    A dimension is a width if its size differs between the model and the base or, with `delta`, between the base and
    `delta`. Give a third model if this one may be as wide as the base: then its widths are 1 instead of None.

    Args:
        shapes: The model, or its parameters or their shapes by name. A model on the meta device suffices.
        base: The model of the width at which hyperparameters were tuned, in the same form or another.
        delta: A model that differs from `base` in all widths.

    Returns:
        A dict, name -> a tuple with one entry for each dimension: its size divided by that in the base, or None if it
        is not a width.

    Raises:
        ValueError: If names or numbers of dimensions differ.

    Example:
        >>> with torch.device("meta"):
        ...     wide, base = torch.nn.Linear(8, 64), torch.nn.Linear(8, 16)
        >>> gradtx.width_multipliers(wide, base)
        {'weight': (4.0, None), 'bias': (4.0,)}
        >>> gradtx.width_multipliers(base, base, wide)
        {'weight': (1.0, None), 'bias': (1.0,)}

    Source: microsoft/mup, `set_base_shapes`. Departures: none.
    """
    sizes, base_sizes = _sizes(shapes), _sizes(base)
    others = sizes if delta is None else _sizes(delta)
    multipliers = {}
    _check_names("width_multipliers", sizes, base_sizes)
    _check_names("width_multipliers", others, base_sizes)
    for name, shape in base_sizes.items():
        if not len(sizes[name]) == len(shape) == len(others[name]):
            raise ValueError(
                f"width_multipliers: {name!r} has shape {sizes[name]}, but {shape} in the base"
            )
        multipliers[name] = tuple(
            None if other == of_base else size / of_base
            for size, of_base, other in zip(
                sizes[name], shape, others[name], strict=True
            )
        )
    return multipliers


def _sizes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    if isinstance(shapes, nn.Module):
        shapes = dict(named_in_model(shapes))
    sizes = {}
    for name, x in shapes.items():
        sizes[name] = tuple(x.shape if isinstance(x, Tensor) else x)
    return sizes


def _check_names(who: str, names: Collection[str], expected: Collection[str]) -> None:
    differing = set(names) ^ set(expected)
    if differing:
        raise ValueError(
            f"{who}: all must have the same names of parameters; these are not in all: {listed(sorted(differing))}"
        )


def init_for_width(
    params: Mapping[str, Tensor], multipliers: Multipliers, readouts: Where
) -> dict[str, Tensor]:
    r"""Rescale torch's default initial weights for muP.

    Readouts, the layers from a width to outputs of fixed size: weight and bias times $\sqrt m$. Other linear layers
    and convolutions: bias times the root of the width of the weight's dimension 1. Everything else is unchanged.

    In the forward pass, the input of a readout is divided by $m$.

    Args:
        params: The parameters by name, as torch's layers initialize them.
        multipliers: As from `width_multipliers`.
        readouts: The names of the readouts: a pattern, a tuple of patterns or a function, as in `partition`, of the
            name of the layer and its weight.

    Returns:
        A new dict of tensors.

    Raises:
        ValueError: If names differ, if a pattern matches no layer, or if the weight of a readout has two widths.

    Example:
        >>> params = {"head.weight": torch.ones(2, 8), "head.bias": torch.ones(2)}
        >>> widths = {"head.weight": (None, 4.0), "head.bias": (None,)}
        >>> gradtx.init_for_width(params, widths, readouts="head")["head.bias"]
        tensor([2., 2.])

    Source: microsoft/mup, `set_base_shapes`. Departures: none.
    """
    _check_names("init_for_width", params, multipliers)
    selector = Selector.of("init_for_width: readouts", readouts)
    weights = {
        name.removesuffix("weight").removesuffix("."): name
        for name, entries in multipliers.items()
        if name.endswith("weight") and len(entries) > 1
    }
    selector.check_used(list(weights))
    scaled = dict(params)
    for layer, weight in weights.items():
        entries = multipliers[weight]
        ratio = entries[1] or 1.0
        if selector.choose(layer, params[weight]):
            widths = _widths(entries)
            if len(widths) > 1:
                raise ValueError(
                    f"init_for_width: the readout {weight!r} has two widths, {entries}; its outputs must be fixed"
                )
            ratio = _main(widths)
            scaled[weight] = math.sqrt(ratio) * params[weight]
        bias = weight.removesuffix("weight") + "bias"
        if bias in params:
            scaled[bias] = math.sqrt(ratio) * params[bias]
    return scaled
