"""Write expressions of a lowered graph as C++, with the functions and types that its texts begin with."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch.fx import Node

from gradtx.compiler.axes import TILE
from gradtx.compiler.graph import args_of, dtype_of
from gradtx.compiler.write_expressions import HALF, ExpressionWriter
from gradtx.compiler.write_kernels import Write, aten, kind_of

# A processor that reads one argument has too few entries in flight to keep memory busy, so some later ones are asked
# for: bytes of a line of a cache, and those between an entry and one that is asked for; entries between two requests.
LINE, AHEAD, PART = 64, 8192, 256
# Classes of dtypes, whose objects compilers do not load into vectors, but their words.
WORDS = {
    torch.bfloat16: "uint16_t",
    torch.float16: "uint16_t",
    torch.float8_e4m3fn: "uint8_t",
}
IDENTITIES = {"sum": "0.0", "max": "-INFINITE", "min": "INFINITE"}

# Arguments of a phase, as `gradtx.compiler.cpp.Arguments` passes them.
PRELUDE = """
#include <stdint.h>
#define INFINITE __builtin_inf()
#define NOT_A_NUMBER __builtin_nan("")

struct Arguments {
  const int64_t *words, *table, *sizes, *blocks, *chunk_leaf, *chunk_start, *leaf_chunks;
  double *sums, *results;
  int64_t n_leaves, threads;
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
template <class T> static inline T maximum(T x, T y) {
  const T bound = y != y ? (T)INFINITE : y;
  return !(x <= bound) ? x : y;
}
template <class T> static inline T minimum(T x, T y) {
  const T bound = y != y ? (T)-INFINITE : y;
  return !(x >= bound) ? x : y;
}
// As `pow`, for which a negative number has no root.
template <class T> static inline T cube_root(T x) {
  const T size = abs(x);
  return cbrt(x < 0 && size < (T)INFINITE ? (T)NOT_A_NUMBER : size);
}
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

# Where leaves have scalars of their own, `words` has those of each set, and `which` the set of each leaf.
OF_ROWS = ("threads;\n};", "threads;\n  const int64_t *which;\n};")
PRELUDE_OF_ROWS = PRELUDE.replace(*OF_ROWS)

# What texts with float16 add. Compilers do not take conversions of `_Float16` into vectors.
HALVES = """
#ifdef __F16C__
#define _MM_MALLOC_H_INCLUDED  // its functions of the standard library have names of those above
#define __MM_MALLOC_H
#include <immintrin.h>
#endif
static inline float widened(uint16_t word) {  // 5 bits of exponent and 10 of mantissa
  const uint32_t size = word & 0x7fff;
  const uint32_t small = bits<uint32_t>(int32_t(size) * 0x1p-24f), usual = (size << 13) + (112 << 23);
  const uint32_t finite = size < 0x400 ? small : usual;
  const uint32_t quiet = size > 0x7c00 ? 0x7fc00000 : 0x7f800000;
  const uint32_t all = size < 0x7c00 ? finite : size << 13 | quiet;
  return bits<float>(all | uint32_t(word & 0x8000) << 16);
}
static inline uint16_t narrowed(float x) {
  const uint32_t all = bits<uint32_t>(x), size = all & 0x7fffffff;
  const uint32_t small = bits<uint32_t>(bits<float>(size) + 0.5f) - bits<uint32_t>(0.5f);
  const uint32_t usual = (size - (112 << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
  const uint32_t nearest = size < (113 << 23) ? small : usual;
  const uint32_t bounded = size < (143 << 23) ? nearest : 0x7c00;
  return (x != x ? 0x7e00 | (size >> 13 & 0x3ff) : bounded) | (all >> 16 & 0x8000);
}
// A value that is rounded where it is read: what is only written is rounded with its neighbours.
struct float16 {
  float exact;
  float16() = default;
  inline float16(float x) : exact(x) {}
  inline operator float() const { return widened(narrowed(exact)); }
};
static inline uint16_t narrowed(float16 x) { return narrowed(x.exact); }
static inline float unrounded(float x) { return x; }
static inline float unrounded(float16 x) { return x.exact; }
static inline void widen(float* __restrict__ to, const uint16_t* __restrict__ from, int64_t n) {
  int64_t i = 0;
#ifdef __AVX512F__
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(from + i))));
#endif
#ifdef __F16C__
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i))));
#endif
  for (; i < n; i++) to[i] = widened(from[i]);
}
static inline void narrow(uint16_t* __restrict__ to, const float* __restrict__ from, int64_t n) {
  int64_t i = 0;
#ifdef __AVX512F__
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256((__m256i*)(to + i), _mm512_cvtps_ph(_mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
#ifdef __F16C__
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((__m128i*)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < n; i++) to[i] = narrowed(from[i]);
}
"""
OF_HALVES = re.compile(r"\b(float16|widened|widen|narrowed|narrow)\b")

# What texts with tiles add.
TRANSPOSITIONS = (
    f"#define TILE {TILE}"
    + """
// Entries i, i + 3, i + 6, ... become neighbours, for i = 0, 1, 2, or the reverse; compilers shuffle vectors for that.
template <class T>
static inline void apart(T* __restrict__ to, int64_t stride, const T* __restrict__ from, int64_t n) {
  T *first = to, *second = to + stride, *third = to + 2 * stride;
  for (int64_t i = 0; i < n; i++) {
    first[i] = from[3 * i];
    second[i] = from[3 * i + 1];
    third[i] = from[3 * i + 2];
  }
}
template <class T>
static inline void together(T* __restrict__ to, const T* __restrict__ from, int64_t stride, int64_t n) {
  const T *first = from, *second = from + stride, *third = from + 2 * stride;
  for (int64_t i = 0; i < n; i++) {
    to[3 * i] = first[i];
    to[3 * i + 1] = second[i];
    to[3 * i + 2] = third[i];
  }
}
// The entries of a tile, `width` of each lane: neighbouring lanes are neighbours in the tile, `stride` apart otherwise.
template <class T> static void take_in(T* tile, int64_t stride, const T* leaf, int64_t lanes, int64_t width) {
  if (width == 3) return apart(tile, stride, leaf, lanes);
  if (width % 3 == 0) {
    T thirds[TILE];
    const int64_t size = lanes * (width / 3);
    apart(thirds, size, leaf, size);
    for (int i = 0; i < 3; i++) take_in(tile + i * stride, 3 * stride, thirds + i * size, lanes, width / 3);
    return;
  }
  for (int64_t i = 0; i < width; i++)
    for (int64_t l = 0; l < lanes; l++) tile[i * stride + l] = leaf[l * width + i];
}
template <class T> static void take_out(T* leaf, const T* tile, int64_t stride, int64_t lanes, int64_t width) {
  if (width == 3) return together(leaf, tile, stride, lanes);
  if (width % 3 == 0) {
    T thirds[TILE];
    const int64_t size = lanes * (width / 3);
    for (int i = 0; i < 3; i++) take_out(thirds + i * size, tile + i * stride, 3 * stride, lanes, width / 3);
    return together(leaf, thirds, size, size);
  }
  for (int64_t l = 0; l < lanes; l++)
    for (int64_t i = 0; i < width; i++) leaf[l * width + i] = tile[i * stride + l];
}
"""
)


class CppExpressions(ExpressionWriter):
    """Write expressions of C++; scalars are words of 64 bits."""

