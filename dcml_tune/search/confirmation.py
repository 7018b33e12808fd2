"""The confirmation: the best settings of a search are compared again, all on the same further folds and seeds.

Above 250 lines because it holds the candidates, the units and the result of the comparison beside the comparison itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import SEEDS, TrialConfig
from dcml_tune.data.splits import nb_folds
from dcml_tune.runs.study import by_launch, first_best
from dcml_tune.search.halving import nb_runs, rounds
from dcml_tune.search.intervals import TIE

if TYPE_CHECKING:
    from dcml_tune.config.search import SearchConfig
    from trainables.known_trial import KnownTrial

PUBLISHED, NO_DIVISION = "published", "no division"
CONTROLS = (PUBLISHED, NO_DIVISION)
FOLDS = 3
"""Number of folds of a confirmation, unless --folds is given."""


def wanted_controls(config: SearchConfig) -> tuple[str, ...]:
    """Return the names of the controls that --controls asks for."""
    return CONTROLS if config.controls == "both" else (PUBLISHED,)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A setting that can win a search."""

    name: str
    """Key of its trial, `published` or `no division`."""
    config: dict[str, Any]
    value: float | None = None
    """Best value in the search; None if it was not tried there, or failed."""
    key: str | None = None
    """Key of its trial in the search; None if it was not tried there, or failed."""
    epochs: int | None = None
    """Number of epochs after which it was best in the search; None if it did not complete there."""

    @property
    def slug(self) -> str:
        """Its name as a part of file names."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class FoldSeed:
    """A unit on which all candidates are compared: a fold of held-out classes, and a seed."""

    fold: int
    seed: int

    def __str__(self) -> str:
        return f"fold {self.fold}, seed {self.seed}"


def candidates(
    trials: list[KnownTrial], published: dict[str, Any], most: int, wanted: tuple[str, ...] = CONTROLS
) -> list[Candidate]:
    """Return the best trials of a search, and its controls: the published setting, and the same without division.

    A control that was tried in the search takes the place of its trial.

    Args:
        trials: of the search.
        published: settings of the published point.
        most: maximum number of trials besides the controls.
        wanted: names of the controls.
    """
    tried = sorted((t for t in trials if t.has_ended and t.best is not None), key=lambda trial: by_launch(trial.key))
    valued = sorted(
        tried, key=lambda trial: trial.best or 0.0, reverse=True
    )  # the sort is stable: equal trials keep their order
    known: dict[tuple[tuple[str, str], ...], Candidate] = {}
    for trial in valued:
        config = dict(trial.config)
        epochs = trial.best_epoch if trial.state == "done" else None
        made = Candidate(name=trial.key, config=config, value=trial.best, key=trial.key, epochs=epochs)
        known.setdefault(_frozen(config), made)
    controls = [(PUBLISHED, published)]
    if NO_DIVISION in wanted and published["nb_clusters"] != 1:
        controls.append((NO_DIVISION, {**published, "nb_clusters": 1}))
    same = {name: known.pop(_frozen(config), None) for name, config in controls}
    found = list(known.values())[:most]
    for name, config in controls:
        found.append(replace(same[name] or Candidate(name=name, config=config), name=name, config=config))
    return found


def _frozen(config: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, repr(value)) for name, value in config.items()))


def units(folds: int, seeds: int, first_seed: int) -> list[FoldSeed]:
    """Return the units of a confirmation: folds 1, 2, ... (the search uses fold 0), each unit with its own seed.

    All folds come before the second seed of a fold: seeds on one fold see the same classes.
    """
    return [FoldSeed(1 + number % folds, (first_seed + 1 + number) % SEEDS) for number in range(folds * seeds)]


def confirmation_units(
    base: TrialConfig, nb_classes: int, confirm: int, folds: int | None, seeds: int
) -> tuple[list[FoldSeed], list[str]]:
    """Return the units of a confirmation, and a line that says why there are none where some were asked for.

    Args:
        base: of the search: protocol, share of held-out classes, seed.
        nb_classes: number of training classes.
        confirm: number of settings to confirm; 0: none.
        folds: number of folds; None: 3, or as many as there are.
        seeds: number of seeds per fold.

    Raises:
        SettingError: if there are fewer folds than were asked for.
    """
    if confirm == 0:
        return [], []
    if base.protocol == "paper":
        return [], ["nothing is confirmed: --protocol paper holds no classes out"]
    most = nb_folds(nb_classes, base.held_out_share) - 1
    if folds is not None and folds > most:
        raise SettingError(
            f"--folds {folds}: val_share={base.val_share:g} leaves {most} beside that of the search; give at most so "
            "many, or lower --val-share"
        )
    count = min(FOLDS if folds is None else folds, most)
    if count == 0:
        return [], [f"nothing is confirmed: val_share={base.val_share:g} leaves no further classes to hold out"]
    return units(count, seeds, base.seed), []


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """The results of a confirmation."""

    candidates: list[Candidate]
    units: list[FoldSeed]
    results: dict[tuple[str, FoldSeed], dict[str, Any]]
    """(candidate, unit) -> what its run measured."""
    dropped: dict[str, int]
    """Candidate -> number of units after which it was eliminated."""
    metric: str
    failed: dict[str, list[FoldSeed]] = field(default_factory=dict)
    """Candidate -> units on which its run failed. It cannot win."""
    not_chosen: frozenset[str] = frozenset()
    """Controls that are not among the settings to choose from: they run on the first unit alone, which gives their number of
    epochs, and the test classes compare them with the winner."""
    kept: str | None = None
    """The winner of an earlier verdict, if only its final seeds are added to; None: the results say who wins."""

    @property
    def values(self) -> dict[str, dict[FoldSeed, float]]:
        """Candidate -> unit -> value; no unit for a candidate of which a run failed.

        The value is that of the epoch after which the mean curve of the candidate on its other units is highest, so a run has
        no part in the choice of its own epoch, and the maximum of a noisy curve adds nothing. A candidate with one unit is
        valued at the epoch that was best in the search or, if that is unknown, at its last one.
        """
        return {each.name: {} if each.name in self.failed else self._values_of(each) for each in self.candidates}

    def _values_of(self, candidate: Candidate) -> dict[FoldSeed, float]:
        curves = self._curves(candidate)
        found = {}
        for unit, curve in curves.items():
            others = [other for each, other in curves.items() if each != unit]
            epoch = _best_epoch(others) or candidate.epochs or len(curve)
            found[unit] = float(curve[min(epoch, len(curve)) - 1])
        return found

    def _curves(self, candidate: Candidate) -> dict[FoldSeed, list[float]]:
        """Unit -> value of the metric after each epoch."""
        return {unit: result["curve"] for (name, unit), result in self.results.items() if name == candidate.name}

    @property
    def winner(self) -> Candidate:
        """The candidate with the highest mean over the units that all remaining candidates have.

        If there is no such unit, it is the best of the search; of equal candidates it is the one that was tried first.
        """
        tried = sorted(self.candidates, key=lambda each: (each.key is None, by_launch(each.key or "")))
        if self.kept is not None:
            return next(each for each in tried if each.name == self.kept)
        choice = [each for each in tried if each.name not in self.not_chosen]
        whole = [each for each in choice if each.name not in self.failed]
        for left in ([each for each in whole if each.name not in self.dropped], whole):
            if means := self.means([each.name for each in left]):
                highest = max(means.values())
                return next(each for each in left if highest - means[each.name] < TIE)
        return first_best(whole or choice, lambda each: each.value) or (whole or choice)[0]

    def means(self, names: list[str]) -> dict[str, float]:
        """Return the mean of each candidate over the units that all of them have; empty if there is no such unit."""
        values = self.values
        shared = [
            unit for unit in self.units if names and all(math.isfinite(values[n].get(unit, math.nan)) for n in names)
        ]
        return {name: fmean(values[name][unit] for unit in shared) for name in names} if shared else {}

    def epochs(self, candidate: Candidate) -> int | None:
        """Return the number of epochs after which the mean of a candidate's curves is highest; None: all epochs."""
        return _best_epoch(list(self._curves(candidate).values())) or candidate.epochs

    def failure_lines(self) -> list[str]:
        """A line for each candidate that was not measured because runs failed, and one if none is left to choose from."""
        lines = []
        for name, units in self.failed.items():
            said = "is not compared on held-out classes" if name in self.not_chosen else "cannot win"
            lines.append(f"{name} {said}, as its run on {'; '.join(map(str, units))} failed")
        choice = {each.name for each in self.candidates} - self.not_chosen
        if self.failed.keys() >= choice:
            lines.append("runs of every setting failed, so the winner is the best one of the search")
        elif self.failed.keys() >= choice - self.dropped.keys():
            lines.append("runs of every setting that was left failed, so the winner is one that was dropped before")
        return lines


