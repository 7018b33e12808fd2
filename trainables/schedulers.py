"""Ray's schedulers, with a memory: after a resume they know again what the study knows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from trainables.divide_and_conquer import RUN

SchedulerName = Literal["asha", "median", "none"]

Curves = dict[str, dict[int, float]]
"""Key of a trial -> epochs completed -> its value then."""


@dataclass(frozen=True)
class _Past:
    """What a scheduler asks of a trial that ran in an earlier process."""

    trial_id: str


class _Remembering:
    """Mixed into a scheduler of Ray: hears of a trial's earlier epochs when it is added, and of none twice.

    Ray saves no state of ASHA (its rungs would be empty after a resume, and poor trials run on), and keeps its own
    snapshots at intervals. The study has every value, so it is replayed. The newest epoch of a trial that goes on is
    not: the trial reports it again, and only that decides about it.
    """

    def recall(self, ended: Curves, running: Curves) -> None:
        """Take the values of earlier trials: those that have ended, and those that will be added again."""
        self._running = running
        self._seen: dict[str, int] = {}
        for key, curve in ended.items():
            trial = _Past(key)
            self.on_trial_add(None, trial)
            for epoch, value in sorted(curve.items()):
                self.on_trial_result(None, trial, self._result(epoch, value))

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        super().on_trial_add(controller, trial)  # type: ignore[misc]
        curve = self._running.pop(trial.config[RUN]["key"], {}) if not isinstance(trial, _Past) else {}
        for epoch, value in sorted(curve.items())[:-1]:
            self.on_trial_result(controller, trial, self._result(epoch, value))

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["epoch"] <= self._seen.get(trial.trial_id, 0):
            return str(TrialScheduler.CONTINUE)
        self._seen[trial.trial_id] = result["epoch"]
        return str(super().on_trial_result(controller, trial, result))  # type: ignore[misc]

    def _result(self, epoch: int, value: float) -> dict[str, Any]:
        return {"epoch": epoch, self.metric: value}  # type: ignore[attr-defined]


class Asha(_Remembering, AsyncHyperBandScheduler):
    """Asynchronous successive halving (Li et al. 2020), in Ray's stopping variant."""


class Median(_Remembering, MedianStoppingRule):
    """Stops a trial whose best is below the median of the others' running means (Golovin et al. 2017)."""


def scheduler(name: SchedulerName, *, metric: str, epochs: int, ended: Curves, running: Curves) -> TrialScheduler:
    """The scheduler of a search.

    Args:
        name: asha, median, or none.
        metric: what is maximised; a trial's best so far.
        epochs: of a whole trial.
        ended: values of the trials that have ended before.
        running: values of the trials that are going to go on.
    """
    # The first rung lies at half of the epochs: earlier ones compare trials before their division.
    grace = max(1, (epochs + 1) // 2)
    common: dict[str, Any] = {"time_attr": "epoch", "metric": metric, "mode": "max", "grace_period": grace}
    makers: dict[str, Callable[[], Any]] = {
        "asha": lambda: Asha(**common, max_t=epochs, reduction_factor=2),
        # A trial is never paused for others: it would only wait for what it is going to do anyway.
        "median": lambda: Median(**common, min_time_slice=math.inf),  # type: ignore[arg-type]
        "none": FIFOScheduler,
    }
    made: TrialScheduler = makers[name]()
    if isinstance(made, _Remembering):
        made.recall(ended, running)
    return made
