"""Multi-task training: PCGrad and RotoGrad combine the gradients of several losses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gradtx.base import tree as _tree

__all__ = [
    "RotoGrad",
    "pcgrad",
    "pcgrad_backward",
    "rotograd_rotation_loss",
    "rotograd_scale",
]

Leaves = dict[str, Tensor]

TINY = 1e-15  # smaller than any meaningful norm, as in the RotoGrad authors' code


def pcgrad(
    grads: Sequence[Any],
    reduction: str = "mean",
    generator: torch.Generator | int | None = None,
) -> Any:
    r"""Combine the gradients of several tasks after removing conflicting components from each (PCGrad).

    For each task i: $G \leftarrow g_i$; then, for the other tasks j in random order, if $\langle G, g_j \rangle < 0$:
    $G \leftarrow G - \langle G, g_j \rangle / \lVert g_j \rVert^2 \, g_j$. Inner products run over all leaves.

    Args:
        grads: A tree of gradients for each task, all with the same leaves; None if a task does not reach a leaf.
        reduction: "mean" or "sum" over tasks, for leaves that all tasks reach; other leaves are summed.
        generator: The generator for one `torch.randperm` of the tasks per task. An int is a seed; None means torch's
            global generator.

    Returns:
        One tree of gradients; None if no task reaches a leaf.

    Raises:
        ValueError: If there are no tasks, if `reduction` is unknown, or if the trees have different leaves.

    Example:
        >>> grads = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([-1.0, 1.0])}]
        >>> gradtx.pcgrad(grads, reduction="sum")["w"]  # (0.5, 0.5) + (0, 1)
        tensor([0.5000, 1.5000])

    Source: Yu et al. 2020, arXiv:2001.06782.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(
            f"pcgrad: reduction must be 'mean' or 'sum', got {reduction!r}"
        )
    if not grads:
        raise ValueError("pcgrad: needs the gradients of at least one task")
    first, unflatten = _tree.flatten_real(grads[0], "gradients of task 0")
    tasks = [
        _tree.match(tree, first, f"gradients of task {i}", "those of task 0")
        for i, tree in enumerate(grads)
    ]
    reached: list[Leaves] = []
    for task in tasks:
        reached.append({name: grad for name, grad in task.items() if grad is not None})
    squares = [_dot(task, task) for task in reached]
    total: dict[str, Any] = dict.fromkeys(first)
    for i, order in enumerate(_orders(len(tasks), generator)):
        for name, grad in _without_conflicts(i, order, reached, squares).items():
            total[name] = grad if total[name] is None else total[name] + grad
    if reduction == "mean":
        for name in set(first).intersection(*reached):
            total[name] = total[name] / len(tasks)
    return unflatten(total)


def _orders(count: int, generator: torch.Generator | int | None) -> Iterator[list[int]]:
    """Yield a random order of all tasks for each task."""
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    device = None if generator is None else generator.device
    for _ in range(count):
        yield torch.randperm(count, generator=generator, device=device).tolist()


def _without_conflicts(
    i: int, order: Sequence[int], tasks: Sequence[Leaves], squares: Sequence[Tensor]
) -> Leaves:
    """Return the gradient of task i without components that conflict with other tasks, processed in this order."""
    projected = tasks[i]
    for j in order:
        if j == i:
            continue
        # torch.where, not if: avoids a host synchronization; a zero gradient has inner product 0
        along = _dot(projected, tasks[j])
        square = torch.where(squares[j] == 0, 1.0, squares[j])
        share = torch.where(along < 0, along / square, 0.0)
        remaining = dict(projected)
        for name, grad in tasks[j].items():
            component = share.to(grad.device, grad.dtype) * grad
            remaining[name] = projected.get(name, 0.0) - component
        projected = remaining
    return projected


def _dot(a: Leaves, b: Leaves) -> Tensor:
    """Return the inner product over common leaves, summed in at least float32 on the device of the first leaf."""
    terms: list[Tensor] = []
    for name in a:
        if name in b:
            term = (a[name] * b[name]).sum()
            device = terms[0].device if terms else term.device
            dtype = torch.promote_types(term.dtype, torch.float32)
            terms.append(term.to(device, dtype))
    return torch.stack(terms).sum() if terms else torch.zeros(())


