"""Write a lowered graph as C++ kernels, whose loops the compiler vectorizes, and one function that runs them in order.

A row is the entries that have one value, such as those of one channel. Reductions over rows divide the loop over each
row into passes, of which the last one writes; a chunk contains whole rows.

Several kernels run for a few leaves before they run for the next ones, so that what one of them reads is still in a
cache when the next one reads it. Each thread takes leaves of its own; the few largest ones are divided among threads.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from gradtx.compiler.graph import dtype_of, is_scalar
from gradtx.compiler.liveness import Liveness
from gradtx.compiler.write_cpp_expressions import (
    HALVES,
    IDENTITIES,
    OF_HALVES,
    PART,
    PRELUDE,
    PRELUDE_OF_ROWS,
    TRANSPOSITIONS,
    Total,
    both,
    kept_type,
    prefetched,
)
from gradtx.compiler.write_cpp_tiles import CppTiles
from gradtx.compiler.write_kernels import (
    Combine,
    Kernel,
    Needed,
    Write,
    kind_of,
)

IN_PARALLEL = "#pragma omp parallel for num_threads(threads) if(threads > 1)\n"
# Each thread has this many parts of the leaves at least; larger leaves are divided among threads.
PARTS = 8
# The entries of leaves that run together.
CACHED = 1 << 16
# The chunks of a leaf; one without entries may have none.
CHUNKS = "a.leaf_chunks[leaf + 1] - first"


class CppWriter(CppTiles):
    """Write C++ functions: loops over the rows of a chunk and the entries of each, or over its entries alone."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._exponents: set[int] = set()  # the indices of scalars that are exponents
        if self._by_row:
            self._words_at = "words"

    def _joined(self, functions: Sequence[str]) -> str:
        if self._groups.tile is not None:
            functions = [TRANSPOSITIONS, *functions]
        conditions = {} if self._by_row else self._conditions
        words = len(self._scalars) if self._by_row else None
        return program_of(functions, self._kernels, conditions, self._exponents, words)

    @functools.cached_property
    def _conditions(self) -> dict[str, str]:
        """Return when kernels before the last stage run: scalars may say that nothing reads what they compute."""
        conditions: dict[str, str] = {}
        needs = Liveness(self._lowered.graph, decides=True)
        for depth, combine in enumerate(self._combines):
            stage = [x for x in self._partial if self._depths[x] == depth + 1]
            kept = itertools.chain.from_iterable(combine.sweeps)
            if not self._early.get(depth):
                conditions[f"stage{depth}"] = self._condition(needs, stage)
            if not combine.stores:
                condition = self._condition(needs, [*stage, *kept])
                conditions[combine.name] = condition
        return {name: code for name, code in conditions.items() if code}

    def _condition(self, needs: Liveness, nodes: Iterable[Node]) -> str:
        """Return the code of what scalars say whenever one of some values is read; empty if that is nothing."""
        cases = [needs.of(node) for node in nodes if node in needs]
        tests = []
        for scalar, truth in cases[0].intersection(*cases[1:]) if cases else ():
            if scalar in self._scalars:
                word = f"{self._words_at}[{self._scalars.index(scalar)}]"
                tests.append(f"{word} != 0" if truth else f"{word} == 0")
        return " && ".join(sorted(tests))

    def _power(self, operands: list[str], args: Any, dtype: torch.dtype) -> str:
        base, exponent = args
        is_shared = isinstance(exponent, Node) and is_scalar(exponent)
        if not is_shared or not self._is_in_stage(self._extent(base)):
            return super()._power(operands, args, dtype)
        self._exponents.add(self._scalars.index(exponent))
        return self._call("power", operands)

    # Indices.

    def _head(self, kernel: str) -> list[str]:
        """Return the lines that load the sizes of a leaf, and scalars."""
        lines = self._own_words(kernel) if self._by_row else []
        names = [*(f"n{i}" for i in self._full), "per", "parts"]
        for row, name in enumerate(names):
            code = f"a.blocks[{row} * a.n_leaves + leaf]"
            if row == self._last and self._fixed_row:
                code = str(self._fixed_row)
            lines.append(f"const int64_t {name} = {code};")
        inner = f"const int64_t inner = {self._inner};"
        lines.append(f"{inner}  // rows of an index of the first group")
        lines.append("const int64_t first = a.leaf_chunks[leaf];")
        return [*lines, *self._words()]

    def _own_words(self, kernel: str) -> list[str]:
        """Return the lines that find the scalars of a leaf, and leave it out if it is absent or they say so."""
        lines = [
            "const int64_t set = a.which[leaf];",
            "if (set < 0) continue;",
            f"const int64_t* const words = a.words + set * {len(self._scalars)};",
        ]
        condition = self._conditions.get(kernel)
        return [*lines, f"if (!({condition})) continue;"] if condition else lines

    def _memory(self, needed: Needed, stored: Sequence[Write]) -> list[str]:
        """Return the lines that load the addresses of arguments and of values that are kept."""
        lines = self._pointers(self._memory_rows(needed.read, stored))
        return [*lines, *map(self._kept_memory, needed.kept)]

    def _kept_memory(self, node: Node) -> str:
        """Return the line that finds a value that is kept."""
        return _address(
            f"k{self._kept.index(node)}", self._layout_row(node), kept_type(node)
        )

    def _loads(self, needed: Needed) -> dict[Node, str]:
        """Return the line of each value that a kernel loads or computes."""
        lines = {}
        for node in (*needed.read, *needed.kept):
            pointer, _ = self._address_of(node)
            place = f"{pointer}[{self._index(self._extent(node))}]"
            lines[node] = self._load(node, place)
        for node in needed.computed:
            lines[node] = self._lines[node]
        return lines

    # Stages.

    def _stage(self, name: str, stored: Sequence[Write], stage: Sequence[Node]) -> str:
        outputs = [store.node for store in stored]
        needed = self._needed([*outputs, *map(self._operand_of, stage)])
        code = self._loads(needed)
        lines = [
            *self._of_chunk(name),
            *self._memory(needed, stored),
            *self._partial_memory(stage),
            *(line for node, line in code.items() if not self._extent(node)),
        ]
        if self._groups.tile is not None:
            return by_chunk(name, [*lines, *self._tiles(needed, stored, stage)])
        of_leaf = [node for node in stage if not self._extent(node)]
        lines += [self._total(node).start() for node in of_leaf]
        if len(self._full) == 1:
            lines += self._parts(needed.read)
            lines += [*self._loop(code, "low", "high", stored, stage), "}"]
        else:
            lines.append("for (int64_t row = start; row < stop; row++) {")
            lines += self._coordinates(self._counted[1:])
            lines += self._row(code, stored, stage)
            lines.append("}")
        for node in of_leaf:
            j = self._partial.index(node)
            lines.append(f"y{j}[0] = {self._total(node).end()};")
        return by_chunk(name, lines)

    def _of_chunk(self, kernel: str) -> list[str]:
        """Return the lines that find the leaf of a chunk, and its rows or entries."""
        return [
            "const int64_t leaf = a.chunk_leaf[pid], start = a.chunk_start[pid];",
            *self._head(kernel),
            "const bool is_last = pid + 1 == a.leaf_chunks[leaf + 1];",
            "const int64_t stop = is_last ? n0 * inner : a.chunk_start[pid + 1];",
        ]

    def _partial_memory(self, stage: Sequence[Node]) -> list[str]:
        """Return the lines that find the partial values of a chunk and set them to those of no entries."""
        lines = []
        for node in stage:
            j, width = self._partial.index(node), self._width(node)
            lines.append(self._all_partial(node))
            kind = self._total(node).type
            lines.append(f"{kind}* const y{j} = all{j} + (pid - first) * ({width});")
            if self._extent(node) or self._groups.tile is not None:
                loop = f"for (int64_t k = 0; k < {width}; k++)"
                lines.append(f"{loop} y{j}[k] = {IDENTITIES[kind_of(node)]};")
        return lines

    def _all_partial(self, node: Node) -> str:
        """Return the line that finds the partial values of all chunks."""
        name = f"all{self._partial.index(node)}"
        return _address(name, self._partial_row(node), self._total(node).type)

    def _parts(self, read: Sequence[Node]) -> list[str]:
        """Return the start of a loop over parts of a chunk, which asks for later entries if one argument is read."""
        entries = [leaf for leaf in read if self._extent(leaf) == self._full]
        if len(entries) != 1:
            return ["{", "const int64_t low = start, high = stop;"]
        pointer = f"p{self._leaves.index(entries[0])}"
        return [
            f"for (int64_t low = start; low < stop; low += {PART}) {{",
            f"const int64_t high = low + {PART} < stop ? low + {PART} : stop;",
            prefetched(entries[0], pointer, "low", "high"),
        ]

    def _row(
        self, code: dict[Node, str], stored: Sequence[Write], stage: Sequence[Node]
    ) -> list[str]:
        """Return the passes over a row, of which the last one writes entries, and the lines of values of the row."""
        lines: list[str] = []
        nodes = [node for node in code if self._extent(node)]
        length = f"n{self._last}"
        for of_pass in self._passes(nodes):
            totals = [node for node in of_pass if node in self._of_rows]
            if totals:
                lines += [self._total(node).start() for node in totals]
                lines += self._loop(code, "0", length, (), totals)
                for node in totals:
                    total = f"{self._names[node]}_total = {self._total(node).end()};"
                    lines.append(f"const double {total}")
            lines += [code[x] for x in of_pass if self._last not in self._extent(x)]
        of_rows = [x for x in stored if self._last not in self._extent(x.like)]
        entries = [x for x in stored if x not in of_rows]
        reduced = [x for x in stage if self._last in self._extent(self._operand_of(x))]
        if entries or reduced:
            lines += self._prefetched(code)
            lines += self._loop(code, "0", length, entries, reduced)
        lines += [self._total(x).update() for x in stage if x not in reduced]
        return [
            *lines,
            *(self._stored(x, f"p{x.row}[{self._index((0,))}]") for x in of_rows),
        ]

    def _loop(
        self,
        code: dict[Node, str],
        low: str,
        high: str,
        stored: Sequence[Write],
        reduced: Sequence[Node],
    ) -> list[str]:
        """Return a loop over the entries of a row, or of a part of a chunk, which writes some and reduces others."""
        outputs = [*(x.node for x in stored), *map(self._operand_of, reduced)]
        needed = self._needed(outputs)
        nodes = (*needed.read, *needed.kept, *needed.computed)
        nodes = [node for node in nodes if self._last in self._extent(node)]
        strips = Strips(f"c{self._last}", low, high)
        body = [self._of_entry(node, code, strips) for node in nodes]
        before, after, clauses = [], [], ""
        for node in reduced:
            total, extent = self._total(node), self._extent(node)
            j = self._partial.index(node) if node in self._partial else 0
            target = f"y{j}[{self._index(extent, 'own')}]"
            if self._last in extent:
                body.append(f"{target} = {both(total, target, total.value)};")
                continue
            clauses += total.clause()
            body.append(total.update())
            if extent and node in self._partial:  # of a leaf, or of this row alone
                before.append(total.start())
                after.append(f"{target} = {both(total, target, total.end())};")
        body += [self._stored_entry(x, strips) for x in stored]
        return [*before, *strips.loops(clauses, body), *after]

    def _of_entry(self, node: Node, code: Mapping[Node, str], strips: Strips) -> str:
        """Return the line that loads or computes a value in a loop over entries."""
        if node not in self._leaves or dtype_of(node) != torch.float16:
            return code[node]
        row = self._leaves.index(node)
        place = strips.widened(row, self._index(self._extent(node)))
        return f"const float x{row} = {place};"

    def _stored_entry(self, store: Write, strips: Strips) -> str:
        """Return the line that writes a value in a loop over entries."""
        index = self._index(self._full)
        if dtype_of(store.like) != torch.float16:
            return self._stored(store, f"p{store.row}[{index}]")
        place = strips.narrowed(store.row, index)
        return f"{place} = unrounded({self._names[store.node]});"

    def _prefetched(self, code: Iterable[Node]) -> list[str]:
        """Return a loop that asks for what comes after a row of a grid if entries of one argument are read."""
        entries = [
            x for x in code if x in self._leaves and self._extent(x) == self._full
        ]
        if len(entries) != 1 or self._groups.are_rows:
            return []
        index, length = self._index(self._full[:-1]), f"n{self._last}"
        pointer = f"p{self._leaves.index(entries[0])} + ({index}) * {length}"
        return [prefetched(entries[0], pointer, "0", length)]

    # Between stages.

    def _combined(self, combine: Combine, results: Sequence[Node] = ()) -> str:
        if combine.by_block:
            lines = [
                *self._of_chunk(combine.name),
                "const int64_t low = (start + inner - 1) / inner;",
                "const int64_t high = (stop + inner - 1) / inner;",
            ]
        else:
            head = self._head(combine.name)
            lines = [*head, "const int64_t low = 0, high = n0;"]
        sweeps = [x for x in combine.sweeps if combine.computes or self._extent(x[0])]
        for sweep in sweeps:
            lines += self._sweep(sweep, combine)
        if not combine.computes:
            lines += self._values_of_leaf(results, combine)
        if combine.by_block:
            return by_chunk(combine.name, lines)
        return by_leaf(combine.name, lines)

    def _values_of_leaf(self, results: Sequence[Node], last: Combine) -> list[str]:
        """Return the lines that write results, and the 0-d slots of a leaf."""
        stored = [x for x in last.stores if not self._extent(x.like)]
        needed = self._needed([*results, *(store.node for store in stored)])
        code = self._loads(self._checked(needed, ()))
        lines = [*self._memory(needed, stored), *code.values()]
        lines += [self._stored(x, f"p{x.row}[0]") for x in stored]
        for row, result in enumerate(results):
            value = self._converted(self._names[result], torch.float64)
            lines.append(f"a.results[{row} * a.n_leaves + leaf] = {value};")
        return lines

    def _sweep(self, sweep: list[Node], combine: Combine) -> list[str]:
        """Return the loop over the indices of an extent."""
        extent = self._extent(sweep[0])
        needed = self._needed(sweep, sweep if combine.computes else ())
        self._checked(needed, extent)
        stored = [x for x in combine.stores if x.node in sweep]
        lines = ["{", *self._memory(self._with_operands(sweep, needed), stored)]
        if combine.by_block and 0 not in extent:
            lines[0] = "if (pid == first) {"
        code = self._loads(needed)
        body: list[str] = []
        for node in code:
            if combine.computes and node in sweep and self._is_reduction(node):
                body += self._reduction(node, lines)
            body.append(code[node])
        for node in sweep:
            if node in self._kept and combine.computes:
                lines.append(self._kept_memory(node))
                target = f"k{self._kept.index(node)}[{self._index(extent)}]"
                value = f"({kept_type(node)}){self._names[node]}"
                body.append(f"{target} = {value};")
        body += [self._stored(x, f"p{x.row}[{self._index(extent)}]") for x in stored]
        for i in extent:
            bounds = ("low", "high") if i == 0 else ("0", f"n{i}")
            lines.append(
                f"for (int64_t c{i} = {bounds[0]}; c{i} < {bounds[1]}; c{i}++) {{"
            )
        return [*lines, *body, *["}"] * len(extent), "}"]

    def _reduction(self, node: Node, outside: list[str]) -> list[str]:
        """Return the lines that reduce partial values, or values that are kept; some come before the loop."""
        name = self._names[node]
        if node not in self._partial:
            return self._small_reduction(node)
        j, extent = self._partial.index(node), self._extent(node)
        outside.append(self._all_partial(node))
        if extent and 0 not in extent:
            outside += self._over_chunks(node)
            return [f"const double {name}_total = all{j}[{self._index(extent)}];"]
        head, chunks = [], f"int64_t chunk = 0; chunk < {CHUNKS}"
        if extent:
            head = [f"const int64_t at{j} = c0 / per, own{j} = c0 - at{j} * per;"]
            chunks = f"int64_t chunk = at{j} * parts; chunk < (at{j} + 1) * parts"
        total = Total(name, kind_of(node), f"{name}_part")
        part = (
            f"all{j}[chunk * ({self._width(node)}) + {self._index(extent, f'own{j}')}]"
        )
        return [
            *head,
            total.start(),
            f"for ({chunks}; chunk++) {{",
            f"const double {name}_part = {part};",
            total.update(),
            "}",
            f"const double {name}_total = {total.end()};",
        ]

    def _over_chunks(self, node: Node) -> list[str]:
        """Return the loops that add the partial values of all chunks to those of the first one, in order."""
        j, width = self._partial.index(node), self._width(node)
        total = self._total(node)
        part = f"all{j}[chunk * ({width}) + k]"
        return [
            f"for (int64_t chunk = 1; chunk < {CHUNKS}; chunk++) {{",
            "#pragma omp simd",
            f"for (int64_t k = 0; k < {width}; k++) {{",
            f"all{j}[k] = {both(total, f'all{j}[k]', part)};",
            "}",
            "}",
        ]

    def _small_reduction(self, node: Node) -> list[str]:
        operand, name = self._operand_of(node), self._names[node]
        needed = Needed([], [operand], [])
        if operand in self._leaves:
            needed = Needed([operand], [], [])
        total = self._total_of(name, node, self._terms[node])
        loops = [
            f"for (int64_t c{i} = 0; c{i} < n{i}; c{i}++) {{"
            for i in self._reduced(node)
        ]
        return [
            total.start(),
            *loops,
            *self._loads(needed).values(),
            total.update(),
            *["}"] * len(loops),
            f"const double {name}_total = {total.end()};",
        ]


