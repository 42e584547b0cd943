"""A sweep in a file, from which a later call goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from gradtx.checkpoint import replace_file
from gradtx.sweeps.members import Progress


class SweepCheckpoint:
    """The progress of all chunks of members.

    Args:
        path: The file; None for no checkpoint.
        arguments: What determines the results; a file with other arguments is refused.

    Raises:
        ValueError: If the file has other arguments, or its folder does not exist.
    """

    def __init__(self, path: str | os.PathLike[str] | None, arguments: dict[str, Any]):
        self._path = None if path is None else Path(path)
        self._arguments = arguments
        self._chunks: dict[int, dict[str, Any]] = {}
        if self._path is None:
            return
        if not self._path.parent.is_dir():
            raise ValueError(
                f"sweep: the folder of checkpoint does not exist, {self._path.parent}"
            )
        if self._path.exists():
            saved = torch.load(self._path, weights_only=True)
            self._check(saved.get("arguments") if isinstance(saved, dict) else None)
            self._chunks = saved["chunks"]
            # Losses, and functions that make batches, may draw from torch's generators.
            torch.set_rng_state(saved["random"])
            if "cuda_random" in saved and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(saved["cuda_random"])

    def _check(self, saved: Any) -> None:
        if not isinstance(saved, dict):
            raise ValueError(f"sweep: {self._path} is not a checkpoint of a sweep")
        for name, value in self._arguments.items():
            if saved.get(name) != value:
                raise ValueError(
                    f"sweep: {self._path} was written with other arguments: {name} was {saved.get(name)!r}, "
                    f"now {value!r}; pass the same ones, or another file"
                )

    def load(self, chunk: int) -> Progress | None:
        """Return the progress of a chunk; None if it has not started."""
        saved = self._chunks.get(chunk)
        return None if saved is None else Progress(**saved)

    def save(self, chunk: int, progress: Progress, is_finished: bool) -> None:
        """Write the progress to the file, which is complete at any time."""
        if self._path is None:
            return
        fields = dict(vars(progress))
        if is_finished:
            fields["state"] = None  # nothing reads it again
        self._chunks[chunk] = fields
        content = {
            "arguments": self._arguments,
            "chunks": self._chunks,
            "random": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            content["cuda_random"] = torch.cuda.get_rng_state_all()
        replace_file(self._path, lambda file: torch.save(content, file))
