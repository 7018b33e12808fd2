"""The data of a search that the report shows.

Its `Trial` is not `trainables.known_trial.KnownTrial`, which the running search uses: that one includes failed trials, has a reason
instead of Optuna's trial, and does not validate settings.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcml_tune.config.trial import TrialConfig
from dcml_tune.models.embedder import best_model
from dcml_tune.report.page import NOTHING
from dcml_tune.runs.paths import TRIALS
from dcml_tune.runs.record import Record
from dcml_tune.runs.study import KEY, SHARED_EPOCHS, first_best

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from dcml_tune.runs.importance import Importance
    from dcml_tune.tracking.reading import StoredRun

PUBLISHED = "000"
"""Key of the trial with the published settings."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial of the study that has not failed."""

    key: str
    settings: dict[str, Any]
    """The sampled settings."""
    config: TrialConfig
    curve: dict[int, float]
    """Best value so far, a fraction, by the number of epochs."""
    state: Literal["done", "pruned", "interrupted", "running"]
    frozen: FrozenTrial

    @property
    def best(self) -> float | None:
        """The best value; None before the first epoch."""
        return max(self.curve.values(), default=None)

    @property
    def epochs(self) -> int:
        """Epochs that were completed."""
        return max(self.curve, default=0)

    @property
    def shared(self) -> int:
        """First epochs that another trial has computed."""
        return int(self.frozen.user_attrs.get(SHARED_EPOCHS, 0))

    @property
    def has_ended(self) -> bool:
        """Whether the trial ended with a value, completed or pruned."""
        return self.state in ("done", "pruned") and bool(self.curve)

    @property
    def seconds(self) -> float | None:
        """Seconds from its start to its end, pauses included; None if it has not ended."""
        start, end = self.frozen.datetime_start, self.frozen.datetime_complete
        return None if start is None or end is None else (end - start).total_seconds()


