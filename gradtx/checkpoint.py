"""Save parameters and a state in one safetensors file, and continue bit for bit."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradtx import _tree
from gradtx._arguments import readable
from gradtx._program import Memory
from gradtx._sharding import is_sharded

__all__ = ["load", "save"]

MOST = 3  # entries of each kind that an error lists


def save(path: str | os.PathLike[str], params: Any, state: Any) -> None:
    """Write parameters and a state to a safetensors file, or leave the old file as it was.

    Entries are named "params.<leaf>" and "state.<path>", and have the dtypes of the tensors. The file is written beside
    its place and moved there when it is whole, so that a crash or a full disk costs no checkpoint.

    Args:
        path: The file, in a folder that exists.
        params: A tree of tensors.
        state: A tree of tensors: what `init` or `update` returned; also of an ensemble.

    Raises:
        ImportError: the package safetensors is missing.
        TypeError: a leaf that is neither tensor nor None, or whose values can't be read: inside a transform, on the
            meta device, divided between processes (use `torch.distributed.checkpoint` for these).
        ValueError: two leaves with the same dotted name.
        OSError: the file can't be written.

    Example:
        >>> import tempfile, pathlib
        >>> tx, params = gradtx.adam(), {"w": torch.tensor([1.0, 2.0])}
        >>> state = tx.init(params)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "run.safetensors"
        ...     gradtx.save(path, params, state)
        ...     params, state = gradtx.load(path, params, state)
        >>> params["w"], state["step"]
        (tensor([1., 2.]), tensor(0))
    """
    safetensors = _safetensors("save")
    path, memory, tensors = Path(path), Memory(), {}
    for name, leaf in _named("save", params, state)[0].items():
        if is_sharded(leaf) or not readable(leaf):
            raise TypeError(f"save: {name!r} has no values to write: it is divided, meta, or inside a transform")
        # The format has no shared memory and no strides.
        tensors[name] = memory.fresh(leaf.detach().contiguous())
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: there is no folder {str(path.parent)!r}")
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        safetensors.torch.save_file(tensors, beside, metadata={"format": "pt"})
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())  # the name must not reach the disk before the content does
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], params: Any, state: Any) -> tuple[Any, Any]:
    """Read what `save` wrote; first everything is checked against trees built in the same way.

    Args:
        path: The file.
        params: Parameters as they were built: names, shapes and dtypes count, values don't. They stay as they are.
        state: A state for them, such as `tx.init(params)`.

    Returns:
        `(params, state)`, new trees with the saved values, in the memory layouts and on the devices of those given.

    Raises:
        ImportError: the package safetensors is missing.
        FileNotFoundError: there is no such file.
        TypeError: a leaf that is neither tensor nor None.
        ValueError: the file is no whole safetensors file, or its entries are not those of the trees: the first that are
            missing, unknown, or of another shape or dtype are listed.

    Example:
        See `save`.
    """
    safetensors = _safetensors("load")
    path, (expected, unflatten) = Path(path), _named("load", params, state)
    if not path.is_file():
        raise FileNotFoundError(f"load: there is no file {str(path)!r}")
    try:
        found = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"load: {str(path)!r} is no whole safetensors file ({error})") from error
    _check(path, found, expected)
    both = unflatten({name: _filled(like, found[name]) for name, like in expected.items()})
    return both["params"], both["state"]


def _safetensors(caller: str) -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(f"{caller}: needs the package safetensors: pip install safetensors") from error
    return safetensors


def _named(caller: str, params: Any, state: Any) -> tuple[dict[str, Tensor], Callable[[Mapping[str, Tensor]], Any]]:
    """All tensors by the names of their entries, and the function that puts others into their places."""
    leaves, unflatten = _tree.flatten_any({"params": params, "state": state}, caller)
    empty = dict.fromkeys(leaves)
    tensors = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    return tensors, lambda values: unflatten({**empty, **values})


def _check(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """One error for all that is wrong."""
    differ = [
        f"{name!r} is {_told(found[name])}, needs {_told(like)}"
        for name, like in expected.items()
        if name in found and _told(found[name]) != _told(like)
    ]
    problems = {
        "missing": [repr(name) for name in expected if name not in found],
        "unknown": [repr(name) for name in sorted(found) if name not in expected],
        "different": differ,
    }
    if any(problems.values()):
        told = "; ".join(f"{kind}: {_first(items)}" for kind, items in problems.items() if items)
        raise ValueError(
            f"load: {str(path)!r} does not fit these params and this state; {told}; build them as when it was saved"
        )


def _told(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _first(items: list[str]) -> str:
    more = len(items) - MOST
    return ", ".join(items[:MOST]) + (f" and {more} more" if more > 0 else "")


def _filled(like: Tensor, value: Tensor) -> Tensor:
    """A saved value in the memory layout of `like`, since the order of sums may depend on it."""
    device = torch.device("cpu") if like.is_meta else like.device
    return torch.empty_like(like, device=device, requires_grad=False).copy_(value)
