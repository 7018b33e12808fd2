"""`--warm-start`: trials of earlier searches on the same images, to learn from or to try first."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.config.unused import unused_reasons
from dcml_tune.runs.paths import named_directory
from dcml_tune.runs.record import Record
from dcml_tune.runs.study import KEY, read_study
from search_spaces.space import InfeasibleReason, SearchSpace

EARLIER = "dcml.earlier"
"""Attribute of a trial that an earlier search has run: SEARCH/KEY."""
_TRIED_FIRST = 3
# Settings that cannot change the images or the value of a trial: the fingerprint identifies the images.
_IRRELEVANT = frozenset({"dataset_dir", "num_workers", "seed", "strict", "allow_partial", "skip_unreadable"})


@dataclass(kw_only=True)
class WarmStart:
    """What a search takes over from earlier ones."""

    trials: list[FrozenTrial] = field(default_factory=list)
    """Trials whose values are comparable with those of the search."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """Settings to try first: the best of searches whose values are not comparable."""
    lines: list[str] = field(default_factory=list)
    """One line to print about each earlier search."""


def warm_start(
    names: list[str],
    output: Path,
    *,
    data: Collection[str],
    metrics: list[str],
    space: SearchSpace,
    infeasible_reason: InfeasibleReason | None = None,
) -> WarmStart:
    """Read earlier searches.

    Trials are comparable if they differ only in settings that vary here. Where other settings differ, such as the number
    of epochs, values differ for that reason, too, and only the best settings are taken.

    Args:
        names: names of the searches, or paths of their directories.
        output: directory that holds them.
        data: fingerprints of the images, as this version and earlier ones compute them.
        metrics: measures by which trials are compared.
        space: space of the new search.
        infeasible_reason: returns why a configuration cannot work on the data, or None.

    Raises:
        SettingError: if there is no such search, it has other images, or other metrics.
    """
    found = WarmStart()
    for name in names:
        _add(found, _known(output, name, data, metrics), space, infeasible_reason)
    return found


def _known(output: Path, name: str, data: Collection[str], metrics: list[str]) -> Record:
    directory = named_directory("--warm-start", name, output)
    try:
        record = Record.open(directory)
    except SettingError as error:
        raise SettingError(f"--warm-start {name}: {str(error).removeprefix(f'--resume {directory.name}: ')}") from None
    if record.asked["data"] not in data:
        here = next(iter(data))
        raise SettingError(
            f"--warm-start {name}: its images are others (fingerprint {record.asked['data']}, here {here}); leave it out"
        )
    theirs = record.asked["metrics"]
    if theirs != metrics:
        raise SettingError(
            f"--warm-start {name}: its trials were compared by {', '.join(theirs)}, here it is {', '.join(metrics)}; give "
            "--metric, or leave it out"
        )
    return record


def _add(found: WarmStart, record: Record, space: SearchSpace, infeasible_reason: InfeasibleReason | None) -> None:
    """Take over the trials, or the best settings, of one earlier search, and add the line about it."""
    sorted_out = _Sorted.of(record, space, infeasible_reason)
    found.trials += [_trial(frozen, chosen, space, record.name) for frozen, chosen in sorted_out.comparable]
    points = sorted_out.best_others(found.points)
    found.points += points
    found.lines.append(f"warm start from {record.name}: {'; '.join(sorted_out.summary(len(points)))}")


@dataclass(kw_only=True)
class _Sorted:
    """The ended trials of an earlier search, by what they are worth here; each with its settings in this space."""

    comparable: list[tuple[FrozenTrial, dict[str, Any]]] = field(default_factory=list)
    others: list[tuple[FrozenTrial, dict[str, Any]]] = field(default_factory=list)
    """Trials that differ in settings that do not vary here."""
    differing: set[str] = field(default_factory=set)
    """Names of those settings."""
    outside: int = 0
    """Number of trials that are not in this space."""

    @classmethod
    def of(cls, record: Record, space: SearchSpace, infeasible_reason: InfeasibleReason | None) -> _Sorted:
        """Sort the trials of a search; failed ones, and those without an end, are ignored."""
        made, whole = cls(), _settings_of(record)
        for frozen in read_study(record.directory):
            if KEY not in frozen.user_attrs or frozen.state not in (TrialState.COMPLETE, TrialState.PRUNED):
                continue
            config = TrialConfig(**whole(frozen.params))
            chosen = {name: getattr(config, name) for name in space.active(config.model_dump())}
            held = all(space.domains[name].holds(value) for name, value in chosen.items())
            if not held or space.refusal(chosen, infeasible_reason):
                made.outside += 1
                continue
            differs = _differences(config, space, chosen)
            made.differing |= differs
            (made.others if differs else made.comparable).append((frozen, chosen))
        return made

    def best_others(self, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the best settings of the trials that are not comparable, without those that are known."""
        best = sorted(self.others, key=lambda each: each[0].values[0], reverse=True)
        return [chosen for _, chosen in best if chosen not in known][:_TRIED_FIRST]

    def summary(self, points: int) -> list[str]:
        """Return what is printed about the search, given the number of settings that are tried first."""
        lines = [f"{len(self.comparable)} trials teach the sampler"] if self.comparable or not self.others else []
        if self.others:
            names = ", ".join(sorted(self.differing))
            lines.append(f"{len(self.others)} are not comparable ({names}), the best {points} settings are tried first")
        if self.outside:
            lines.append(f"{self.outside} lie outside of what is searched here")
        return lines


def _differences(config: TrialConfig, space: SearchSpace, chosen: dict[str, Any]) -> set[str]:
    """Return the settings in which an earlier trial differs from the trial that it would be here."""
    here = TrialConfig(**space.whole(chosen))
    idle = unused_reasons(config).keys() & unused_reasons(here).keys()
    there = config.model_dump().items()
    return {name for name, value in there if getattr(here, name) != value} - _IRRELEVANT - idle


def _settings_of(record: Record) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that returns all settings of a trial of an earlier search, given those that were sampled."""
    facts = record.asked["space"]
    try:
        return SearchSpace.from_json(facts).whole
    except SettingError:  # its space is one that this version does not accept
        return lambda sampled: {**facts["published"], **sampled}


def _trial(frozen: FrozenTrial, chosen: dict[str, Any], space: SearchSpace, search: str) -> FrozenTrial:
    return optuna.trial.create_trial(
        state=frozen.state,
        params=chosen,
        distributions={name: space.domains[name].distribution() for name in chosen},
        values=frozen.values,
        intermediate_values=frozen.intermediate_values,
        user_attrs={EARLIER: f"{search}/{frozen.user_attrs[KEY]}"},
    )
