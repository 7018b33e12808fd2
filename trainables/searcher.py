"""OptunaSearcher: a Ray searcher over an Optuna study that is its only memory.

Ray's own OptunaSearch pickles its state beside the study and stumbles when the two disagree after a crash
(docs/architecture.md, Searcher). Here all that must outlive this process is in the study: the key of each trial, its
value after each epoch, how it ended and why. A trial that was running when its process ended is WAITING: the next
process takes it first, and its own files say where it goes on.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import SEEDS
from dcml_tune.runs.study import KEY, by_launch, direction, first_best
from dcml_tune.runs.study_file import copy_study
from dcml_tune.utils import tracebacks
from search_spaces.space import InfeasibleReason, SearchSpace
from trainables.prior_sampler import PriorSampler
from trainables.run import FAILED, STOP_SEARCH, Run, pack
from trainables.study_file import adapt_study, open_study, study_file

log = logging.getLogger(__name__)

_REASON, _FAILURE_OF, _OTHERS = "dcml.reason", "dcml.failure_of", "dcml.others"
_TRIES = 100


@dataclass(frozen=True, kw_only=True)
class KnownTrial:
    """What the study knows of a trial."""

    key: str
    config: dict[str, Any]
    """Its settings."""
    curve: dict[int, float]
    """Best value so far after so many epochs."""
    state: Literal["done", "pruned", "failed", "interrupted", "running"]
    reason: str | None

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to be done."""
        return self.state in ("done", "pruned", "failed")

    @property
    def best(self) -> float | None:
        """The best value; None for a trial that failed or has none."""
        return None if self.state == "failed" else max(self.curve.values(), default=None)

    @property
    def best_epoch(self) -> int | None:
        """The first epoch after which it had its best value."""
        return next((epoch for epoch, value in sorted(self.curve.items()) if value == self.best), None)


