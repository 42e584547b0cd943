"""The members of an optimizer's groups: its named parameters, and a view of each group."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter, is_lazy

from gradtx.base.errors import Path
from gradtx.base.inputs import check_groups
from gradtx.base.selectors import NumberedName, in_model
from gradtx.base.tree import check_leaf
from gradtx.distributed.layouts import Team
from gradtx.execution.context import Clock
from gradtx.execution.execute import Block, Leaf
from gradtx.execution.runs import clock_at
from gradtx.optim._groups import (
    CPU,
    CountOf,
    Group,
    GroupView,
    in_names_of_branch,
    params_of,
    unread,
)
from gradtx.optim._member import Member
from gradtx.optim._run import OptimizerRun
from gradtx.transform import Entry, GradientTransformation

# (selector, label) of every partition on a leaf's path through the chain.
Labels = tuple[tuple[Any, Any], ...]


@dataclass
class Joining:
    """Parameters that are about to join an optimizer.

    Attributes:
        views: Views of their groups, one for each label of a partition.
        by_param: All members, including the new ones.
        unread: Keys of the user's group that no link of its branches reads, with the names that they read.
    """

    views: list[GroupView]
    by_param: dict[Tensor, Member]
    unread: dict[str, str] = field(default_factory=dict[str, str])


class Members:
    """The parameters of an optimizer, and a view of each of its groups.

    Args:
        owner: The optimizer's class, for error messages.
        tx: The optimizer's transformation.

    Attributes:
        owner: The optimizer's class, for error messages.
        tx: The optimizer's transformation.
        views: One view per group.
        by_param: The members, in the order in which they joined.
        restarts: Whether an inner clock may restart.
    """

    restarts = False
    # The parameters from which `_rows` was built.
    _row_params: list[Tensor] | None = None
    # The ranks that divide the work on whole parameters.
    replicas: Team | None = None

    def __init__(self, owner: str, tx: GradientTransformation):
        self.owner = owner
        self.tx = tx
        self.views: list[GroupView] = []
        self.by_param: dict[Tensor, Member] = {}
        self._rows: list[list[Member]] = []  # the members of each group
        # The parameters in the order of the groups, at the last `follow`.
        self._present: list[Tensor] = []
        self._clock_paths: dict[Any, Path] = {}

    # Adding groups.

    def joining(self, group: Group) -> Joining:
        """Name the parameters of a new group and split it by label, without changing this object."""
        params: list[Tensor] = group["params"]
        by_param = self._with_new_members(group)
        run, block = self._expanded(by_param)
        self._check_pieces(params)
        positions_of_labels: dict[Labels, list[int]] = {} if params else {(): []}
        for i, param in enumerate(params):
            labels = _labels(run, block, by_param[param])
            positions_of_labels.setdefault(labels, []).append(i)
        views: list[GroupView] = []
        given = dict(group)
        read: set[str] = set()
        in_order = sorted(positions_of_labels, key=_rank)
        for labels in in_order:
            # A group that is not split keeps the user's dict, as in torch.
            part = group if len(in_order) == 1 else dict(group)
            for key in ("params", "param_names"):
                if key in part:
                    part[key] = [given[key][i] for i in positions_of_labels[labels]]
            if labels:
                part["label"] = ".".join(label for _, label in labels)
            read |= in_names_of_branch(self.tx, part, _by_selector(labels))
            views.append(self._view(part, labels, lambda _: 0))
        joining = Joining(views, by_param)
        for labels, view in zip(in_order, views, strict=True):
            keys = unread(self.tx, given, read, view, _by_selector(labels))
            joining.unread.update(keys)
        return joining

    def _with_new_members(self, group: Group) -> dict[Tensor, Member]:
        """Return all members by parameter, including new ones for a group, named as in the model or by numbers."""
        by_param = dict(self.by_param)
        params: list[Tensor] = group["params"]
        names = in_model(group.get("param_names") or ())
        if not names:
            names = [NumberedName(len(by_param) + i) for i in range(len(params))]
        taken = {member.name for member in by_param.values()}
        for name, param in zip(names, params, strict=True):
            if not never_trains(param):
                check_leaf(name, param, self.owner)
            if param.dtype.is_complex and not is_lazy(param) and param.is_conj():
                raise ValueError(
                    f"{self.owner}: parameter {name!r} is a conjugate view, to which steps cannot write; "
                    "pass param.resolve_conj()"
                )
            by_param[param] = Member(_unique(name, taken), param)
        return by_param

    def admit(self, joining: Joining) -> None:
        """Add the joining parameters and their groups."""
        self.views.extend(joining.views)
        self.by_param = joining.by_param
        run, block = self._expanded(self.by_param)
        self._clock_paths = run.clock_paths
        self.restarts = any(operation.restarts_inner for operation in block.walk())
        self._present = params_of([view.group for view in self.views])

    def _expanded(
        self, by_param: Mapping[Tensor, Member]
    ) -> tuple[OptimizerRun, Block]:
        run = OptimizerRun({}, by_param, initial=True)
        return run, Block.of(self.tx, run, 0)

    def _view(
        self,
        group: Group,
        labels: Labels,
        count: CountOf,
    ) -> GroupView:
        return GroupView(self.owner, self.tx, group, _by_selector(labels), count)

    def block(self) -> Block:
        """Return the chain, expanded for all members."""
        _, block = self._expanded(self.by_param)
        return block

    def check_selectors(self) -> None:
        """Check that every pattern matches a parameter.

        Raises:
            ValueError: If a pattern matches no parameter.
        """
        run, _ = self._expanded(self.by_param)
        for selector in run.selectors:
            try:
                selector.check_used(self.names())
            except ValueError as error:
                if "param_names" in self.views[0].group:
                    raise
                raise ValueError(
                    f"{error}; these parameters have no names: pass model.named_parameters()"
                ) from None

    # Changes made to the groups from outside.

    def follow(self, groups: list[Group], count: CountOf) -> list[Tensor]:
        """Update views and members to match the present groups.

        Args:
            groups: The optimizer's `param_groups`.
            count: Returns the count of the clock that a hyperparameter follows.

        Returns:
            The parameters that others have replaced.
        """
        if _identical([view.group for view in self.views], groups):
            try:
                if _identical(params_of(groups), self._present):
                    return []
            except (KeyError, TypeError):
                pass  # a group without parameters, about which the check below raises an error
            check_groups(self.owner, groups)
        else:
            check_groups(self.owner, groups)
            self._follow_groups(groups, count)
        present = params_of(groups)
        replaced = self._follow_params(present)
        self._present = present
        return replaced

    def _check_pieces(
        self, params: Iterable[Tensor], replaced: Iterable[Tensor] = ()
    ) -> None:
        """Reject flat pieces of memory in place of parameters, as created by FSDP1 and DeepSpeed's ZeRO.

        Args:
            params: The new parameters.
            replaced: The parameters that all of them have replaced.

        Raises:
            ValueError: If a link depends on the shapes of leaves or sums over leaves.
        """
        had_shapes = any(param.ndim > 1 for param in replaced)
        pieces = [
            param
            for param in params
            if had_shapes
            # Of FSDP1, which has moved it into flat memory that is sharded over the ranks.
            or getattr(param, "_is_flat_param", False)
            or getattr(param, "_fsdp_flattened", False)
        ]
        # With FSDP1's NO_SHARD, the parameters remain as views with their own shapes.
        if not pieces or any(param.ndim != 1 for param in pieces):
            return
        for operation in self.block().walk():
            if operation.waits or operation.sums_late or not operation.elementwise:
                raise ValueError(
                    f"{self.owner}: these parameters are flat pieces of memory, as created by FSDP1 or DeepSpeed's "
                    f"ZeRO, but {'.'.join(operation.path)!r} depends on their shapes or sums over them; use FSDP2 "
                    "(fully_shard), or DistributedDataParallel alone"
                )

    def _follow_groups(self, groups: list[Group], count: CountOf) -> None:
        """Find each group's view by the identity of its dict or parameters, or create a view."""
        by_dict: dict[int, GroupView] = {}
        by_params: dict[tuple[int, ...], GroupView] = {}
        for view in self.views:
            by_dict[id(view.group)] = view
            by_params[_ids(view.group["params"])] = view
        views: list[GroupView] = []
        for group in groups:
            view = by_dict.get(id(group)) or by_params.get(_ids(group["params"]))
            views.append(view or self._adopted(group, count))
        for view, group in zip(views, groups, strict=True):
            view.group = group
        self.views = views

    def _adopted(self, group: Group, count: CountOf) -> GroupView:
        """Create the view of a group that was inserted into `param_groups` directly."""
        for param in group["params"]:
            if param not in self.by_param:
                self._add(param, len(self.by_param))
        run, block = self._expanded(self.by_param)
        labels: Labels = ()
        if group["params"]:
            labels = _labels(run, block, self.by_param[group["params"][0]])
        return self._view(group, labels, count)

    def _follow_params(self, present: list[Tensor]) -> list[Tensor]:
        """Update the members, and return the parameters that others have replaced.

        A parameter that replaces another inherits its name and the selectors' decisions.
        """
        before = self.by_param
        replacements = self._replacements(present)
        here = set(present)
        if here.isdisjoint(before):
            self._check_pieces(present, replaced=before)
        self.by_param = {}
        # Keeps the order, which extras passed as lists rely on.
        for param, member in before.items():
            if param in here:
                self.by_param[param] = member
            elif param in replacements and replacements[param] not in before:
                replacement = replacements[param]
                self.by_param[replacement] = Member(
                    member.name, replacement, dict(member.choices)
                )
        for i, param in enumerate(present):
            if param not in self.by_param:
                self._add(param, len(before) + i)
        return [param for param in replacements if param not in here]

    def _add(self, param: Tensor, number: int) -> None:
        """Add an unnamed parameter."""
        name = _unique(NumberedName(number), set(self.names()))
        self.by_param[param] = Member(name, param)

    def _replacements(self, present: list[Tensor]) -> dict[Tensor, Tensor]:
        """Return the replacement of each replaced parameter, which has its position."""
        if len(present) != len(self._present):
            return {}
        pairs = zip(self._present, present, strict=True)
        return {old: new for old, new in pairs if old is not new}

    # Lookups.

    def names(self) -> list[str]:
        return [member.name for member in self.by_param.values()]

    def drop_gradients(self) -> None:
        """Set the gradient of every parameter to None."""
        for param in self.by_param:
            if not is_lazy(param):
                param.grad = None

    def rows(self, state: Mapping[Tensor, dict[str, Any]]) -> Sequence[list[Member]]:
        """Return the members of each group, with their present group and state."""
        sizes = [len(view.group["params"]) for view in self.views]
        if self._row_params is not self._present or sizes != list(map(len, self._rows)):
            self._row_params = self._present
            self._rows = []
            for i, view in enumerate(self.views):
                row = [self.by_param[param] for param in view.group["params"]]
                self._rows.append(row)
                for member in row:
                    member.group = i
        for row in self._rows:
            for member in row:
                member.state = state.get(member.param, {})
        return self._rows

    def clock_path(self, entry: Entry | None) -> Path | None:
        """Return the path of the clock that a hyperparameter's schedule follows; None for the outermost clock."""
        return None if entry is None else clock_at(entry.place[0], self._clock_paths)

    def inner_count(
        self, path: Path, state: Mapping[Tensor, dict[str, Any]], outer: int
    ) -> int:
        """Return the number of finished updates on a combinator's clock, after any restart in the next step.

        Args:
            path: The path of the combinator.
            state: The state of the parameters.
            outer: The number of finished steps.
        """
        run = OptimizerRun(state, self.by_param, initial=False)
        if not self.restarts:
            return int(run.scalars(path).get("step", 0))
        Block.of(self.tx, run, outer)
        run.commits.clear()  # breaks a reference cycle with the run
        return int(run.inner_counts[path])


