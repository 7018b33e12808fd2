"""The numbers of a trial's starts: each process that Tune starts for a trial gets a higher one (`dcml_tune.runs.attempts`).

Tune of Ray 2.60 makes the arguments of a process in one function, for the first start and for each retry. Callbacks see a
start only when the process runs, so this function is wrapped while trials run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.tune.execution import tune_controller

from dcml_tune.runs.storage import StorageError
from dcml_tune.runs.trial_files import TrialFiles
from dcml_tune.utils.signals import SearchStopped
from trainables.run import Run, run_of, with_attempt


@dataclass(frozen=True, kw_only=True)
class Starts:
    """What the driver does before each start of a trial."""

    check: Callable[[], None] = lambda: None
    """Raises if another driver runs the search now."""
    files: TrialFiles = field(default_factory=TrialFiles)
    """Numbers the starts."""
    started: set[str] = field(default_factory=set)
    """Keys of the trials that this process has started."""
    recorded: Callable[[str], int] = lambda key: 0
    """Returns the number of epochs of a trial that the tracker has."""

    def next_attempt(self, run: Run, directory: Path) -> int:
        """Return the number of the next start of a trial."""
        is_new = run.is_new and run.key not in self.started
        self.started.add(run.key)
        try:
            return self.files.next_attempt(directory, is_new=is_new)
        except OSError as error:
            raise SearchStopped(f"{error.filename or directory} cannot be written ({error.strerror})") from None
        except StorageError as error:
            raise SearchStopped(str(error)) from None

    def reported(self, run: Run, last: dict[str, Any] | None) -> int | None:
        """Return `Run.reported`.

        Args:
            run: of the trial; the searcher has set what the study has.
            last: the last report to this process, which the study and the tracker have; None: there is none.
        """
        if run.reported is None and run.storage is None:  # a run that is no trial of the search
            return None
        if last and "epoch" in last:
            return int(last["epoch"])
        recorded = self.recorded(run.key)
        return recorded if run.reported is None else min(recorded, run.reported)


@contextmanager
def numbered_starts(starts: Starts) -> Iterator[None]:
    """Number the starts of trials in this block."""
    module: Any = tune_controller
    arguments_of = module._get_trainable_kwargs

    def numbered(trial: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = arguments_of(trial)
        run = run_of(trial.config)
        if run.directory is not None:
            starts.check()
            number = starts.next_attempt(run, Path(run.directory))
            arguments["config"] = with_attempt(arguments["config"], number, starts.reported(run, trial.last_result))
        return arguments

    module._get_trainable_kwargs = numbered
    try:
        yield
    finally:
        module._get_trainable_kwargs = arguments_of
