"""The verdict: whether the winner of a search is better than its controls, with confidence intervals.

Held-out classes chose the winner, so a difference there is evidence of selection: it is given with the lower end that holds
for whichever setting was chosen. Test classes chose nothing: the difference there is the result, with an interval for these
classes and one for new classes of the same kind. docs/verdict.md describes both.

Above 250 lines because each part of the verdict has a function here, in the order of verdict.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dcml_tune.search.answers import DIFFERENCE, answers, level_at, rejected
from dcml_tune.search.class_sampling import for_new_classes, shared_by_classes
from dcml_tune.search.confirmation import CONTROLS, Confirmation
from dcml_tune.search.deciding import FinalStage, Needed, decides, needed_seeds
from dcml_tune.search.intervals import ALPHA, Difference
from dcml_tune.search.statistics import Comparison
from dcml_tune.search.wording import HELD_OUT, TEST, lines

FORMAT = 2
"""Of verdict.json. Format 1, of version 0.1, had none of the keys `format`, `sided`, `unit`, `new_classes` and `decides`."""

Measures = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Candidate -> seed -> measures of the test classes."""


def verdict(
    raced: Confirmation, key: str, test: Measures, untrained: dict[str, Any], final: FinalStage | None = None
) -> dict[str, Any]:
    """Compare the winner with its controls on held-out and on test classes.

    Args:
        raced: the confirmation.
        key: of the winner's trial in the search, or the name of a control.
        test: candidate -> seed -> measures of the test classes; empty if they were not scored.
        untrained: `validation` and `test` of the untrained network, from 0 to 1 or None.
        final: further facts of the final stage.

    Returns:
        `format`, `metric`, `test_metric`, `difference`, `winner`, `lines`, `comparisons`, `not_told_from_winner`, `decides`,
        `test_means` (of `test_metric`) and `gap` (of `metric`), as the report and MLflow show them.
    """
    final = final or FinalStage()
    on_test = test_measure(final.metric, test)
    scored = _scored(test, on_test)
    held_out, tested = Comparison(raced.values), Comparison(scored)
    same_measure = Comparison(_scored(test, test_measure(raced.metric, test)))
    results, needed = _result(raced.winner.name, tested, scored, final)
    found: dict[str, Any] = {
        "format": FORMAT,
        "metric": raced.metric,
        "test_metric": on_test,
        "difference": final.difference,
        "winner": key,
        "comparisons": [*_selection(raced, held_out), *results],
        "not_told_from_winner": _not_told(raced, held_out),
        "decides": decides(needed, tested, final) if needed else None,
        "test_means": {_role(name, raced): tested.mean(name) for name in tested.values},
        "gap": _gap(raced, held_out, same_measure, untrained),
    }
    return {**found, "lines": lines(found, raced, {HELD_OUT: held_out, TEST: tested})}


def _scored(test: Measures, measure: str) -> dict[str, dict[str, float]]:
    """One measure of the test classes: candidate -> seed -> value."""
    return {name: {seed: each[measure] for seed, each in runs.items()} for name, runs in test.items()}


def _role(name: str, raced: Confirmation) -> str:
    return "winner" if name == raced.winner.name else name


def test_measure(metric: str, test: Measures) -> str:
    """Return the measure of the test classes that corresponds to a metric, such as val/recall_at_1.

    Args:
        metric: its name, with or without prefix.
        test: candidate -> seed -> measures of the test classes; those of VehicleID are named after its protocol.
    """
    name = metric.rpartition("/")[2]
    some: Mapping[str, Any] = next((each for runs in test.values() for each in runs.values()), {})
    official = f"test/official_{name}"  # the protocol of VehicleID
    return official if official in some else f"test/{name}"


# -- held-out classes ------------------------------------------------------------------------------------


def _selection(raced: Confirmation, compared: Comparison) -> list[dict[str, Any]]:
    """The winner's lead of each other control that competed on held-out classes, with Dunnett's lower end."""
    winner = raced.winner.name
    competed = [each for each in CONTROLS if each != winner and each not in raced.not_chosen]
    controls = [each for each in competed if compared.pairs(winner, each)]
    ends = {each: compared.lower_end(winner, each) for each in controls}
    ahead = rejected({name: end.p if end else None for name, end in ends.items()}, ALPHA / 2)
    found = []
    for control, end in ends.items():
        difference = compared.difference(winner, control)
        word = "better" if control in ahead else "undecided"
        facts = {
            "control": control,
            "on": HELD_OUT,
            "unit": "folds",
            "sided": "lower",
            "pairs": difference.pairs,
            "difference": difference.mean,
            "low": end.low if end else None,
            "high": None,
            "needed": None,
            "new_classes": None,
            "found": word if end else _without_interval(difference),
        }
        found.append(facts)
    return found


