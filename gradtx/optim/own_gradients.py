"""Steps of chains whose first link computes the gradient: from gradients of examples, or from losses alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradtx.base.dtensor import is_sharded
from gradtx.optim.core import Core
from gradtx.optim.device_counts import Scaling
from gradtx.optim.run import Extras, Member, clock_after, leaf_of, version

SAMPLES = "grad_sample"
# On a `grad_sample` that a step has read: its version then.
READ_AT = "_gradtx_read_at"


def _check_scaling(core: Core, scaling: Scaling | None) -> None:
    """Refuse a GradScaler, which unscales `.grad`, and nothing from which such a link computes the gradient.

    Raises:
        RuntimeError: If a GradScaler is enabled.
    """
    if scaling is not None:
        raise RuntimeError(
            f"{core.members.who}: a GradScaler does not unscale what the first link of the chain reads in place of "
            "gradients; train in bfloat16, without a scaler"
        )


def lend_gradients(core: Core, extras: Extras, scaling: Scaling | None) -> list[Tensor]:
    """Complete the inputs of a step, and give each parameter that is to step without a gradient one of zeros.

    The link replaces its values. The caller takes these gradients back after the step.

    Raises:
        RuntimeError: If a GradScaler is enabled.
        ValueError: If a parameter has a gradient, but no gradients of examples, or those that a step has used.
    """
    _check_scaling(core, scaling)
    if SAMPLES in core.traits.known_extras:
        samples = _samples(core, extras)
        stepping = [
            member.param
            for member in core.members.by_param.values()
            if samples.get(member.name) is not None
        ]
    else:
        stepping = [
            param
            for param, member in core.members.by_param.items()
            if param.requires_grad and _has_own_gradient(core, member)
        ]
    lent = [param for param in stepping if param.grad is None]
    for param in lent:
        param.grad = _zeros_for(param)
    return lent


def _has_own_gradient(core: Core, member: Member) -> bool:
    """Whether a link computes the gradient of a parameter; others of a partition step from `.grad`."""
    run = core.members.expanded
    if not run.selectors:
        return True
    operations = run.route.for_leaf(leaf_of(run, member, clock_after(0)))
    return any(operation.traits.makes_gradient for operation in operations)


def lend_zeros(core: Core) -> list[Tensor]:
    """Give the parameters with the most steps gradients of zeros if none of them has one, so that this step counts.

    Where ranks exchange tensors in some steps, all count all steps. The caller takes these gradients back.
    """
    count_of: dict[Tensor, Any] = {}
    for param, member in core.members.by_param.items():
        if param.requires_grad:
            count_of[param] = member.count_in(core.states.of(param))
    most = max(count_of.values(), default=0)
    counting = [param for param, count in count_of.items() if count == most]
    if any(param.grad is not None for param in counting):
        return []
    for param in counting:
        param.grad = torch.zeros_like(param)
    return counting


def _zeros_for(param: Tensor) -> Tensor:
    """Return zeros, which need no memory unless the parameter is sharded."""
    if is_sharded(param):
        return torch.zeros_like(param)
    return param.detach().new_zeros(()).expand(param.shape)


def _samples(core: Core, extras: Extras) -> dict[str, Any]:
    """Return the gradients of examples by name: those that the caller passed, or the attributes of parameters."""
    by_name = {member.name: member for member in core.members.by_param.values()}
    samples = extras.get(SAMPLES)
    if samples is None:
        _check_unread(core)
        samples = {name: _attribute_of(member) for name, member in by_name.items()}
        if any(sample is not None for sample in samples.values()):
            extras[SAMPLES] = samples
    elif isinstance(samples, list | tuple):
        samples = dict(zip(by_name, samples, strict=False))
    for name, member in by_name.items():
        if member.param.grad is not None and samples.get(name) is None:
            raise ValueError(
                f"{core.members.who}: parameter {name!r} has a gradient, but no gradients of examples; set its "
                f"grad_sample, as opacus.GradSampleModule does, or pass step({SAMPLES}={{name: tensor}})"
            )
    return samples


def _attribute_of(member: Member) -> Tensor | None:
    """Return the `grad_sample` of a parameter; Opacus makes a list of those of several backward passes."""
    sample: Any = getattr(member.param, SAMPLES, None)
    return torch.cat(sample) if isinstance(sample, list) else sample


def _tensors_of(member: Member) -> list[Tensor]:
    """Return the tensors of a parameter's `grad_sample`."""
    sample: Any = getattr(member.param, SAMPLES, None)
    tensors = sample if isinstance(sample, list) else [sample]
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


def mark_read(core: Core) -> None:
    """Mark the `grad_sample` of all parameters, which a step has read."""
    for member in core.members.by_param.values():
        for tensor in _tensors_of(member):
            setattr(tensor, READ_AT, version(tensor))


def _check_unread(core: Core) -> None:
    """Check that no step has read any `grad_sample`, unless it was written since.

    Raises:
        ValueError: If one has: whoever counts the privacy loss counts one step for each backward pass.
    """
    for member in core.members.by_param.values():
        for tensor in _tensors_of(member):
            if getattr(tensor, READ_AT, None) == version(tensor):
                raise ValueError(
                    f"{core.members.who}: a step has used the gradients of examples of parameter {member.name!r}, and "
                    "a second one would cost privacy that nothing counts; call zero_grad() and backward() before step()"
                )