class Strips:
    """A loop over entries, some of which are float16: it runs in strips, whose entries are converted together.

    Args:
        index: The index of an entry.
        low, high: Its bounds.
    """

    def __init__(self, index: str, low: str, high: str):
        self._index, self._low, self._high = index, low, high
        self._before: list[str] = []
        self._after: list[str] = []

    def widened(self, row: int, place: str) -> str:
        """Return the code of an entry of an argument in float32, given its index in memory."""
        self._before.append(f"float w{row}[{PART}];")
        self._before.append(f"widen(w{row}, p{row} + {place}, end - {self._index});")
        return f"w{row}[{self._index} - strip]"

    def narrowed(self, row: int, place: str) -> str:
        """Return the code of where to write an entry in float32, given its index in memory."""
        self._before.append(f"float v{row}[{PART}];")
        self._after.append(f"narrow(p{row} + {place}, v{row}, end - {self._index});")
        return f"v{row}[{self._index} - strip]"

    def loops(self, clauses: str, body: Sequence[str]) -> list[str]:
        """Return the loop with its body, or loops over strips and their entries."""
        i, low, high = self._index, self._low, self._high
        lines = [f"#pragma omp simd{clauses}"]
        if not self._before:
            loop = f"for (int64_t {i} = {low}; {i} < {high}; {i}++) {{"
            return [*lines, loop, *body, "}"]
        return [
            f"for (int64_t strip = {low}; strip < {high}; strip += {PART}) {{",
            f"const int64_t end = strip + {PART} < {high} ? strip + {PART} : {high}, {i} = strip;",
            *self._before,
            *lines,
            f"for (int64_t {i} = strip; {i} < end; {i}++) {{",
            *body,
            "}",
            *self._after,
            "}",
        ]


