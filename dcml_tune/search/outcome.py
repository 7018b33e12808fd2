"""The outcome of a search: what its stages measured, and the exit code that follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dcml_tune.runs.hits import QueryHits
from dcml_tune.runs.study import first_best

if TYPE_CHECKING:
    from dcml_tune.search.ablation import Ablation
    from dcml_tune.search.confirmation import Confirmation
    from trainables.known_trial import KnownTrial

EXIT_OK, EXIT_INCOMPLETE = 0, 3
"""Exit code of a search that did everything it was asked for, and of one that did not."""

UNTRAINED: Literal["untrained"] = "untrained"
"""Role and key of the run that scores the pretrained network."""

Final = dict[str, dict[str, dict[str, Any]]]
"""Candidate -> seed -> measures of the test classes."""

Hits = dict[str, dict[str, QueryHits]]
"""Candidate -> seed -> what the queries of the test classes found; runs of earlier versions are missing."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a search ended. Its exit code, status and reason follow from what was run."""

    trials: list[KnownTrial]
    planned: int
    """Number of trials that were asked for."""
    pareto_front: list[tuple[str, list[float]]]
    """(trial, value of each metric) of the Pareto-optimal trials; empty with one metric."""
    confirmation: Confirmation | None
    """None if no trial has a value."""
    ablation: Ablation | None = None
    """None if nothing was put back to the published value."""
    final: Final
    hits: Hits = field(default_factory=dict)
    ended_early: str | None
    """Why a budget ended the search or the confirmation; None if none did."""
    missing_runs: list[str]
    """Keys of confirmation, ablation and final runs without a result."""

    @property
    def failed(self) -> list[str]:
        """Keys of the trials that failed."""
        return [trial.key for trial in self.trials if trial.state == "failed"]

    @property
    def missing(self) -> list[str]:
        """What was asked for and has no result; trials that a budget left out do not count."""
        ended = sum(trial.has_ended for trial in self.trials)
        without = [] if self.ended_early or ended == self.planned else [f"{self.planned - ended} trials"]
        return [*without, *self.missing_runs]

    @property
    def is_complete(self) -> bool:
        """Whether everything that was asked for has a result."""
        return self.confirmation is not None and not self.failed and not self.missing

    @property
    def exit_code(self) -> int:
        """Exit code of the command."""
        return EXIT_OK if self.is_complete else EXIT_INCOMPLETE

    @property
    def status(self) -> Literal["finished", "partial"]:
        """Status in the record of the search: `partial` if a resume has something left to run."""
        return "finished" if self.is_complete or not self.missing else "partial"

    @property
    def reason(self) -> str | None:
        """Why the search ended as it did, in words; None if it simply completed."""
        if self.is_complete:
            return self.ended_early
        return f"failed: {', '.join(self.failed) or 'none'}; missing: {', '.join(self.missing) or 'none'}"


def best_trial(trials: list[KnownTrial]) -> KnownTrial | None:
    """Return the ended trial with the best value; of equal ones the first."""
    return first_best((trial for trial in trials if trial.has_ended), lambda trial: trial.best)
