"""The final stage: winner and controls are trained on all training classes, and score the test classes once for each run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from dcml_tune.runs.hits import HITS_FILE, QueryHits
from dcml_tune.search.confirmation import CONTROLS
from dcml_tune.search.outcome import UNTRAINED, Final, Hits
from dcml_tune.utils.files import CorruptFileError
from trainables.run import run_of

if TYPE_CHECKING:
    from dcml_tune.search.confirmation import Candidate, Confirmation
    from dcml_tune.search.plan import Plan
    from trainables.run import Role

log = logging.getLogger(__name__)

AGAIN = "a further seed of settings whose verdict was known"
"""Note in the ledger of the test classes for a final run that --more-final-seeds added."""

Runs = dict[tuple[str, int], dict[str, Any]]
"""(candidate, number of the seed from 0) -> dictionary of the run."""


def final_runs(plan: Plan, confirmation: Confirmation) -> Runs:
    """Return the runs of the final stage: the untrained network, and the winner and each control with each seed."""
    winner = confirmation.winner
    runs: Runs = {(UNTRAINED, 0): plan.runs.final_run(winner, UNTRAINED, 0, None)}
    for candidate in confirmation.candidates:
        if candidate.name == winner.name or candidate.name in CONTROLS:
            role = cast("Role", "final" if candidate.name == winner.name else candidate.name)
            runs |= _seeds(plan, candidate, role, confirmation.epochs(candidate))
    return runs


def _seeds(plan: Plan, candidate: Candidate, role: Role, epochs: int | None) -> Runs:
    """The runs of one setting. Where some are there, the others train for as many epochs, so that all are comparable."""
    numbers = range(plan.final_seeds)
    there = plan.runs.results([plan.runs.final_run(candidate, role, number, None) for number in numbers])
    until = next((int(result["epoch"]) for result in there.values()), epochs)
    return {
        (candidate.name, number): plan.runs.final_run(
            candidate, role, number, until, note=AGAIN if number >= plan.config.final_seeds else ""
        )
        for number in numbers
    }


def by_seed(runs: Runs, known: dict[str, dict[str, Any]]) -> Final:
    """Return the results of runs by candidate and seed.

    Args:
        runs: of the final stage.
        known: key -> what the run measured.
    """
    final: Final = {}
    for (name, _), run in runs.items():
        if run_of(run).key in known:
            final.setdefault(name, {})[_label(run)] = known[run_of(run).key]
    return final


def hits_by_seed(plan: Plan, runs: Runs) -> Hits:
    """Return what the queries of runs found, by candidate and seed. A file that is damaged is logged and left out."""
    found: Hits = {}
    for (name, _), run in runs.items():
        try:
            hits = QueryHits.read(plan.runs.directory / run_of(run).key / HITS_FILE)
        except CorruptFileError as error:
            log.warning("%s; the verdict does without it", error)
            continue
        if hits is not None:
            found.setdefault(name, {})[_label(run)] = hits
    return found


def _label(run: dict[str, Any]) -> str:
    return f"seed {run['seed']}"
