"""Finds the best divide-and-conquer deep metric learning recipe for an image retrieval data set.

The public names in `__all__` are imported from their modules when they are first used (PEP 562): importing torch takes
seconds, and `--help` does not need it.

Importing this package has one side effect: Python then finds `search_spaces` and `trainables` beside this package only.
`python -m` searches the working directory first, which may contain directories of these names.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcml_tune.clustering import kmeans
    from dcml_tune.config import TrialConfig
    from dcml_tune.metrics import retrieval_measures
    from dcml_tune.models import load as load_model
    from dcml_tune.training import Trainer

__all__ = ["Trainer", "TrialConfig", "__version__", "kmeans", "load_model", "retrieval_measures"]

# The version is defined here only: pyproject.toml and every `--version` read it.
__version__ = "0.1.0"


# Public name -> module and name there. `DivideAndConquer` is here for Ray: see the end of `trainables.trainable`.
_LAZY = {
    "DivideAndConquer": ("trainables", "DivideAndConquer"),
    "Trainer": ("dcml_tune.training", "Trainer"),
    "TrialConfig": ("dcml_tune.config", "TrialConfig"),
    "kmeans": ("dcml_tune.clustering", "kmeans"),
    "load_model": ("dcml_tune.models", "load"),
    "retrieval_measures": ("dcml_tune.metrics", "retrieval_measures"),
}


class _InstalledPackages:
    """A finder of modules that finds `search_spaces` and `trainables` beside this package only."""

    _NAMES = ("search_spaces", "trainables")
    _PLACE = str(Path(__file__).resolve().parent.parent)

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [cls._PLACE]) if name in cls._NAMES else None


sys.meta_path.insert(0, _InstalledPackages)


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The names of the module, with the public ones that are not imported yet."""
    return sorted({*globals(), *__all__})
