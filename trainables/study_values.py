"""StudyValues: the value of each trial after each epoch, on its way to the Optuna study."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import optuna

TOGETHER_S = 1.0
"""A trial that reports more often than once in so many seconds has its values written together."""


def write_values(study: optuna.Study, trial_id: int, values: dict[int, float]) -> None:
    """Write the values of several steps of a trial of a study in one transaction.

    Args:
        study: as `trainables.study_file.open_study` returns it.
        trial_id: Optuna's identifier of the trial, which has not ended.
        values: step -> value.
    """
    storage: Any = study._storage
    storage._backend.set_trial_intermediate_values(trial_id, values)


@dataclass
class _Curve:
    """What is known of an open trial."""

    epochs: set[int]
    """Epochs whose value the study has, or that wait."""
    waiting: dict[int, float] = field(default_factory=dict)
    """Epoch -> value that the study does not have."""
    written: float = 0.0
    """When values were written last, by the monotonic clock."""


class StudyValues:
    """Writes the values of open trials. A transaction for each would limit the number of reports that a driver takes.

    A value waits only if the same trial had one written less than a second before. If the driver is killed meanwhile, the trial
    reports it again (`Run.reported`).

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from trainables.study_file import open_study
        >>> with TemporaryDirectory() as place:
        ...     study = open_study(f"sqlite:///{place}/study.db", "s", ["maximize"])
        ...     values, trial = StudyValues(study), study.ask()
        ...     added = [values.add(trial._trial_id, *point) for point in ((1, 0.5), (2, 0.6), (2, 0.7))]
        ...     values.write_all()
        ...     added, study.trials[0].intermediate_values
        ([True, True, False], {1: 0.5, 2: 0.6})
    """

    def __init__(self, study: optuna.Study) -> None:
        """Know nothing yet: a trial is read from the study at its first value, which takes milliseconds."""
        self._study = study
        self._curves: dict[int, _Curve] = {}

    def has(self, number: int, epoch: int) -> bool:
        """Return whether an epoch of a trial has a value, or the trial has ended.

        Args:
            number: Optuna's identifier of the trial.
            epoch: number of epochs that it has run.
        """
        if number not in self._curves:
            trial = self._study._storage.get_trial(number)
            if trial.state.is_finished():
                return True
            self._curves[number] = _Curve(set(trial.intermediate_values))
        return epoch in self._curves[number].epochs

    def add(self, number: int, epoch: int, value: float) -> bool:
        """Add the value of an epoch, unless it has one; returns whether it was added."""
        if self.has(number, epoch):
            return False
        curve = self._curves[number]
        curve.epochs.add(epoch)
        curve.waiting[epoch] = value
        self.write_due()
        return True

    def write_due(self) -> None:
        """Write what has waited for long enough."""
        due = time.monotonic() - TOGETHER_S
        self._write({number: curve for number, curve in self._curves.items() if curve.written <= due})

    def write_all(self) -> None:
        """Write everything that waits."""
        self._write(self._curves)

    def end(self, number: int) -> None:
        """Write what waits of a trial that ends now, and forget it, also if that fails: later its end would refuse a write."""
        if (curve := self._curves.pop(number, None)) is not None:
            self._write({number: curve})

    def _write(self, curves: dict[int, _Curve]) -> None:
        """Write what waits of some trials, of each of them also if the write of another one fails."""
        failed: Exception | None = None
        for number, curve in curves.items():
            if not curve.waiting:
                continue
            curve.written = time.monotonic()  # also if it fails: then it is tried again as late
            try:
                write_values(self._study, number, curve.waiting)
                curve.waiting = {}
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed
