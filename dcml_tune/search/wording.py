"""The lines of a verdict: what was found, how certain it is, and what would tell more, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dcml_tune.config.measures import title
from dcml_tune.search.confirmation import CONTROLS, Confirmation, FoldSeed
from dcml_tune.search.statistics import Comparison

HELD_OUT, TEST = "held-out classes", "test classes"


def lines(found: dict[str, Any], raced: Confirmation, measured: Mapping[str, Comparison]) -> list[str]:
    """Return a verdict in words.

    Args:
        found: the verdict's facts.
        raced: the confirmation.
        measured: held-out classes, test classes -> the settings that were measured there.
    """
    comparisons = found["comparisons"]
    held_out = [each for each in comparisons if each["on"] == HELD_OUT]
    test = [each for each in comparisons if each["on"] == TEST]
    return [
        *_winner_lines(raced, measured[HELD_OUT]),
        *_dropped_lines(raced),
        *raced.failure_lines(),
        *(_test_line(each, found) for each in test),
        *_about_classes(test),
        *_decides_lines(found["decides"]),
        *(_held_out_line(each, found["metric"]) for each in held_out),
        *_about_selection(held_out),
        *_not_told_lines(found["not_told_from_winner"], raced, measured[HELD_OUT]),
        *_left_out_lines(raced, measured),
        *_gap_lines(found["gap"], found["metric"]),
    ]


def _winner_lines(raced: Confirmation, compared: Comparison) -> list[str]:
    """Which setting won, on what evidence, and whether it is a control."""
    winner = raced.winner.name
    said = f"the winner is {f'the control {winner!r}' if winner in CONTROLS else f'trial {winner}'}"
    if not raced.results:
        return [f"{said}, by the search alone: nothing was confirmed"]
    if winner not in compared.values:
        why = "its own runs failed" if winner in raced.failed else "no run of the confirmation has a value"
        found = [f"{said}, by the search alone: {why}"]
    else:
        found = [
            f"{said}: {title(raced.metric)} {100 * compared.mean(winner):.1f} % on further held-out classes "
            f"({_amount(compared.values[winner])}), where it was chosen"
        ]
    return [*found, "the search found nothing better than its controls"] if winner in CONTROLS else found


def _amount(units: Iterable[FoldSeed]) -> str:
    """Number of folds and, if there are several on a fold, of runs."""
    folds = [unit.fold for unit in units]
    said = _count(len(set(folds)), "fold")
    return said if len(set(folds)) == len(folds) else f"{said}, {len(folds)} runs"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _dropped_lines(raced: Confirmation) -> list[str]:
    """Which candidates the confirmation eliminated, and after how much."""
    found = []
    for number in sorted(set(raced.dropped.values())):
        names = ", ".join(name for name, when in raced.dropped.items() if when == number)
        found.append(f"out of the race after {_amount(raced.units[:number])}: {names}")
    return found


# -- test classes ----------------------------------------------------------------------------------------


def _test_line(each: dict[str, Any], found: dict[str, Any]) -> str:
    """The difference on test classes, both intervals and the answer."""
    difference = found["difference"]
    said = f"{_points_line(each, found['test_metric'])} ({_count(each['pairs'], 'seed')})"
    if each["low"] is None:
        return f"{said}: {_no_interval(each)}"
    said += f", 95 % interval {_interval(each)} for these classes"
    new = each["new_classes"]
    if new["low"] is None:
        return f"{said}: {_answer(each, difference)}; for new classes {new['found']}"
    said += f", {_interval(new)} for new classes of this kind"
    return f"{said}: {_answer(each, difference)} on these classes, {_answer(new, difference)} for new ones"


def _points_line(each: dict[str, Any], measure: str) -> str:
    return f"winner - {each['control']}, {each['on']}: {100 * each['difference']:+.1f} points of {title(measure)}"


def _no_interval(each: dict[str, Any]) -> str:
    """Why there is no interval."""
    if each["found"] == "equal values":
        return "equal values in all pairs, no interval"
    unit = each["unit"].removesuffix("s")
    return f"one {unit}, no interval" if each["pairs"] == 1 else f"no spread over {each['unit']}, no interval"


def _interval(each: dict[str, Any]) -> str:
    return f"{100 * each['low']:+.1f} to {100 * each['high']:+.1f}"


def _answer(each: dict[str, Any], difference: float) -> str:
    """The answer in words."""
    match each["found"]:
        case "better":
            return f"better by at least {100 * each['low']:.1f} points"
        case "worse":
            return f"worse by at least {-100 * each['high']:.1f} points"
        case "equivalent":
            return f"equivalent within ± {100 * difference:.1f} points"
    return "undecided"


def _about_classes(test: list[dict[str, Any]]) -> list[str]:
    """What the intervals on test classes leave out."""
    known = [each for each in test if each["low"] is not None]
    if not known:
        return []
    if any(each["new_classes"]["low"] is not None for each in known):
        return ["an interval for these classes covers other seeds; that for new classes also the sampling of classes"]
    return ["the intervals for these classes cover other seeds; they leave out the sampling of classes"]


def _decides_lines(decides: dict[str, Any] | None) -> list[str]:
    """What would decide."""
    if decides is None:
        return []
    if decides["difference"] is None:
        said = f"what would tell more: {decides['seeds']} final seeds give an interval"
    else:
        size = f"a true difference of {100 * decides['difference']:.2g} points"
        if decides["seeds"] is None:
            return [f"what would decide: no number of final seeds up to 1000 tells {size} from none"]
        said = f"what would decide: {decides['seeds']} final seeds tell {size} from none (power 80 %)"
    said += f"; that is {decides['more']} more, {_count(decides['runs'], 'run')}"
    if decides["seconds"] is not None:
        said += f", about {_duration(decides['seconds'])} on this machine"
    return [f"{said}: {decides['command']}" if decides["command"] else said]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


# -- held-out classes ------------------------------------------------------------------------------------


def _held_out_line(each: dict[str, Any], measure: str) -> str:
    """The lead on held-out classes, with its lower end."""
    said = f"{_points_line(each, measure)} ({_count(each['pairs'], 'fold')})"
    if each["low"] is None:
        return f"{said}: {_no_interval(each)}"
    told = "better" if each["found"] == "better" else "not told apart"
    return f"{said}, at least {100 * each['low']:+.1f} (Dunnett): {told}"


def _about_selection(held_out: list[dict[str, Any]]) -> list[str]:
    if not held_out:
        return []
    return ["held-out classes chose the winner: a difference there is evidence of selection and likely too large"]


def _not_told_lines(names: list[str], raced: Confirmation, compared: Comparison) -> list[str]:
    """Which settings may be as good as the winner."""
    winner = raced.winner.name
    if winner not in compared.values or not names:
        return []
    amount = _amount(compared.values[winner])
    remedy = "; more --folds would tell more of them apart" if winner in CONTROLS else ""
    return [f"not told from the winner on held-out classes ({amount}): {', '.join(names)}{remedy}"]


def _left_out_lines(raced: Confirmation, measured: Mapping[str, Comparison]) -> list[str]:
    """What was measured and is not compared, and why."""
    found, winner = [], raced.winner.name
    controls = [each.name for each in raced.candidates if each.name in CONTROLS and each.name != winner]
    for place, comparison in measured.items():
        found += [f"{place}: {line}" for line in comparison.left_out]
        if not comparison.values:
            continue
        for control in controls:
            if place == HELD_OUT and control in raced.not_chosen:
                continue
            missing = [name for name in (winner, control) if name not in comparison.values]
            if not comparison.pairs(winner, control):
                why = (
                    f"{' and '.join(missing)} has no value there" if missing else "they have no fold or seed in common"
                )
                found.append(f"winner - {control}, {place}: not compared, as {why}")
    return found


def _gap_lines(gap: list[dict[str, Any]], measure: str) -> list[str]:
    """How many points each setting loses from held-out to test classes."""
    known = [each for each in gap if each["validation"] is not None and each["test"] is not None]
    if not known:
        return []
    parts = [f"{each['setting']} {100 * (each['validation'] - each['test']):.1f}" for each in known]
    return [f"from held-out to test classes, points of {title(measure)} lost: {', '.join(parts)}"]
