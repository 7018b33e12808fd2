"""A search whose directory was moved since it ran: the paths in its record are adapted to the new place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcml_tune.runs.paths import ARTIFACTS, SPOOL, sqlite_address, sqlite_file
from dcml_tune.utils.files import CorruptFileError
from dcml_tune.utils.stored import Stored, checked, parse


class _Target(Stored):
    """The one key that is read of SPOOL/target.json, which `dcml_tune.tracking` writes."""

    artifact_root: str | None = None


def output_before(directory: Path, asked: dict[str, Any]) -> Path | None:
    """The path of the output directory when the search last ran; None if it is still the same, or unknown.

    Version 0.1 recorded only the directory of MLflow's files, from which the path follows.
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
    """What was asked for, with paths below the old output directory replaced by those below the new one.

    A path is replaced only if something exists at the new place.
    """
    flags, space = dict(asked["flags"]), dict(asked["space"])
    flags |= {name: _moved(flags[name], old, new) for name in ("space", "scratch") if name in flags}
    flags["tracking_uri"] = moved_address(flags["tracking_uri"] or "", old, new) or None
    images = {"dataset_dir": _moved(asked["settings"].get("dataset_dir"), old, new)}
    settings, space["published"] = with_images(asked["settings"], images), with_images(space["published"], images)
    return {**asked, "flags": flags, "settings": settings, "space": space}


def moved_address(uri: str, old: Path, new: Path) -> str:
    """The address of a database after the move of a directory above it."""
    file = sqlite_file(uri)
    moved = None if file is None else _moved(str(file), old, new)
    return uri if moved is None or moved == str(file) else sqlite_address(Path(moved))


def with_images(settings: dict[str, Any], images: dict[str, Any]) -> dict[str, Any]:
    """The settings with `images` replaced, if the images are read from a directory."""
    return {**settings, **images} if settings.get("dataset_dir") is not None else settings


def _moved(path: str | None, old: Path, new: Path) -> str | None:
    if path is None or not Path(path).is_relative_to(old):
        return path
    there = new / Path(path).relative_to(old)
    return str(there) if there.exists() else path
