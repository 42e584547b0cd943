"""PyTorch optimizers: `as_optimizer` wraps any transformation, and each alias has a drop-in class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from gradtx.base.inputs import Params
from gradtx.base.messages import close
from gradtx.base.other_libraries import counterpart, plain
from gradtx.base.table import MODULES
from gradtx.optim import classes
from gradtx.optim.chain_checks import warn_of_ascent
from gradtx.optim.classes import ALIASES, CLASSES
from gradtx.optim.optimizer import ChainOptimizer as ChainOptimizer
from gradtx.transform import GradientTransformation, check_transformation

if TYPE_CHECKING:
    from gradtx.optim.classes import *
    from gradtx.optim.engine import Engine

MakerT = TypeVar("MakerT", bound=Callable[..., ChainOptimizer])

__all__ = ["ChainOptimizer", "as_optimizer"]
__all__ += classes.__all__


def _takes_tx_by_name(function: MakerT) -> MakerT:
    """Let `params` be the only positional argument, as in `functools.partial(as_optimizer, tx=tx)(params)`."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and "tx" in kwargs and "params" not in kwargs:
            args = (kwargs.pop("tx"), *args)
        return function(*args, **kwargs)

    return cast("MakerT", call)


@_takes_tx_by_name
def as_optimizer(
    tx: GradientTransformation,
    params: Params,
    *,
    compile: bool | Engine = False,
    seed: int = 0,
    process_group: Any = None,
    state_device: torch.device | str | None = None,
    capturable: bool = False,
    amp_scaling: bool = False,
) -> ChainOptimizer:
    """Wrap any transformation in a `torch.optim.Optimizer`.

    Parameter groups contain the hyperparameters (`tx.hyperparams`). A value written to a group, for example by a
    PyTorch LR scheduler, takes effect at the next step. As in `torch.optim`, each parameter has one flat dict of state.

    Args:
        tx: A transformation whose updates are added to the parameters.
        params: `model.parameters()`, `model.named_parameters()` (for name patterns), or a list of group dicts, each
            with "params" and its own hyperparameters. It may be the only positional argument, as frameworks pass it:
            `functools.partial(gradtx.as_optimizer, tx=tx)(params)`.
        compile: True runs steps as kernels, in place, at the speed of torch's fused kernels: in C++ on a CPU, in Triton
            on a GPU. Each kernel processes all leaves; leaves that kernels cannot process run over lists. The first
            step compiles them, on a CPU with g++ or clang, in less than a second for most chains. Without a compiler,
            the optimizer warns once and steps run as by default. Pass an `Engine` to use your own back end (see
            docs/howto/write-a-back-end).
        seed: Seed of the random vectors with which the optimizer estimates `hessian_diag` for links that need it.
            Shown in the groups as `hessian_seed` and saved with them. The Hessian is that of the loss on which
            `backward` was called, so a GradScaler is not supported.
        process_group: Ranks that have these parameters and equal gradients, as under DDP, and divide the work of
            matrix methods: each matrix is computed by one rank, which keeps its slots, and one all_gather sends the
            results to all ranks. All ranks must then call `step` and `state_dict` together. Sharded parameters need
            no group. For a chain that takes residuals, such as `gauss_newton`, each rank computes those of its own
            data, and the step is that of all residuals together.
        state_device: "cpu" keeps state, and computes steps, on the host for parameters on another device. Each step
            copies weights and gradients to the host and the weights back, through pinned memory. State has the same
            dtypes as on the parameter's device, so results and checkpoints equal those of training on the host. Cannot
            be combined with sharded parameters, DistributedDataParallel, `release_gradients` or links that need
            `hessian_diag`.
        capturable: Whether `torch.cuda.graph` may capture steps, as in torch: step counts are kept on the parameters'
            device, and all state keeps its memory. Run one step before the capture. Replays use the group values of
            the capture, except tensors on that device; schedules in the chain advance. Cannot be combined with links
            that read values or counts on the host, `state_device` or `release_gradients`.
        amp_scaling: Whether a GradScaler leaves unscaling and the skipping of steps to `step`, as to torch's fused
            optimizers, so that neither waits for the device; always with `capturable`. By default the scaler unscales
            gradients itself and does not call a step that it skips, as with torch's other optimizers.

    Warns about chains without a link that flips the sign, whose steps increase the loss, and about unknown group keys
    that resemble a hyperparameter's name. Other unknown keys are kept. `chain` warns about the order of its links.

    Raises:
        TypeError: If `tx` is not a transformation, if a parameter is not a tensor, or if `compile` is not True, False
            or an `Engine`.
        ValueError: If a state device is unknown, if an `Engine` belongs to another optimizer, if there are no
            parameters, if a parameter is repeated, if a hyperparameter is out of range, if a pattern matches nothing,
            or if `capturable` does not support a link.

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
        raise TypeError(
            "as_optimizer: the first argument must be the transformation: as_optimizer(tx, params)"
        )
    check_transformation("as_optimizer", "tx", tx)
    optimizer = ChainOptimizer(
        tx,
        params,
        compile=compile,
        seed=seed,
        process_group=process_group,
        state_device=state_device,
        capturable=capturable,
        amp_scaling=amp_scaling,
    )
    warn_of_ascent(tx)
    return optimizer


def class_names() -> dict[str, str]:
    """Map the plain names of all optimizers and of their classes to the class."""
    class_of = {}
    for class_name, alias in ALIASES.items():
        class_of[plain(alias)] = class_name
        class_of[plain(class_name)] = class_name
    return class_of


def optimizer_hint(name: str, name_of: Mapping[str, str]) -> str:
    """Say what to use instead of an unknown optimizer, or how to list all.

    Args:
        name: The unknown name.
        name_of: The name to suggest for each plain name.
    """
    use = counterpart(name)
    if use is not None:
        return use
    for link, module in MODULES.items():
        is_link = module.startswith(("algorithms.", "combinators.", "links."))
        if is_link and plain(link) == plain(name) and plain(name) not in name_of:
            return f"gradtx.{link} is a link, not an optimizer: chain it with one, or wrap one with it"
    meant = close(plain(name), name_of, 0.8)
    if meant is not None:
        return f"did you mean {name_of[meant]!r}?"
    return "gradtx.get_supported_optimizers() lists all names"


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


if not TYPE_CHECKING:  # type checkers report unknown names themselves

    def __getattr__(name: str) -> object:
        """Create the class of this name, or raise an error that suggests what another library's name is here."""
        if name in ALIASES:
            return CLASSES[ALIASES[name]]
        if name.startswith("_"):
            raise AttributeError(f"module 'gradtx.optim' has no attribute {name!r}")
        raise AttributeError(
            f"gradtx.optim has no {name!r}; {optimizer_hint(name, class_names())}"
        )
