"""PrefixStore: states after the first epochs of trials, for other trials to which the same epochs are common.

    DIRECTORY/KEY/trainer-EPOCH.*, best-EPOCH/, division-EPOCH.*   files of `Trainer.save`
              KEY.lock                                             held by the trial that computes this state
              KEY.progress                                         touched by that trial as long as it makes progress

A key stands for everything that had an influence on a state: the settings as they acted (`dcml_tune.config.prefix`), the
images, the metric of the best epoch, the code, the device, the numbers of threads and ranks, and whether algorithms are
deterministic. Its first part stands for what had an
influence on the trained weights: trials whose keys have the same first part differ in the weights that are measured.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from dcml_tune import data
from dcml_tune.config.prefix import SHORT, acting_settings, training_settings
from dcml_tune.config.trial import WORDS_FOR_WEIGHTS, TrialConfig
from dcml_tune.models.embedder import BEST
from dcml_tune.training import divisions, saving
from dcml_tune.training.devices import is_deterministic
from dcml_tune.training.state import TrainerState
from dcml_tune.training.trainer import Trainer
from dcml_tune.utils import checkpoint
from dcml_tune.utils.checkpoint import CheckpointError
from dcml_tune.utils.locks import SharedLock

T = TypeVar("T")

log = logging.getLogger(__name__)

_MOST, _MOST_OF_SHORT = 8, 24

_FRESH = ".fresh-"


def most_states(config: TrialConfig) -> int:
    """Return the largest number of states in a store; the one that was used least recently is removed first.

    Short trainings leave more of them, because they may leave one after each epoch.
    """
    return _MOST_OF_SHORT if config.nb_epochs <= SHORT else _MOST


class PrefixStore:
    """The states of one stage of a search, as one of its trials uses them."""

    def __init__(self, directory: Path, trainer: Trainer) -> None:
        """Create the directory.

        Args:
            directory: of the search; shared by its trials.
            trainer: of the trial.
        """
        directory.mkdir(exist_ok=True)
        self.directory, self.trainer = directory, trainer
        self._facts = _facts(trainer)
        self._locks: dict[int, SharedLock] = {}

    def key(self, epochs: int) -> str:
        """Return the name of the trial's state after a number of epochs."""
        text = json.dumps([acting_settings(self.trainer.config, epochs), self._facts], sort_keys=True)
        return f"{self._trained_key(epochs)}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def _trained_key(self, epochs: int) -> str:
        text = json.dumps([training_settings(self.trainer.config, epochs), self._facts], sort_keys=True)
        return f"{epochs:05d}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def has(self, epochs: int) -> bool:
        """Return whether the state after a number of epochs is there."""
        return saving.has_state(self.directory / self.key(epochs))

    def lock(self, epochs: int) -> SharedLock:
        """Return the lock of the trial that computes a state. That of a process that has ended is free."""
        return self._locks.setdefault(epochs, SharedLock(self.directory / f"{self.key(epochs)}.lock"))

    def show_progress(self, epochs: int) -> None:
        """Tell the trials that wait for a state that the trial which computes it makes progress."""
        with suppress(OSError):
            self._progress_file(epochs).touch()

    def progress(self, epochs: int) -> int | None:
        """Return a number that changes while the trial that computes a state makes progress; None before its first."""
        try:
            return self._progress_file(epochs).stat().st_mtime_ns
        except OSError:
            return None

    def _progress_file(self, epochs: int) -> Path:
        return self.directory / f"{self.key(epochs)}.progress"

    def load(self, epochs: int, own: Path, check: Callable[[dict[str, Any]], T]) -> T | None:
        """Continue from the state after a number of epochs.

        Args:
            epochs: number of epochs.
            own: directory of the trial; it gets the files of the division.
            check: takes the facts that were saved with the state, and raises CheckpointError if they are not valid.

        Returns:
            What `check` returned; None if the state is not valid. It is removed then.
        """
        place, trainer = self.directory / self.key(epochs), self.trainer
        try:
            state, facts = saving.load_state(place, trainer.train_step, len(trainer.partition), shared=True)
            for file in place.glob(f"{divisions.STEM}-*"):
                _link(file, own / file.name)
            checked = check(facts)
        except (CheckpointError, FileNotFoundError) as error:
            log.warning("epochs that another trial has computed are computed again: %s", error)
            shutil.rmtree(place, ignore_errors=True)
            return None
        with suppress(FileNotFoundError):  # removed in the meantime
            os.utime(place)
        trainer.restore(state)
        return checked

    def trained(self, epochs: int, own: Path) -> tuple[TrainerState, dict[str, Any]] | None:
        """Return a state after a number of epochs whose training was the same, with the facts that were saved with it.

        Args:
            epochs: number of epochs.
            own: directory of the trial; it gets the files of the division.

        Returns:
            The state without what was measured; None if there is no valid one.
        """
        trainer = self.trainer
        for place in sorted(self.directory.glob(f"{self._trained_key(epochs)}-*/")):
            with suppress(CheckpointError, FileNotFoundError):
                found = saving.load_state(place, trainer.train_step, len(trainer.partition), trained_only=True)
                for file in place.glob(f"{divisions.STEM}-*"):
                    _link(file, own / file.name)
                os.utime(place)
                return found
        return None

    def add(self, own: Path) -> None:
        """Add the trial's state after its last epoch, from its directory, by hard links. An existing one stays."""
        trainer = self.trainer
        fresh = self.directory / f"{_FRESH}{uuid.uuid4().hex}"
        try:
            for file in _files(own, trainer):
                place = fresh / file.relative_to(own)
                place.parent.mkdir(parents=True, exist_ok=True)
                _link(file, place)
            os.rename(fresh, self.directory / self.key(trainer.epoch))  # atomic; fails where another trial was first
        except OSError as error:
            if not self.has(trainer.epoch):
                log.warning("the state after epoch %d is not shared: %s", trainer.epoch, error)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        self._remove_oldest()

    def _remove_oldest(self) -> None:
        places = [path for path in self.directory.iterdir() if path.is_dir() and not path.name.startswith(_FRESH)]
        for place in sorted(places, key=_used, reverse=True)[most_states(self.trainer.config) :]:
            shutil.rmtree(place, ignore_errors=True)