def _address(name: str, row: int, kind: str) -> str:
    """Return the line that finds values, each of which has 8 bytes in memory at least."""
    memory = f"({kind}*)(a.sums + a.blocks[{row} * a.n_leaves + leaf])"
    return f"{kind}* const {name} = {memory};"


def by_chunk(name: str, lines: Sequence[str]) -> str:
    """Return a function that runs lines for each chunk of some leaves."""
    bounds = "a.leaf_chunks[from]", "a.leaf_chunks[to]"
    text = _function(name, "pid", bounds, lines, IN_PARALLEL)
    has_sums = any(" reduction(" in line for line in lines)
    return UNDIVIDED.format(text) if has_sums else text


def by_leaf(name: str, lines: Sequence[str]) -> str:
    """Return a function that runs lines for each of some leaves."""
    return _function(name, "leaf", ("from", "to"), lines)


# g++ divides a loop with a choice that is the same for all entries in two. Where both add up entries, it takes only one
# of them into vectors.
UNDIVIDED = """\
#pragma GCC push_options
#pragma GCC optimize("no-unswitch-loops")
{}#pragma GCC pop_options
"""
PARAMETERS = "const Arguments& a, int64_t from, int64_t to, int64_t threads"
RUN_ALL = 'extern "C" void run(const Arguments* a) { kernels(*a, 0, a->n_leaves, a->threads); }'
RUN_BY_LEAF = f"""
extern "C" void run(const Arguments* a) {{
  const int64_t *sizes = a->sizes, n = a->n_leaves, threads = a->threads;
  int64_t entries = 0;
  for (int64_t leaf = 0; leaf < n; leaf++) entries += sizes[leaf];
  const int64_t parts = {PARTS} * threads, largest = threads > 1 ? entries / parts : entries;
  for (int64_t leaf = 0; leaf < n; leaf++)
    if (sizes[leaf] > largest) kernels(*a, leaf, leaf + 1, threads);
  const int64_t cached = {CACHED} * n / (entries + 1), most = cached < n / parts ? cached : n / parts;
  const int64_t step = most > 1 ? most : 1;
{IN_PARALLEL.replace(" num", " schedule(dynamic) num")}  for (int64_t start = 0; start < n; start += step) {{
    const int64_t stop = start + step < n ? start + step : n;
    for (int64_t from = start, to; from < stop; from = to) {{
      for (to = from; to < stop && sizes[to] <= largest; to++);
      if (to > from) kernels(*a, from, to, 1);
      else to++;
    }}
  }}
}}
"""


