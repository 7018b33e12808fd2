"""What would decide a verdict that is undecided: more final seeds, their runs and time, and the command."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dcml_tune.cli.parser import command
from dcml_tune.runs.hits import QueryHits
from dcml_tune.search.answers import DIFFERENCE, level_at, seeds_for_equivalence, seeds_needed
from dcml_tune.search.statistics import Comparison

_FIRST_SEEDS = 5  # that are proposed where there is no interval yet


@dataclass(frozen=True, kw_only=True)
class FinalStage:
    """What the verdict takes into account of the final stage, besides the measures."""

    hits: Mapping[str, Mapping[str, QueryHits]] = field(default_factory=dict)
    """Candidate -> seed -> what the run retrieved; without it there is no interval for new classes."""
    looks: tuple[int, ...] = ()
    """Number of final seeds at each earlier verdict, the first one first; empty: nobody has seen a verdict."""
    difference: float = DIFFERENCE
    """The smallest difference that matters."""
    run_s: float | None = None
    """Seconds that one final run takes; None: not known."""
    at_once: int = 1
    """Number of final runs that run at the same time."""
    name: str | None = None
    """Of the search, for the command that adds seeds."""
    output: str = "runs"
    """The output directory, for the same command."""


def seeds_that_decide(compared: Comparison, final: FinalStage) -> tuple[int | None, float]:
    """Return the number of final seeds that tell the smallest difference from none, both ways; and that difference.

    If so many seeds are there already, the true difference is probably smaller; half of it is then asked for, and so on.
    """
    now, difference = max((compared.blocks(name) for name in compared.values), default=0), final.difference
    if compared.noise is None or now < 2:
        return None, difference
    level = level_at(len(final.looks) + 2) / max(1, len(compared.values) - 1)
    while True:
        finds = seeds_needed(compared.noise, difference=difference, level=level)
        excludes = seeds_for_equivalence(compared.noise, difference=difference)
        if finds is None or excludes is None:
            return None, difference
        if max(finds, excludes) > now:
            return max(finds, excludes), difference
        difference /= 2


def decides(compared: Comparison, final: FinalStage) -> dict[str, Any]:
    """Return what would decide what is undecided: final seeds, runs, time and the command.

    `difference` is None where the seeds give an interval at all; `seeds` is None where no number of them decides.
    """
    now = max(compared.blocks(name) for name in compared.values)
    needed: int | None
    difference: float | None
    if compared.noise is None:
        needed, difference = max(_FIRST_SEEDS, now + 1), None
    else:
        needed, difference = seeds_that_decide(compared, final)
    if needed is None:
        return {"difference": difference, "seeds": None, "more": None, "runs": None, "seconds": None, "command": None}
    more = needed - now
    runs = more * len(compared.values)
    words = ["--extend", final.name or "", "--more-final-seeds", str(more), "--output-dir", final.output]
    seconds = None if final.run_s is None else final.run_s * math.ceil(runs / max(1, final.at_once))
    return {
        "difference": difference,
        "seeds": needed,
        "more": more,
        "runs": runs,
        "seconds": seconds,
        "command": command("dcml_tune.search", *words) if final.name else None,
    }
