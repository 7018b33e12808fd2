"""The first trials of a search: the published point and the starts, moved to the nearest settings that can work."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dcml_tune.config.errors import SettingError
from search_spaces.base import BaseSpace, InfeasibleReason
from search_spaces.combinations import OpenError, as_written
from search_spaces.conditions import meant


def nearest_point(
    space: BaseSpace, label: str, wanted: Mapping[str, Any], infeasible_reason: InfeasibleReason | None
) -> tuple[dict[str, Any], list[str]]:
    """The wanted values of the settings that vary, and a line for each value that had to be changed.

    A value outside of its domain is replaced by the nearest one inside. If the point still cannot work, the nearest point
    that can is taken; `nb_clusters` is changed before all other settings.

    Args:
        space: of the search.
        label: of the trial, for the lines.
        wanted: setting -> value, where it is not the published one.
        infeasible_reason: returns why a configuration cannot work on the data, or None.

    Raises:
        SettingError: if no point can work.
    """
    point: dict[str, Any] = {}
    lines = []
    for name, domain in space.domains.items():
        if not space.varies(name, point):
            continue
        value = as_written(domain, name, wanted.get(name, space.fallback(name, point)))
        point[name] = domain.nearest(value)
        if point[name] != value:
            lines.append(f"{label}: {name} {value} of the published setting is outside {domain}; takes {point[name]}")
    reason = space.refusal(point, infeasible_reason)
    if reason is None:
        return point, lines
    found = None
    with suppress(OpenError):
        start = {name: meant(name, value) for name, value in wanted.items() if name in space.domains}
        found = space.problem(infeasible_reason, **start).nearest()
    if found is None or space.refusal(found, infeasible_reason) is not None:
        raise SettingError(f"the published setting cannot work here: {reason}")
    moved = [
        f"{name} from {point[name]} to {value}" for name, value in found.items() if point.get(name, value) != value
    ]
    return found, [*lines, f"{label}: {', '.join(moved)}: {reason}"]


def start_points(
    space: BaseSpace, published: dict[str, Any], infeasible_reason: InfeasibleReason | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The points of the starts that differ from each other and from the published point, and a line for each.

    A start whose loss is not searched here is left out.
    """
    points, lines = [published], list[str]()
    for start in space.starts:
        wanted, criterion = start.settings, start.settings.get("criterion", space.unvaried("criterion"))
        domain = space.domains.get("criterion")
        if criterion != space.unvaried("criterion") if domain is None else not domain.holds(criterion):
            continue
        label = f"trial {len(points)}"
        with suppress(SettingError):
            point, moved = nearest_point(space, label, wanted, infeasible_reason)
            if point not in points:
                points.append(point)
                lines += [f"{label}: {start.name} ({start.source})", *moved]
    return points[1:], lines
