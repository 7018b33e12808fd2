"""A stage of a search: one run of Ray over trials, with its live table and its records."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainables.live_table import TableOptions
from trainables.run import pack_list, run_of
from trainables.starts import Starts
from trainables.tracking_callback import Earlier, Hooks, Progress
from trainables.tuner import run_trials

if TYPE_CHECKING:
    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.runs.record import Record
    from dcml_tune.search.plan import Plan
    from dcml_tune.tracking import Tracker
    from trainables import DivideAndConquer


PROGRESS_S = 1.0
"""Seconds between two records of the progress, while no trial ends."""


class StageRunner:
    """Runs the stages of one search, one after the other, and records how long trials ran.

    Attributes:
        progress: callback of the newest stage; None before the first one.
        on_stage: called before the first trial of a stage.
        on_change: called when a trial has started or ended.
        missing: keys of runs without a result, although no budget ended their stage.
    """

    def __init__(
        self, plan: Plan, record: Record, tracker: Tracker, tags: dict[str, str], trainable: type[DivideAndConquer]
    ) -> None:
        """Start from the seconds that earlier processes recorded.

        Args:
            plan: of the search.
            record: of the search, held by this process.
            tracker: of the search.
            tags: of each run in MLflow.
            trainable: the class that trains.
        """
        self.plan, self.record, self.tracker, self.tags, self.trainable = plan, record, tracker, tags, trainable
        self.on_change: Callable[[], None] = lambda: None
        self.on_stage: Callable[[], None] = lambda: None
        self.progress: Progress | None = None
        self.missing: list[str] = []
        self._stages = 0
        self._started: float | None = None
        self._before, self._progress_at = record.state.elapsed_s, -math.inf

    def run_missing(
        self,
        runs: list[dict[str, Any]],
        why_over: Callable[[], str | None] = lambda: None,
        others: Sequence[TrialConfig] = (),
    ) -> dict[str, dict[str, Any]]:
        """Run what has no result yet, from this process or an earlier one; returns key -> what the run measured.

        A run whose process wrote its result, and whose driver was killed before it recorded its end, only reports again.

        Args:
            runs: their dictionaries.
            why_over: returns why no more are run, or None.
            others: configurations of earlier trials, whose states may still be there.
        """
        plan, known = self.plan, self.plan.runs.results(runs)
        keys = [run_of(run).key for run in runs]
        missing = [run for run, key in zip(runs, keys, strict=True) if key not in known or not self._recorded(key)]
        if missing and why_over() is None:
            progress = self.new_progress(len(missing))
            self.run(
                progress, param_space=pack_list(plan.runs.sharing(missing, others)), num_samples=1, why_over=why_over
            )
            known = plan.runs.results(runs)
            if reason := why_over():
                progress.interrupt(reason)
        if why_over() is None:
            self.missing += [run_of(run).key for run in runs if run_of(run).key not in known]
        return known

    def _recorded(self, key: str) -> bool:
        """Return whether the end of a run was recorded."""
        return self.tracker.state(f"{self.plan.name}/{key}") in ("done", "pruned", "failed")

    def run(
        self,
        progress: Progress,
        *,
        then: Callable[[], None] = lambda: None,
        keeps_prefixes: bool = False,
        **tuning: Any,
    ) -> None:
        """Let Ray run trials, call `then`, and record how long they ran.

        Args:
            progress: callback of the stage.
            then: called when the trials have ended.
            keeps_prefixes: whether the states that trials share are kept for the next stage.
            tuning: arguments of `trainables.tuner.run_trials`.
        """
        plan, self.progress = self.plan, progress
        self.on_stage()
        self._stages += 1
        name = f"process-{self.record.state.processes:02d}-{self._stages}"
        try:
            run_trials(
                self.trainable,
                shares=plan.shares,
                directory=plan.directory / "ray" / name,
                callbacks=[self._guard, progress],
                nodes=plan.cluster,
                starts=self._starts(),
                **tuning,
            )
            plan.trial_files.end_stage(plan.output)
            then()
            if not keeps_prefixes:
                self.remove_prefixes()  # not after an interruption: a resume goes on with them
        finally:
            progress.close()
            self._before, self._started = self.elapsed(), None
            with suppress(OSError):  # a full disk
                self.record.update(elapsed_s=self._before)

    def _starts(self) -> Starts:
        plan = self.plan

        def recorded(key: str) -> int:
            return self.tracker.last_step(f"{plan.name}/{key}")

        return Starts(check=plan.check_held, files=plan.trial_files, recorded=recorded)

    def remove_prefixes(self) -> None:
        """Remove the states that the trials of a stage shared."""
        if (prefixes := self.plan.runs.prefixes) is not None:
            shutil.rmtree(prefixes, ignore_errors=True)

    def new_progress(self, planned: int, *, earlier: Earlier | None = None, hooks: Hooks | None = None) -> Progress:
        """The callback that shows and records the trials of a stage."""
        plan = self.plan
        self._guard = plan.guard()
        self._started = time.time()
        table = TableOptions(
            search=plan.name,
            metric=plan.metric,
            varied=tuple(plan.space.domains),
            published={name: plan.space.unvaried(name) for name in plan.space.domains},
            planned=planned,
            quiet=plan.config.quiet,
        )
        return Progress(
            self.tracker,
            self._guard,
            table,
            tags=self.tags,
            keep_models=plan.keep_models,
            nodes=plan.cluster.pool if plan.cluster is not None else None,
            files=plan.trial_files,
            earlier=earlier,
            hooks=replace(hooks or Hooks(), on_change=self.on_change),
        )

    def record_progress(self, progress: Progress) -> None:
        """Record how many trials have ended, and the best value so far: at each end, and else once in `PROGRESS_S`.

        The file is synchronised to the disk, which takes milliseconds, and informs other commands only.
        """
        now = time.monotonic()
        if progress.ended == self.record.state.ended and now < self._progress_at + PROGRESS_S:
            return
        self._progress_at = now
        self.record.update(
            elapsed_s=self.elapsed(),
            ended=progress.ended,
            planned=self.plan.planned,
            best=progress.best,
            untrained=progress.untrained,
        )

    def elapsed(self) -> float:
        """Seconds during which trials ran, in this process and earlier ones."""
        return self._before + (0.0 if self._started is None else time.time() - self._started)
