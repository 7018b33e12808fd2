"""Progress: the callback on the driver that shows trials, records them in MLflow, and keeps the best models.

Above 250 lines because every hook of Ray has its method here, beside what it records.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.tune import Callback

from dcml_tune.config.trial import TrialConfig
from dcml_tune.models.embedder import best_model
from dcml_tune.runs.study import first_best
from dcml_tune.runs.trial_files import TrialFiles
from dcml_tune.tracking import Tracker
from dcml_tune.training import divisions
from dcml_tune.training.saving import remove_state
from dcml_tune.utils import tracebacks
from trainables.checkpoint_budget import CheckpointBudget, KeptModel, remove_model
from trainables.known_trial import KnownTrial
from trainables.live_table import LiveTable, RowState, TableOptions, TrialRow
from trainables.node_pool import NodePool
from trainables.run import DIVISION, FAILED, NOTE, SCORED_BEFORE, SHARED, STOP_SEARCH, run_of, unpack
from trainables.watchdog import TrialWatchdog

log = logging.getLogger(__name__)

_MEASURES = ("val/", "test", "paper", "train/", "clusters/", "masks/", "phase/", "time/", "epochs/")
_TOTALS_S = 1.0
_STATUS: dict[RowState, str] = {"failed": "FAILED", "done": "FINISHED", "pruned": "PRUNED"}


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What earlier processes of the search have left."""

    known: list[KnownTrial] = field(default_factory=list)
    """Their trials."""
    untrained: float | None = None
    """Value of the untrained network, if it is known."""
    trials: Path | None = None
    """Directory with one directory per trial; None: the ends of earlier trials are not recorded."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the driver does when trials report."""

    why_over: Callable[[int], str | None] = lambda epochs: None
    """Takes the number of epochs of all trials; returns why all trials end now, or None."""
    on_report: Callable[[Progress], None] = lambda progress: None
    """Called after each report."""
    on_change: Callable[[], None] = lambda: None
    """Called when a trial has started or ended."""
    on_step: Callable[[], None] = lambda: None
    """Called after each step of Ray Tune, several times in a second."""
    on_failure: Callable[[str, str], None] = lambda key, reason: None
    """Called with key and reason of a failed trial, where only the driver knows the reason."""


