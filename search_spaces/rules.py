"""What the rules of a trial say about a whole space: what can work, why nothing works, and what has no effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from dcml_tune.cli.parser import typed
from dcml_tune.config.errors import SettingError
from dcml_tune.config.rules import RULES
from dcml_tune.config.trial import TrialConfig
from dcml_tune.config.unused import GROUPS, unused_reasons
from search_spaces.base import BaseSpace, InfeasibleReason, feasibility_rules
from search_spaces.combinations import Look, OpenError, Point, Problem
from search_spaces.constant import MAY_NOT_VARY


def why_nothing_works(
    space: BaseSpace,
    problem: Problem,
    fixed: dict[str, Any],
    infeasible_reason: InfeasibleReason | None,
    changed: Callable[[str, Any], BaseSpace],
) -> str:
    """The message if no combination works. If one change of a fixed setting would help, the smallest is the remedy.

    Args:
        space: in which nothing works.
        problem: of the space, which has been found to have no solution.
        fixed: settings that were given by flags.
        infeasible_reason: returns why a configuration cannot work on the data, or None.
        changed: returns the space with another value of a setting that does not vary; other settings may vary in it.
    """
    reason, remedy = _refusal_of(space, _least_bad(space, infeasible_reason), infeasible_reason), ""
    for name, value in _changes(space, problem, fixed):
        other = changed(name, value)
        point = _solution(other.problem(infeasible_reason)) if other.domains else None
        if point is not None:
            reason = _refusal_of(space, _taken_over(space, point), infeasible_reason)
            remedy = f"; it works with {name}={value}"
            break
    names = [name for name in space.domains if name in problem.blamed]
    if not names or reason == _common_reason(space, infeasible_reason):
        return f"{reason}{remedy}"
    varied = ", ".join(f"{name} ({space.domains[name]})" for name in names)
    return f"search space {space.name}: no combination of {varied} can work: {reason}{remedy}"


def _common_reason(space: BaseSpace, infeasible_reason: InfeasibleReason | None) -> str | None:
    """The reason that is the same for all values of the settings that vary, if there is one."""
    for rule in feasibility_rules(infeasible_reason):
        alone = Problem(space.settings(), space.domains, space.conditions, space.fallback, [rule])
        with suppress(OpenError):
            if alone.solution() is None and not alone.blamed & space.domains.keys():
                return rule(TrialConfig.model_construct(**space.settings()))
    return None


def _least_bad(space: BaseSpace, infeasible_reason: InfeasibleReason | None) -> Point:
    """A point that only the data refuse, or else the published point; with as few clusters as there are."""
    alone = space.problem(None)
    domain = space.domains.get("nb_clusters")
    values = sorted(domain.ends()) if domain is not None else [None]
    for value in values if infeasible_reason is not None else ():
        with suppress(OpenError):
            found = alone.solution({} if value is None else {"nb_clusters": value})
            if found is not None:
                return found
    point: Point = {}
    for name, each in space.domains.items():
        if space.varies(name, point):
            point[name] = values[0] if name == "nb_clusters" else each.nearest(space.unvaried(name))
    return point


def _taken_over(space: BaseSpace, point: Point) -> Point:
    """The point of a space that is nearest to the point of another one, in which other settings may vary."""
    found: Point = {}
    for name, domain in space.domains.items():
        if space.varies(name, found):
            found[name] = point[name] if name in point else domain.nearest(space.fallback(name, found))
    return found


def _refusal_of(space: BaseSpace, point: Point, infeasible_reason: InfeasibleReason | None) -> str:
    return space.refusal(point, infeasible_reason) or "no combination was found"


def _solution(problem: Problem) -> Point | None:
    with suppress(OpenError):
        return problem.solution()
    return None


def _changes(space: BaseSpace, problem: Problem, fixed: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Changes of one setting that a failing rule has read: small changes first, and settings fixed by flags first."""
    settings = space.settings()
    names = [*fixed, *(name for name in space.published if name not in fixed)]
    open_ = [
        name
        for name in names
        if name in problem.blamed
        and name not in (*space.domains, *MAY_NOT_VARY)
        and isinstance(settings[name], int)
        and not isinstance(settings[name], bool)
    ]
    for step in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128):
        for name in open_:
            for changed in (settings[name] + step, settings[name] - step):
                with suppress(SettingError):
                    yield name, typed(name, changed)


def unused_lines(space: BaseSpace) -> list[str]:
    """One line for each setting that varies but has no effect, for all values of the other settings."""
    lines = []
    for name in space.domains:
        with suppress(OpenError):
            varied = space.problem().solution(must_vary=(name,))
            rules = [*RULES, *(_acts(name, group) for group in range(len(GROUPS)))]
            problem = Problem(space.settings(), space.domains, space.conditions, space.fallback, rules)
            if varied is None or problem.solution(must_vary=(name,)) is not None:
                continue
            why = unused_reasons(TrialConfig(**{**space.whole(varied), "dataset": space.settings()["dataset"]}))
            lines.append(f"{name} varies and has no effect: {why.get(name, 'because of the others')}")
    return lines


def _acts(name: str, group: int) -> Look:
    """A rule that is broken where a group of rules says that a setting has no effect."""

    def look(config: TrialConfig) -> str | None:
        return next((why for names, idle, why in GROUPS[group](config) if idle and name in names), None)

    return look
