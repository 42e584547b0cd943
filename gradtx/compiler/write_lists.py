"""Generate the Python function that runs a recording over lists of leaves."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from gradtx.base import torch_names as _torch
from gradtx.base.exact import dtype_on
from gradtx.base.plain import SHAPE
from gradtx.compiler import batches
from gradtx.compiler.graph import (
    args_of,
    argument_like,
    dtype_of,
    following,
    is_list,
    is_on_device,
    is_on_host,
    is_scalar,
    operator_name,
)
from gradtx.compiler.in_place import MemoryPlan, compute_late, convert_late, copy_early
from gradtx.compiler.liveness import ALWAYS, Case, text_of
from gradtx.compiler.lower import LoweredGraph, lower
from gradtx.compiler.record import Recording
from gradtx.compiler.scalars import ScalarFunction
from gradtx.compiler.simplify import ROW, is_conversion
from gradtx.compiler.spread import Spread
from gradtx.compiler.stacked import (
    can_be_stacked,
    promoted,
    stacked,
    write_back,
    written,
)
from gradtx.compiler.text import Text, Unquoted, function_text, tuple_of
from gradtx.compiler.write_expressions import UnsuitableProgramError

aten = torch.ops.aten

# Unary operations on lists, by torch's names of the operations on tensors.
UNARY = (
    "abs acos asin atan ceil cos cosh erf erfc exp expm1 floor frac lgamma log log10 log1p log2 neg reciprocal round "
    "rsqrt sigmoid sign sin sinh sqrt tan tanh trunc"
)
# OF_ONE: a list; OF_TWO: two lists; OF_NUMBER: a list and a scalar; SUMS: two lists and a factor of the second;
# PRODUCTS: three lists and a factor. Operations on lists have the names of those on tensors.
OF_ONE = {getattr(aten, name).default for name in UNARY.split()}
OF_TWO = {
    *(aten.mul.Tensor, aten.div.Tensor),
    *(aten.maximum.default, aten.minimum.default),
}
OF_NUMBER = {
    *(aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor),
    *(aten.clamp_min.default, aten.clamp_max.default, aten.pow.Tensor_Scalar),
}
SUMS = {aten.add.Tensor, aten.sub.Tensor}
PRODUCTS = {aten.addcmul.default, aten.addcdiv.default}
# The name of an operation on lists, its operands and its options.
ListCall: TypeAlias = tuple[str, Sequence[Any], dict[str, Any]]
NORMS = ((), (2,))  # the Euclidean one
# Accept a list and a 0-d tensor. Without `alpha`, torch would read the tensor, to call the operation for numbers.
ON_TENSORS: dict[str, dict[str, Any]] = {"mul": {}, "div": {}, "add": {"alpha": 1}}
# The prefix of operations that run leaf by leaf: torch has them for lists of numbers in no version, or not in each.
EACH = "each_"
# The leaves of a call for lists, in the mean, that takes less time than one for each of them.
FEW = 4
LERPS_BY_LEAF = "ScalarList" in aten._foreach_lerp.overloads()
# In other dtypes, torch computes with numbers in more bits than a tensor of the dtype has.
EXACT_SCALARS = frozenset((torch.float32, torch.float64))

# The most entries of leaves whose temporaries a call leaves to the next one.
KEPT = 1 << 16


@dataclass(frozen=True)
class ListFunction:
    """A recording as a function of lists.

    Attributes:
        prepare: Computes the scalars that `run` uses from those given: Python scalars or 0-d tensors. Where some differ
            between leaves, `spread` does so for several sets of them.
        run: `(prepared, columns) -> results`: `columns` contains a list for each of a leaf's arguments, with one tensor
            per leaf; arguments are written in place. A result that differs by leaf is a list.
        source: The Python code of both.
        spread: Computes what `run` uses where scalars differ between leaves.
        variant: What tells functions of one text apart; nothing.
    """

    prepare: Callable[[Sequence[Any]], tuple[Any, ...]]
    run: Callable[[tuple[Any, ...], Sequence[list[Tensor]]], list[Any]]
    source: str
    spread: Spread
    variant: ClassVar[None] = None


def list_function(
    recording: Recording,
    device: torch.device,
    on_device: Collection[int] = (),
    segment: int | None = None,
    varying: Collection[int] = (),
) -> ListFunction:
    """Generate the function of a recording.

    Where scalars vary, `prepare` receives those of one set, and `Spread` turns several sets into what `run` takes.

    Args:
        recording: The operations of one leaf.
        device: The device of the leaves.
        on_device: The indices of the scalars that are 0-d tensors; the others are Python scalars.
        segment: As in `lower`.
        varying: The indices of the scalars that may differ between the leaves of a call.

    Raises:
        UnsuitableProgramError: If lists cannot run leaves with different scalars as fast as one call for each set.
    """
    lowered = lower(
        recording,
        segment,
        on_device=on_device,
        decides=not on_device,
        prefers_norms=True,
        of_rows=not batches.batches_on(device),
    )
    return _Writer(lowered, device, varying).function()


class _Writer(Text):
    """Generate one line for each operation on lists, in order."""

    def __init__(
        self, lowered: LoweredGraph, device: torch.device, varying: Collection[int] = ()
    ):
        super().__init__(device)
        self._lowered = lowered
        compute_late(lowered.graph)
        conversions = list(filter(is_conversion, lowered.nodes))
        if conversions and not batches.batches_on(device):
            # Where temporaries are to stay in a cache.
            convert_late(conversions, lowered.needs)
            copy_early(lowered.graph)
        self._nodes = lowered.nodes
        self._needs = lowered.needs
        # The scalars that differ between leaves; the others among them than those that decide what is skipped, on which
        # leaves of a call agree, are lists where the program runs; and the names of these as tensors.
        self._of_sets: list[Node] = []
        self._varying: list[Node] = []
        if varying:
            self._of_sets = self._following([lowered.arguments[i] for i in varying])
            deciding = self._deciding()
            self._varying = [node for node in self._of_sets if node not in deciding]
        self._varying_tensors: dict[tuple[Node, torch.dtype], str] = {}
        self._is_in_run = True
        self._lines: list[str] = []  # of the function that is being generated
        self.namespace.update(
            converted=_converted,
            filled=_filled,
            promoted=promoted,
            stacked=stacked,
            write_back=write_back,
            norm=torch.linalg.vector_norm,
            norm_of_many=_norm_of_many,
            batched=batches.batched,
        )
        # The case of the latest lines, and the number of lines after them.
        self._block: tuple[Case, int] = (ALWAYS, 0)
        # For each operation that writes into an operand, that operand.
        self._operands: dict[Node, Node] = {}
        # For each operation that runs on batches of leaves, all operations of its batch.
        self._batches: dict[Node, list[Node]] = {}
        if batches.batches_on(device):
            for batch in batches.batches_of(
                self._nodes, self._runs_at_once, self._case_in_batch
            ):
                self._batches.update(dict.fromkeys(batch, batch))
        self._memory = MemoryPlan(lowered.graph, self._can_write_in_place, self._needs)
        self._operands = self._memory.operand
        self._is_stacked = self._can_be_stacked()
        # Where the results of conversions stay, to be overwritten by those of the next call.
        self._places: dict[Node, int] = {}
        if not self._of_sets and not batches.batches_on(device):
            conversions = list(filter(is_conversion, self._nodes))
            self._places = self._memory.places(conversions, lowered.results)

    def _can_be_stacked(self) -> bool:
        """Whether leaves of no dimension may be the entries of vectors, with the same results."""
        if self._of_sets or batches.batches_on(self.device):
            return False
        if any(node.meta["val"].ndim for node in self._lowered.leaves):
            return False
        return can_be_stacked(self._lowered) and all(
            self._foreach_call(node) is not None
            for node in self._nodes
            if node.op == "call_function" and is_list(node) and not is_conversion(node)
        )

    # Scalars that differ between leaves.

    def _following(self, varying: list[Node]) -> list[Node]:
        """Return the scalars that follow from some, in order.

        Raises:
            UnsuitableProgramError: If other values that leaves share do, too.
        """
        reached = following(self._lowered.graph, varying)
        for node in reached:
            if node.op == "call_function" and node.meta["kind"] == "tensor":
                raise UnsuitableProgramError("what leaves share follows from scalars")
        return [
            node
            for node in self._nodes
            if node in reached and node.op != "output" and is_scalar(node)
        ]

    def _deciding(self) -> set[Node]:
        """Return the scalars that say which operations are skipped."""
        selections = filter(self._needs.select, self._nodes)
        conditions = {args_of(node)[0] for node in selections}
        return conditions | self._needs.conditions

    def _varies(self, value: Any) -> bool:
        return isinstance(value, Node) and value in self._varying

    def as_tensor(self, scalar: Node, dtype: torch.dtype) -> str:
        name = super().as_tensor(scalar, dtype)
        if self._is_in_run and self._varies(scalar) and not is_on_device(scalar):
            # `spread` creates those of all sets at once.
            dtype = dtype_on(self.device, dtype)
            self._varying_tensors[scalar, dtype] = self.tensors.pop((scalar, dtype))
        return name

    def _refuse_varying(self, *values: Any) -> None:
        """Refuse scalars that differ between leaves where a GPU computes less with one call for each set.

        Raises:
            UnsuitableProgramError: If there are some.
        """
        if batches.batches_on(self.device) and any(map(self._varies, values)):
            raise UnsuitableProgramError("leaves have different scalars, one by one")

    def _by_leaf_function(
        self, scalars: ScalarFunction, body: list[str]
    ) -> ListFunction:
        """Return the function of leaves with scalars of their own, given its lines."""
        words = set(re.findall(r"\w+", "\n".join(body)))
        of_sets = {node.name for node in self._of_sets}
        of_sets.update(
            x for (node, _), x in self.tensors.items() if node.name in of_sets
        )
        varying = {node.name for node in self._varying}
        varying.update(x for (node, _), x in self.tensors.items() if self._varies(node))
        names = [name for name in scalars.names if name in words]
        shared = [name for name in names if name not in of_sets]
        decisions = [name for name in names if name in of_sets - varying]
        lists = [name for name in names if name in varying]
        tensors = self._varying_tensors
        by_set = [*decisions, *lists, *(node.name for node, _ in tensors)]
        source = scalars.text_of_sets(self._of_sets, shared, by_set)
        head = tuple_of([*shared, *decisions, *lists, *tensors.values()])
        run = function_text("run(prepared, columns)", [f"{head} = prepared", *body])
        source = f"{source}\n\n{run}"
        exec(compile(source, "<gradtx list program by row>", "exec"), self.namespace)
        dtypes = [dtype for _, dtype in tensors]
        prepare = self.namespace["prepare_sets"]
        spread = Spread(prepare, len(decisions), dtypes, self.device)
        return ListFunction(_as_they_are, self.namespace["run"], source, spread)

    def name_of(self, node: Node, function: Any) -> str:
        if node in self._batches and function is aten.addmm.default:
            function = _torch.added_products
        return super().name_of(node, function)

    def _runs_at_once(self, node: Node) -> bool:
        """Whether a GPU runs an operation for all leaves at once: operands of different shapes prevent that."""
        if self._foreach_call(node) is None:
            return False
        lists = filter(is_list, node.all_input_nodes)
        return len({item.meta["val"].shape for item in lists}) == 1

    def _can_write_in_place(self, node: Node) -> bool:
        if node in self._batches or node.target is aten.copy_.default:
            return False
        call = self._foreach_call(node)
        return call is not None and call[0] != "norm"

    def _case_in_batch(self, node: Node) -> Case | None:
        """Return the case of an operation; None for those that batches exclude."""
        if node not in self._needs or _torch.writes(node.target):
            return None
        if node.target is aten.view.dtype:
            return None  # before torch 2.13, `vmap` has no rule for it
        if self._needs.select(node):
            return None  # one operand may not have been computed
        return self._needs.of(node)

    def function(self) -> ListFunction:
        body = self._run()  # first, because it determines which scalars must be tensors
        self._is_in_run = False
        places = {"places": "{}"} if self._places else None
        scalars = ScalarFunction(self._lowered, self, places)
        if self._of_sets:
            return self._by_leaf_function(scalars, body)
        head = f"{tuple_of(scalars.names)} = prepared"
        run = function_text("run(prepared, columns)", [head, *body])
        source = f"{scalars.text}\n\n{run}"
        exec(compile(source, "<gradtx list program>", "exec"), self.namespace)
        functions = self.namespace["prepare"], self.namespace["run"]
        return ListFunction(*functions, source, Spread(_first, 0, (), self.device))

    def _run(self) -> list[str]:
        """Generate the lines that compute lists."""
        self._lines = []
        leaves = [node.name for node in self._lowered.leaves]
        if leaves:
            self._lines.append(f"{tuple_of(leaves)} = columns")
        if self._is_stacked:
            self._lines += [f"of_{x}, {x} = {x}, stacked({x})" for x in leaves]
        calls = [node for node in self._nodes if node.op == "call_function"]
        for node in calls:
            if not is_list(node) and not is_scalar(node):
                self._assign(node, self.shared(node))
        for node in calls:
            if node not in self._batches:
                if is_list(node):
                    self._write_conditionally(node)
            elif node is self._batches[node][0]:
                self._write_batch(self._batches[node])
        if self._is_stacked:
            names = [leaf.name for leaf in written(self._lowered.leaves)]
            self._lines += [f"write_back(of_{x}, {x})" for x in names]
        results = ", ".join(self._results())
        return [*self._lines, f"return [{results}]"]

    def _results(self) -> list[str]:
        """Return the code of the results: lists that share memory, or are parts of what theirs holds, are copied."""
        taken: set[Node] = set(self._lowered.leaves)
        texts = []
        for result in self._lowered.results:
            text = self.text(result)
            if is_list(result):
                roots = self._memory.roots(result)
                cases: list[Case] = []
                for root, case in roots.items():
                    if root in taken or _is_part(result, root):
                        cases.append(case)
                text = _cloned(text, cases)
                taken |= roots.keys()
            elif not is_scalar(result):
                text = f"{text}.clone()"
            elif self._varies(result):
                name = self.as_tensor(result, dtype_of(result))
                text = f"[item.clone() for item in {name}]"
            texts.append(text)
        return texts

    def _write_conditionally(self, node: Node) -> None:
        """Generate an operation on lists, if it is needed, and delete lists that no later operation reads."""
        if node not in self._needs or node in self._memory.elided_copies:
            return
        case = self._needs.of(node)
        dead = [item for item in self._memory.freed_after(node) if item in self._needs]
        outside, self._lines = self._lines, []
        self._write(node)
        self._delete([item for item in dead if self._needs.of(item) == case])
        body, self._lines = self._lines, outside
        self._add(body, case)
        self._delete([item for item in dead if self._needs.of(item) != case])

    def _add(self, lines: Sequence[str], case: Case) -> None:
        """Add lines that run in one case."""
        if case == ALWAYS:
            self._lines.extend(lines)
            return
        if self._block != (case, len(self._lines)):
            self._lines.append(f"if {text_of(case)}:")
        self._lines.extend(f"    {line}" for line in lines)
        self._block = (case, len(self._lines))

    def _delete(self, nodes: Sequence[Node]) -> None:
        temporaries = [
            node.name for node in nodes if node.op == "call_function" and is_list(node)
        ]
        if temporaries:
            self._lines.append(f"{' = '.join(temporaries)} = None")

    def _write(self, node: Node) -> None:
        if is_conversion(node):
            self._assign(node, self._conversion_of(node))
            return
        if self._tests_for_zero(node):
            # In a tenth of the time of a comparison, which torch does not vectorize.
            self._assign(node, f"converted({self.text(node.args[0])}, torch.bool)")
            return
        foreach_call = self._foreach_call(node)
        if foreach_call is None:
            self._assign(node, self._loop_over_leaves(node))
            return
        name, *operands = foreach_call
        if self._is_stacked and node.target is not aten.copy_.default:
            operands = self._promoted(node, operands)
        if name == "norm" and not batches.batches_on(self.device):
            norm = f"norm_of_many(x) if x.numel() > {ROW} else norm(x)"
            self._assign(node, f"[{norm} for x in {operands[0]}]")
            return
        target = self._operands.get(node)
        if node.target is aten.copy_.default:
            target = node.args[0]
        if target is None:
            self._assign(node, f"{self._on_lists(name)}({', '.join(operands)})")
            return
        self._lines.append(f"{self._on_lists(f'{name}_')}({', '.join(operands)})")
        self._assign(node, self.text(target))

    def _conversion_of(self, node: Node) -> str:
        """Return the code of a conversion to another dtype."""
        operands = f"{self.text(node.args[0])}, {self.text(node.kwargs['dtype'])}"
        if node in self._places:
            operands += f", places, {self._places[node]}"
        return f"converted({operands})"

    def _promoted(self, node: Node, operands: list[str]) -> list[str]:
        """Return operands, the first of which has the dtype of the result, as it would have it without a dimension."""
        first, *others = operands
        arguments = filter(is_list, node.all_input_nodes)
        if node in self._operands or {dtype_of(node)} == set(map(dtype_of, arguments)):
            return operands
        return [f"promoted({first}, {self.text(dtype_of(node))})", *others]

    def _tests_for_zero(self, node: Node) -> bool:
        """Whether an operation on a CPU asks which entries are not zero; those that are not a number are not."""
        if node.target is not aten.ne.Scalar or batches.batches_on(self.device):
            return False
        x, value = args_of(node)
        is_usual = is_list(x) and dtype_of(x) in (torch.float32, torch.float64)
        return is_usual and not isinstance(value, Node) and value == 0

    def _assign(self, node: Node, text: str) -> None:
        self._lines.append(f"{node.name} = {text}")

    # Lists.

    def _on_lists(self, name: str) -> str:
        """Return the name of an operation on lists in the program."""
        if name.startswith(EACH):
            function = _each if "lerp" in name else _each_with_factor
            self.namespace[name] = functools.partial(function, name.removeprefix(EACH))
            return name
        self.namespace[f"foreach_{name}"] = _torch.on_lists(name)
        return f"foreach_{name}"

    def _foreach_call(self, node: Node) -> list[str] | None:
        """Return the operation on lists and its operands as text; None if torch has none that writes in place."""
        list_call = self._list_call(node)
        if list_call is None:
            return None
        name, operands, options = list_call
        if any(map(is_on_device, options.values())):
            return None  # the options of operations on lists are Python scalars
        if name != "norm" and _torch.on_lists(f"{name}_") is None:
            return None
        if self._varying:
            name, options = self._by_leaf(name, operands, options)
        texts = [f"{option}={self.text(value)}" for option, value in options.items()]
        return [name, *map(self.text, operands), *texts]

    def _by_leaf(
        self, name: str, operands: Sequence[Any], options: dict[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        """Return the operation on lists, and its options, that takes lists of scalars where these differ."""
        if any(map(self._varies, options.values())):
            if "value" in options:
                return name, {"scalars": options["value"]}
            self._refuse_varying(*options.values())
            return f"{EACH}{name}", options
        if name == "lerp" and self._varies(operands[2]) and not LERPS_BY_LEAF:
            self._refuse_varying(operands[2])
            return f"{EACH}{name}", options
        return name, options

    def _list_call(self, node: Node) -> ListCall | None:
        """Return the call that runs an operation on lists; None if there is none."""
        target, args, kwargs = node.target, node.args, node.kwargs
        name = operator_name(node).removesuffix("_")
        if target is aten.copy_.default or target in PRODUCTS:
            return (name, args, dict(kwargs)) if all(map(is_list, args)) else None
        if target in OF_ONE:
            return name, args[:1], {}
        if target is aten.linalg_vector_norm.default and args[1:] in NORMS:
            return "norm", args[:1], {}
        if target is aten.lerp.Scalar:
            return (name, args, {}) if all(map(is_list, args[:2])) else None
        if len(args) < 2:
            return None
        if not all(map(is_list, args[:2])):
            return self._list_call_with_scalar(node)
        operands = args[:2]
        if self._operands.get(node) is args[1]:
            operands = operands[::-1]  # the one that is written comes first
        if target in OF_TWO and not kwargs:
            return name, operands, {}
        if target in SUMS:
            return name, operands, dict(kwargs)
        return None

    def _list_call_with_scalar(self, node: Node) -> ListCall | None:
        """Return the call that runs an operation on a list and a scalar; None if there is none."""
        first, second, *_ = args_of(node)
        if is_list(second) and node.target in (aten.mul.Tensor, aten.add.Tensor):
            first, second = second, first
        if node.kwargs or node.target not in OF_NUMBER:
            return None
        if not is_list(first) or not is_scalar(second):
            return None
        name = operator_name(node)
        options: dict[str, Any] = {}
        dtype = dtype_of(first)
        if dtype_of(node) != dtype:
            # A scalar has the dtype of the result where leaves have no dimension.
            if name not in ON_TENSORS or batches.batches_on(self.device):
                return None
            dtype = dtype_of(node)
            if not isinstance(second, Node) or dtype_of(second) != dtype:
                return None
        is_better = self._is_better_as_tensor(second, dtype)
        if name in ON_TENSORS and (is_better or is_on_device(second)):
            # In the dtype of the list, as GPUs need it to compute all at once.
            self._refuse_varying(second)
            second, options = Unquoted(self.as_tensor(second, dtype)), ON_TENSORS[name]
        elif is_on_device(second):
            return None
        return name, (first, second), options

    def _is_better_as_tensor(self, scalar: Any, dtype: torch.dtype) -> bool:
        """Whether operations on lists in a dtype are faster with a 0-d tensor of this dtype than with a number.

        On CPUs, torch converts a number to a tensor for each leaf, which takes longer than operations on small leaves.
        """
        is_cpu = self.device.type == "cpu"
        return (
            is_cpu
            and isinstance(scalar, Node)
            and is_on_host(scalar)
            and dtype in EXACT_SCALARS
        )

    def _loop_over_leaves(self, node: Node) -> str:
        """Return the code of an operation that runs leaf by leaf."""
        if self._needs.select(node):
            return self._selection(node)
        self._refuse_varying(*node.all_input_nodes)
        lists: dict[Node, str] = {}
        for argument in node.all_input_nodes:
            if is_list(argument):
                lists[argument] = f"{argument.name}_"
        call = f"{self.name_of(node, node.target)}({self.arguments(node, lists)})"
        if _fills(node):
            # A copy of a 0-d tensor would send it to the device.
            leaf, scalar = node.args
            call = f"{lists[leaf]}.fill_({self.text(scalar)})"  # type: ignore[index]
        call, scalars = self._with_own_scalars(call)
        names = ", ".join([*lists.values(), *(f"{name}_" for name in scalars)])
        columns = [argument.name for argument in lists] + scalars
        over = ", ".join(columns)
        if len(columns) > 1:
            over = f"zip({over}, strict=True)"
        return f"[{call} for {names} in {over}]"

    def _with_own_scalars(self, call: str) -> tuple[str, list[str]]:
        """Return a call for one leaf with the names of its scalars, and those of the lists with the scalars of all."""
        tensors = [
            name
            for (node, _), name in (
                *self.tensors.items(),
                *self._varying_tensors.items(),
            )
            if self._varies(node)
        ]
        scalars: list[str] = []
        for name in (*(node.name for node in self._varying), *tensors):
            own = re.sub(rf"\b{name}\b", f"{name}_", call)
            if own != call:
                scalars.append(name)
            call = own
        return call, scalars

    def _selection(self, node: Node) -> str:
        """Return the code that selects one of two operands; the other may not have been computed."""
        condition, x, y = node.args
        for met, truth in self._needs.of(node):
            if met is condition:
                return self._branch(node, x if truth else y)
        return f"{self._branch(node, x)} if {self.text(condition)} else {self._branch(node, y)}"

    def _branch(self, node: Node, operand: Any) -> str:
        """Return an operand of a selection as a list."""
        shape = argument_like(node)
        if is_list(operand) or shape is None:
            return self.text(operand)
        function = "filled"
        if self._varies(operand):
            function = "filled_each"
            self.namespace[function] = _filled_each
        return f"{function}({shape.name}, {self.text(operand)})"

    # Batches.

    def _write_batch(self, batch: list[Node]) -> None:
        """Generate a function of one leaf and the call that applies it to all leaves, if they are needed."""
        members = set(batch)
        arguments: dict[Node, None] = {}
        outputs: list[str] = []
        dead_after_batch: list[Node] = []  # lists that are not needed after the batch
        outside, self._lines = self._lines, []
        for node in batch:
            self._refuse_varying(*node.all_input_nodes)
            self._assign(node, self.shared(node) + self._conversion(node))
            for item in node.all_input_nodes:
                if is_list(item) and item not in members:
                    arguments[item] = None
            if not node.users.keys() <= members:
                outputs.append(node.name)
            dead = self._memory.freed_after(node)
            self._delete([item for item in dead if item in members])
            dead_after_batch.extend(item for item in dead if item not in members)
        body, self._lines = self._lines, outside
        limit = self.text(batches.most_entries(batch, arguments))
        unit = batches.unit_of(batch, arguments)
        columns = ", ".join(map(self.text, arguments))
        lines = [
            f"def batch({columns}):",
            *(f"    {line}" for line in body),
            f"    return {tuple_of(outputs)}",
            f"{tuple_of(outputs)} = batched({limit}, {unit!r}, batch, {columns})",
        ]
        self._add(lines, self._needs.of(batch[0]))
        self._delete(dead_after_batch)

    def _conversion(self, node: Node) -> str:
        """Return the code that converts a result of mixed operands, which `vmap` promotes in its own way."""
        value = node.meta["val"]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return ""
        values = [item.meta["val"] for item in node.all_input_nodes]
        dtypes = {item.dtype for item in values if isinstance(item, Tensor)}
        is_mixed = dtypes - {value.dtype, torch.bool}
        return f".to({self.text(value.dtype)})" if is_mixed else ""


def _first(sets: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Return what equal sets share, which is all that is prepared."""
    return sets[0], []


