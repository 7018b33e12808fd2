"""The budgets of time and epochs that end a stage of a search."""

from __future__ import annotations

import time


class Budget:
    """A time budget for all stages, and an epoch budget for the trials."""

    def __init__(self, *, seconds: float | None, epochs: int | None) -> None:
        """Set the budgets.

        Args:
            seconds: of all stages together, those of earlier processes included; None: unlimited.
            epochs: of all trials together; None: unlimited.
        """
        self.seconds, self.epochs = seconds, epochs
        self._deadline: float | None = None

    def begin_stage(self, *, share: float, elapsed_s: float) -> None:
        """Set the deadline of a stage.

        Args:
            share: the part of the time budget that is used up when the stage ends, from 0 to 1.
            elapsed_s: seconds that were used before.
        """
        if self.seconds is not None:
            self._deadline = time.time() + share * self.seconds - elapsed_s

    def out_of_time(self) -> str | None:
        """Return a reason if the time of the stage is used up, else None."""
        is_over = self._deadline is not None and time.time() >= self._deadline
        return "the time budget was used up" if is_over else None

    def why_over(self, epochs: int) -> str | None:
        """Return why no more trials run after this number of epochs, or None.

        Args:
            epochs: of all trials together.
        """
        if reason := self.out_of_time():
            return reason
        if self.epochs is not None and epochs >= self.epochs:
            return "the epoch budget was used up"
        return None
