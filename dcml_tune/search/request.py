"""What a search is asked to do, before it is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from dcml_tune.config.search import SearchConfig
    from dcml_tune.runs.record import Record
    from search_spaces import SearchSpace

MAY_CHANGE = ("resume", "extend", "output_dir", "ray_address", "quiet", "dry_run")
"""Flags that say how and where a process runs, not what is searched: they are not recorded, and may differ at a resume."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A new search, or a search that is resumed or extended."""

    config: SearchConfig
    """The flags of the search; of a resumed search, as they were recorded."""
    settings: dict[str, Any]
    """Settings of a trial that were given, the data set included."""
    space: SearchSpace
    """The search space; of a resumed search, as it was recorded."""
    directory: Path
    """Directory of the search."""
    planned: int
    """Number of trials, including those that have ended."""
    record: Record | None = None
    """Record of a resumed search."""
    wider: SearchSpace | None = None
    """The space to which an extended search is widened; None if it keeps its own."""

    @property
    def output(self) -> Path:
        """Directory of all searches."""
        return self.directory.parent