def _function(
    name: str,
    index: str,
    bounds: tuple[str, str],
    lines: Sequence[str],
    pragma: str = "",
) -> str:
    start, stop = bounds
    loop = f"for (int64_t {index} = {start}; {index} < {stop}; {index}++) {{"
    head = f"static void {name}({PARAMETERS}) {{"
    return "\n".join([head, f"{pragma}{loop}", *lines, "}", "}", ""])


def program_of(
    functions: Sequence[str],
    kernels: Sequence[Kernel],
    conditions: Mapping[str, str] | None = None,
    exponents: Collection[int] = (),
    words: int | None = None,
) -> str:
    """Return the whole text, with one function that runs all kernels.

    Args:
        functions: The texts of the kernels.
        kernels: The kernels, in order.
        conditions: For kernels that do not run in each step, when they do.
        exponents: The indices of scalars that are exponents of powers of entries.
        words: How many scalars a leaf has of its own; None if leaves share them.
    """
    conditions = conditions or {}
    calls = []
    for kernel in kernels:
        call = f"{kernel.name}(a, from, to, threads);"
        condition = conditions.get(kernel.name)
        calls.append(f"if ({condition}) {call}" if condition else call)
    texts = [*functions, f"static void kernels({PARAMETERS}) {{", *calls, "}"]
    if exponents and words is None:
        texts = [*_by_exponents(texts), *_choice_of_all(exponents)]
    elif exponents and words is not None:
        texts = [*_by_exponents(texts), *_choice_by_leaf(exponents, words)]
    run = RUN_BY_LEAF if len(kernels) > 1 else RUN_ALL
    prelude = PRELUDE if words is None else PRELUDE_OF_ROWS
    if any(map(OF_HALVES.search, texts)):
        prelude += HALVES
    return "\n".join([prelude, *texts, run])


