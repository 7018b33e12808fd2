"""Recursive listing of a directory. Each folder is listed once, also if several links lead to it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Tree:
    """The files below a directory. Paths are relative to it, with forward slashes, and sorted."""

    files: list[str] = field(default_factory=list)
    """Entries that are neither folders nor broken links. They may be FIFOs, sockets or devices, which `decoding` rejects."""
    folders: list[str] = field(default_factory=list)
    """The folders directly below the directory, including followed links to folders."""
    repeated: list[str] = field(default_factory=list)
    """Links that were not followed, because their folder is already listed."""
    broken: list[str] = field(default_factory=list)
    """Broken and circular links."""
    closed: list[str] = field(default_factory=list)
    """Folders that cannot be read."""


def walk(root: Path) -> Tree:
    """List a directory recursively, without hidden entries (names that begin with a dot, such as `._x.jpg`).

    Real folders are listed before linked ones: a link to a folder below the same directory is never followed, and a link
    to a folder elsewhere is followed once.
    """
    tree, seen = Tree(), {_identity(os.stat(root))}
    links = _list(root, "", seen, tree)
    while links:
        # Sorted, so that the choice between two links to one folder is deterministic.
        links.sort()
        link = links.pop(0)
        identity = _identity(os.stat(root / link))
        if identity in seen:
            tree.repeated.append(link)
            continue
        seen.add(identity)
        if "/" not in link:
            tree.folders.append(link)
        links += _list(root, link, seen, tree)
    for names in (tree.files, tree.folders, tree.repeated, tree.broken, tree.closed):
        names.sort()
    return tree


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one. False for a circular link, for which `is_dir` raises an error."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _list(root: Path, start: str, seen: set[tuple[int, int]], tree: Tree) -> list[str]:
    """Add the content of a folder to the tree, and return the links to folders in it."""
    links, waiting = [], [start]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(root / folder) as entries:
                found = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError:
            tree.closed.append(folder or ".")
            continue
        for entry in found:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_symlink():
                kind = _linked(entry)
                if kind == stat.S_IFDIR:
                    links.append(path)
                else:
                    (tree.broken if kind is None else tree.files).append(path)
            elif not entry.is_dir(follow_symlinks=False):
                tree.files.append(path)
            elif (identity := _identity(entry.stat(follow_symlinks=False))) not in seen:
                seen.add(identity)
                waiting.append(path)
                if not folder:
                    tree.folders.append(path)
            else:  # a folder that was reached through a link before
                tree.repeated.append(path)
    return links


def _linked(link: os.DirEntry[str]) -> int | None:
    """File type of the target of a link; None for a broken or circular link."""
    try:
        return stat.S_IFMT(link.stat().st_mode)
    except OSError:
        return None


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino
