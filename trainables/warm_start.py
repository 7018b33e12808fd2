"""What earlier searches on the same images know: trials for the sampler to learn from, or points to try first."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.runs.paths import named_directory
from dcml_tune.runs.record import Record
from dcml_tune.runs.study import KEY, read_study
from search_spaces.space import InfeasibleReason, SearchSpace

EARLIER = "dcml.earlier"
"""Attribute of a trial that an earlier search ran: SEARCH/KEY."""
_TRIED_FIRST = 3
# Settings that say where images are and how they are read; which images there are, the fingerprint says.
_NO_MATTER = frozenset({"dataset_dir", "num_workers", "seed", "strict", "allow_partial", "skip_unreadable"})


@dataclass(kw_only=True)
class WarmStart:
    """What a search takes over."""

    trials: list[FrozenTrial] = field(default_factory=list)
    """Trials whose values can be compared with those of the search."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """Settings to try first: the best of searches whose values cannot be compared."""
    lines: list[str] = field(default_factory=list)
    """What is said about each earlier search."""


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

    Trials of the same settings but for those that vary are comparable. Where others differ, such as the number of epochs,
    values differ for that reason, too, and only the best settings are taken.

    Args:
        names: of the searches, or paths of their directories.
        output: directory that holds them.
        data: fingerprints of the images, by this version and by earlier ones.
        metrics: by which trials are compared.
        space: of the search that begins.
        infeasible_reason: says why a configuration cannot work on the data, or None.

    Raises:
        SettingError: if there is no such search, its images are others, or it was compared by other metrics.
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
    published = record.asked["space"]["published"]
    comparable: list[tuple[FrozenTrial, dict[str, Any]]] = []
    others: list[tuple[FrozenTrial, dict[str, Any]]] = []
    outside = 0
    differing: set[str] = set()
    for frozen in read_study(record.directory):
        if KEY not in frozen.user_attrs or frozen.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            continue
        config = TrialConfig(**{**published, **frozen.params})
        chosen = {name: getattr(config, name) for name in space.domains}
        if not all(domain.holds(chosen[name]) for name, domain in space.domains.items()) or space.refusal(
            chosen, infeasible_reason
        ):
            outside += 1
            continue
        differs = _differences(config, space, chosen)
        differing |= differs
        (others if differs else comparable).append((frozen, chosen))
    name = record.name
    found.trials += [_trial(frozen, chosen, space, name) for frozen, chosen in comparable]
    said = [f"{len(comparable)} trials teach the sampler"] if comparable or not others else []
    if others:
        best = sorted(others, key=lambda each: each[0].values[0], reverse=True)
        points = [chosen for _, chosen in best if chosen not in found.points][:_TRIED_FIRST]
        found.points += points
        names = ", ".join(sorted(differing))
        said.append(f"{len(others)} are not comparable ({names}), the best {len(points)} settings are tried first")
    if outside:
        said.append(f"{outside} lie outside of what is searched here")
    found.lines.append(f"warm start from {name}: {'; '.join(said)}")


def _differences(config: TrialConfig, space: SearchSpace, chosen: dict[str, Any]) -> set[str]:
    """The settings in which an earlier trial differs from the one that it would be here."""
    here = TrialConfig(**{**space.published, **chosen}).model_dump()
    return {name for name, value in config.model_dump().items() if here[name] != value} - _NO_MATTER


def _trial(frozen: FrozenTrial, chosen: dict[str, Any], space: SearchSpace, search: str) -> FrozenTrial:
    return optuna.trial.create_trial(
        state=frozen.state,
        params=chosen,
        distributions={name: domain.distribution() for name, domain in space.domains.items()},
        values=frozen.values,
        intermediate_values=frozen.intermediate_values,
        user_attrs={EARLIER: f"{search}/{frozen.user_attrs[KEY]}"},
    )