def _by_exponents(texts: Sequence[str]) -> list[str]:
    """Return kernels for exponents that are all 1/2, all 1, and for any others.

    A root takes a tenth of the time of a power, and compilers do not always move the choice out of a loop.
    """
    return [
        "template <int halves> struct Kernels {  // the exponent in halves",
        "template <class T> static inline T power(T x, T y) {",
        "return halves == 1 ? sqrt(x) : halves == 2 ? x : pow(x, y);",
        "}",
        *texts,
        "};",
    ]


def _are_all(exponents: Collection[int], value: float, words: str) -> str:
    """Return the code of whether exponents have a value."""
    values = (f"bits<double>({words}[{j}])" for j in sorted(exponents))
    return " && ".join(f"{exponent} == {value}" for exponent in values)


def _choice_of_all(exponents: Collection[int]) -> list[str]:
    """Return the function that chooses kernels by the exponents that all leaves share."""
    is_root, is_same = (_are_all(exponents, x, "a.words") for x in (0.5, 1.0))
    return [
        f"static void kernels({PARAMETERS}) {{",
        f"if ({is_root}) Kernels<1>::kernels(a, from, to, threads);",
        f"else if ({is_same}) Kernels<2>::kernels(a, from, to, threads);",
        "else Kernels<0>::kernels(a, from, to, threads);",
        "}",
    ]


def _choice_by_leaf(exponents: Collection[int], words: int) -> list[str]:
    """Return the function that chooses kernels by the exponents of each leaf; neighbours with the same run together.

    Absent leaves, which kernels leave out, belong to the neighbours before them.
    """
    is_root, is_same = (_are_all(exponents, x, "words") for x in (0.5, 1.0))
    return [
        "static inline int halves_of(const Arguments& a, int64_t leaf, int of_absent) {",
        "if (a.which[leaf] < 0) return of_absent;",
        f"const int64_t* const words = a.words + a.which[leaf] * {words};",
        f"return {is_root} ? 1 : {is_same} ? 2 : 0;",
        "}",
        f"static void kernels({PARAMETERS}) {{",
        "for (int64_t start = from, stop; start < to; start = stop) {",
        "const int halves = halves_of(a, start, -1);",
        "for (stop = start + 1; stop < to && halves_of(a, stop, halves) == halves; stop++);",
        "if (halves == 0) Kernels<0>::kernels(a, start, stop, threads);",
        "if (halves == 1) Kernels<1>::kernels(a, start, stop, threads);",
        "if (halves == 2) Kernels<2>::kernels(a, start, stop, threads);",
        "}",
        "}",
    ]