def pcgrad_backward(
    losses: Sequence[Tensor],
    params: Iterable[Tensor],
    reduction: str = "mean",
    generator: torch.Generator | int | None = None,
) -> None:
    """Write the `pcgrad` of several losses to the `.grad` of parameters; replaces `loss.backward()`.

    Existing gradients are overwritten; `.grad` of a parameter that no loss reaches becomes None.

    Args:
        losses: One 0-d loss per task; their graphs are freed.
        params: The parameters, such as `model.parameters()`.
        reduction: As in `pcgrad`.
        generator: As in `pcgrad`. For reproducible runs, pass the same generator at every step, not the same seed.

    Raises:
        ValueError: If there are no losses, or if `reduction` is unknown.
        RuntimeError: From torch, if a loss is not 0-d or has no graph, or if no parameter requires a gradient.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = gradtx.optim.AdamW(model.parameters())
        >>> a, b = model(torch.ones(1, 2)).square().mean(dim=0)
        >>> gradtx.pcgrad_backward([a, b], model.parameters())
        >>> optimizer.step()

    Source: Yu et al. 2020, arXiv:2001.06782.
    """
    trained = [param for param in params if param.requires_grad]
    grads: list[dict[int, Tensor | None]] = []
    for i, loss in enumerate(losses):
        is_last = i + 1 == len(losses)
        leaves = torch.autograd.grad(
            loss, trained, retain_graph=not is_last, allow_unused=True
        )
        grads.append(dict(enumerate(leaves)))
    merged = pcgrad(grads, reduction, generator)
    for i, param in enumerate(trained):
        param.grad = merged[i]


def rotograd_scale(
    grads: Sequence[Tensor], initial_norms: Sequence[Tensor] | Tensor
) -> Tensor:
    r"""Sum the gradients of several tasks at equal norms; slowly converging tasks increase the norm (RotoGrad).

    $C \sum_k g_k / n_k$ with $n_k = \lVert g_k \rVert$, $r_k = n_k / n_k^0$ and $C = \sum_k r_k n_k / \sum_k r_k$.

    Args:
        grads: The gradient of each task with respect to the shared representation, all of one shape.
        initial_norms: $n_k^0$, the norms at the start.

    Returns:
        A tensor of that shape. A zero gradient contributes nothing.

    Example:
        >>> grads = [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])]
        >>> # both at their initial norms: C = 3
        >>> gradtx.rotograd_scale(grads, torch.tensor([2.0, 4.0]))
        tensor([3., 3.])

    Source: Javaloy and Valera 2022, arXiv:2103.02631.
    """
    norms = _norms(grads)
    ratios = norms / torch.as_tensor(
        initial_norms, dtype=norms.dtype, device=norms.device
    )
    mean = (ratios * norms).sum() / ratios.sum().clamp(min=TINY)
    directions = [grad / norm for grad, norm in zip(grads, norms, strict=True)]
    return mean * torch.stack(directions).sum(dim=0)


def rotograd_rotation_loss(
    grads: Sequence[Tensor],
    rotated_grads: Sequence[Tensor],
    rotations: Sequence[Tensor],
) -> list[Tensor]:
    r"""Measure how far each rotated mean gradient is from the task's gradient; RotoGrad's rotations minimize it.

    The mean over the batch of $\lVert R_k v_b - \tilde g_{k,b} \rVert^2$, where $v$ is the mean of the $g_k$, each
    rescaled to the norm of their mean.

    Args:
        grads: $g_k$, with respect to the representation $z$; the last dimension is the latent one.
        rotated_grads: $\tilde g_k$, with respect to $R_k z$.
        rotations: $R_k$; only they are differentiated.

    Returns:
        One 0-d loss per task.

    Example:
        >>> g, turn = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> (
        ...     gradtx.rotograd_rotation_loss([g], [g], [torch.eye(2)]),
        ...     gradtx.rotograd_rotation_loss([g], [g], [turn]),
        ... )
        ([tensor(0.)], [tensor(2.)])

    Source: Javaloy and Valera 2022, arXiv:2103.02631.
    """
    grads = [grad.detach() for grad in grads]
    length = torch.stack(grads).mean(dim=0).norm()
    rescaled = [
        grad * (length / norm) for grad, norm in zip(grads, _norms(grads), strict=True)
    ]
    target = torch.stack(rescaled).mean(dim=0)
    losses = []
    for rotated_grad, rotation in zip(rotated_grads, rotations, strict=True):
        distances = (target @ rotation.T - rotated_grad.detach()).square().sum(dim=-1)
        losses.append(distances.mean())
    return losses