class Progress(Callback):
    """Follows the trials of a stage. No exception leaves a hook of Ray: it would end the whole search.

    Attributes:
        live: the rows of the trials and the table that shows them.
    """

    def __init__(
        self,
        tracker: Tracker,
        guard: TrialWatchdog,
        table: TableOptions,
        *,
        tags: dict[str, str],
        keep_models: int | None = None,
        nodes: NodePool | None = None,
        files: TrialFiles | None = None,
        earlier: Earlier | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        """Show the trials of earlier processes, and record those that ended just before their process did.

        Args:
            tracker: takes the records.
            guard: knows why it ended a trial.
            table: what the table says of all trials.
            tags: tags of every run in MLflow.
            keep_models: maximum number of models of ended trials that are kept, those of the best; None: all.
            nodes: of the cluster that was joined; None: a local one.
            files: gets the files of trials.
            earlier: what earlier processes have left.
            hooks: what else happens when trials report.
        """
        earlier = earlier or Earlier()
        self.tracker, self.guard, self.tags, self.hooks = tracker, guard, tags, hooks or Hooks()
        self.nodes = nodes
        self.search, self.metric, self.planned = table.search, table.metric, table.planned
        self.live = LiveTable(table, earlier.known, earlier.untrained)
        self.files = files or TrialFiles()
        self._budget = CheckpointBudget(keep_models, lambda key, step: self.tracker.forget_model(self.key(key), step))
        self._results: dict[str, dict[str, Any]] = {}
        self._totals: dict[str, float] = {}
        self._totals_at = -math.inf
        self.settle(earlier.known, earlier.trials)

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks to disk; files, threads and functions stay in this process."""
        away = ("tracker", "guard", "hooks", "nodes", "files", "_budget")
        return {name: None if name in away else value for name, value in self.__dict__.items()}

    @property
    def rows(self) -> dict[str, TrialRow]:
        """Key -> row of each trial."""
        return self.live.rows

    @property
    def best(self) -> float | None:
        """Best value of the metric so far."""
        return self.live.best

    @property
    def untrained(self) -> float | None:
        """Value of the untrained network, if it is known."""
        return self.live.untrained

    @property
    def epochs(self) -> int:
        """Number of epochs computed, by all trials; one that several trials share counts once."""
        return self.live.epochs

    @property
    def ended(self) -> int:
        """Number of trials that have ended."""
        return self.live.ended

    def key(self, trial: str) -> str:
        """Return the tracker's key of a trial."""
        return f"{self.search}/{trial}"

    # -- hooks of Ray ----------------------------------------------------------------------------------

    def setup(self, *_: Any, **__: Any) -> None:
        """Start the live table."""
        self.live.start()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Let the search do what is due."""
        self._guarded(self.hooks.on_step)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Start the trial's run in MLflow."""
        self._guarded(self._start, trial)
        self._guarded(self.hooks.on_change)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record an epoch."""
        self._guarded(self._result, trial, result)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that a trial is tried again."""
        self._guarded(self._recover, trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the trial's run; the trial was pruned if epochs are left."""
        self._guarded(self._end, trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the trial's run with the reason of its failure."""
        self._guarded(self._error, trial)

    # -- calls of the search ---------------------------------------------------------------------------

    def interrupt(self, reason: str) -> None:
        """End the runs of open trials, because the search ends before them; a resume or an extension continues them."""
        for key, row in self.rows.items():
            if row.state in ("running", "again"):
                row.state, row.reason = "interrupted", reason
                self.tracker.end(self.key(key), "INTERRUPTED", reason=reason)

    def settle(self, known: list[KnownTrial], trials: Path | None) -> None:
        """Record the ends of trials that are not recorded yet, because their process ended just after them."""
        for each in known:
            if each.has_ended and trials is not None:
                self._settle(each, trials / each.key)

    def close(self) -> None:
        """Leave the table of all trials on the screen."""
        self.live.close()

    # -- records ---------------------------------------------------------------------------------------

    def _settle(self, known: KnownTrial, directory: Path) -> None:
        row, key = TrialRow.of(known), self.key(known.key)
        self.rows[known.key] = row
        if self.tracker.state(key) in _STATUS:
            if (model := best_model(directory)) is not None:
                self._budget.add(known.key, KeptModel(directory=model, step=row.epoch, value=row.best))
            return
        measures = {f"{self.metric}_best": known.best} if known.best is not None else {}
        self._keep_model(known.key, row, directory, measures)
        self.tracker.end(key, _STATUS[row.state], reason=known.reason)

    def _start(self, trial: Any) -> None:
        settings, run = unpack(trial.config)
        row, node = self.rows.get(run.key), self.nodes.tags(trial.trial_id) if self.nodes is not None else {}
        if row is not None and row.state == "again":
            row.state, row.reason = "running", None
            if node:
                self.tracker.tags(self.key(run.key), node)
            return
        config = TrialConfig(**settings)
        epochs = 0 if run.role == "untrained" else run.until or config.nb_epochs
        fresh = TrialRow(settings=settings, epochs=epochs, role=run.role)
        if row is not None:  # it continues after its last epoch
            fresh.epoch, fresh.shared, fresh.last, fresh.best = row.epoch, row.shared, row.last, row.best
        self.rows[run.key] = fresh
        tags = {**self.tags, **node}
        if run.setting:
            tags["dcml.setting"] = run.setting
        if run.threads is not None:
            tags["dcml.threads"] = str(run.threads)
        if run.ranks > 1:
            tags["dcml.ranks"] = str(run.ranks)
        self.tracker.start(
            self.key(run.key), name=run.key, role=run.role, parent=self.search, params=config.model_dump(), tags=tags
        )

    def _result(self, trial: Any, result: dict[str, Any]) -> None:
        if STOP_SEARCH in result:
            return
        run = run_of(trial.config)
        key, when = self.key(run.key), result.get("time_ms")
        self._record_untrained(key, result)
        self._record_notes(run.key, result)
        self._results[run.key] = dict(result)
        if FAILED in result:
            return
        values = {n: v for n, v in result.items() if n.startswith(_MEASURES) and isinstance(v, int | float)}
        self.tracker.metrics(key, int(result["epoch"]), values, when)
        if DIVISION in result and run.directory is not None:
            place = self.files.current(Path(run.directory), result[DIVISION])
            for file in divisions.files(place, result[DIVISION]):
                self.tracker.artifact(key, file, "divisions")
        self._take_epoch(self.rows[run.key], result)
        self.live.show_epoch(run.key, result)
        self.hooks.on_report(self)

    def _record_untrained(self, key: str, result: dict[str, Any]) -> None:
        """Record the measures of the untrained network as step 0 of the trial."""
        if before := result.get("untrained"):
            self.live.untrained = before.get(self.metric)
            # MLflow's compare page shows the metric that was recorded first.
            best = {} if self.untrained is None else {f"{self.metric}_best": self.untrained}
            self.tracker.metrics(key, 0, {**best, **before}, result.get("time_ms"))

    def _record_notes(self, name: str, result: dict[str, Any]) -> None:
        if note := result.get(NOTE):
            log.warning("trial %s %s", name, note)
            self.tracker.tags(self.key(name), {"dcml.tried_again": note})
        if SCORED_BEFORE in result:
            self.tracker.tags(self.key(name), {f"dcml.{SCORED_BEFORE}": result[SCORED_BEFORE]})

    def _take_epoch(self, row: TrialRow, result: dict[str, Any]) -> None:
        """Update the row of a trial and, in the run of the search, the best value of all trials.

        That is recorded when it has changed, and else once in `_TOTALS_S`. An epoch that was reported before a resume, and was trained again after it, changes neither.
        """
        if int(result["epoch"]) < row.epoch:
            return
        row.epoch, row.last = int(result["epoch"]), result.get(self.metric)
        row.shared = int(result.get(SHARED, row.shared))
        row.best = result.get(f"{self.metric}_best")
        best = self.live.best = first_best([self.best, row.best], lambda value: value)
        if best is not None and row.role == "trial":
            totals = {f"{self.metric}_best": best, "trials/done": float(self.ended)}
            if self.live.shared:
                totals["epochs/shared"] = float(self.live.shared)
            now = time.monotonic()
            if totals != self._totals or now >= self._totals_at + _TOTALS_S:
                self._totals, self._totals_at = totals, now
                self.tracker.metrics(self.search, self.epochs, totals, result.get("time_ms"))

    def _recover(self, trial: Any) -> None:
        name, reason = run_of(trial.config).key, self._why(trial)
        log.warning("trial %s is tried again from its last epoch: %s", name, reason)
        if (row := self.rows.get(name)) is not None:
            row.state, row.reason = "again", reason
            self.tracker.tags(self.key(name), {"dcml.tried_again": f"after epoch {row.epoch}: {reason}"})

    def _error(self, trial: Any) -> None:
        name, reason = run_of(trial.config).key, self._why(trial)
        self.hooks.on_failure(name, reason)
        if name not in self.rows:  # it failed before its process had started
            self._start(trial)
        self._end(trial, reason)

    def _why(self, trial: Any) -> str:
        if self.nodes is not None and (reason := self.nodes.reasons.pop(trial.trial_id, None)):
            return reason
        self.tracker.check()  # a driver that was replaced sees its trials die, and writes nothing of that
        return self.guard.reasons.pop(trial.trial_id, None) or _last_error(trial)

    def _end(self, trial: Any, error: str | None) -> None:
        run = run_of(trial.config)
        row, result = self.rows[run.key], self._results.get(run.key, {})
        row.reason = error or result.get(FAILED)
        done = result.get("done_all") or row.role != "trial"
        row.state = "failed" if row.reason else "done" if done else "pruned"
        if row.state == "pruned":
            row.reason = self.hooks.why_over(self.epochs)
        if run.directory is not None:
            self._keep_model(run.key, row, Path(run.directory), result)
        self.tracker.end(self.key(run.key), _STATUS[row.state], reason=row.reason)
        self.live.refresh()
        self.hooks.on_report(self)
        self.hooks.on_change()

    def _keep_model(self, name: str, row: TrialRow, directory: Path, result: dict[str, Any]) -> None:
        """Log the best model of an ended trial, and remove the state that only a resume needs."""
        self.files.collect(directory)
        remove_state(directory)
        self.files.keep(directory)
        best = best_model(directory)
        if best is None or row.state == "failed":
            return
        if row.role in ("confirm", "ablate"):
            remove_model(best)
            return
        measures = {n: v for n, v in result.items() if n.startswith(("val/", "test", "paper"))}
        self.tracker.model(self.key(name), best, name=f"{row.role}-{name}", step=row.epoch, metrics=measures)
        if row.role == "trial":
            self._budget.add(name, KeptModel(directory=best, step=row.epoch, value=row.best))
            for removed in self._budget.enforce():
                self.files.keep(removed.parent)

    def _guarded(self, hook: Any, *arguments: Any) -> None:
        try:
            hook(*arguments)
        except Exception as error:
            tracebacks.warn(log, "progress of a trial was not shown", error)


def _last_error(trial: Any) -> str:
    """Return one line of the error that Ray reports, and keep its whole text as error.txt in the trial's directory."""
    file = trial.error_file
    text = Path(file).read_text(errors="replace") if file and Path(file).is_file() else ""
    directory = run_of(trial.config).directory
    if text and directory is not None and Path(directory).is_dir():
        (Path(directory) / "error.txt").write_text(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "running low on memory" in text:
        return "ended by Ray: the machine ran out of memory; lower --max-concurrent or --batch-size"
    if not lines or "ActorDiedError" in text or "RayActorError" in text or "Worker" in lines[-1]:
        return "its process died (killed, or a crash in native code)"
    return tracebacks.last_error(text)[:300]