def leaf_of(
    run: OptimizerRun,
    member: Member,
    clock: Clock,
    gradient: Tensor | None = None,
    extras: dict[str, Any] | None = None,
    state: dict[str, Any] | None = None,
    shown: Tensor | None = None,
) -> Leaf:
    """Create the leaf of a parameter for a run; `shown` replaces the parameter's values.

    A lazy parameter, which has no shape yet, becomes an empty leaf.
    """
    param = member.param
    if shown is None:
        shown = (
            torch.empty(0, dtype=param.dtype, device=CPU)
            if is_lazy(param)
            else param.detach()
        )
    update = None if gradient is None else gradient.detach()
    leaf = Leaf(run, member.name, update, shown, extras or {}, clock)
    leaf.key = param
    leaf.owner = member.owner
    leaf.layout = member.layout
    leaf.state = {} if state is None else state
    return leaf


def never_trains(param: Tensor) -> bool:
    """Whether a parameter cannot have a gradient, such as the packed integer weights of a quantized model."""
    return isinstance(param, Parameter) and not (
        param.is_floating_point() or param.is_complex()
    )


def first_clock(device: torch.device) -> Clock:
    """Return the clock of a first step."""
    return Clock(torch.ones((), dtype=torch.int64, device=device))


def _labels(run: OptimizerRun, block: Block, member: Member) -> Labels:
    """Return the labels of a parameter; empty if it is frozen."""
    leaf = leaf_of(run, member, first_clock(CPU))
    try:
        return tuple(block.labels(leaf))
    except ValueError:
        if block.is_frozen(leaf):
            return ()
        raise


def _by_selector(labels: Labels) -> dict[Any, str]:
    """Return the labels by the keys of their selectors."""
    return {selector.key: label for selector, label in labels}


def _rank(labels: Labels) -> list[int]:
    """Return the positions of the labels in their partitions, by which groups are sorted."""
    return [selector.labels.index(label) for selector, label in labels]


def _ids(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(map(id, values))


def _identical(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))


def _unique(name: str, taken: set[str]) -> str:
    """Return a name that is not taken, because leaves are identified by name, and take it."""
    unique, number = name, 0
    while unique in taken:
        number += 1
        unique = type(name)(f"{name}#{number}")
    taken.add(unique)
    return unique
