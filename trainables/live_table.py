"""LiveTable: the trials of a stage as a table in the terminal, redrawn while they run."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table

from dcml_tune.cli.quantities import DIFFERENCES, MOST_COLUMNS, brief, differences
from dcml_tune.config.measures import title
from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import PAPER_LABEL, TrialConfig
from dcml_tune.runs.study import first_best
from dcml_tune.utils.stored import printable
from trainables.known_trial import KnownTrial
from trainables.run import Role

RowState = Literal["running", "again", "interrupted", "done", "pruned", "failed"]
"""`again`: the trial's process died, and Ray starts it once more."""

ENDED = ("failed", "done", "pruned")
"""States of trials that have ended."""

_FRAME = 9  # lines of the table that are no trials: title, column names, rules, caption


@dataclass(kw_only=True)
class TrialRow:
    """What the table shows of a trial."""

    settings: dict[str, Any]
    """Settings of TrialConfig that the trial was given."""
    epochs: int
    """Number of epochs that it runs in all."""
    role: Role = "trial"
    state: RowState = "running"
    reason: str | None = None
    """Why it failed, was pruned, interrupted, or is tried again."""
    epoch: int = 0
    """Number of epochs completed, shared ones included."""
    shared: int = 0
    """Number of first epochs that another trial has computed."""
    last: float | None = None
    """Value of the metric after its last epoch."""
    best: float | None = None
    """Best value of the metric so far."""

    @classmethod
    def of(cls, known: KnownTrial) -> TrialRow:
        """Return the row of a trial of an earlier process."""
        curve = known.curve
        return cls(
            settings=known.config,
            epochs=TrialConfig(**known.config).nb_epochs,
            state=known.state,
            reason=known.reason,
            epoch=max(curve, default=0),
            shared=known.shared,
            last=curve[max(curve)] if curve else None,
            best=known.best,
        )

    @property
    def has_ended(self) -> bool:
        """Whether the trial has ended."""
        return self.state in ENDED

    @property
    def computed(self) -> int:
        """Number of epochs that the trial has computed itself."""
        return max(0, self.epoch - self.shared)

    @property
    def phase(self) -> str:
        """Phase of the trial's last epoch."""
        return EpochPlan.at(max(0, self.epoch - 1), self._config).phase

    def value(self, name: str) -> Any:
        """Return the value of a setting."""
        return self.settings.get(name, getattr(self._config, name))

    def shown(self, name: str) -> str:
        """Return the value of a setting as text."""
        return brief(self.value(name))

    @cached_property
    def _config(self) -> TrialConfig:
        return TrialConfig(**self.settings)


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """What is the same in all tables of a stage."""

    search: str
    """Name of the search."""
    metric: str
    """Measure by which trials are compared."""
    varied: tuple[str, ...]
    """Searched settings: one column each, or if there are more than MOST_COLUMNS, one column of those that differ."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """Values of the published point for the searched settings."""
    planned: int
    """Number of trials of the stage."""
    quiet: bool = False
    """Print one line per epoch instead of the table. Where stdout is no terminal, this is always so."""


class LiveTable:
    """The rows of all trials, by key, and the screen that shows them.

    Attributes:
        rows: key -> row, in the order in which the trials were started.
        best: best value of the metric so far.
        untrained: value of the untrained network, if it is known.
    """

    def __init__(
        self, options: TableOptions, known: list[KnownTrial] | None = None, untrained: float | None = None
    ) -> None:
        """Start with the trials of earlier processes."""
        self.options = options
        self.rows = {each.key: TrialRow.of(each) for each in known or []}
        self.best = first_best((row.best for row in self.rows.values()), lambda value: value)
        self.untrained = untrained
        self._started = time.time()
        self._epochs_before = self.epochs
        shows = sys.stdout.isatty() and not options.quiet
        self._screen = Live(console=Console(markup=False, emoji=False), refresh_per_second=2) if shows else None

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks; the screen cannot be pickled."""
        return {**self.__dict__, "_screen": None}

    @property
    def epochs(self) -> int:
        """Number of epochs computed, by all trials; one that several trials share counts once."""
        return sum(row.computed for row in self.rows.values())

    @property
    def shared(self) -> int:
        """Number of epochs that trials took over from others."""
        return sum(row.shared for row in self.rows.values())

    @property
    def ended(self) -> int:
        """Number of trials that have ended."""
        return sum(row.has_ended for row in self.rows.values())

    # -- the screen ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start to redraw the table."""
        if self._screen is not None:
            self._screen.start()

    def refresh(self) -> None:
        """Show as many trials as the screen has room for: a table of 1,000 rows takes most of a second to draw."""
        if self._screen is not None:
            self._screen.update(self.table(most=max(1, self._screen.console.height - _FRAME)))

    def show_epoch(self, key: str, result: dict[str, Any]) -> None:
        """Show the result of an epoch: in the table, or as a line where there is none."""
        if self._screen is not None:
            self.refresh()
            return
        row, metric = self.rows[key], self.options.metric
        recall = f"{metric.partition('/')[0]}/recall_at_1"
        shown = dict.fromkeys((metric, f"{metric}_best", recall, "train/loss", "test/recall_at_1"))
        text = " ".join(f"{name}={result[name]:.4g}" for name in shown if name in result)
        print(f"{'trial ' if row.role == 'trial' else ''}{key} epoch {int(result['epoch'])}: {text}", flush=True)

    def close(self) -> None:
        """Leave the table of all trials on the screen."""
        if self._screen is not None:
            self._screen.update(self.table())
            self._screen.stop()
        else:
            Console(width=max(120, Console().width), markup=False, emoji=False).print(self.table())

    # -- the table -------------------------------------------------------------------------------------

    def table(self, most: int | None = None) -> Table:
        """Build a table with one row per trial.

        Args:
            most: maximum number of rows; None: all. Running trials and the best of the others are kept.
        """
        shown, columns = self._shown(most), self._columns
        others = len(self.rows) - len(shown)
        table = Table(title=self._title(), caption=f"and {others} more trials" if others else None)
        for column in ("trial", *columns, "epoch", "phase", "last", "best", "state"):
            table.add_column(column, no_wrap=column in ("trial", "epoch", "last", "best"))
        for key, row in shown:
            cells = [row.shown(name) for name in columns] if columns != (DIFFERENCES,) else [self._differences(row)]
            state = row.state + (f": {row.reason}" if row.reason else "")
            cells += [f"{row.epoch}/{row.epochs}", row.phase, _percent(row.last), _percent(row.best), state]
            table.add_row(*map(printable, [key, *cells]))
        return table

    @property
    def _columns(self) -> tuple[str, ...]:
        varied = self.options.varied
        return varied if len(varied) <= MOST_COLUMNS else (DIFFERENCES,)

    def _differences(self, row: TrialRow) -> str:
        """Return the searched values of a trial that differ from those of the published point."""
        return differences({name: row.value(name) for name in self.options.varied}, self.options.published)

    def _shown(self, most: int | None) -> list[tuple[str, TrialRow]]:
        rows = sorted(self.rows.items(), key=lambda each: each[0])
        if most is None or len(rows) <= most:
            return rows
        kept = sorted(rows, key=lambda each: (each[1].has_ended, -(each[1].best or 0.0)))[:most]
        return sorted(kept, key=lambda each: each[0])

    def _title(self) -> str:
        minutes = (time.time() - self._started) / 60
        best = f"best {title(self.options.metric)}"
        known = [(best, self.best), ("untrained", self.untrained)]  # the final stage has no value to compare
        values = "".join(f"{name} {_percent(value)}, " for name, value in known if value is not None)
        shared = f" ({self.shared} more shared)" if self.shared else ""
        said = f"{self.options.search}: {values}{self.epochs} epochs{shared}, {minutes:.1f} min"
        if self.options.metric.startswith("paper"):
            said += f" ({PAPER_LABEL})"
        here = self.epochs - self._epochs_before
        if here and (left := self._epochs_left()):
            said += f", {minutes * left / here:.1f} min left unless trials are pruned"
        return said

    def _epochs_left(self) -> int:
        """Return the number of epochs still to run if no further trial is pruned."""
        rows = self.rows.values()
        of_open = sum(row.epochs - row.epoch for row in rows if not row.has_ended)
        return of_open + (self.options.planned - len(rows)) * max(row.epochs for row in rows)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
