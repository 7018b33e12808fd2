"""What would decide a verdict that is undecided: more final seeds, their runs and time, and the command."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dcml_tune.cli.parser import command
from dcml_tune.runs.hits import QueryHits
from dcml_tune.search.answers import DIFFERENCE, level_at, seeds_for_equivalence, seeds_needed
from dcml_tune.search.intervals import Noise
from dcml_tune.search.statistics import Comparison

_FIRST_SEEDS = 5  # that are proposed where there is no interval yet


@dataclass(frozen=True, kw_only=True)
class FinalStage:
    """What the verdict takes into account of the final stage, besides the measures."""

    hits: Mapping[str, Mapping[str, QueryHits]] = field(default_factory=dict)
    """Candidate -> seed -> what the run retrieved; without it there is no interval for new classes."""
    looks: tuple[int, ...] = ()
    """Number of final seeds at each earlier verdict, the first one first; empty: nobody has seen a verdict."""
    metric: str = "recall_at_1"
    """Measure that compares the settings on test classes."""
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


@dataclass(frozen=True, kw_only=True)
class Needed:
    """Number of final seeds that decide a comparison."""

    seeds: int | None
    """None: more than a thousand."""
    difference: float | None
    """The true difference that is told from none; None: the seeds give an interval at all."""


def needed_seeds(noise: Noise | None, now: int, controls: int, final: FinalStage) -> Needed:
    """Return the number of final seeds that tell the smallest difference from none, both ways.

    If so many seeds are there already, the true difference is probably smaller; half of it is then asked for, and so on.

    Args:
        noise: of the winner and the control; None: there is no interval yet.
        now: number of seeds that both have.
        controls: number of controls, for which the level of a test may be divided (Holm).
        final: the smallest difference, and how often the results were looked at.
    """
    if noise is None:
        return Needed(seeds=max(_FIRST_SEEDS, now + 1), difference=None)
    difference, level = final.difference, level_at(len(final.looks) + 2) / controls
    while True:
        finds = seeds_needed(noise, difference=difference, level=level)
        excludes = seeds_for_equivalence(noise, difference=difference)
        if finds is None or excludes is None:
            return Needed(seeds=None, difference=difference)
        if max(finds, excludes) > now:
            return Needed(seeds=max(finds, excludes), difference=difference)
        difference /= 2


def decides(needed: list[Needed], compared: Comparison, final: FinalStage) -> dict[str, Any]:
    """Return what would decide all that is undecided: final seeds, runs, time and the command.

    Args:
        needed: for each comparison that is undecided, one or more.
        compared: winner and controls on the test classes.
        final: facts about the runs.
    """
    most = max(needed, key=lambda each: math.inf if each.seeds is None else each.seeds)
    found: dict[str, Any] = {"difference": most.difference, "seeds": most.seeds}
    if most.seeds is None:
        return {**found, "more": None, "runs": None, "seconds": None, "command": None}
    more = most.seeds - max(compared.blocks(name) for name in compared.values)
    runs = more * len(compared.values)
    words = ["--extend", final.name or "", "--more-final-seeds", str(more), "--output-dir", final.output]
    return {
        **found,
        "more": more,
        "runs": runs,
        "seconds": None if final.run_s is None else final.run_s * math.ceil(runs / max(1, final.at_once)),
        "command": command("dcml_tune.search", *words) if final.name else None,
    }
