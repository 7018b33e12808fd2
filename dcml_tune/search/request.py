"""What a search is asked to do, before it is checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.stores import Stores

if TYPE_CHECKING:
    from pathlib import Path

    from dcml_tune.config.search import SearchConfig
    from dcml_tune.runs.record import Record
    from search_spaces import SearchSpace

MAY_CHANGE = (
    "resume",
    "start_or_resume",
    "extend",
    "more_final_seeds",
    "output_dir",
    "ray_address",
    "wait_for_nodes",
    "submit",
    "mps",
    "quiet",
    "dry_run",
)
"""Flags that say how and where a process runs, not what is searched: they are not recorded, and may differ at a resume."""


class SearchCompleteError(SettingError):
    """A search that has nothing left to run is to be resumed."""

    def __init__(self, message: str, *, line: str) -> None:
        """Keep both texts.

        Args:
            message: of the error, with the remedy.
            line: says that it is complete, for commands to which this is no error.
        """
        super().__init__(message)
        self.line = line


LOCAL_ABOVE = 8
"""Number of settings that vary up to which `--searcher auto` is TPE."""


@dataclass(frozen=True, kw_only=True)
class LaterSeeds:
    """Final seeds that `--extend NAME --more-final-seeds N` added to a search, as search.json holds them."""

    count: int = 0
    """Number of seeds that were added, by all extensions together."""
    looks: tuple[int, ...] = ()
    """Number of final seeds of each verdict that was reached before seeds were added, the first one first."""
    winner: str | None = None
    """The winner that keeps its place while seeds are added; None: this process is not to add seeds."""

    def as_json(self) -> dict[str, Any]:
        """Return the entry of search.json."""
        return {"count": self.count, "looks": list(self.looks), "winner": self.winner}

    @classmethod
    def from_json(cls, facts: dict[str, Any] | None) -> LaterSeeds:
        """Read the entry of search.json; None for a search to which none were added."""
        return cls() if facts is None else cls(**{**facts, "looks": tuple(facts["looks"])})


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
    later_seeds: LaterSeeds = LaterSeeds()
    """Final seeds that extensions added."""
    record: Record | None = None
    """Record of a resumed search."""
    wider: SearchSpace | None = None
    """The space to which an extended search is widened; None if it keeps its own."""

    @property
    def output(self) -> Path:
        """Directory of all searches."""
        return self.directory.parent

    @property
    def stores(self) -> Stores:
        """Directories of the image stores."""
        return Stores.below(self.output, self.config.scratch, self.config.storage)

    def with_searcher(self, space: SearchSpace) -> Request:
        """The request with the searcher that `--searcher auto` means.

        Args:
            space: restricted to this search.
        """
        if self.config.searcher != "auto":
            return self
        chosen = "local" if len(space.domains) > LOCAL_ABOVE else "optuna"
        return replace(self, config=self.config.model_copy(update={"searcher": chosen}))
