"""Several losses for one model: PCGrad and RotoGrad combine their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gradtx import _tree

__all__ = ["RotoGrad", "pcgrad", "pcgrad_backward", "rotograd_rotation_loss", "rotograd_scale"]

TINY = 1e-15  # below every norm that means something, as in the authors' code of RotoGrad


def pcgrad(grads: Sequence[Any], reduction: str = "mean", generator: torch.Generator | int | None = None) -> Any:
    r"""Combine the gradients of several tasks, after taking out of each what conflicts with another (PCGrad).

    For every task i: $G \leftarrow g_i$; for the other tasks j in random order, where $\langle G, g_j \rangle < 0$:
    $G \leftarrow G - \langle G, g_j \rangle / \lVert g_j \rVert^2 \, g_j$. Inner products run over all leaves.

    Args:
        grads: A tree of gradients for each task, all with the same leaves; None where a task does not reach a leaf.
        reduction: "mean" or "sum" over tasks, for leaves that all tasks reach; other leaves are summed.
        generator: Draws one `torch.randperm` of the tasks for each task in turn, or a seed; None is torch's global one.

    Returns:
        One tree of gradients; None where no task reaches a leaf.

    Raises:
        ValueError: no tasks, an unknown reduction, trees with different leaves.

    Example:
        >>> grads = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([-1.0, 1.0])}]
        >>> gradtx.pcgrad(grads, reduction="sum")["w"]  # (0.5, 0.5) + (0, 1)
        tensor([0.5000, 1.5000])

    Source: Yu et al. 2020, arXiv:2001.06782.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"pcgrad: reduction must be 'mean' or 'sum', got {reduction!r}")
    if not grads:
        raise ValueError("pcgrad: needs the gradients of at least one task")
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    first, unflatten = _tree.flatten(grads[0], "gradients of task 0")
    tasks = [_tree.match(tree, first, f"gradients of task {i}", "those of task 0") for i, tree in enumerate(grads)]
    reached = {name: [task[name] for task in tasks if task[name] is not None] for name in first}
    present = [name for name, found in reached.items() if found]
    full = [
        {name: torch.zeros_like(reached[name][0]) if task[name] is None else task[name] for name in present}
        for task in tasks
    ]
    squares = [_dot(task, task) for task in full]
    total: dict[str, Tensor] = {}
    for i, own in enumerate(full):
        projected = own
        device = generator.device if generator is not None else None
        for j in torch.randperm(len(full), generator=generator, device=device).tolist():
            if j == i or not present:
                continue
            # where, not if: nothing is read on the host; a task without gradient has the inner product 0
            along = _dot(projected, full[j])
            share = torch.where(along < 0, along / torch.where(squares[j] == 0, 1.0, squares[j]), 0.0)
            projected = {name: g - share.to(g.device, g.dtype) * full[j][name] for name, g in projected.items()}
        total = {name: total[name] + g if total else g for name, g in projected.items()}
    if reduction == "mean":
        total = {name: g / len(tasks) if len(reached[name]) == len(tasks) else g for name, g in total.items()}
    return unflatten({name: total.get(name) for name in first})


