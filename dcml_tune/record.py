"""What a search leaves on disk beside its trials: what was asked for, how far it is, and who runs it.

    NAME/search.json   what was asked for; never changes
    NAME/state.json    how far it is
    NAME/lock          held by the process that runs it

A search is known by these files alone: reading them executes nothing, and needs neither Ray nor MLflow.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from dcml_tune.config import SettingError
from dcml_tune.files import TornFileError, read_sealed, write_sealed

FORMAT = 1
_ASKED, _STATE, _LOCK = "search.json", "state.json", "lock"

Status = Literal["running", "interrupted", "partial", "finished"]


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a search is."""

    status: Status = "running"
    """partial: it came to its end, but not all trials did. interrupted: it can be resumed."""
    reason: str | None = None
    """Why it was interrupted or is partial."""
    owner: str = "another process"
    """The process that runs it, or ran it last."""
    processes: int = 0
    """How many processes have run it, one after the other."""
    elapsed_s: float = 0.0
    """Time that trials were running, in seconds, of all processes."""
    ended: int = 0
    """Trials that have ended."""
    planned: int = 0
    """Trials that were asked for."""
    best: float | None = None
    """Best value of the metric so far."""
    untrained: float | None = None
    """Value of the untrained network."""
    changed: float = 0.0
    """When this was written, in seconds since 1970."""


class Record:
    """The record of one search.

    Attributes:
        directory: of the search.
        asked: what was asked for, as JSON.
        state: how far it is.
    """

    def __init__(self, directory: Path, asked: dict[str, Any], state: State) -> None:
        """See `create` and `open`."""
        self.directory, self.asked, self.state = directory, asked, state
        self._lock = FileLock(directory / _LOCK)

    @classmethod
    def create(cls, directory: Path, asked: dict[str, Any]) -> Record:
        """Begin a search; its directory must not be there.

        Raises:
            SettingError: if it is.
        """
        try:
            directory.mkdir()
        except FileExistsError:
            refuse_existing(directory)
        record = cls(directory, {"format": FORMAT, **asked}, State())
        record.hold()
        write_sealed(directory / _ASKED, record.asked)
        return record

    @classmethod
    def open(cls, directory: Path) -> Record:
        """The record of a search that was begun.

        Raises:
            SettingError: if there is none, or it is torn or was changed.
        """
        if not (directory / _ASKED).exists():
            raise SettingError(
                f"--resume {directory.name}: {directory} holds no search; --resume without a name lists those that can "
                "be resumed"
            )
        try:
            asked = read_sealed(directory / _ASKED)
        except TornFileError as error:
            raise SettingError(
                f"--resume {directory.name}: {error}; put the file back, or start a new search (the trials' "
                "checkpoints and the Optuna study are still there)"
            ) from None
        if asked["format"] != FORMAT:
            raise SettingError(
                f"--resume {directory.name}: format {asked['format']} of {directory / _ASKED} is not {FORMAT}; "
                "resume it with the version that began it"
            )
        try:
            state = State(**read_sealed(directory / _STATE))
        except (TornFileError, TypeError):
            state = State(status="interrupted")  # it only informs; the study and the trials say what is to be done
        return cls(directory, asked, state)

    @property
    def name(self) -> str:
        """The name of the search."""
        return self.directory.name

    def hold(self) -> None:
        """Be the only process that runs this search, until this process ends.

        Raises:
            SettingError: if another one runs it.
        """
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise SettingError(
                f"search {self.name}: {self.state.owner} runs it; wait for its end, or start another with another --name"
            ) from None

    def begin(self, **changes: Any) -> None:
        """Write down that this process runs it; the caller holds it."""
        owner = f"process {os.getpid()} on {platform.node()}"
        self.update(status="running", reason=None, owner=owner, processes=self.state.processes + 1, **changes)

    def ask(self, **changes: Any) -> None:
        """Write down that something else is asked for from now on."""
        self.asked = {**self.asked, **changes}
        write_sealed(self.directory / _ASKED, self.asked)

    def release(self) -> None:
        """Let others have the search."""
        self._lock.release()

    def update(self, **changes: Any) -> None:
        """Write down how far it is."""
        self.state = replace(self.state, **changes, changed=time.time())
        write_sealed(self.directory / _STATE, asdict(self.state))

    def is_running(self) -> bool:
        """Whether some process runs it."""
        try:
            with FileLock(self.directory / _LOCK).acquire(blocking=False):
                return False
        except Timeout:
            return True


def all_records(output: Path) -> tuple[list[Record], list[str]]:
    """The searches below an output directory, oldest first, and a line for each whose record is damaged."""
    records, damaged = [], []
    for file in sorted(output.glob(f"*/{_ASKED}")):
        try:
            records.append(Record.open(file.parent))
        except SettingError as error:
            damaged.append(str(error))
    return sorted(records, key=lambda record: record.state.changed), damaged


def refuse_existing(directory: Path) -> None:
    """Nothing is written over.

    Raises:
        SettingError: if the directory of a search or run is there already.
    """
    if directory.exists():
        resume = f"go on with it by --resume {directory.name}, or " if (directory / _ASKED).exists() else ""
        raise SettingError(f"--name {directory.name}: {directory} exists; {resume}choose another name")
