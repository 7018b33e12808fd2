"""Ray's schedulers with a memory: after a resume, the results in the study are replayed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from trainables.known_trial import KnownTrial
from trainables.run import run_of, unpack

SchedulerName = Literal["asha", "asha-epochs", "median", "none"]

PEERS = 5
"""Least number of trials in the same phase, with different values, with which asha compares a trial."""

STOPPED = 1 / 4
"""The share of the trials of a phase that asha stops at each rung."""


def rungs(nb_epochs: int) -> list[int]:
    """Return the numbers of epochs after which asha compares trials: half and three quarters, rounded up.

    Example:
        >>> rungs(180), rungs(6)
        ([90, 135], [3, 5])
    """
    return sorted({epoch for epoch in (math.ceil(nb_epochs / 2), math.ceil(3 * nb_epochs / 4)) if epoch < nb_epochs})


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


class _AmongPeers(FIFOScheduler):
    """Asynchronous successive halving whose rungs are divided by the phases of the trials."""

    def __init__(self, metric: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._metric = metric
        self._configs: dict[str, TrialConfig] = {}
        self._rungs: defaultdict[tuple[int, int, str], set[float]] = defaultdict(set)

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        self._configs[trial.trial_id] = TrialConfig(**unpack(trial.config)[0])

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        config, epoch, value = self._configs[trial.trial_id], result["epoch"], result.get(self.metric)
        if epoch not in rungs(config.nb_epochs) or value is None or not math.isfinite(value):
            return str(TrialScheduler.CONTINUE)
        rung = self._rungs[epoch, config.nb_epochs, EpochPlan.at(epoch - 1, config).phase]
        peers = list(rung - {value})
        rung.add(value)
        is_poor = len(peers) >= PEERS and value < np.quantile(peers, STOPPED)
        return str(TrialScheduler.STOP if is_poor else TrialScheduler.CONTINUE)


class PhaseAsha(_Remembering, _AmongPeers):
    """Asynchronous successive halving (Li et al. 2020) that compares a trial only with its peers.

    Trials are compared at the epochs of `rungs`. There the peers of a trial are those with as many epochs behind and ahead
    of them whose last epoch was in the same phase (`EpochPlan.phase`): with as many clusters, or in the full-embedding
    phase. A trial stops if its best value so far is below the lower quarter of those of its peers, of which there must be
    `PEERS`. Equal values are one peer: they mostly come from the same epochs, which several trials share
    (`trainables.sharing`).

    Ray's scheduler, with a reduction factor of 1.5, has the same rungs, but one for all phases; it stops a third at each, and
    from the second trial on. docs/performance.md compares them.
    """


class Asha(_Remembering, AsyncHyperBandScheduler):
    """Asynchronous successive halving (Li et al. 2020), in Ray's stopping variant."""


class Median(_Remembering, MedianStoppingRule):
    """Stops a trial whose best is below the median of the others' running means (Golovin et al. 2017)."""


def scheduler(name: SchedulerName, *, metric: str, epochs: int, known: Iterable[KnownTrial] = ()) -> TrialScheduler:
    """Build the scheduler of a search.

    Args:
        name: asha (within phases), asha-epochs (plain), median, or none.
        metric: name of the result that is maximised: a trial's best value so far.
        epochs: number of epochs of a trial that is not pruned.
        known: trials of earlier processes.
    """
    # The first rung lies at half of the epochs: earlier ones compare trials before their division.
    grace = max(1, (epochs + 1) // 2)
    common: dict[str, Any] = {"time_attr": "epoch", "metric": metric, "mode": "max", "grace_period": grace}
    makers: dict[str, Callable[[], Any]] = {
        "asha": lambda: PhaseAsha(metric),
        "asha-epochs": lambda: Asha(**common, max_t=epochs, reduction_factor=2),
        # Trials are never paused: pausing would only delay them.
        "median": lambda: Median(**common, min_time_slice=math.inf),  # type: ignore[arg-type]
        "none": FIFOScheduler,
    }
    made: TrialScheduler = makers[name]()
    if isinstance(made, _Remembering):
        made.recall(known)
    return made
