"""Reversions: the winner of a search with one setting put back to its published value, all else as it is.

Settings that belong together are put back together. A setting follows another one if it acts with only one of that one's
two values: the numbers of a loss follow `criterion`, those of the masks `nb_clusters` or `fixed_mask`. Whether it acts is
known from `dcml_tune.config.unused` and from the conditions of the search space.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dcml_tune.cli.quantities import brief
from dcml_tune.config.trial import TrialConfig
from dcml_tune.config.unused import unused_reasons

if TYPE_CHECKING:
    from search_spaces import SearchSpace

Settings = Mapping[str, Any]
Refusal = Callable[[dict[str, Any]], str | None]
"""Returns why settings cannot work, or None."""

_PAIRS = (("sz_resize", "sz_crop"),)
"""Settings that are one choice: the size of the image that is cropped, and of the crop."""

_MOST_NEEDED = 2  # further groups that are put back with a group which cannot work on its own


@dataclass(frozen=True, kw_only=True)
class Reversion:
    """One setting of the winner, with those that belong to it, at the published value."""

    changes: dict[str, tuple[Any, Any]]
    """Setting -> value of the winner, published value. The first setting is the one that the others belong to."""
    main: tuple[str, ...]
    """The settings that act before and after; the others have an effect with only one of the values."""
    config: dict[str, Any]
    """All settings of the run."""
    importance: float
    """The largest importance of its settings."""

    @property
    def setting(self) -> str:
        """The setting after which it is named."""
        return next(iter(self.changes))

    @property
    def slug(self) -> str:
        """Its name as a part of file names; it differs where the settings or values do."""
        facts = json.dumps(self.changes, sort_keys=True)
        return f"{self.setting}-{hashlib.sha256(facts.encode()).hexdigest()[:6]}"

    def __str__(self) -> str:
        return " with ".join(f"{name} {_text(self.changes[name])}" for name in self.main)


def reversions(
    space: SearchSpace, winner: Settings, published: Settings, importance: Mapping[str, float], refusal: Refusal
) -> tuple[list[Reversion], list[str]]:
    """Return the reversions of a winner, the most important first, and a line for each one that cannot work.

    Args:
        space: of the search; its conditions count.
        winner: settings of the winner.
        published: settings of the published point.
        importance: of the settings that vary.
        refusal: returns why settings cannot work, or None.
    """
    ours, theirs = TrialConfig(**winner).model_dump(), TrialConfig(**published).model_dump()
    groups = _groups(space, ours, theirs)
    rated = {root: max(importance.get(name, 0.0) for name in group) for root, group in groups.items()}
    order = sorted(groups, key=lambda root: -rated[root])  # the sort is stable
    found: list[Reversion] = []
    lines: list[str] = []
    for root in order:
        others = [groups[other] for other in order if other != root]
        config, names, reason = _working({**winner}, groups[root], others, theirs, refusal)
        changes = {name: (ours[name], theirs[name]) for name in names}
        if reason is not None:
            lines.append(f"{root} {_text(changes[root])}: not put back, as it cannot work: {reason}")
        elif config not in [each.config for each in found]:
            acting = _acting(space, ours) & _acting(space, {**ours, **config})
            main = tuple(name for name in names if name in acting or name == root)
            found.append(Reversion(changes=changes, main=main, config=config, importance=rated[root]))
    return found, lines


def _text(change: tuple[Any, Any]) -> str:
    before, after = ("none" if value is None else brief(value) for value in change)
    return f"{before} -> {after}"


def _working(
    winner: dict[str, Any], group: list[str], others: list[list[str]], published: Settings, refusal: Refusal
) -> tuple[dict[str, Any], list[str], str | None]:
    """The winner with a group put back, and with the fewest others without which it cannot work.

    Returns:
        The settings, the names that are put back, and why nothing works, or None.
    """
    reason: str | None = None
    for count in range(_MOST_NEEDED + 1):
        for more in itertools.combinations(others, count):
            names = list(dict.fromkeys([*group, *itertools.chain(*more)]))
            config = {**winner, **{name: published[name] for name in names}}
            refused = refusal(config)
            if refused is None:
                return config, names, None
            reason = reason or refused
    return winner, group, reason


def _groups(space: SearchSpace, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, list[str]]:
    """Setting -> the settings that are put back with it, itself first, for each that acts and follows no other."""
    differing = [name for name in ours if ours[name] != theirs[name]]
    acting = _acting(space, ours)
    followers: dict[str, set[str]] = {}
    for name in differing:
        after = _acting(space, {**ours, name: theirs[name]})
        followers[name] = set((acting ^ after) & set(differing)) - {name}
    for one, other in _PAIRS:
        if one in followers and other in followers:
            followers[one].add(other)
    leads = {name: _reached(name, followers) for name in differing}
    roots = [
        name
        for place, name in enumerate(differing)
        if name in acting
        and not any(
            name in leads[other] and (other not in leads[name] or number < place)
            for number, other in enumerate(differing)
            if other in acting
        )
    ]
    return {root: [root, *(name for name in differing if name in leads[root])] for root in roots}


def _reached(name: str, followers: dict[str, set[str]]) -> set[str]:
    """The settings that follow a setting, those that follow these, and so on."""
    found: set[str] = set()
    new = set(followers[name])
    while new:
        found |= new
        new = {each for one in new for each in followers[one]} - found
    return found - {name}


def _acting(space: SearchSpace, settings: Settings) -> frozenset[str]:
    """The settings that have an effect, or vary, in a trial."""
    unused = unused_reasons(TrialConfig.model_construct(**settings))
    return frozenset(name for name in settings if name not in unused and space.varies(name, settings))
