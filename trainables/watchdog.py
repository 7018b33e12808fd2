"""TrialWatchdog: kills a trial that hangs, and stops the search before its disk is full."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback

from dcml_tune.utils.files import free_bytes, readable_size
from dcml_tune.utils.signals import SearchStopped, raise_if_signalled
from trainables.run import STOP_SEARCH, run_of

log = logging.getLogger(__name__)


_LOOK_S = 2.0  # interval between checks of the disk and of the trials' clocks


class TrialWatchdog(Callback):
    """Kills a trial whose step hangs, and stops the whole search before its disk is full."""

    def __init__(
        self,
        *,
        directory: Path,
        need: int,
        trial_timeout: float | None,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Watch a search.

        Args:
            directory: directory that the search writes to.
            need: number of bytes that must be free there.
            trial_timeout: seconds without a report after which a trial is killed; None: never.
            check: called every few seconds; raises if another process runs the search now.
        """
        self.check = check
        self.directory, self.need, self.timeout = directory, need, trial_timeout
        self.reasons: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._looked = 0.0
        self._stepped: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks to disk; functions stay in this process."""
        return {**self.__dict__, "check": None}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Check for signals, the free space on the disk, and the clocks of the trials."""
        raise_if_signalled()
        self._forgive_pause()
        if time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        if self.check is not None:
            self.check()
        free = free_bytes(self.directory)
        if free < self.need:
            raise SearchStopped(
                f"{self.directory} has {readable_size(free)} left, and the next checkpoints need "
                f"{readable_size(self.need)}; free some space there"
            )
        for trial in trials:
            if trial.status == "RUNNING" and self._is_late(trial):
                self._end(trial)

    def _forgive_pause(self) -> None:
        """Do not count against the trials the time that this process waited between steps, such as for a locked study."""
        now = time.monotonic()
        if self._stepped is not None and (pause := now - self._stepped) > _LOOK_S:
            self._since = {trial: since + pause for trial, since in self._since.items()}
        self._stepped = now

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Start the clock of a trial with its process."""
        self._since[trial.trial_id] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Restart the clock of the trial. A trial that could not be saved stops the search."""
        self._since[trial.trial_id] = time.monotonic()
        if STOP_SEARCH in result:
            raise SearchStopped(result[STOP_SEARCH])

    def _is_late(self, trial: Any) -> bool:
        since = self._since.get(trial.trial_id)
        return self.timeout is not None and since is not None and time.monotonic() - since > self.timeout

    def _end(self, trial: Any) -> None:
        """Kill the trial's process; Ray tries it again, from its last epoch."""
        self.reasons[trial.trial_id] = f"reported nothing for {self.timeout:g} s (--trial-timeout): its step hangs"
        log.warning("trial %s %s; its process is ended", run_of(trial.config).key, self.reasons[trial.trial_id])
        self._since.pop(trial.trial_id)
        if trial.temporary_state.ray_actor is not None:
            ray.kill(trial.temporary_state.ray_actor)
