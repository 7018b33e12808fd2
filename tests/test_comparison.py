import numpy as np
import pytest
from scipy.stats import t, ttest_rel

from dcml_tune.search.confirmation import FoldSeed
from dcml_tune.search.statistics import Comparison


def best(found):
    """The setting with the highest mean."""
    return max(found.values, key=found.mean)


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
    assert list(Comparison({**values, "d": {}}).values) == ["a", "b", "c"]


def test_one_unit_has_no_interval():
    """And none of two settings is told from the other."""
    found = Comparison({"a": {"u": 0.9}, "b": {"u": 0.1}})
    assert found.difference("a", "b").found == "one pair: no interval"
    assert (Comparison({}).values, Comparison({}).noise) == ({}, None)
    assert Comparison({"a": {"u": 0.9}}).not_told_from("a") == []


def test_the_interval_holds_what_it_says():
    """Of 2,000 comparisons of equal settings one in twenty finds a difference, also where a setting left early."""
    missing = [("c", 2), ("c", 3)]
    found = [
        Comparison(drawn({"a": 0.0, "b": 0.0, "c": 0.0}, 4, seed=seed, missing=missing)).difference("a", "c").found
        for seed in range(2000)
    ]
    assert 0.035 < np.mean([each != "no difference found" for each in found]) < 0.065


def on_folds(effects, seeds, *, interaction=0.005, noise=0.006, seed=0):
    """Values of settings on folds with these numbers of seeds, which may differ between settings."""
    rng = np.random.default_rng(seed)
    levels, found = rng.normal(0.5, 0.025, len(seeds)), {}
    for name, effect in effects.items():
        found[name] = {}
        for fold, (level, count) in enumerate(zip(levels, seeds, strict=True), 1):
            own = rng.normal(0, interaction)
            drawn = effect + level + own + rng.normal(0, noise, count)
            found[name] |= {FoldSeed(fold, number): float(value) for number, value in enumerate(drawn)}
    return found


def test_seeds_are_averaged_within_a_fold():
    """The paired t-test over folds; seeds on one fold are one unit, and have no interval."""
    values = on_folds({"a": 0.01, "b": 0.0}, [3, 3, 3, 3])
    means = [[np.mean([v for u, v in units.items() if u.fold == f]) for f in range(1, 5)] for units in values.values()]
    found = Comparison(values).difference("a", "b")
    assert (found.low, found.high) == pytest.approx(ttest_rel(*means).confidence_interval(0.95))
    assert (found.pairs, found.freedom) == (4, pytest.approx(3))
    one = Comparison(on_folds({"a": 0.3, "b": 0.0}, [6]))
    assert (one.difference("a", "b").found, one.lower_end("a", "b"), one.not_told_from("a")) == (
        "one pair: no interval",
        None,
        ["b"],
    )


@pytest.mark.parametrize("seeds", [[2, 2, 2], [4, 1, 1, 1], [3, 3, 1, 1, 1, 1]])
@pytest.mark.parametrize("interaction", [0.0, 0.01])
def test_intervals_over_folds_hold_what_they_say(seeds, interaction):
    """Also where numbers of seeds differ (Satterthwaite), and with three settings."""
    missed = [
        Comparison(on_folds(dict.fromkeys("abc", 0.0), seeds, interaction=interaction, seed=seed)).difference("a", "b")
        for seed in range(500)
    ]
    assert 0.02 < np.mean([each.found != "no difference found" for each in missed]) < 0.08


def test_the_lower_end_holds_for_whichever_setting_was_chosen():
    """Of 2,000 winners of six equal settings at most one in forty is ahead of the control; an ordinary t finds more."""
    names, ahead, ordinary = "abcdef", [], []
    for seed in range(2000):
        found = Comparison(drawn(dict.fromkeys(names, 0.0), 4, seed=seed))
        if (chosen := best(found)) != "f":
            end = found.lower_end(chosen, "f")
            ahead.append(end.low > 0)
            assert (end.p < 0.025) == (end.low > 0)
            ordinary.append(found.difference(chosen, "f").low > 0)
    assert np.sum(ahead) / 2000 < 0.025 + 3 * 0.0035
    assert np.sum(ordinary) / 2000 > 0.06


