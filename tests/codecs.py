"""Codes as users write them, with parts of every extent; functions of a module, so that processes can send them."""

import torch

from gradtx import Codec

LEAST = 2.0**-100


def affine(values):
    """A scale and a zero point, as torchao and bitsandbytes have them; 0 is exact."""
    low, high = values.amin(-1, keepdim=True).clamp(max=0), values.amax(-1, keepdim=True).clamp(min=0)
    step = ((high - low) / 255).float().clamp(min=LEAST)
    zero = (-low / step).round()
    codes = (values / step + zero).round().clamp(0, 255)
    return codes.to(torch.uint8), step, zero.to(torch.uint8)


def from_affine(codes, step, zero):
    return (codes.float() - zero.float()) * step


AFFINE = Codec(affine, from_affine, block=64, scale=None, per_block=("step", "zero"), name="affine")


def doubly(values):
    """Scales of blocks that are codes themselves, of 8 bits, as in QLoRA: shares of the leaf's largest magnitude."""
    sizes = values.abs().amax(-1, keepdim=True)
    largest = sizes.amax().float().clamp(min=LEAST)
    shares = (sizes / largest * 255).ceil().clamp(1, 255)
    codes = (values / (shares * (largest / 255)) * 127).round()
    return codes.to(torch.int8), shares.to(torch.uint8), largest


def from_doubly(codes, shares, largest):
    return codes.float() / 127 * (shares.float() * (largest / 255))


DOUBLY = Codec(doubly, from_doubly, block=64, scale=None, per_block=("scale",), per_leaf=("largest",), name="doubly")


def by_leaf(values):
    """A scale and a zero point for the leaf, and no blocks."""
    low, high = values.amin().clamp(max=0), values.amax().clamp(min=0)
    step = ((high - low) / 65535).float().clamp(min=LEAST)
    zero = (-low / step).round()
    codes = (values / step + zero).round().clamp(0, 65535) - 32768
    return codes.to(torch.int16), step, zero.to(torch.int32)


def from_leaf(codes, step, zero):
    return (codes.float() + 32768 - zero.float()) * step


BY_LEAF = Codec(by_leaf, from_leaf, per_leaf=("step", "zero"), name="by leaf")


def in_four_bits(values):
    """NVFP4's scales, of 8-bit floats; an entry of its own says what the codes are off by, as a part per entry."""
    sizes = values.abs().amax(-1, keepdim=True)
    largest = sizes.amax().float().clamp(min=LEAST)
    scale = (sizes / largest * 448).clamp(min=2.0**-9).to(torch.float8_e4m3fn)
    unit = scale.float() * (largest / 448) / 7
    codes = (values / unit).round().clamp(-8, 7)
    rest = ((values / unit - codes) * 254).round().clamp(-127, 127)
    return codes.to(torch.int8), rest.to(torch.int8), scale, largest


def from_four_bits(codes, rest, scale, largest):
    unit = scale.float() * (largest / 448) / 7
    return (codes.float() + rest.float() / 254) * unit


FOUR_BITS = Codec(
    in_four_bits,
    from_four_bits,
    block=16,
    scale=None,
    parts=("rest",),
    per_block=("scale",),
    per_leaf=("largest",),
    packs=2,
    name="four bits",
)


def beside_scale(values, scale):
    """A part per block beside the scale that `Codec` computes."""
    mean = (values / scale).mean(-1, keepdim=True).to(torch.bfloat16)
    codes = ((values / scale - mean.float()) * 63).round()
    return codes.to(torch.int8), mean


def from_beside_scale(codes, mean, scale):
    return (codes.float() / 63 + mean.float()) * scale


BESIDE_SCALE = Codec(beside_scale, from_beside_scale, block=32, per_block=("mean",), name="beside scale")


def at_random(values, noise):
    """Rounded at random, with a scale in 16 bits."""
    unit = (values.abs().amax(-1, keepdim=True).clamp(min=LEAST) / 100).to(torch.bfloat16)
    return (values / unit.float() + noise / 2**16).floor().to(torch.int8), unit


def from_random(codes, unit):
    return codes.float() * unit.float()


AT_RANDOM = Codec(at_random, from_random, block=32, scale=None, per_block=("unit",), random=True, name="at random")

OF_USERS = {codec.name: codec for codec in (AFFINE, DOUBLY, BY_LEAF, FOUR_BITS, BESIDE_SCALE, AT_RANDOM)}
