"""Cost of a search's driver by the number of its trials; run by scaling.py.

Only the driver runs: the plan, the searcher, scheduler, Progress, record and Tracker of `dcml_tune.search emoji`. They
are called in the order in which Ray calls them, for four trials at once, with objects that have the attributes of Ray's
trials that they read. No process is started and nothing is trained: the values of a trial are computed from its
settings, and its model has a few bytes.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costs import watch_memory
from rich.console import Console
from tracking import METRIC, measures

from trainables.run import run_of

CONCURRENT = 4
UNTRAINED = 0.3
LAST = 20  # suggestions, the last ones, whose median time is told
ROWS = 40
"""Of the live table on a usual screen."""


@dataclass(eq=False)
class Trial:
    """What searcher, scheduler and callbacks ask of a trial of Ray."""

    trial_id: str
    config: dict[str, Any]
    epoch: int = 0
    best: float = 0.0
    status: str = "RUNNING"
    error_file: str | None = None

    def next(self) -> dict[str, Any]:
        """What the trial reports after one more epoch, as `DivideAndConquer.step` does."""
        self.epoch += 1
        distance = abs(math.log10(self.config["masking_lambda"]) + 1.5) + 0.3 * abs(self.config["mod_epoch"] - 3)
        value = 0.6 - 0.05 * distance - 0.2 / (1 + self.epoch) + 0.01 * math.sin(1.7 * self.epoch + int(self.trial_id))
        self.best = max(self.best, value)
        done = self.epoch == self.config["nb_epochs"]
        facts = {"epoch": self.epoch, "done": done, "done_all": done, "time_ms": int(time.time() * 1000)}
        before = {"untrained": {METRIC: UNTRAINED}} if self.epoch == 1 else {}
        return {**before, **measures(self.epoch, value), f"{METRIC}_best": self.best, **facts}

    def leave_model(self) -> None:
        """The files of a best model."""
        place = Path(str(run_of(self.config).directory)) / f"best-{self.epoch:05d}"
        place.mkdir(parents=True)
        for name in ("model.json", "model.safetensors"):
            (place / name).write_text(self.trial_id)


class Driver:
    """The driver of a search."""

    def __init__(self, output: Path, trials: int, *more: str) -> None:
        """Begin a search as `dcml_tune.search` does, without Ray; `more` are further flags of it."""
        from dcml_tune.search.flags import read_command_line
        from dcml_tune.search.plan import given_plan
        from dcml_tune.tracking import Tracker, environment_tags
        from trainables.live_table import TableOptions
        from trainables.tracking_callback import Earlier, Hooks, Progress

        words = ["emoji", "--num-samples", str(trials), "--output-dir", str(output), "--name", f"trials-{trials}",
                 "--quiet", *more]  # fmt: skip
        self.plan = plan = given_plan(read_command_line(words))
        self.record = plan.begin()
        self.tracker = Tracker.open(plan.output, plan.name)
        tags = environment_tags(plan.identity.compared, ["benchmarks/scaling.py"])
        self.tracker.start(plan.name, name=plan.name, role="search", params={"dataset": "emoji"}, tags=tags)
        self.searcher, self.scheduler = plan.searcher(), plan.scheduler([])
        table = TableOptions(
            search=plan.name, metric=plan.metric, varied=tuple(plan.space.domains), planned=trials, quiet=True
        )
        hooks = Hooks(
            why_over=plan.budget.why_over, on_report=self._report, on_failure=self.searcher.set_failure_reason
        )
        self.progress = Progress(
            self.tracker, plan.guard(), table, tags=tags, keep_models=plan.keep_models,
            earlier=Earlier(trials=plan.trials), hooks=hooks,
        )  # fmt: skip
        self.trials: list[Trial] = []
        self.seconds: dict[str, list[float]] = {}

    def _report(self, progress: Any) -> None:
        self.record.update(ended=progress.ended, best=progress.best, untrained=progress.untrained)

    def _timed(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        found = call(*arguments)
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return found

    def run(self) -> None:
        """Run the trials to their ends."""
        running: list[Trial] = []
        for number in range(self.plan.planned + CONCURRENT):
            if number < self.plan.planned:
                running.append(self._begin(number))
            while running and (len(running) == CONCURRENT or number >= self.plan.planned):
                running = [trial for trial in running if self._goes_on(trial)]

    def _begin(self, number: int) -> Trial:
        trial_id = f"{number:05d}"
        trial = Trial(trial_id, self._timed("suggest", self.searcher.suggest, trial_id))
        self.trials.append(trial)
        self._timed("scheduler", self.scheduler.on_trial_add, None, trial)
        self._timed("callbacks", self.progress.on_trial_start, 0, self.trials, trial)
        return trial

    def _goes_on(self, trial: Trial) -> bool:
        """Take one report of a trial; returns whether it runs on."""
        result = trial.next()
        is_over = result["done"]
        if is_over:
            self._timed("scheduler", self.scheduler.on_trial_complete, None, trial, result)
        else:
            is_over = self._timed("scheduler", self.scheduler.on_trial_result, None, trial, result) == "STOP"
            self._timed("searcher", self.searcher.on_trial_result, trial.trial_id, result)
        self._timed("callbacks", self.progress.on_trial_result, 0, self.trials, trial, result)
        self.plan.budget.why_over(self.progress.epochs)
        if is_over:
            trial.status = "TERMINATED"
            trial.leave_model()
            self._timed("searcher end", self.searcher.on_trial_complete, trial.trial_id, result)
            self._timed("callbacks end", self.progress.on_trial_complete, 0, self.trials, trial)
        return not is_over

    def end(self) -> int:
        """Wait for the delivery; returns how many records are left."""
        self.tracker.end(self.plan.name, "FINISHED")
        self.record.update(status="finished")
        left = self.tracker.close(3600)
        self.record.release()
        return left


def driver(trials: int, output: Path, *more: str) -> dict[str, float]:
    """Run a search's driver; seconds, and megabytes."""
    from dcml_tune.report import write_report

    made = Driver(output, trials, *more)
    grown, start = watch_memory(), time.perf_counter()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        made.run()
    ran = time.perf_counter()
    left = made.end()
    delivered, memory = time.perf_counter(), grown()
    assert left == 0, "records were not delivered"
    Console(file=io.StringIO()).print(made.progress.live.table(most=ROWS))
    drawn = time.perf_counter()
    write_report(made.plan.directory, uri=made.plan.uri, pictures=False)
    written = time.perf_counter()
    last = sorted(made.seconds["suggest"][-LAST:])
    own = {f"{name}, ms a trial": 1e3 * sum(each) / trials for name, each in made.seconds.items()}
    return {
        "driver, ms a trial": 1e3 * (ran - start) / trials,
        **own,
        "one suggest at the end, ms": 1e3 * last[len(last) // 2],
        "delivery after the end, s": delivered - ran,
        f"live table of {ROWS} rows, ms": 1e3 * (drawn - delivered),
        "report page, s": written - drawn,
        "memory beside the start, MB": memory,
        "mlflow.db, MB": (output / "mlflow.db").stat().st_size / 1e6,
        "optuna.db, MB": (made.plan.directory / "optuna.db").stat().st_size / 1e6,
    }