def _dot(a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    terms = [(a[name] * b[name]).sum() for name in a]
    return (
        torch.stack([term.to(terms[0].device, torch.promote_types(term.dtype, torch.float32)) for term in terms]).sum()
        if terms
        else torch.zeros(())
    )


def pcgrad_backward(
    losses: Sequence[Tensor],
    params: Iterable[Tensor],
    reduction: str = "mean",
    generator: torch.Generator | int | None = None,
) -> None:
    """Write the `pcgrad` of several losses into the `.grad` of parameters, in place of `loss.backward()`.

    A gradient that was there is overwritten; a parameter that no loss reaches gets None.

    Args:
        losses: One 0-d loss for each task; their graphs are freed.
        params: The parameters, such as `model.parameters()`.
        reduction: As in `pcgrad`.
        generator: As in `pcgrad`. For reproducible runs pass one generator at every step, not one seed.

    Raises:
        TypeError: a single loss, or something else than tensors in `params`.
        ValueError: as `pcgrad`; a loss that is not 0-d or has no graph; no parameter that requires a gradient.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = gradtx.optim.AdamW(model.parameters())
        >>> a, b = model(torch.ones(1, 2)).square().mean(dim=0)
        >>> gradtx.pcgrad_backward([a, b], model.parameters())
        >>> optimizer.step()

    Source: Yu et al. 2020, arXiv:2001.06782.
    """
    every = list(params)
    for param in every:
        if not isinstance(param, Tensor):
            got = type(param).__name__
            raise TypeError(f"pcgrad_backward: params must be tensors, such as model.parameters(), got a {got}")
    trained = [param for param in every if param.requires_grad]
    if not trained:
        raise ValueError("pcgrad_backward: none of the params requires a gradient")
    if isinstance(losses, Tensor) and not losses.ndim:
        raise TypeError("pcgrad_backward: losses must have a loss for each task, got a single one")
    for i, loss in enumerate(losses):
        if loss.numel() != 1:
            raise ValueError(f"pcgrad_backward: losses[{i}] must be 0-d, got shape {tuple(loss.shape)}")
        if not loss.requires_grad:
            raise ValueError(f"pcgrad_backward: losses[{i}] has no graph; compute it with gradients enabled")
    last = len(losses) - 1
    grads = [
        dict(enumerate(torch.autograd.grad(loss, trained, retain_graph=i < last, allow_unused=True)))
        for i, loss in enumerate(losses)
    ]
    merged = pcgrad(grads, reduction, generator)
    for i, param in enumerate(trained):
        param.grad = merged[i]


def rotograd_scale(grads: Sequence[Tensor], initial_norms: Sequence[Tensor] | Tensor) -> Tensor:
    r"""Add the gradients of several tasks at equal lengths, the more weight on tasks that are slow (RotoGrad).

    $C \sum_k g_k / n_k$ with $n_k = \lVert g_k \rVert$, $r_k = n_k / n_k^0$ and $C = \sum_k r_k n_k / \sum_k r_k$.

    Args:
        grads: The gradient of each task with respect to the shared representation, all of one shape.
        initial_norms: $n_k^0$, the norms at the start.

    Returns:
        A tensor of that shape. A gradient of zeros adds nothing.

    Example:
        >>> grads = [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])]
        >>> gradtx.rotograd_scale(grads, torch.tensor([2.0, 4.0]))  # both as fast as at first: C = 3
        tensor([3., 3.])

    Source: Javaloy and Valera 2022, arXiv:2103.02631.
    """
    norms = _norms(grads)
    ratios = norms / torch.as_tensor(initial_norms, dtype=norms.dtype, device=norms.device)
    mean = (ratios * norms).sum() / ratios.sum().clamp(min=TINY)
    return mean * torch.stack([grad / norm for grad, norm in zip(grads, norms, strict=True)]).sum(dim=0)


def rotograd_rotation_loss(
    grads: Sequence[Tensor], rotated_grads: Sequence[Tensor], rotations: Sequence[Tensor]
) -> list[Tensor]:
    r"""How far each rotated mean gradient is from the task's own: what RotoGrad's rotations minimize.

    The mean over the batch of $\lVert R_k v_b - \tilde g_{k,b} \rVert^2$, where $v$ is the mean of the $g_k$, each
    brought to the length of their mean.

    Args:
        grads: $g_k$, with respect to the representation $z$; the last dimension is the latent one.
        rotated_grads: $\tilde g_k$, with respect to $R_k z$.
        rotations: $R_k$; only they are differentiated.

    Returns:
        A 0-d loss for each task.

    Example:
        >>> g, turn = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> gradtx.rotograd_rotation_loss([g], [g], [torch.eye(2)]), gradtx.rotograd_rotation_loss([g], [g], [turn])
        ([tensor(0.)], [tensor(2.)])

    Source: Javaloy and Valera 2022, arXiv:2103.02631.
    """
    grads = [grad.detach() for grad in grads]
    length = torch.stack(grads).mean(dim=0).norm()
    shares = [grad * (length / norm) for grad, norm in zip(grads, _norms(grads), strict=True)]
    target = torch.stack(shares).mean(dim=0)
    return [
        (target @ rotation.T - own.detach()).square().sum(dim=-1).mean()
        for own, rotation in zip(rotated_grads, rotations, strict=True)
    ]


def _norms(grads: Sequence[Tensor]) -> Tensor:
    """One norm a task, over the whole batch."""
    return torch.stack([grad.norm() for grad in grads]).clamp(min=TINY)


class _Rotation(nn.Module):
    """An orthogonal matrix to be trained, the identity at first."""

    weight: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(size))
        parametrizations.orthogonal(self, "weight")


