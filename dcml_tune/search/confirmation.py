"""The confirmation: a race of the best settings and the controls, all on the same further folds and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import SEEDS, TrialConfig
from dcml_tune.data.splits import nb_folds
from dcml_tune.runs.study import by_launch, first_best
from dcml_tune.search.statistics import Comparison

if TYPE_CHECKING:
    from trainables.known_trial import KnownTrial

PUBLISHED, NO_DIVISION = "published", "no division"
CONTROLS = (PUBLISHED, NO_DIVISION)
FOLDS = 3
"""Number of folds of a confirmation, unless --folds is given."""


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


def candidates(trials: list[KnownTrial], published: dict[str, Any], most: int) -> list[Candidate]:
    """Return the best trials of a search, and its controls: the published setting, and the same without division.

    A control that was tried in the search takes the place of its trial.

    Args:
        trials: of the search.
        published: settings of the published point.
        most: maximum number of trials besides the controls.
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
    if published["nb_clusters"] != 1:
        controls.append((NO_DIVISION, {**published, "nb_clusters": 1}))
    same = {name: known.pop(_frozen(config), None) for name, config in controls}
    found = list(known.values())[:most]
    for name, config in controls:
        found.append(replace(same[name] or Candidate(name=name, config=config), name=name, config=config))
    return found


def _frozen(config: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, repr(value)) for name, value in config.items()))


def units(folds: int, seeds: int, first_seed: int) -> list[FoldSeed]:
    """Return the units of a race: folds 1, 2, ... (the search uses fold 0), each unit with its own seed."""
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

    @property
    def values(self) -> dict[str, dict[FoldSeed, float]]:
        """Candidate -> unit -> value, for `Comparison`."""
        found: dict[str, dict[FoldSeed, float]] = {each.name: {} for each in self.candidates}
        for (name, unit), result in self.results.items():
            found[name][unit] = float(result[f"{self.metric}_best"])
        return found

    @property
    def winner(self) -> Candidate:
        """The best candidate of the confirmation or, if nothing was run, of the search; of equal ones the first tried."""
        tried = sorted(self.candidates, key=lambda each: (each.key is None, by_launch(each.key or "")))
        values = self.values
        best = Comparison({each.name: values[each.name] for each in tried if each.name not in self.dropped}).best
        if best is None:
            return first_best(tried, lambda each: each.value) or tried[0]
        return next(each for each in tried if each.name == best)

    def epochs(self, candidate: Candidate) -> int | None:
        """Return the number of epochs after which the mean of a candidate's curves is highest; None: all epochs."""
        curves = [result["curve"] for (name, _), result in self.results.items() if name == candidate.name]
        if not curves:
            return candidate.epochs
        means = [sum(values) / len(curves) for values in zip(*curves, strict=True)]
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
) -> Confirmation:
    """Run the candidates unit after unit, eliminating those that are significantly worse, until one is left.

    Args:
        found: the candidates.
        units: the units on which they can be compared.
        metric: by which they are compared, each run by its best epoch.
        results: runs what has no result yet, and returns all results of the given runs.
        is_over: returns whether a budget is used up.
    """
    raced = Confirmation(candidates=found, units=units, results={}, dropped={}, metric=metric)
    for number, batch in _batches(units):
        left = [each for each in found if each.name not in raced.dropped]
        if len(left) < 2:
            break
        raced.results.update(results([(candidate, unit) for unit in batch for candidate in left]))
        for name in Comparison(raced.values).beaten(looks=max(1, len(units) - 1)):
            raced.dropped.setdefault(name, number)
        if is_over():
            break
    return raced


def _batches(units: list[FoldSeed]) -> Iterator[tuple[int, list[FoldSeed]]]:
    """Yield (number of units completed, units to run together). Two run first: one alone gives no interval."""
    for number in range(max(1, min(2, len(units))), len(units) + 1):
        yield number, units[:2] if number <= 2 else [units[number - 1]]
