"""Run: how a trial is run, and the keys of what it reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Role = Literal["trial", "confirm", "final", "published", "no division", "untrained"]


SCORES_TEST = ("final", "published", "no division", "untrained")
"""Roles of the runs that score the test classes, once, at their end."""


RUN = "run"
"""The key of a trial's dictionary that holds its `Run`; all other keys are settings of TrialConfig."""


STOP_SEARCH = "stop_search"
"""The key of a result that asks the driver to stop the search, with the reason: this trial could not be saved."""


FAILED = "failed_reason"
"""The key of a result that ends a failed trial, with the reason."""


NOTE = "note"
"""The key of a result that tells what happened to the trial before."""


SCORED_BEFORE = "test_scored_before"
"""The key of a result that says how often the test classes had been scored before, by the ledger."""


CURVE = "curve"
"""The key of a result file that holds the metric after each epoch."""


RESULT_FILE = "result.json"
"""What a run that is no trial leaves at its end, so that it is not run again, and test classes are not scored again."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a trial is run: what is not a setting of it and must not change its result."""

    search: str = ""
    """Name of the search."""
    key: str = ""
    """The trial's name within its search, such as 007 or final; the same after a resume."""
    directory: str | None = None
    """Directory, absolute, where the trial keeps its state after each epoch and goes on from what is there;
    None: it keeps none."""
    stores: str = "runs/store"
    """Directory of the image stores, absolute, shared by the trials of a node."""
    threads: int | None = None
    """Threads of a trial on the CPU; None leaves torch's own number."""
    gpu_fraction: float = 1.0
    """Share of the GPU's memory that the trial may take."""
    metric: str = "val/recall_at_1"
    """The measure by which a trial's best epoch is kept."""
    role: Role = "trial"
    """trial: compared on held-out classes. confirm: once more, on others. The rest are scored on the test classes."""
    setting: str = ""
    """Which setting a run that is no trial repeats: a trial's key, published, or no division."""
    until: int | None = None
    """Epochs after which to stop; None: all of nb_epochs. The schedule stays that of nb_epochs."""
    varied: tuple[str, ...] = field(default_factory=tuple)
    """The searched settings, shown in the Ray dashboard."""

    def as_dict(self) -> dict[str, Any]:
        """For a trial's dictionary."""
        return {**asdict(self), "varied": list(self.varied)}


def unwrap_config(config: dict[str, Any]) -> dict[str, Any]:
    """A trial's dictionary; Ray's grid of whole dictionaries has each under the key `whole`."""
    return dict(config.get("whole", config))
