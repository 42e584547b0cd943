"""What follows from the structure of a chain: optimizers and groups that differ only in numbers share it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradtx.base.errors import Path
from gradtx.base.plain import DEVICE, DTYPE, SHAPE, TYPES, is_plain
from gradtx.base.recent import ProgramsOfChains, Recent
from gradtx.execution.execute import Leaf, Route
from gradtx.execution.extras import FUNCTION_KINDS
from gradtx.execution.traits import Traits
from gradtx.optim.groups import has_any
from gradtx.optim.run import Kinds, OptimizerRun, TensorKind, kinds_of, zero_steps
from gradtx.plans.hyperparameters import Structure
from gradtx.state.layout import Layout, State
from gradtx.transform import GradientTransformation

MOST_STRUCTURES = 32  # of the values of one chain
MOST_KINDS = 256  # of parameters, whose first states one outline knows


@dataclass(frozen=True, kw_only=True)
class ChainTraits(Traits):
    """The traits of a chain, and what its clocks and requirements add for all its steps.

    Attributes:
        clocks: The paths of inner clocks.
        owners_keep_slots: Whether the owners of sharded parameters keep slots, which all ranks create together.
        known_extras: The kinds of all extras that a link declares.
        needs_extras: Whether a link needs an extra.
        calls_again: Whether a link calls the closure at other weights.
        needs_host_counts: Whether the host must know the step counts: rules that branch on the count, and user
            functions, already synchronize with the host.
    """

    clocks: frozenset[Path]
    owners_keep_slots: bool
    known_extras: dict[str, str]
    needs_extras: bool
    calls_again: bool
    needs_host_counts: bool


class FirstState:
    """The state before any step of the parameters of one kind, where all slots start at zero.

    Args:
        layout: Its layout.
        state: The state of one of these parameters; its slots may have no memory.

    Attributes:
        kinds: The kinds of a parameter and its slots; None before the first one.
    """

    kinds: Kinds | None = None

    def __init__(self, layout: Layout, state: State):
        self.layout = layout
        self._slots = [
            (key, slot.shape, slot.stride(), slot.dtype)
            for key, slot in state.items()
            if key != "step"
        ]

    @functools.cached_property
    def _stand_ins(self) -> State:
        return {
            key: torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            for key, shape, stride, dtype in self._slots
        }

    @functools.cached_property
    def _kinds_of_stand_ins(self) -> Kinds:
        return {key: TensorKind.of(slot) for key, slot in self._stand_ins.items()}

    def without_memory(self) -> tuple[Layout, State, Kinds]:
        """Return the layout of a parameter's state, the state, whose slots have no memory, and their kinds."""
        state = {"step": zero_steps(), **self._stand_ins}
        return self.layout, state, self._kinds_of_stand_ins

    def of(self, param: Tensor, shown: Tensor) -> tuple[Layout, State, Kinds]:
        """Return the layout of a parameter's state, the state, on the device of what is shown of it, and the kinds."""
        device = shown.device
        state: State = {"step": zero_steps()}
        for key, shape, stride, dtype in self._slots:
            slot = torch.empty_strided(shape, stride, dtype=dtype, device=device)
            state[key] = slot.zero_()
        if device != param.device:
            return self.layout, state, kinds_of(param, self.layout, state)
        if self.kinds is None:
            self.kinds = kinds_of(param, self.layout, state)
        return self.layout, state, self.kinds


@dataclass
class Outline:
    """A chain, expanded with some values of a structure, for any members.

    Attributes:
        structure: The structure.
        run: The run of `init` in which it is expanded.
        is_shared: Whether optimizers share it.
        requirements: The kinds of extras, and the requirements of links.
        first_states: The first states of parameters that start at zero, by what these depend on.
        plans: Plans of engines without tensors, by what they depend on, with objects whose ids tell it.
    """

    structure: Structure
    run: OptimizerRun
    is_shared: bool
    requirements: Any
    first_states: dict[Any, FirstState] = field(default_factory=dict[Any, FirstState])
    plans: Recent[Any, Any] = field(default_factory=Recent[Any, Any])

    @property
    def route(self) -> Route:
        return self.run.route

    @functools.cached_property
    def traits(self) -> ChainTraits:
        """The traits of the chain."""
        of_links = self.route.traits()
        kinds, requirements = self.requirements
        needs = {need for _, _, need in requirements}
        return ChainTraits(
            **vars(of_links),
            clocks=self.route.clock_paths(),
            owners_keep_slots=any(
                operation.traits.at_owner and operation.traits.keeps_slots
                for operation in self.route.walk()
            ),
            known_extras=kinds,
            needs_extras=any(need != "params" for need in needs),
            calls_again=any(
                need in ("grad_fn", "value_fn") and link != "estimate_gradient"
                for _, link, need in requirements
            )
            or not FUNCTION_KINDS.isdisjoint(kinds.values()),
            needs_host_counts="hessian_diag" in needs or not of_links.compiles,
        )

    def first_state(self, param: Tensor) -> FirstState | None:
        """Return the first state of a parameter, if it is known."""
        return self.first_states.get(_start_of(param)) if self.is_shared else None

    def knows(self, params: list[Tensor]) -> bool:
        """Whether the first states of all parameters are known; it calls no function of Python for each."""
        if not TYPES.issuperset(map(type, params)):
            return False
        kinds = (map(attribute, params) for attribute in (SHAPE, DTYPE, DEVICE))
        starts = zip(*kinds, map(Tensor.stride, params), strict=True)
        one_of_each = dict(zip(starts, params, strict=True)).values()
        return None not in map(self.first_state, one_of_each)

    def note(self, param: Tensor, leaf: Leaf, layout: Layout, state: State) -> None:
        """Note the first state of a parameter for others of its kind, if it consists of zeros."""
        if not (self.is_shared and is_plain(param)) or layout.shared:
            return
        for operation in leaf.operations:
            slots = layout.slots.get(operation.path, {})
            if not operation.starts_alike or not all(
                map(operation.starts_at_zero, slots)
            ):
                return
        if len(self.first_states) >= MOST_KINDS:
            self.first_states.clear()
        self.first_states[_start_of(param)] = FirstState(layout, state)


def _start_of(param: Tensor) -> Any:
    """Return what the first state of a parameter depends on, apart from the chain; None for a class of a user."""
    if not is_plain(param):
        return None
    return TensorKind.of(param), param.stride(), torch.get_default_dtype()


class Outlines:
    """The outlines of an optimizer's chain, those of its own and those that it shares."""

    def __init__(self, tx: GradientTransformation):
        self._own: list[Outline] = []
        self._shared: list[Outline] = _OUTLINES.of_chain(tx).setdefault("outlines", [])

    def find(self, structure: Structure) -> Outline | None:
        for outline in (*self._own, *self._shared):
            if outline.structure == structure:
                return outline
        return None

    def add(
        self, structure: Structure, tx: GradientTransformation, values: Iterable[Any]
    ) -> Outline:
        """Expand a chain with some values."""
        run = OptimizerRun({}, {}, initial=True)
        run.route = Route.of(tx, run, 0)
        # Selectors ask about the members of one optimizer; tensors are the user's.
        is_shared = not (run.selectors or has_any(Tensor, values))
        outlines = self._shared if is_shared else self._own
        outline = Outline(structure, run, is_shared, tx._requirements())
        outlines.append(outline)
        del outlines[:-MOST_STRUCTURES]
        return outline


_OUTLINES = ProgramsOfChains()
