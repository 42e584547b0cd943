"""Dense forms in float64 of methods that use the model's curvature, and how tests call these methods."""

import torch

import gradtx


def vector_of(tree):
    """All entries, leaves in the order of the dict."""
    return torch.cat([leaf.reshape(-1) for leaf in tree.values()])


def tree_of(vector, like):
    parts = vector.split([leaf.numel() for leaf in like.values()])
    return {name: part.reshape(leaf.shape) for part, (name, leaf) in zip(parts, like.items(), strict=True)}


def jacobian_of(fn, params):
    """The matrix of derivatives of a vector by all entries."""
    blocks = torch.func.jacrev(fn)(params)
    return torch.cat([block.reshape(len(block), -1) for block in blocks.values()], dim=1)


def damped_solution(J, r, damping, scaling="identity"):
    """The minimum of |J u - r|^2 + damping |D^(1/2) u|^2, by singular values."""
    squares = J.square().sum(0)
    D = torch.where(squares == 0, 1.0, squares) if scaling == "diagonal" else torch.ones_like(squares)
    U, s, Vh = torch.linalg.svd(J / D.sqrt(), full_matrices=False)
    return (Vh.mT @ (s / (s.square() + damping) * (U.mT @ r))) / D.sqrt()


def updates_of(tx, params, **functions):
    """The updates of a first call."""
    updates, _ = tx.update(params, tx.init(params), params, **functions)
    return updates


def path_of(tx, params, steps, **functions):
    """The parameters after each of some updates, as rows."""
    state, rows = tx.init(params), []
    for _ in range(steps):
        updates, state = tx.update(params, state, params, **functions)
        params = gradtx.apply_updates(params, updates)
        rows.append(vector_of(params))
    return torch.stack(rows)


def optimizer_of(tx, params):
    """An optimizer of copies of these parameters, and the copies by name."""
    leaves = {name: torch.nn.Parameter(value.clone()) for name, value in params.items()}
    return gradtx.as_optimizer(tx, leaves.items()), leaves


def path_in_optimizer(tx, params, fn, steps):
    """As `path_of`, for residuals, in an optimizer."""
    optimizer, leaves = optimizer_of(tx, params)
    rows = []
    for _ in range(steps):
        optimizer.step(lambda: fn(leaves))
        rows.append(vector_of(leaves).detach().clone())
    return torch.stack(rows)


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SHAPES = {"a": (2, 3), "b": (), "c": (2,)}


def start_of(seed=0):
    """Leaves of several shapes."""
    return {name: drawn(seed + i, *shape) for i, (name, shape) in enumerate(SHAPES.items())}


def residuals_of(m, seed=10, rank=None):
    """A function of `start_of` with m residuals, whose Jacobian has at most this rank."""
    n = vector_of(start_of()).numel()
    inner, outer = drawn(seed, rank or n, n), drawn(seed + 1, m, rank or n)
    target = drawn(seed + 2, m)
    return lambda params: outer @ (0.3 * inner @ vector_of(params)).tanh() - target
