"""KnownTrial: what the Optuna study of a search knows about a trial, while the search runs.

The report has its own class, `dcml_tune.report.search_data.Trial`, because it holds other facts: settings that were validated,
and Optuna's trial with its distributions and times, for the figures. A KnownTrial includes failed trials with their reasons, and
its settings are not validated, because reading them must not fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from dcml_tune.runs.study import KEY, SHARED_EPOCHS

REASON = "dcml.reason"
"""Attribute of a trial: why it failed or was pruned. As REASON/KEY it is an attribute of the study."""

FAILURE_OF = "dcml.failure_of"
"""Attribute of a trial that repeats the settings of a failed one for the sampler: key of that one."""

State = Literal["done", "pruned", "failed", "interrupted", "running"]

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.WAITING: "interrupted",
    TrialState.RUNNING: "running",
}


@dataclass(frozen=True, kw_only=True)
class KnownTrial:
    """A trial that was launched."""

    key: str
    config: dict[str, Any]
    """Settings of the trial."""
    curve: dict[int, float]
    """Number of epochs -> best value until then."""
    state: State
    reason: str | None
    shared: int = 0
    """Number of its first epochs that another trial has computed."""

    @classmethod
    def of(
        cls, trial: FrozenTrial, whole: Callable[[Mapping[str, Any]], dict[str, Any]], reasons: Mapping[str, Any]
    ) -> KnownTrial:
        """Build it from a trial of the study.

        Args:
            trial: a trial that has a key.
            whole: returns all settings of a trial, given those that were sampled.
            reasons: attributes of the study; Optuna does not change a trial that has ended, so some reasons are here.
        """
        key = trial.user_attrs[KEY]
        return cls(
            key=key,
            config=whole(trial.params),
            curve=dict(trial.intermediate_values),
            state=_STATES[trial.state],
            reason=trial.user_attrs.get(REASON) or reasons.get(f"{REASON}/{key}"),
            shared=trial.user_attrs.get(SHARED_EPOCHS, 0),
        )

    @property
    def has_ended(self) -> bool:
        """Whether the trial has ended."""
        return self.state in ("done", "pruned", "failed")

    @property
    def best(self) -> float | None:
        """The best value; None for a trial that failed or has no value."""
        return None if self.state == "failed" else max(self.curve.values(), default=None)

    @property
    def best_epoch(self) -> int | None:
        """The first epoch after which it had its best value."""
        return next((epoch for epoch, value in sorted(self.curve.items()) if value == self.best), None)
