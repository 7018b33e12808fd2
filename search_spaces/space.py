"""SearchSpace: what may vary in the search on a data set, and the published point it starts from."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna

from dcml_tune.config import SettingError, TrialConfig, unknown_name
from dcml_tune.effects import idle

Feasible = Callable[[TrialConfig], str | None]
"""Says why a configuration cannot work on a data set, or None."""


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Any, ...]

    def __init__(self, values: Iterable[Any]) -> None:
        object.__setattr__(self, "values", tuple(values))
        if not self.values:
            raise SettingError("a Choice must have values, but got none; list them")

    def ends(self) -> tuple[Any, ...]:
        """The values at which feasibility is judged."""
        return self.values

    def nearest(self, value: Any) -> Any:
        """The value of the domain that is nearest to one outside of it."""
        if value in self.values or not isinstance(value, int | float):
            return value if value in self.values else self.values[0]
        return min(self.values, key=lambda each: abs(each - value))

    def holds(self, value: Any) -> bool:
        """Whether a value is in the domain."""
        return value in self.values

    def distribution(self) -> optuna.distributions.CategoricalDistribution:
        """The domain as Optuna has it."""
        return optuna.distributions.CategoricalDistribution(self.values)

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Draw a value by Optuna."""
        return trial.suggest_categorical(name, self.values)

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Int:
    """A whole number from low to high, both included."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log)

    def ends(self) -> tuple[int, ...]:
        """The values at which feasibility is judged."""
        return tuple(dict.fromkeys((self.low, self.high)))

    def nearest(self, value: float) -> int:
        """The value of the domain that is nearest to one outside of it."""
        return int(min(max(value, self.low), self.high))

    def holds(self, value: Any) -> bool:
        """Whether a value is in the domain."""
        return isinstance(value, int) and self.low <= value <= self.high

    def distribution(self) -> optuna.distributions.IntDistribution:
        """The domain as Optuna has it."""
        return optuna.distributions.IntDistribution(self.low, self.high, log=self.log)

    def suggest(self, trial: optuna.Trial, name: str) -> int:
        """Draw a value by Optuna."""
        return trial.suggest_int(name, self.low, self.high, log=self.log)

    def __str__(self) -> str:
        return f"{self.low} to {self.high}{', log scale' if self.log else ''}"


@dataclass(frozen=True)
class Float:
    """A number from low to high."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log)

    def ends(self) -> tuple[float, ...]:
        """The values at which feasibility is judged."""
        return tuple(dict.fromkeys((self.low, self.high)))

    def nearest(self, value: float) -> float:
        """The value of the domain that is nearest to one outside of it."""
        return min(max(value, self.low), self.high)

    def holds(self, value: Any) -> bool:
        """Whether a value is in the domain."""
        return isinstance(value, int | float) and self.low <= value <= self.high

    def distribution(self) -> optuna.distributions.FloatDistribution:
        """The domain as Optuna has it."""
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.log)

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        """Draw a value by Optuna."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log scale' if self.log else ''}"


Domain = Choice | Int | Float


def _check_range(low: float, high: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise SettingError(f"`low <= high` must hold, but got (low={low}, high={high}); swap them")
    if log and low <= 0:
        raise SettingError(f"`low > 0` must hold on a log scale, but got low={low}; raise it or leave log out")


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """What may vary on a data set, why, and the published point."""

    name: str
    """The data set."""
    published: dict[str, Any]
    """Settings of the published point; trial 0 runs them."""
    domains: dict[str, Domain]
    """What varies, in the order in which it is sampled."""
    why: dict[str, str] = field(default_factory=dict)
    """A sentence for each domain."""
    references: str = ""
    """Published results on the data set, as text."""

    def __post_init__(self) -> None:
        known = list(TrialConfig.model_fields)
        for setting in [*self.published, *self.domains, *self.why]:
            if setting not in known:
                raise SettingError(f"search space {self.name}: {unknown_name('setting', setting, known)}")

    def widened(self, **domains: Domain) -> SearchSpace:
        """The space with other or more domains."""
        return replace(self, domains={**self.domains, **domains})

    def extended(self, wider: SearchSpace) -> SearchSpace:
        """The space of a search that goes on in a wider one.

        Raises:
            SettingError: if some of it would be gone, or what does not vary would be another value.
        """
        for name, domain in self.domains.items():
            new = wider.domains.get(name)
            gone = domain.ends() if new is None else [value for value in domain.ends() if not new.holds(value)]
            if gone:
                there = "does not vary" if new is None else str(new)
                raise SettingError(
                    f"--space: {name} was {domain} and {there} now; a search is only widened, so keep {gone[0]}"
                )
        both = {name: value for name, value in wider.published.items() if name not in wider.domains}
        for name, value in both.items():
            if self.published.get(name, value) != value:
                raise SettingError(
                    f"--space: {name} of every trial was {self.published[name]} and is {value} now; put it back, or start a new search"
                )
        return replace(self, domains=wider.domains, why=wider.why)

    def restricted(self, fixed: dict[str, Any], feasible: Feasible | None = None) -> SearchSpace:
        """The space of one search: fixed settings do not vary, and values that no completion makes work are gone.

        Raises:
            SettingError: if nothing is left to vary, or nothing that is left can work.
        """
        domains = {name: domain for name, domain in self.domains.items() if name not in fixed}
        space = replace(self, published={**self.published, **fixed}, domains=domains)
        if not domains:
            raise SettingError(
                f"search space {self.name}: every setting that varies is fixed by a flag; leave one of them out, "
                "or use `python -m dcml_tune.train` for a single setting"
            )
        for name, domain in domains.items():
            if isinstance(domain, Choice):
                others = {key: value for key, value in domains.items() if key != name}
                values = [v for v in domain.values if space._completes({name: v}, others, feasible) is None]
                if not values:
                    reason = space._completes({name: domain.values[0]}, others, feasible)
                    raise SettingError(f"no value of {name} ({domain}) can work: {reason}")
                domains[name] = Choice(values)
        return replace(space, domains=domains)

    def suggest(self, trial: optuna.Trial, feasible: Feasible | None = None) -> dict[str, Any]:
        """Draw the settings that vary, so that combinations that cannot work are not drawn.

        Whole numbers are drawn from the part of their range that works with what was drawn before them.

        Raises:
            SettingError: if the settings that were drawn cannot work together after all.
        """
        chosen: dict[str, Any] = {}
        rest = dict(self.domains)
        for name, domain in self.domains.items():
            del rest[name]
            if isinstance(domain, Int):
                domain = self._narrowed(name, domain, chosen, rest, feasible)
            chosen[name] = domain.suggest(trial, name)
        if reason := self.refusal(chosen, feasible):
            raise SettingError(reason)
        return chosen

    def _narrowed(
        self, name: str, domain: Int, chosen: dict[str, Any], rest: dict[str, Domain], feasible: Feasible | None
    ) -> Int:
        """The part of a range that works; the ends are found by bisection, as all our rules are monotone."""
        works = [value for value in _spread(domain) if self._completes({**chosen, name: value}, rest, feasible) is None]
        return Int(min(works), max(works), domain.log) if works else domain

    def _completes(self, chosen: dict[str, Any], rest: dict[str, Domain], feasible: Feasible | None) -> str | None:
        """None if some completion of the settings can work, judged at the ends of the other domains.

        Otherwise why the first one, of the low ends, cannot.
        """
        reasons = []
        for values in itertools.product(*(domain.ends() for domain in rest.values())):
            reason = self.refusal({**chosen, **dict(zip(rest, values, strict=True))}, feasible)
            if reason is None:
                return None
            reasons.append(reason)
        return reasons[0]

    def refusal(self, chosen: dict[str, Any], feasible: Feasible | None = None) -> str | None:
        """Why the published point with these settings instead cannot work, or None."""
        try:
            config = TrialConfig(**{**self.published, **chosen, "dataset": self.published.get("dataset", self.name)})
        except SettingError as error:
            return str(error)
        return feasible(config) if feasible is not None else None

    def unvaried(self, name: str) -> Any:
        """What a setting is where it does not vary: published, or its default."""
        return self.published.get(name, getattr(TrialConfig(dataset=self.published.get("dataset", self.name)), name))

    def point0(self, feasible: Feasible | None = None) -> tuple[dict[str, Any], list[str]]:
        """The published values of the settings that vary, and a line for each that had to be moved.

        A setting is moved into its domain; `nb_clusters` is lowered to the largest that fits.
        """
        point, lines = {}, []
        for name, domain in self.domains.items():
            published = self.unvaried(name)
            point[name] = domain.nearest(published)
            if point[name] != published:
                lines.append(
                    f"trial 0: {name} {published} of the published setting is outside {domain}; takes {point[name]}"
                )
        clusters = self.domains.get("nb_clusters")
        if isinstance(clusters, Choice) and (reason := self.refusal(point, feasible)):
            fitting = [v for v in clusters.values if self.refusal({**point, "nb_clusters": v}, feasible) is None]
            if fitting:
                lines.append(f"trial 0: nb_clusters lowered from {point['nb_clusters']} to {max(fitting)}: {reason}")
                point["nb_clusters"] = max(fitting)
        if reason := self.refusal(point, feasible):
            raise SettingError(f"the published setting cannot work here: {reason}")
        return point, lines

    def without_effect(self) -> list[str]:
        """A line for each setting that varies and does nothing, whatever the values of the others are."""
        found: dict[str, str] | None = None
        ends = itertools.product(*(domain.ends() for domain in self.domains.values()))
        for values in itertools.islice(ends, 256):
            chosen = dict(zip(self.domains, values, strict=True))
            if self.refusal(chosen) is None:
                names = idle(TrialConfig(**{"dataset": self.name, **self.published, **chosen}))
                found = names if found is None else {name: why for name, why in found.items() if name in names}
        return [
            f"{name} varies and has no effect: {why}" for name, why in (found or {}).items() if name in self.domains
        ]

    def as_json(self) -> dict[str, Any]:
        """The space as plain data, from which `from_json` makes it again."""
        domains = {name: {"kind": type(each).__name__, **vars(each)} for name, each in self.domains.items()}
        return {**vars(self), "domains": domains}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> SearchSpace:
        """The space that `as_json` described.

        Raises:
            SettingError: if it described none.
        """
        kinds: dict[str, Callable[..., Domain]] = {"Choice": Choice, "Int": Int, "Float": Float}
        try:
            domains = {
                name: kinds[each["kind"]](**{key: value for key, value in each.items() if key != "kind"})
                for name, each in facts["domains"].items()
            }
            return cls(**{**facts, "domains": domains})
        except (KeyError, TypeError, AttributeError) as error:
            raise SettingError(f"the recorded search space is none ({type(error).__name__}: {error})") from None

    def describe(self) -> list[tuple[str, str, str]]:
        """For each setting that varies: its name, its range, and why."""
        return [(name, str(domain), self.why.get(name, "")) for name, domain in self.domains.items()]


def _spread(domain: Int) -> list[int]:
    """Values of a range at which its ends are sought: all of a short one, else 256 of them."""
    step = max(1, (domain.high - domain.low) // 256)
    return [*range(domain.low, domain.high, step), domain.high]


def load_space(dataset: str, path: str | Path | None = None) -> SearchSpace:
    """The search space of a data set: its module's SPACE, or that of a user's file.

    The file is Python and is run: it is the user's own.

    Raises:
        SettingError: if there is no such file, it cannot be run, or it defines no SPACE.
    """
    if path is None:
        return _space_of(importlib.import_module(f"search_spaces.{dataset}"), f"search_spaces.{dataset}")
    file = Path(path)
    if not file.is_file():
        raise SettingError(f"--space {path}: no such file; give a Python file that defines SPACE = SearchSpace(...)")
    spec = importlib.util.spec_from_file_location("dcml_tune_user_space", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SettingError(f"--space {path}: cannot be run ({type(error).__name__}: {error}); mend it") from None
    return _space_of(module, str(path))


def _space_of(module: Any, source: str) -> SearchSpace:
    space = getattr(module, "SPACE", None)
    if not isinstance(space, SearchSpace):
        raise SettingError(f"{source}: defines no SPACE = SearchSpace(...); add it (search_spaces/emoji.py shows how)")
    return space
