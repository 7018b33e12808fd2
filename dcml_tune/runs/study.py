"""Optuna studies on disk, read without changing them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.paths import STUDY
from dcml_tune.runs.study_file import copy_of, patiently, read_trials
from dcml_tune.utils.tracebacks import one_line

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

T = TypeVar("T")

KEY = "dcml.key"
"""Attribute of a trial that was launched: its key in the search."""

_PATIENCE_S = 10.0  # the copy is nearly as new

Direction = Literal["minimize", "maximize"]


def first_best(found: Iterable[T], value: Callable[[T], float | None]) -> T | None:
    """The one with the highest value, and of equal ones the first; None if none has a value.

    All that say which trial, epoch or setting is the best do so by this. NaN is no value.
    """
    best: T | None = None
    for each in found:
        new = value(each)
        if new is not None and not math.isnan(new) and (best is None or new > value(best)):  # type: ignore[operator]
            best = each
    return best


def by_launch(key: str) -> tuple[int, str]:
    """What trials are sorted by: 000, 001, ... and 1000 after 999."""
    return len(key), key


def direction(metric: str) -> Direction:
    """Whether less of a metric is better, or more."""
    return "minimize" if metric.startswith("time/") else "maximize"


def read_study(directory: Path) -> list[FrozenTrial]:
    """The trials of a search's study, or of its copy where that cannot be read; neither is written to.

    Raises:
        SettingError: if there is none that can be read.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = directory / STUDY
    files = [each for each in (file, copy_of(file)) if each.is_file()]
    if not files:
        raise SettingError("is not there yet")
    for each in files:
        try:
            return patiently(partial(read_trials, each, directory.name), each, patience=_PATIENCE_S)
        except Exception as error:  # whatever is wrong with one, the other may be whole
            if each == files[-1]:
                raise SettingError(f"{each}: cannot be read ({one_line(error)})") from None
    raise AssertionError("unreachable")
