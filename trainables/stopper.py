"""What ends a search before all of its trials have run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune import Stopper


class StopWhen(Stopper):
    """Ends all trials as soon as there is a reason."""

    def __init__(self, why: Callable[[], str | None]) -> None:
        """Take what gives the reason, or None; it is asked many times a second."""
        self._why = why

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is ended by itself."""
        return False

    def stop_all(self) -> bool:
        """Whether there is a reason."""
        return self._why() is not None

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps a copy on disk, which is not used again."""
        return {"_why": None}