@dataclass(frozen=True, kw_only=True)
class SearchData:
    """The content of the page."""

    directory: Path
    record: Record
    trials: list[Trial]
    failed: int
    """Number of failed trials, which `trials` does not hold."""
    runs: list[StoredRun]
    """The runs of the search in MLflow."""
    problems: list[str]
    """Sentences that say what could not be read, and why."""
    verdict: dict[str, Any] | None
    """Content of verdict.json; None if nothing was confirmed."""
    uri: str
    """Address of the MLflow store."""
    _curves: dict[tuple[str, str], list[tuple[int, float]]] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        """The output directory that holds the search."""
        return self.directory.parent

    @property
    def name(self) -> str:
        """Name of the search."""
        return self.directory.name

    @property
    def published(self) -> dict[str, Any]:
        """The published settings, with those given for this search; trials differ from them only in the sampled settings."""
        return {**self.record.asked["settings"], **self.record.asked["space"]["published"]}

    @property
    def metric(self) -> str:
        """The metric that compares trials, such as val/recall_at_1."""
        return self.metrics[0]

    @property
    def metrics(self) -> list[str]:
        """All metrics; the first one compares trials."""
        found: list[str] = self.record.asked["metrics"]
        return found

    @property
    def status(self) -> str:
        """Status of the record; a running search whose process no longer exists is interrupted."""
        state = self.record.state
        return "interrupted" if state.status == "running" and not _is_alive(state.owner) else state.status

    @property
    def ended(self) -> list[Trial]:
        """The trials that ended with a value."""
        return [trial for trial in self.trials if trial.has_ended]

    @property
    def best(self) -> Trial | None:
        """The winner of the confirmation; without one, the first trial with the best value so far."""
        by_key = {trial.key: trial for trial in self.trials if trial.curve}
        if self.verdict is not None and self.verdict.get("winner") in by_key:
            return by_key[self.verdict["winner"]]
        ended = self.ended or list(by_key.values())
        return first_best(ended, lambda trial: trial.best)

    @property
    def varied(self) -> list[str]:
        """The settings in which the ended trials differ."""
        names = dict.fromkeys(name for trial in self.ended for name in trial.settings)
        return [name for name in names if len({trial.settings.get(name) for trial in self.ended}) > 1]

    @property
    def model(self) -> Path | None:
        """Directory of the best model of the best trial; None if it was not kept."""
        return None if self.best is None else best_model(self.directory / TRIALS / self.best.key)

    def run(self, key: str) -> StoredRun | None:
        """The run of a trial in MLflow; None if it has none."""
        return next((run for run in self.runs if run.key == f"{self.name}/{key}"), None)

    def curve(self, key: str, metric: str) -> list[tuple[int, float]]:
        """Epoch and value of each point of a trial's metric in MLflow, by epoch; empty if it has none."""
        from dcml_tune.tracking.reading import curve  # imported on use, as below: mlflow and optuna are slow to import

        run = self.run(key)
        if run is None or metric not in run.metrics:
            return []
        if (key, metric) not in self._curves:
            self._curves[key, metric] = curve(self.uri, run.run_id, metric)
        return self._curves[key, metric]

    def study(self, *, whole: bool = False) -> optuna.Study:
        """An in-memory study of the ended trials, all as complete; a pruned one has the best value that it reached.

        Args:
            whole: give each trial a value of every setting that varies: where a condition kept a setting from varying, the
                value that the trial had. Importance and parallel coordinates need it.
        """
        import optuna

        made = optuna.create_study(direction="maximize")
        drawn: dict[str, BaseDistribution] = {} if not whole else self._distributions()
        for trial in self.ended:
            frozen = trial.frozen
            settings = {**{name: getattr(trial.config, name) for name in drawn}, **frozen.params}
            made.add_trial(
                optuna.trial.FrozenTrial(
                    number=-1,
                    trial_id=-1,
                    state=optuna.trial.TrialState.COMPLETE,
                    value=trial.best,
                    datetime_start=frozen.datetime_start,
                    datetime_complete=frozen.datetime_complete,
                    params=settings,
                    distributions={**frozen.distributions, **drawn},
                    user_attrs=frozen.user_attrs,
                    system_attrs={},
                    intermediate_values=frozen.intermediate_values,
                )
            )
        return made

    def importance(self) -> Importance:
        """The importance of the settings that vary, for the best trial."""
        from dcml_tune.runs.importance import importance

        configs = {trial.key: trial.config.model_dump() for trial in self.ended}
        return importance(
            [trial.frozen for trial in self.ended],
            self.varied,
            settings=lambda frozen: configs[frozen.user_attrs[KEY]],
            winner={} if self.best is None else self.best.config.model_dump(),
            published=self.published_point,
        )

    @property
    def published_point(self) -> dict[str, Any]:
        """The settings of trial 0; of a search without it, the published ones."""
        first = next((trial for trial in self.trials if trial.key == PUBLISHED), None)
        return self.published if first is None else first.config.model_dump()

    def _distributions(self) -> dict[str, BaseDistribution]:
        """For each sampled setting a distribution that holds the values of all ended trials."""
        from dcml_tune.runs.importance import common_distribution

        found: dict[str, BaseDistribution] = {}
        for name in dict.fromkeys(name for trial in self.ended for name in trial.frozen.params):
            drawn = [trial.frozen.distributions[name] for trial in self.ended if name in trial.frozen.params]
            values = [trial.settings.get(name, getattr(trial.config, name)) for trial in self.ended]
            found[name] = common_distribution(drawn, values)
        return found


def _is_alive(owner: str) -> bool:
    """Whether the owner of a record is a running process; that of another machine counts as running."""
    found = re.fullmatch(r"process (\d+) on (.*)", owner)
    if found is None or found[2] != platform.node():
        return True
    try:
        os.kill(int(found[1]), 0)  # signal 0 only checks that the process exists
    except ProcessLookupError:
        return False
    except OSError:  # it exists, and belongs to another user
        return True
    return True


def moment(when: float | datetime | None) -> str:
    """Format a local time with minutes; None as a dash."""
    if when is None:
        return NOTHING
    local = when if isinstance(when, datetime) else datetime.fromtimestamp(when)
    return local.strftime("%Y-%m-%d %H:%M")