def _best_epoch(curves: list[list[float]]) -> int | None:
    """Return the number of epochs after which the mean of some curves is highest; None without a curve."""
    if not curves:
        return None
    means = [fmean(values) for values in zip(*curves, strict=True)]
    best = first_best(range(len(means)), lambda epoch: means[epoch])
    return None if best is None else 1 + best


Run = tuple[Candidate, FoldSeed]


def race(
    found: list[Candidate],
    units: list[FoldSeed],
    *,
    metric: str,
    results: Callable[[list[Run]], dict[tuple[str, FoldSeed], dict[str, Any]]],
    is_over: Callable[[], bool],
    controls_compete: bool = False,
) -> Confirmation:
    """Choose one of the candidates by sequential halving over the units.

    A candidate whose run fails is out, because the units on which it happens to have a result may be the easy ones.

    Args:
        found: the candidates.
        units: the units on which they can be compared.
        metric: by which they are compared.
        results: runs what has no result yet, and returns all results of the given runs.
        is_over: returns whether a budget is used up.
        controls_compete: whether the controls are among the settings to choose from; then they run on all units. Otherwise
            each runs on the first unit alone. Where a search has no other setting they compete.
    """
    trials = [each for each in found if each.name not in CONTROLS]
    controls = [each for each in found if each not in trials] if trials else []
    aside = controls if units and not controls_compete else []
    staying = [each for each in controls if each not in aside]
    left = trials or found
    raced = Confirmation(
        candidates=found,
        units=units,
        results={},
        dropped={},
        metric=metric,
        not_chosen=frozenset(each.name for each in aside),
    )
    for each in rounds(len(left), len(units)):
        left = _best_half(raced, left, each.settings, each.units.start)
        wanted = [(candidate, units[number]) for number in each.units for candidate in [*left, *staying]]
        if each.units.start == 0:
            wanted += [(control, units[0]) for control in aside]
        raced.results.update(results(wanted))
        if is_over():
            break
        for candidate, unit in wanted:
            if not _has_value(raced, candidate, unit):
                raced.failed.setdefault(candidate.name, []).append(unit)
        left, staying = ([each for each in some if each.name not in raced.failed] for some in (left, staying))
        if not left:
            break
    return raced


def _has_value(raced: Confirmation, candidate: Candidate, unit: FoldSeed) -> bool:
    result = raced.results.get((candidate.name, unit))
    return result is not None and all(map(math.isfinite, result["curve"]))


def _best_half(raced: Confirmation, left: list[Candidate], most: int, number: int) -> list[Candidate]:
    """Return the candidates that stay for a round, and note the others as dropped after this number of units."""
    if len(left) <= most:
        return left
    means = raced.means([each.name for each in left])
    # The sort is stable: of equal candidates, which rounding may set apart, the first stays.
    best = sorted(left, key=lambda each: -round(means[each.name] / TIE))[:most]
    for candidate in left:
        if candidate not in best:
            raced.dropped[candidate.name] = number
    return [each for each in left if each in best]


def nb_confirming_runs(settings: int, units: int, controls: int, *, controls_compete: bool) -> int:
    """Return the number of runs of a confirmation; for the arguments see `race`."""
    of_controls = units if controls_compete else min(1, units)
    return nb_runs(settings, units) + controls * of_controls
