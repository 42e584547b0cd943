"""The members of an optimizer's groups: its named parameters, and the settings of each group."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.base.dtensor import is_sharded
from gradtx.base.errors import Path
from gradtx.base.exact import CPU
from gradtx.base.inputs import check_groups
from gradtx.base.plain import TYPES, are_strided
from gradtx.base.selectors import NumberedName, in_model
from gradtx.base.tree import check_leaf
from gradtx.distributed.layouts import Team
from gradtx.execution.runs import Place
from gradtx.optim.chain_checks import warn_of_unread
from gradtx.optim.groups import (
    Group,
    GroupSettings,
    are_identical,
    in_names_of_branch,
    is_same,
    params_of,
)
from gradtx.optim.outline import ChainTraits, Outline, Outlines
from gradtx.optim.run import Member, OptimizerRun, clock_after, leaf_of, never_trains
from gradtx.plans.hyperparameters import hyperparameters_of
from gradtx.transform import GradientTransformation

# (selector, label) of every partition on a leaf's path through the chain.
Labels = tuple[tuple[Any, Any], ...]

DTYPE = operator.attrgetter("dtype")

# Attributes that follow from the chain, whose expansion consists of functions.
OF_CHAIN = ("own_outline", "outlines", "partners", "independent_names")


@dataclass
class Joining:
    """Parameters that are about to join an optimizer.

    Attributes:
        groups: The settings of their groups, one for each label of a partition.
        by_param: All members, including the new ones.
        unread: Keys of the user's group that no link of its branches reads, with the names that they read.
    """

    groups: list[GroupSettings]
    by_param: dict[Tensor, Member]
    unread: dict[str, str]


class Members:
    """The parameters of an optimizer, and the settings of each of its groups.

    Args:
        who: The optimizer's class, for error messages.
        tx: The optimizer's transformation.
        replicas: The ranks that divide the work on whole parameters.

    Attributes:
        groups: The settings of each group.
        by_param: The members, in the order in which they joined.
        are_sharded: Whether any parameter is sharded.
        are_divided: Whether ranks divide the parameters, or the work on them.
        every: The members of all groups, in order; another object after each change, and empty until `rows` is called.
        repeated: The names of the parameters that are in two groups, or twice in one.
    """

    are_sharded = False
    are_divided = False

    def __init__(self, who: str, tx: GradientTransformation, replicas: Team | None):
        self.who = who
        self.tx = tx
        self.replicas = replicas
        self.groups: list[GroupSettings] = []
        self.by_param: dict[Tensor, Member] = {}
        self.repeated: list[str] = []
        self._rows: list[list[Member]] = []  # the members of each group
        self._types: set[type] = set()
        self.every: list[Member] = []

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if name not in OF_CHAIN
        }

    @functools.cached_property
    def outlines(self) -> Outlines:
        """What follows from the structure of the chain."""
        return Outlines(self.tx)

    @functools.cached_property
    def own_outline(self) -> Outline:
        """The outline of the whole chain, with the values that it was given."""
        structure = hyperparameters_of(self.tx).structure
        outline = self.outlines.find(structure)
        if outline is None:
            values = [entry.value for entry in self.tx._entries()]
            outline = self.outlines.add(structure, self.tx, values)
        return outline

    @property
    def expanded(self) -> OptimizerRun:
        """A run of `init`, with the chain expanded for any members."""
        return self.own_outline.run

    def outline(self, settings: GroupSettings) -> Outline:
        """Return the chain of a group, expanded once for its structure, for plans: with some values, and for no step.

        Its operations tell what programs may do with a leaf.
        """
        outline = self.outlines.find(settings.structure)
        if outline is None:
            values = settings.settled
            chain = settings.chain(values, CPU)
            outline = self.outlines.add(settings.structure, chain, values.values())
        return outline

    @property
    def traits(self) -> ChainTraits:
        """The traits of the chain."""
        return self.own_outline.traits

    @functools.cached_property
    def independent_names(self) -> set[str]:
        """The names of hyperparameters that may differ between groups in any case, whatever their link is called."""
        agreeing = {name.partition("[")[0] for name in self.traits.agree}
        return {"lr", "weight_decay"} - agreeing

    @functools.cached_property
    def partners(self) -> list[Team]:
        """The teams of other ranks with which links exchange tensors in some steps."""
        operations = self.expanded.route.walk()
        return [link.partners for link in operations if link.partners is not None]

    def without_state(self) -> Members:
        """Return a copy whose members have the same names and branches, but no state."""
        members = copy(self)
        members._rows, members.every = [], []
        members.by_param = {
            param: Member(
                member.name,
                param,
                member.choices,
                owner=member.owner,
                listed=member.listed,
            )
            for param, member in self.by_param.items()
        }
        return members

    def stay(self, present: Members) -> None:
        """Let the present objects of the same members take over what these have."""
        for param, member in self.by_param.items():
            kept = present.by_param[param]
            vars(kept).update({**vars(member), "gradient_dtype": kept.gradient_dtype})
            self.by_param[param] = kept

    # Adding groups.

    def joining(self, group: Group) -> Joining:
        """Name the parameters of a new group and split it by label, without changing this object."""
        params: list[Tensor] = group["params"]
        by_param = dict(self.by_param)
        self._add(by_param, group)
        if not _are_usual(params):
            self._check_leaves(params, by_param)
        self._check_pieces(params)
        positions_of_labels = self._positions(group, by_param)
        all_settings: list[GroupSettings] = []
        whole = dict(group)
        unread: dict[str, str] = {}
        read: set[str] = set()
        for labels in sorted(positions_of_labels, key=_rank):
            # A group that is not split keeps the user's dict, as in torch.
            part = group if len(positions_of_labels) == 1 else dict(group)
            for key in ("params", "param_names"):
                if key in part and part is not group:
                    part[key] = [whole[key][i] for i in positions_of_labels[labels]]
            selected = _by_selector(labels)
            label = _joined(selected)
            new_names = {}
            # Otherwise a group of another optimizer, in the names of its branch.
            if not labels or part.get("label") != label:
                new_names = in_names_of_branch(self.tx, part, selected)
            if labels:
                part["label"] = label
            elif not params and self._has_labels():
                # Its numbers are not those of a branch, which a state dict must not hide.
                part["label"] = ""
            settings = GroupSettings(self.tx, part, selected)
            read |= {name for name in whole if new_names.get(name) is not None}
            unread.update(_unread(whole, new_names, settings))
            all_settings.append(settings)
        unread = {name: other for name, other in unread.items() if name not in read}
        return Joining(all_settings, by_param, unread)

    def _check_leaves(
        self, params: list[Tensor], by_param: Mapping[Tensor, Member]
    ) -> None:
        """Check that steps can write to parameters."""
        for param in params:
            name = by_param[param].name
            if not never_trains(param):
                check_leaf(name, param, self.who)
            if not is_lazy(param) and param.is_conj():
                raise ValueError(
                    f"{self.who}: parameter {name!r} is a conjugate view, to which steps cannot write; "
                    "pass param.resolve_conj()"
                )

    def _positions(
        self, group: Group, by_param: Mapping[Tensor, Member]
    ) -> dict[Labels, list[int]]:
        """Return the positions in a group of the parameters with each labels."""
        params: list[Tensor] = group["params"]
        if not params:
            return {self._labels_named(group.get("label")): []}
        if not self.expanded.selectors:
            return {(): list(range(len(params)))}
        positions: dict[Labels, list[int]] = {}
        with self._shown(by_param):
            for i, param in enumerate(params):
                labels = self._labels(by_param[param])
                positions.setdefault(labels, []).append(i)
        return positions

    @contextlib.contextmanager
    def _shown(self, by_param: Mapping[Tensor, Member]) -> Iterator[None]:
        """Let the chain's selectors see members inside the block."""
        run = self.expanded
        run.show(by_param)
        try:
            yield
        finally:
            run.show({})

    def _add(self, by_param: dict[Tensor, Member], group: Group) -> None:
        """Add the parameters of a group that are no members yet, named as in the model or by numbers."""
        params, listed = group["params"], group.get("param_names", ())
        if len(listed) != len(params):  # or changed from outside
            listed = [""] * len(params)
        taken = {member.name for member in by_param.values()}
        bare_names = in_model(listed) if any(listed) else listed
        for param, name, bare in zip(params, listed, bare_names, strict=True):
            if param not in by_param:
                unique = _unique(bare or NumberedName(len(by_param)), taken)
                by_param[param] = Member(unique, param, listed=name)

    def admit(self, joining: Joining) -> None:
        """Add the joining parameters and their groups."""
        self.groups.extend(joining.groups)
        self.by_param = joining.by_param
        self._rows, self.every = [], []

    def check_selectors(self) -> None:
        """Check that every pattern matches a parameter.

        Raises:
            ValueError: If a pattern matches no parameter.
        """
        for selector in self.expanded.selectors:
            try:
                selector.check_used(self.names())
            except ValueError as error:
                if "param_names" in self.groups[0].group:
                    raise
                raise ValueError(
                    f"{error}; these parameters have no names: pass model.named_parameters()"
                ) from None

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
        for operation in self.expanded.route.walk():
            if operation.traits.has_sums or not operation.traits.elementwise:
                raise ValueError(
                    f"{self.who}: these parameters are flat pieces of memory, as created by FSDP1 or DeepSpeed's "
                    f"ZeRO, but {'.'.join(operation.path)!r} depends on their shapes or sums over them; use FSDP2 "
                    "(fully_shard), or DistributedDataParallel alone"
                )

    # Changes made to the groups from outside.

    def follow(self, groups: list[Group]) -> list[Tensor] | None:
        """Update settings and members to match the present groups; an error changes nothing.

        Args:
            groups: The optimizer's `param_groups`.

        Returns:
            The parameters that others have replaced; None if groups and parameters are the same as before.

        Raises:
            TypeError, KeyError: If an entry is not a group of tensors.
            ValueError: If a parameter is in the group of another label.
        """
        if len(groups) == len(self.groups):
            for group, settings in zip(groups, self.groups, strict=True):
                params = group.get("params") if group is settings.group else None
                if type(params) is not list or not are_identical(
                    params, settings.params
                ):
                    break
            else:
                return None
        check_groups(self.who, groups)
        present = params_of(groups)
        replacements = self._replacements(groups)
        by_param = self._members_after(groups, replacements)
        if self.by_param.keys().isdisjoint(present):
            self._check_pieces(present, replaced=self.by_param)
        all_settings = self._groups_after(groups, by_param, replacements)
        for settings, group in zip(all_settings, groups, strict=True):
            if settings.group is not group:  # it has become one of a branch
                group.clear()
                group.update(settings.group)
            settings.group, settings.params = group, list(group["params"])
            if settings.labels:
                group["label"] = _joined(settings.labels)
            if "param_names" in group:
                members = [by_param[param] for param in group["params"]]
                group["param_names"] = [
                    member.listed or str(member.name) for member in members
                ]
        self.groups, self.by_param = all_settings, by_param
        self._rows, self.every = [], []
        times = Counter(present)
        self.repeated = [by_param[param].name for param in times if times[param] > 1]
        here = set(present)
        return [param for param in replacements if param not in here]

    def refuse_repeated(self) -> NoReturn:
        """Refuse a step of a parameter that is in two groups, which a state dict may describe."""
        raise ValueError(
            f"{self.who}: parameter {self.repeated[0]!r} is twice in param_groups; remove it from its old group when "
            "it moves to another"
        )

    def _replacements(self, groups: list[Group]) -> dict[Tensor, Tensor]:
        """Return the new parameter in the position of each old one, if the sizes of the groups are the same."""
        sizes = [len(settings.params) for settings in self.groups]
        if sizes != [len(group["params"]) for group in groups]:
            return {}
        replacements: dict[Tensor, Tensor] = {}
        for group, settings in zip(groups, self.groups, strict=True):
            names = [self.by_param[param].listed for param in settings.params]
            new_names = group.get("param_names", names)
            pairs = zip(
                settings.params, group["params"], names, new_names, strict=False
            )
            for old, new, name, new_name in pairs:
                if old is not new and name == new_name:
                    replacements[old] = new
        return replacements

    def _members_after(
        self, groups: list[Group], replacements: Mapping[Tensor, Tensor]
    ) -> dict[Tensor, Member]:
        """Return the members of changed groups, in the order in which they joined: lists of extras rely on it.

        A parameter that replaces another, in whose position it is, inherits its name and the selectors' decisions.
        """
        here = set(params_of(groups))
        by_param: dict[Tensor, Member] = {}
        for param, member in self.by_param.items():
            replacement = replacements.get(param)
            if param in here:
                by_param[param] = member
            elif replacement is not None and replacement not in self.by_param:
                by_param[replacement] = Member(
                    member.name, replacement, dict(member.choices), listed=member.listed
                )
        for group in groups:
            self._add(by_param, group)
        return by_param

    def _groups_after(
        self,
        groups: list[Group],
        by_param: Mapping[Tensor, Member],
        replacements: Mapping[Tensor, Tensor],
    ) -> list[GroupSettings]:
        """Return the settings of each group: that of its dict, or one like those in which its parameters were."""
        by_group = {id(settings.group): settings for settings in self.groups}
        homes: dict[Tensor, GroupSettings] = {}
        for settings in self.groups:
            for param in settings.params:
                homes[replacements.get(param, param)] = homes[param] = settings
        after: list[GroupSettings] = []
        for group in groups:
            params: list[Tensor] = list(group["params"])
            settings = by_group.get(id(group))
            if settings is None:
                labels: dict[Any, str] = {}
                alike = [homes[param] for param in params if param in homes]
                if not alike:
                    if params:
                        labels = _by_selector(self._labels(by_param[params[0]]))
                    alike = [
                        candidate
                        for candidate in self.groups
                        if candidate.labels == labels
                    ]
                settings = (
                    alike[0].of_copy(group)
                    if alike
                    else GroupSettings(self.tx, group, labels)
                )
            elif params and not (settings.params or settings.labels):
                labels = _by_selector(self._labels(by_param[params[0]]))
                settings = self._labeled(settings, labels) if labels else settings
            for param in params:
                if param not in homes or homes[param].labels != settings.labels:
                    self._check_label(by_param[param], settings)
            after.append(settings)
        return after

    def _has_labels(self) -> bool:
        return any(
            selector.branches is not None for selector in self.expanded.selectors
        )

    def _labels_named(self, label: Any) -> Labels:
        """Return the labels of a group without parameters that says its label; empty if the chain has no such label."""
        named = [
            selector
            for selector in self.expanded.selectors
            if selector.branches is not None
        ]
        if len(named) == 1 and label in named[0].branches:
            return ((named[0], label),)
        return ()

    def _labeled(
        self, settings: GroupSettings, labels: Mapping[Any, str]
    ) -> GroupSettings:
        """Return settings with labels for a group that had no parameters so far, with a dict of their own."""
        specified = settings.specified()
        group = dict(specified)
        new_names = in_names_of_branch(self.tx, group, labels)
        labeled = GroupSettings(self.tx, group, labels)
        warn_of_unread(self.who, _unread(specified, new_names, labeled))
        return labeled

    def _labels(self, member: Member) -> Labels:
        """Return the labels of a parameter; empty if it is frozen."""
        run = self.expanded
        if not run.selectors:
            return ()
        leaf = leaf_of(run, member, clock_after(0))
        try:
            return tuple(run.route.labels(leaf))
        except ValueError:
            if run.route.is_frozen(leaf):
                return ()
            raise

    def is_frozen(self, member: Member) -> bool:
        """Whether a link freezes a parameter."""
        run = self.expanded
        if not run.route.frozen:
            return False
        return run.route.is_frozen(leaf_of(run, member, clock_after(0)))

    def _check_label(self, member: Member, settings: GroupSettings) -> None:
        """Check that a parameter that has come to a group has its label, or none, as if it is frozen."""
        labels = _by_selector(self._labels(member))
        if labels and labels != settings.labels:
            raise ValueError(
                f"{self.who}: parameter {member.name!r} has the label {_joined(labels)!r}, but is in a group "
                f"of {_joined(settings.labels)!r}; the labels of partition decide how a parameter steps, so move it "
                "back, or build an optimizer with other labels"
            )

    # Lookups.

    def names(self) -> list[str]:
        return [member.name for member in self.by_param.values()]

    def drop_gradients(self) -> None:
        """Set the gradient of every parameter to None."""
        for param in self.by_param:
            if not is_lazy(param):
                param.grad = None

    def rows(self) -> list[list[Member]]:
        """Return the members of each group."""
        types = set(map(type, self.by_param))
        if types != self._types:  # `swap_tensors` may have sharded them in place
            self._types = types
            self.are_sharded = any(map(is_sharded, self.by_param))
            self.are_divided = self.are_sharded or self.replicas is not None
        if not self._rows:
            for i, settings in enumerate(self.groups):
                row = [self.by_param[param] for param in settings.params]
                for member in row:
                    member.group = i
                self._rows.append(row)
            self.every = list(itertools.chain.from_iterable(self._rows))
        return self._rows

    def clock_path(self, place: Place | None) -> Path | None:
        """Return the path of the clock that a hyperparameter's schedule follows; None for the outermost clock."""
        if place is None:
            return None
        return self.expanded.clock_path(place)


