"""RecordedEpoch: what `dcml_tune.train` records of an epoch, saved with the state of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dcml_tune.utils.stored import Count, Finite, Stored


class RecordedEpoch(Stored):
    """What is recorded of an epoch. A process may end after it has saved the epoch and before it has recorded it.

    Example:
        >>> RecordedEpoch.of(3, {"train/loss": 0.25, "masks/overlap": float("nan")}).numbers()
        {'train/loss': 0.25, 'masks/overlap': nan}
    """

    epoch: Count
    measures: dict[str, Finite | None]
    """By name; None for one that is not finite, which JSON does not have."""
    division: str | None = None
    """Name of the division that was made in it."""
    test_scored_before: Count | None = None
    """How often the test classes had been scored, where it scored them."""

    @classmethod
    def of(
        cls, epoch: int, measures: Mapping[str, float], division: str | None = None, scored_before: int | None = None
    ) -> RecordedEpoch:
        """Return the record of an epoch."""
        finite = {name: value if math.isfinite(value) else None for name, value in measures.items()}
        return cls(epoch=epoch, measures=finite, division=division, test_scored_before=scored_before)

    def numbers(self) -> dict[str, float]:
        """Return the measures, NaN for one that is not finite."""
        return {name: math.nan if value is None else value for name, value in self.measures.items()}
