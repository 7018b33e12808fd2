"""Finds the best divide-and-conquer deep metric learning recipe for an image retrieval data set.

Importing this package has one effect: `search_spaces` and `trainables` are from then on those that were installed with it.
`python -m` looks into the working directory first, and directories of these names may lie there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

# The one place of the version: pyproject.toml reads it from here, and so does every `--version`.
__version__ = "0.1.0"


class _InstalledPackages:
    """Finds the packages that are installed beside this one there, and nowhere else."""

    _NAMES = ("search_spaces", "trainables")
    _PLACE = str(Path(__file__).resolve().parent.parent)

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [cls._PLACE]) if name in cls._NAMES else None


sys.meta_path.insert(0, _InstalledPackages)


def __getattr__(name: str) -> Any:
    """`DivideAndConquer`, for Ray: see the end of `trainables.trainable`."""
    if name == "DivideAndConquer":
        return import_module("trainables").DivideAndConquer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