def _are_usual(params: list[Tensor]) -> bool:
    """Whether parameters are plain, dense and real, as most are."""
    return (
        TYPES.issuperset(map(type, params))
        and are_strided(params)
        and all(dtype.is_floating_point for dtype in set(map(DTYPE, params)))
    )


def _joined(labels: Mapping[Any, str]) -> str:
    return ".".join(labels.values())


def _by_selector(labels: Labels) -> dict[Any, str]:
    """Return the labels by the keys of their selectors."""
    return {selector.key: label for selector, label in labels}


def _rank(labels: Labels) -> list[int]:
    """Return the positions of the labels in their partitions, by which groups are sorted."""
    return [selector.labels.index(label) for selector, label in labels]


def _unread(
    group: Group, new_names: Mapping[str, str | None], settings: GroupSettings
) -> dict[str, str]:
    """Return the hyperparameters of a user's group that its branch does not read, with the names that it reads."""
    unread = {}
    for key in group:
        if new_names.get(key, "") is not None:
            continue
        for name, shown in new_names.items():
            if shown is None or is_same(group[key], settings.group[shown]):
                continue
            if settings.entries[shown].argument.name == key.rpartition(".")[2]:
                unread.setdefault(key, name)
    return unread


def _unique(name: str, taken: set[str]) -> str:
    """Return a name that is not taken, because leaves are identified by name, and take it."""
    unique, number = name, 0
    while unique in taken:
        number += 1
        unique = type(name)(f"{name}#{number}")
    taken.add(unique)
    return unique
