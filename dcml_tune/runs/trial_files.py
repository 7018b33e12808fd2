"""TrialFiles: how the driver gets the files of trials: from the output directory, or from the storage of --storage.

With a storage, the process of a trial writes to the disk of its node and pushes what it has saved (`trainables.stored_trial`). The
driver pulls what it reads into the directory of the trial, on its own disk. When a trial has ended, the driver begins an
attempt of its own there, so that no process of the trial counts any more, and keeps in it what is needed later.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dcml_tune.runs import ledger
from dcml_tune.runs.attempts import files_of, next_attempt, settle
from dcml_tune.runs.paths import LEDGER, TRIALS
from dcml_tune.runs.storage import Storage
from dcml_tune.runs.stored_files import StoredFiles, files_below

STATE = "trainer"
"""Stem of the files of a trial's state, which only a resume reads."""

_TOLD_S = 5.0
"""Seconds in which the study has learnt of the end of a trial that was recorded."""

_THREADS = 8


class TrialFiles:
    """The files of trials in an output directory that all nodes share."""

    def get_all(self, trials: Path) -> None:
        """Get what earlier drivers have of the trials of a search into their directories."""

    def next_attempt(self, directory: Path, *, is_new: bool = False) -> int:
        """Return the number of a new attempt of a trial; from now on no other one counts.

        Args:
            directory: of the trial.
            is_new: whether what a storage has of its key is of another trial.
        """
        return next_attempt(directory)

    def current(self, directory: Path, stem: str) -> Path:
        """Return the directory that has the files with this stem of a trial that may run."""
        return files_of(directory)

    def collect(self, directory: Path) -> None:
        """Put the files of a trial that has ended into its directory; its process does not count any more."""
        settle(directory)

    def keep(self, directory: Path) -> None:
        """Note that of a trial that has ended only the files in its directory are needed."""

    def end_stage(self, output: Path) -> None:
        """Get what the trials of a stage have written beside their own files."""


class StoredTrialFiles(TrialFiles):
    """The files of trials in a storage."""

    def __init__(self, storage: Storage, search: str) -> None:
        """Take the storage and the name of a search."""
        self._storage, self._place = storage, storage.child(search, TRIALS)
        self._begun: dict[Path, int] = {}
        self._kept: dict[Path, float] = {}
        self._lock = threading.Lock()

    def files(self, directory: Path) -> StoredFiles:
        """Return the files of a trial, given its directory."""
        return StoredFiles(self._place.child(directory.name))

    def next_attempt(self, directory: Path, *, is_new: bool = False) -> int:
        """Return the number of a new attempt of a trial; from now on no other one counts."""
        files = self.files(directory)
        if is_new and files.newest() is not None:
            files.take_over(files.begin(ended=True), set())
        return files.begin()

    def current(self, directory: Path, stem: str) -> Path:
        """Pull the files with this stem of a trial that may run; returns the directory."""
        self.files(directory).pull(directory, lambda name: name.startswith(stem))
        return directory

    def collect(self, directory: Path) -> None:
        """Pull the files of a trial that has ended, apart from its state."""
        files = self.files(directory)
        with self._lock:
            self._kept.pop(directory, None)
            self._begun[directory] = files.begin(ended=True)
        files.pull(directory, _is_no_state, exact=True)

    def keep(self, directory: Path) -> None:
        """Note that only the files in the directory of a trial are needed; `remove_rest` removes the others."""
        with self._lock:
            self._kept[directory] = time.monotonic()

    def remove_rest(self, pushed: float | None = None) -> None:
        """Remove from the storage what is not needed of trials that have ended, their states among it.

        Before that the study in the storage must know the ends of these trials: otherwise a driver on another machine would
        train them again from their first epoch.

        Args:
            pushed: when the newest push of the study began (`time.monotonic`); None: it knows all trials.
        """
        with self._lock:
            ready = {each: since for each, since in self._kept.items() if pushed is None or since + _TOLD_S < pushed}
        for directory, since in ready.items():
            files = self.files(directory)
            with self._lock:
                number = self._begun.pop(directory, None)
            files.take_over(number or files.begin(ended=True), {name for name, _ in files_below(directory)})
            with self._lock:
                if self._kept.get(directory) == since:
                    del self._kept[directory]

    def get_all(self, trials: Path) -> None:
        """Pull the files of all trials, apart from their states; and the ledger of the test classes."""
        self.end_stage(trials.parent.parent)
        keys = sorted({name.partition("/")[0] for name in self._place.sizes()})
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda key: self.files(trials / key).pull(trials / key, _is_no_state, exact=True), keys))

    def end_stage(self, output: Path) -> None:
        """Pull the ledger of the test classes."""
        ledger.pull(output / LEDGER, self._storage)


def _is_no_state(name: str) -> bool:
    return not name.startswith(f"{STATE}-")
