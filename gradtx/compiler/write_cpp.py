"""Write a program as C++ kernels, whose loops the compiler vectorizes, and one function that runs them in order.

A row is the entries that have one value, such as those of one channel. Reductions over rows divide the loop over each
row into passes, of which the last one writes; a chunk contains whole rows.

Several kernels run for a few leaves before they run for the next ones, so that what one of them reads is still in a
cache when the next one reads it. Each thread takes leaves of its own; the few largest ones are divided among threads.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch.fx import Node

from gradtx.compiler.graph import dtype_of, is_scalar
from gradtx.compiler.needs import Needs
from gradtx.compiler.write_expressions import HALF, ExpressionWriter
from gradtx.compiler.write_kernels import (
    BLOCKS,
    INDICES,
    Kernel,
    KernelWriter,
    Store,
    Totals,
    aten,
    kind_of,
    outputs_of,
)

IN_PARALLEL = "#pragma omp parallel for num_threads(threads) if(threads > 1)\n"
# Each thread has this many parts of the leaves at least; larger leaves are divided among threads.
PARTS = 8
# The entries of leaves that run together.
CACHED = 1 << 16
# A processor that reads one argument has too few entries in flight to keep memory busy, so some later ones are asked
# for: bytes of a line of a cache, and those between an entry and one that is asked for; entries between two requests.
LINE, AHEAD, PART = 64, 8192, 256
# Classes of dtypes, whose objects compilers do not load into vectors, but their words.
WORDS = {torch.bfloat16: "uint16_t", torch.float8_e4m3fn: "uint8_t"}
IDENTITIES = {"sum": "0.0", "max": "-INFINITE", "min": "INFINITE"}

# Arguments of a phase, as `gradtx.compiler.cpp.Arguments` passes them.
PRELUDE = """
#include <stdint.h>
#define INFINITE __builtin_inf()
#define NOT_A_NUMBER __builtin_nan("")

