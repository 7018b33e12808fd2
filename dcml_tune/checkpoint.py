"""Checkpoints that load without running code: safetensors for numbers, JSON for the rest, a checksum between."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that is missing, torn, or was changed since it was written."""


def write(directory: Path, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write `name.safetensors` and `name.json` into a directory, each whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    data = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    text = json.dumps({"format": FORMAT, "sha256": hashlib.sha256(data).hexdigest(), **facts}, indent=1)
    _replace(directory / f"{name}.safetensors", data)
    _replace(directory / f"{name}.json", text.encode())


def read(directory: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts that `write` wrote.

    Raises:
        CheckpointError: if a file is missing, or does not hold what was written.
    """
    facts_file, tensors_file = directory / f"{name}.json", directory / f"{name}.safetensors"
    try:
        facts = json.loads(facts_file.read_text())
        data = tensors_file.read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {directory}: {name} cannot be read ({error}); take another") from None
    if facts.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {facts_file}: format {facts.get('format')} is not {FORMAT}; take another")
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise CheckpointError(f"checkpoint {tensors_file}: does not match the checksum beside it; take another")
    try:
        return load(data), facts
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {tensors_file}: {error}; take another") from None


def _replace(path: Path, data: bytes) -> None:
    """Write to a new name and rename, so that nobody ever sees half a file."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(data)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
