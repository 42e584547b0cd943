"""Adam-mini: AdamW with one second moment per block of weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gradtx.arguments import Count, UnfitError
from gradtx.links.decay import with_decay
from gradtx.maths.entries import corrected_root, running_mean
from gradtx.rules import alias, per_tensor

__all__ = ["adam_mini", "scale_by_block_adam"]


def _blocks(x: Tensor, block) -> int:
    """Return the number of blocks of a leaf, which are equal parts along dimension 0."""
    if block == "row":
        return x.shape[0] if x.ndim > 1 else 1
    if block == "tensor":
        return 1
    size = x.shape[0] if x.ndim else 1
    if size % block:
        raise UnfitError(
            f"has {size} entries along dimension 0, which is not divisible into {block} blocks; use partition(...)"
        )
    return block


def _means(x: Tensor, count: int) -> Tensor:
    """Return the mean of each block, or 0 for empty blocks."""
    if not x.numel():
        return x.new_zeros((count,))
    return x.reshape(count, -1).sum(dim=1) / (x.numel() // count)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """Repeat each block's value for its indices of dimension 0, in a shape that broadcasts."""
    if values.numel() == 1 or not like.numel():
        return values.sum()
    repeated = values.unsqueeze(1).expand(-1, like.shape[0] // values.numel())
    return repeated.reshape(-1, *[1] * (like.ndim - 1))


@per_tensor(length="sets")
def scale_by_block_adam(
    betas=(0.9, 0.999), eps=1e-8, block: Count | Literal["row", "tensor"] = "row"
):
    r"""Divide the mean gradient by one root mean square per block of weights: Adam-mini's direction.

    Adam's $m_t$ and, for every block $b$, $v_b \leftarrow \beta_2 v_b + (1-\beta_2) \, \mathrm{mean}_b(g_t^2)$;
    direction $\hat m_t / (\sqrt{\hat v_b} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the root.
        block: "row": each index of dimension 0 (the whole leaf if it has fewer than two dimensions); "tensor": the
            leaf; a number: that many equal blocks along dimension 0, such as attention heads.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, shaped as the parameter, and `vmean`, one entry
        per block.

    Raises:
        TypeError: If `block` is neither a name nor a number.
        ValueError: If the name of a block is unknown, or if the number of blocks does not divide dimension 0.

    Example:
        >>> tx = gradtx.scale_by_block_adam(betas=(0.0, 0.999))
        >>> state = tx.init({"w": torch.zeros(2, 2)})
        >>> updates, state = tx.update({"w": torch.tensor([[1.0, 7.0], [10.0, 70.0]])}, state)
        >>> # the rms of the first row is 5
        >>> updates["w"], state["scale_by_block_adam"]["vmean"]["w"].shape
        (tensor([[0.2000, 1.4000],
                [0.2000, 1.4000]]), torch.Size([2]))

    Source: Zhang et al. 2024, arXiv:2406.16793. Departures: blocks are selected by `block` and by `partition`, whereas
    the authors' code uses module names. Row blocks apply to leaves of any rank.
    """
    beta1, beta2 = betas

    def first(param):
        return param.new_zeros((_blocks(param, block),))

    def update(g, state, p, ctx):
        m = running_mean(state["exp_avg"], g, beta1)
        means = _means(g.square(), _blocks(g, block))
        v = running_mean(state["vmean"], means, beta2)
        root = corrected_root(v, ctx, beta2) + eps
        direction = m / ctx.bias_correction(beta1) / _spread(root, g)
        return direction, {"exp_avg": m, "vmean": v}

    return {"exp_avg": torch.zeros_like, "vmean": first}, update


@alias
def adam_mini(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    block: Count | Literal["row", "tensor"] = "row",
):
    r"""Adam-mini: AdamW with one second moment per block of weights.

    $v_b \leftarrow \beta_2 v_b + (1-\beta_2) \, \mathrm{mean}_b(g^2)$,
    $p \leftarrow p (1 - \eta \lambda) - \eta \hat m / (\sqrt{\hat v_b} + \epsilon)$.

    When to use: transformers, at half of AdamW's memory; the paper reports equal losses with AdamW's hyperparameters.
    Queries and keys need one block per head: use `partition`.

    Args:
        lr: $\eta$ in [0, inf), the root mean square change of the weights of a block per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.
        block: "row": each index of dimension 0 (the leaf, if it has fewer than two dimensions); "tensor": the leaf; a
            number: that many equal blocks along dimension 0, such as heads.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `vmean`.

    Raises:
        TypeError: If `block` is neither a name nor a number.
        ValueError: If the name of a block is unknown, or if the number of blocks does not divide dimension 0 of a leaf.

    Example:
        >>> tx = gradtx.adam_mini(lr=0.1)
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[1.0, 7.0], [10.0, 70.0]])},
        ...     tx.init({"w": torch.zeros(2, 2)}),
        ... )
        >>> updates["w"]
        tensor([[-0.0200, -0.1400],
                [-0.0200, -0.1400]])

    Source: Zhang et al. 2024, arXiv:2406.16793. Departures: see `scale_by_block_adam`.
    """
    return with_decay(scale_by_block_adam(betas, eps, block), weight_decay, True, lr)
