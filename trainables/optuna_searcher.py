"""OptunaSearcher: a Ray searcher over an Optuna study that is its only memory.

Ray's own OptunaSearch pickles its state beside the study and stumbles when the two disagree after a crash
(docs/architecture.md, Searcher). Here every trial of the study carries the id of its Ray trial, so that a restored
search reads everything from the study.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.search import Searcher

from dcml_tune.config import SettingError
from search_spaces.space import Feasible, SearchSpace

log = logging.getLogger(__name__)

_RAY_ID = "ray_trial_id"
_TRIES = 100


class OptunaSearcher(Searcher):
    """Samples the domains of a space; trial values are the best so far of a metric."""

    def __init__(
        self,
        space: SearchSpace,
        *,
        storage: str,
        study_name: str,
        metric: str,
        sampler: Literal["optuna", "random"] = "optuna",
        seed: int = 0,
        feasible: Feasible | None = None,
        points: list[dict[str, Any]] | None = None,
        constants: dict[str, Any] | None = None,
        startup: int = 6,
    ) -> None:
        """Open the study, or make it.

        Args:
            space: restricted to this search; its published point fills in what does not vary.
            storage: SQLAlchemy address of the study.
            study_name: name of the study; one that exists is continued.
            metric: its best so far, `METRIC_best` in a trial's results, is what is maximised.
            sampler: `optuna` for TPE, `random` for independent draws.
            seed: of the sampler.
            feasible: says why a configuration cannot work on the data, or None.
            points: settings of the first trials.
            constants: added to every trial's dictionary.
            startup: random trials before TPE takes over.
        """
        super().__init__(metric=f"{metric}_best", mode="max")
        self.space, self.feasible, self.constants = space, feasible, constants or {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.storage, self.study_name = storage, study_name
        self.sampler, self.seed, self.startup = sampler, seed, startup
        self.study = self._open()
        if not self.study.trials:
            for point in points or []:
                self.study.enqueue_trial(point)

    def _open(self) -> optuna.Study:
        study = optuna.create_study(
            storage=self.storage, study_name=self.study_name, direction="maximize", load_if_exists=True
        )
        # A sampler that is opened again must not draw again what it has drawn.
        study.sampler = _sampler(self.sampler, self.seed + 1000 * len(study.trials), self.startup)
        return study

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps a copy of its searcher on disk; the study is opened again from its own store."""
        return {name: value for name, value in self.__dict__.items() if name != "study"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the study again."""
        self.__dict__.update(state)
        self.study = self._open()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The whole dictionary of a trial: published point, sampled settings, constants.

        Combinations that cannot work are told to the study as failed, and never launched.
        """
        reason = ""
        for _ in range(_TRIES):
            trial = self.study.ask()
            try:
                sampled = self.space.suggest(trial, self.feasible)
            except SettingError as error:
                reason = str(error)
                trial.set_user_attr("dcml.reason", reason)
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            trial.set_user_attr(_RAY_ID, trial_id)
            return {**self.space.published, **sampled, **self.constants}
        log.error("no setting that can work was found in %d draws, the last: %s", _TRIES, reason)
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report the best so far at an epoch."""
        value = result.get(self.metric)
        trial = self._running(trial_id)
        if trial is not None and value is not None and math.isfinite(value):
            self._guarded(trial.report, value, int(result["training_iteration"]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended: failed, pruned (stopped before its last epoch), or complete."""
        trial = self._running(trial_id)
        if trial is None:
            return
        value = (result or {}).get(self.metric)
        if error or result is None or result.get("failed_reason") or value is None or not math.isfinite(value):
            trial.set_user_attr("dcml.reason", (result or {}).get("failed_reason", "error"))
            self._guarded(self.study.tell, trial, state=TrialState.FAIL)
        elif not result.get("done_all"):
            self._guarded(self.study.tell, trial, state=TrialState.PRUNED)
        else:
            self._guarded(self.study.tell, trial, value)

    def save(self, checkpoint_path: str) -> None:
        """The study holds everything; only its name is noted."""
        Path(checkpoint_path).write_text(json.dumps({"study": self.study.study_name}))

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to read: the study was opened by the constructor."""

    def _running(self, trial_id: str) -> optuna.Trial | None:
        """The study's trial of a Ray trial, if it has not ended."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        found = next((t for t in running if t.user_attrs.get(_RAY_ID) == trial_id), None)
        return None if found is None else optuna.Trial(self.study, found._trial_id)

    def _guarded(self, call: Any, *arguments: Any, **options: Any) -> None:
        """An exception in a searcher would end the whole search."""
        try:
            call(*arguments, **options)
        except Exception:
            log.warning("the Optuna study did not take a result", exc_info=True)


def _sampler(name: str, seed: int, startup: int) -> BaseSampler:
    if name == "random":
        return RandomSampler(seed=seed)
    return TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed, n_startup_trials=startup)