def _facts(trainer: Trainer) -> dict[str, Any]:
    """Return what had an influence on the states of a trainer besides its settings."""
    images = trainer.data
    weights = trainer.config.weights
    return {
        "code": [code_identity(), f"{type(trainer).__module__}.{type(trainer).__qualname__}"],
        "device": [trainer.device.type, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()],
        "ranks": trainer.ranks.size,
        "deterministic": is_deterministic(),
        "compiled": trainer.model.compiled,
        "images": [images.originals.key, images.views.key],
        "split": data.fingerprint(*map(_hash, (images.labels, images.train, images.validation, images.gallery))),
        "metric": trainer.metric,
        "weights": None if weights in WORDS_FOR_WEIGHTS else _stamp(Path(weights)),
    }


@cache
def code_identity() -> str:
    """Return a hash of the source files of `dcml_tune` and of the versions that compute with them."""
    found = hashlib.sha256(f"{torch.__version__} {np.__version__}".encode())
    root = Path(data.__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        found.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def _hash(rows: np.ndarray[Any, Any] | None) -> str:
    return "none" if rows is None else hashlib.sha256(rows.tobytes()).hexdigest()


def _stamp(file: Path) -> list[int]:
    facts = file.stat()
    return [facts.st_size, facts.st_mtime_ns]


def _files(own: Path, trainer: Trainer) -> list[Path]:
    """Return the files of the newest state in the directory of a trial."""
    names = [saving.state_name(trainer.epoch)]
    if trainer.best is not None:
        names.append(f"{checkpoint.numbered(BEST, trainer.best.epoch)}/")
    files = [*own.glob(f"{divisions.STEM}-*")]
    for name in names:
        files += (own / name).iterdir() if name.endswith("/") else own.glob(f"{name}.*")
    return files


def _link(file: Path, place: Path) -> None:
    """Make a hard link, or a copy where the file system has none. No file of a trial is ever changed in place."""
    if place.exists():
        return
    try:
        os.link(file, place)
    except OSError:
        shutil.copy2(file, place)


def _used(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except FileNotFoundError:  # another trial has removed it
        return 0.0