    types: ClassVar[Mapping[torch.dtype, str]] = {
        torch.float64: "double",
        torch.float32: "float",
        torch.bfloat16: "bfloat16",
        torch.float16: "float16",
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
    _words_at = "a.words"  # the code of where scalars are

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

    def _expression(self, node: Node) -> str:
        if node.target is aten.view.dtype:
            operand: Any = args_of(node)[0]
            name = self._names[operand]
            if dtype_of(operand) == torch.float16:
                name = f"narrowed({name})"
            if dtype_of(node) == torch.float16:
                return f"widened(bits<uint16_t>({name}))"
            return self.same_bits.format(name, self.types[dtype_of(node)])
        return super()._expression(node)

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
            return self._call("cube_root", operands[:1])
        return super()._power(operands, args, dtype)

    def _loaded(self, row: int, leaf: Node, place: str) -> str:
        """Return the line that loads a value of an argument."""
        dtype = dtype_of(leaf)
        if dtype == torch.float16:
            return f"const float x{row} = widened({place});"
        code = f"{self.types[dtype]}::of({place})" if dtype in WORDS else place
        return self._assigned(f"x{row}", leaf, code)

    def _stored(self, store: Write, place: str) -> str:
        """Return the line that writes a value."""
        name, dtype = self._names[store.node], dtype_of(store.like)
        if dtype == torch.float16:
            return f"{place} = narrowed({name});"
        return f"{place} = {name}{'.word' if dtype in WORDS else ''};"

    def _word(self, like: Node) -> str:
        """Return the type of an argument in memory."""
        dtype = dtype_of(like)
        return WORDS.get(dtype, self.types[dtype])

    def _pointers(self, rows: dict[int, Node]) -> list[str]:
        lines = []
        for j, like in rows.items():
            kind = self._word(like)
            lines.append(
                f"{kind}* const p{j} = ({kind}*)a.table[{j} * a.n_leaves + leaf];"
            )
        return lines

    def _words(self) -> list[str]:
        """Return the lines that load scalars."""
        words = range(len(self._scalars))
        return [f"const int64_t s{j} = {self._words_at}[{j}];" for j in words]

    def _total_of(
        self, name: str, node: Node, term: str, is_narrow: bool = False
    ) -> Total:
        """Return the total of a reduction, given the code of what it reduces; a narrow sum of float32 is float32."""
        kind = kind_of(node)
        is_single = dtype_of(node) in (torch.float32, *HALF)
        is_float = is_single and (is_narrow or kind != "sum")
        kind_of_value = "float" if is_float else "double"
        value = f"({kind_of_value}){term}"
        if node.target is aten.linalg_vector_norm.default:
            value = f"{value} * {value}"
        return Total(name, kind, value, kind_of_value)


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


def both(total: Total, x: str, y: str) -> str:
    """Return the code that reduces two values."""
    if total.kind == "sum":
        return f"{x} + ({y})"
    return f"{total.kind}imum({x}, ({total.type})({y}))"


def kept_type(node: Node) -> str:
    """Return the type in which a value is kept; loops that convert others are slower."""
    return "float" if dtype_of(node) == torch.float32 else "double"


def prefetched(leaf: Node, pointer: str, first: str, last: str) -> str:
    """Return a loop that asks for what comes `AHEAD` of entries."""
    size = dtype_of(leaf).itemsize
    loop = f"for (int64_t i = {first}; i < {last}; i += {LINE // size})"
    return f"{loop} __builtin_prefetch({pointer} + i + {AHEAD // size});"
