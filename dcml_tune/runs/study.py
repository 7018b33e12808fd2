"""Optuna studies on disk, which are read without changing them, and what is the best of several trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from dcml_tune.config.errors import SettingError
from dcml_tune.runs import study_server
from dcml_tune.runs.study_file import complaint, copy_of, patiently, read_trials
from dcml_tune.runs.study_place import StudyPlace, place_of
from dcml_tune.utils.tracebacks import one_line

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

T = TypeVar("T")

KEY = "dcml.key"
"""Name of the attribute of a launched trial that holds its key in the search."""

SHARED_EPOCHS = "dcml.shared_epochs"
"""Name of the attribute of a trial that holds the number of its first epochs that another trial has computed."""

_PATIENCE_S = 10.0  # short: the copy is nearly as recent

Direction = Literal["minimize", "maximize"]


def first_best(found: Iterable[T], value: Callable[[T], float | None]) -> T | None:
    """The item with the highest value, of equal ones the first; None if none has a value. NaN counts as no value.

    The best trial, epoch or setting is always determined by this function.
    """
    best: T | None = None
    for each in found:
        new = value(each)
        if new is not None and not math.isnan(new) and (best is None or new > value(best)):  # type: ignore[operator]
            best = each
    return best


def by_launch(key: str) -> tuple[int, str]:
    """Sort key of trials: 000, 001, ... and 1000 after 999."""
    return len(key), key


def direction(metric: str) -> Direction:
    """Whether a metric is minimised or maximised."""
    return "minimize" if metric.startswith("time/") else "maximize"


def read_study(directory: Path) -> list[FrozenTrial]:
    """The trials of a search's study, or of its copy if the study cannot be read. Neither is written to.

    Raises:
        SettingError: if neither can be read.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place = place_of(directory)
    if place.file is None:
        return _read_from_server(place)
    file = place.file
    files = [each for each in (file, copy_of(file)) if each.is_file()]
    if not files:
        raise SettingError("is not there yet")
    for each in files:
        try:
            return patiently(partial(read_trials, each, directory.name), each, patience=_PATIENCE_S)
        except Exception as error:  # the other file may be intact
            if each == files[-1]:
                raise SettingError(f"{each}: cannot be read ({one_line(error)})") from None
    raise AssertionError("unreachable")


def _read_from_server(place: StudyPlace) -> list[FrozenTrial]:
    try:
        return patiently(
            partial(study_server.read_trials, place.address, place.name), place.shown, patience=_PATIENCE_S
        )
    except KeyError:
        raise SettingError("is not there yet") from None
    except Exception as error:
        raise SettingError(complaint(place.shown, error, waited=0)) from None
