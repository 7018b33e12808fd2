"""Optuna studies on disk, read without changing them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import quote

from dcml_tune.config import SettingError
from dcml_tune.paths import STUDY

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

T = TypeVar("T")

KEY = "dcml.key"
"""Attribute of a trial that was launched: its key in the search."""

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
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    files = [file for file in (directory / STUDY, directory / f"{STUDY}.copy") if file.is_file()]
    if not files:
        raise SettingError("is not there yet")
    for file in files:
        try:
            return optuna.load_study(study_name=directory.name, storage=_read_only(file)).get_trials(deepcopy=False)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, KeyError) as error:
            if file == files[-1]:
                raise SettingError(f"{file}: {error}") from None
    raise AssertionError("unreachable")


def _read_only(file: Path) -> str:
    """The address of a database that nothing can be written to, whatever characters its path has."""
    from sqlalchemy import URL

    address = URL.create("sqlite", database=f"file:{quote(str(file))}", query={"mode": "ro", "uri": "true"})
    return address.render_as_string()