def _as_they_are(scalars: Sequence[Any]) -> Any:
    """Return scalars, from which `Spread` computes the others."""
    return scalars


def _fills(node: Node) -> bool:
    """Whether an operation writes a scalar of the same dtype into a slot."""
    if node.target is not aten.copy_.default:
        return False
    slot, scalar = node.args
    is_computed = isinstance(scalar, Node) and is_on_host(scalar)
    return is_computed and is_list(slot) and dtype_of(scalar) == dtype_of(slot)


def _is_part(node: Node, root: Node) -> bool:
    """Whether a list has only some entries of the memory of another one, or some of them several times."""
    whole = root.meta["val"]
    if not isinstance(whole, Tensor):  # of several results, each has its own
        return False
    return node.meta["val"].numel() != whole.numel()


def _cloned(text: str, cases: Sequence[Case]) -> str:
    """Return the code of a list that is copied in some cases."""
    if not cases:
        return text
    copied = f"[item.clone() for item in {text}]"
    if ALWAYS in cases:
        return copied
    conditions = " or ".join(map(text_of, cases))
    return f"{copied} if {conditions} else {text}"


def _converted(
    tensors: list[Tensor],
    dtype: torch.dtype,
    places: dict[int, list[Tensor]] | None = None,
    place: int = 0,
) -> list[Tensor]:
    """Convert tensors to another dtype with one list operation, which takes half as long as one call per tensor.

    They are converted in the memory that the last call has left at a place, if there are places and it has their
    layouts.
    """
    results: list[Tensor] = places.get(place, []) if places else []
    if not (results and _are_alike(results, tensors)):
        results = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
        if places is not None and tensors[0].numel() <= KEPT:
            places[place] = results
    _torch.copy_each_(results, tensors)
    return results


