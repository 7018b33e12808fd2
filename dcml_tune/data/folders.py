"""A cache of directory listings, with lookup of paths that ignores case."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from dcml_tune.data.tree import is_folder


class Folders:
    """Lists each folder at most once, and finds the spelling of names on disk."""

    def __init__(self) -> None:
        self._listed: dict[str, _Folder] = {}
        self._spellings: dict[tuple[Path, str], str | None] = {}

    def spelled(self, base: Path, path: str) -> str | None:
        """Spelling on disk of a path below a folder, ignoring case; None if it does not exist.

        An exact match takes precedence, then the alphabetically first match.
        """
        if path in ("", "."):
            return ""
        folder, _, name = path.rpartition("/")
        if (base, folder) not in self._spellings:
            self._spellings[base, folder] = self.spelled(base, folder)
        place = self._spellings[base, folder]
        if place is None:
            return None
        found = self._of(os.path.join(base, place) if place else str(base)).spelling(name)
        return None if found is None else f"{place}/{found}" if place else found

    def below(self, folder: Path) -> list[Path]:
        """The folders in a folder, sorted, without hidden ones (names that begin with a dot)."""
        return [folder / name for name in self._of(str(folder)).folders]

    def _of(self, folder: str) -> _Folder:
        if folder not in self._listed:
            self._listed[folder] = _Folder(folder)
        return self._listed[folder]


class _Folder:
    """The listing of a folder; empty if it cannot be read."""

    def __init__(self, path: str) -> None:
        try:
            with os.scandir(path) as entries:
                found = [(entry.name, is_folder(entry)) for entry in entries]
        except OSError:
            found = []
        self.names = {name for name, _ in found}
        self.folders = sorted(name for name, is_folder in found if is_folder and not name.startswith("."))

    def spelling(self, name: str) -> str | None:
        return name if name in self.names else self._folded.get(name.casefold())

    @cached_property
    def _folded(self) -> dict[str, str]:
        return {name.casefold(): name for name in sorted(self.names, reverse=True)}