class RotoGrad(nn.Module):
    r"""A shared backbone and a head for each task, whose gradients are made equal in length and turned to agree.

    Each head sees the representation $z$ turned by a matrix $R_k$ of its own. `backward(losses)` takes the place of
    `loss.backward()`: it sends `rotograd_scale` of the tasks' gradients into the backbone, each loss's own gradient
    into its head, and the gradient of `rotograd_rotation_loss` into $R_k$. In training the heads are cut off from the
    backbone, so `sum(losses).backward()` would not reach it.

    Args:
        backbone: Maps the input to $z$, whose last dimension is the latent one.
        heads: One module a task; maps $R_k z$ to the task's output.
        latent_size: The size of that dimension.
        burn_in_period: The iteration (from 0) at which the lengths and losses of the start are taken once more.
        normalize_losses: Divide every loss by its value at the start.

    Raises:
        ValueError: a representation of another size, another number of losses, `backward` without a forward pass in
            training mode.

    Example:
        >>> model = gradtx.RotoGrad(torch.nn.Linear(3, 4), [torch.nn.Linear(4, 1), torch.nn.Linear(4, 2)], 4)
        >>> optimizer = gradtx.optim.AdamW(model.model_parameters(), lr=1e-3)
        >>> rotations = gradtx.optim.AdamW(model.rotation_parameters(), lr=1e-4)  # slower
        >>> one, other = model(torch.ones(8, 3))
        >>> model.backward([one.square().mean(), other.square().mean()])
        >>> optimizer.step(), rotations.step()
        (None, None)

    Source: Javaloy and Valera 2022, arXiv:2103.02631.
    """

    initial_norms: Tensor
    initial_losses: Tensor
    iteration: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        heads: Sequence[nn.Module],
        latent_size: int,
        burn_in_period: int = 20,
        normalize_losses: bool = False,
    ):
        super().__init__()
        self.backbone, self.heads = backbone, nn.ModuleList(heads)
        self.rotations = nn.ModuleList(_Rotation(latent_size) for _ in heads)
        self.latent_size, self.burn_in_period, self.normalize_losses = latent_size, burn_in_period, normalize_losses
        self.register_buffer("initial_norms", torch.ones(len(self.heads)))
        self.register_buffer("initial_losses", torch.ones(len(self.heads)))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        self._passed: tuple[Tensor, list[Tensor]] | None = None

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of backbone and heads."""
        yield from self.backbone.parameters()
        yield from self.heads.parameters()

    def rotation_parameters(self) -> Iterator[nn.Parameter]:
        """What the rotations are trained by; give it an optimizer of its own, slower than the model's."""
        yield from self.rotations.parameters()

    def _matrices(self) -> list[Tensor]:
        return [rotation.weight for rotation in self.rotations]  # type: ignore[misc]

    def forward(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The outputs of all heads."""
        z = self.backbone(*args, **kwargs)
        if z.shape[-1] != self.latent_size:
            raise ValueError(f"RotoGrad: the backbone gave {z.shape[-1]} numbers, latent_size is {self.latent_size}")
        turned = [z @ matrix.detach().T for matrix in self._matrices()]
        self._passed = None
        if self.training and torch.is_grad_enabled():
            turned = [each.detach().requires_grad_() for each in turned]
            self._passed = z, turned
        return [head(each) for head, each in zip(self.heads, turned, strict=True)]

    def backward(self, losses: Sequence[Tensor]) -> None:
        """Add to the `.grad` of all parameters, after a forward pass in training mode.

        Args:
            losses: One 0-d loss for each head, in their order.
        """
        if self._passed is None:
            raise ValueError("RotoGrad: backward follows one forward pass in training mode, with gradients enabled")
        if len(losses) != len(self.heads):
            raise ValueError(f"RotoGrad: {len(losses)} losses for {len(self.heads)} heads")
        (z, turned), self._passed = self._passed, None
        anew = (self.iteration == 0) | (self.iteration == self.burn_in_period)
        self.iteration = self.iteration + 1
        values = torch.stack([loss.detach() for loss in losses]).to(self.initial_losses)
        values = torch.where(values == 0, 1.0, values)  # a loss that starts at 0 is not divided
        self.initial_losses = torch.where(anew, values, self.initial_losses)
        rotated_grads = []
        for k, (loss, seen) in enumerate(zip(losses, turned, strict=True)):
            start = self.initial_losses[k] if self.normalize_losses else 1.0
            (loss / start).backward(retain_graph=k + 1 < len(losses))
            rotated_grads.append(torch.zeros_like(seen) if seen.grad is None else seen.grad)
        matrices = self._matrices()
        grads = [grad @ matrix.detach() for grad, matrix in zip(rotated_grads, matrices, strict=True)]
        self.initial_norms = torch.where(anew, _norms(grads).to(self.initial_norms), self.initial_norms)
        torch.stack(rotograd_rotation_loss(grads, rotated_grads, matrices)).sum().backward()
        if z.requires_grad:
            z.backward(rotograd_scale(grads, self.initial_norms))
