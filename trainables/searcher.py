"""OptunaSearcher: a Ray searcher whose only memory is an Optuna study.

Ray's own OptunaSearch pickles its state beside the study, and fails when the two disagree after a crash
(docs/architecture.md, Searcher). Here everything that must outlive this process is in the study: the key of each trial,
its value after each epoch, how it ended and why. A trial that was running when its process ended is WAITING: the next
process takes it first, and the trial continues from its own files.

Above 250 lines because the methods of Ray's interface and what they write to the study belong together.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import SEEDS, TrialConfig
from dcml_tune.runs.paths import sqlite_file
from dcml_tune.runs.study import KEY, SHARED_EPOCHS, by_launch, direction, first_best
from dcml_tune.runs.study_server import without_password
from dcml_tune.utils import tracebacks
from search_spaces.points import nearest_point
from search_spaces.prefixes import shared_epochs
from search_spaces.space import InfeasibleReason, SearchSpace
from trainables.known_trial import FAILURE_OF, REASON, KnownTrial
from trainables.local_sampler import LocalSampler
from trainables.prior_sampler import PriorSampler
from trainables.run import FAILED, SHARED, STOP_SEARCH, Run, pack
from trainables.study_file import adapt_study, keep_copy, open_study
from trainables.study_values import StudyValues

log = logging.getLogger(__name__)

_OTHERS = "dcml.others"
_DRAWS = 100  # draws per trial before the searcher gives up to find a feasible combination
_MOVED_AFTER = 50  # draws per trial after which the last one is moved to the nearest feasible combination


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Which study, and what it optimises."""

    storage: str = field(repr=False)
    """SQLAlchemy address of an SQLite file or of PostgreSQL."""
    name: str
    """Name of the study; an existing one is continued."""
    metrics: list[str]
    """The best value so far of the first, `METRIC_best` in a trial's results, is maximised; of the others, the value at
    that epoch. Times (`time/...`) are minimised, by their mean over the epochs."""
    check: Callable[[], None] | None = None
    """Called before each write to the study; raises if another process writes to it now."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How settings are drawn."""

    sampler: Literal["optuna", "random", "local"] = "optuna"
    """optuna: TPE; random: independent draws; local: neighbours of the best trials, and TPE."""
    seed: int = 0
    startup: int = 6
    """Number of random trials before TPE takes over."""
    prior: dict[str, Any] | None = None
    """Settings around which first trials are drawn; see `trainables.prior_sampler`."""

    def build(self, drawn: int, space: SearchSpace, infeasible_reason: InfeasibleReason | None = None) -> BaseSampler:
        """Build the sampler of a study that has a number of trials.

        The number is part of the seed: a sampler that is built again must not draw again what it has drawn.

        Args:
            drawn: number of trials.
            space: of the search.
            infeasible_reason: returns why a configuration cannot work on the data, or None.
        """
        seed = (self.seed + 1000 * drawn) % SEEDS
        sampler: BaseSampler = RandomSampler(seed=seed)
        if self.sampler != "random":
            sampler = TPESampler(
                multivariate=True, group=True, constant_liar=True, seed=seed, n_startup_trials=self.startup
            )
        if self.sampler == "local":
            sampler = LocalSampler(
                sampler, space, seed=self.seed, startup=self.startup, infeasible_reason=infeasible_reason
            )
        return sampler if self.prior is None else PriorSampler(sampler, self.prior, seed=seed)


@dataclass(frozen=True, kw_only=True)
class StudyStart:
    """What a new study begins with; an existing one ignores it."""

    points: list[dict[str, Any]] = field(default_factory=list)
    """Settings of the first trials."""
    earlier: list[FrozenTrial] = field(default_factory=list)
    """Trials of other searches to learn from."""


@dataclass(frozen=True, kw_only=True)
class Launching:
    """How trials are launched, and when no more are."""

    run: Run = field(default_factory=Run)
    """How every trial is run; key and directory are added."""
    trials: Path | None = None
    """Directory with one directory per trial; None: trials save no state."""
    prefixes: Path | None = None
    """Directory of the states that trials share; None: they share no epochs."""
    infeasible_reason: InfeasibleReason | None = None
    """Returns why a configuration cannot work on the data, or None."""
    patience: int | None = None
    """Number of trials in a row without a new best value after which no more are launched; None: never."""


