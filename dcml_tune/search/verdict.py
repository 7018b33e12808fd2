"""The verdict: whether the winner of a search is better than its controls, with confidence intervals."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dcml_tune.search.confirmation import CONTROLS, Confirmation
from dcml_tune.search.statistics import Comparison, Difference

HELD_OUT, TEST = "held-out classes", "test classes"

_Comparisons = dict[str, Comparison]
"""Held-out classes, test classes -> the settings that were measured there."""


def verdict(
    raced: Confirmation, key: str, test: dict[str, dict[str, dict[str, Any]]], untrained: dict[str, Any]
) -> dict[str, Any]:
    """Compare the winner with its controls on held-out and on test classes.

    Args:
        raced: the confirmation.
        key: of the winner's trial in the search, or the name of a control.
        test: candidate -> seed -> measures of the test classes; empty if they were not scored.
        untrained: `validation` and `test` of the untrained network, from 0 to 1 or None.

    Returns:
        `metric`, `test_metric`, `winner`, `lines`, `comparisons` and `gap`, as the report and MLflow show them.
    """
    on_test = test_measure(raced.metric, test)
    scored = {name: {seed: each[on_test] for seed, each in runs.items()} for name, runs in test.items()}
    measured = {HELD_OUT: Comparison(raced.values), TEST: Comparison(scored)}
    comparisons = _comparisons(raced.winner.name, measured)
    gap = _gap(raced, measured, untrained)
    return {
        "metric": raced.metric,
        "test_metric": on_test,
        "winner": key,
        "lines": [
            *_winner_lines(raced, measured[HELD_OUT]),
            *_dropped_lines(raced),
            *map(_comparison_line, comparisons),
            *_left_out_lines(raced.winner.name, measured),
            *_gap_lines(gap),
        ],
        "comparisons": comparisons,
        "gap": gap,
    }


def test_measure(metric: str, test: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the measure of the test classes that corresponds to the metric by which settings were compared."""
    name = metric.rpartition("/")[2]
    some = next((each for runs in test.values() for each in runs.values()), {})
    official = f"test/official_{name}"  # the protocol of VehicleID
    return official if official in some else f"test/{name}"


def _comparisons(winner: str, measured: _Comparisons) -> list[dict[str, Any]]:
    """The difference of the winner and each other control, wherever both have a common unit."""
    return [
        {"control": control, "on": place, **_facts(comparison.difference(winner, control))}
        for place, comparison in measured.items()
        for control in CONTROLS
        if control != winner and comparison.pairs(winner, control)
    ]


def _facts(found: Difference) -> dict[str, Any]:
    facts = asdict(found)
    return {"difference": facts.pop("mean"), **facts, "found": found.found}


def _gap(raced: Confirmation, measured: _Comparisons, untrained: dict[str, Any]) -> list[dict[str, Any]]:
    """Means of winner, controls and untrained network on held-out and on test classes.

    A setting that the confirmation did not measure has its value of the search.
    """
    winner, searched = raced.winner.name, {each.name: each.value for each in raced.candidates}
    gap = []
    for name in dict.fromkeys([winner, *CONTROLS]):
        confirmed = _mean(measured[HELD_OUT], name)
        validation = searched.get(name) if confirmed is None else confirmed
        test = _mean(measured[TEST], name)
        if validation is not None or test is not None:
            gap.append({"setting": "winner" if name == winner else name, "validation": validation, "test": test})
    return [*gap, {"setting": "untrained", **untrained}]


def _mean(comparison: Comparison, name: str) -> float | None:
    return comparison.mean(name) if name in comparison.values else None


def _winner_lines(raced: Confirmation, compared: Comparison) -> list[str]:
    """Which setting won, on what evidence, and whether it is a control."""
    winner = raced.winner.name
    said = f"the winner is {f'the control {winner!r}' if winner in CONTROLS else f'trial {winner}'}"
    if not raced.results:
        return [f"{said}, by the search alone: nothing was confirmed"]
    if winner not in compared.values:
        lines = [f"{said}, by the search alone: no run of the confirmation has a value"]
    else:
        lines = [
            f"{said}: {100 * compared.mean(winner):.1f} % of {raced.metric} on further held-out "
            f"classes ({len(compared.values[winner])} folds and seeds)"
        ]
    return [*lines, "the search found nothing better than its controls"] if winner in CONTROLS else lines


def _dropped_lines(raced: Confirmation) -> list[str]:
    """Which candidates the confirmation eliminated, and after how many units."""
    lines = []
    for number in sorted(set(raced.dropped.values())):
        names = [name for name, when in raced.dropped.items() if when == number]
        lines.append(f"out of the race after {number} folds and seeds, as they cannot win any more: {', '.join(names)}")
    return lines


def _comparison_line(each: dict[str, Any]) -> str:
    """A difference in points, with its interval and the number of pairs that would show it."""
    said = f"winner - {each['control']}, {each['on']}: {100 * each['difference']:+.1f} points"
    pairs = f"{each['pairs']} pair{'s' if each['pairs'] != 1 else ''}"
    if each["low"] is None:
        return f"{said} ({each['found']})"
    said += f", 95 % interval {100 * each['low']:+.1f} to {100 * each['high']:+.1f} ({pairs}): {each['found']}"
    if each["found"] == "no difference found":
        needed = each["needed"]
        said += (
            f"; a difference of this size shows with {needed} pairs" if needed else "; no number of pairs would show it"
        )
    return said


def _left_out_lines(winner: str, measured: _Comparisons) -> list[str]:
    """What was measured and is not compared, and why."""
    lines = []
    for place, comparison in measured.items():
        lines += [f"{place}: {line}" for line in comparison.left_out]
        lines += [
            f"winner - {control}, {place}: not compared, as nothing that both were measured on is left"
            for control in CONTROLS
            if control != winner
            and {control, winner} <= comparison.values.keys()
            and comparison.pairs(winner, control) == 0
        ]
    return lines


def _gap_lines(gap: list[dict[str, Any]]) -> list[str]:
    """How many points each setting loses from held-out to test classes."""
    known = [each for each in gap if each["validation"] is not None and each["test"] is not None]
    if not known:
        return []
    parts = [f"{each['setting']} {100 * (each['validation'] - each['test']):.1f}" for each in known]
    return [f"from held-out to test classes, points lost: {', '.join(parts)}"]
