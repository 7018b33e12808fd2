"""Run the stages of a search (trials, confirmation, final scoring), and record its outcome.

Above 250 lines because the ends of a run, good and bad, are beside its stages.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dcml_tune.runs.record import SearchRunningError, all_records
from dcml_tune.runs.study_file import impatient
from dcml_tune.search.ablation import ablate
from dcml_tune.search.confirmation import Candidate, Confirmation, FoldSeed, race
from dcml_tune.search.console import print_interruption, print_outcome, print_undelivered
from dcml_tune.search.final_stage import by_seed, final_runs, hits_by_seed
from dcml_tune.search.outcome import EXIT_INCOMPLETE, Final, Hits, Outcome, best_trial
from dcml_tune.search.recording import record_verdict, try_to_write_report
from dcml_tune.search.resumable import end_abandoned
from dcml_tune.search.stage import StageRunner
from dcml_tune.tracking import Tracker, environment_tags
from dcml_tune.tracking.checking import check_store
from dcml_tune.utils import tracebacks
from dcml_tune.utils.locks import LockLostError
from dcml_tune.utils.redaction import redact
from dcml_tune.utils.signals import SearchStopped, signal_handled, signals_wait
from trainables import DivideAndConquer
from trainables.cluster import disconnect
from trainables.run import run_of
from trainables.tracking_callback import Earlier, Hooks

if TYPE_CHECKING:
    from dcml_tune.search.ablation import Ablation
    from dcml_tune.search.plan import Plan
    from trainables.searcher import OptunaSearcher
    from trainables.tracking_callback import Progress

_DELIVER_S = {"end": 60.0, "interrupted": 8.0}  # longest wait for MLflow


class SearchRunner:
    """Runs a plan from its first trial to its recorded and printed outcome."""

    def __init__(self, plan: Plan, trainable: type[DivideAndConquer] | None = None) -> None:
        """Prepare a run; nothing is started.

        Args:
            plan: the checked search.
            trainable: a subclass of DivideAndConquer to train instead.
        """
        self.plan, self.trainable = plan, trainable or DivideAndConquer
        self.ended_early: str | None = None

    def run(self) -> int:
        """Run the search; returns its exit code."""
        plan = self.plan
        for record in all_records(plan.output)[0]:
            if record.state.status == "running" and record.name != plan.name:
                end_abandoned(record)
        if plan.store_is_up:
            check_store(plan.uri, make=True)
        dashboard = plan.connect()
        if dashboard:
            print(f"  Ray dashboard: http://{dashboard} (log in with the output of: ray get-auth-token)", flush=True)
        self.record = plan.begin()
        self.pusher = plan.pusher(self.record)
        self.tracker = Tracker.open(plan.output, plan.name, uri=plan.uri, check=self.record.check_held)
        tags = environment_tags(plan.identity.compared, ["python", "-m", "dcml_tune.search", *sys.argv[1:]])
        tags |= {"dcml.protocol": plan.base.protocol, **plan.shares.tags()}
        tags |= {"dcml.deterministic": "yes"} if plan.config.deterministic else {}
        tags |= {"dcml.compiled": "yes"} if plan.runs.compiled else {}
        self.stages = StageRunner(plan, self.record, self.tracker, tags, self.trainable)
        if self.pusher is not None:
            self.pusher.push_or_stop()
            self.stages.on_change, self.stages.on_stage = self.pusher.want, self.pusher.push_or_stop
        self.tracker.start(plan.name, name=plan.name, role="search", params={"dataset": plan.dataset}, tags=tags)
        try:
            return self._run_stages()
        except LockLostError as lost:
            signal_handled()  # nothing is recorded: what this process knows, the other one knows, too
            raise SearchRunningError(str(lost)) from None
        except SearchStopped as stop:
            return self._interrupt(str(stop))
        except BaseException as error:
            self._interrupt(tracebacks.one_line(error))
            raise
        finally:
            self.record.release()

    def _run_stages(self) -> int:
        """Run the stages and record the outcome before Ray is shut down; returns the exit code."""
        plan = self.plan
        try:
            searcher = plan.searcher()
            if not plan.adds_seeds:
                self._search(searcher)
            pareto_front = searcher.pareto_front() if len(plan.metrics) > 1 else []
            for key, _ in pareto_front:
                self.tracker.tags(f"{plan.name}/{key}", {"dcml.pareto": "no trial beats it in all metrics"})
            if plan.units or plan.scores_test:
                try_to_write_report(plan)  # it can be read while the other stages run
            trials = searcher.known()
            confirmation = self._confirm(plan.candidates(trials)) if best_trial(trials) is not None else None
            if plan.units and plan.scores_test:
                try_to_write_report(plan)
            ablation = self._ablate(confirmation, searcher) if confirmation is not None and plan.ablates else None
            final, hits = self._score_test(confirmation) if confirmation is not None and plan.scores_test else ({}, {})
            outcome = Outcome(
                trials=trials,
                planned=sum(trial.has_ended for trial in trials) if plan.adds_seeds else plan.planned,
                pareto_front=pareto_front,
                confirmation=confirmation,
                ablation=ablation,
                final=final,
                hits=hits,
                ended_early=self.ended_early,
                missing_runs=self.stages.missing,
            )
            self._finish(outcome)
            return outcome.exit_code
        finally:
            with signals_wait():
                disconnect()

    # -- the outcome -----------------------------------------------------------------------------------

    def _finish(self, outcome: Outcome) -> None:
        """Record the outcome on disk and in MLflow, write the report, and print both."""
        plan, confirmation = self.plan, outcome.confirmation
        self.record.check_held()
        found = record_verdict(plan, self.record, self.tracker, outcome)
        self.tracker.end(plan.name, "FINISHED" if confirmation is not None else "FAILED", reason=outcome.reason)
        self.record.update(status=outcome.status, reason=outcome.reason)
        self.tracker.wait(_DELIVER_S["end"])
        page = try_to_write_report(plan, pictures=True)
        if page is not None:
            self.tracker.artifact(plan.name, page.parent, "report")
        undelivered = self.tracker.close(_DELIVER_S["end"])
        if self.pusher is not None:
            self.pusher.close(knows_ends=True)
        print_outcome(plan, outcome, found, self.tracker)
        if page is not None:
            print(f"open the report: {page.as_uri()}")
        print_undelivered(plan, undelivered)

    def _interrupt(self, reason: str) -> int:
        """Shut the search down cleanly: its results are kept, and no MLflow run stays RUNNING."""
        signal_handled()
        disconnect()
        reason = redact(reason)
        if self.stages.progress is not None:
            self.stages.progress.interrupt(reason)
        # If the disk is full or the study is locked, this fails; the next process then does it before anything else.
        with impatient(), suppress(Exception, SearchStopped):
            self.plan.requeue_running()
        signal_handled()
        self.tracker.end(self.plan.name, "INTERRUPTED", reason=reason)
        undelivered = self.tracker.close(_DELIVER_S["interrupted"])
        with suppress(OSError):  # a full disk: the status `running` with a free lock means the same
            self.record.update(status="interrupted", reason=reason, elapsed_s=self.stages.elapsed())
        if self.pusher is not None:
            self.pusher.close(knows_ends=False)
        print_interruption(self.record, reason)
        print_undelivered(self.plan, undelivered)
        return EXIT_INCOMPLETE

    # -- the stages ------------------------------------------------------------------------------------

    def _search(self, searcher: OptunaSearcher) -> None:
        """Run the trials that have not ended."""
        plan, known = self.plan, searcher.known()
        left = plan.planned - sum(trial.has_ended for trial in known)
        progress = self.stages.new_progress(
            plan.planned,
            earlier=Earlier(known=known, untrained=self.record.state.untrained, trials=plan.trials),
            hooks=Hooks(
                why_over=plan.budget.why_over,
                on_report=self.stages.record_progress,
                on_step=searcher.write_due,
                on_failure=searcher.set_failure_reason,
            ),
        )
        plan.begin_stage(self.record, "search")
        if left > 0 and plan.budget.out_of_time() is None:
            self.stages.run(
                progress,
                then=lambda: self._end_early(searcher, progress),
                search_alg=searcher,
                scheduler=plan.scheduler(known),
                num_samples=left,
                why_over=lambda: plan.budget.why_over(progress.epochs),
                keeps_prefixes=plan.ablates > 0 and not plan.units,
            )
        else:
            self._end_early(searcher, progress)
            progress.close()
        self.stages.record_progress(progress)

    def _end_early(self, searcher: OptunaSearcher, progress: Progress) -> None:
        """If a budget is used up, end the open trials: one with an epoch keeps its value, others are interrupted."""
        self.ended_early = self.plan.budget.why_over(progress.epochs)
        if self.ended_early:
            searcher.cut_short(self.ended_early)
            ended = [trial for trial in searcher.known() if trial.reason == self.ended_early]
            progress.settle(ended, self.plan.trials)
            progress.interrupt(self.ended_early)  # trials without an epoch
        elif searcher.patience_exhausted():
            self.ended_early = f"{self.plan.config.patience} trials in a row brought no improvement"

    def _confirm(self, found: list[Candidate]) -> Confirmation:
        """Compare the best settings and the controls on further folds; without units, return the best of the search."""
        plan = self.plan
        plan.begin_stage(self.record, "confirm")
        if plan.units and not plan.adds_seeds:
            print(f"\n{len(found)} settings are compared on further held-out classes: {', '.join(c.name for c in found)}",
                  flush=True)  # fmt: skip
        over: list[str] = []

        def results(runs: list[tuple[Candidate, FoldSeed]]) -> dict[tuple[str, FoldSeed], dict[str, Any]]:
            wanted = [plan.runs.confirm_run(*run) for run in runs]
            if plan.adds_seeds:
                known = plan.runs.results(wanted)
            else:
                known = self.stages.run_missing(wanted, why_over=plan.budget.out_of_time)
            if len(known) < len(wanted) and (reason := plan.budget.out_of_time()):
                over.append(reason)  # all results may be there, from an earlier process
            pairs = zip(runs, wanted, strict=True)
            return {(c.name, unit): known[run_of(run).key] for (c, unit), run in pairs if run_of(run).key in known}

        confirmation = race(
            found,
            plan.units,
            metric=plan.metric,
            results=results,
            is_over=lambda: bool(over),
            controls_compete=not plan.scores_test,
        )
        self.ended_early = self.ended_early or next(iter(over), None)
        if plan.later.winner in confirmation.dropped:  # an earlier version compared settings in another way
            every = results([(candidate, unit) for unit in plan.units for candidate in found])
            confirmation = replace(confirmation, results=every, dropped={}, failed={}, not_chosen=frozenset())
        return replace(confirmation, kept=plan.later.winner)

    def _ablate(self, confirmation: Confirmation, searcher: OptunaSearcher) -> Ablation:
        """Put the winner's most important settings back to the published value, one at a time, and measure that."""
        self.plan.begin_stage(self.record, "ablate")
        found = ablate(self.plan, self.stages, confirmation, searcher)
        self.ended_early = self.ended_early or self.plan.budget.out_of_time()
        return found

    def _score_test(self, confirmation: Confirmation) -> tuple[Final, Hits]:
        """Train winner and controls on all training classes; score them and the untrained network, each run once."""
        runs = final_runs(self.plan, confirmation)
        said = (
            "the winner and its controls are trained on all training classes, and the test classes scored once by each"
        )
        if self.plan.adds_seeds:
            said = f"trial {confirmation.winner.name} and its controls are trained with further seeds, and score the test classes"
        print(f"\n{said}", flush=True)
        known = self.stages.run_missing(list(runs.values()))
        return by_seed(runs, known), hits_by_seed(self.plan, runs)
