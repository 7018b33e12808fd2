"""Checkpoints that load without executing code: safetensors for tensors, JSON for the rest, checksums of both."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from dcml_tune.config.errors import SettingError
from dcml_tune.utils.files import CorruptFileError, read_checksummed, replaced, sha256_of, write_checksummed
from dcml_tune.utils.stored import Count, Stored, checked, printable

T = TypeVar("T")

log = logging.getLogger(__name__)

FORMAT = 2


class CheckpointError(SettingError):
    """A checkpoint that is missing, incomplete, or was changed since it was written."""


def write(directory: Path, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write `name.safetensors` and then `name.json` into a directory, each atomically.

    The JSON file, which is last, makes the checkpoint valid. To replace a checkpoint, write one with another name
    (`numbered`), because two files cannot be replaced in one atomic step.

    Raises:
        OSError: if a file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.safetensors"
    on_cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with replaced(path) as fresh:
        fresh.touch()
        mode = fresh.stat().st_mode
        try:
            save_file(on_cpu, fresh)  # unlike `save` it lets other threads run
        except SafetensorError as error:
            raise _os_error(error, path) from None
        fresh.chmod(mode)  # safetensors lets the owner alone read the file
        sha256 = sha256_of(fresh)
    write_checksummed(directory / f"{name}.json", {"format": FORMAT, "sha256": sha256, **facts})


def _os_error(error: SafetensorError, path: Path) -> Exception:
    """Return the error of the operating system that safetensors only names, or its own."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found is None:
        return error
    number = int(found[1])
    return OSError(number, os.strerror(number), str(path))


class _Facts(Stored):
    """What the JSON file of every checkpoint holds."""

    format: Count
    sha256: str


def read(directory: Path, name: str, kind: type[Stored] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and facts that `write` wrote.

    Args:
        directory: directory of the checkpoint.
        name: name of its files, without suffix.
        kind: model that the facts must fit; None: any facts.

    Raises:
        CheckpointError: if a file is missing, was changed, or its content is not valid.
    """
    tensors_file = directory / f"{name}.safetensors"
    try:
        facts = read_checksummed(directory / f"{name}.json")
        data = tensors_file.read_bytes()
    except (OSError, CorruptFileError) as error:
        raise CheckpointError(f"checkpoint {directory}: {name} cannot be read ({error}); take another") from None
    if facts.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {directory}: format {facts.get('format')} is not {FORMAT}; take another")
    check(_Facts, facts, directory / f"{name}.json")
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise CheckpointError(f"checkpoint {tensors_file}: does not match the checksum beside it; take another")
    try:
        tensors = load(data)
    except Exception as error:  # of safetensors, or of torch for an unknown dtype
        raise CheckpointError(f"checkpoint {tensors_file}: {_said(error)}; take another") from None
    if kind is not None:
        check(kind, facts, directory / f"{name}.json")
    return tensors, facts


def check(kind: type[T], facts: Any, file: Path) -> T:
    """Validate the facts of a checkpoint against a model.

    Raises:
        CheckpointError: if they do not fit.
    """
    try:
        return checked(kind, facts)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {file}: has invalid content ({error}); take another") from None


def check_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor], file: Path) -> None:
    """Check that tensors have the expected names, shapes and dtypes, and are finite.

    Args:
        found: tensors of a checkpoint.
        wanted: tensors with the expected names, shapes and dtypes.
        file: file of the checkpoint, for messages.

    Raises:
        CheckpointError: if one does not fit.
    """
    for name in [*wanted, *found]:
        if why := _unfit(name, found.get(name), wanted.get(name)):
            raise CheckpointError(f"checkpoint {file}: {printable(name)} {why}; take another")


def _unfit(name: str, found: Tensor | None, wanted: Tensor | None) -> str | None:
    """Why a tensor does not fit, as the end of a sentence, or None."""
    if found is None:
        return "is missing"
    if wanted is None:
        return "belongs to no part of it"
    if found.dtype != wanted.dtype:
        return f"has numbers of {found.dtype}, not of {wanted.dtype}"
    if found.shape != wanted.shape:
        return f"has the shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    return "is not finite" if found.is_floating_point() and not bool(found.isfinite().all()) else None


def _said(error: Exception) -> str:
    return printable(" ".join(str(error).split()))[:200] or type(error).__name__


def numbered(stem: str, number: int) -> str:
    """The name of a checkpoint in a series. Names sort in the order of their numbers."""
    return f"{stem}-{number:05d}"


def numbers(directory: Path, stem: str) -> list[int]:
    """The numbers of the checkpoints in a directory, valid or not, the newest first."""
    found = {path.name.split(".")[0].removeprefix(f"{stem}-") for path in directory.glob(f"{stem}-*")}
    return sorted((int(number) for number in found if number.isdigit()), reverse=True)


def newest(directory: Path, stem: str, kind: type[Stored] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the newest valid checkpoint of a directory. Invalid ones are skipped with a warning.

    Raises:
        CheckpointError: if none is valid; the message is that of the newest.
    """
    first: CheckpointError | None = None
    for number in numbers(directory, stem):
        try:
            return read(directory, numbered(stem, number), kind)
        except CheckpointError as error:
            log.warning("%s", error)
            first = first or error
    raise first or CheckpointError(f"checkpoint {directory}: holds no {stem}; give the directory of a checkpoint")


def keep_only(directory: Path, stem: str, *kept: int | None) -> None:
    """Remove all checkpoints of a directory, except those with the numbers that are given; None stands for none."""
    names = {numbered(stem, number) for number in kept if number is not None}
    for path in directory.glob(f"{stem}-*"):
        if path.name.split(".")[0] in names:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
