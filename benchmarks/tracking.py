"""Cost of tracking: the goal is below 5 % of the time of trials that do nothing else.

    python benchmarks/tracking.py [--trials 200] [--steps 5] [--repeats 3] [--max-concurrent 4]

Ray Tune runs trials that only report a few numbers a few times, so that all time is spent on starting processes, on
reports and in the driver. `ours` has everything that dcml_tune.search adds: the watchdog, Progress, the record of the
search, a Tracker that delivers to SQLite, and the wait for the last delivery. The reference is Ray Tune without our
callbacks and without its own loggers. Both run alternately in one cluster. The creation of the MLflow store, once for
each search, has a row of its own.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from costs import cost_line
from measure import Row, alternate, show

METRIC = "val/recall_at_1"
NAME = "tracking"
SETTINGS = {"dataset": "emoji", "nb_epochs": 6, "force_full_embedding_epoch": 5, "nb_clusters": 2}


def measures(epoch: int, value: float) -> dict[str, float]:
    """As many numbers as a trial reports after an epoch, by the same names."""
    names = ["recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "map_at_r", "marp", "r_precision"]
    found = {f"val/{name}": value for name in names} | {f"{METRIC}_best": value, "epoch_best": float(epoch)}
    found |= {"train/loss": 1 / epoch, "train/loss_masks": 0.0, "train/batches": 9.0}
    found |= dict.fromkeys(["clusters/count", "clusters/left_out", "clusters/largest", "clusters/smallest"], 1.0)
    found |= dict.fromkeys(["phase/full_embedding", "phase/backbone_frozen"], 0.0)
    return found | dict.fromkeys(["time/cluster_s", "time/train_s", "time/evaluate_s", "time/epoch_s"], 0.01)


def trivial(steps: int) -> Any:
    """A trainable that does nothing. It is sent to its processes whole, so that these import nothing of ours, and no torch."""
    from ray import tune

    numbers = measures(1, 0.5)

    class Trivial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.epoch = 0

        def step(self) -> dict[str, Any]:
            import sys

            if "torch" in sys.modules:
                raise RuntimeError("torch was imported")
            self.epoch += 1
            done = self.epoch == steps
            return {
                **numbers,
                "epoch": self.epoch,
                "done": done,
                "done_all": done,
                "time_ms": int(time.time() * 1000),
            }

    return Trivial


def run_trials(trials: int, steps: int, concurrent: int, directory: Path, callbacks: list[Any]) -> None:
    """Run the trials, by the function that runs those of a search."""
    from trainables import Run
    from trainables.resources import share
    from trainables.run import pack, pack_list
    from trainables.tuner import run_trials as run_stage

    runs = [Run(search=NAME, key=f"{n:03d}", metric=METRIC) for n in range(trials)]
    run_stage(
        trivial(steps),
        shares=share(num_samples=trials, gpus=0, max_concurrent=concurrent),
        directory=directory / "ray",
        callbacks=callbacks,
        param_space=pack_list([pack({**SETTINGS, "seed": n}, run) for n, run in enumerate(runs)]),
        num_samples=1,
    )


class Tracked:
    """What a search has around its trials."""

    def __init__(self, directory: Path, trials: int) -> None:
        """Make the store and begin, as `dcml_tune.search` does."""
        from dcml_tune.runs.record import Record
        from dcml_tune.tracking import Tracker, environment_tags
        from trainables.live_table import TableOptions
        from trainables.tracking_callback import Hooks, Progress
        from trainables.watchdog import TrialWatchdog

        self.directory, self.record = directory, Record.create(directory / NAME, {})
        self.tracker = Tracker.open(directory, NAME)
        tags = environment_tags("none", ["benchmarks/tracking.py"])
        self.tracker.start(NAME, name=NAME, role="search", params={"dataset": "emoji"}, tags=tags)
        self.guard = TrialWatchdog(directory=directory, need=0, trial_timeout=None)
        hooks = Hooks(on_report=lambda progress: self.record.update(ended=progress.ended, best=progress.best))
        table = TableOptions(search=NAME, metric=METRIC, varied=("nb_clusters",), planned=trials, quiet=True)
        self.progress = Progress(self.tracker, self.guard, table, tags=tags, hooks=hooks)

    def end(self) -> None:
        """Wait for the delivery.

        Raises:
            SystemExit: if not all was tracked: then less was measured than a search does.
        """
        self.tracker.end(NAME, "FINISHED")
        left = self.tracker.close(600)
        self.record.release()
        done = sum(row.state == "done" for row in self.progress.rows.values())
        if left or done < self.progress.planned:
            raise SystemExit(f"{done} of {self.progress.planned} trials are complete; {left} records are not delivered")


def measured(trials: int, steps: int, repeats: int, concurrent: int, root: Path) -> list[Row]:
    """The rows of the table; Ray must have been started."""
    made: list[Tracked] = []

    def place() -> Path:
        return Path(tempfile.mkdtemp(dir=root))

    def tracked() -> None:
        run_trials(trials, steps, concurrent, made[-1].directory, [made[-1].guard, made[-1].progress])
        made[-1].end()

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        taken = alternate(
            {
                "plain": lambda: run_trials(trials, steps, concurrent, place(), []),
                "store": lambda: made.append(Tracked(place(), trials)),
                "tracked": tracked,
            },
            repeats,
        )
    both = [a + b for a, b in zip(taken["tracked"], taken["store"], strict=True)]
    return [
        cost_line(f"{trials} trials of {steps} reports", taken["tracked"], taken["plain"], goal="below 1.05"),
        cost_line("and the store is made", both, taken["plain"]),
    ]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-concurrent", type=int, default=4)
    arguments = parser.parse_args()
    from trainables.cluster import connect, disconnect

    with tempfile.TemporaryDirectory() as root:
        connect(None)
        try:
            rows = measured(arguments.trials, arguments.steps, arguments.repeats, arguments.max_concurrent, Path(root))
        finally:
            disconnect()
    show("tracking, trials that do nothing", rows)


if __name__ == "__main__":
    main()
