import math

import numpy as np
import pytest
from scipy.stats import dunnett, multivariate_t, norm, t

from dcml_tune.runs.hits import QueryHits
from dcml_tune.search.answers import (
    answers,
    is_equivalent,
    level_at,
    rejected,
    seeds_for_equivalence,
    seeds_needed,
    upper_limit,
)
from dcml_tune.search.class_sampling import SharedByClasses, for_new_classes, shared_by_classes
from dcml_tune.search.intervals import Difference, Noise
from dcml_tune.search.many_to_one import bound, exceedance
from dcml_tune.search.statistics import Comparison


def difference(mean, error, freedom=8.0, pairs=5):
    half = None if error is None else t.ppf(0.975, freedom) * error
    ends = (None, None) if half is None else (mean - half, mean + half)
    return Difference(pairs=pairs, mean=mean, low=ends[0], high=ends[1], error=error, freedom=freedom)


@pytest.mark.parametrize(
    ("settings", "freedom", "level"), [(1, 2, 0.0125), (2, 5, 0.025), (5, 10, 0.05), (9, 8, 0.025)]
)
def test_dunnett_is_the_multivariate_t(settings, freedom, level):
    """With a correlation of a half between any two settings, as scipy integrates it."""
    shape = np.full((settings, settings), 0.5) + 0.5 * np.eye(settings)
    limit = bound(settings, freedom, level)
    alone = t.isf(level, freedom) if settings == 1 else None
    expected = multivariate_t(shape=shape, df=freedom, seed=0).cdf(np.full(settings, limit)) if alone is None else 0
    assert limit == pytest.approx(alone, rel=1e-4) if alone else 1 - expected == pytest.approx(level, abs=5e-4)
    assert exceedance(limit, settings, freedom) == pytest.approx(level, rel=1e-4)


def test_dunnett_gives_the_p_values_of_scipy():
    """Of independent samples of equal sizes, which have the same correlation."""
    rng = np.random.default_rng(0)
    *samples, control = rng.normal(0, 1, (4, 6)) + np.array([[1.0], [0.5], [0.0], [0.0]])
    found = dunnett(*samples, control=control, alternative="greater", random_state=0)
    for statistic, p in zip(found.statistic, found.pvalue, strict=True):
        assert exceedance(statistic, 3, 20) == pytest.approx(p, abs=2e-3)


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ({"a": 0.02, "b": 0.04}, {"a", "b"}),
        ({"a": 0.03, "b": 0.04}, set()),
        ({"a": 0.024, "b": 0.06}, {"a"}),
        ({"a": 0.04, "b": None}, {"a"}),
        ({}, set()),
    ],
)
def test_holm(p_values, expected):
    """The smaller p-value is compared with half of the level, then the larger one with all of it."""
    assert rejected(p_values, 0.05) == expected


@pytest.mark.parametrize(
    ("mean", "error", "expected"),
    [(0.02, 0.005, "better"), (-0.02, 0.005, "worse"), (0.001, 0.004, "equivalent"), (0.009, 0.008, "undecided"),
     (0.0, None, "equal values"), (0.02, None, "no interval")],
)  # fmt: skip
def test_the_answers(mean, error, expected):
    """Each of them; a difference that is found is better, also within the margin."""
    assert answers({"a": difference(mean, error)}, difference=0.01) == {"a": expected}


def test_an_interval_without_zero_is_undecided_where_two_were_looked_at():
    """As Holm's procedure has it."""
    just = difference(0.0118, 0.005)
    assert just.low > 0
    assert answers({"a": just}, difference=0.01) == {"a": "better"}
    assert answers({"a": just, "b": difference(0.0, 0.005)}, difference=0.01)["a"] == "undecided"


def test_equivalence_is_two_one_sided_tests():
    """The 90 % interval lies within the margin; at the margin one in twenty is called equivalent."""
    assert is_equivalent(difference(0.0, 0.005), 0.0094) == (t.ppf(0.95, 8) * 0.005 < 0.0094)
    rng = np.random.default_rng(0)
    called = []
    for _ in range(4000):
        scale = math.sqrt(rng.chisquare(8) / 8)
        called.append(is_equivalent(difference(0.01 + rng.normal(0, 0.002), 0.002 * scale), 0.01))
    assert 0.03 < np.mean(called) < 0.065


def test_looks_share_the_level():
    """Two looks have 5 % each, of which the half is "better"; all further ones together have as much as one."""
    assert [level_at(look) for look in (1, 2, 3, 4)] == [0.05, 0.05, 0.025, 0.0125]


