"""What a search prints: its plan, its outcome, and the commands for the next steps."""

from __future__ import annotations

import sys
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from dcml_tune.cli import reference_flags
from dcml_tune.cli.parser import command, dashboard_command, settings_to_flags
from dcml_tune.cli.quantities import brief
from dcml_tune.config.trial import PAPER_LABEL, TrialConfig
from dcml_tune.config.unused import unused_settings
from dcml_tune.data.datasets.official_counts import COUNTS, differences
from dcml_tune.runs.study import direction
from dcml_tune.search.outcome import Final, Outcome, best_trial
from dcml_tune.search.resumable import resume_command
from dcml_tune.search.verdict import test_measure
from dcml_tune.tracking import compare_url, ui_command
from dcml_tune.utils.files import free_bytes, readable_size
from dcml_tune.utils.stored import printable, printable_lines
from search_spaces.published import RESULTS

if TYPE_CHECKING:
    from dcml_tune.runs.record import Record
    from dcml_tune.search.confirmation import Candidate
    from dcml_tune.search.plan import Plan
    from dcml_tune.tracking import Tracker
    from trainables.known_trial import KnownTrial


def plan_text(plan: Plan) -> str:
    """Return the lines that are printed before a search runs."""
    d = plan.data
    held_out = 0 if d.validation is None else len(np.unique(d.labels[d.validation]))
    trained = len(np.unique(d.labels[d.train]))
    point = TrialConfig(**{**plan.space.whole(plan.published_point), "dataset": plan.dataset})
    lines = [
        f"search {plan.name}: {d.dataset.counts()}",
        *d.dataset.notes,
        *d.notes(plan.base),
        *plan.test_lines,
        f"  {held_out} training classes are held out to compare trials, {trained} train; test classes stay sealed"
        if plan.base.protocol == "held_out"
        else f"  {PAPER_LABEL}; {trained} classes train",
        f"  {plan.planned} trials by {plan.config.searcher} and {plan.config.scheduler}, "
        f"{plan.shares.concurrent} at once ({plan.shares.why})",
        *([f"  {plan.measured}"] if plan.measured is not None else []),
        *_later_stages(plan),
        *(f"  {name}: {domain}  ({why})" for name, domain, why in plan.space.describe()),
        *(f"  {line}" for line in plan.lines),
        *(f"  {line}" for line in [*unused_settings(point, plan.settings), *plan.space.unused_settings()]),
        f"  disk: checkpoints take up to {readable_size(plan.checkpoints.most_bytes())}, "
        f"{readable_size(free_bytes(plan.output))} are free in {plan.output}",
        f"  image stores: {readable_size(plan.store_bytes)} in {plan.request.stores.directory}"
        + (" on each node" if plan.cluster is not None and plan.config.scratch else ""),
    ]
    if plan.record is not None:
        state = plan.record.state
        lines.append(f"  resumed: {state.ended} trials have ended, after {state.elapsed_s / 60:.1f} min")
    return printable_lines("\n".join(lines))


def _later_stages(plan: Plan) -> list[str]:
    """Lines about the confirmation, the ablation and final scoring."""
    lines = []
    if plan.units:
        folds = len({unit.fold for unit in plan.units})
        lines.append(
            f"  the best {plan.config.confirm} are then compared on {folds} further folds of classes, {len(plan.units)} seeds "
            f"in all, the better half of them to the end; controls: {', '.join(plan.controls)}"
        )
    if plan.ablates:
        runs = plan.ablates * max(1, len(plan.units))
        lines.append(
            f"  up to {plan.ablates} settings of the winner are put back to published, one at a time, on held-out classes: "
            f"up to {runs} runs"
        )
    if plan.scores_test:
        lines.append(
            f"  winner and controls are trained on all training classes with {plan.final_seeds} seeds, and the "
            "test classes scored once by each"
        )
    if plan.adds_seeds:
        lines = [
            f"  {plan.later.winner} and its controls get {plan.final_seeds - plan.later.looks[-1]} further final seeds, "
            f"{plan.final_seeds} in all; nothing else runs"
        ]
    return lines


def print_outcome(plan: Plan, outcome: Outcome, verdict: dict[str, Any] | None, tracker: Tracker) -> None:
    """Print failed trials, the best trial, the verdict, the test scores and commands.

    Args:
        plan: of the search.
        outcome: of the search.
        verdict: as `search.verdict` returns it; None if no trial has a value.
        tracker: knows the MLflow runs of the trials.
    """
    for trial in outcome.trials:
        if trial.state == "failed":
            print(printable(f"trial {trial.key} failed: {trial.reason}"))
    best = best_trial(outcome.trials)
    if outcome.confirmation is None or best is None or verdict is None:
        print("\nno trial completed; the reasons are listed above")
        return
    winner = outcome.confirmation.winner
    _print_best(plan, outcome, best)
    print("verdict:")
    for line in [*verdict["lines"], *_test_lines(outcome.final, winner.name), *_published_lines(plan)]:
        print(printable(f"  {line}"))
    _print_commands(plan, outcome, winner, tracker)


