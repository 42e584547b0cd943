"""Codes: store a slot in fewer bits than rules compute in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from gradtx.base.inputs import accepts
from gradtx.base.messages import describe, describe_kind, nearest
from gradtx.base.torch_names import same_bits
from gradtx.state import factors

__all__ = ["Codec"]

Shape = tuple[int, ...]
# Below it, decoding would underflow in float32; negligible for every optimizer.
LEAST_SCALE = 2.0**-100
SCALE = "scale"
KEY = "key"
# What to do about a name that a code has for a part of its own.
TAKEN = {
    SCALE: "pass scale=None if encode returns it",
    KEY: "codes that round at random store a key; rename the part",
}
Extent: TypeAlias = Literal["entry", "block", "leaf"]


def largest_of_block(largest: Tensor) -> Tensor:
    """Return the scale of a block: its largest magnitude."""
    return largest.to(torch.float32).clamp(min=LEAST_SCALE)


PART = 2**18  # entries that a conversion codes at a time


@dataclasses.dataclass(frozen=True)
class Codec:
    """A code for slots: two pure functions of torch operations, without branches on values.

    A slot is stored as codes, one for each entry, and parts, stored as `<slot>.<part>`: tensors of any dtype with a
    value for each entry (`parts`), for each block of entries (`per_block`) or for the leaf (`per_leaf`).

    With a `block`, consecutive entries of a row share what is per block; a row is an index of dimension 0. The
    functions then receive and return tensors of shape (rows, blocks, block), and (rows, blocks, 1) for what is per
    block. The last block of a row is filled with copies of the row's last entry. What is per leaf has shape (). By
    default, blocks share a float32 scale, the part "scale", which is computed first, from the largest magnitude of a
    block, so that `encode` receives it.

    With `shapes_of`, the functions see a slot as a whole, and its tensors have shapes of their own, as the factors of
    a matrix have. Such a code, and one with a part per leaf, applies to leaves that no rank divides; with `shapes_of`,
    to slots of their parameter's shape.

    Args:
        encode: `(values, scale) -> codes`; without a scale `values -> codes`. With parts it returns a tuple of the
            codes and each part but the scale, in the order `parts`, `per_block`, `per_leaf`.
        decode: `(codes, *parts, *per_block, *per_leaf, scale) -> values` in at least float32; without a scale
            `(codes, *parts, *per_block, *per_leaf) -> values`. With `shapes_of`, of any shape with as many entries as
            the slot.
        block: The number of entries of a block, a power of two; None for a code without blocks.
        scale: The scale of a block as a function of its largest magnitude; by default the magnitude itself. None for
            blocks that share only what `encode` returns for them.
        parts: The names of parts with a value for each entry, or, with `shapes_of`, of its shapes.
        nonnegative: A different code for slots whose values are never negative, if any.
        packs: The number of codes, from 0 to 15 or from -8 to 7, per byte: 1, or 2 along the last dimension, if any.
        random: Whether `encode` receives 16 random bits per entry as its last argument.
        shapes_of: For a code of whole slots: the shapes of the codes and of each part, given that of the slot.
        mixes_entries: Whether a decoded entry depends on others, as in a product of factors. Such a code stores no
            weights, and no average that a rule divides by the root of an exact square, which may be 0 where it is not.
        name: The name in errors and checkpoints. Checkpoints tell codes apart by it, so change it with the functions.
        per_block: The names of parts with a value for each block.
        per_leaf: The names of parts with one value for the leaf.

    Raises:
        TypeError: If `encode` or `decode` does not accept its arguments.
        ValueError: If `block` is not a power of two, if blocks share nothing, if `per_block` has no block, if two parts
            have one name, if `packs` is neither 1 nor 2, or if `shapes_of` is beside a block, `per_leaf`, `packs=2` or
            `random`; on use, if `encode`, `decode` or `scale` returns another shape or fewer bits.

    Example:
        >>> halves = gradtx.Codec(
        ...     lambda values: values.half(), lambda codes: codes.float(), name="float16"
        ... )
        >>> state = gradtx.adam(state_dtype=halves).init({"w": torch.zeros(64, 64)})
        >>> state["scale_by_adam"]["exp_avg"]["w"].dtype
        torch.float16
    """

    encode: Callable[..., Any]
    decode: Callable[..., Tensor]
    block: int | None = None
    scale: Callable[[Tensor], Tensor] | None = largest_of_block
    parts: tuple[str, ...] = ()
    nonnegative: Codec | None = None
    packs: int = 1
    random: bool = False
    shapes_of: Callable[[Shape], tuple[Shape, ...]] | None = None
    mixes_entries: bool = False
    name: str = "codec"
    per_block: tuple[str, ...] = ()
    per_leaf: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.block is not None and not _is_block(self.block):
            raise ValueError(f"Codec: block must be a power of two, got {self.block!r}")
        if self.packs not in (1, 2):
            raise ValueError(f"Codec: packs must be 1 or 2, got {self.packs!r}")
        self._check_parts()
        scale = (SCALE,) if self._has_scale else ()
        noise = ("noise",) if self.random else ()
        _check_accepts("encode", self.encode, ("values", *scale, *noise))
        _check_accepts("decode", self.decode, ("codes", *list(self.extents)[1:]))

    def _check_parts(self) -> None:
        """Raise an error for parts that are no names or not different, or that this code has no extents for."""
        shares = self.block is not None or self.per_block or self.per_leaf
        if self.shapes_of is not None and (shares or self.packs > 1 or self.random):
            raise ValueError(
                "Codec: shapes_of describes a code of whole slots, which has no block, packs=1 and no random bits; "
                "name all of its parts in parts"
            )
        if self.block is None and self.per_block:
            raise ValueError(
                f"Codec: per_block={self.per_block!r} needs a block, the number of entries that share such a part"
            )
        if self.block is not None and self.scale is None and not self.per_block:
            raise ValueError(
                "Codec: blocks with scale=None share what per_block names, which is empty; omit block"
            )
        for argument in ("parts", "per_block", "per_leaf"):
            names = getattr(self, argument)
            if not isinstance(names, tuple) or not all(map(_is_name, names)):
                raise ValueError(
                    f"Codec: {argument} must be a tuple of names, such as ('error',), got {describe(names)}"
                )
        for suffix in self.suffixes:
            if self.suffixes.count(suffix) > 1:
                raise ValueError(
                    f"Codec: two parts have the name {suffix!r}; {TAKEN.get(suffix, 'rename one of them')}"
                )

    @classmethod
    def named(cls, name: str, block: int | None = None) -> Codec:
        """Return a built-in code by name, optionally with a different block length.

        Args:
            name: "int8", "int4", "float8", "bfloat16+8", "bfloat16:stochastic" or "factored".
            block: The number of entries that share a scale, a power of two.

        Raises:
            ValueError: If the name is unknown, or if the code does not support the block length.

        Example:
            >>> gradtx.Codec.named("int8", block=128)
            Codec.named('int8', block=128)
        """
        if name not in CODES:
            raise ValueError(f"Codec: unknown code {name!r}; {nearest(name, CODES)}")
        code = CODES[name]
        if block is None or block == code.block:
            return code
        if code.block is None:
            raise ValueError(
                f"Codec: {name!r} has no scales, so it does not accept a block; omit block"
            )
        positive = code.nonnegative
        if positive is not None:
            positive = dataclasses.replace(positive, block=block)
        return dataclasses.replace(code, block=block, nonnegative=positive)

    def __repr__(self) -> str:
        code = CODES.get(self.name)
        if code is None or code.encode is not self.encode:
            return f"Codec({describe(self.encode)}, {describe(self.decode)}, name={self.name!r})"
        if code.block == self.block:
            return f"Codec.named({self.name!r})"
        return f"Codec.named({self.name!r}, block={self.block})"

    @property
    def label(self) -> str:
        """The name and the block, as checkpoints say them."""
        return self.name if self.block is None else f"{self.name}/{self.block}"

    # The tensors of a coded slot.

    @property
    def extents(self) -> dict[str, Extent]:
        """What the codes, with the suffix "", and each part have a value for, in the order of `decode`."""
        extents: dict[str, Extent] = {"": "entry"}
        extents.update(dict.fromkeys(self.parts, "entry"))
        extents.update(dict.fromkeys(self.per_block, "block"))
        extents.update(dict.fromkeys(self.per_leaf, "leaf"))
        if self._has_scale:
            extents[SCALE] = "block"
        return extents

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The names of the tensors that a coded slot stores in addition to the codes."""
        scale = (SCALE,) if self._has_scale else ()
        key = (KEY,) if self.random else ()
        return (*self._encoded_parts, *scale, *key)

    @property
    def _encoded_parts(self) -> tuple[str, ...]:
        """The names of the parts that `encode` returns."""
        return (*self.parts, *self.per_block, *self.per_leaf)

    @property
    def _has_scale(self) -> bool:
        """Whether blocks share a scale, a part that is known before `encode`."""
        return self.block is not None and self.scale is not None

    @property
    def sees_whole_leaf(self) -> bool:
        """Whether what is stored of an entry depends on the whole leaf, so that ranks may not divide it."""
        return self.shapes_of is not None or bool(self.per_leaf)

    def codes_rows_alone(self, ndim: int) -> bool:
        """Whether each row of a slot, an index of dimension 0, is coded without the others."""
        if self.sees_whole_leaf:
            return False
        return ndim > 1 or (self.block is None and self.packs == 1)

    def for_sign(self, nonnegative: bool) -> Codec:
        """Return the code for slots that are never negative if `nonnegative` and there is one, else this code."""
        if nonnegative and self.nonnegative is not None:
            return self.nonnegative
        return self

    def pack(self, values: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """Encode `values`: return the tensors that store them, by suffix; "" for the codes."""
        arguments = [values] if noise is None else [values, noise]
        if self.block is not None:
            count = _blocks_of_row(values.shape, self.block)
            arguments = [_in_blocks(tensor, self.block, count) for tensor in arguments]
        blocks, *noises = arguments
        scales = self._scales(blocks)
        encoded = self.encode(blocks, *scales, *noises)
        tensors = encoded if isinstance(encoded, tuple) else (encoded,)
        expected = self._shapes_of_encoded(blocks.shape, values.shape)
        if [getattr(tensor, "shape", None) for tensor in tensors] != expected:
            raise self._error_of_encoded(encoded, expected)
        packed: dict[str, Tensor] = {}
        for suffix, tensor in zip(self.extents, (*tensors, *scales), strict=True):
            packed[suffix] = self._stored(suffix, tensor, values)
        return packed

    def pack_in_parts(
        self, values: Tensor, noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Like `pack`, in little memory beyond the result: a part of the values at a time, with the same bits."""
        parts = self._parts_of(values.shape)
        if len(parts) < 2:
            return self.pack(values, noise)
        stored: dict[str, Tensor] = {}
        shapes = self.shapes(values.shape)
        for part in parts:
            of_part = None if noise is None else noise[part]
            for suffix, tensor in self.pack(values[part], of_part).items():
                if suffix not in stored:
                    stored[suffix] = tensor.new_empty(shapes[suffix])
                stored[suffix][self._stored_part(suffix, part, values.shape)] = tensor
        return stored

    def unpack_in_parts(self, packed: dict[str, Tensor], shape: Shape) -> Tensor:
        """Like `unpack`, in little memory beyond the result."""
        parts = self._parts_of(shape)
        if len(parts) < 2:
            return self.unpack(packed, shape)
        values: Tensor | None = None
        for part, decoded in zip(
            parts, self.unpacked_parts(packed, shape), strict=True
        ):
            if values is None:
                values = decoded.new_empty(tuple(shape))
            values[part] = decoded
        assert values is not None
        return values

    def unpacked_parts(
        self, packed: dict[str, Tensor], shape: Shape
    ) -> Iterator[Tensor]:
        """Decode ranges of rows, one after another, of a code that does not see the whole leaf."""
        for part in self._parts_of(shape):
            of_part = {
                suffix: tensor[self._stored_part(suffix, part, shape)]
                for suffix, tensor in packed.items()
            }
            yield self.unpack(of_part, (part.stop - part.start, *shape[1:]))

    def _parts_of(self, shape: Shape) -> list[slice]:
        """Return ranges of rows, or of whole blocks of a vector, that are coded alone; none if the code sees more."""
        if self.sees_whole_leaf or not shape:
            return []
        rows, *others = shape
        block = self.block or 1
        if others:  # each row has whole blocks
            count = max(PART // (block * _blocks_of_row(shape, block)), 1)
        else:  # a vector is one row; two codes may share a byte
            count = max(PART // (2 * block), 1) * 2 * block
        return [slice(i, min(i + count, rows)) for i in range(0, rows, count)]

    def _stored_part(self, suffix: str, part: slice, shape: Shape) -> slice:
        """Return where a stored tensor has a part of a slot."""
        size = 1
        if len(shape) < 2 and self.extents[suffix] == "block":
            size = self.block or 1
        elif len(shape) < 2 and suffix == "" and self.packs == 2:
            size = 2
        return slice(part.start // size, -(-part.stop // size))

    def _scales(self, blocks: Tensor) -> list[Tensor]:
        """Return the scale of each block, if this code has scales."""
        if self.block is None or self.scale is None:
            return []
        scale = self.scale(blocks.abs().amax(-1, keepdim=True))
        expected = (*blocks.shape[:-1], 1)
        if getattr(scale, "shape", None) != expected:
            raise ValueError(
                f"Codec {self.name!r}: scale must return a tensor of shape {expected}, got {describe(scale)}"
            )
        return [scale]

    def _shapes_of_encoded(self, blocks: Shape, slot: Shape) -> list[Shape]:
        """Return the shapes of what `encode` returns, given those of its values and of the slot."""
        if self.shapes_of is not None:
            return list(self.shapes_of(tuple(slot)))
        shapes: dict[Extent, Shape] = {
            "entry": tuple(blocks),
            "block": (*blocks[:-1], 1),
            "leaf": (),
        }
        extents = self.extents
        return [shapes[extents[suffix]] for suffix in ("", *self._encoded_parts)]

    def _error_of_encoded(self, encoded: Any, expected: list[Shape]) -> ValueError:
        """Return the error for results of `encode` that have other shapes than expected."""
        is_like_values = self.shapes_of is None and len(set(expected)) == 1
        shapes = expected[0] if is_like_values else expected
        return ValueError(
            f"Codec {self.name!r}: encode must return ({', '.join(('codes', *self._encoded_parts))}) of shape "
            f"{shapes}, got {describe(encoded)}"
        )

    def _stored(self, suffix: str, tensor: Tensor, values: Tensor) -> Tensor:
        """Return the codes or a part of these values in the form in which they are stored."""
        extent = self.extents[suffix]
        if extent == "block":
            return tensor.squeeze(-1) if values.ndim > 1 else tensor.reshape(-1)
        if extent == "entry" and self.block is not None:
            tensor = _out_of_blocks(tensor, values)
        is_packed = suffix == "" and self.packs == 2 and values.ndim > 0
        return _pairs(tensor) if is_packed else tensor

    def unpack(self, packed: dict[str, Tensor], shape: Shape) -> Tensor:
        """Decode the tensors of `pack` to values of a given shape."""
        codes = packed[""]
        if self.packs == 2 and codes.ndim:
            codes = _halves(codes, shape)
        tensors = {suffix: packed[suffix] for suffix in self.extents}
        tensors[""] = codes
        if self.shapes_of is not None:
            return self._decoded([*tensors.values()], shape)
        if self.block is None:
            return self._decoded([*tensors.values()], codes.shape)
        arguments = self._in_blocks(tensors, self.block)
        values = self._decoded(arguments, arguments[0].shape)
        return _out_of_blocks(values, codes)

    def _in_blocks(self, tensors: dict[str, Tensor], block: int) -> list[Tensor]:
        """Return stored tensors, of which the codes are not packed, as `decode` receives them."""
        extents = self.extents
        # As stored, not from the number of entries: symbolic sizes would be compared.
        count = next(
            tensors[suffix].shape[-1]
            for suffix in extents
            if extents[suffix] == "block"
        )
        arguments: list[Tensor] = []
        for suffix, tensor in tensors.items():
            if extents[suffix] == "entry":
                tensor = _in_blocks(tensor, block, count)
            elif extents[suffix] == "block":
                tensor = tensor.reshape(arguments[0].shape[0], count, 1)
            arguments.append(tensor)
        return arguments

    def _decoded(self, arguments: list[Tensor], shape: Shape) -> Tensor:
        """Return what `decode` returns, if that has this shape and enough bits."""
        values = self.decode(*arguments)
        if self.shapes_of is not None and values.numel() == math.prod(shape):
            values = values.reshape(shape)
        if values.shape != shape or values.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"Codec {self.name!r}: decode must return float32 values of shape {tuple(shape)}, got "
                f"{describe_kind(values)}"
            )
        return values

    def shape_of(self, codes: Shape, like: Shape) -> Shape:
        """Return the shape of the values, given the shapes of the codes and of the leaf."""
        if self.shapes_of is not None:
            return like
        if self.packs == 1 or not codes:
            return codes
        if like and _halved(like) == codes:
            return like
        return (*codes[:-1], 2 * codes[-1])

    def restores(self, shape: Shape, like: Shape) -> bool:
        """Whether codes determine a slot's shape and their own kind.

        If they are packed, an odd dimension that the leaf does not have is lost, and codes of a dimension of 1 look
        like those of 8 bits.
        """
        codes = self.shapes(shape)[""]
        if self.packs == 2 and shape and codes == shape:
            return False
        return self.shape_of(codes, like) == shape

    def shapes(self, shape: Shape) -> dict[str, Shape]:
        """Return the shapes of the tensors that store values of a given shape, by suffix."""
        if self.shapes_of is not None:
            own = self.shapes_of(tuple(shape))
            return dict(zip(("", *self.parts), own, strict=True))
        shapes = dict.fromkeys(self.extents, shape)
        for suffix, extent in self.extents.items():
            if extent == "leaf":
                shapes[suffix] = ()
            elif extent == "block":
                assert self.block is not None
                count = _blocks_of_row(shape, self.block)
                shapes[suffix] = (shape[0], count) if len(shape) > 1 else (count,)
        if self.packs == 2 and shape:
            shapes[""] = _halved(shape)
        return shapes

    def fills_rows(self, shape: Shape) -> bool:
        """Whether all blocks of a tensor are full, so that consecutive rows can be treated as one long row."""
        if self.shapes_of is not None:
            return False
        if self.packs == 2 and shape and shape[-1] % 2:
            return False
        return self.block is None or _row_length(shape) % self.block == 0


def _check_accepts(what: str, function: Any, arguments: tuple[str, ...]) -> None:
    """Raise an error for a function of a code that does not accept its arguments."""
    if not accepts(function, *arguments):
        raise TypeError(
            f"Codec: {what} must be a function of ({', '.join(arguments)}), got {describe(function)}"
        )


def _is_name(name: Any) -> bool:
    """Whether a part may have this name: keys of a state are split at their dots."""
    return isinstance(name, str) and name.isidentifier()


def _is_block(length: Any) -> bool:
    """Whether a length is a power of two, at least 2."""
    return type(length) is int and length >= 2 and length & (length - 1) == 0


def _halved(shape: Shape) -> Shape:
    """Return the shape of codes that are packed two per byte."""
    return (*shape[:-1], (shape[-1] + 1) // 2)


def _row_length(shape: Shape) -> int:
    """Return the number of entries per row: dimension 0 indexes rows, the rest is flattened; a vector is one row."""
    row = shape if len(shape) < 2 else shape[1:]
    return math.prod(row)  # torch.Size.numel would specialize symbolic sizes


def _blocks_of_row(shape: Shape, block: int) -> int:
    return -(-_row_length(shape) // block)  # rounded up


def _in_blocks(values: Tensor, block: int, count: int) -> Tensor:
    """Reshape values to (rows, blocks, block); copies of a row's last entry pad its last block."""
    rows = values.shape[0] if values.ndim > 1 else 1
    length = _row_length(values.shape)
    if count * block == length:
        return values.reshape(rows, count, block)
    # Not torch's pad: inductor 2.13 miscompiles it for AVX-512 when a vector extends past the end.
    indices = torch.arange(count * block, device=values.device).clamp(max=length - 1)
    filled = values.reshape(rows, length)[:, indices]
    return filled.reshape(rows, count, block)


def _out_of_blocks(blocks: Tensor, like: Tensor) -> Tensor:
    """The reverse of `_in_blocks`."""
    length = _row_length(like.shape)
    rows, count, block = blocks.shape
    if count * block == length:
        return blocks.reshape(like.shape)
    values = blocks.reshape(rows, count * block)[:, :length]
    # Copy, so that the state does not keep the memory of the padding alive.
    copy = values.clone(memory_format=torch.contiguous_format)
    return copy.reshape(like.shape)


def _pairs(codes: Tensor) -> Tensor:
    """Pack pairs of 4-bit codes into bytes, along the last dimension."""
    if codes.shape[-1] % 2:
        codes = torch.cat((codes, codes[..., -1:]), -1)
    halves = (codes.shape[-1] // 2, 2)
    pairs = codes.unflatten(-1, halves)
    high = pairs[..., 1] * 16
    low = pairs[..., 0] & 15
    return (high + low).to(codes.dtype)


def _halves(pairs: Tensor, shape: Shape) -> Tensor:
    """The reverse of `_pairs`."""
    low = pairs & 15
    if pairs.dtype == torch.int8:
        low = (low ^ 8) - 8  # sign extension from 4 bits
    high = pairs >> 4
    codes = torch.stack((low, high), -1).flatten(-2)
    return codes if codes.shape == shape else codes[..., : shape[-1]]


# Integers with a scale. The code of a nonzero value is at least 1 in magnitude: a second moment that decodes to 0 would
# cause huge steps.


def _signed_codes(values: Tensor, scale: Tensor, most: int = 127) -> Tensor:
    """Softsign: x = s y / (2 - |y|) with y = q / most, so |q| = 2 most |x| / (s + |x|)."""
    size = values.abs()
    codes = size / (scale + size) * (2 * most)
    codes = codes.round().clamp(min=1)
    return (codes * values.sign()).to(torch.int8)


def _signed_values(codes: Tensor, scale: Tensor, most: int = 127) -> Tensor:
    q = codes.to(scale.dtype)
    return scale * (q / (2 * most - q.abs()))


def _positive_codes(values: Tensor, scale: Tensor, most: int = 255) -> Tensor:
    """Square root: x = s (q / most)^2."""
    roots = values.sqrt() * (most / scale.sqrt())
    codes = roots.round().clamp(min=1)
    return torch.where(values > 0, codes, 0.0).to(torch.uint8)


def _positive_values(codes: Tensor, scale: Tensor, most: int = 255) -> Tensor:
    y = codes.to(scale.dtype) * (1 / most)
    return scale * (y * y)


# By name, not as `partial`: copies and pickles of a code must have the same functions.


def _encode_int4(values: Tensor, scale: Tensor) -> Tensor:
    return _signed_codes(values, scale, 7)


def _decode_int4(codes: Tensor, scale: Tensor) -> Tensor:
    return _signed_values(codes, scale, 7)


def _encode_uint4(values: Tensor, scale: Tensor) -> Tensor:
    return _positive_codes(values, scale, 15)


def _decode_uint4(codes: Tensor, scale: Tensor) -> Tensor:
    return _positive_values(codes, scale, 15)


# Floating-point codes.


def bits_to_round(values: Tensor) -> Tensor:
    """Return the bits of float32 values, to which less than 2^16 may be added; all NaNs have the same bits.

    The sum would turn other NaNs into 0: their bits may all be ones, as in results of NVIDIA's GPUs (0x7fffffff).
    """
    # A tenth of the time of isnan and where.
    values = values.to(torch.float32).nan_to_num(math.nan, math.inf, -math.inf)
    return same_bits(values, torch.int32)


FLOAT8_MOST = 448.0
FLOAT8_LEAST = 2.0**-9


def _float8_scale(largest: Tensor) -> Tensor:
    """Return the largest magnitude / 448, rounded to 20 bits. 448 times it is then exact, so re-encoding returns it."""
    scale = largest.to(torch.float32).mul(1 / FLOAT8_MOST).clamp(min=LEAST_SCALE)
    rounded = (bits_to_round(scale) + 8) & ~15
    return same_bits(rounded, torch.float32)


def _encode_float8(values: Tensor, scale: Tensor) -> Tensor:
    size = (values.abs() / scale).clamp(FLOAT8_LEAST, FLOAT8_MOST)
    return (size * values.sign()).to(torch.float8_e4m3fn)


def _decode_float8(codes: Tensor, scale: Tensor) -> Tensor:
    return codes.to(scale.dtype) * scale


def _encode_bfloat16_and_8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Encode the upper 24 bits of float32: the nearest bfloat16, and the signed rest in 1/128 of half a unit."""
    bits_of_24 = (bits_to_round(values) + 0x80) >> 8
    upper = (bits_of_24 + 0x80) >> 8
    rest = bits_of_24 - (upper << 8)
    return _bfloat16_of(upper << 16), rest.to(torch.int8)


def _decode_bfloat16_and_8(codes: Tensor, error: Tensor) -> Tensor:
    upper = same_bits(codes.to(torch.float32), torch.int32)
    rest = error.to(torch.int32) << 8
    return same_bits(upper + rest, torch.float32)


def _encode_stochastically(values: Tensor, noise: Tensor) -> Tensor:
    """Round to one of the two neighbors in bfloat16, so that the expected result is the value."""
    upper = (bits_to_round(values) + noise.to(torch.int32)) & -0x10000
    return _bfloat16_of(upper)


def _bfloat16_of(bits: Tensor) -> Tensor:
    """Return the upper 16 bits of a float32 as bfloat16, by a cast: compilers vectorize it, unlike int16 operations."""
    return same_bits(bits, torch.float32).to(torch.bfloat16)


def _decode_bfloat16(codes: Tensor) -> Tensor:
    return codes.to(torch.float32)


# 64 by measurement: shorter blocks cost memory, longer ones accuracy. 4-bit codes need shorter blocks.
_UINT8 = Codec(_positive_codes, _positive_values, block=64, name="uint8")
_UINT4 = Codec(_encode_uint4, _decode_uint4, block=32, packs=2, name="uint4")
_FACTORED_MAGNITUDES = Codec(
    factors.encode_magnitudes,
    factors.decode_magnitudes,
    parts=("row", "column"),
    shapes_of=factors.shapes_of_magnitudes,
    mixes_entries=True,
    name="factored magnitudes",
)
CODES = {
    "int8": Codec(
        _signed_codes, _signed_values, block=64, nonnegative=_UINT8, name="int8"
    ),
    "int4": Codec(
        _encode_int4, _decode_int4, block=32, nonnegative=_UINT4, packs=2, name="int4"
    ),
    "float8": Codec(
        _encode_float8, _decode_float8, block=64, scale=_float8_scale, name="float8"
    ),
    "bfloat16+8": Codec(
        _encode_bfloat16_and_8,
        _decode_bfloat16_and_8,
        parts=("error",),
        name="bfloat16+8",
    ),
    "bfloat16:stochastic": Codec(
        _encode_stochastically,
        _decode_bfloat16,
        random=True,
        name="bfloat16:stochastic",
    ),
    "factored": Codec(
        factors.encode_signed,
        factors.decode_signed,
        parts=("row", "column"),
        nonnegative=_FACTORED_MAGNITUDES,
        shapes_of=factors.shapes_of_signed,
        mixes_entries=True,
        name="factored",
    ),
}
_NONNEGATIVE = (_UINT8, _UINT4, _FACTORED_MAGNITUDES)
BUILT_IN = {**CODES, **{code.name: code for code in _NONNEGATIVE}}
"""All codes by name, including those of slots that are never negative."""
