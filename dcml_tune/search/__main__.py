"""`python -m dcml_tune.search DATASET`: search space + Ray Tuner + tracking -> the best setting, scored once."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal, cast

from dcml_tune.cli import reference_flags
from dcml_tune.cli.parser import Parser, add_settings, command, dashboard_command, run_command, settings_to_flags
from dcml_tune.cli.quantities import as_text, brief, gpus_per_trial, seconds, size, whole
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.runs.paths import SPOOL, STORES, TRIALS, named_directory, output_directory
from dcml_tune.runs.record import Record, all_records
from dcml_tune.runs.study import direction, first_best
from dcml_tune.runs.study_file import impatient
from dcml_tune.search.confirmation import CONTROLS, PUBLISHED, Candidate, Confirmation, FoldSeed, race
from dcml_tune.search.plan import Plan, given_plan, resumed_plan
from dcml_tune.tracking.uris import add_flag, tracking_uri
from dcml_tune.utils import tracebacks
from dcml_tune.utils.files import write_checksummed
from dcml_tune.utils.redaction import redact
from dcml_tune.utils.signals import SearchStopped, signal_handled, signals_wait, stopped_by_signals
from dcml_tune.utils.stored import printable

if TYPE_CHECKING:
    from trainables import DivideAndConquer
    from trainables.searcher import KnownTrial, OptunaSearcher
    from trainables.tracking_callback import Progress

EXIT_OK, EXIT_INCOMPLETE = 0, 3
"""Exit status of a search that did all that was asked of it, and of one that did not."""

log = logging.getLogger(__name__)

UNTRAINED: Literal["untrained"] = "untrained"
VERDICT = "verdict.json"

Final = dict[str, dict[str, dict[str, Any]]]
"""Contender -> seed -> measures of the test classes."""

_DELIVER_S = {"end": 60.0, "interrupted": 8.0}  # longest wait for MLflow


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m dcml_tune.search",
        description="Search the divide-and-conquer settings of a data set. Trials are compared on held-out training "
        "classes; the winner is retrained on all of them, and the test classes are scored once.",
    )
    made.add_argument("dataset", nargs="?", help="emoji (embedded), folder, cub, cars, sop, inshop or vid")
    made.add_argument("--num-samples", type=whole(1, 100_000), default=8, help="number of trials")
    made.add_argument("--searcher", choices=["optuna", "random"], default="optuna", help="TPE, or independent draws")
    made.add_argument("--scheduler", choices=["asha", "asha-epochs", "median", "none"], default="asha",
                      help="how trials are pruned: asha compares them at the phases of each one's own division, asha-epochs "
                      "at fixed epochs")  # fmt: skip
    made.add_argument("--metric", action="append", help="by which trials are compared, each by its best so far: "
                      "recall_at_1 (default), map_at_r, marp or r_precision, after `val/`, or after `paper/` with --protocol "
                      "paper. Given again, such as time/epoch_s: the trials that no other one beats in all are told")  # fmt: skip
    made.add_argument("--gpus-per-trial", type=gpus_per_trial, help="share of a GPU up to 1, or a whole number; default 1. auto: "
                      "the share with which trials are fastest in sum, measured in about a minute")  # fmt: skip
    made.add_argument("--max-concurrent", type=whole(1, 10_000), help="most trials at once; default: as many as fit")
    made.add_argument("--time-budget", type=as_text(seconds), help="stop the search after such as 30m or 10h")
    made.add_argument(
        "--epoch-budget", type=whole(1, 10**9), help="stop the search after so many epochs of all trials together"
    )
    made.add_argument(
        "--patience", type=whole(1, 100_000), help="stop the search after so many trials in a row that brought nothing"
    )
    made.add_argument(
        "--trial-timeout",
        type=as_text(seconds),
        help="end a trial that reports no epoch for such as 20m; default: never",
    )
    made.add_argument(
        "--checkpoint-budget", type=as_text(size), help="most disk for checkpoints, such as 20GB; the best models stay"
    )
    made.add_argument("--space", help="Python file that defines SPACE = SearchSpace(...)")
    made.add_argument("--warm-start", nargs="+", action="extend", metavar="SEARCH", help="earlier searches on the same images; "
                      "their trials teach the sampler")  # fmt: skip
    made.add_argument(
        "--prior", action="store_true", help="believe in the published setting: draw around it, less with each trial"
    )
    made.add_argument("--confirm", type=whole(0, 1000), default=4, help="settings that are compared once more, with the published "
                      "one and no division, on further held-out classes and seeds; 0: none")  # fmt: skip
    made.add_argument("--folds", type=whole(1, 1000), help="sets of held-out classes to confirm on; default 3")
    made.add_argument("--seeds", type=whole(1, 1000), default=1, help="seeds to confirm with on each of them")
    made.add_argument(
        "--final", choices=["best", "none"], default="best", help="score winner and controls on test classes"
    )
    made.add_argument(
        "--final-seeds", type=whole(1, 1000), default=3, help="seeds with which they are trained for that"
    )
    made.add_argument("--output-dir", default="runs", help="where everything is written")
    made.add_argument("--name", help="name of the search; default: data set and time")
    made.add_argument("--resume", nargs="?", const="", metavar="NAME", help="go on with an interrupted search, by its name or "
                      "the path of its directory; "
                      "without a name: list them. No other flag is needed but --output-dir")  # fmt: skip
    made.add_argument("--extend", metavar="NAME", help="add --num-samples trials to a search, and go on with it; "
                      "--space may widen what is searched")  # fmt: skip
    made.add_argument("--repeat-trial", metavar="RUN", help="train SEARCH/KEY again, from its record alone, and compare what it "
                      "measures; status 0 if all is identical")  # fmt: skip
    add_flag(made, "MLflow server; default: OUTPUT/mlflow.db")
    made.add_argument(
        "--ray-address",
        help="a running Ray cluster, HOST:PORT, or auto for that of RAY_ADDRESS; default, or local: one of its own",
    )
    made.add_argument("--quiet", action="store_true", help="a line an epoch instead of a live table")
    made.add_argument("--dry-run", action="store_true", help="say what would be run, and stop")
    add_settings(made, exclude=("dataset",))
    return made


def main(argv: list[str], trainable: type[DivideAndConquer] | None = None) -> int:
    """Check everything, search, score, and say what was found.

    Args:
        argv: the command line.
        trainable: a subclass of DivideAndConquer to be searched instead.
    """
    arguments, given = parser().parse_args(argv), parser().given(argv)
    if arguments.resume == "":
        return _list(output_directory(arguments.output_dir))
    with stopped_by_signals():
        try:
            if arguments.repeat_trial is not None:
                return _repeat(arguments)
            plan = _checked(arguments, given)
            print(plan.head(), flush=True)
            return EXIT_OK if arguments.dry_run else _Search(plan, trainable).run()
        except SearchStopped as stop:  # before anything had begun
            signal_handled()
            print(f"stopped ({stop})", file=sys.stderr)
            return EXIT_INCOMPLETE


def _repeat(arguments: Any) -> int:
    from dcml_tune.search.repeat import repeat

    output, name = output_directory(arguments.output_dir), arguments.repeat_trial.rstrip("/")
    search, _, key = name.rpartition("/")
    if search:  # else MLflow's id of a run
        directory = named_directory("--repeat-trial", search.removesuffix(f"/{TRIALS}"), output)
        output, name = directory.parent, f"{directory.name}/{key}"
    uri = tracking_uri(arguments.tracking_uri, output)
    moved_to = getattr(arguments, "dataset_dir", None)
    return repeat(name, uri=uri, stores=output / STORES, dataset_dir=moved_to)


def _checked(arguments: Any, given: dict[str, Any]) -> Plan:
    if arguments.resume is not None and arguments.extend is not None:
        raise SettingError("--resume and --extend: only one of them can be; --extend goes on with the search, too")
    if arguments.resume is not None or arguments.extend is not None:
        return resumed_plan(arguments, given)
    if arguments.dataset is None:
        raise SettingError("DATASET is not given: say which, such as emoji or folder, or --resume NAME")
    return given_plan(arguments, given)


def _list(output: Path) -> int:
    """Say which searches can be resumed."""
    records, damaged = all_records(output)
    for line in damaged:
        print(printable(redact(line)))
    open_ones = [record for record in records if record.state.status != "finished"]
    for record in open_ones:
        try:
            _say_open(record)
        except Exception as error:  # what is wrong with one says nothing of the others
            print(printable(redact(f"{record.name}: cannot be looked at ({type(error).__name__}: {error})")))
    if not open_ones:
        print(f"no search in {output} can be resumed; {len(records)} are finished")
    return EXIT_OK


def _say_open(record: Record) -> None:
    """Say how far a search is that has not finished, and how to go on with it."""
    state = record.state
    status = "running" if record.is_running() else "interrupted" if state.status == "running" else state.status
    if status == "interrupted":
        _end_dead(record)
    best = "" if state.best is None else f", best {100 * state.best:.1f} %"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.changed))
    why = f" ({state.reason})" if state.reason else ""
    ended = f"{state.ended} of {state.planned} trials ended"
    print(printable(redact(f"{record.name}: {status}{why}, {ended}{best}, last seen {when}")))
    if status != "running":
        print("  " + printable(_resume(record)))


def _resume(record: Record) -> str:
    words = ["--resume", record.name, "--output-dir", str(record.directory.parent)]
    return command("dcml_tune.search", *words)


def _end_dead(record: Record) -> None:
    """A search whose process is gone: what it left running in MLflow is ended, until it is resumed."""
    from dcml_tune.tracking import end_dead

    try:
        record.hold()
    except SettingError:
        return
    try:
        if record.state.status == "running":
            end_dead(record.directory / SPOOL, reason="the process of the search is gone")
            record.update(status="interrupted", reason="its process is gone")
    except Exception as error:  # what is wrong with its files must end no other search
        log.warning("%s", printable(f"search {record.name}: its runs cannot be ended in MLflow ({error})"))
    finally:
        record.release()


class _Search:
    """Runs a plan: search, final scoring, the last words."""

    def __init__(self, plan: Plan, trainable: type[DivideAndConquer] | None) -> None:
        from trainables import DivideAndConquer

        self.plan, self.trainable = plan, trainable or DivideAndConquer
        self.progress: Progress | None = None
        self.stages = 0
        self.started: float | None = None
        self.before = 0.0
        self.cut: str | None = None
        self.missing: list[str] = []
        self.pareto_front: list[tuple[str, list[float]]] = []

    def run(self) -> int:
        """Run it; returns the exit status."""
        from dcml_tune.tracking import Tracker, environment_tags
        from dcml_tune.tracking.checking import check_store

        plan = self.plan
        for record in all_records(plan.output)[0]:
            if record.state.status == "running" and record.name != plan.name:
                _end_dead(record)
        if plan.store_is_up:
            check_store(plan.uri, make=True)
        dashboard = plan.connect()
        if dashboard:
            print(f"  Ray dashboard: http://{dashboard} (log in with the output of: ray get-auth-token)", flush=True)
        self.record = plan.begin()
        self.before = self.record.state.elapsed_s
        self.tracker = Tracker.open(plan.output, plan.name, uri=plan.uri)
        self.tags = environment_tags(plan.identity.compared, ["python", "-m", "dcml_tune.search", *sys.argv[1:]])
        self.tags |= {"dcml.protocol": plan.base.protocol, **plan.shares.tags()}
        self.tracker.start(plan.name, name=plan.name, role="search", params={"dataset": plan.dataset}, tags=self.tags)
        try:
            return self._stages()
        except SearchStopped as stop:
            return self._interrupted(str(stop))
        except BaseException as error:
            self._interrupted(tracebacks.one_line(error))
            raise

    def _stages(self) -> int:
        """Run the stages, and write down how they ended before Ray is let go of."""
        from trainables.cluster import disconnect

        plan = self.plan
        try:
            searcher = plan.searcher()
            self._search(searcher)
            self.pareto_front = searcher.pareto_front() if len(plan.metrics) > 1 else []
            for key, _ in self.pareto_front:
                self.tracker.tags(f"{plan.name}/{key}", {"dcml.pareto": "no trial beats it in all metrics"})
            if plan.units or plan.scores_test:
                self._write_report()  # to be read while the rest runs
            trials = searcher.known()
            raced = self._confirm(plan.candidates(trials)) if best_trial(trials) is not None else None
            if plan.units and plan.scores_test:
                self._write_report()
            final = self._final(raced) if raced is not None and plan.scores_test else {}
            return self._end(trials, raced, final)
        finally:
            with signals_wait():
                disconnect()

    def _end(self, trials: list[KnownTrial], raced: Confirmation | None, final: Final) -> int:
        """Record and say how it ended; returns the exit status."""
        plan = self.plan
        failed = [trial.key for trial in trials if trial.state == "failed"]
        ended = sum(trial.has_ended for trial in trials)
        missing = [*([] if self.cut or ended == plan.planned else [f"{plan.planned - ended} trials"]), *self.missing]
        whole = raced is not None and not failed and not missing
        reason = (
            self.cut if whole else f"failed: {', '.join(failed) or 'none'}; missing: {', '.join(missing) or 'none'}"
        )
        found = self._decide(raced, final) if raced is not None else None
        self.tracker.end(plan.name, "FINISHED" if raced is not None else "FAILED", reason=reason)
        self.record.update(status="finished" if whole or not missing else "partial", reason=reason)
        self.tracker.wait(_DELIVER_S["end"])
        page = self._write_report(pictures=True)
        if page is not None:
            self.tracker.artifact(plan.name, page.parent, "report")
        left = self.tracker.close(_DELIVER_S["end"])
        self._say_end(trials, raced, final, found)
        if page is not None:
            print(f"open the report: {page.as_uri()}")
        self._say_left(left)
        return EXIT_OK if whole else EXIT_INCOMPLETE

    def _decide(self, raced: Confirmation, final: Final) -> dict[str, Any]:
        """The verdict: on disk, in MLflow."""
        from dcml_tune.runs.ledger import NAME
        from dcml_tune.search.verdict import TEST, verdict

        plan, state = self.plan, self.record.state
        runs = {name: each for name, each in final.items() if name != UNTRAINED}
        measure = f"test/{plan.metric.rpartition('/')[2]}"
        before = next((each.get(measure) for each in final.get(UNTRAINED, {}).values()), None)
        key = "000" if raced.winner.name == PUBLISHED else raced.winner.name
        found = verdict(raced, key, runs, {"validation": state.untrained, "test": before})
        write_checksummed(plan.directory / VERDICT, found)
        self.tracker.tags(plan.name, {"dcml.verdict": "\n".join(found["lines"]), "dcml.winner": key})
        values = {
            f"verdict/{'test' if each['on'] == TEST else 'held_out'}/{each['control'].replace(' ', '_')}": each[
                "difference"
            ]
            for each in found["comparisons"]
        }
        self.tracker.metrics(plan.name, sum(result["epoch"] for result in raced.results.values()), values)
        self.tracker.artifact(plan.name, plan.directory / VERDICT)
        if (plan.output / NAME).exists():
            self.tracker.artifact(plan.name, plan.output / NAME)
        return found

    def _search(self, searcher: OptunaSearcher) -> None:
        plan, known = self.plan, searcher.known()
        left = plan.planned - sum(trial.has_ended for trial in known)
        progress = self._progress(
            "trials", plan.planned, known=known, on_failure=searcher.set_failure_reason, why_over=plan.why_over
        )
        plan.begin_stage(self.record, searches=True)
        if left > 0 and plan.out_of_time() is None:
            self._fit(
                progress,
                then=lambda: self._cut_short(searcher, progress),
                search_alg=searcher,
                scheduler=plan.scheduler(known),
                num_samples=left,
                why_over=lambda: plan.why_over(progress.epochs),
            )
        else:
            self._cut_short(searcher, progress)
            progress.close()
        self._note_progress(progress)

    def _cut_short(self, searcher: OptunaSearcher, progress: Progress) -> None:
        """Trials that the end of a budget left open end with what they had, if they had anything."""
        self.cut = self.plan.why_over(progress.epochs)
        if self.cut:
            searcher.cut_short(self.cut)
            progress.settle([trial for trial in searcher.known() if trial.reason == self.cut], self.plan.trials)
            progress.interrupt(self.cut)  # those that had no epoch yet
        elif searcher.patience_exhausted():
            self.cut = f"{self.plan.arguments.patience} trials in a row brought nothing"

    def _progress(self, stage: str, planned: int, **more: Any) -> Progress:
        from trainables.tracking_callback import Progress

        plan = self.plan
        self.guard = plan.guard()
        self.started = time.time()
        if stage == "trials":
            more |= {"trials": plan.trials, "untrained": self.record.state.untrained, "on_report": self._note_progress}
        return Progress(
            self.tracker,
            search=plan.name,
            metric=plan.metric,
            varied=list(plan.space.domains),
            tags=self.tags,
            planned=planned,
            guard=self.guard,
            quiet=plan.arguments.quiet,
            keep_models=plan.keep_models,
            **more,
        )

    def _note_progress(self, progress: Progress) -> None:
        """Write down how far the search is."""
        self.record.update(
            elapsed_s=self._elapsed(),
            ended=progress.ended,
            planned=self.plan.planned,
            best=progress.best,
            untrained=progress.untrained,
        )

    def _elapsed(self) -> float:
        """Seconds that trials were running, in this process and earlier ones."""
        return self.before + (0.0 if self.started is None else time.time() - self.started)

    def _fit(self, progress: Progress, *, then: Callable[[], None] = lambda: None, **tuning: Any) -> None:
        from trainables.tuner import run_trials

        plan, self.progress = self.plan, progress
        self.stages += 1
        name = f"process-{self.record.state.processes:02d}-{self.stages}"
        try:
            run_trials(
                self.trainable,
                shares=plan.shares,
                directory=plan.directory / "ray" / name,
                callbacks=[self.guard, progress],
                **tuning,
            )
            then()
        finally:
            progress.close()
            self.before, self.started = self._elapsed(), None
            with suppress(OSError):  # a full disk
                self.record.update(elapsed_s=self.before)

    def _confirm(self, found: list[Candidate]) -> Confirmation:
        """Compare the best settings and the controls once more; without, the search alone says which is the best."""
        plan = self.plan
        plan.begin_stage(self.record, searches=False)
        if plan.units:
            print(f"\n{len(found)} settings are compared on further held-out classes: {', '.join(c.name for c in found)}",
                  flush=True)  # fmt: skip

        def results(runs: list[tuple[Candidate, FoldSeed]]) -> dict[tuple[str, FoldSeed], dict[str, Any]]:
            wanted = [plan.confirm_run(*run) for run in runs]
            known = self._run_missing("confirmation", wanted, why_over=plan.out_of_time)
            pairs = zip(runs, wanted, strict=True)
            return {(c.name, unit): known[run["run"]["key"]] for (c, unit), run in pairs if run["run"]["key"] in known}

        raced = race(
            found, plan.units, metric=plan.metric, results=results, is_over=lambda: plan.out_of_time() is not None
        )
        self.cut = self.cut or (plan.out_of_time() if plan.units else None)
        return raced

    def _final(self, raced: Confirmation) -> Final:
        """Train winner and controls on all training classes; score them and the untrained network, each run once."""
        from trainables.run import Role

        plan, winner = self.plan, raced.winner
        runs: dict[tuple[str, int], dict[str, Any]] = {(UNTRAINED, 0): plan.final_run(winner, UNTRAINED, 0, None)}
        for candidate in raced.candidates:
            if candidate.name != winner.name and candidate.name not in CONTROLS:
                continue
            role = cast("Role", "final" if candidate.name == winner.name else candidate.name)
            for number in range(plan.arguments.final_seeds):
                runs[candidate.name, number] = plan.final_run(candidate, role, number, raced.epochs(candidate))
        print("\nthe winner and its controls are trained on all training classes, and the test classes scored once by each",
              flush=True)  # fmt: skip
        known = self._run_missing("final", list(runs.values()))
        found: Final = {}
        for (name, _), run in runs.items():
            if run["run"]["key"] in known:
                found.setdefault(name, {})[f"seed {run['seed']}"] = known[run["run"]["key"]]
        return found

    def _run_missing(
        self, stage: str, runs: list[dict[str, Any]], why_over: Callable[[], str | None] = lambda: None
    ) -> dict[str, dict[str, Any]]:
        """Run what has not come to its end yet, also in an earlier process; returns what all measured, by their keys."""
        from ray import tune

        plan, known = self.plan, self.plan.results(runs)
        missing = [run for run in runs if run["run"]["key"] not in known]
        if missing and why_over() is None:
            progress = self._progress(stage, len(missing))
            grid = {"whole": tune.grid_search(missing)}
            self._fit(progress, param_space=grid, num_samples=1, why_over=why_over)
            known = plan.results(runs)
            if reason := why_over():
                progress.interrupt(reason)
        if why_over() is None:
            self.missing += [run["run"]["key"] for run in runs if run["run"]["key"] not in known]
        return known

    def _write_report(self, *, pictures: bool = False) -> Path | None:
        """Write the page about the search; where that fails, the search goes on."""
        from dcml_tune.report import write_report

        try:
            return write_report(self.plan.directory, uri=self.plan.uri, pictures=pictures)
        except Exception as error:
            if isinstance(error, SettingError):
                log.warning("the report could not be written: %s", error)
            else:
                tracebacks.warn(log, "the report could not be written", error)
            return None

    def _interrupted(self, reason: str) -> int:
        """End in good order: nothing is lost, nothing stays RUNNING."""
        from trainables.cluster import disconnect

        signal_handled()
        disconnect()
        reason = redact(reason)
        if self.progress is not None:
            self.progress.interrupt(reason)
        # Where it cannot be, because of a full disk or a study that is locked, the next process does it first of all.
        with impatient(), suppress(Exception, SearchStopped):
            self.plan.requeue_running()
        signal_handled()
        self.tracker.end(self.plan.name, "INTERRUPTED", reason=reason)
        left = self.tracker.close(_DELIVER_S["interrupted"])
        with suppress(OSError):  # a full disk: a status of running with a free lock says the same
            self.record.update(status="interrupted", reason=reason, elapsed_s=self._elapsed())
        print(f"\ninterrupted: {reason}\nnothing is lost; go on with:\n  {_resume(self.record)}", file=sys.stderr)
        self._say_left(left)
        return EXIT_INCOMPLETE

    def _say_left(self, left: int) -> None:
        if left:
            words = ["flush", self.plan.name, "--output-dir", str(self.plan.output)]
            print(f"{left} records for MLflow wait; deliver them with:\n  {command('dcml_tune.tracking', *words)}")

    def _say_end(
        self, trials: list[KnownTrial], raced: Confirmation | None, final: Final, found: dict[str, Any] | None
    ) -> None:
        for trial in trials:
            if trial.state == "failed":
                print(f"trial {trial.key} failed: {trial.reason}")
        best = best_trial(trials)
        if raced is None or best is None or found is None:
            print("\nno trial came to an end; the reasons stand above")
            return
        self._say_search(trials, best)
        print("verdict:")
        for line in found["lines"]:
            print(f"  {line}")
        for name, runs in final.items():
            role = "final" if name == raced.winner.name else name
            print(f"  test, {role:11s}: {_test_line(list(runs.values()))}")
        for line in _published(self.plan):
            print(f"  {line}")
        self._say_commands(trials, raced.winner)

    def _say_search(self, trials: list[KnownTrial], best: KnownTrial) -> None:
        plan, states = self.plan, [trial.state for trial in trials]
        full = sum(TrialConfig(**trial.config).nb_epochs for trial in trials)
        run = sum(max(trial.curve, default=0) for trial in trials)
        print(f"\nbest of {len(trials)} trials ({states.count('pruned')} pruned, {states.count('failed')} failed; "
              f"{run} of {full} epochs run{f'; ended early: {self.cut}' if self.cut else ''}): {best.key}")  # fmt: skip
        print("  " + ", ".join(f"{name}={brief(best.config[name])}" for name in plan.space.domains))
        print(f"  {plan.metric} {100 * (best.best or 0):.1f} % after epoch {best.best_epoch} ({plan.compared_on()})")
        if self.pareto_front:
            print("beaten by no other trial in all metrics (the first one decides what is confirmed):")
        for key, values in self.pareto_front:
            print(f"  trial {key}: " + ", ".join(map(_shown, plan.metrics, values)))

    def _say_commands(self, trials: list[KnownTrial], winner: Candidate) -> None:
        from dcml_tune.tracking import compare_url, ui_command

        plan = self.plan
        settings = {name: value for name, value in winner.config.items() if name != "dataset"}
        # The defaults of train are the original's.
        whole = TrialConfig(**winner.config).model_dump()
        settings |= {name: whole[name] for name in reference_flags.DEFAULTS if name != "dataset"}
        print("\ntrain it again:\n  " + command("dcml_tune.train", plan.dataset, *settings_to_flags(settings)))
        print("open MLflow:\n  " + ui_command(plan.uri))
        runs = [run for run in (self.tracker.run_id(f"{plan.name}/{trial.key}") for trial in trials) if run]
        if self.tracker.experiment_id and runs:
            print("  compare the trials: " + compare_url(plan.uri, self.tracker.experiment_id, runs))
        print(f"open the Optuna dashboard:\n  {dashboard_command(plan.study)}")


def _shown(metric: str, value: float) -> str:
    return f"{metric} {100 * value:.1f} %" if direction(metric) == "maximize" else f"{metric} {value:.1f} s"


def _test_line(runs: list[dict[str, Any]]) -> str:
    """Mean, and standard deviation where there are several seeds, in percent."""
    parts = []
    for name, measure in (("recall@1", "test/recall_at_1"), ("MAP@R", "test/map_at_r")):
        values = [100 * run[measure] for run in runs]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        parts.append(f"{name} {mean(values):.1f}{spread} %")
    return ", ".join(parts) + (f" ({len(runs)} seeds)" if len(runs) > 1 else "")


def _published(plan: Plan) -> list[str]:
    """Published results on the same test classes, beside ours; none for a partial copy."""
    from dcml_tune.data.datasets.official_counts import COUNTS, differences
    from search_spaces.published import RESULTS

    dataset = plan.data.dataset
    whole = dataset.name in COUNTS and not differences(dataset)
    lines = [f"published, {each.variant} masks: recall@1 {each.value:.1f} % ({each.source}; the best epoch by the test classes)"
             for each in RESULTS.get(dataset.name, []) if each.metric == "recall_at_1" and whole]  # fmt: skip
    return lines


def best_trial(trials: list[KnownTrial]) -> KnownTrial | None:
    """The trial with the best value; of equal ones the first."""
    return first_best((trial for trial in trials if trial.has_ended), lambda trial: trial.best)


if __name__ == "__main__":
    run_command(main)
