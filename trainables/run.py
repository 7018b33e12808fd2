"""Run: how a trial is run; the dictionary of a trial, packed and unpacked; the keys of what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dcml_tune.runs.stores import Stores

Role = Literal["trial", "confirm", "ablate", "final", "published", "no division", "untrained"]

SCORES_TEST = ("final", "published", "no division", "untrained")
"""Roles of the runs that score the test classes, once, at their end."""

_RUN = "run"
"""Key of a trial's dictionary that holds its `Run`; all other keys are settings of TrialConfig."""

_WHOLE = "whole"
"""Key of the whole dictionary of a trial where Ray runs a list of trials: its grid varies one key."""

# Keys of a result. Those of measures are names with a slash, such as val/recall_at_1.

STOP_SEARCH = "stop_search"
"""Key of a result that asks the driver to stop the search, with the reason: this trial could not be saved."""

FAILED = "failed_reason"
"""Key of the last result of a failed trial, with the reason."""

NOTE = "note"
"""Key of a result that reports what happened to the trial before this epoch."""

SCORED_BEFORE = "test_scored_before"
"""Key of a result with the number of times that the test classes had been scored before, by the ledger."""

DIVISION = "division"
"""Key of a result that names the files of the epoch's reclustering, in the trial's directory."""

SHARED = "epochs/shared"
"""Key of a result with the number of epochs so far that another trial has computed (`trainables.sharing`)."""

CURVE = "curve"
"""Key of a result file with the value of the metric after each epoch."""

RESULT_FILE = "result.json"
"""File that a run which is no trial of the search writes at its end: it makes runs, and the scoring of test classes,
idempotent."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a trial is run: everything that is no setting of it and must not change its result."""

    search: str = ""
    """Name of the search."""
    key: str = ""
    """Name of the trial within its search, such as 007 or final; it stays the same after a resume."""
    directory: str | None = None
    """Absolute path of the directory where the trial saves its state after each epoch, and from which it continues;
    None: it saves no state."""
    attempt: int = 0
    """Number of this start of the trial, which the driver gives (`dcml_tune.runs.attempts`); 0: the process takes the next."""
    storage: str | None = None
    """Address of the storage that has the trial's files, where nodes share no directory; None: `directory` has them."""
    reported: int | None = None
    """Number of its first epochs whose reports the driver has. The saved reports of the last of them and of later epochs are
    repeated when the trial goes on; None: only the last saved one is."""
    is_new: bool = False
    """Whether the study has just got this trial. What a storage has of its key is then of another one: a driver that was killed may
    have sampled it after the last copy of the study."""
    images: str | None = None
    """Fingerprint of the content of the images that the search began with; None: they are not compared."""
    on_cluster: bool = False
    """Whether it may run on several nodes: what only this node lacks is then no failure of the trial."""
    stores: str = "runs/store"
    """Absolute path of the directory of the image stores, which the trials of a node share."""
    shared_stores: str | None = None
    """Absolute path of OUTPUT/store, which all nodes share, where `stores` is on the node's own disk; otherwise None."""
    threads: int | None = None
    """Number of CPU threads of the trial; None: torch's default."""
    device: str | None = None
    """`cpu` where its share of a GPU is 0, otherwise `cuda`; None: the GPU if there is one. Ray does not hide the GPUs of a
    machine from a trial whose share is 0."""
    ranks: int = 1
    """Number of processes that train together, on as many GPUs. Unlike the other fields it changes the result."""
    gpu_fraction: float = 1.0
    """Share of the GPU's memory that the trial may use."""
    largest_gpu: int = 0
    """Most bytes of memory that the GPUs of a node of the cluster have; 0: it is not known, or this machine runs all trials."""
    deterministic: bool = False
    """Whether it takes only algorithms that give the same numbers in each run, also on a GPU."""
    compiled: bool = False
    """Whether `torch.compile` compiles the training of its backbone."""
    metric: str = "val/map_at_r"
    """Measure by which the trial's best epoch is chosen."""
    role: Role = "trial"
    """trial: compared on held-out classes. confirm: trained again on other folds. ablate: the winner
    with a setting put back to the published value. Other roles score the test classes."""
    setting: str = ""
    """The setting that a run which is no trial repeats: the key of a trial, published, or no division."""
    until: int | None = None
    """Number of epochs after which to stop; None: all of nb_epochs. The schedule stays that of nb_epochs."""
    note: str = ""
    """Why it scores the test classes, for their ledger."""
    save_every: int = 1
    """Number of epochs after which it saves its state. A resume trains the epochs since then again."""
    varied: tuple[str, ...] = ()
    """The searched settings, for the Ray dashboard."""
    prefixes: str | None = None
    """Absolute path of the directory of the states that trials share; None: it shares no epochs."""
    shares: tuple[int, ...] = ()
    """Numbers of epochs after which its state may be that of another trial."""
    wait_s: float | None = None
    """Longest time that it waits for a trial that computes the same epochs, in seconds; None: while that makes progress."""
    stalled_s: float = 600.0
    """Time without progress of that trial after which it does not wait longer, in seconds: longer than a batch, or k-means
    between two batches, takes on a slow machine."""

    @property
    def places(self) -> Stores:
        """Both directories of the image stores."""
        shared = None if self.shared_stores is None else Path(self.shared_stores)
        return Stores(Path(self.stores), shared, self.storage)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {**asdict(self), "varied": list(self.varied), "shares": list(self.shares)}


def pack(settings: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Return the dictionary of a trial, which Ray passes from the searcher to the trial's process."""
    return {**settings, _RUN: run.as_dict()}


def pack_list(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Return Ray's search space of a list of packed trials."""
    from ray import tune  # imported here: a trial's process does not need it at its start

    return {_WHOLE: tune.grid_search(trials)}


def unpack(config: Mapping[str, Any]) -> tuple[dict[str, Any], Run]:
    """Return the settings of a trial, for TrialConfig, and its `Run`, from what `pack` or `pack_list` made."""
    settings = dict(config.get(_WHOLE, config))
    run = dict(settings.pop(_RUN, {}))
    lists = {name: tuple(run.get(name, ())) for name in ("varied", "shares")}
    return settings, Run(**{**run, **lists})


def with_attempt(config: dict[str, Any], number: int, reported: int | None = None) -> dict[str, Any]:
    """Return a packed dictionary with the number of this start of the trial, and `Run.reported`."""
    if _WHOLE in config:
        return {**config, _WHOLE: with_attempt(config[_WHOLE], number, reported)}
    return {**config, _RUN: {**config[_RUN], "attempt": number, "reported": reported}}


def run_of(config: Mapping[str, Any]) -> Run:
    """Return the `Run` of a trial's dictionary."""
    return unpack(config)[1]
