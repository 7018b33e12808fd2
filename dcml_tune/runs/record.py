"""What a search leaves on disk beside its trials: what was asked for, how far it is, and who runs it.

    NAME/search.json   what was asked for, and where: a resume writes down where it is now
    NAME/state.json    how far it is
    NAME/lock          held by the process that runs it

A search is known by these files alone: reading them executes nothing, and needs neither Ray nor MLflow.
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

from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field

from dcml_tune.config.errors import SettingError
from dcml_tune.utils.files import CorruptFileError, read_checksummed, write_checksummed
from dcml_tune.utils.stored import Count, Duration, Finite, Moment, Scalar, Stored, checked, printable

log = logging.getLogger(__name__)

FORMAT = 1
_ASKED, _STATE, _LOCK = "search.json", "state.json", "lock"

Status = Literal["running", "interrupted", "partial", "finished"]
Positive = Annotated[Count, Field(ge=1)]


class Flags(Stored):
    """The flags of a search; those that are not named here are read as they are."""

    num_samples: Positive
    tracking_uri: str | None
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
    folds: Positive | None = None
    seeds: Positive = 1
    final: str = "best"
    final_seeds: Positive = 3
    prior: bool = False
    time_budget: str | None = None
    trial_timeout: str | None = None
    checkpoint_budget: str | None = None
    name: str | None = None
    __pydantic_extra__: dict[str, Scalar | list[Scalar]] = Field(init=False)


class SpaceFacts(Stored):
    """A search space as plain data; what the values mean, `SearchSpace.from_json` checks."""

    name: str
    published: dict[str, Scalar]
    domains: dict[str, dict[str, Scalar | list[Scalar]]]
    why: dict[str, str] = Field(default_factory=dict)
    references: str = ""


class SettingFacts(Stored):
    """The settings that were given; `TrialConfig` checks them."""

    dataset: str
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
    """Of the test images; this and what follows is not in records of version 0.1."""
    test_sizes: str | None = None
    output: str | None = None
    """Output directory, absolute, when it was last run."""
    name: str | None = None
    measured: str | None = None


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a search is: state.json."""

    __pydantic_config__ = ConfigDict(extra="ignore", allow_inf_nan=False)

    status: Status = "running"
    """partial: it came to its end, but not all trials did. interrupted: it can be resumed."""
    reason: str | None = None
    """Why it was interrupted or is partial."""
    owner: str = "another process"
    """The process that runs it, or ran it last."""
    processes: Count = 0
    """How many processes have run it, one after the other."""
    elapsed_s: Duration = 0.0
    """Time that trials were running, in seconds, of all processes."""
    ended: Count = 0
    """Trials that have ended."""
    planned: Count = 0
    """Trials that were asked for."""
    best: float | None = None
    """Best value of the metric so far."""
    untrained: float | None = None
    """Value of the untrained network."""
    changed: Moment = 0.0
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
        write_checksummed(directory / _ASKED, record.asked)
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
                f"--resume {directory.name}: {directory / _ASKED} holds what no search has asked for ({error}); put the file "
                "back, or start a new search"
            ) from None
        began_as = asked.get("name") or asked["flags"].get("name") or directory.name
        if Path(began_as).name != directory.name:
            raise SettingError(
                f"--resume {directory.name}: this search began as {began_as}, the name that its study and its runs in MLflow "
                f"have; rename {directory} back"
            )
        return cls(directory, asked, _state(directory))

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
        write_checksummed(self.directory / _ASKED, self.asked)

    def release(self) -> None:
        """Let others have the search."""
        self._lock.release()

    def update(self, **changes: Any) -> None:
        """Write down how far it is."""
        self.state = replace(self.state, **changes, changed=time.time())
        write_checksummed(self.directory / _STATE, asdict(self.state))

    def is_running(self) -> bool:
        """Whether some process runs it."""
        try:
            with FileLock(self.directory / _LOCK).acquire(blocking=False):
                return False
        except Timeout:
            return True


def _state(directory: Path) -> State:
    """How far a search is. It only informs, the study and the trials say what is to be done: a damaged one is no fault."""
    try:
        return checked(State, read_checksummed(directory / _STATE))
    except ValueError as error:
        if (directory / _STATE).exists():
            log.warning("%s; how far the search was is taken from its study", printable(str(error)))
        return State(status="interrupted")


def all_records(output: Path) -> tuple[list[Record], list[str]]:
    """The searches below an output directory, oldest first, and a line for each whose record is damaged."""
    records, damaged = [], []
    for file in sorted(output.glob(f"*/{_ASKED}")):
        try:
            records.append(Record.open(file.parent))
        except (SettingError, OSError) as error:  # one that is damaged says nothing of the others
            damaged.append(" ".join(str(error).split()))
    return sorted(records, key=lambda record: record.state.changed), damaged


def refuse_existing(directory: Path) -> None:
    """Nothing is written over.

    Raises:
        SettingError: if the directory of a search or run is there already.
    """
    if directory.exists():
        resume = (
            f"go on with it by --resume {shlex.quote(directory.name)}, or " if (directory / _ASKED).exists() else ""
        )
        raise SettingError(f"--name {directory.name}: {directory} exists; {resume}choose another name")
