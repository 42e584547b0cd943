"""Scion: steps of a fixed size in a norm that suits the layer, with weights in a ball of that norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradtx.arguments import FractionOffAtOne, NonNegative, Static, is_off
from gradtx.combinators.selection import partition
from gradtx.links.decay import add_decayed_weights
from gradtx.links.lmo import lmo
from gradtx.links.momentum import trace_ema
from gradtx.links.scaling import scale as multiply
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.rules import alias
from gradtx.transform import GradientTransformation, chain

__all__ = ["scion"]


def _oracles(kinds: Mapping[str, Any]) -> GradientTransformation:
    """Build the transformation that applies the oracle of every leaf."""
    if not (isinstance(kinds, Mapping) and kinds):
        raise TypeError(
            f"scion: kinds must be a dict of name pattern -> kind, such as {{'*': 'auto'}}, got {kinds!r}"
        )
    oracles = [
        kind if isinstance(kind, GradientTransformation) else lmo(kind)
        for kind in kinds.values()
    ]
    if list(kinds) == ["*"]:
        return oracles[0]
    labels = {f"lmo_{i}": pattern for i, pattern in enumerate(kinds)}
    return partition(dict(zip(labels, oracles, strict=True)), labels)


@alias
def scion(
    lr=1e-3,
    momentum: FractionOffAtOne = 0.1,
    scale: NonNegative = 1.0,
    unconstrained=False,
    kinds: Static[Mapping[str, Any]] | None = None,
):
    r"""Scion: steps of a fixed size in a norm that suits the layer, with weights in a ball of that norm.

    $b \leftarrow (1 - \mu) b + \mu g$, $d = s\, \mathrm{lmo}(b)$, $p \leftarrow (1 - \eta) p - \eta d$, or
    $p \leftarrow p - \eta d$ if `unconstrained`.

    When to use: to use one rate for all widths; weights stay in the ball of radius $s$, so initialize them there
    (`init_for_lmo`). A head needs a large scale (3000 in the paper); set it with `partition`.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1], one minus the usual value: a literal 1.0, the authors' default, means no momentum.
        scale: $s \ge 0$, the radius of the ball.
        unconstrained: Omit the shrinking of the weights.
        kinds: Mapping from patterns of leaf names to kinds of `lmo`, or to an `lmo(...)`, tried in order; None for
            "auto" everywhere.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer` (none for a literal
        momentum of 1.0).

    Raises:
        TypeError: If a value of `kinds` is neither a kind nor a transformation.
        ValueError: If a kind is unknown, or if no pattern matches a leaf.

    Example:
        >>> tx = gradtx.scion(lr=0.5, momentum=1.0, scale=4.0, kinds={"*": "sign"})
        >>> params = {"w": torch.tensor([[2.0, 2.0]])}
        >>> # toward -2 and 2
        >>> tx.update({"w": torch.tensor([[3.0, -0.1]])}, tx.init(params), params)[0]["w"]
        tensor([[-2., -0.]])

    Source: Pethick et al. 2025, arXiv:2502.07529; LIONS-EPFL/scion. Departures: see `lmo`.
    """
    return chain(
        chain() if is_off(momentum, 1.0) else trace_ema(1 - momentum),
        _oracles({"*": "auto"} if kinds is None else kinds),
        multiply(scale),
        chain() if unconstrained else add_decayed_weights(1.0),
        scale_by_learning_rate(lr),
    )
