"""What happens on the driver while trials run: the live table, and the records for MLflow."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from dcml_tune.config import TrialConfig
from dcml_tune.schedule import EpochPlan
from dcml_tune.tracking import Tracker
from trainables.divide_and_conquer import RUN, whole

log = logging.getLogger(__name__)

_MEASURES = ("val/", "test/", "train/", "clusters/", "phase/", "time/")


class Progress(Callback):
    """Follows the trials: a live table where there is a terminal, else a line an epoch; and MLflow.

    No exception leaves a hook: one would end the whole search.
    """

    def __init__(
        self, tracker: Tracker, *, search: str, metric: str, varied: list[str], tags: dict[str, str], planned: int
    ) -> None:
        self.tracker, self.search, self.metric, self.varied = tracker, search, metric, varied
        self.tags, self.planned = tags, planned
        self.rows: dict[str, dict[str, Any]] = {}
        self.best: float | None = None
        self.untrained: float | None = None
        self.started = time.time()
        self.live = Live(console=Console(), refresh_per_second=2) if sys.stdout.isatty() else None

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps a copy of its callbacks on disk; files, threads and the screen stay here."""
        return {**self.__dict__, "tracker": None, "live": None}

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

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the trial's run; it was pruned if it had not run all of its epochs."""
        self._guarded(self._end, trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the trial's run with the reason."""
        self._guarded(self._end, trial, "an exception; see error.txt in the trial's directory")

    def close(self) -> None:
        """Leave the last table on the screen."""
        if self.live is not None:
            self.live.update(self.table())
            self.live.stop()
        else:
            Console(width=max(120, Console().width)).print(self.table())

    def key(self, trial_id: str) -> str:
        """The tracker's key of a trial."""
        return f"{self.search}/{trial_id}"

    def _start(self, trial: Any) -> None:
        if trial.trial_id in self.rows:
            return
        config = whole(trial.config)
        settings = {name: value for name, value in config.items() if name != RUN}
        role = config[RUN]["role"]
        name = f"{len(self.rows):03d}" if role == "trial" else role
        epochs = 0 if role == "untrained" else config[RUN]["until"] or TrialConfig(**settings).nb_epochs
        self.rows[trial.trial_id] = {
            "name": name, "settings": settings, "epoch": 0, "epochs": epochs, "state": "running", "role": role,
        }  # fmt: skip
        params = TrialConfig(**settings).model_dump()
        self.tracker.start(
            self.key(trial.trial_id), name=name, role=role, parent=self.search, params=params, tags=self.tags
        )

    def _result(self, trial: Any, result: dict[str, Any]) -> None:
        row, key = self.rows[trial.trial_id], self.key(trial.trial_id)
        if before := result.get("untrained"):
            self.tracker.metrics(key, 0, before)
            self.untrained = before.get(self.metric)
        values = {n: v for n, v in result.items() if n.startswith(_MEASURES) and isinstance(v, int | float)}
        self.tracker.metrics(key, int(result["epoch"]), values)
        row |= {"epoch": int(result["epoch"]), "last": result.get(self.metric), "result": dict(result)}
        row["best"] = result.get(f"{self.metric}_best")
        if row["best"] is not None and (self.best is None or row["best"] > self.best):
            self.best = row["best"]
        if self.best is not None and row["role"] == "trial":
            done = sum(r["state"] != "running" for r in self.rows.values())
            epochs = sum(r["epoch"] for r in self.rows.values())
            self.tracker.metrics(self.search, epochs, {f"{self.metric}_best": self.best, "trials/done": float(done)})
        if self.live is not None:
            self.live.update(self.table())
        else:
            text = " ".join(
                f"{k}={v:.4g}"
                for k, v in result.items()
                if k in (self.metric, f"{self.metric}_best", "train/loss", "test/recall_at_1")
            )
            print(f"{'trial ' if row['role'] == 'trial' else ''}{row['name']} epoch {row['epoch']}: {text}", flush=True)

    def _end(self, trial: Any, error: str | None) -> None:
        row, key = self.rows[trial.trial_id], self.key(trial.trial_id)
        result = row.get("result", {})
        reason = error or result.get("failed_reason")
        done = result.get("done_all") or row["role"] != "trial"
        row |= {"state": "failed" if reason else "done" if done else "pruned", "reason": reason}
        if trial.checkpoint is not None and not reason and row["role"] != "untrained":
            best = Path(trial.checkpoint.path) / "best"
            measures = {n: v for n, v in result.items() if n.startswith(("val/", "test/"))}
            self.tracker.model(key, best, name=f"{row['role']}-{trial.trial_id}", step=row["epoch"], metrics=measures)
        status = {"failed": "FAILED", "done": "FINISHED", "pruned": "PRUNED"}[row["state"]]
        self.tracker.end(key, status, reason=reason)
        if self.live is not None:
            self.live.update(self.table())

    def table(self) -> Table:
        """One row a trial."""

        def share(value: float | None) -> str:
            return "" if value is None else f"{100 * value:.1f} %"

        minutes = (time.time() - self.started) / 60
        done = sum(r["epoch"] for r in self.rows.values())
        title = f"{self.search}: best {share(self.best)}, untrained {share(self.untrained)}, {done} epochs, {minutes:.1f} min"
        if done and (left := self._epochs_left()):
            title += f", {minutes * left / done:.1f} min left unless trials are pruned"
        table = Table("trial", *self.varied, "epoch", "phase", "last", "best", "state", title=title)
        for row in self.rows.values():
            config = TrialConfig(**row["settings"])
            phase = EpochPlan.at(max(0, row["epoch"] - 1), config).phase
            cells = [f"{row['settings'].get(each, getattr(config, each)):.3g}" for each in self.varied]
            state = row["state"] + (f": {row['reason']}" if row.get("reason") else "")
            table.add_row(
                row["name"],
                *cells,
                f"{row['epoch']}/{row['epochs']}",
                phase,
                share(row.get("last")),
                share(row.get("best")),
                state,
            )
        return table

    def _epochs_left(self) -> int:
        """Epochs still to be run if no further trial is pruned."""
        rows = self.rows.values()
        running = sum(int(row["epochs"]) - int(row["epoch"]) for row in rows if row["state"] == "running")
        return running + (self.planned - len(rows)) * max(int(row["epochs"]) for row in rows)

    def _guarded(self, hook: Any, *arguments: Any) -> None:
        try:
            hook(*arguments)
        except Exception:
            log.warning("progress of a trial was not shown", exc_info=True)
