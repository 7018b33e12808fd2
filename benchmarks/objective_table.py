"""The tables of objective.py: how well each objective ranks settings in the order of their test measures.

An objective is a measure of held-out classes after some epochs of a training. The measures are recall@1, MAP@R and the
mean of both. The held-out classes are a fifth of the training classes, two fifths (the mean of two trainings), or a
third. The epochs are the best one, the last one, or the last three (their mean).

A search knows an objective from one training of each setting, with one seed. The correlations are therefore computed
for each seed and each fold separately, and averaged. The value to predict is the mean over the seeds of the test
measure after the last epoch of the training on all classes.

The intervals are the 2.5 and 97.5 percentiles of a bootstrap over settings. All objectives use the same resamples, so
that their differences have intervals, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]

FIFTHS = ("0.2, fold 0", "0.2, fold 1")
ALL = "all classes"
PARTS = {FIFTHS[0]: (0.2, 0), FIFTHS[1]: (0.2, 1), "0.33, fold 0": (0.33, 0), ALL: (0.0, 0)}
"""Share of the training classes that is held out, and the fold."""

MEASURES = {"recall@1": ("recall_at_1",), "MAP@R": ("map_at_r",), "mean of both": ("recall_at_1", "map_at_r")}
BOTH = "0.2, mean of two folds"
HELD_OUT = {"0.2": FIFTHS, BOTH: FIFTHS, "0.33": ("0.33, fold 0",)}
EPOCHS: dict[str, Callable[[Array], Array]] = {
    "best": lambda curve: curve.max(axis=-1),
    "last": lambda curve: curve[..., -1],
    "mean of last 3": lambda curve: curve[..., -3:].mean(axis=-1),
}
TODAY = ("MAP@R", "0.2", "best")
TARGETS = ("recall_at_1", "map_at_r")


class Record(TypedDict):
    """One training that has ended."""

    number: int
    """Of the setting."""
    name: str
    settings: dict[str, Any]
    part: str
    """Which classes are held out: a key of `PARTS`."""
    seed: int
    curves: dict[str, list[float]]
    """Each measure after each epoch, by `val/...` and `test/...`."""
    minutes: float
    failed: str
    """Why the training failed; empty if it did not."""


class Curves(NamedTuple):
    """The trainings of settings that have all of them."""

    numbers: list[int]
    """Of the settings."""
    seeds: list[int]
    of: Mapping[tuple[str, str], Array]
    """Part and measure (`val/...`, `test/...`) -> settings x seeds x epochs; what some trainings lack is not there."""

    def objective(self, measure: str, held_out: str, epochs: str) -> Array:
        """What a search would compare: settings x seeds; of one fifth, settings x (seeds of one fold and of the other)."""
        values = [self._reached(measure, part, epochs) for part in HELD_OUT[held_out]]
        return np.mean(values, axis=0) if held_out == BOTH else np.concatenate(values, axis=1)

    def _reached(self, measure: str, part: str, epochs: str) -> Array:
        curves = [self.of[part, f"val/{name}"] for name in MEASURES[measure]]
        return EPOCHS[epochs](np.mean(curves, axis=0))

    def target(self, name: str) -> Array:
        """The test measure of the training on all classes, after its last epoch: settings x seeds."""
        return self.of[ALL, f"test/{name}"][..., -1]

    def better_half(self) -> Curves:
        """The settings whose test recall@1 is at least the median."""
        means = self.target(TARGETS[0]).mean(axis=1)
        chosen = np.flatnonzero(means >= np.median(means))
        return Curves(
            [self.numbers[each] for each in chosen], self.seeds, {at: of[chosen] for at, of in self.of.items()}
        )


def complete(records: Sequence[Record]) -> Curves:
    """The settings that have every training, with as many seeds as give the most trainings."""
    at = {(each["number"], each["part"], each["seed"]): each for each in records if not each["failed"]}
    seeds = sorted({seed for *_, seed in at})

    def whole(number: int, upto: int) -> bool:
        return all((number, part, seed) in at for part in PARTS for seed in seeds[:upto])

    numbers = {upto: [n for n in sorted({n for n, *_ in at}) if whole(n, upto)] for upto in range(1, len(seeds) + 1)}
    upto = max(numbers, key=lambda count: (count * len(numbers[count]), count), default=0)
    chosen, of = numbers.get(upto, []), {}
    for part, side, name in product(PARTS, ("val", "test"), TARGETS):
        curves = [[at[n, part, seed]["curves"].get(f"{side}/{name}", []) for seed in seeds[:upto]] for n in chosen]
        if common := min((len(curve) for setting in curves for curve in setting), default=0):
            of[part, f"{side}/{name}"] = np.array([[curve[-common:] for curve in setting] for setting in curves])
    return Curves(chosen, seeds[:upto], of)


# -- rank correlation ----------------------------------------------------------------------------------


def spearman(x: Array, y: Array) -> Array:
    """Spearman's rank correlation along the last axis; NaN where one of them is constant."""
    x, y = (rankdata(each, axis=-1) for each in (x, y))
    x, y = (each - each.mean(axis=-1, keepdims=True) for each in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))


def kendall(x: Array, y: Array) -> Array:
    """Kendall's tau-b along the last axis; NaN where one of them is constant."""
    x, y = (np.sign(each[..., :, None] - each[..., None, :]).astype(np.float32) for each in (x, y))
    pairs = [np.einsum("...ij,...ij->...", *each) for each in ((x, y), (x, x), (y, y))]
    with np.errstate(invalid="ignore", divide="ignore"):
        return pairs[0] / np.sqrt(pairs[1] * pairs[2])


