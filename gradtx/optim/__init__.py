"""Transformations as torch optimizers: `as_optimizer` for any chain, and a drop-in class for every alias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from gradtx.core import GradientTransformation, check_transformation
from gradtx.optim import classes
from gradtx.optim._warnings import warn_of_ascent, warn_of_early_links, warn_of_turned_signs
from gradtx.optim.adapter import ChainOptimizer as ChainOptimizer
from gradtx.optim.classes import *

__all__ = ["ChainOptimizer", "as_optimizer"]
__all__ += classes.__all__


def as_optimizer(
    tx: GradientTransformation,
    params: Any,
    *,
    compile: bool | str | Mapping[str, Any] = False,
    seed: int = 0,
    process_group: Any = None,
    sum_over: Any = None,
    state_device: torch.device | str | None = None,
    capturable: bool = False,
) -> ChainOptimizer:
    """Wrap any transformation as a real `torch.optim.Optimizer`.

    Parameter groups hold the hyperparameters (`tx.hyperparams`) as numbers; a number that anyone writes there, such as
    one of torch's LR schedulers, counts from the next step on. State is per parameter and flat, as torch's.

    Args:
        tx: A transformation whose updates are to be added to the parameters.
        params: `model.parameters()`, `model.named_parameters()` (for name patterns), or a list of group dicts, each
            with "params" and its own hyperparameters.
        compile: True for steps through torch's compiler, in place and at the speed of fused kernels; the first step
            waits for it, 5 to 10 s for chains that work element by element, up to 30 s for those that work by rows;
            later processes find most of it in torch's cache on disk. "background" for the same without waiting: steps
            run over lists of tensors, as by default, until a child process has compiled, and one step then loads the
            programs. Rounding differs from then on, so runs are not repeatable bit by bit. A mode of `torch.compile`
            ("max-autotune"), or a dict of its options, is passed on. Without a working compiler there is one warning,
            and steps run as by default.
        seed: Of the random vectors for links that need `hessian_diag`, when the optimizer estimates it. Shown in the
            groups as `hessian_seed`, and saved with them. The Hessian is that of the loss whose `backward` ran: use
            no GradScaler.
        process_group: The ranks that have these parameters and equal gradients, as under DDP, to divide the work of
            matrix methods: each matrix is computed by one rank, which keeps the slots, and sent to all by one
            all_gather. All ranks then call `step` and `state_dict` together. Parameters that are divided among ranks
            need no group.
        sum_over: Ranks with other parameters of the same model, as the stages of a pipeline (a process group, or a
            mesh of one dimension): sums over all leaves, such as a global norm, run over the leaves of all of them, by
            one message for each sum. All ranks make the optimizer and call `step` together, with one chain. A
            parameter that several ranks have counts as often. Not with rules for whole trees, closures that are called
            again, a GradScaler or `release_gradients`.
        state_device: "cpu" to keep state, and compute steps, on the host, for parameters on another device. Each step
            copies weights and gradients to the host and weights back, through pinned memory. State has the dtypes that
            it would have beside its parameter, so numbers and checkpoints are those of training on the host. Not with
            sharded parameters, DistributedDataParallel, `release_gradients` or links that need `hessian_diag`.
        capturable: Whether `torch.cuda.graph` may capture steps, as in torch: counts of steps are on the parameters'
            device, and all state stays in its memory. Make one step before the capture. Numbers of groups are those of
            the capture, unless they are tensors on that device; schedules in the chain go on. Not with links that read
            values or counts on the host, `state_device`, `sum_over` or `release_gradients`.

    Warns of links that would turn the sign twice (a learning rate, or a decay, behind a learning rate), of links for
    finished steps in front of a learning rate (`average`, `lookahead`, `map_after_step`), and of a key in a group that
    looks like a hyperparameter's name and is none; other unknown keys are kept.

    Raises:
        TypeError: `tx` is not a transformation, or something that is not a tensor.
        ValueError: an unknown mode or state device, no parameters, a parameter twice, a hyperparameter out of range, a
            pattern without a match, a link
            that `capturable` does not go with.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=1e-2))
        >>> optimizer = gradtx.as_optimizer(tx, model.named_parameters())
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.param_groups[0]["lr"], sorted(optimizer.state[model.bias])
        (0.01, ['exp_avg', 'exp_avg_sq', 'step'])
    """
    if isinstance(params, GradientTransformation):
        raise TypeError("as_optimizer: the transformation comes first: as_optimizer(tx, params)")
    check_transformation("as_optimizer", "tx", tx)
    optimizer = ChainOptimizer(
        tx,
        params,
        compile=compile,
        seed=seed,
        process_group=process_group,
        sum_over=sum_over,
        state_device=state_device,
        capturable=capturable,
    )
    warn_of_turned_signs(tx)
    warn_of_early_links(tx)
    warn_of_ascent(tx)
    return optimizer


if not TYPE_CHECKING:  # type checkers report unknown names themselves

    def __getattr__(name: str) -> object:
        """Name the link, or the class, that a name of another library stands for in the error."""
        if name.startswith("_"):
            raise AttributeError(f"module 'gradtx.optim' has no attribute {name!r}")
        from gradtx.registry import class_hint

        raise AttributeError(f"gradtx.optim has no {name!r}; {class_hint(name)}")
