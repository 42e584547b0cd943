"""Averages of the weights: lookahead, Polyak and exponential averages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradtx._arguments import Scalar
from gradtx._program import Leaf, Scope
from gradtx._stages import first_slots
from gradtx.core import GradientTransformation, check_transformation
from gradtx.factories import combinator, per_tensor
from gradtx.wrappers import Frame, Wrapper

__all__ = ["average", "lookahead", "with_lookahead"]


@per_tensor(elementwise=True, needs=("params",))
def lookahead(k: int = 5, alpha: Scalar = 0.5):
    r"""Every k-th step, move slow weights part of the way to the fast ones and start again from there.

    Last link of a chain. With $p' = p + u$: where $t \bmod k = 0$, $s \leftarrow s + \alpha (p' - s)$ and the update
    becomes $s - p$; elsewhere it stays $u$. $s$ starts as the parameters given to `init`.

    Args:
        k: Steps between synchronisations, >= 1.
        alpha: $\alpha$ in [0, 1]; 1 changes nothing.

    Returns:
        A transformation that keeps shapes and dtypes. State: `slow`, shaped as the parameter; `eval_params` gives it.

    Raises:
        ValueError: numbers out of range, missing `params`.

    Example:
        >>> tx = gradtx.chain(gradtx.scale(-1.0), gradtx.lookahead(k=2, alpha=0.5))
        >>> params = {"w": torch.tensor([0.0])}
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([-1.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(params["w"])
        tensor([1.])
        tensor([1.])

    Source: Zhang et al. 2019, arXiv:1907.08610. Departures: none; `with_lookahead` has the authors' options for the
    momentum.
    """

    def init(param):
        return {"slow": param}

    def update(update, state, param, ctx):
        now = ctx.step % k == 0
        slow, fast = state["slow"], param + update
        slow = _synchronized(now, slow, fast, alpha)
        return torch.where(now, slow - param, update), {"slow": slow}

    return init, update, lambda state, param: state["slow"]


def _synchronized(now: Tensor, slow: Tensor, fast: Tensor, alpha: Any) -> Tensor:
    """Slow weights; where it is time, a part of the way to the fast ones."""
    return torch.where(now, slow + alpha * (fast - slow), slow)


class _WithLookahead(Frame):
    """Lookahead with a hand in the inner momentum."""

    _MOMENTA = ("momentum_buffer", "exp_avg")

    def __init__(self, scope: Scope, tx: GradientTransformation, k: int, alpha: Any, pullback: str):
        super().__init__(scope, "with_lookahead", tx)
        self._k, self._alpha, self._pullback = k, alpha, pullback

    def _momenta(self, leaf: Leaf) -> list[tuple[Any, str, str]]:
        """(path, slot, name of the slow copy) of every inner momentum, in program order."""
        found = [
            (path, slot)
            for path, slots in leaf.new.items()
            if self.holds(path)
            for slot in slots
            if slot in self._MOMENTA
        ]
        return [(*where, f"slow_momentum_{i}" if i else "slow_momentum") for i, where in enumerate(found)]

    def init_exit(self, leaf: Leaf) -> None:
        leaf.new[self.path] = first_slots({"slow": leaf.param}, leaf.param, self.stored_dtype(leaf), "with_lookahead")
        if self._pullback == "pullback":
            for path, slot, name in self._momenta(leaf):
                leaf.new[self.path][name] = torch.zeros_like(leaf.new[path][slot])

    def exit(self, leaf: Leaf) -> None:
        own, alpha = self.own(leaf, "slow"), self._alpha
        now = leaf.moment().step % self._k == 0
        if leaf.active is not None:
            now = now & leaf.active
        new = {"slow": _synchronized(now, own["slow"], leaf.param + leaf.update, alpha)}
        leaf.update = torch.where(now, new["slow"] - leaf.param, leaf.update)
        for path, slot, name in self._momenta(leaf) if self._pullback != "none" else ():
            momentum = leaf.new[path][slot]
            target = torch.zeros_like(momentum)
            if self._pullback == "pullback":
                target = new[name] = _synchronized(now, own[name], momentum, alpha)
            leaf.new[path][slot] = torch.where(now, target, momentum).to(momentum.dtype)
        self.store(leaf, new)

    def evaluate(self, leaf: Leaf) -> Any:
        return self.own(leaf, "slow")["slow"]


@combinator(needs=("params",), example=lambda tx: {"tx": tx})
def with_lookahead(tx: GradientTransformation, k: int = 5, alpha: Scalar = 0.5, pullback_momentum: str = "none"):
    r"""`lookahead` around a transformation, with a say in its momentum at each synchronisation.

    Args:
        tx: The transformation whose updates make the fast weights.
        k: Steps between synchronisations, >= 1.
        alpha: $\alpha$ in [0, 1].
        pullback_momentum: "none" leaves the inner momentum (`momentum_buffer`, `exp_avg`) alone, "reset" makes it 0,
            "pullback" treats it as the weights: $s_m \leftarrow s_m + \alpha (m - s_m)$, $m \leftarrow s_m$, from
            $s_m = 0$. Second moments and counts are never touched.

    Returns:
        A transformation with the state `slow`, with "pullback" `slow_momentum` (a second one is `slow_momentum_1`),
        and the entries of `tx`. `eval_params` gives `slow`.

    Raises:
        TypeError: `tx` is no transformation.
        ValueError: numbers out of range, an unknown mode, missing `params`.

    Example:
        >>> tx = gradtx.with_lookahead(gradtx.sgd(lr=1.0, momentum=0.9), k=1, pullback_momentum="reset")
        >>> params = {"w": torch.zeros(1)}
        >>> _, state = tx.update({"w": torch.ones(1)}, tx.init(params), params)
        >>> state["with_lookahead"]["trace"]["momentum_buffer"]["w"]
        tensor([0.])

    Source: Zhang et al. 2019, arXiv:1907.08610. Departures: none from the paper; in the authors' code "pullback" does
    nothing after its first use, since the copy that it keeps is the live buffer.
    """
    check_transformation("with_lookahead", "tx", tx)
    if pullback_momentum not in ("none", "reset", "pullback"):
        raise ValueError(
            f"with_lookahead: pullback_momentum must be 'none', 'reset' or 'pullback', got {pullback_momentum!r}"
        )
    return Wrapper(lambda scope: _WithLookahead(scope, tx, k, alpha, pullback_momentum).around(scope))


@per_tensor(elementwise=True, needs=("params",))
def average(decay: Scalar | None = None, start: int = 0):
    r"""Keep an average of the weights, to evaluate with; updates pass unchanged.

    Last link of a chain. With $p' = p + u$: $a \leftarrow p'$ while $t \le$ `start`; then
    $a \leftarrow a + (p' - a)/(t - \mathrm{start})$ (Polyak's mean), or, with a decay,
    $a \leftarrow \beta a + (1-\beta) p'$.

    Args:
        decay: $\beta$ in [0, 1), or None for the mean of all weights since `start`.
        start: Steps before the average begins, >= 0.

    Returns:
        A transformation that keeps updates as they are. State: `average`, shaped as the parameter; `eval_params`
        gives it.

    Raises:
        ValueError: numbers out of range, missing `params`.

    Example:
        >>> tx = gradtx.chain(gradtx.scale(-1.0), gradtx.average())
        >>> params = {"w": torch.tensor([0.0])}
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([-2.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> params["w"], tx.eval_params(state, params)["w"]
        (tensor([4.]), tensor([3.]))

    Source: Polyak and Juditsky 1992. Departures: `decay`; theirs is the mean.
    """

    def init(param):
        return {"average": param}

    def update(update, state, param, ctx):
        old, new = state["average"], param + update
        mean = old + (new - old) / (ctx.time - start).clamp(min=1) if decay is None else decay * old + (1 - decay) * new
        return update, {"average": torch.where(ctx.step <= start, new, mean)}

    return init, update, lambda state, param: state["average"]
