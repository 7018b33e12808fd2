"""Checkpoints that load without running code: safetensors for numbers, JSON for the rest, checksums of both."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dcml_tune.config import SettingError
from dcml_tune.files import TornFileError, read_sealed, write_sealed, write_whole

log = logging.getLogger(__name__)

FORMAT = 2


class CheckpointError(SettingError):
    """A checkpoint that is missing, torn, or was changed since it was written."""


def write(directory: Path, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write `name.safetensors` and then `name.json` into a directory, each whole or not at all.

    The JSON file makes the checkpoint valid. To replace a checkpoint, write under another name (`numbered`): two
    files cannot be replaced at once.
    """
    directory.mkdir(parents=True, exist_ok=True)
    data = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    write_whole(directory / f"{name}.safetensors", data)
    write_sealed(directory / f"{name}.json", {"format": FORMAT, "sha256": hashlib.sha256(data).hexdigest(), **facts})


def read(directory: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts that `write` wrote.

    Raises:
        CheckpointError: if a file is missing, or does not hold what was written.
    """
    tensors_file = directory / f"{name}.safetensors"
    try:
        facts = read_sealed(directory / f"{name}.json")
        data = tensors_file.read_bytes()
    except (OSError, TornFileError) as error:
        raise CheckpointError(f"checkpoint {directory}: {name} cannot be read ({error}); take another") from None
    if facts.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {directory}: format {facts.get('format')} is not {FORMAT}; take another")
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise CheckpointError(f"checkpoint {tensors_file}: does not match the checksum beside it; take another")
    try:
        return load(data), facts
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {tensors_file}: {error}; take another") from None


def numbered(stem: str, number: int) -> str:
    """The name of a checkpoint that has successors; names sort as numbers do."""
    return f"{stem}-{number:05d}"


def numbers(directory: Path, stem: str) -> list[int]:
    """The numbers of the checkpoints of a directory, whole or not, the newest first."""
    found = {path.name.split(".")[0].removeprefix(f"{stem}-") for path in directory.glob(f"{stem}-*")}
    return sorted((int(number) for number in found if number.isdigit()), reverse=True)


def newest(directory: Path, stem: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The newest checkpoint of a directory that is whole; one that is not is named in the log and passed over.

    Raises:
        CheckpointError: if none is whole; the message is that of the newest.
    """
    first: CheckpointError | None = None
    for number in numbers(directory, stem):
        try:
            return read(directory, numbered(stem, number))
        except CheckpointError as error:
            log.warning("%s", error)
            first = first or error
    raise first or CheckpointError(f"checkpoint {directory}: holds no {stem}; give the directory of a checkpoint")


def keep_only(directory: Path, stem: str, number: int | None = None) -> None:
    """Remove the checkpoints of a directory, but for one."""
    for path in directory.glob(f"{stem}-*"):
        if number is not None and path.name.split(".")[0] == numbered(stem, number):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