struct Arguments {
  const int64_t *words, *table, *sizes, *blocks, *chunk_leaf, *chunk_start, *leaf_chunks;
  double *sums, *partials, *results;
  int64_t n_leaves, n_chunks, threads;
};

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#if __GLIBC_PREREQ(2, 35)
#define VECTOR __attribute__((simd("notinbranch")))
#endif
#endif
#ifndef VECTOR
#define VECTOR
#endif
#define UNARY(name) \\
  extern "C" VECTOR double name(double) noexcept; \\
  extern "C" VECTOR float name##f(float) noexcept; \\
  static inline float name(float x) { return name##f(x); }
#define BINARY(name) \\
  extern "C" VECTOR double name(double, double) noexcept; \\
  extern "C" VECTOR float name##f(float, float) noexcept; \\
  static inline float name(float x, float y) { return name##f(x, y); }
UNARY(exp) UNARY(expm1) UNARY(log) UNARY(log1p) UNARY(sin) UNARY(cos) UNARY(tanh)
UNARY(atan) UNARY(erf) UNARY(cbrt) BINARY(atan2) BINARY(pow)

static inline float sqrt(float x) { return __builtin_sqrtf(x); }
static inline double sqrt(double x) { return __builtin_sqrt(x); }
static inline float rint(float x) { return __builtin_rintf(x); }
static inline double rint(double x) { return __builtin_rint(x); }
static inline float floor(float x) { return __builtin_floorf(x); }
static inline double floor(double x) { return __builtin_floor(x); }
static inline float ceil(float x) { return __builtin_ceilf(x); }
static inline double ceil(double x) { return __builtin_ceil(x); }
template <class T> static inline T abs(T x) { return x < 0 ? -x : x; }
static inline float abs(float x) { return __builtin_fabsf(x); }
static inline double abs(double x) { return __builtin_fabs(x); }
// NaN if one of them is. g++ takes this form into vectors, also for values of columns; others made SM3 half as fast.
template <class T> static inline T maximum(T x, T y) { return !(x <= y) ? (y != y ? y : x) : y; }
template <class T> static inline T minimum(T x, T y) { return !(x >= y) ? (y != y ? y : x) : y; }
template <class T, class S> static inline T bits(S x) { return __builtin_bit_cast(T, x); }

struct bfloat16 {
  uint16_t word;
  bfloat16() = default;
  explicit inline bfloat16(float x) {
    const uint32_t all = bits<uint32_t>(x);
    const uint32_t nearest = (all + 0x7fff + ((all >> 16) & 1)) >> 16;
    word = x != x ? 0x7fc0 : nearest;
  }
  static inline bfloat16 of(uint16_t word) { bfloat16 x; x.word = word; return x; }
  inline operator float() const { return bits<float>(uint32_t(word) << 16); }
};

struct float8_e4m3fn {  // 4 bits of exponent and 3 of mantissa; NaN instead of infinity
  uint8_t word;
  float8_e4m3fn() = default;
  explicit inline float8_e4m3fn(float x) {
    const uint32_t all = bits<uint32_t>(x), size = all & 0x7fffffff;
    const uint32_t small = bits<uint32_t>(bits<float>(size) + 16384.0f) - bits<uint32_t>(16384.0f);
    const uint32_t usual = (size - (120 << 23) + 0x7ffff + ((size >> 20) & 1)) >> 20;
    const uint32_t nearest = size < (121 << 23) ? small : usual;
    const uint32_t finite = size > bits<uint32_t>(448.0f) ? 0x7e : nearest;
    word = (x != x ? 0x7f : finite) | (all >> 24 & 0x80);
  }
  static inline float8_e4m3fn of(uint8_t word) { float8_e4m3fn x; x.word = word; return x; }
  inline operator float() const {
    const uint32_t size = word & 0x7f;
    const float usual = bits<float>((size << 20) + (120 << 23)), small = int32_t(size) * 0x1p-9f;
    const float finite = size < 8 ? small : usual;
    const float x = size == 0x7f ? float(NOT_A_NUMBER) : finite;
    return word & 0x80 ? -x : x;
  }
};
"""


class CppExpressions(ExpressionWriter):
    """Write expressions of C++; scalars are words of 64 bits."""

    types: ClassVar[Mapping[torch.dtype, str]] = {
        torch.float64: "double",
        torch.float32: "float",
        torch.bfloat16: "bfloat16",
        torch.float16: "_Float16",
        torch.float8_e4m3fn: "float8_e4m3fn",
        torch.int64: "int64_t",
        torch.int32: "int32_t",
        torch.int16: "int16_t",
        torch.int8: "int8_t",
        torch.uint8: "uint8_t",
        torch.bool: "bool",
    }
    choice = "({} ? {} : {})"
    same_bits = "bits<{1}>({0})"
    floating = "bits<double>({})"

    def _constant(self, value: Any, dtype: torch.dtype) -> str:
        text = repr(value).lower() if isinstance(value, bool) else repr(value)
        if isinstance(value, float) and math.isnan(value):
            text = "NOT_A_NUMBER"
        elif isinstance(value, float) and math.isinf(value):
            text = "INFINITE" if value > 0 else "-INFINITE"
        return self._converted(f"({text})", dtype)

    def _converted(self, code: str, dtype: torch.dtype) -> str:
        if dtype in (torch.int8, torch.uint8):  # two conversions are vectorized
            code = f"(int32_t){code}"
        if dtype in WORDS:
            code = f"(float){code}"
        return f"({self.types[dtype]}){code}"

    def _assigned(self, name: str, node: Node, code: str) -> str:
        dtype = dtype_of(node)
        return f"const {self.types[dtype]} {name} = {code};"

    def _call(self, function: str, operands: Sequence[str]) -> str:
        return f"{function}({', '.join(operands)})"

    def _divide(self, x: str, y: str, dtype: torch.dtype) -> str:
        return f"({x} / {y})"

    def _root(self, x: str, dtype: torch.dtype) -> str:
        return f"sqrt({x})"

    def _power(self, operands: list[str], args: Any, dtype: torch.dtype) -> str:
        if args[1] == 1 / 3:
            return self._call("cbrt", operands[:1])
        return super()._power(operands, args, dtype)

    def _loaded(self, row: int, leaf: Node, index: str) -> str:
        """Return the line that loads a value of an argument."""
        code, dtype = f"p{row}[{index}]", dtype_of(leaf)
        code = f"{self.types[dtype]}::of({code})" if dtype in WORDS else code
        return self._assigned(f"x{row}", leaf, code)

    def _stored(self, store: Store, index: str) -> str:
        """Return the line that writes a value."""
        word = ".word" if dtype_of(store.like) in WORDS else ""
        return f"p{store.row}[{index}] = {self._names[store.node]}{word};"

    def _pointers(self, rows: dict[int, Node]) -> list[str]:
        lines = []
        for j, like in rows.items():
            dtype = dtype_of(like)
            kind = WORDS.get(dtype, self.types[dtype])
            lines.append(
                f"{kind}* const p{j} = ({kind}*)a.table[{j} * a.n_leaves + leaf];"
            )
        return lines

    def _words(self) -> list[str]:
        """Return the lines that load scalars."""
        words = range(len(self._scalars))
        return [f"const int64_t s{j} = a.words[{j}];" for j in words]

    def _total_of(self, name: str, node: Node, term: str) -> Total:
        """Return the total of a reduction, given the code of what it reduces."""
        kind = kind_of(node)
        is_single = dtype_of(node) in (torch.float32, *HALF)
        kind_of_value = "float" if is_single and kind != "sum" else "double"
        value = f"({kind_of_value}){term}"
        if node.target is aten.linalg_vector_norm.default:
            value = f"{value} * {value}"
        return Total(name, kind, value, kind_of_value)


class CppWriter(CppExpressions, KernelWriter):
    """Write C++ functions."""

    total = "sums{}[{} * a.n_leaves + leaf]"

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._exponents: set[int] = set()  # the indices of scalars that are exponents

    def _joined(self, functions: Sequence[str]) -> str:
        conditions = self._conditions()
        return program_of(functions, self._kernels, conditions, self._exponents)

    def _conditions(self) -> dict[str, str]:
        """Return when the reductions of a stage run: scalars may say that no later stage reads them."""
        conditions: dict[str, str] = {}
        needs = Needs(self._program.graph, decides=True)
        for depth, stage in enumerate(self._reductions):
            cases = [needs.of(node) for node in stage if node in needs]
            tests = []
            for scalar, truth in cases[0].intersection(*cases[1:]) if cases else ():
                if scalar in self._scalars:
                    word = f"a.words[{self._scalars.index(scalar)}]"
                    tests.append(f"{word} != 0" if truth else f"{word} == 0")
            if tests:
                both = " && ".join(sorted(tests))
                conditions |= {f"stage{depth}": both, f"reduce{depth}": both}
        return conditions

    def _power(self, operands: list[str], args: Any, dtype: torch.dtype) -> str:
        base, exponent = args
        is_shared = isinstance(exponent, Node) and is_scalar(exponent)
        if not is_shared or self._extent(base) == "leaf":
            return super()._power(operands, args, dtype)
        self._exponents.add(self._scalars.index(exponent))
        return self._call("power", operands)

    # Kernels.

    def _head(self) -> list[str]:
        """Return the lines that load what all entries of a leaf share."""
        lines = ["const int64_t size = a.sizes[leaf];"]
        rows = 0
        for depth, stage in enumerate(self._reductions):
            lines.append(f"double* const sums{depth} = a.sums + {rows} * a.n_leaves;")
            rows += len(stage)
        if self._block > 1:
            # Compilers unroll loops over a known number of entries.
            is_known = self._fixes_block and self._block in BLOCKS
            block = self._block if is_known else "a.blocks[leaf]"
            lines.append(f"const int64_t block = {block};")
        return [*lines, *self._words()]

    def _load(self, leaf: Node) -> str:
        index = INDICES[self._extent(leaf)]
        return self._loaded(self._leaves.index(leaf), leaf, index)

    def _store(self, store: Store) -> str:
        return self._stored(store, INDICES[self._extent(store.like)])

    def _line(self, node: Node) -> str:
        return self._load(node) if node in self._leaves else self._lines[node]

    def _chunk(self, name: str, stored: Sequence[Store], stage: Sequence[Node]) -> str:
        operations, read = self._needed(outputs_of(stored, stage))
        self._note(name, read, stored)
        nodes = [*read, *operations]
        totals = {f"r{i}": node for i, node in enumerate(stage)}
        lines = [
            "const int64_t leaf = a.chunk_leaf[pid], start = a.chunk_start[pid];",
            *self._head(),
            "const bool is_last = pid + 1 == a.leaf_chunks[leaf + 1];",
            "const int64_t stop = is_last ? size : a.chunk_start[pid + 1];",
            *self._pointers(self._rows(read, stored)),
            *(self._line(node) for node in nodes if self._extent(node) == "leaf"),
            *map(self._begun, totals, stage),
        ]
        if self._block == 1:
            entries = [leaf for leaf in read if self._extent(leaf) == "entry"]
            lines += self._parts(entries)
            lines += [*self._loop(stored, totals), "}"]
        else:
            lines.append("for (int64_t b = start / block; b < stop / block; b++) {")
            lines.append("const int64_t first = b * block, last = first + block;")
            lines += self._values_of_row(nodes)
            lines += self._loop(stored, totals)
            lines += [*self._after_loop(stored, totals), "}"]
        lines += map(self._ended, totals, stage)
        for i, total in enumerate(totals):
            lines.append(f"a.partials[{i} * a.n_chunks + pid] = {total}_total;")
        return by_chunk(name, lines)

    def _looped(self, lines: Sequence[str], totals: Totals) -> list[str]:
        of_loop = map(self._total, totals, totals.values())
        clauses = "".join(total.clause() for total in of_loop)
        return [
            f"#pragma omp simd{clauses}",
            "for (int64_t i = first; i < last; i++) {",
            *lines,
            "}",
        ]

    def _parts(self, read: Sequence[Node]) -> list[str]:
        """Return the start of a loop over parts of a chunk, which asks for later entries if one argument is read."""
        if len(read) != 1:
            return ["{", "const int64_t first = start, last = stop;"]
        ahead = prefetched(read[0], f"p{self._leaves.index(read[0])}", "first", "last")
        return [
            f"for (int64_t first = start; first < stop; first += {PART}) {{",
            f"const int64_t last = first + {PART} < stop ? first + {PART} : stop;",
            ahead,
        ]

    def _total(self, name: str, node: Node) -> Total:
        return self._total_of(name, node, self._term(node))

    def _begun(self, name: str, node: Node) -> str:
        return self._total(name, node).start()

    def _added(self, name: str, node: Node) -> str:
        return self._total(name, node).update()

    def _ended(self, name: str, node: Node) -> str:
        return f"const double {name}_total = {self._total(name, node).end()};"

    def _reduce(self, depth: int) -> str:
        lines = [*self._head(), "const int64_t end = a.leaf_chunks[leaf + 1];"]
        for row, node in enumerate(self._reductions[depth]):
            total = Total(f"r{row}", kind_of(node), "part")
            lines += [
                total.start(),
                "for (int64_t k = a.leaf_chunks[leaf]; k < end; k++) {",
                f"const double part = a.partials[{row} * a.n_chunks + k];",
                total.update(),
                "}",
                f"{self.total.format(depth, row)} = {total.end()};",
            ]
        return by_leaf(f"reduce{depth}", lines)

    def _finish(self, results: Sequence[Node], stores: Sequence[Store]) -> str:
        lines = [*self._head(), *self._values_of_leaf(results, stores)]
        for row, result in enumerate(results):
            value = self._converted(self._names[result], torch.float64)
            lines.append(f"a.results[{row} * a.n_leaves + leaf] = {value};")
        return by_leaf("finish", lines)


def prefetched(leaf: Node, pointer: str, first: str, last: str) -> str:
    """Return a loop that asks for what comes `AHEAD` of entries."""
    size = dtype_of(leaf).itemsize
    loop = f"for (int64_t i = {first}; i < {last}; i += {LINE // size})"
    return f"{loop} __builtin_prefetch({pointer} + i + {AHEAD // size});"


class Total(NamedTuple):
    """A reduction in a loop; a maximum of NaN is NaN.

    Attributes:
        name: The variable.
        kind: As in `REDUCTIONS`.
        value: The code of what an entry adds.
        type: Its type; loops with others, or with flags of another size, are vectorized less well.
    """

    name: str
    kind: str
    value: str
    type: str = "double"

    def start(self) -> str:
        """Return what comes before the loop."""
        start = f"{self.type} {self.name}_sum = {IDENTITIES[self.kind]};"
        if self.kind == "sum":
            return start
        flag = {"double": "int64_t", "float": "int32_t"}[self.type]
        return f"{start}\n{flag} {self.name}_nan = 0;"

    def clause(self) -> str:
        """Return what a vectorizing compiler has to know."""
        if self.kind == "sum":
            return f" reduction(+:{self.name}_sum)"
        return f" reduction({self.kind}:{self.name}_sum) reduction(|:{self.name}_nan)"

    def update(self) -> str:
        """Return the line of an entry."""
        if self.kind == "sum":
            return f"{self.name}_sum += {self.value};"
        sign = ">" if self.kind == "max" else "<"
        chosen = f"{self.value} {sign} {self.name}_sum ? {self.value} : {self.name}_sum"
        is_nan = f"{self.name}_nan |= {self.value} != {self.value};"
        return f"{self.name}_sum = {chosen}; {is_nan}"

    def end(self) -> str:
        """Return the code of the result."""
        if self.kind == "sum":
            return f"{self.name}_sum"
        return f"({self.name}_nan ? NOT_A_NUMBER : {self.name}_sum)"


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
) -> str:
    """Return the whole text, with one function that runs all kernels.

    Args:
        functions: The texts of the kernels.
        kernels: The kernels, in order.
        conditions: For kernels that do not run in each step, when they do.
        exponents: The indices of scalars that are exponents of powers of entries.
    """
    conditions = conditions or {}
    calls = []
    for kernel in kernels:
        call = f"{kernel.name}(a, from, to, threads);"
        condition = conditions.get(kernel.name)
        calls.append(f"if ({condition}) {call}" if condition else call)
    texts = [*functions, f"static void kernels({PARAMETERS}) {{", *calls, "}"]
    if exponents:
        texts = _by_exponents(texts, exponents)
    run = RUN_BY_LEAF if len(kernels) > 1 else RUN_ALL
    return "\n".join([PRELUDE, *texts, run])


def _by_exponents(texts: Sequence[str], exponents: Collection[int]) -> list[str]:
    """Return kernels for exponents that are all 1/2, all 1, and for any others, and a function that chooses.

    A root takes a tenth of the time of a power, and compilers do not always move the choice out of a loop.
    """
    words = [f"bits<double>(a.words[{j}])" for j in sorted(exponents)]
    is_root, is_same = (
        " && ".join(f"{word} == {value}" for word in words) for value in (0.5, 1.0)
    )
    return [
        "template <int halves> struct Kernels {  // the exponent in halves",
        "template <class T> static inline T power(T x, T y) {",
        "return halves == 1 ? sqrt(x) : halves == 2 ? x : pow(x, y);",
        "}",
        *texts,
        "};",
        f"static void kernels({PARAMETERS}) {{",
        f"if ({is_root}) Kernels<1>::kernels(a, from, to, threads);",
        f"else if ({is_same}) Kernels<2>::kernels(a, from, to, threads);",
        "else Kernels<0>::kernels(a, from, to, threads);",
        "}",
    ]
