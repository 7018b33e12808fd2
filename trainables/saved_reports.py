"""SavedReports: the last reports of a trial, which its state contains for a driver that lacks them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

KEPT_S = 60.0
"""Time after which a report is surely in the study, which gets it a second late (`trainables.study_values`)."""
_AT_LEAST = 2
"""Reports that are kept however old they are: the driver may have been killed when it got the last one, and the scheduler looks
at the last one that the study has."""


@dataclass
class SavedReports:
    """The reports that are saved with the state of a trial. A driver that is killed loses those that it has not yet written.

    Example:
        >>> reports = SavedReports(keeps_all=False)
        >>> for epoch in (1, 2, 3):
        ...     reports.add({"epoch": epoch, "val/map_at_r": epoch / 10})
        >>> [each["epoch"] for each in reports.after(2)], reports.after(None)
        ([2, 3], [])
    """

    keeps_all: bool
    """Keep all reports: the driver may go on elsewhere, with an older copy of the study."""
    _told: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def add(self, report: dict[str, Any]) -> None:
        """Add the report of an epoch, and forget old ones."""
        now = time.monotonic()
        self._told.append((now, report))
        if not self.keeps_all:
            recent = [each for each in self._told if each[0] >= now - KEPT_S]
            self._told = self._told[-max(_AT_LEAST, len(recent)) :]

    def restore(self, reports: Iterable[dict[str, Any]]) -> None:
        """Have these reports instead, which are about to be repeated."""
        now = time.monotonic()
        self._told = [(now, report) for report in reports]

    def as_list(self) -> list[dict[str, Any]]:
        """Return the reports, the oldest one first."""
        return [report for _, report in self._told]

    def after(self, reported: int | None) -> list[dict[str, Any]]:
        """Return those to be repeated to a driver that has the reports of so many first epochs; none if that is not known.

        The last one that it has is repeated, too: the scheduler has not yet compared it.
        """
        return [] if reported is None else [report for _, report in self._told if report["epoch"] >= reported]
