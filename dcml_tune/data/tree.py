"""What lies below a directory: each folder is listed once, whatever links lead to it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Tree:
    """The files below a directory. Paths are relative to it, with forward slashes, and sorted."""

    files: list[str] = field(default_factory=list)
    """What is neither a folder nor a broken link; it may be a FIFO, a socket or a device, which `decoding` refuses."""
    folders: list[str] = field(default_factory=list)
    """The folders right below the directory, and the links to folders that were followed there."""
    repeated: list[str] = field(default_factory=list)
    """Links to folders that are listed already; they were not followed."""
    broken: list[str] = field(default_factory=list)
    """Links that lead nowhere or in a circle."""
    closed: list[str] = field(default_factory=list)
    """Folders that cannot be read."""


def walk(root: Path) -> Tree:
    """List a directory. What starts with a dot, `._x.jpg` included, is not looked at.

    Real folders come before linked ones: a link to a folder below the same directory is never followed, a link to a folder
    elsewhere is followed once.
    """
    tree, seen = Tree(), {_identity(os.stat(root))}
    links = _list(root, "", seen, tree)
    while links:
        # In the order of their names, so that the same link of two to one folder is followed each time.
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
    """Whether an entry is a folder, or a link to one; a link in a circle is none, where `is_dir` raises an error."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _list(root: Path, start: str, seen: set[tuple[int, int]], tree: Tree) -> list[str]:
    """Add what lies below a folder to the tree; returns the links to folders that were met."""
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
            else:  # a folder that a link led to before
                tree.repeated.append(path)
    return links


def _linked(link: os.DirEntry[str]) -> int | None:
    """What kind of thing a link leads to; None if it leads nowhere or in a circle."""
    try:
        return stat.S_IFMT(link.stat().st_mode)
    except OSError:
        return None


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino
