"""Save parameters and a state to one safetensors file, and load them bit for bit."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradtx.base import tree as _tree
from gradtx.base.dtensor import is_sharded
from gradtx.base.messages import describe_kind
from gradtx.base.torch_names import readable
from gradtx.execution.runs import OwnMemory
from gradtx.state.nested import LEAF_STEPS

__all__ = ["load", "save"]

MOST = 3  # entries of each kind that an error lists


def save(path: str | os.PathLike[str], params: Any, state: Any) -> None:
    """Write parameters and a state to a safetensors file; on failure, the old file remains unchanged.

    Entries are named "params.<leaf>" and "state.<path>", and have the dtypes of the tensors. `save` writes a temporary
    file to the same folder and renames it when it is complete, so a crash or a full disk never loses a checkpoint.

    Args:
        path: The file, in an existing folder.
        params: A tree of tensors.
        state: A tree of tensors, as returned by `init` or `update`; the state of an ensemble also works.

    Raises:
        ImportError: If the package safetensors is missing.
        TypeError: If a leaf is neither a tensor nor None, if its dtype is complex128, or if its values cannot be read
            because it is inside a transform, on the meta device, or sharded over processes (use
            `torch.distributed.checkpoint` for sharded leaves).
        ValueError: If two leaves have the same dotted name.
        OSError: If the file cannot be written.

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
    path = Path(path)
    memory = OwnMemory()
    leaves, _ = _named("save", params, state)
    tensors: dict[str, Tensor] = {}
    for name, leaf in leaves.items():
        if is_sharded(leaf) or not readable(leaf):
            raise TypeError(
                f"save: the values of {name!r} cannot be read: it is sharded, on the meta device, or inside a transform"
            )
        if leaf.dtype == torch.complex128:
            raise TypeError(
                f"save: {name!r} has dtype {leaf.dtype}, which safetensors does not support; use torch.save"
            )
        # The format supports neither shared memory, nor strides, nor views that are conjugated or negated when read.
        plain = leaf.detach().resolve_conj().resolve_neg().contiguous()
        tensors[name] = memory.unshared(plain)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: folder {str(path.parent)!r} does not exist")
    metadata = {"format": "pt"}
    replace_file(
        path, lambda file: safetensors.torch.save_file(tensors, file, metadata)
    )


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a new file in the same folder and rename it when it is complete, so that the old one is never lost."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write(unfinished)
        with open(unfinished, "rb+") as file:
            # The content must reach the disk before the new name does.
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], params: Any, state: Any) -> tuple[Any, Any]:
    """Read a file written by `save`, after checking all its entries against trees of the same structure.

    Args:
        path: The file.
        params: Parameters with the names, shapes and dtypes of the saved run; their values are ignored. Not changed.
        state: A state for these parameters, such as `tx.init(params)`. It may lack the counts of leaves, `leaf_steps`,
            which a state has from the first missing gradient on; if only it has them, all are the file's `step`.

    Returns:
        `(params, state)`, new trees with the saved values, in the memory layouts and on the devices of the given trees.

    Raises:
        ImportError: If the package safetensors is missing.
        FileNotFoundError: If there is no such file.
        TypeError: If a leaf is neither a tensor nor None.
        ValueError: If the file is not a complete safetensors file, or if its entries do not match the trees. The error
            lists the first entries that are missing, unknown, or have a different shape or dtype.

    Example:
        See `save`.
    """
    safetensors = _safetensors("load")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load: file {str(path)!r} does not exist")
    try:
        saved = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"load: {str(path)!r} is not a complete safetensors file ({error})"
        ) from error
    order = {name: i for i, name in enumerate(_tree.named(params))}
    counts = [name for name in sorted(saved) if f".{LEAF_STEPS}." in name]
    counts.sort(key=lambda name: order.get(_clock_and_leaf(name)[1], len(order)))
    state = _with_counts(state, "state", counts)
    expected, unflatten = _named("load", params, state)
    for name in expected:
        clock, leaf = _clock_and_leaf(name)
        if leaf and f"{clock}.step" in saved:
            saved.setdefault(name, saved[f"{clock}.step"])
    _check(path, saved, expected)
    tree = unflatten(
        {name: _filled(like, saved[name]) for name, like in expected.items()}
    )
    return tree["params"], tree["state"]


def _safetensors(caller: str) -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f"{caller}: needs the package safetensors: pip install safetensors"
        ) from error
    return safetensors


def _named(
    caller: str, params: Any, state: Any
) -> tuple[dict[str, Tensor], Callable[[Mapping[str, Tensor]], Any]]:
    """Return all tensors by entry name, and a function that rebuilds both trees from such a mapping."""
    leaves, unflatten = _tree.flatten_any({"params": params, "state": state}, caller)
    tensors = {name: leaf for name, leaf in leaves.items() if leaf is not None}

    def rebuild(values: Mapping[str, Tensor]) -> Any:
        return unflatten({name: values.get(name) for name in leaves})

    return tensors, rebuild


def _clock_and_leaf(name: str) -> tuple[str, str]:
    """Return the clock and the leaf of an entry with the count of a leaf; an empty leaf for another entry."""
    clock, _, leaf = name.partition(f".{LEAF_STEPS}.")
    return clock, leaf


def _with_counts(state: Any, path: str, saved: list[str]) -> Any:
    """Return a state with the counts of leaves that were saved, which it need not have yet."""
    if not isinstance(state, dict):
        return state
    completed = {
        key: _with_counts(value, f"{path}.{key}", saved) for key, value in state.items()
    }
    prefix = f"{path}.{LEAF_STEPS}."
    leaves = [name.removeprefix(prefix) for name in saved if name.startswith(prefix)]
    if "step" in state and leaves:
        completed.setdefault(LEAF_STEPS, dict.fromkeys(leaves, state["step"]))
    return completed


def _check(
    path: Path, saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Raise one error for all problems."""
    unknown = [repr(name) for name in sorted(saved) if name not in expected]
    entries: dict[str, list[str]] = {"missing": [], "unknown": unknown, "different": []}
    for name, like in expected.items():
        if name not in saved:
            entries["missing"].append(repr(name))
        elif not _fits(name, saved[name], like):
            entries["different"].append(
                f"{name!r} is {describe_kind(saved[name])}, needs {describe_kind(like)}"
            )
    problems = [f"{kind}: {_first(items)}" for kind, items in entries.items() if items]
    if problems:
        raise ValueError(
            f"load: {str(path)!r} does not match these params and this state; {'; '.join(problems)}; "
            "build them as for the saved run, with its state_dtype"
        )


def _fits(name: str, saved: Tensor, like: Tensor) -> bool:
    """Whether a saved tensor has the kind of another one; a slot may also have been saved in 16 bits."""
    is_widened = name.startswith("state.") and saved.dtype in (
        torch.float16,
        torch.bfloat16,
    )
    dtype = torch.float32 if is_widened else saved.dtype
    return saved.shape == like.shape and like.dtype in (saved.dtype, dtype)


def _first(items: list[str]) -> str:
    listed = ", ".join(items[:MOST])
    more = len(items) - MOST
    return f"{listed} and {more} more" if more > 0 else listed


def _filled(like: Tensor, value: Tensor) -> Tensor:
    """Copy a saved value to the memory layout of `like`, since the order of summation may depend on the layout."""
    device = torch.device("cpu") if like.is_meta else like.device
    return torch.empty_like(like, device=device, requires_grad=False).copy_(value)