def test_which_settings_may_be_the_best():
    """Hsu's set contains the best of six in 95 % of cases, and not one that is far behind."""
    effects = {"a": 0.005, **dict.fromkeys("bcde", 0.0), "f": -0.1}
    held = []
    for seed in range(500):
        found = Comparison(drawn(effects, 3, seed=seed))
        chosen = best(found)
        held.append("a" in [chosen, *found.not_told_from(chosen)])
        assert "f" not in found.not_told_from(chosen)
    assert np.mean(held) > 0.95 - 3 * 0.01


def test_more_seeds_are_judged_by_the_noise_of_the_first():
    """Stein's two stages: the mean is that of all seeds, the noise that of the first."""
    values = drawn({"a": 0.02, "b": 0.0}, 12)
    first = Comparison({name: dict(list(units.items())[:4]) for name, units in values.items()})
    found = Comparison(values).difference("a", "b", first.noise)
    assert found.mean == pytest.approx(Comparison(values).difference("a", "b").mean)
    assert (found.freedom, found.error) == (pytest.approx(3), pytest.approx(first.noise.sd * np.sqrt(2 / 12)))


def test_the_noise_of_two_settings():
    """Of two alone it is theirs; among others it is halfway between theirs and that of all."""
    values = drawn(dict.fromkeys("abc", 0.0), 5)
    found, alone = Comparison(values), Comparison({name: values[name] for name in "ab"})
    assert alone.noise_of("a", "b") == alone.noise
    own, both = alone.noise.sd, found.noise_of("a", "b")
    assert both.sd == pytest.approx(np.sqrt((own**2 + found.noise.sd**2) / 2))
    assert both.freedom == pytest.approx(1 / (0.75**2 / 4 + 0.25**2 / 4))
    assert Comparison({"a": {"u": 0.5}, "b": {"u": 0.4}}).noise_of("a", "b") is None


@pytest.mark.parametrize("loud", [0.5, 1.0, 2.0])
def test_a_third_setting_may_be_differently_noisy(loud):
    """The interval of two others covers in 92 % of cases at least, and in 91 % with the noise of all settings."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(1500):
        sds = {"a": 1.0, "b": 1.0, "c": loud}
        values = {name: {f"u{n}": float(v) for n, v in enumerate(rng.normal(0, sd, 5))} for name, sd in sds.items()}
        found = Comparison(values)
        each = found.difference("a", "b", found.noise_of("a", "b"))
        covered.append(each.low < 0 < each.high)
    assert np.mean(covered) > 0.925 - 3 * 0.0068


def test_equal_settings_are_never_better():
    """Whatever the values are, rounding finds no difference between equal ones, and drops nobody."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        units = {f"u{number}": value for number, value in enumerate(rng.random(rng.integers(2, 7)))}
        found = Comparison({"a": units, "b": dict(units)})
        difference = found.difference("a", "b")
        assert (difference.mean, difference.low, difference.high) == (0.0, None, None)
        assert (difference.p, difference.interval(0.1), found.lower_end("a", "b")) == (None, None, None)
        assert found.not_told_from("a") == ["b"]


def test_a_difference_without_spread_has_no_interval():
    """One more image of a hundred million on each unit: rounding is no measure of how much settings vary."""
    one = {f"u{number}": number / 7 for number in range(4)}
    found = Comparison({"a": {unit: value + 1e-8 for unit, value in one.items()}, "b": one})
    assert found.difference("a", "b").found == "no spread: no interval"
    assert found.lower_end("a", "b") is None


def test_settings_that_share_no_unit_are_not_compared():
    """One that nothing connects with the rest is left out with a line; two that only others connect get no interval."""
    values = drawn({"a": 0.0, "b": 0.1, "c": 0.2}, 4)
    apart = {"a": values["a"], "b": values["b"], "alone": {"elsewhere": 9.0}}
    found = Comparison(apart)
    assert (best(found), found.pairs("a", "alone")) == ("b", 0)
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
    assert (nothing.values, len(nothing.left_out)) == ({}, 2)