def test_seeds_needed_hold_their_power():
    """In 80 % of first stages the second has a power of at least 80 %, and false findings stay at 5 % (Stein)."""
    rng, seeds, sd, wanted = np.random.default_rng(0), 5, 0.006, 0.01
    powers, false = [], []
    for _ in range(4000):
        first = Noise(sd=sd * math.sqrt(rng.chisquare(8) / 8), freedom=8)
        total = max(seeds, seeds_needed(first, difference=wanted, level=0.05))
        error, limit = sd * math.sqrt(2 / total), t.isf(0.025, 8) * first.sd * math.sqrt(2 / total)
        powers.append(norm.sf((limit - wanted) / error))
        false.append(2 * norm.sf(limit / error))
    assert np.mean(np.array(powers) >= 0.8) >= 0.8 - 3 * 0.0063
    assert np.mean(powers) > 0.85
    assert np.mean(false) == pytest.approx(0.05, abs=0.003)


def test_seeds_needed_at_the_ends():
    """Never fewer than two, none above a thousand; more for smaller differences and for equivalence of equal ones."""
    noise = Noise(sd=0.006, freedom=8)
    assert seeds_needed(noise, difference=1.0, level=0.05) == 2
    assert seeds_needed(noise, difference=1e-4, level=0.05) is None
    assert seeds_needed(noise, difference=0.005, level=0.05) > 3 * seeds_needed(noise, difference=0.01, level=0.05)
    assert seeds_for_equivalence(noise, difference=0.01) > 5
    assert upper_limit(Noise(sd=1.0, freedom=1e6)) == pytest.approx(1.0, abs=1e-3)


def retrieved(rng, effects, classes=50, size=20, seeds=5, spread=0.08, own=0.05):
    """Hits of settings on classes that are differently difficult, for each setting in its own way."""
    level = rng.normal(0.5, spread, classes)
    found = {}
    for name, effect in effects.items():
        chance = np.clip(level + effect + rng.normal(0, own, classes), 0, 1)
        found[name] = {}
        for seed in range(seeds):
            hits = rng.random((classes, size)) < np.clip(chance + rng.normal(0, 0.006), 0, 1)[:, None]
            found[name][f"seed {seed}"] = QueryHits(classes=np.repeat(np.arange(classes), size), hits=hits.ravel())
    return found


def test_what_classes_share_is_the_covariance_between_seeds():
    """As the loops of its definition have it: the mean over pairs of seeds, of jackknifed classes."""
    rng = np.random.default_rng(0)
    runs = retrieved(rng, {"a": 0.02, "b": 0.0}, classes=7, size=3, seeds=3)
    ones, others = list(runs["a"].values()), list(runs["b"].values())
    table = np.array([(o.hits.astype(float) - p.hits).reshape(7, 3).sum(1) for o, p in zip(ones, others, strict=True)])
    influence = (table - table.mean(1, keepdims=True)) / 21
    pairs = [7 / 6 * influence[i] @ influence[j] for i in range(3) for j in range(3) if i != j]
    found = shared_by_classes(ones, others)
    assert (found.covariance, found.classes) == (pytest.approx(max(0, np.mean(pairs))), 7)


def test_the_interval_for_new_classes_holds_what_it_says():
    """Over samples of seeds and of classes; the interval over seeds alone does not."""
    rng, covered, narrow = np.random.default_rng(1), [], []
    for _ in range(400):
        runs = retrieved(rng, {"a": 0.0, "b": 0.0})
        values = {name: {seed: float(each.hits.mean()) for seed, each in of.items()} for name, of in runs.items()}
        here = Comparison(values).difference("a", "b")
        new = for_new_classes(here, shared_by_classes(list(runs["a"].values()), list(runs["b"].values())))
        covered.append(new.low < 0 < new.high)
        narrow.append(here.low < 0 < here.high)
    assert np.mean(covered) > 0.95 - 3 * 0.011
    assert np.mean(narrow) < np.mean(covered) - 0.02


def test_the_interval_for_new_classes_is_never_the_narrower_one():
    """Also with few seeds, whose degrees of freedom grow by a small share of the classes."""
    for freedom, covariance in ((1.3, 1e-5), (2.0, 1e-6), (6.4, 0.0), (6.4, 1e-3)):
        here = difference(0.01, 0.004, freedom)
        new = for_new_classes(here, SharedByClasses(covariance=covariance, classes=100))
        assert new.high - new.low >= here.high - here.low
        assert new.interval(0.05) == pytest.approx((new.low, new.high))


def test_runs_on_other_queries_are_refused():
    """They share no classes to estimate from."""
    rng = np.random.default_rng(0)
    one, other = (list(retrieved(rng, {"a": 0.0}, classes=n)["a"].values()) for n in (5, 6))
    with pytest.raises(ValueError, match="same queries"):
        shared_by_classes(one, other)
    with pytest.raises(ValueError, match="one class"):
        shared_by_classes(*[list(retrieved(rng, {"a": 0.0}, classes=1)["a"].values())] * 2)
