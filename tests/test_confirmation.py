import json
import math
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest

from dcml_tune.runs.study import by_launch, first_best
from dcml_tune.search.confirmation import (
    NO_DIVISION,
    PUBLISHED,
    Confirmation,
    FoldSeed,
    candidates,
    nb_confirming_runs,
    race,
    units,
)
from dcml_tune.search.deciding import FinalStage
from dcml_tune.search.halving import rounds
from dcml_tune.search.outcome import best_trial
from dcml_tune.search.verdict import verdict
from trainables.known_trial import KnownTrial

METRIC = "val/recall_at_1"
POINT = {"dataset": "emoji", "nb_clusters": 4, "masking_lambda": 0.01}


def trial(key, curve, state="done", **settings):
    config = {**POINT, **settings}
    return KnownTrial(key=key, config=config, curve=dict(enumerate(curve, 1)), state=state, reason=None)


class Runs:
    """Runs that measure effect + level of the unit + a little noise; remembers what was asked for."""

    def __init__(self, effects, noise=0.001):
        self.effects, self.noise, self.asked = effects, noise, []

    def __call__(self, wanted):
        self.asked.append([(candidate.name, unit) for candidate, unit in wanted])
        return {
            (candidate.name, unit): self._result(
                self.effects[candidate.name] + 0.1 * unit.fold + self.noise * ((7 * number + 3 * unit.seed) % 5 - 2)
            )
            for number, (candidate, unit) in enumerate(wanted)
        }

    @staticmethod
    def _result(value):
        return {f"{METRIC}_best": value, "curve": [value - 0.02, value, value - 0.01]}


def four(values=(0.6, 0.5, 0.5, 0.4)):
    """Two trials, and the controls."""
    found = candidates(
        [trial("001", [values[0]], masking_lambda=0.1), trial("002", [values[1]], nb_clusters=2)], POINT, 2
    )
    assert [each.name for each in found] == ["001", "002", PUBLISHED, NO_DIVISION]
    return found


def test_contenders_are_the_best_trials_and_the_controls():
    """A control that was a trial is not compared with itself; of two trials with the same setting one is."""
    trials = [
        trial("000", [0.5, 0.6]),  # the published setting
        trial("001", [0.9], "failed", masking_lambda=0.5),
        trial("002", [0.7, 0.65], masking_lambda=0.1),
        trial("003", [0.68], masking_lambda=0.1),
        trial("004", [0.66], "pruned", masking_lambda=0.2),
        trial("005", [0.5], nb_clusters=1),  # no division
        trial("006", [0.4], masking_lambda=0.3),
    ]
    found = {each.name: each for each in candidates(trials, POINT, 2)}
    assert list(found) == ["002", "004", PUBLISHED, NO_DIVISION]
    assert (found["002"].value, found["002"].epochs) == (0.7, 1)
    assert (found["004"].value, found["004"].epochs) == (0.66, None)  # nobody knows where it would have been best
    assert (found[PUBLISHED].value, found[PUBLISHED].epochs) == (0.6, 2)
    assert found[NO_DIVISION].value == 0.5
    assert found[NO_DIVISION].config == {**POINT, "nb_clusters": 1}
    assert [each.name for each in candidates(trials, {**POINT, "nb_clusters": 1}, 1)] == ["002", PUBLISHED]


def test_units_have_a_seed_each_and_no_fold_of_the_search():
    """Folds go round; a seed is not used twice, nor is that of the search."""
    found = units(folds=3, seeds=2, first_seed=5)
    assert [unit.fold for unit in found] == [1, 2, 3, 1, 2, 3]
    assert [unit.seed for unit in found] == [6, 7, 8, 9, 10, 11]


def compare(runs, count=3, *, found=None, over=False, controls_compete=False):
    """A confirmation of `four()` on this number of units."""
    return race(
        found or four(),
        units(count, 1, 0),
        metric=METRIC,
        results=runs,
        is_over=lambda: over,
        controls_compete=controls_compete,
    )