class OptunaSearcher(Searcher):
    """Samples the domains of a space. The value of a trial is the best so far of a metric.

    Attributes:
        study: the Optuna study.
    """

    def __init__(
        self,
        space: SearchSpace,
        options: StudyOptions,
        *,
        sampling: Sampling | None = None,
        start: StudyStart | None = None,
        launching: Launching | None = None,
    ) -> None:
        """Open or create the study. Only one process may have it open: trials left running are taken over.

        Args:
            space: restricted to this search; its published point gives the settings that do not vary.
            options: which study, and what it optimises.
            sampling: how settings are drawn.
            start: what a new study begins with.
            launching: how trials are launched.
        """
        super().__init__(metric=f"{options.metrics[0]}_best", mode="max")
        self.space, self.options, self.metrics = space, options, options.metrics
        self.sampling, self.launching = sampling or Sampling(), launching or Launching()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._ids: dict[str, int] = {}
        adapt_study(options.storage, options.name, space)
        self.study = self._open()
        if not self.study.get_trials(deepcopy=False):
            self._begin(start or StudyStart())
        self.requeue_running()
        self._launched = len(self.known())

    def _open(self) -> optuna.Study:
        """Open the study; values of trials are written through `self._values`."""
        options = self.options
        study = open_study(options.storage, options.name, [direction(name) for name in options.metrics], options.check)
        drawn = len(study.get_trials(deepcopy=False))
        study.sampler = self.sampling.build(drawn, self.space, self.launching.infeasible_reason)
        self._values = StudyValues(study)
        return study

    def _begin(self, start: StudyStart) -> None:
        self.study.add_trials(start.earlier)
        for point in start.points:
            self.study.enqueue_trial(point)

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its searcher to disk; the study is not part of it."""
        state = {name: value for name, value in self.__dict__.items() if name not in ("study", "_values")}
        storage = self.options.storage
        if sqlite_file(storage) is None:  # the password of a server is written nowhere
            storage = without_password(storage)
        state["options"] = replace(self.options, storage=storage, check=None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the study again."""
        self.__dict__.update(state)
        self.study = self._open()

    # -- what the study knows --------------------------------------------------------------------------

    def known(self) -> list[KnownTrial]:
        """Return the trials that were launched, in that order."""
        self._guarded(self._values.write_all)
        trials, reasons = self.study.get_trials(deepcopy=False), self.study.user_attrs
        found = [KnownTrial.of(trial, self.space.whole, reasons) for trial in trials if KEY in trial.user_attrs]
        return sorted(found, key=lambda trial: by_launch(trial.key))

    def pareto_front(self) -> list[tuple[str, list[float]]]:
        """Return the keys of the Pareto-optimal trials and their values, sorted by the first metric, the best first."""
        trials = [trial for trial in self.study.best_trials if KEY in trial.user_attrs]
        trials.sort(key=lambda trial: trial.values[0], reverse=True)
        return [(trial.user_attrs[KEY], trial.values) for trial in trials]

    def patience_exhausted(self) -> bool:
        """Return whether `patience` trials in a row have ended without a new best value. Waiting trials may bring one."""
        if self.launching.patience is None:
            return False
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if KEY in trial.user_attrs]
        if any(trial.state == TrialState.WAITING for trial in trials):
            return False
        ended = [trial for trial in trials if trial.state.is_finished()]
        ended.sort(key=lambda trial: trial.datetime_complete or datetime.max)
        values = [trial.values[0] if trial.values else -math.inf for trial in ended]
        return bool(values) and len(values) - 1 - values.index(max(values)) >= self.launching.patience

    # -- what the search writes ------------------------------------------------------------------------

    def requeue_running(self) -> None:
        """Queue the running trials for the next process."""
        self._guarded(self._values.write_all)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        self._ids.clear()
        self._values = StudyValues(self.study)

    def cut_short(self, reason: str) -> None:
        """End the open trials, because no more are run: one that has a value ends as pruned, with the reason.

        With several metrics it waits for an extension: Optuna cannot store a part of its values.
        """
        self.requeue_running()
        if len(self.metrics) > 1:
            return
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if trial.intermediate_values and KEY in trial.user_attrs:
                value = max(trial.intermediate_values.values())
                self.study._storage.set_trial_user_attr(trial._trial_id, REASON, reason)
                self.study._storage.set_trial_state_values(trial._trial_id, TrialState.PRUNED, [value])

    def set_failure_reason(self, key: str, reason: str) -> None:
        """Record why a trial failed, where only the driver knows. Optuna does not change a trial that has ended."""
        self._guarded(self.study.set_user_attr, f"{REASON}/{key}", reason)

    # -- the interface of Ray --------------------------------------------------------------------------

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the whole dictionary of a trial: published point, sampled settings, and how it is run.

        Infeasible combinations are recorded in the study as failed, and never launched. Samplers do not read failed trials:
        as pruned ones they would count among the random trials at the beginning.
        """
        reason = ""
        if self.patience_exhausted():
            return Searcher.FINISHED  # type: ignore[return-value]
        for number in range(_DRAWS):
            trial = self.study.ask()
            self._ids[trial_id] = trial._trial_id
            if KEY in trial.user_attrs:  # it was interrupted, and has its settings
                known = self.study._storage.get_trial(trial._trial_id).intermediate_values
                return self._packed(trial.user_attrs[KEY], trial.params, reported=max(known, default=0))
            try:
                sampled = self.space.suggest(trial, self.launching.infeasible_reason)
            except SettingError as error:
                reason = str(error)
                trial.set_user_attr(REASON, reason)
                self.study.tell(trial, state=TrialState.FAIL)
                if number >= _MOVED_AFTER:
                    self._enqueue_nearest(trial.params)
                continue
            key = f"{self._launched:03d}"
            trial.set_user_attr(KEY, key)
            self._launched += 1
            self._guarded(keep_copy, self.options.storage)
            return self._packed(key, sampled, is_new=True)
        log.error("%d draws gave no feasible combination of settings; the last: %s", _DRAWS, reason)
        return None

    def _enqueue_nearest(self, drawn: dict[str, Any]) -> None:
        """Queue the feasible combination that is nearest to an infeasible one."""
        with suppress(SettingError):
            point, _ = nearest_point(self.space, "", drawn, self.launching.infeasible_reason)
            self.study.enqueue_trial(point)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record the best value so far at an epoch; an epoch that is recorded already is ignored."""
        value = result.get(self.metric)
        if value is None or not math.isfinite(value) or result.keys() & {STOP_SEARCH, FAILED}:
            return
        number, epoch, storage = self._ids.get(trial_id), int(result["epoch"]), self.study._storage
        if number is None or self._values.has(number, epoch):
            return
        if shared := result.get(SHARED):
            self._guarded(storage.set_trial_user_attr, number, SHARED_EPOCHS, shared)
        if len(self.metrics) > 1:
            others = [float(result[name]) for name in self.metrics[1:]]
            self._guarded(storage.set_trial_user_attr, number, f"{_OTHERS}/{epoch}", others)
        self._guarded(self._values.add, number, epoch, value)

    def write_due(self) -> None:
        """Write the values to the study that wait for others of their trial; called after each step of Ray Tune."""
        self._guarded(self._values.write_due)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record how a trial ended: failed, pruned (stopped before its last epoch), or complete."""
        trial = self._trial(trial_id)
        if trial is None:
            return
        result = result or {}
        value = result.get(self.metric)
        if error or result.get(FAILED) or value is None or not math.isfinite(value):
            self._guarded(self._values.end, trial._trial_id)
            self._guarded(self._fail, trial, result.get(FAILED))
        else:
            self.on_trial_result(trial_id, result)  # Ray passes the last result to this method only
            self._guarded(self._values.end, trial._trial_id)
            ended = {"values": self._final_values(trial)} if result.get("done_all") else {"state": TrialState.PRUNED}
            self._guarded(self.study.tell, trial.number, **ended)
        self._guarded(keep_copy, self.options.storage)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the study holds everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing: the constructor has opened the study."""

    # -- one trial -------------------------------------------------------------------------------------

    def _packed(self, key: str, sampled: dict[str, Any], *, reported: int = 0, is_new: bool = False) -> dict[str, Any]:
        trials = self.launching.trials
        directory = None if trials is None else str(trials / key)
        run = replace(self.launching.run, key=key, directory=directory)
        if trials is not None:
            run = replace(run, reported=reported, is_new=is_new and run.storage is not None)
        settings = self.space.whole(sampled)
        if (prefixes := self.launching.prefixes) is not None:
            local = self.sampling.sampler == "local"
            shares = shared_epochs(TrialConfig(**settings), self.space.domains, local=local)
            run = replace(run, prefixes=str(prefixes), shares=shares)
        return pack(settings, run)

    def _final_values(self, trial: FrozenTrial) -> list[float]:
        """Return the value of a trial in each metric, from what the study has now."""
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
        """Record a failed trial, and let the sampler learn from it: samplers read pruned trials, not failed ones.

        So the settings are added once more, as a trial that was pruned at the worst value.
        """
        if reason:
            self.study._storage.set_trial_user_attr(trial._trial_id, REASON, reason)
        self.study.tell(trial.number, state=TrialState.FAIL)
        if len(self.metrics) > 1:
            return  # Optuna prunes by one metric only
        worst = optuna.trial.create_trial(
            state=TrialState.PRUNED,
            params=trial.params,
            distributions=trial.distributions,
            value=0.0,
            intermediate_values={0: 0.0},
            user_attrs={FAILURE_OF: trial.user_attrs.get(KEY)},
        )
        self.study.add_trial(worst)

    def _trial(self, trial_id: str) -> FrozenTrial | None:
        """Return the study's trial of a Ray trial, if it has not ended. One read takes milliseconds."""
        number = self._ids.get(trial_id)
        trial = None if number is None else self.study._storage.get_trial(number)
        return None if trial is None or trial.state.is_finished() else trial

    def _guarded(self, call: Any, *arguments: Any, **options: Any) -> bool:
        """Call a function and log its exception, which in a searcher would end the whole search; returns whether there was none."""
        try:
            call(*arguments, **options)
        except Exception as error:
            tracebacks.warn(log, "the Optuna study did not take a result", error)
            return False
        return True
