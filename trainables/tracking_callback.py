"""What happens on the driver while trials run: the live table, the records for MLflow, and what ends a search early."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from dcml_tune.cli.quantities import brief
from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import PAPER_LABEL, TrialConfig
from dcml_tune.models.embedder import best_model
from dcml_tune.runs.study import first_best
from dcml_tune.tracking import Tracker
from dcml_tune.training import divisions
from dcml_tune.training.saving import remove_state
from dcml_tune.utils import tracebacks
from trainables.run import FAILED, NOTE, RUN, SCORED_BEFORE, STOP_SEARCH, unwrap_config
from trainables.searcher import KnownTrial
from trainables.trainable import DIVISION
from trainables.watchdog import TrialWatchdog

log = logging.getLogger(__name__)

_MEASURES = ("val/", "test", "paper", "train/", "clusters/", "masks/", "phase/", "time/")
_STATUS = {"failed": "FAILED", "done": "FINISHED", "pruned": "PRUNED"}
_FRAME = 9  # lines of the live table that are no trials: title, names of the columns, rules, what is not shown


class Progress(Callback):
    """Follows the trials: a live table where there is a terminal, else a line an epoch; and MLflow.

    No exception leaves a hook: one would end the whole search.
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        search: str,
        metric: str,
        varied: list[str],
        tags: dict[str, str],
        planned: int,
        guard: TrialWatchdog,
        quiet: bool = False,
        known: list[KnownTrial] | None = None,
        trials: Path | None = None,
        untrained: float | None = None,
        keep_models: int | None = None,
        why_over: Callable[[int], str | None] = lambda epochs: None,
        on_report: Callable[[Progress], None] = lambda progress: None,
        on_failure: Callable[[str, str], None] = lambda key, reason: None,
    ) -> None:
        """Follow the trials of one stage.

        Args:
            tracker: takes the records.
            search: name of the search.
            metric: by which trials are compared.
            varied: settings shown in the table.
            tags: of every run.
            planned: number of trials.
            guard: knows why it ended a trial.
            quiet: no live table, a line an epoch.
            known: trials of an earlier process, which are shown, too.
            trials: directory below which each trial has its own.
            untrained: value of the untrained network, if it is known.
            keep_models: most models of ended trials that are kept; the best ones stay. None: all.
            why_over: says why the trials are ended after so many epochs of all of them, or None.
            on_report: is called after each report.
            on_failure: is told key and reason of a trial that failed where only the driver knows why.
        """
        self.tracker, self.search, self.metric, self.varied = tracker, search, metric, varied
        self.tags, self.planned, self.guard, self.keep_models = tags, planned, guard, keep_models
        self.why_over, self.on_report, self.on_failure = why_over, on_report, on_failure
        self.rows: dict[str, dict[str, Any]] = {each.key: _row(each) for each in known or []}
        self.settle(known or [], trials)
        self.best: float | None = first_best((row["best"] for row in self.rows.values()), lambda value: value)
        self.untrained = untrained
        self.started = time.time()
        self._epochs_before = self.epochs
        self.live = (
            None
            if quiet or not sys.stdout.isatty()
            else Live(console=Console(markup=False, emoji=False), refresh_per_second=2)
        )

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps a copy of its callbacks on disk; files, threads, functions and the screen stay here."""
        away = ("tracker", "live", "guard", "why_over", "on_report", "on_failure")
        return {name: None if name in away else value for name, value in self.__dict__.items()}

    @property
    def epochs(self) -> int:
        """Epochs run, by all trials."""
        return sum(int(row["epoch"]) for row in self.rows.values())

    @property
    def ended(self) -> int:
        """Trials that have ended."""
        return sum(row["state"] in _STATUS for row in self.rows.values())

    def setup(self, *_: Any, **__: Any) -> None:
        """Begin the live table."""
        if self.live is not None:
            self.live.start()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Make the trial's run."""
        self._guarded(self._start, trial)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record an epoch."""
        self._guarded(self._result, trial, result)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial is tried again."""
        self._guarded(self._recover, trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the trial's run; it was pruned if it had not run all of its epochs."""
        self._guarded(self._end, trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the trial's run with the reason."""
        self._guarded(self._error, trial)

    def interrupt(self, reason: str) -> None:
        """The search ends before its trials: their runs end; a resume, or an extension, takes them up again."""
        for key, row in self.rows.items():
            if row["state"] in ("running", "again"):
                row |= {"state": "interrupted", "reason": reason}
                self.tracker.end(self.key(key), "INTERRUPTED", reason=reason)

    def close(self) -> None:
        """Leave the last table on the screen."""
        if self.live is not None:
            self.live.update(self.table())
            self.live.stop()
        else:
            Console(width=max(120, Console().width), markup=False, emoji=False).print(self.table())

    def key(self, trial: str) -> str:
        """The tracker's key of a trial."""
        return f"{self.search}/{trial}"

    def settle(self, known: list[KnownTrial], trials: Path | None) -> None:
        """Record the ends of trials that are not recorded yet: of an earlier process that ended just after them."""
        for each in known:
            if each.has_ended and trials is not None:
                self._settle(each, trials / each.key)

    def _settle(self, known: KnownTrial, directory: Path) -> None:
        row, key = self.rows.setdefault(known.key, {}), self.key(known.key)
        row |= _row(known)
        if self.tracker.state(key) in _STATUS:
            row["model"] = best_model(directory)
            return
        self._keep(key, row, directory, {f"{self.metric}_best": known.best} if known.best is not None else {})
        self.tracker.end(key, _STATUS[known.state], reason=known.reason)

    def _start(self, trial: Any) -> None:
        config = unwrap_config(trial.config)
        run, settings = config[RUN], {name: value for name, value in config.items() if name != RUN}
        row = self.rows.setdefault(run["key"], {"epoch": 0, "best": None, "last": None})
        if row.get("state") == "again":
            row |= {"state": "running", "reason": None}
            return
        full = TrialConfig(**settings)
        epochs = 0 if run["role"] == "untrained" else run["until"] or full.nb_epochs
        row |= {"settings": settings, "epochs": epochs, "state": "running", "role": run["role"], "reason": None}
        name, key = run["key"], self.key(run["key"])
        params, tags = full.model_dump(), self.tags
        if run["setting"]:
            tags = {**tags, "dcml.setting": run["setting"]}
        if run["threads"] is not None:
            tags = {**tags, "dcml.threads": str(run["threads"])}
        self.tracker.start(key, name=name, role=run["role"], parent=self.search, params=params, tags=tags)

    def _result(self, trial: Any, result: dict[str, Any]) -> None:
        if STOP_SEARCH in result:
            return
        name = _name(trial)
        row, key, when = self.rows[name], self.key(name), result.get("time_ms")
        if before := result.get("untrained"):
            self.untrained = before.get(self.metric)
            # MLflow's compare page shows the metric that was recorded first.
            best = {} if self.untrained is None else {f"{self.metric}_best": self.untrained}
            self.tracker.metrics(key, 0, {**best, **before}, when)
        if note := result.get(NOTE):
            log.warning("trial %s %s", name, note)
            self.tracker.tags(key, {"dcml.tried_again": note})
        if SCORED_BEFORE in result:
            self.tracker.tags(key, {f"dcml.{SCORED_BEFORE}": result[SCORED_BEFORE]})
        if FAILED in result:
            row["result"] = dict(result)
            return
        values = {n: v for n, v in result.items() if n.startswith(_MEASURES) and isinstance(v, int | float)}
        self.tracker.metrics(key, int(result["epoch"]), values, when)
        directory = unwrap_config(trial.config)[RUN]["directory"]
        if DIVISION in result and directory is not None:
            for file in divisions.files(Path(directory), result[DIVISION]):
                self.tracker.artifact(key, file, "divisions")
        row |= {"epoch": int(result["epoch"]), "last": result.get(self.metric), "result": dict(result)}
        row["best"] = result.get(f"{self.metric}_best")
        self.best = first_best([self.best, row["best"]], lambda value: value)
        if self.best is not None and row["role"] == "trial":
            totals = {f"{self.metric}_best": self.best, "trials/done": float(self.ended)}
            self.tracker.metrics(self.search, self.epochs, totals, when)
        self._say(name, row, result)
        self.on_report(self)

    def _say(self, name: str, row: dict[str, Any], result: dict[str, Any]) -> None:
        if self.live is not None:
            self._update(self.live)
            return
        shown = (self.metric, f"{self.metric}_best", "train/loss", "test/recall_at_1")
        text = " ".join(f"{k}={v:.4g}" for k, v in result.items() if k in shown)
        print(f"{'trial ' if row['role'] == 'trial' else ''}{name} epoch {row['epoch']}: {text}", flush=True)

    def _recover(self, trial: Any) -> None:
        row = self.rows.get(_name(trial))
        reason = self._why(trial)
        log.warning("trial %s is tried again from its last epoch: %s", _name(trial), reason)
        if row is not None:
            row |= {"state": "again", "reason": reason}
            self.tracker.tags(self.key(_name(trial)), {"dcml.tried_again": f"after epoch {row['epoch']}: {reason}"})

    def _error(self, trial: Any) -> None:
        reason = self._why(trial)
        self.on_failure(_name(trial), reason)
        if _name(trial) not in self.rows:  # it failed before its process had started
            self._start(trial)
        self._end(trial, reason)

    def _why(self, trial: Any) -> str:
        return self.guard.reasons.pop(trial.trial_id, None) or _last_error(trial)

    def _end(self, trial: Any, error: str | None) -> None:
        row, key = self.rows[_name(trial)], self.key(_name(trial))
        result = row.get("result", {})
        reason = error or result.get(FAILED)
        done = result.get("done_all") or row["role"] != "trial"
        row |= {"state": "failed" if reason else "done" if done else "pruned", "reason": reason}
        if row["state"] == "pruned":
            row["reason"] = self.why_over(self.epochs)
        directory = unwrap_config(trial.config)[RUN]["directory"]
        if directory is not None:
            self._keep(key, row, Path(directory), result)
        self.tracker.end(key, _STATUS[row["state"]], reason=row["reason"])
        if self.live is not None:
            self._update(self.live)
        self.on_report(self)

    def _keep(self, key: str, row: dict[str, Any], directory: Path, result: dict[str, Any]) -> None:
        """Log the trial's best model, and remove what only going on would need."""
        remove_state(directory)
        best = best_model(directory)
        if best is None or row["state"] == "failed":
            return
        if row["role"] == "confirm":
            remove_model(best)
            return
        measures = {n: v for n, v in result.items() if n.startswith(("val/", "test", "paper"))}
        name = f"{row['role']}-{key.rpartition('/')[2]}"
        self.tracker.model(key, best, name=name, step=row["epoch"], metrics=measures)
        row["model"] = best
        self._forget_worst()

    def _forget_worst(self) -> None:
        """Keep within the budget of checkpoints."""
        rows = [(key, row) for key, row in self.rows.items() if row.get("model") and row["role"] == "trial"]
        rows.sort(key=lambda each: each[1]["best"] or 0.0, reverse=True)
        for key, row in rows[self.keep_models :] if self.keep_models is not None else []:
            self.tracker.forget_model(self.key(key), row["epoch"])
            remove_model(row.pop("model"))

    def _update(self, live: Live) -> None:
        """Show as many trials as the screen has room for: a thousand rows take most of a second to draw."""
        live.update(self.table(most=max(1, live.console.height - _FRAME)))

    def _shown(self, most: int | None) -> list[tuple[str, dict[str, Any]]]:
        """So many rows, by name: those of trials that have not ended, and the best of the others."""
        rows = sorted(self.rows.items())
        if most is None or len(rows) <= most:
            return rows
        return sorted(sorted(rows, key=lambda each: (each[1]["state"] in _STATUS, -(each[1]["best"] or 0.0)))[:most])

    def table(self, most: int | None = None) -> Table:
        """One row a trial.

        Args:
            most: rows; None: all.
        """

        def share(value: float | None) -> str:
            return "" if value is None else f"{100 * value:.1f} %"

        minutes = (time.time() - self.started) / 60
        known = [("best", self.best), ("untrained", self.untrained)]  # the last stage has nothing to compare on
        values = "".join(f"{name} {share(value)}, " for name, value in known if value is not None)
        title = f"{self.search}: {values}{self.epochs} epochs, {minutes:.1f} min"
        if self.metric.startswith("paper"):
            title += f" ({PAPER_LABEL})"
        here = self.epochs - self._epochs_before
        if here and (left := self._epochs_left()):
            title += f", {minutes * left / here:.1f} min left unless trials are pruned"
        shown = self._shown(most)
        others = len(self.rows) - len(shown)
        table = Table(title=title, caption=f"and {others} more trials" if others else None)
        for column in ("trial", *self.varied, "epoch", "phase", "last", "best", "state"):
            table.add_column(column, no_wrap=column in ("trial", "epoch", "last", "best"))
        for name, row in shown:
            config = TrialConfig(**row["settings"])
            phase = EpochPlan.at(max(0, row["epoch"] - 1), config).phase
            cells = [brief(row["settings"].get(each, getattr(config, each))) for each in self.varied]
            state = row["state"] + (f": {row['reason']}" if row.get("reason") else "")
            epochs = f"{row['epoch']}/{row['epochs']}"
            table.add_row(name, *cells, epochs, phase, share(row["last"]), share(row["best"]), state)
        return table

    def _epochs_left(self) -> int:
        """Epochs still to be run if no further trial is pruned."""
        rows = self.rows.values()
        open_rows = sum(int(row["epochs"]) - int(row["epoch"]) for row in rows if row["state"] not in _STATUS)
        return open_rows + (self.planned - len(rows)) * max(int(row["epochs"]) for row in rows)

    def _guarded(self, hook: Any, *arguments: Any) -> None:
        try:
            hook(*arguments)
        except Exception as error:
            tracebacks.warn(log, "progress of a trial was not shown", error)


def remove_model(directory: Path) -> None:
    """Remove a trial's model."""
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def _name(trial: Any) -> str:
    return str(unwrap_config(trial.config)[RUN]["key"])


def _row(known: KnownTrial) -> dict[str, Any]:
    """The row of a trial of an earlier process."""
    curve = known.curve
    return {
        "settings": known.config,
        "epoch": max(curve, default=0),
        "epochs": TrialConfig(**known.config).nb_epochs,
        "state": known.state,
        "role": "trial",
        "reason": known.reason,
        "last": curve[max(curve)] if curve else None,
        "best": known.best,
    }


def _last_error(trial: Any) -> str:
    """One line of what Ray says of a trial's error; the whole text is kept in the trial's directory."""
    file = trial.error_file
    text = Path(file).read_text(errors="replace") if file and Path(file).is_file() else ""
    directory = unwrap_config(trial.config)[RUN]["directory"]
    if text and directory is not None and Path(directory).is_dir():
        (Path(directory) / "error.txt").write_text(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "running low on memory" in text:
        return "ended by Ray: the machine ran out of memory; lower --max-concurrent or --batch-size"
    if not lines or "ActorDiedError" in text or "RayActorError" in text or "Worker" in lines[-1]:
        return "its process died (killed, or a crash in native code)"
    return tracebacks.last_error(text)[:300]