def many(count):
    """Trials of decreasing value, and the controls."""
    trials = [
        trial(f"{number:03d}", [0.9 - 0.01 * number], masking_lambda=float(number)) for number in range(1, count + 1)
    ]
    return candidates(trials, POINT, count)


def test_the_better_half_stays():
    """Two units are the fewest that tell anything; a control runs on one unit, for its number of epochs."""
    effects = {"001": 0.6, "002": 0.5, "003": 0.55, "004": 0.4, PUBLISHED: 0.7, NO_DIVISION: 0.8}
    runs = Runs(effects)
    found = compare(runs, found=many(4))
    first, second = ([(unit.fold, name) for name, unit in batch] for batch in runs.asked)
    trials = ["001", "002", "003", "004"]
    controls = [(1, PUBLISHED), (1, NO_DIVISION)]
    assert first == [*((fold, name) for fold in (1, 2) for name in trials), *controls]
    assert second == [(3, "001"), (3, "003")]
    assert found.dropped == {"002": 2, "004": 2}
    assert found.winner.name == "001", "a control that is not chosen among cannot win, whatever its one run is"
    assert len(found.results) == nb_confirming_runs(4, 3, 2, controls_compete=False) == 12

    runs = Runs(effects)
    found = compare(runs, found=many(4), controls_compete=True)
    assert found.winner.name == NO_DIVISION, "where the test classes are not scored, controls run to the end"
    assert {name for name, _ in runs.asked[1]} == {"001", "003", PUBLISHED, NO_DIVISION}
    assert len(found.results) == nb_confirming_runs(4, 3, 2, controls_compete=True)


@pytest.mark.parametrize(
    ("settings", "count"), [(s, u) for s in (1, 2, 3, 4, 7, 8, 20) for u in (0, 1, 2, 3, 4, 6, 12)]
)
def test_rounds_use_each_unit_once_and_halve(settings, count):
    """The first round has all settings and, where there are so many, two units; each later one half of the settings."""
    found = rounds(settings, count)
    assert [number for each in found for number in each.units] == list(range(count))
    assert [each.settings for each in found] == [math.ceil(settings / 2**number) for number in range(len(found))]
    if count:
        assert len(found[0].units) >= min(2, count)
        assert found[-1].settings >= min(2, settings)


def without(runs, missing):
    """Runs of which some fail; they are (name, fold)."""

    def results(wanted):
        found = runs(wanted)
        return {(name, unit): each for (name, unit), each in found.items() if (name, unit.fold) not in missing}

    return results


