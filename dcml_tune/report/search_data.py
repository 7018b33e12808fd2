"""What a search has left on disk and in MLflow, read without changing anything."""

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
from dcml_tune.runs.study import first_best

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from dcml_tune.tracking.reading import StoredRun

PUBLISHED = "000"
"""Key of the trial that has the published setting."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial that has not failed, as the study knows it."""

    key: str
    settings: dict[str, Any]
    """Those that the search has drawn."""
    config: TrialConfig
    curve: dict[int, float]
    """Best value so far, a share of 1, after so many epochs."""
    state: Literal["done", "pruned", "interrupted", "running"]
    frozen: FrozenTrial

    @property
    def best(self) -> float | None:
        """The best value; None before the first epoch."""
        return max(self.curve.values(), default=None)

    @property
    def epochs(self) -> int:
        """Epochs that were run."""
        return max(self.curve, default=0)

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to be done, and there is a value."""
        return self.state in ("done", "pruned") and bool(self.curve)

    @property
    def seconds(self) -> float | None:
        """From its beginning to its end, pauses included; None while it has not ended."""
        start, end = self.frozen.datetime_start, self.frozen.datetime_complete
        return None if start is None or end is None else (end - start).total_seconds()


@dataclass(frozen=True, kw_only=True)
class SearchData:
    """All that the page is made of."""

    directory: Path
    record: Record
    trials: list[Trial]
    failed: int
    """Trials that failed, which are left out of `trials`."""
    runs: list[StoredRun]
    """The runs of the search in MLflow."""
    problems: list[str]
    """Why something could not be read."""
    verdict: dict[str, Any] | None
    uri: str
    """Of MLflow."""
    _curves: dict[tuple[str, str], list[tuple[int, float]]] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        """Where searches are written."""
        return self.directory.parent

    @property
    def name(self) -> str:
        """Of the search."""
        return self.directory.name

    @property
    def published(self) -> dict[str, Any]:
        """The settings of every trial, but for those that vary."""
        return {**self.record.asked["settings"], **self.record.asked["space"]["published"]}

    @property
    def metric(self) -> str:
        """By which trials are compared, such as val/recall_at_1."""
        return self.metrics[0]

    @property
    def metrics(self) -> list[str]:
        """All metrics; the first one decides."""
        found: list[str] = self.record.asked["metrics"]
        return found

    @property
    def status(self) -> str:
        """The record's status; a search whose process is gone is interrupted."""
        state = self.record.state
        return "interrupted" if state.status == "running" and not _is_alive(state.owner) else state.status

    @property
    def ended(self) -> list[Trial]:
        """The trials that have ended with a value."""
        return [trial for trial in self.trials if trial.has_ended]

    @property
    def best(self) -> Trial | None:
        """The winner of the confirmation, or else the trial with the best value so far; of equal ones the first."""
        by_key = {trial.key: trial for trial in self.trials if trial.curve}
        if self.verdict is not None and self.verdict.get("winner") in by_key:
            return by_key[self.verdict["winner"]]
        ended = self.ended or list(by_key.values())
        return first_best(ended, lambda trial: trial.best)

    @property
    def varied(self) -> list[str]:
        """The settings in which trials that have ended differ."""
        names = dict.fromkeys(name for trial in self.ended for name in trial.settings)
        return [name for name in names if len({trial.settings.get(name) for trial in self.ended}) > 1]

    @property
    def model(self) -> Path | None:
        """Directory of the best trial's model; None if it was not kept."""
        return None if self.best is None else best_model(self.directory / TRIALS / self.best.key)

    def run(self, key: str) -> StoredRun | None:
        """The run of a trial in MLflow."""
        return next((run for run in self.runs if run.key == f"{self.name}/{key}"), None)

    def curve(self, key: str, metric: str) -> list[tuple[int, float]]:
        """Epoch and value of a trial's metric in MLflow, in order; empty where there is none."""
        from dcml_tune.tracking.reading import curve

        run = self.run(key)
        if run is None or metric not in run.metrics:
            return []
        if (key, metric) not in self._curves:
            self._curves[key, metric] = curve(self.uri, run.run_id, metric)
        return self._curves[key, metric]

    def study(self) -> optuna.Study:
        """A copy in memory of the trials that have ended; pruned ones count with the best value that they had."""
        import optuna

        made = optuna.create_study(direction="maximize")
        for trial in self.ended:
            frozen = trial.frozen
            made.add_trial(
                optuna.trial.FrozenTrial(
                    number=-1,
                    trial_id=-1,
                    state=optuna.trial.TrialState.COMPLETE,
                    value=trial.best,
                    datetime_start=frozen.datetime_start,
                    datetime_complete=frozen.datetime_complete,
                    params=frozen.params,
                    distributions=frozen.distributions,
                    user_attrs=frozen.user_attrs,
                    system_attrs={},
                    intermediate_values=frozen.intermediate_values,
                )
            )
        return made


def _is_alive(owner: str) -> bool:
    """Whether the process of a record runs; one of another machine is believed to."""
    found = re.fullmatch(r"process (\d+) on (.*)", owner)
    if found is None or found[2] != platform.node():
        return True
    try:
        os.kill(int(found[1]), 0)  # sends nothing
    except ProcessLookupError:
        return False
    except OSError:  # it is someone else's
        return True
    return True


def moment(when: float | datetime | None) -> str:
    """A time as people read it."""
    if when is None:
        return NOTHING
    local = when if isinstance(when, datetime) else datetime.fromtimestamp(when)
    return local.strftime("%Y-%m-%d %H:%M")