def _are_alike(xs: list[Tensor], ys: list[Tensor]) -> bool:
    """Whether tensors have these shapes and strides; it calls no function of Python for each."""
    have_shapes = list(map(SHAPE, xs)) == list(map(SHAPE, ys))
    return have_shapes and list(map(Tensor.stride, xs)) == list(map(Tensor.stride, ys))


def _norm_of_many(x: Tensor) -> Tensor:
    """Return the norm of the norms of short rows: torch adds the squares of a row one after the other."""
    while (size := x.numel()) > ROW:
        entries, rest = x.reshape(-1), size % ROW  # in any order
        of_rows = torch.linalg.vector_norm(entries[rest:].view(-1, ROW), dim=1)
        if rest:
            of_rest = torch.linalg.vector_norm(entries[:rest], keepdim=True)
            of_rows = torch.cat((of_rest, of_rows))
        x = of_rows
    return torch.linalg.vector_norm(x)


def _filled(shapes: list[Tensor], scalar: Any) -> list[Tensor]:
    return [torch.full_like(shape, scalar) for shape in shapes]


def _filled_each(shapes: list[Tensor], scalars: list[Any]) -> list[Tensor]:
    return list(map(torch.full_like, shapes, scalars))


def _each(name: str, *columns: list[Any]) -> list[Tensor]:
    """Call an operation for each leaf."""
    return list(map(getattr(Tensor, name), *columns))


def _each_with_factor(
    name: str, xs: list[Tensor], ys: list[Tensor], alpha: Sequence[Any]
) -> list[Tensor]:
    """Call an operation for each leaf, with a factor of its own; leaves with the same one share a call if many do."""
    leaves_of: dict[Any, list[int]] = {}
    for leaf, factor in enumerate(alpha):
        leaves_of.setdefault(factor, []).append(leaf)
    # Zeros of both signs are equal.
    if FEW * len(leaves_of) > len(xs) or 0 in leaves_of:
        function: Callable[..., Tensor] = getattr(Tensor, name)
        rows = zip(xs, ys, alpha, strict=True)
        return [function(x, y, alpha=factor) for x, y, factor in rows]
    on_lists: Any = _torch.on_lists(name)
    results = list(xs)
    for factor, leaves in leaves_of.items():
        own = [list(map(column.__getitem__, leaves)) for column in (xs, ys)]
        of_call = on_lists(*own, alpha=factor) or own[0]  # nothing, of those in place
        for leaf, result in zip(leaves, of_call, strict=True):
            results[leaf] = result
    return results