class Draws:
    """Settings drawn anew with replacement: the same for every objective."""

    def __init__(self, settings: int, resamples: int) -> None:
        again = np.random.default_rng(0).integers(0, settings, (resamples, settings))
        self._rows = np.concatenate([np.arange(settings)[None], again])

    def correlation(self, by: Callable[[Array, Array], Array], objective: Array, target: Array) -> Array:
        """Of all settings and of each draw, the mean over the seeds: 1 + draws."""
        truth = target.mean(axis=1)[self._rows]
        return np.mean([by(seed[self._rows], truth) for seed in objective.T], axis=0)

    def lost(self, objective: Array, target: Array) -> Array:
        """By how many points the setting that the objective chooses is worse than the best: 1 + draws."""
        truth = target.mean(axis=1)[self._rows]
        chosen = [seed[self._rows].argmax(axis=1) for seed in objective.T]
        return np.mean([100 * (truth.max(axis=1) - truth[np.arange(len(truth)), each]) for each in chosen], axis=0)

    def mean(self, values: Array) -> Array:
        """The mean over the settings: 1 + draws."""
        return values[self._rows].mean(axis=1)


def interval(draws: Array, form: str = ".2f") -> str:
    """The value of all settings, and the interval over the draws."""
    low, high = np.nanpercentile(draws[1:], (2.5, 97.5)) if len(draws) > 1 else (np.nan, np.nan)
    return f"{draws[0]:{form}} ({low:{form}} to {high:{form}})"


# -- tables --------------------------------------------------------------------------------------------


def show(records: Sequence[Record], *, resamples: int) -> None:
    """Print the tables of the trainings."""
    print(
        "This benchmark reads the test classes to judge objectives, and no other program does. Do not take a setting from\n"
        "it: that would be a selection on test classes.\n"
    )
    found = complete(records)
    failed = sorted({each["number"] for each in records if each["failed"]})
    hours = sum(each["minutes"] for each in records) / 60
    print(f"{len(records)} trainings, {hours:.1f} hours of one core; {len(found.numbers)} settings are complete with "
          f"{len(found.seeds)} seeds" + (f"; settings that failed: {', '.join(map(str, failed))}" if failed else "") + "\n")  # fmt: skip
    if len(found.numbers) < 3:
        print("too few settings for a table")
        return
    draws = Draws(len(found.numbers), resamples)
    _print_noise(found, draws)
    for name, title in zip(TARGETS, ("test recall@1", "test MAP@R"), strict=True):
        print(f"\n## Prediction of {title}\n")
        for line in rows(found, name, draws):
            print(line)
    half = found.better_half()
    print(f"\n## Prediction of test recall@1 among the better half, {len(half.numbers)} settings\n")
    print("\n".join(rows(half, TARGETS[0], Draws(len(half.numbers), resamples))))
    if all((part, f"test/{TARGETS[0]}") in found.of for part in PARTS):
        _print_epochs(found, draws)


def _print_noise(found: Curves, draws: Draws) -> None:
    """The effect of a seed: no objective of one seed can predict better than the test value of another seed does."""
    print("| measure | worst setting | median | best | standard deviation over seeds | Spearman of two seeds |")
    print("|---|---|---|---|---|---|")
    for name in TARGETS:
        target = found.target(name)
        means, spread, agreement = 100 * target.mean(axis=1), "", ""
        if len(found.seeds) > 1:
            spread = f"{100 * np.sqrt(target.var(axis=1, ddof=1).mean()):.2f}"
            agreement = interval(draws.correlation(spearman, target[:, :1], target[:, 1:2]))
        print(
            f"| test {name} | {means.min():.1f} | {np.median(means):.1f} | {means.max():.1f} | {spread} | {agreement} |"
        )


def rows(found: Curves, name: str, draws: Draws) -> list[str]:
    """The rows of all objectives, compared with a test measure, by decreasing correlation."""
    target = found.target(name)
    today = draws.correlation(spearman, found.objective(*TODAY), target)
    lines = []
    for words in product(MEASURES, HELD_OUT, EPOCHS):
        objective = found.objective(*words)
        own = draws.correlation(spearman, objective, target)
        difference = "" if words == TODAY else interval(own - today, "+.2f")
        tau = interval(draws.correlation(kendall, objective, target))
        lost = interval(draws.lost(objective, target), ".1f")
        lines.append((float(own[0]), f"| {' | '.join(words)} | {interval(own)} | {difference} | {tau} | {lost} |"))
    lines.sort(key=lambda each: -each[0])
    head = "| measure | held out | epoch | Spearman | difference from the default | Kendall | points below the best setting |"
    return [head, "|---|---|---|---|---|---|---|", *(line for _, line in lines)]


def _print_epochs(found: Curves, draws: Draws) -> None:
    """The effect of selecting the epoch on held-out classes, on the test classes of the same training."""
    print(
        "\n## Test recall@1 of a training at the epoch with the best held-out recall@1, minus that at its last epoch\n"
    )
    print("| held out | points | trainings whose best epoch is not the last |\n|---|---|---|")
    for part in PARTS:
        if part != ALL:
            val, test = found.of[part, "val/recall_at_1"], found.of[part, "test/recall_at_1"]
            best = val.argmax(axis=-1)
            gain = 100 * (np.take_along_axis(test, best[..., None], -1)[..., 0] - test[..., -1]).mean(axis=1)
            share = (best < val.shape[-1] - 1).mean()
            print(f"| {part} | {interval(draws.mean(gain), '+.2f')} | {100 * share:.0f} % |")
