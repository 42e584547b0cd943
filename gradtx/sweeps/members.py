"""The members of a sweep that train together: their weights, states and losses, stacked."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradtx.base import tree as _tree
from gradtx.base.exact import exact_dtype
from gradtx.base.names import is_ours
from gradtx.base.recent import Recent
from gradtx.base.torch_names import with_own_code
from gradtx.execution.traits import Traits
from gradtx.functional import LossAt, stack, stepped, unstack
from gradtx.hessian import draw_probe
from gradtx.pure.members import over_members
from gradtx.pure.repeated_calls import (
    ALL_CALLS,
    are_suitable,
    repeated,
    repeats,
    uncalled,
)
from gradtx.pure.structures import UnsuitableError, plain, structure_of, tree_of
from gradtx.pure.tree_run import TreeRun, records_gradients
from gradtx.sweeps.settings import Group
from gradtx.transform import GradientTransformation, check_transformation

SUPPLIED = {"params", "value", "value_fn", "grad_fn", "hessian_diag"}
# By step: the loss and the results of `eval_fn`, an entry per member; NaN for those that have diverged.
Records: TypeAlias = dict[int, dict[str, Tensor]]


class Trial(NamedTuple):
    """One training run: the index of its setting, and its seed."""

    setting: int
    seed: int


@dataclass
class Progress:
    """The state of members in training, stacked along the first dimension.

    Attributes:
        params, state: Weights, and states of the transformation.
        alive: Whether each member has been finite so far.
        loss: The sum of the losses since the last record.
        step: The number of steps made.
        probes: The state of the generator that draws each member's probes of the Hessian.
        records: What has been measured.
    """

    params: Any
    state: Any
    alive: Tensor
    loss: Tensor
    step: int = 0
    probes: list[Tensor] = field(default_factory=list[Tensor])
    records: Records = field(default_factory=dict[int, dict[str, Tensor]])


class Trainer:
    """Trains members of one group in a vmapped loop.

    Args:
        group: The settings of the members.
        members: The members.
        loss_fn, eval_fn: As in `sweep`.
        params_of: Returns the initial weights of a seed.
        compiled: Whether to compile the loop's step.
        randomness: As in `torch.vmap`.
    """

    def __init__(
        self,
        group: Group,
        members: Sequence[Trial],
        loss_fn: Callable[[Any, Any], Tensor],
        eval_fn: Callable[[Any], Any] | None,
        params_of: Callable[[int], Any],
        compiled: bool,
        randomness: str,
    ):
        self.members = list(members)
        self._group = group
        self._loss_fn = loss_fn
        self._eval_fn = eval_fn
        first = _tree.named(params_of(members[0].seed))
        run = TreeRun(group.with_scalars({}), first, None)
        # On the parameters' device: `vmap` makes vectors of them, which operations with other devices refuse.
        self._scalars: dict[str, tuple[Tensor, ...]] = {}
        for name in group.varying:
            rows = [group.scalars_of(member.setting, name) for member in members]
            table = torch.tensor(rows, dtype=exact_dtype(run.device), device=run.device)
            self._scalars[name] = table.unbind(1)
        self._evaluate_all = torch.vmap(self._evaluate, randomness=randomness)
        self._params_of = params_of
        self._hessian_periods = [
            operation.traits.hessian_period
            for operation in run.route.walk()
            if operation.traits.hessian_period
        ]
        if compiled:
            leaves = [(name, leaf.shape, leaf.dtype) for name, leaf in first.items()]
            guards = len(members), randomness, tuple(leaves), run.device
            self._step_all = compiled_step(group, loss_fn, guards, randomness)
        elif _repeats(group):
            self._step_all = RepeatedStep(group, randomness, run.route.traits())
        else:
            self._step_all = step_of(group, randomness)

    def start(self) -> Progress:
        """Return the members before their first step."""
        trees = [self._params_of(member.seed) for member in self.members]
        params = stack(trees)
        first = _tree.tensors(params)[0]
        state = torch.vmap(self._init)(self._scalars, params)
        generators = [torch.Generator().manual_seed(m.seed) for m in self.members]
        return Progress(
            params,
            state,
            alive=torch.ones(len(trees), dtype=torch.bool, device=first.device),
            loss=torch.zeros(len(trees), dtype=exact_dtype(first), device=first.device),
            probes=[generator.get_state() for generator in generators],
        )

    def advance(self, progress: Progress, batch: Any) -> None:
        """Train all members on a batch."""
        probes = self._probes(progress)
        progress.params, progress.state, progress.alive, loss = self._step_all(
            self._loss_fn,
            self._scalars,
            progress.params,
            progress.state,
            progress.alive,
            batch,
            probes,
        )
        progress.loss = progress.loss + loss
        progress.step += 1

    def record(self, progress: Progress) -> None:
        """Measure all members, and start a new mean of losses."""
        before = max(progress.records, default=0)
        values = {"loss": progress.loss / (progress.step - before)}
        progress.loss = torch.zeros_like(progress.loss)
        if self._eval_fn is not None:
            with torch.no_grad():
                values.update(
                    self._evaluate_all(self._scalars, progress.params, progress.state)
                )
        for name, value in values.items():
            values[name] = torch.where(
                progress.alive, value.to(exact_dtype(value)), torch.nan
            )
        progress.records[progress.step] = values

    # One member.

    def _init(self, scalars: Any, params: Any) -> Any:
        return self._group.with_scalars(scalars).init(params)

    def _evaluate(self, scalars: Any, params: Any, state: Any) -> dict[str, Tensor]:
        assert self._eval_fn is not None
        weights = self._group.with_scalars(scalars).eval_params(state, params)
        result = self._eval_fn(weights)
        return result if isinstance(result, dict) else {"eval": result}

    def _probes(self, progress: Progress) -> tuple[Any, ...]:
        """Return random vectors for the Hessian, a tree per member, stacked; nothing in steps that do not read it."""
        if not any(progress.step % period == 0 for period in self._hessian_periods):
            return ()
        trees = []
        for i, params in enumerate(unstack(progress.params)):
            generator = torch.Generator()
            generator.set_state(progress.probes[i])
            trees.append(
                _tree.map_tensors(
                    functools.partial(draw_probe, generator=generator), params
                )
            )
            progress.probes[i] = generator.get_state()
        return (stack(trees),)


# Steps of one member.


def step_of(group: Group, randomness: str) -> Callable[..., Any]:
    """Return the step of all members of a group.

    The function of the loss is an argument, so that a compiled step keeps neither it nor the data that it refers to.
    """

    def step(
        loss_fn: Callable[[Any, Any], Tensor],
        scalars: Any,
        params: Any,
        state: Any,
        alive: Tensor,
        batch: Any,
        probes: tuple[Any, ...],
    ) -> Any:
        of_member = functools.partial(_step, loss_fn, group)
        axes = (0, 0, 0, 0, None, 0)
        vmapped = torch.vmap(of_member, in_dims=axes, randomness=randomness)
        return vmapped(scalars, params, state, alive, batch, probes)

    return step


# Compiled steps, of the last groups and guards. A function of the loss that is freed has no entry that anything equals.
MOST_STEPS = 32
_COMPILED: dict[Any, Callable[..., Any]] = {}


def compiled_step(
    group: Group, loss_fn: Callable[..., Any], guards: Any, randomness: str
) -> Callable[..., Any]:
    """Return the compiled step of a group, the same for sweeps with the same guards.

    Args:
        group, loss_fn, randomness: The arguments of the step.
        guards: What compiled code depends on besides. Each gets its own function, because dynamo compiles a function
            for a few of them only.
    """
    try:
        key = weakref.ref(loss_fn), group.structure(), guards
        compiled = _COMPILED.pop(key, None)
    except (
        TypeError
    ):  # an option that cannot be hashed, or a function without weak references
        return torch.compile(with_own_code(step_of(group, randomness)))
    if compiled is None:
        compiled = torch.compile(with_own_code(step_of(group, randomness)))
    _COMPILED[key] = compiled  # at the end
    if len(_COMPILED) > MOST_STEPS:
        del _COMPILED[next(iter(_COMPILED))]
    return compiled


def _step(
    loss_fn: Callable[[Any, Any], Tensor],
    group: Group,
    scalars: Any,
    params: Any,
    state: Any,
    alive: Tensor,
    batch: Any,
    probes: tuple[Any, ...],
) -> tuple[Any, Any, Tensor, Tensor]:
    """Make one step, unless the member has diverged or diverges now.

    Args:
        probes: A random vector, in steps that read a Hessian.
    """
    at = LossAt(loss_fn, (batch,))
    grads, (loss, _) = at.gradients(params)
    extras = at.extras(loss)
    tx = group.with_scalars(scalars)
    if "hessian_diag" in tx.needs:
        extras["hessian_diag"] = _hessian_diag(loss_fn, params, batch, probes)
    return _rest_of_step(tx, extras, grads, loss, params, state, alive)


def _rest_of_step(
    tx: GradientTransformation,
    extras: dict[str, Any],
    grads: Any,
    loss: Tensor,
    params: Any,
    state: Any,
    alive: Tensor,
) -> tuple[Any, Any, Tensor, Tensor]:
    """Make a step whose gradients are known, unless the member has diverged or diverges now."""
    *after, finite, loss = _after_step(tx, extras, grads, loss, params, state, alive)
    kept = _unless_diverged(finite, tuple(after), (params, state))
    return (*kept, finite, loss)


def _unless_diverged(finite: Tensor, after: Any, before: Any) -> Any:
    """Return the trees after a step, or those before it where a member is not finite."""

    def chosen(new: Tensor, old: Tensor) -> Tensor:
        ones = [1] * (new.ndim - finite.ndim)
        return torch.where(finite.reshape([*finite.shape, *ones]), new, old)

    return _tree.map_tensors(chosen, after, before)


def _after_step(
    tx: GradientTransformation,
    extras: dict[str, Any],
    grads: Any,
    loss: Tensor,
    params: Any,
    state: Any,
    alive: Tensor,
) -> tuple[Any, Any, Tensor, Tensor]:
    """Return weights and state after a step, whether the member has always been finite, and the loss."""
    new_params, new_state = stepped(tx, grads, loss, params, state, extras)
    finite = alive & loss.isfinite()
    for leaf in _tree.tensors(new_params):
        # 0 times a value is 0 if it is finite, else NaN; `isfinite` runs four operations under `vmap`.
        finite = finite & ((leaf * 0).sum() == 0)
    return new_params, new_state, finite, loss.to(exact_dtype(loss))


def _repeats(group: Group) -> bool:
    """Whether the operations of a step that follow its gradients may be repeated."""
    tx = group.with_scalars({})
    return {*tx.needs} <= {"params", "value"} and repeats(tx)


class RepeatedStep:
    """The step of all members of a group, which repeats the operations that follow the gradients.

    Args:
        group, randomness: As in `step_of`.
        traits: The traits of the chain.
    """

    def __init__(self, group: Group, randomness: str, traits: Traits):
        self._group = group
        self._structure = group.structure()
        # A function of a user may read what changes between sweeps.
        self._known = ALL_CALLS if is_ours(group.make.func) else Recent()
        self._vmap = functools.partial(torch.vmap, randomness=randomness)
        # Sums may round differently in other orders of memory.
        self._is_by_entry = traits.elementwise and not traits.has_sums

    def __call__(
        self,
        loss_fn: Callable[[Any, Any], Tensor],
        scalars: Any,
        params: Any,
        state: Any,
        alive: Tensor,
        batch: Any,
        probes: tuple[Any, ...],
    ) -> Any:
        gradients = self._vmap(torch.func.grad_and_value(loss_fn), in_dims=(0, None))
        grads, loss = gradients(params, batch)
        trees = scalars, grads, loss, params, state, alive
        results = self._repeated(trees)
        if results is not None:
            return results

        def rest(
            batch: Any, scalars: Any, grads: Any, loss: Tensor, *trees: Any
        ) -> Any:
            extras = LossAt(loss_fn, (batch,)).extras(loss)
            tx = self._group.with_scalars(scalars)
            return _rest_of_step(tx, extras, grads, loss, *trees)

        return self._vmap(rest, in_dims=(None, *[0] * len(trees)))(batch, *trees)

    def _repeated(self, trees: tuple[Any, ...]) -> Any:
        """Return the results of the operations after the gradients; None if rules have to run."""
        tensors: list[Tensor] = []
        try:
            structure = structure_of(trees, tensors, opens=True)
        except UnsuitableError:
            return None
        if self._is_by_entry:
            tensors = list(map(Tensor.contiguous, tensors))
        if not are_suitable(tensors) or records_gradients(tensors, ()):
            return None
        _, (*_, of_params, of_state, _) = structure
        of_results = "tuple", (of_params, of_state, None, None)

        def rest(tensors: list[Tensor]) -> tuple[list[Tensor], Any]:
            scalars, *trees = tree_of(structure, iter(tensors), opens=True)
            tx = self._group.with_scalars(scalars)
            _, loss, *_ = trees
            extras = {"value": loss, "value_fn": uncalled, "grad_fn": uncalled}
            results: list[Tensor] = []
            returned = _after_step(tx, extras, *trees)
            if structure_of(returned, results, opens=True) != of_results:
                raise UnsuitableError
            return results, None

        members = len(tensors[0])
        of_all = over_members(rest, [0] * len(tensors), members)
        key = RepeatedStep, self._structure, plain(structure)
        found = repeated(key, of_all, tensors, self._known)
        if found is None:
            return None
        results, (_, dims) = found
        stacked = map(_along_first, results, dims, [members] * len(dims))
        *after, finite, loss = tree_of(of_results, stacked, opens=True)
        if finite.device.type != "cpu" or not finite.all():
            *_, params, state, _ = trees
            after = _unless_diverged(finite, tuple(after), (params, state))
        return (*after, finite, loss)


def _along_first(tensor: Tensor, dim: int | None, members: int) -> Tensor:
    """Return a tensor whose first dimension is that of members, as `torch.vmap` returns it."""
    if dim is None:
        return tensor.expand(members, *tensor.shape).contiguous()
    return tensor.movedim(dim, 0) if dim else tensor


def _hessian_diag(
    loss_fn: Callable[[Any, Any], Tensor],
    params: Any,
    batch: Any,
    probes: tuple[Any, ...],
) -> Any:
    """Return the product of a probe and the Hessian times it; None in steps that do not read it."""
    if not probes:
        return None
    (probe,) = probes
    gradients = torch.func.grad(lambda at: loss_fn(at, batch))
    (product,) = torch.func.vjp(gradients, params)[1](probe)
    return _tree.map_tensors(torch.mul, probe, product)


def check_supplied(make_name: str, tx: GradientTransformation) -> None:
    """Check that a transformation is one, and that a sweep can supply all extras that it needs."""
    check_transformation("sweep", f"the result of {make_name}", tx)
    for need in tx.needs:
        if need not in SUPPLIED:
            raise ValueError(
                f"sweep: {make_name} needs {need!r}, which a sweep cannot supply; write a loop with gradtx.train_step"
            )
