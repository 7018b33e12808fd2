"""The record of a search: what was asked for, its progress, and which process runs it.

    NAME/search.json   what was asked for, and where the search lies; a resume updates the place
    NAME/state.json    its progress
    NAME/lock          held by the process that runs it, with its lease in lock.lease

Reading these files executes no code, and needs neither Ray nor MLflow.

Above 250 lines because the models of both files are beside the class that reads and writes them.
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.paths import CHECKPOINT
from dcml_tune.runs.storage import StorageError
from dcml_tune.runs.stored_lock import StoredLock
from dcml_tune.utils.files import CorruptFileError, read_checksummed, write_checksummed
from dcml_tune.utils.locks import HeldError, LockLostError, SharedLock
from dcml_tune.utils.stored import Count, Duration, Finite, Moment, Scalar, Stored, checked, printable

log = logging.getLogger(__name__)

FORMAT = 1
_ASKED, _STATE, _LOCK = "search.json", "state.json", "lock"

Status = Literal["running", "interrupted", "partial", "finished"]
Positive = Annotated[Count, Field(ge=1)]


class SearchRunningError(SettingError):
    """Another process runs the search: the same command may succeed later."""

    exit_code = 4


class Flags(Stored):
    """The flags of a search. Flags that are not named here are kept without validation of their values."""

    num_samples: Positive
    tracking_uri: str | None
    study_uri: str | None = None
    storage: str | None = None
    space: str | None = None
    searcher: str = "optuna"
    scheduler: str = "asha"
    metric: list[str] | None = None
    warm_start: list[str] | None = None
    gpus_per_trial: Literal["auto"] | Annotated[Finite, Field(ge=0)] | None = None
    max_concurrent: Positive | None = None
    epoch_budget: Positive | None = None
    patience: Positive | None = None
    confirm: Count = 4
    ablate: Count = 0
    folds: Positive | None = None
    seeds: Positive = 1
    final: str = "best"
    final_seeds: Positive = 3
    controls: Literal["both", "published"] = "both"
    difference: Annotated[Finite, Field(gt=0)] = 0.5
    prior: bool = False
    time_budget: str | None = None
    trial_timeout: str | None = None
    checkpoint_budget: str | None = None
    name: str | None = None
    __pydantic_extra__: dict[str, Scalar | list[Scalar]] = Field(init=False)


class SpaceFacts(Stored):
    """A search space as plain data. `SearchSpace.from_json` validates the values."""

    name: str
    published: dict[str, Scalar]
    domains: dict[str, dict[str, Scalar | list[Scalar]]]
    why: dict[str, str] = Field(default_factory=dict)
    references: str = ""
    conditions: dict[str, list[dict[str, Scalar | list[Scalar]]]] = Field(default_factory=dict)
    starts: list[dict[str, Scalar | dict[str, Scalar]]] = Field(default_factory=list)


class SettingFacts(Stored):
    """The settings that were given. `TrialConfig` validates them."""

    dataset: str
    __pydantic_extra__: dict[str, Scalar] = Field(init=False)


class LaterSeedsFacts(Stored):
    """Final seeds that were added to a finished search; see `dcml_tune.search.request.LaterSeeds`."""

    count: Count
    looks: list[Positive]
    winner: str | None
    __pydantic_extra__: dict[str, Scalar] = Field(init=False)


class Asked(Stored):
    """search.json: what was asked for."""

    format: Count
    flags: Flags
    settings: SettingFacts
    space: SpaceFacts
    metrics: Annotated[list[str], Field(min_length=1)]
    data: str
    """Fingerprint of the images; see `dcml_tune.data.contents`."""
    test: str | None = None
    """Fingerprint of the test images. Records of version 0.1 have neither this nor the following."""
    test_sizes: str | None = None
    output: str | None = None
    """Absolute path of the output directory when the search last ran."""
    name: str | None = None
    measured: str | None = None
    ranks: Count = 0
    """Number of processes that train a trial together; 0 in searches of earlier versions, where it was one."""
    seeds_apart: bool = False
    """Whether final runs have seeds that no earlier stage has; searches of earlier versions do not have this entry."""
    later_seeds: LaterSeedsFacts | None = None
    study: str | None = None
    """Name of the study on the server of --study-uri; None: the study is the file of the search."""


@dataclass(frozen=True, kw_only=True)
class State:
    """state.json: the progress of a search."""

    __pydantic_config__ = ConfigDict(extra="ignore", allow_inf_nan=False)

    status: Status = "running"
    """partial: the search has ended, but not all of its trials are complete. interrupted: it can be resumed."""
    reason: str | None = None
    """Reason of an interrupted or partial search."""
    owner: str = "another process"
    """The process that runs the search, or ran it last."""
    processes: Count = 0
    """Number of processes that have run it, one after the other."""
    elapsed_s: Duration = 0.0
    """Seconds in which trials were running, in all processes."""
    ended: Count = 0
    """Number of trials that have ended."""
    planned: Count = 0
    """Number of trials that were asked for."""
    best: float | None = None
    """Best value of the metric so far."""
    untrained: float | None = None
    """Value of the metric for the untrained network."""
    changed: Moment = 0.0
    """Time of the last update, in seconds since 1970."""


class Record:
    """The record of one search.

    Attributes:
        directory: directory of the search.
        asked: content of search.json.
        state: content of state.json.
    """

    def __init__(self, directory: Path, asked: dict[str, Any], state: State, lock: StoredLock | None = None) -> None:
        """See `create` and `open`."""
        self.directory, self.asked, self.state = directory, asked, state
        self._lock = lock or SharedLock(directory / _LOCK)

    @classmethod
    def create(cls, directory: Path, asked: dict[str, Any], lock: StoredLock | None = None) -> Record:
        """Create the directory and the record of a new search, and hold its lock.

        Args:
            directory: of the search; its parent exists.
            asked: content of search.json.
            lock: of a search with --storage.

        Raises:
            SearchRunningError: if another process has created it since the caller called `refuse_existing`.
        """
        try:
            directory.mkdir()
        except FileExistsError:
            refuse_existing(directory, SearchRunningError)
        record = cls(directory, {"format": FORMAT, **asked}, State(), lock)
        record.hold()
        if is_search(directory):  # another process was quicker, and has ended
            record.release()
            refuse_existing(directory, SearchRunningError)
        write_checksummed(directory / _ASKED, record.asked)
        return record

    @classmethod
    def open(cls, directory: Path, lock: StoredLock | None = None) -> Record:
        """Read the record of an existing search.

        Args:
            directory: of the search.
            lock: of a search with --storage, held by this process.

        Raises:
            SettingError: if there is no record, it is damaged or was changed, or the search was renamed.
        """
        if not is_search(directory):
            remedy = "python -m dcml_tune.browse lists all searches"
            if (directory / CHECKPOINT).is_dir():
                remedy = f"it is a run of train, which goes on by python -m dcml_tune.train --resume {directory.name}"
            raise SettingError(f"--resume {directory.name}: {directory} holds no search; {remedy}")
        try:
            asked = read_checksummed(directory / _ASKED)
        except CorruptFileError as error:
            raise SettingError(
                f"--resume {directory.name}: {error}; put the file back, or start a new search (the trials' "
                "checkpoints and the Optuna study are still there)"
            ) from None
        if asked.get("format") != FORMAT:
            raise SettingError(
                f"--resume {directory.name}: format {asked.get('format')} of {directory / _ASKED} is not {FORMAT}; "
                "resume it with the version that began it"
            )
        try:
            checked(Asked, asked)
        except ValueError as error:
            raise SettingError(
                f"--resume {directory.name}: {directory / _ASKED} is not a valid record ({error}); put the file "
                "back, or start a new search"
            ) from None
        began_as = asked.get("name") or asked["flags"].get("name") or directory.name
        if Path(began_as).name != directory.name:
            raise SettingError(
                f"--resume {directory.name}: this search began as {began_as}, the name that its study and its runs in MLflow "
                f"have; rename {directory} back"
            )
        return cls(directory, asked, _state(directory), lock)

    @property
    def stored_lock(self) -> StoredLock | None:
        """The lock of a search with --storage; None: it has none."""
        return self._lock if isinstance(self._lock, StoredLock) else None

    @property
    def name(self) -> str:
        """The name of the search."""
        return self.directory.name

    def hold(self, *, waits: bool = True) -> None:
        """Take the lock of the search, which only one process can hold.

        Args:
            waits: where only time tells whether a process on another machine still runs the search, wait for that.

        Raises:
            SearchRunningError: if another process holds it.
        """

        def say(holder: str) -> None:
            log.warning(
                "search %s: %s ran it, and has recorded no end; waiting up to %g s for a sign of life from it",
                *(self.name, holder, self._lock.lease_s),
            )

        try:
            self._lock.acquire(say if waits else None)
        except HeldError as error:
            raise SearchRunningError(
                f"search {self.name}: {error.holder or self.state.owner} runs it; wait for its end, or start another with "
                "another --name"
            ) from None
        except StorageError as error:
            raise SettingError(str(error)) from None

    def check_held(self) -> None:
        """Make sure that this process still runs the search, before it writes what another one would read.

        Raises:
            LockLostError: if another process has taken the search, because this one was suspended or cut off.
        """
        try:
            self._lock.check()
        except LockLostError as lost:
            raise LockLostError(f"search {self.name}: {lost}; this process stops and writes nothing more") from None

    def begin(self, **changes: Any) -> None:
        """Record that this process runs the search. The caller holds the lock."""
        owner = f"process {os.getpid()} on {platform.node()}"
        self.update(status="running", reason=None, owner=owner, processes=self.state.processes + 1, **changes)

    def ask(self, **changes: Any) -> None:
        """Change what is asked for."""
        self.check_held()
        self.asked = {**self.asked, **changes}
        write_checksummed(self.directory / _ASKED, self.asked)

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def update(self, **changes: Any) -> None:
        """Record the progress."""
        self.check_held()
        self.state = replace(self.state, **changes, changed=time.time())
        write_checksummed(self.directory / _STATE, asdict(self.state))

    def is_running(self) -> bool:
        """Whether a process that lives holds the lock."""
        return self._lock.is_held()


def _state(directory: Path) -> State:
    """The progress of a search. It only informs, so that a damaged file is not an error: the study and the trials decide."""
    try:
        return checked(State, read_checksummed(directory / _STATE))
    except ValueError as error:
        if (directory / _STATE).exists():
            log.warning("%s; how far the search was is taken from its study", printable(str(error)))
        return State(status="interrupted")


def all_records(output: Path) -> tuple[list[Record], list[str]]:
    """The searches of an output directory, the oldest first, and a line for each damaged record."""
    records, damaged = [], []
    for file in sorted(output.glob(f"*/{_ASKED}")):
        try:
            records.append(Record.open(file.parent))
        except (SettingError, OSError) as error:  # a damaged record does not hide the others
            damaged.append(" ".join(str(error).split()))
    return sorted(records, key=lambda record: record.state.changed), damaged


def refuse_existing(directory: Path, kind: type[SettingError] = SettingError) -> None:
    """Refuse to overwrite the directory of a search or run.

    Args:
        directory: of the new search or run.
        kind: class of the error.

    Raises:
        SettingError: if the directory exists. One that holds nothing but a lock is accepted: its process was killed before
            it wrote a record.
    """
    if directory.exists() and not _is_rest(directory):
        resume = f"go on with it by --resume {shlex.quote(directory.name)}, or " if is_search(directory) else ""
        raise kind(f"--name {directory.name}: {directory} exists; {resume}choose another name")


def read_asked(directory: Path) -> dict[str, Any]:
    """What was asked for, from search.json.

    Raises:
        CorruptFileError: if the file is missing, or not valid.
    """
    return read_checksummed(directory / _ASKED, Asked)


def is_search(directory: Path) -> bool:
    """Whether a directory holds the record of a search, which may be damaged."""
    return (directory / _ASKED).exists()


def _is_rest(directory: Path) -> bool:
    """Whether `Record.create` was killed in this directory before it wrote the record."""
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    return _LOCK in names and all(name.startswith((_LOCK, f".{_ASKED}.")) for name in names)
