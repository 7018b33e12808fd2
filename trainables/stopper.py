"""StopWhen: ends a stage before all of its trials have run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune import Stopper


class StopWhen(Stopper):
    """Stops all trials as soon as there is a reason."""

    def __init__(self, why: Callable[[], str | None]) -> None:
        """Take a function that returns the reason, or None; it is called many times a second."""
        self._why = why

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no single trial is stopped."""
        return False

    def stop_all(self) -> bool:
        """Return whether there is a reason."""
        return self._why() is not None

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles the stopper to disk, and that copy is not used."""
        return {"_why": None}
