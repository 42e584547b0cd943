"""What several tests of the compiler share: recordings, chains of one rule, and arguments of a program."""

import random

import torch

import gradtx
from gradtx.compiler import record
from gradtx.compiler.record import PhaseResult

CPU = torch.device("cpu")
F64 = torch.float64


# Functions over lists.


def recorded(function, shapes, count=1, dtype=F64):
    """A recording of `function(number, *tensors)`, which returns results, or writes into its arguments at the end."""

    def run(arguments):
        results, writes = function(*arguments)

        def write():
            for target, value in writes:
                target.copy_(value)

        return PhaseResult(results, tuple(range(len(results))), None, write)

    return record(run, [F64] * count, [(dtype, shape) for shape in shapes])


def run(program, given, *columns):
    return program.run(program.prepare(given), list(columns))


def lists(seed, count=3, shape=(2, 3)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=F64) for _ in range(count)]


def expected_of(function, numbers, columns):
    """Results and arguments after the writes, leaf by leaf."""
    results, arguments = [], []
    for tensors in zip(*columns, strict=True):
        leaf = [tensor.clone() for tensor in tensors]
        values, writes = function(*[torch.tensor(number, dtype=F64) for number in numbers], *leaf)
        results.append([value.clone() for value in values])
        for target, value in [(target, value.clone()) for target, value in writes]:
            target.copy_(value)
        arguments.append(leaf)
    return results, arguments


# Chains of one rule, which kernels run.


def rule(function, init=None):
    """Return a chain whose steps add `function(gradient, ctx)` to parameters that are zero."""

    @gradtx.per_tensor()
    def apply():
        def update(update, state, param, ctx):
            result = function(update, state) if init is not None else function(update)
            return result, state

        return (init, update) if init is not None else update

    return gradtx.chain(apply(), gradtx.scale(1.0))


def moved(chain, gradients, compile=True):
    """Return what a step adds to zeros, and the ways in which it runs."""
    params = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    optimizer = gradtx.as_optimizer(chain, params, compile=compile)
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient
    optimizer.step()
    return [param.detach() for param in params], {item.way for item in optimizer.explain()}


# Reductions of rows, of matrices in any direction, and of filters.
ROWS = {
    "sum": lambda x: x / (1 + x.abs().sum(dim=-1, keepdim=True)),
    "mean": lambda x: x - x.mean(dim=-1, keepdim=True),
    "norm": lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    "largest": lambda x: x / x.abs().amax(dim=-1, keepdim=True),
    "smallest": lambda x: x - x.amin(dim=-1, keepdim=True),
    "all but the first": lambda x: x - x.mean(dim=tuple(range(1, x.ndim)), keepdim=True),
    "a sum of rows": lambda x: x / x.square().sum(dim=-1).sqrt().sum(),
    "of what rows give": lambda x: (x - x.mean(-1, keepdim=True)) / (x - x.mean(-1, keepdim=True)).abs().amax(-1, True),
    "the leaf": lambda x: x / x.abs().amax() - x.mean() + x.norm() * x.amin(),
    "a stage after a stage": lambda x: (x / x.norm()).abs().sum() * x,
    "sums before a stage of other sums": lambda x: x * ((x / x.norm()).sum() + x.abs().amax() + x.sum()),
}
DIRECTIONS = {
    "columns": lambda x: x - x.mean(dim=0, keepdim=True),
    "the largest of each column": lambda x: x / x.abs().amax(0),
    "rows and columns": lambda x: x / (1e-3 + x.square().mean(-1, True) * x.square().mean(-2, True)).sqrt(),
    "a sum of sums": lambda x: x * x.sum(-1, keepdim=True) / x.square().sum(-1, keepdim=True).mean(-2, keepdim=True),
    "of what columns give": lambda x: (x - x.mean(-2, True)) / (x - x.mean(-2, True)).norm(dim=-2, keepdim=True),
    "norms and entries": lambda x: x / x.norm(dim=-2, keepdim=True) + x.norm() * x.amin(-2, True),
    "a sum of columns, of all": lambda x: x / x.square().sum(0).sqrt().sum() - x.amax(),
}
CHANNELS = {
    "channels": lambda x: x - x.mean(dim=(0, 2, 3), keepdim=True),
    "each dimension": lambda x: (
        x
        / (x.abs().amax((1, 2, 3), True) + x.abs().amax((0, 2, 3), True) + x.abs().amax((0, 1, 3), True))
        * x.abs().amax((0, 1, 2), True)
    ),
    "the first and the last": lambda x: x - x.sum((1, 2), keepdim=True) / x.square().sum((0, 3), True).sum(),
    **{name: DIRECTIONS[name] for name in ("columns", "rows and columns", "of what columns give")},
}
FACTORED = {
    "adafactor": gradtx.adafactor,
    "adafactor_torch": lambda: gradtx.adafactor_torch(lr=0.1),
    "came": lambda: gradtx.came(lr=0.1),
    "sm3": lambda: gradtx.sm3(lr=0.1),
    "adam_mini": lambda: gradtx.adam_mini(lr=0.1),
    "factored": lambda: gradtx.chain(gradtx.scale_by_factored_rms(), gradtx.sgd(lr=0.1)),
    # The first phase reads no slot.
    "clip and adafactor": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.adafactor()),
    "clip and sm3": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.sm3(lr=0.1)),
}


# The arguments of a recording.


def scalars_of(recording, seed, least=1):
    """Return scalars as those of a step: counts and numbers between 0 and 1."""
    numbers = random.Random(seed)
    scalars = []
    for node in recording.scalars:
        is_float = node.meta["val"].dtype.is_floating_point
        scalars.append(numbers.uniform(0.1, 0.9) if is_float else numbers.randint(least, 40))
    return scalars


def columns_of(recording, count, zeros=False):
    """Return tensors of leaves with the arguments of a recording, each of which may begin with zeros of both signs."""
    torch.manual_seed(1)
    columns = []
    for node in recording.leaves:
        like = node.meta["val"]
        values = [torch.rand(like.shape, dtype=torch.float64) + 0.1 for _ in range(count)]
        for value in values if zeros and like.ndim else ():
            value.view(-1)[:2] = torch.tensor([0.0, -0.0])
        columns.append([value.to(like.dtype) for value in values])
    return columns


def copies(columns):
    return [[tensor.clone() for tensor in column] for column in columns]


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


def assert_equal_bits(columns, others):
    for i, (column, other) in enumerate(zip(columns, others, strict=True)):
        for leaf, (x, y) in enumerate(zip(column, other, strict=True)):
            assert torch.equal(bits(x), bits(y)), f"argument {i} of leaf {leaf}"