def _norms(grads: Sequence[Tensor]) -> Tensor:
    """Return the norm of each task's gradient, over the whole batch."""
    return torch.stack([grad.norm() for grad in grads]).clamp(min=TINY)


def _rotation(size: int) -> nn.Module:
    """Return a layer whose trainable weight is an orthogonal matrix that starts as the identity."""
    layer = nn.Linear(size, size, bias=False)
    nn.init.eye_(layer.weight)
    return parametrizations.orthogonal(layer)


class RotoGrad(nn.Module):
    r"""Train a shared backbone with one head per task; task gradients get equal norms and learned rotations.

    Each head receives the representation $z$ rotated by its matrix $R_k$. Call `backward(losses)` instead of
    `loss.backward()`: it propagates `rotograd_scale` of the tasks' gradients to the backbone, each loss's gradient to
    its head, and the gradient of `rotograd_rotation_loss` to $R_k$. In training mode the heads are detached from the
    backbone, so `sum(losses).backward()` would not reach it.

    Args:
        backbone: Maps the input to $z$, whose last dimension is the latent one.
        heads: One module per task; maps $R_k z$ to the task's output.
        latent_size: Size of the latent dimension.
        burn_in_period: The iteration (from 0) at which the initial norms and losses are measured again.
        normalize_losses: Divide each loss by its initial value.

    Raises:
        ValueError: If the number of losses is wrong, or if `backward` is called without a forward pass in training
            mode.

    Example:
        >>> model = gradtx.RotoGrad(
        ...     torch.nn.Linear(3, 4), [torch.nn.Linear(4, 1), torch.nn.Linear(4, 2)], 4
        ... )
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
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self.rotations = nn.ModuleList(_rotation(latent_size) for _ in heads)
        self.burn_in_period = burn_in_period
        self.normalize_losses = normalize_losses
        self.register_buffer("initial_norms", torch.ones(len(self.heads)))
        self.register_buffer("initial_losses", torch.ones(len(self.heads)))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        self._passed: tuple[Any, list[Tensor]] | None = None

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the backbone and the heads."""
        yield from self.backbone.parameters()
        yield from self.heads.parameters()

    def rotation_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the rotations; use a separate optimizer with a lower learning rate for them."""
        yield from self.rotations.parameters()

    def _matrices(self) -> list[Tensor]:
        return [rotation.weight for rotation in self.rotations]  # type: ignore[misc]

    def forward(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Return the outputs of all heads."""
        z = self.backbone(*args, **kwargs)
        turned = [z @ matrix.detach().T for matrix in self._matrices()]
        self._passed = None
        if self.training and torch.is_grad_enabled():
            turned = [
                representation.detach().requires_grad_() for representation in turned
            ]
            self._passed = (z, turned)
        return [
            head(representation)
            for head, representation in zip(self.heads, turned, strict=True)
        ]

    def backward(self, losses: Sequence[Tensor]) -> None:
        """Add gradients to the `.grad` of all parameters; requires a forward pass in training mode.

        Args:
            losses: One 0-d loss per head, in their order.
        """
        if self._passed is None:
            raise ValueError(
                "RotoGrad: backward must follow a forward pass in training mode, with gradients enabled"
            )
        z, turned = self._passed
        self._passed = None
        is_start = (self.iteration == 0) | (self.iteration == self.burn_in_period)
        self.iteration = self.iteration + 1
        values = torch.stack([loss.detach() for loss in losses]).to(self.initial_losses)
        # Do not divide a loss whose initial value is 0.
        values = torch.where(values == 0, 1.0, values)
        self.initial_losses = torch.where(is_start, values, self.initial_losses)
        relative = torch.stack(list(losses))
        if self.normalize_losses:
            relative = relative / self.initial_losses
        # Through each head, to the representation that it received.
        relative.sum().backward()
        rotated_grads: list[Tensor] = []
        for representation, _ in zip(turned, losses, strict=True):
            grad = representation.grad
            rotated_grads.append(
                torch.zeros_like(representation) if grad is None else grad
            )
        matrices = self._matrices()
        grads = [
            grad @ matrix.detach()
            for grad, matrix in zip(rotated_grads, matrices, strict=True)
        ]
        norms = _norms(grads).to(self.initial_norms)
        self.initial_norms = torch.where(is_start, norms, self.initial_norms)
        rotation_loss = torch.stack(
            rotograd_rotation_loss(grads, rotated_grads, matrices)
        ).sum()
        rotation_loss.backward()
        if z.requires_grad:
            z.backward(rotograd_scale(grads, self.initial_norms))
