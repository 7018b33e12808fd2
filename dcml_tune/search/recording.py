"""Record the verdict of a search, and write its report."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dcml_tune.config.errors import SettingError
from dcml_tune.report import write_report
from dcml_tune.runs.paths import LEDGER, VERDICT
from dcml_tune.search.confirmation import PUBLISHED
from dcml_tune.search.deciding import FinalStage
from dcml_tune.search.outcome import UNTRAINED
from dcml_tune.search.verdict import test_measure, verdict
from dcml_tune.search.wording import TEST
from dcml_tune.utils import tracebacks
from dcml_tune.utils.files import write_checksummed

if TYPE_CHECKING:
    from dcml_tune.runs.record import Record
    from dcml_tune.search.outcome import Final, Hits, Outcome
    from dcml_tune.search.plan import Plan
    from dcml_tune.tracking import Tracker

log = logging.getLogger(__name__)


def record_verdict(plan: Plan, record: Record, tracker: Tracker, outcome: Outcome) -> dict[str, Any] | None:
    """Reach the verdict, and write it to disk and to MLflow.

    Args:
        plan: of the search.
        record: has the value of the untrained network on held-out classes.
        tracker: of the search.
        outcome: of the search.

    Returns:
        The verdict; None if no trial has a value.
    """
    confirmation = outcome.confirmation
    if confirmation is None:
        return None
    winner = confirmation.winner.name
    runs = {name: each for name, each in outcome.final.items() if name != UNTRAINED}
    untrained = untrained_value(plan.metric, outcome.final)
    key = "000" if winner == PUBLISHED else winner
    final = final_stage(plan, runs, outcome.hits)
    found = verdict(confirmation, key, runs, {"validation": record.state.untrained, "test": untrained}, final)
    measured = {_metric_name(each): each["difference"] for each in found["comparisons"]}
    if outcome.ablation is not None:
        ablation = outcome.ablation.facts()
        found = {**found, "lines": [*found["lines"], *ablation["lines"]], "ablation": ablation}
        settings = [each for each in ablation["settings"] if each["difference"] is not None]
        measured |= {f"verdict/ablation/{each['setting']}": each["difference"] for each in settings}
    write_checksummed(plan.directory / VERDICT, found)
    tracker.tags(plan.name, {"dcml.verdict": "\n".join(found["lines"]), "dcml.winner": key})
    epochs = sum(result["epoch"] for result in confirmation.results.values())
    tracker.metrics(plan.name, epochs, measured)
    tracker.artifact(plan.name, plan.directory / VERDICT)
    if (plan.output / LEDGER).exists():
        tracker.artifact(plan.name, plan.output / LEDGER)
    return found


def final_stage(plan: Plan, runs: Final, hits: Hits) -> FinalStage:
    """Return what the verdict takes into account of the final stage, besides its measures."""
    seconds = [each["epoch"] * each.get("time/epoch_s", math.nan) for some in runs.values() for each in some.values()]
    known = [each for each in seconds if math.isfinite(each)]
    return FinalStage(
        hits=hits,
        metric=str(plan.config.test_metric),
        looks=plan.later.looks,
        difference=plan.config.difference / 100,
        run_s=fmean(known) if known else None,
        at_once=max(1, plan.shares.concurrent),
        name=plan.name,
        output=str(plan.output),
    )


def untrained_value(metric: str, final: Final) -> float | None:
    """Return the value of the untrained network on the test classes, by the measure of the held-out classes.

    Args:
        metric: by which trials are compared.
        final: results of the final stage.
    """
    measure = test_measure(metric, final)
    return next((each.get(measure) for each in final.get(UNTRAINED, {}).values()), None)


def _metric_name(comparison: dict[str, Any]) -> str:
    """Name of a comparison in MLflow, such as verdict/test/no_division."""
    place = "test" if comparison["on"] == TEST else "held_out"
    return f"verdict/{place}/{comparison['control'].replace(' ', '_')}"


def try_to_write_report(plan: Plan, *, pictures: bool = False) -> Path | None:
    """Write the report of the search; an error is logged, and the search continues.

    Returns:
        The page; None after an error.
    """
    try:
        return write_report(plan.directory, uri=plan.uri, pictures=pictures)
    except Exception as error:
        if isinstance(error, SettingError):
            log.warning("the report could not be written: %s", error)
        else:
            tracebacks.warn(log, "the report could not be written", error)
        return None
