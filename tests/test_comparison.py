import numpy as np
import pytest
from scipy.stats import t, ttest_rel

from dcml_tune.search.statistics import Comparison, pairs_needed


def drawn(effects, units, *, noise=0.01, seed=0, missing=()):
    """Values of settings with these effects on units that differ a lot."""
    rng = np.random.default_rng(seed)
    levels = rng.normal(0.5, 0.1, units)
    return {
        name: {f"u{u}": effect + levels[u] + rng.normal(0, noise) for u in range(units) if (name, u) not in missing}
        for name, effect in effects.items()
    }


def test_two_settings_are_a_paired_t_test():
    """Mean and interval are those of scipy."""
    values = drawn({"a": 0.02, "b": 0.0}, 6)
    found = Comparison(values).difference("a", "b")
    interval = ttest_rel(list(values["a"].values()), list(values["b"].values())).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(interval)
    assert found.mean == pytest.approx(np.mean(interval))
    assert (found.pairs, found.found) == (6, "better")
    assert Comparison(values).difference("b", "a").found == "worse"


def test_several_settings_share_the_spread():
    """As a two-way layout has it, worked out by hand; the interval is narrower than that of a pair alone."""
    values = drawn({"a": 0.02, "b": 0.0, "c": -0.01, "d": 0.0}, 3)
    table = np.array([list(each.values()) for each in values.values()])
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    half = t.ppf(0.975, 6) * np.sqrt(np.sum(rest**2) / 6 * 2 / 3)
    found = Comparison(values).difference("a", "b")
    assert found.mean == pytest.approx(table[0].mean() - table[1].mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))
    alone = Comparison({name: values[name] for name in "ab"}).difference("a", "b")
    assert found.high - found.low < alone.high - alone.low


def test_units_that_are_missing_do_no_harm():
    """A setting that left after easy units is not better for that; means are those of all units."""
    values = drawn({"a": 0.02, "b": 0.0, "c": 0.01}, 5, noise=1e-9, missing=[("b", 3), ("b", 4)])
    found = Comparison(values)
    assert found.mean("b") == pytest.approx(np.mean(list(values["a"].values())) - 0.02, abs=1e-6)
    assert found.difference("a", "b").mean == pytest.approx(0.02, abs=1e-6)
    assert found.difference("a", "b").pairs == 3
    assert found.best == "a"
    assert Comparison({**values, "d": {}}).best == "a"


def test_one_unit_has_no_interval():
    """And nothing is beaten by it."""
    found = Comparison({"a": {"u": 0.9}, "b": {"u": 0.1}})
    assert found.difference("a", "b").found == "one pair: no interval"
    assert found.difference("a", "b").needed is None
    assert found.beaten(1) == []
    assert Comparison({}).best is None
    assert Comparison({"a": {"u": 0.9}}).beaten(1) == []


def test_the_interval_holds_what_it_says():
    """Of 2,000 comparisons of equal settings one in twenty finds a difference, also where a setting left early."""
    missing = [("c", 2), ("c", 3)]
    found = [
        Comparison(drawn({"a": 0.0, "b": 0.0, "c": 0.0}, 4, seed=seed, missing=missing)).difference("a", "c").found
        for seed in range(2000)
    ]
    assert 0.035 < np.mean([each != "no difference found" for each in found]) < 0.065


def test_a_race_seldom_drops_the_best():
    """In all looks together, of six settings that are equal; one that is far behind goes at the first look."""
    names = "abcdef"
    dropped = 0
    for seed in range(500):
        values = drawn(dict.fromkeys(names, 0.0) | {"a": 1e-6}, 4, seed=seed)
        looks = [{name: dict(list(units.items())[:n]) for name, units in values.items()} for n in (2, 3, 4)]
        dropped += any("a" in Comparison(each).beaten(3) for each in looks)
    assert dropped / 500 <= 0.05
    assert Comparison(drawn({"a": 0.1, "b": 0.1, "c": 0.0}, 2, noise=0.002)).beaten(3) == ["c"]


@pytest.mark.parametrize(("effect", "pairs"), [(1.0, 10), (0.5, 34), (0.2, 199), (2.0, 5)])
def test_pairs_that_are_needed(effect, pairs):
    """As tables of the paired t-test at 5 % with 80 % power have it (two-sided)."""
    assert abs(pairs_needed(effect, 1.0) - pairs) <= 1
    assert pairs_needed(-effect, 1.0) == pairs_needed(effect, 1.0)


def test_pairs_that_are_needed_at_the_ends():
    """No difference needs endlessly many, one without noise two."""
    assert pairs_needed(0.0, 1.0) is None
    assert pairs_needed(1e-4, 1.0) is None
    assert pairs_needed(0.1, 0.0) == 2


def test_equal_settings_are_never_better():
    """Whatever the values are, rounding finds no difference between equal ones, and drops nobody."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        units = {f"u{number}": value for number, value in enumerate(rng.random(rng.integers(2, 7)))}
        found = Comparison({"a": units, "b": dict(units)})
        difference = found.difference("a", "b")
        assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)
        assert (difference.found, difference.needed) == ("no difference found", None)
        assert (found.best, found.beaten(3)) == ("a", [])
        assert Comparison({"b": units, "a": dict(units)}).best == "b"


def test_a_difference_of_one_image_is_found():
    """Where nothing else differs: one of a hundred million."""
    one = {f"u{number}": number / 7 for number in range(4)}
    found = Comparison({"a": {unit: value + 1e-8 for unit, value in one.items()}, "b": one})
    assert found.difference("a", "b").found == "better"
    assert found.beaten(1) == ["b"]


def test_settings_that_share_no_unit_are_not_compared():
    """One that nothing connects with the rest is left out with a line; two that only others connect get no interval."""
    values = drawn({"a": 0.0, "b": 0.1, "c": 0.2}, 4)
    apart = {"a": values["a"], "b": values["b"], "alone": {"elsewhere": 9.0}}
    found = Comparison(apart)
    assert (found.best, found.pairs("a", "alone")) == ("b", 0)
    assert found.left_out == ["alone: left out of the comparison, as no other setting was measured on the same units"]
    with pytest.raises(ValueError, match="no unit in common"):
        found.difference("a", "alone")
    chain = {
        "a": {u: values["a"][u] for u in ("u0", "u1")},
        "b": values["b"],
        "c": {u: values["c"][u] for u in ("u2", "u3")},
    }
    found = Comparison(chain)
    assert (found.left_out, found.pairs("a", "c")) == ([], 0)
    with pytest.raises(ValueError, match="no unit in common"):
        found.difference("a", "c")
    assert found.difference("a", "b").pairs == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_no_number_ends_no_comparison(bad):
    """It is left out with a line; all others are compared as if it had not been measured."""
    values = drawn({"a": 0.02, "b": 0.0, "c": 0.01}, 5)
    without = {name: {u: v for u, v in units.items() if (name, u) != ("b", "u1")} for name, units in values.items()}
    values["b"]["u1"] = bad
    found, expected = Comparison(values), Comparison(without)
    assert found.difference("a", "b") == expected.difference("a", "b")
    assert found.left_out == [f"b, u1: left out of the comparison, as its value is {bad}"]
    nothing = Comparison({"a": {"u": bad}, "b": {"u": bad}})
    assert (nothing.best, nothing.values, len(nothing.left_out)) == (None, {}, 2)