FAILURES = {
    "the best, where it is hard": ({("001", 1)}, "003", {"001": [1]}),
    "the best, with no result": ({("001", 1), ("001", 2)}, "003", {"001": [1, 2]}),
    "a finalist, in the last round": ({("003", 3)}, "001", {"003": [3]}),
    "both finalists": ({("001", 3), ("003", 3)}, "002", {"001": [3], "003": [3]}),
    "all": (
        {(name, 2) for name in ("001", "002", "003", "004")},
        "001",
        {f"00{number}": [2] for number in range(1, 5)},
    ),
    "a control": ({(PUBLISHED, 1)}, "001", {PUBLISHED: [1]}),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_setting_whose_run_failed_is_out(kind):
    """It is never compared on the units on which it happens to have a result, and a line says so."""
    missing, winner, failed = FAILURES[kind]
    effects = {"001": 0.6, "002": 0.5, "003": 0.55, "004": 0.4, PUBLISHED: 0.5, NO_DIVISION: 0.4}
    found = compare(without(Runs(effects), missing), found=many(4))
    assert found.winner.name == winner
    assert {name: [unit.fold for unit in each] for name, each in found.failed.items()} == failed
    said = verdict(found, winner, {}, {"validation": None, "test": None})["lines"]
    for name, folds in failed.items():
        line = next(each for each in said if each.startswith(f"{name} "))
        assert all(f"fold {fold}" in line for fold in folds)
    assert any("so the winner is" in line for line in said) == (kind in ("all", "both finalists"))


def test_a_control_whose_run_failed_is_not_compared():
    """Not on the units where it has a result either; the comparison does not vanish silently."""
    effects = {"001": 0.6, "002": 0.5, PUBLISHED: 0.9, NO_DIVISION: 0.4}
    found = compare(without(Runs(effects), {(PUBLISHED, 2)}), controls_compete=True)
    said = verdict(found, "001", {}, {"validation": None, "test": None})
    assert found.winner.name == "001"
    assert {each["control"] for each in said["comparisons"]} == {NO_DIVISION}
    assert f"{PUBLISHED} cannot win, as its run on fold 2, seed 2 failed" in said["lines"]
    assert f"winner - {PUBLISHED}, held-out classes: not compared, as {PUBLISHED} has no value there" in said["lines"]


def test_a_budget_that_ends_a_confirmation_is_no_failure():
    """What has not run is not held against a setting: the units that all have are compared, or the search decides."""
    effects = {"001": 0.5, "002": 0.6, "003": 0.4, "004": 0.3, PUBLISHED: 0.5, NO_DIVISION: 0.4}
    late = {(name, 2) for name in ("002", "003", "004")}
    found = compare(without(Runs(effects), late), found=many(4), over=True)
    assert (found.winner.name, found.failed, found.dropped) == ("002", {}, {})
    late |= {("002", 1)}
    found = compare(without(Runs(effects), late), found=many(4), over=True)
    assert (found.winner.name, found.failed) == ("001", {})


def test_a_run_has_no_part_in_the_choice_of_its_epoch():
    """Its value is that of the epoch that is best in the other runs; the maximum of its own noise adds nothing."""
    [one, *_] = four()
    curves = {1: [0.1, 0.9, 0.4], 2: [0.3, 0.2, 0.5], 3: [0.1, 0.3, 0.6]}
    results = {(one.name, FoldSeed(n, n)): {"curve": c} for n, c in curves.items()}
    found = Confirmation(candidates=four(), units=[], results=results, dropped={}, metric=METRIC)
    assert found.values["001"] == {FoldSeed(1, 1): 0.4, FoldSeed(2, 2): 0.2, FoldSeed(3, 3): 0.3}
    rng = np.random.default_rng(0)
    flat = 0.5 + 0.01 * rng.normal(size=(300, 3, 20))  # plateaus of 20 epochs
    chosen = []
    for three in flat:
        results = {(one.name, FoldSeed(n, n)): {"curve": list(curve)} for n, curve in enumerate(three, 1)}
        chosen += replace(found, results=results).values["001"].values()
    assert flat.max(axis=2).mean() > 0.515
    assert np.mean(chosen) == pytest.approx(0.5, abs=0.002)


def test_a_single_run_is_valued_where_the_search_was_best():
    """At its last epoch where that is unknown."""
    results = {(name, FoldSeed(1, 1)): {"curve": [0.3, 0.5, 0.4]} for name in ("001", PUBLISHED)}
    found = Confirmation(candidates=four(), units=[], results=results, dropped={}, metric=METRIC)
    assert found.values["001"] == {FoldSeed(1, 1): 0.3}  # its curve in the search has one epoch
    assert found.values[PUBLISHED] == {FoldSeed(1, 1): 0.4}


def test_without_units_the_search_alone_says_which_is_the_best():
    """Nothing is run, and the verdict says so."""
    runs = Runs({})
    found = race(four(), [], metric=METRIC, results=runs, is_over=lambda: False)
    assert (runs.asked, found.winner.name) == ([], "001")
    said = verdict(found, "001", {}, {"validation": 0.3, "test": None})
    assert said["lines"] == ["the winner is trial 001, by the search alone: nothing was confirmed"]
    assert said["comparisons"] == []


def test_a_setting_trains_as_long_as_the_mean_of_its_curves_is_best():
    """Not as long as its luckiest curve."""
    [one, *_] = four()
    curves = ([0.1, 0.5, 0.4], [0.3, 0.2, 0.4], [0.1, 0.2, 0.3])
    results = {(one.name, FoldSeed(n, n)): {f"{METRIC}_best": max(c), "curve": c} for n, c in enumerate(curves, 1)}
    found = Confirmation(candidates=four(), units=[], results=results, dropped={}, metric=METRIC)
    assert found.epochs(one) == 3
    assert found.epochs(four()[2]) is None  # was neither confirmed nor run to its end


def final(name, *values):
    measures = [{"test/recall_at_1": value, "test/map_at_r": value / 2} for value in values]
    return {name: {f"seed {number}": each for number, each in enumerate(measures)}}


def test_the_verdict_says_what_was_found_and_how_sure_it_is():
    """Differences with intervals, pairs that would be needed, points lost from held-out to test classes."""
    runs = Runs({"001": 0.6, "002": 0.5, PUBLISHED: 0.598, NO_DIVISION: 0.4}, noise=0.002)
    raced = replace(compare(runs, controls_compete=True), dropped={"002": 2, NO_DIVISION: 2})
    test = {
        **final("001", 0.52, 0.53, 0.54),
        **final(PUBLISHED, 0.53, 0.52, 0.54),
        **final(NO_DIVISION, 0.4, 0.41, 0.43),
    }
    found = verdict(raced, "001", test, {"validation": 0.62, "test": 0.41})
    assert json.loads(json.dumps(found)) == found
    said = "\n".join(found["lines"])
    held_out = mean(raced.values["001"].values())
    assert f"the winner is trial 001: recall@1 {100 * held_out:.1f} % on further held-out classes (3 folds" in said
    assert "out of the race after 2 folds: 002, no division" in said
    by_place = {(each["control"], each["on"]): each for each in found["comparisons"]}
    same = by_place[PUBLISHED, "test classes"]
    assert (same["pairs"], same["found"]) == (3, "undecided")
    assert same["low"] < same["difference"] < same["high"]
    assert by_place[NO_DIVISION, "test classes"]["found"] == "better"
    assert "winner - no division, test classes: +11.7 points of recall@1" in said
    assert "what would decide: " in said
    gap = {each["setting"]: each for each in found["gap"]}
    assert gap["winner"]["test"] == pytest.approx(0.53)
    assert f"from held-out to test classes, points of recall@1 lost: winner {100 * (held_out - 0.53):.1f}" in said
    assert "untrained 21.0" in said


def test_a_control_that_wins_is_said_to_have_won():
    """The search found nothing; one seed has no interval."""
    runs = Runs({"001": 0.55, "002": 0.5, PUBLISHED: 0.6, NO_DIVISION: 0.4})
    raced = compare(runs, 2, controls_compete=True)
    found = verdict(
        raced, "000", {**final(PUBLISHED, 0.5), **final(NO_DIVISION, 0.4)}, {"validation": None, "test": None}
    )
    assert found["winner"] == "000"
    assert found["lines"][0].startswith("the winner is the control 'published'")
    assert "the search found nothing better than its controls" in found["lines"]
    assert {each["control"] for each in found["comparisons"]} == {NO_DIVISION}
    assert any(line.endswith("(1 seed): one seed, no interval") for line in found["lines"])


def test_vehicleid_is_judged_by_its_own_measure():
    """Its names say its protocol."""
    raced = Confirmation(candidates=four(), units=[], results={}, dropped={}, metric=METRIC)
    runs = {"seed 0": {"test/recall_at_1": 0.9, "test/official_recall_at_1": 0.7}}
    assert verdict(raced, "001", {"001": runs}, {"validation": None, "test": None})["test_metric"] == (
        "test/official_recall_at_1"
    )


def test_one_measure_chooses_and_another_is_the_result():
    """Each line names its own; what is lost from held-out to test classes is of the first one on both sides."""
    raced = compare(Runs({"001": 0.5, "002": 0.4, PUBLISHED: 0.4, NO_DIVISION: 0.4}))
    raced = replace(raced, metric="val/map_at_r")
    test = {
        "001": {"seed 7": {"test/recall_at_1": 0.75, "test/map_at_r": 0.25}},
        "published": {"seed 7": {"test/recall_at_1": 0.5, "test/map_at_r": 0.125}},
    }
    found = verdict(raced, "001", test, {"validation": None, "test": None}, FinalStage(metric="recall_at_1"))
    assert (found["metric"], found["test_metric"]) == ("val/map_at_r", "test/recall_at_1")
    assert found["test_means"] == pytest.approx({"winner": 0.75, "published": 0.5})
    gap = {each["setting"]: each["test"] for each in found["gap"] if each["test"] is not None}
    assert gap == pytest.approx({"winner": 0.25, "published": 0.125})
    said = "\n".join(found["lines"])
    assert "winner - published, test classes: +25.0 points of recall@1" in said
    assert "from held-out to test classes, points of MAP@R lost: winner" in said


EQUAL = [
    trial("000", [0.5, 0.6]),  # the published setting
    trial("001", [0.6, 0.6], masking_lambda=0.1),
    trial("002", [0.6, 0.6], nb_clusters=1),  # no division
]


def test_of_equal_trials_the_first_is_the_best_everywhere():
    """In the search, without a confirmation, and in one that finds them equal, too; also the order of 1000 trials."""
    found = candidates(EQUAL, POINT, 2)
    assert best_trial(EQUAL).key == "000"
    assert [(each.name, each.key) for each in found] == [("001", "001"), (PUBLISHED, "000"), (NO_DIVISION, "002")]
    assert race(found, [], metric=METRIC, results=Runs({}), is_over=lambda: False).winner.name == PUBLISHED
    runs = Runs(dict.fromkeys(["001", PUBLISHED, NO_DIVISION], 0.6), noise=0.0)
    assert compare(runs, found=found, controls_compete=True).winner.name == PUBLISHED
    later = candidates([trial("1000", [0.6], masking_lambda=0.3), trial("999", [0.6], masking_lambda=0.2)], POINT, 2)
    assert [each.name for each in later][:2] == ["999", "1000"]
    raced = Confirmation(candidates=later, units=[], results={}, dropped={}, metric=METRIC)
    assert raced.winner.name == "999"


def test_first_best():
    """NaN and None are no values, wherever they stand."""
    values = [math.nan, None, 0.1, 0.3, 0.3, math.nan, 0.2]
    assert first_best(range(len(values)), lambda place: values[place]) == 3
    assert first_best([math.nan, None], lambda value: value) is None
    assert first_best([0.0, -1.0], lambda value: value) == 0.0
    assert sorted(["1000", "999", "000"], key=by_launch) == ["000", "999", "1000"]


def test_the_verdict_says_what_is_not_compared():
    """A run without a number, and a control that was measured on other units: a line each, and no interval."""
    runs = Runs({"001": 0.6, "002": 0.5, PUBLISHED: 0.58, NO_DIVISION: 0.4}, noise=0.002)
    raced = compare(runs, controls_compete=True)
    broken = next(key for key in raced.results if key[0] == PUBLISHED)
    raced.results[broken]["curve"] = [math.nan] * 3
    test = {**final("001", 0.52, 0.53), **final(PUBLISHED, 0.5, 0.51)}
    test[NO_DIVISION] = {"seed 8": test[PUBLISHED]["seed 0"]}
    found = verdict(raced, "001", test, {"validation": None, "test": None})
    places = [(each["control"], each["on"]) for each in found["comparisons"]]
    assert places == [(PUBLISHED, "held-out classes"), (NO_DIVISION, "held-out classes"), (PUBLISHED, "test classes")]
    assert (
        f"held-out classes: {PUBLISHED}, {broken[1]}: left out of the comparison, as its value is nan" in found["lines"]
    )
    assert any(line.startswith("test classes: no division: left out of the comparison") for line in found["lines"])
    assert all(math.isfinite(each["difference"]) for each in found["comparisons"])
    for result in raced.results.values():
        result["curve"] = [math.nan] * 3
    found = verdict(raced, "001", {}, {"validation": None, "test": None})
    assert found["lines"][0] == "the winner is trial 001, by the search alone: no run of the confirmation has a value"
