"""Ray's schedulers with a memory: after a resume, the results in the study are replayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from dcml_tune.config.schedule import milestones
from dcml_tune.config.trial import TrialConfig
from trainables.known_trial import KnownTrial
from trainables.run import run_of, unpack

SchedulerName = Literal["asha", "asha-epochs", "median", "none"]

_RUNG = "rung"


@dataclass(frozen=True, eq=False)
class _Past:
    """The attributes of a trial that a scheduler reads, for a trial of an earlier process."""

    trial_id: str
    config: dict[str, Any]


class _Remembering:
    """Mixin of Ray's schedulers: replays a resumed trial's results when it is added, and ignores duplicates.

    Ray does not save the state of ASHA (its rungs would be empty after a resume, and poor trials would continue), and
    takes snapshots only at intervals. The study has every value, so it is replayed. The newest epoch of a trial that
    continues is not: the trial reports it again, and the scheduler decides on that report.
    """

    def recall(self, known: Iterable[KnownTrial]) -> None:
        """Replay the trials that have ended, and remember those that will be added again."""
        self._running: dict[str, dict[int, float]] = {}
        self._seen: dict[str, int] = {}
        for past in known:
            if not past.has_ended:
                self._running[past.key] = past.curve
            elif past.state != "failed":
                trial = _Past(past.key, past.config)
                self.on_trial_add(None, trial)
                for epoch, value in sorted(past.curve.items()):
                    self.on_trial_result(None, trial, self._result(epoch, value))

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        super().on_trial_add(controller, trial)  # type: ignore[misc]
        curve = {} if isinstance(trial, _Past) else self._running.pop(run_of(trial.config).key, {})
        for epoch, value in sorted(curve.items())[:-1]:
            self.on_trial_result(controller, trial, self._result(epoch, value))

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["epoch"] <= self._seen.get(trial.trial_id, 0):
            return str(TrialScheduler.CONTINUE)
        self._seen[trial.trial_id] = result["epoch"]
        return str(super().on_trial_result(controller, trial, result))  # type: ignore[misc]

    def _result(self, epoch: int, value: float) -> dict[str, Any]:
        return {"epoch": epoch, self.metric: value}  # type: ignore[attr-defined]


class _ByPhase(AsyncHyperBandScheduler):
    """ASHA whose rungs are the milestones of each trial's own schedule: Ray's time is the number of milestones reached.

    A trial that reaches several milestones in one epoch is judged at each of them.
    """

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        settings, _ = unpack(trial.config)
        for number, epoch in enumerate(milestones(TrialConfig(**settings))):
            if epoch == result["epoch"]:
                at_rung = {**result, _RUNG: 2**number}
                if super().on_trial_result(controller, trial, at_rung) == TrialScheduler.STOP:
                    return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)


class PhaseAsha(_Remembering, _ByPhase):
    """ASHA at the milestones of the method (`dcml_tune.config.schedule.milestones`)."""


class Asha(_Remembering, AsyncHyperBandScheduler):
    """Asynchronous successive halving (Li et al. 2020), in Ray's stopping variant."""


class Median(_Remembering, MedianStoppingRule):
    """Stops a trial whose best is below the median of the others' running means (Golovin et al. 2017)."""


def scheduler(name: SchedulerName, *, metric: str, epochs: int, known: Iterable[KnownTrial] = ()) -> TrialScheduler:
    """Build the scheduler of a search.

    Args:
        name: asha (at the phases of each trial), asha-epochs (plain), median, or none.
        metric: name of the result that is maximised: a trial's best value so far.
        epochs: number of epochs of a trial that is not pruned.
        known: trials of earlier processes.
    """
    # The first rung lies at half of the epochs: earlier ones compare trials before their division.
    grace = max(1, (epochs + 1) // 2)
    common: dict[str, Any] = {"time_attr": "epoch", "metric": metric, "mode": "max", "grace_period": grace}
    by_phase = {**common, "time_attr": _RUNG, "grace_period": 1}
    makers: dict[str, Callable[[], Any]] = {
        "asha": lambda: PhaseAsha(**by_phase, max_t=8, reduction_factor=2),  # rungs at 1, 2, 4
        "asha-epochs": lambda: Asha(**common, max_t=epochs, reduction_factor=2),
        # Trials are never paused: pausing would only delay them.
        "median": lambda: Median(**common, min_time_slice=math.inf),  # type: ignore[arg-type]
        "none": FIFOScheduler,
    }
    made: TrialScheduler = makers[name]()
    if isinstance(made, _Remembering):
        made.recall(known)
    return made