class OptunaSearcher(Searcher):
    """Samples the domains of a space; trial values are the best so far of a metric."""

    def __init__(
        self,
        space: SearchSpace,
        *,
        storage: str,
        study_name: str,
        metrics: list[str],
        sampler: Literal["optuna", "random"] = "optuna",
        seed: int = 0,
        infeasible_reason: InfeasibleReason | None = None,
        points: list[dict[str, Any]] | None = None,
        earlier: list[FrozenTrial] | None = None,
        belief: dict[str, Any] | None = None,
        run: Run | None = None,
        trials: Path | None = None,
        startup: int = 6,
        patience: int | None = None,
    ) -> None:
        """Open the study, or make it. Only one process may have it open: trials left running are taken over.

        Args:
            space: restricted to this search; its published point fills in what does not vary.
            storage: SQLAlchemy address of the study.
            study_name: name of the study; one that exists is continued.
            metrics: the best so far of the first, `METRIC_best` in a trial's results, is maximised; of others, the value
                at that epoch. Times (`time/...`) are minimised, by their mean over the epochs.
            sampler: `optuna` for TPE, `random` for independent draws.
            seed: of the sampler.
            infeasible_reason: says why a configuration cannot work on the data, or None.
            points: settings of the first trials.
            earlier: trials of other searches to learn from.
            belief: settings that are believed in at first; see `trainables.prior_sampler`.
            run: how every trial is run; key and directory are added.
            trials: directory below which each trial has its own; None: trials keep no state.
            startup: random trials before TPE takes over.
            patience: trials in a row that bring nothing, after which no more are launched; None: never.
        """
        super().__init__(metric=f"{metrics[0]}_best", mode="max")
        self.metrics, self.belief = metrics, belief
        self.space, self.infeasible_reason, self.run, self.trials = space, infeasible_reason, run or Run(), trials
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.storage, self.study_name = storage, study_name
        self.sampler, self.seed, self.startup, self.patience = sampler, seed, startup, patience
        self._ids: dict[str, int] = {}
        adapt_study(storage, study_name, space)
        self.study = self._open()
        if not self.study.get_trials(deepcopy=False):
            self.study.add_trials(earlier or [])
            for point in points or []:
                self.study.enqueue_trial(point)
        self.requeue_running()
        self._launched = len(self.known())

    def _open(self) -> optuna.Study:
        study = open_study(self.storage, self.study_name, [direction(name) for name in self.metrics])
        # A sampler that is opened again must not draw again what it has drawn.
        seed = (self.seed + 1000 * len(study.get_trials(deepcopy=False))) % SEEDS
        study.sampler = _sampler(self.sampler, seed, self.startup)
        if self.belief is not None:
            study.sampler = PriorSampler(study.sampler, self.belief, seed=seed)
        return study

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps a copy of its searcher on disk; the study is opened again from its own store."""
        return {name: value for name, value in self.__dict__.items() if name != "study"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the study again."""
        self.__dict__.update(state)
        self.study = self._open()

    def known(self) -> list[KnownTrial]:
        """The trials that were launched, in that order."""
        trials = self.study.get_trials(deepcopy=False)
        reasons = self.study.user_attrs
        return sorted((self._known(t, reasons) for t in trials if KEY in t.user_attrs), key=lambda t: by_launch(t.key))

    def requeue_running(self) -> None:
        """Let trials that are running wait for the next process."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        self._ids.clear()

    def pareto_front(self) -> list[tuple[str, list[float]]]:
        """The trials that no other one beats in all metrics, and their values in each; the best of the first one first."""
        trials = [trial for trial in self.study.best_trials if KEY in trial.user_attrs]
        trials.sort(key=lambda trial: trial.values[0], reverse=True)
        return [(trial.user_attrs[KEY], trial.values) for trial in trials]

    def cut_short(self, reason: str) -> None:
        """Nothing more is going to be run: a trial that has some epochs ends as pruned, with the reason.

        With several metrics it waits for an extension: Optuna has no place for a part of its values.
        """
        self.requeue_running()
        if len(self.metrics) > 1:
            return
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if trial.intermediate_values and KEY in trial.user_attrs:
                value = max(trial.intermediate_values.values())
                self.study._storage.set_trial_user_attr(trial._trial_id, _REASON, reason)
                self.study._storage.set_trial_state_values(trial._trial_id, TrialState.PRUNED, [value])

    def patience_exhausted(self) -> bool:
        """Whether as many trials as `patience`, one after the other, have ended without a new best value."""
        if self.patience is None:
            return False
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if KEY in trial.user_attrs]
        if any(trial.state == TrialState.WAITING for trial in trials):
            return False
        ended = [trial for trial in trials if trial.state.is_finished()]
        ended.sort(key=lambda trial: trial.datetime_complete or datetime.max)
        values = [trial.values[0] if trial.values else -math.inf for trial in ended]
        return bool(values) and len(values) - 1 - values.index(max(values)) >= self.patience

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The whole dictionary of a trial: published point, sampled settings, and how it is run.

        Combinations that cannot work are told to the study as failed, and never launched.
        """
        reason = ""
        if self.patience_exhausted():
            return Searcher.FINISHED  # type: ignore[return-value]
        for _ in range(_TRIES):
            trial = self.study.ask()
            self._ids[trial_id] = trial._trial_id
            if KEY in trial.user_attrs:  # it was interrupted, and has its settings
                return self._dictionary(trial.user_attrs[KEY], trial.params)
            try:
                sampled = self.space.suggest(trial, self.infeasible_reason)
            except SettingError as error:
                reason = str(error)
                trial.set_user_attr(_REASON, reason)
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            key = f"{self._launched:03d}"
            trial.set_user_attr(KEY, key)
            self._launched += 1
            self._guarded(copy_study, study_file(self.storage))
            return self._dictionary(key, sampled)
        log.error("no setting that can work was found in %d draws, the last: %s", _TRIES, reason)
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report the best so far at an epoch; an epoch that was reported before is passed over."""
        value = result.get(self.metric)
        if value is None or not math.isfinite(value) or result.keys() & {STOP_SEARCH, FAILED}:
            return
        trial, epoch, storage = self._trial(trial_id), int(result["epoch"]), self.study._storage
        if trial is None or epoch in trial.intermediate_values:
            return
        if len(self.metrics) > 1:
            others = [float(result[name]) for name in self.metrics[1:]]
            self._guarded(storage.set_trial_user_attr, trial._trial_id, f"{_OTHERS}/{epoch}", others)
        self._guarded(storage.set_trial_intermediate_value, trial._trial_id, epoch, value)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended: failed, pruned (stopped before its last epoch), or complete."""
        trial = self._trial(trial_id)
        if trial is None:
            return
        result = result or {}
        value = result.get(self.metric)
        if error or result.get(FAILED) or value is None or not math.isfinite(value):
            self._guarded(self._fail, trial, result.get(FAILED))
        else:
            self.on_trial_result(trial_id, result)  # Ray hands the last result over here alone
            ended = {"values": self._values(trial)} if result.get("done_all") else {"state": TrialState.PRUNED}
            self._guarded(self.study.tell, trial.number, **ended)
        self._guarded(copy_study, study_file(self.storage))

    def set_failure_reason(self, key: str, reason: str) -> None:
        """Keep why a trial failed, where only the driver knows. Optuna changes no trial that has ended."""
        self._guarded(self.study.set_user_attr, f"{_REASON}/{key}", reason)

    def save(self, checkpoint_path: str) -> None:
        """The study holds everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to read: the study was opened by the constructor."""

    def _dictionary(self, key: str, sampled: dict[str, Any]) -> dict[str, Any]:
        directory = None if self.trials is None else str(self.trials / key)
        return pack({**self.space.published, **sampled}, replace(self.run, key=key, directory=directory))

    def _values(self, trial: FrozenTrial) -> list[float]:
        """What a trial is worth in each metric, by what the study has of it now."""
        frozen = self.study._storage.get_trial(trial._trial_id)
        curve = frozen.intermediate_values
        best = first_best(sorted(curve), lambda epoch: curve[epoch])
        assert best is not None
        values = [curve[best]]
        for place, name in enumerate(self.metrics[1:]):
            others = {epoch: frozen.user_attrs[f"{_OTHERS}/{epoch}"][place] for epoch in curve}
            values.append(fmean(others.values()) if direction(name) == "minimize" else others[best])
        return values

    def _fail(self, trial: FrozenTrial, reason: str | None) -> None:
        """Tell FAIL, and let the sampler learn: it looks at no failed trial, but at pruned ones.

        So the setting is added once more, as one that was pruned at the worst value.
        """
        if reason:
            self.study._storage.set_trial_user_attr(trial._trial_id, _REASON, reason)
        self.study.tell(trial.number, state=TrialState.FAIL)
        if len(self.metrics) > 1:
            return  # Optuna prunes by one metric only
        worst = optuna.trial.create_trial(
            state=TrialState.PRUNED,
            params=trial.params,
            distributions=trial.distributions,
            value=0.0,
            intermediate_values={0: 0.0},
            user_attrs={_FAILURE_OF: trial.user_attrs.get(KEY)},
        )
        self.study.add_trial(worst)

    def _known(self, trial: FrozenTrial, reasons: dict[str, Any]) -> KnownTrial:
        states: dict[TrialState, Any] = {
            TrialState.COMPLETE: "done",
            TrialState.PRUNED: "pruned",
            TrialState.FAIL: "failed",
            TrialState.WAITING: "interrupted",
            TrialState.RUNNING: "running",
        }
        return KnownTrial(
            key=trial.user_attrs[KEY],
            config={**self.space.published, **trial.params},
            curve=dict(trial.intermediate_values),
            state=states[trial.state],
            reason=trial.user_attrs.get(_REASON) or reasons.get(f"{_REASON}/{trial.user_attrs[KEY]}"),
        )

    def _trial(self, trial_id: str) -> FrozenTrial | None:
        """The study's trial of a Ray trial, if it has not ended: read once, since it takes milliseconds."""
        number = self._ids.get(trial_id)
        trial = None if number is None else self.study._storage.get_trial(number)
        return None if trial is None or trial.state.is_finished() else trial

    def _guarded(self, call: Any, *arguments: Any, **options: Any) -> None:
        """An exception in a searcher would end the whole search."""
        try:
            call(*arguments, **options)
        except Exception as error:
            tracebacks.warn(log, "the Optuna study did not take a result", error)


def _sampler(name: str, seed: int, startup: int) -> BaseSampler:
    if name == "random":
        return RandomSampler(seed=seed)
    return TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed, n_startup_trials=startup)
