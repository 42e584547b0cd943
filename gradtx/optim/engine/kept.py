"""Compiled programs, kept in inductor's cache as text, so that later processes run them without importing inductor.

Its import takes longer than all else in the first step of a process whose programs were compiled before.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import GraphModule, Node

from gradtx import _torch

logger = logging.getLogger("gradtx")
FOLDER = "gradtx"


def kept_program(place: Path, assumptions: _torch.Assumptions) -> Callable[..., Any] | None:
    """The program of a place, if an earlier process has kept one that can be used."""
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        program = _torch.run_kernels(_torch.Kernels(content["method"], content["libraries"]))
        return program if assumptions.add(content["assumptions"]) else None
    except (OSError, ImportError, AttributeError, LookupError, TypeError, ValueError, SyntaxError):
        logger.debug("no program in %s", place, exc_info=True)  # inductor makes it again
        return None


def keep(place: Path, program: Callable[..., Any], assumptions: _torch.Assumptions) -> None:
    """Keep a program that was compiled under assumptions about sizes, if it is simple enough."""
    kernels = _torch.kernels_of(program)
    if kernels is None or _torch.was_loaded(program):
        return
    try:
        content = {"method": kernels.method, "libraries": kernels.libraries, "assumptions": assumptions.added()}
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False, encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(file.name, place)  # at once: other processes may read
    except (OSError, AttributeError):
        logger.debug("the program for %s is not kept", place, exc_info=True)


def place_of(graph: GraphModule, options: Mapping[str, Any]) -> Path | None:
    """Where the program of a graph is kept: a file named by all that it depends on; None if it may not be kept."""
    folder, settings = _torch.compiler_cache(), _torch.compiler_settings()
    if folder is None or settings is None or not _torch.compiles_at_once(graph, options):
        return None
    if graph.graph.find_nodes(op="get_attr"):  # constants, which have no text
        return None
    facts = [_surroundings(), settings, repr(sorted(options.items())), str(torch.get_num_threads())]
    facts += [_text_of(node) for node in graph.graph.nodes]
    digest = hashlib.sha256("\n".join(facts).encode())
    return folder / FOLDER / f"{digest.hexdigest()}.json"


def _text_of(node: Node) -> str:
    value = node.meta.get("val")
    facts: list[Any] = [node.op, node.name, _target_of(node), node.args, node.kwargs]
    if isinstance(value, Tensor):
        facts += [value.dtype, value.device]
        for size in (*value.shape, *value.stride(), value.storage_offset()):
            facts += _size(size)
    elif isinstance(value, SymInt):
        facts += _size(value)
    return repr(facts)


def _target_of(node: Node) -> str:
    """What a node calls, without the address that the text of a function has."""
    name = getattr(node.target, "__qualname__", None)
    return str(node.target) if name is None else f"{node.target.__module__}.{name}"


def _size(size: Any) -> tuple[Any, ...]:
    """A size as text, with that of the examples: inductor may plan loops by it."""
    return (str(size), _torch.hint_of(size)) if isinstance(size, SymInt) else (size,)


@functools.cache
def _surroundings() -> str:
    """The versions and the processor that programs are for."""
    modules = (Path(_torch.__file__), Path(__file__))
    codes = [hashlib.sha256(module.read_bytes()).hexdigest() for module in modules]
    environment = sorted(item for item in os.environ.items() if item[0].startswith(("TORCH", "CXX", "CPLUS")))
    return repr([torch.__version__, torch.version.git_version, *codes, environment, platform.machine(), _processor()])


def _processor() -> str:
    """The instructions that the processor knows, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
