"""The verdict: whether the winner of a search is better than its controls, and how sure that is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dcml_tune.data.datasets.vid import official_name
from dcml_tune.search.confirmation import CONTROLS, Confirmation
from dcml_tune.search.statistics import Comparison, Difference

HELD_OUT, TEST = "held-out classes", "test classes"


def verdict(
    raced: Confirmation, key: str, test: dict[str, dict[str, dict[str, Any]]], untrained: dict[str, Any]
) -> dict[str, Any]:
    """What is said of the winner, in words and numbers.

    Args:
        raced: the race.
        key: of the winner's trial in the search, or its name.
        test: contender -> seed -> measures of the test classes; empty if they were not scored.
        untrained: `validation` and `test` of the untrained network, shares of 1 or None.

    Returns:
        `metric`, `winner`, `lines`, `comparisons` and `gap`, as the report and MLflow show them.
    """
    winner, on_test = raced.winner.name, test_measure(raced.metric, test)
    scored = {name: {seed: each[on_test] for seed, each in runs.items()} for name, runs in test.items()}
    by_place = {HELD_OUT: Comparison(raced.values), TEST: Comparison(scored)}
    controls = [control for control in CONTROLS if control != winner]
    comparisons = [
        {"control": control, "on": place, **_facts(comparison.difference(winner, control))}
        for place, comparison in by_place.items()
        for control in controls
        if comparison.pairs(winner, control)
    ]
    searched = {each.name: each.value for each in raced.candidates}
    gap = []
    for name in dict.fromkeys([winner, *CONTROLS]):
        validation = by_place[HELD_OUT].mean(name) if name in by_place[HELD_OUT].values else searched.get(name)
        measured = by_place[TEST].mean(name) if name in by_place[TEST].values else None
        if validation is not None or measured is not None:
            gap.append({"setting": "winner" if name == winner else name, "validation": validation, "test": measured})
    gap.append({"setting": "untrained", **untrained})
    return {
        "metric": raced.metric,
        "test_metric": on_test,
        "winner": key,
        "lines": [
            *_of_race(raced),
            *map(_line, comparisons),
            *(line for place, comparison in by_place.items() for line in _not_compared(raced, place, comparison)),
            *_of_gap(gap),
        ],
        "comparisons": comparisons,
        "gap": gap,
    }


def test_measure(metric: str, test: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The measure of the test classes that copies the one by which settings were compared."""
    name = metric.rpartition("/")[2]
    some = next((each for runs in test.values() for each in runs.values()), {})
    official = f"test/{official_name(name)}"  # of VehicleID
    return official if official in some else f"test/{name}"


def _facts(found: Difference) -> dict[str, Any]:
    facts = asdict(found)
    return {"difference": facts.pop("mean"), **facts, "found": found.found}


def _not_compared(raced: Confirmation, place: str, comparison: Comparison) -> list[str]:
    """What was measured and is not compared, and why."""
    winner = raced.winner.name
    alone = [
        f"winner - {control}, {place}: not compared, as nothing that both were measured on is left"
        for control in CONTROLS
        if control != winner
        and {control, winner} <= comparison.values.keys()
        and comparison.pairs(winner, control) == 0
    ]
    return [*(f"{place}: {line}" for line in comparison.left_out), *alone]


def _of_race(raced: Confirmation) -> list[str]:
    winner = raced.winner.name
    if not raced.results:
        return [f"the winner is {_called(winner)}, by the search alone: nothing was confirmed"]
    compared = Comparison(raced.values)
    if winner not in compared.values:
        lines = [f"the winner is {_called(winner)}, by the search alone: no run of the confirmation has a value"]
    else:
        lines = [
            f"the winner is {_called(winner)}: {100 * compared.mean(winner):.1f} % of {raced.metric} on further held-out "
            f"classes ({len(compared.values[winner])} folds and seeds)"
        ]
    if winner in CONTROLS:
        lines.append("the search found nothing better than its controls")
    for number in sorted(set(raced.dropped.values())):
        names = [name for name, when in raced.dropped.items() if when == number]
        lines.append(f"out of the race after {number} folds and seeds, as they cannot win any more: {', '.join(names)}")
    return lines


def _called(name: str) -> str:
    return f"the control '{name}'" if name in CONTROLS else f"trial {name}"


def _line(each: dict[str, Any]) -> str:
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


def _of_gap(gap: list[dict[str, Any]]) -> list[str]:
    known = [each for each in gap if each["validation"] is not None and each["test"] is not None]
    if not known:
        return []
    parts = [f"{each['setting']} {100 * (each['validation'] - each['test']):.1f}" for each in known]
    return [f"from held-out to test classes, points lost: {', '.join(parts)}"]
