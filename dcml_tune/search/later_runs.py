"""Numbers of runs after the trials of a search: of the confirmation, the ablation, and final scoring."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcml_tune.search.confirmation import FOLDS, wanted_controls
from dcml_tune.search.halving import Round, rounds

if TYPE_CHECKING:
    from dcml_tune.config.search import SearchConfig
    from dcml_tune.search.request import Request


def runs_per_later_stage(request: Request) -> tuple[int, int, int]:
    """Number of concurrent runs of a round of the confirmation, of the ablation, and of final scoring."""
    flags = request.config
    confirm = max((each.settings * len(each.units) for each in _rounds(flags)), default=0)
    ablate = flags.ablate * _ablation_units(flags)
    final = 1 + final_runs(request) if flags.final == "best" else 0
    return confirm + len(wanted_controls(flags)), ablate, final


def _rounds(flags: SearchConfig) -> list[Round]:
    """The rounds of the confirmation; images may have fewer folds."""
    return rounds(flags.confirm, (flags.folds or FOLDS) * flags.seeds)


def _ablation_units(flags: SearchConfig) -> int:
    """Number of units on which settings are put back, all of them at once; data may have fewer folds."""
    return (flags.folds or FOLDS) * flags.seeds if flags.confirm else 1


def units_at_once(flags: SearchConfig) -> int:
    """Largest number of units that run together, in a round of the confirmation or in the ablation."""
    return max([2, *(len(each.units) for each in _rounds(flags)), _ablation_units(flags) if flags.ablate else 0])


def final_runs(request: Request) -> int:
    """Number of runs of the final stage, besides that of the untrained network."""
    seeds = request.config.final_seeds + request.later_seeds.count
    return (1 + len(wanted_controls(request.config))) * seeds