def _without_interval(difference: Difference) -> str:
    return next(iter(answers({"": difference}, difference=DIFFERENCE).values()))


def _not_told(raced: Confirmation, compared: Comparison) -> list[str]:
    """The settings that may be as good as the winner on held-out classes."""
    gone = {*raced.dropped, *raced.failed, *raced.not_chosen}
    return [each for each in compared.not_told_from(raced.winner.name) if each not in gone]


# -- test classes ----------------------------------------------------------------------------------------


def _first_look(scored: Mapping[str, Mapping[str, float]], looks: tuple[int, ...]) -> Comparison:
    """The comparison of the seeds of the first look, whose noise is that of all later ones (Stein)."""
    seeds = list(dict.fromkeys(seed for runs in scored.values() for seed in runs))[: looks[0] if looks else None]
    return Comparison({name: {seed: runs[seed] for seed in seeds if seed in runs} for name, runs in scored.items()})


def _result(
    winner: str, compared: Comparison, scored: Mapping[str, Mapping[str, float]], final: FinalStage
) -> tuple[list[dict[str, Any]], list[Needed]]:
    """The difference of the winner and each other control on test classes, with both intervals and an answer.

    Also the numbers of seeds that would decide those that are undecided.
    """
    controls = [each for each in CONTROLS if each != winner and compared.pairs(winner, each)]
    first = _first_look(scored, final.looks)
    noises = {each: first.noise_of(winner, each) or compared.noise_of(winner, each) for each in controls}
    here = {each: compared.difference(winner, each, noises[each]) for each in controls}
    new = {each: _new_classes(here[each], winner, each, scored, final) for each in controls}
    level = level_at(len(final.looks) + 1)
    said_here = answers(here, difference=final.difference, level=level)
    said_new = answers(
        {name: each for name, (each, _) in new.items() if each}, difference=final.difference, level=level
    )
    needed = {
        each: needed_seeds(noises[each], here[each].pairs, len(controls), final)
        for each, said in said_here.items()
        if said in ("undecided", "no interval")
    }
    entries = [
        {
            "control": control,
            "on": TEST,
            "unit": "seeds",
            "sided": "both",
            "pairs": each.pairs,
            "difference": each.mean,
            "low": each.low,
            "high": each.high,
            "needed": needed[control].seeds if control in needed else None,
            "new_classes": _facts_of_new(new[control], said_new.get(control)),
            "found": said_here[control],
        }
        for control, each in here.items()
    ]
    return entries, list(needed.values())


def _new_classes(
    here: Difference, winner: str, control: str, scored: Mapping[str, Mapping[str, float]], final: FinalStage
) -> tuple[Difference | None, int | str]:
    """The difference with the interval for new classes, and their number; or None, and why there is no interval."""
    if here.error is None:
        return None, "there is none for these classes"
    seeds = [seed for seed in scored[winner] if seed in scored[control]]
    runs = {name: [final.hits.get(name, {}).get(seed) for seed in seeds] for name in (winner, control)}
    known = {name: [each for each in of if each is not None] for name, of in runs.items()}
    if any(len(of) < len(seeds) for of in known.values()):
        return None, "the hits of its queries are not known"
    for name, of in known.items():
        if any(abs(float(each.hits.mean()) - scored[name][seed]) > 1e-6 for seed, each in zip(seeds, of, strict=True)):
            return None, "the measure is not the share of queries with a right nearest neighbour"
    try:
        shared = shared_by_classes(known[winner], known[control])
    except ValueError as error:
        return None, str(error)
    return for_new_classes(here, shared), shared.classes


def _facts_of_new(found: tuple[Difference | None, int | str], answer: str | None) -> dict[str, Any]:
    difference, about = found
    if difference is None:
        return {"low": None, "high": None, "classes": None, "found": f"no interval: {about}"}
    return {"low": difference.low, "high": difference.high, "classes": about, "found": answer}


# -- from held-out to test classes ------------------------------------------------------------------------


def _gap(
    raced: Confirmation, held_out: Comparison, tested: Comparison, untrained: dict[str, Any]
) -> list[dict[str, Any]]:
    """Means of winner, controls and untrained network on held-out and on test classes.

    A setting that the confirmation did not measure has its value of the search.
    """
    winner, searched = raced.winner.name, {each.name: each.value for each in raced.candidates}
    gap = []
    for name in dict.fromkeys([winner, *CONTROLS]):
        confirmed = _mean(held_out, name)
        validation = searched.get(name) if confirmed is None else confirmed
        test = _mean(tested, name)
        if validation is not None or test is not None:
            gap.append({"setting": _role(name, raced), "validation": validation, "test": test})
    return [*gap, {"setting": "untrained", **untrained}]


def _mean(comparison: Comparison, name: str) -> float | None:
    return comparison.mean(name) if name in comparison.values else None
