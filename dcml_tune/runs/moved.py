"""A search that goes on elsewhere: where its files and images are now, and whether the images are those it began with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcml_tune.runs.paths import ARTIFACTS, SPOOL, sqlite_address, sqlite_file
from dcml_tune.utils.files import CorruptFileError
from dcml_tune.utils.stored import Stored, checked, parse

if TYPE_CHECKING:
    pass


class _Target(Stored):
    """What is needed of `tracking.lines.Target`."""

    artifact_root: str | None = None


def output_before(directory: Path, asked: dict[str, Any]) -> Path | None:
    """What the output directory of a search was called when it ran last, if it has another name now; else None.

    Version 0.1 did not write that down, but where MLflow's files are.
    """
    known = asked.get("output")
    if known is None:
        try:
            root = checked(_Target, parse((directory / SPOOL / "target.json").read_bytes())).artifact_root
        except (OSError, ValueError, CorruptFileError):
            return None
        known = str(Path(root).parent) if root and Path(root).name == ARTIFACTS else None
    if known is None or Path(known) in (directory.parent, directory.parent.resolve()):
        return None
    return Path(known)


def follow(asked: dict[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """What was asked for, with paths below the output directory as they are now that it was moved.

    A path follows if there is something at its new place.
    """
    flags, space = dict(asked["flags"]), dict(asked["space"])
    flags["space"] = _moved(flags.get("space"), old, new)
    flags["tracking_uri"] = moved_address(flags["tracking_uri"] or "", old, new) or None
    images = {"dataset_dir": _moved(asked["settings"].get("dataset_dir"), old, new)}
    settings, space["published"] = with_images(asked["settings"], images), with_images(space["published"], images)
    return {**asked, "flags": flags, "settings": settings, "space": space}


def moved_address(uri: str, old: Path, new: Path) -> str:
    """The address of a database, with its path as it is now that a directory above it was moved."""
    file = sqlite_file(uri)
    moved = None if file is None else _moved(str(file), old, new)
    return uri if moved is None or moved == str(file) else sqlite_address(Path(moved))


def with_images(settings: dict[str, Any], images: dict[str, Any]) -> dict[str, Any]:
    """The settings with what is said anew of the images, if they are read from a directory."""
    return {**settings, **images} if settings.get("dataset_dir") is not None else settings


def _moved(path: str | None, old: Path, new: Path) -> str | None:
    if path is None or not Path(path).is_relative_to(old):
        return path
    there = new / Path(path).relative_to(old)
    return str(there) if there.exists() else path