def print_interruption(record: Record, reason: str) -> None:
    """Print to standard error why a search was interrupted, and the command that resumes it."""
    print(f"\ninterrupted: {printable(reason)}\nno result is lost; resume the search with:\n  {resume_command(record)}",
          file=sys.stderr)  # fmt: skip


def print_undelivered(plan: Plan, count: int) -> None:
    """Print the command that delivers the records that MLflow has not received, if there are any."""
    if count:
        words = ["flush", plan.name, "--output-dir", str(plan.output)]
        print(f"{count} records for MLflow wait; deliver them with:\n  {command('dcml_tune.tracking', *words)}")


def _print_best(plan: Plan, outcome: Outcome, best: KnownTrial) -> None:
    """Print what was run, and the settings and values of the best trial and of the Pareto-optimal trials."""
    trials = outcome.trials
    states = [trial.state for trial in trials]
    full = sum(TrialConfig(**trial.config).nb_epochs for trial in trials)
    shared = sum(trial.shared for trial in trials)
    run = sum(max(trial.curve, default=0) for trial in trials) - shared
    taken = f", {shared} shared" if shared else ""
    early = f"; ended early: {outcome.ended_early}" if outcome.ended_early else ""
    print(f"\nbest of {len(trials)} trials ({states.count('pruned')} pruned, {states.count('failed')} failed; "
          f"{run} of {full} epochs run{taken}{early}): {best.key}")  # fmt: skip
    varied = plan.space.active(best.config)
    print(printable("  " + ", ".join(f"{name}={brief(best.config[name])}" for name in varied)))
    print(f"  {plan.metric} {100 * (best.best or 0):.1f} % after epoch {best.best_epoch} ({plan.compared_on()})")
    if outcome.pareto_front:
        print("Pareto-optimal trials (the first metric decides which are confirmed):")
    for key, values in outcome.pareto_front:
        print(f"  trial {key}: " + ", ".join(map(_metric_text, plan.metrics, values)))


def _metric_text(metric: str, value: float) -> str:
    return f"{metric} {100 * value:.1f} %" if direction(metric) == "maximize" else f"{metric} {value:.1f} s"


def _test_lines(final: Final, winner: str) -> list[str]:
    """Scores of each setting on the test classes."""
    roles = {name: "final" if name == winner else name for name in final}
    return [f"test, {roles[name]:11s}: {_test_scores(list(runs.values()))}" for name, runs in final.items()]


def _test_scores(runs: list[dict[str, Any]]) -> str:
    """Mean of the runs in percent, with the standard deviation where there are several seeds."""
    parts = []
    for name, metric in (("recall@1", "test/recall_at_1"), ("MAP@R", "test/map_at_r")):
        measure = test_measure(metric, {"": {str(seed): run for seed, run in enumerate(runs)}})
        values = [100 * run[measure] for run in runs]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        parts.append(f"{name} {mean(values):.1f}{spread} %")
    return ", ".join(parts) + (f" ({len(runs)} seeds)" if len(runs) > 1 else "")


def _published_lines(plan: Plan) -> list[str]:
    """Published recall@1 on the same test classes; empty if the data set is not an official copy."""
    dataset = plan.data.dataset
    if dataset.name not in COUNTS or differences(dataset):
        return []
    return [
        f"published, {each.variant} masks: recall@1 {each.value:.1f} % ({each.source}; the best epoch by the test classes)"
        for each in RESULTS.get(dataset.name, [])
        if each.metric == "recall_at_1"
    ]


def _print_commands(plan: Plan, outcome: Outcome, winner: Candidate, tracker: Tracker) -> None:
    """Print commands that train the winner again and open MLflow and Optuna's dashboard."""
    config = TrialConfig(**winner.config).model_dump()
    settings = {name: value for name, value in winner.config.items() if name != "dataset"}
    # The defaults of `train` are those of the original, so each setting with such a default is written out.
    settings |= {name: config[name] for name in reference_flags.DEFAULTS if name != "dataset"}
    print("\ntrain it again:\n  " + command("dcml_tune.train", plan.dataset, *settings_to_flags(settings)))
    print("open MLflow:\n  " + ui_command(plan.uri))
    runs = [run for run in (tracker.run_id(f"{plan.name}/{trial.key}") for trial in outcome.trials) if run]
    if tracker.experiment_id and runs:
        print("  compare the trials: " + compare_url(plan.uri, tracker.experiment_id, runs))
    print(f"open the Optuna dashboard:\n  {dashboard_command(plan.study.shown)}")
