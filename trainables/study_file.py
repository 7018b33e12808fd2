"""The Optuna study of a running search: a storage that waits for its file, and the change to a wider space."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from dcml_tune.runs.paths import sqlite_address, sqlite_file
from dcml_tune.runs.study import KEY, Direction
from dcml_tune.runs.study_file import BUSY_S, complaint, copy_study, mend, patiently
from dcml_tune.utils.signals import SearchStopped
from search_spaces.space import SearchSpace


class PatientStorage(RDBStorage):
    """A storage that waits minutes for a file that is locked or unreadable, then stops the search, which can be resumed.

    Each call is one transaction. One that failed has changed nothing, so it is called again.
    """

    def __init__(self, url: str) -> None:
        """Open or create the file."""
        self.file = study_file(url)
        super().__init__(url, engine_kwargs={"connect_args": {"timeout": BUSY_S}})


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: PatientStorage, *arguments: Any, **options: Any) -> Any:
        try:
            return patiently(lambda: method(self, *arguments, **options), self.file)
        except (SQLAlchemyError, StorageInternalError) as error:
            raise SearchStopped(complaint(self.file, error)) from None

    return call


# All methods that a study, or Optuna's cache in front of the storage, calls.
for _name, _method in vars(RDBStorage).items():
    if callable(_method) and _name.startswith(
        ("create_", "_create_new", "delete_", "get_", "_get_", "set_", "_set_trial")
    ):
        setattr(PatientStorage, _name, _patient(_method))


def open_study(storage: str, name: str, directions: list[Direction]) -> optuna.Study:
    """Open or create the study; a damaged file is replaced by its copy.

    Args:
        storage: SQLAlchemy address.
        name: name of the study.
        directions: direction of each value of a trial.

    Raises:
        SettingError: as `dcml_tune.runs.study_file.mend`.
    """
    file = study_file(storage)
    mend(file, name)
    opened = patiently(lambda: PatientStorage(storage), file)
    return optuna.create_study(storage=opened, study_name=name, directions=directions, load_if_exists=True)


def adapt_study(storage: str, name: str, space: SearchSpace) -> None:
    """Rewrite a study whose choices or scales differ from those of the space: Optuna does not let them change.

    In earlier trials, a setting that did not vary then gets the value that all of them had.

    Raises:
        SettingError: as `open_study`.
    """
    file = study_file(storage)
    mend(file, name)
    if not file.exists():
        return
    old = optuna.load_study(study_name=name, storage=patiently(lambda: PatientStorage(storage), file))
    trials = old.get_trials(deepcopy=False)
    adapted = [_adapted(trial, space) for trial in trials]
    if all(_is_same(*pair) for pair in zip(trials, adapted, strict=True)):
        return
    fresh = file.with_suffix(".db.new")
    fresh.unlink(missing_ok=True)
    made = optuna.create_study(study_name=name, storage=sqlite_address(fresh), directions=old.directions)
    for key, value in old.user_attrs.items():
        made.set_user_attr(key, value)
    made.add_trials(adapted)
    os.replace(fresh, file)
    copy_study(file)


def study_file(storage: str) -> Path:
    """Return the file of a study's address."""
    file = sqlite_file(storage)
    assert file is not None, "studies are SQLite files"
    return file


def _adapted(trial: FrozenTrial, space: SearchSpace) -> FrozenTrial:
    """Return the trial with a value for each setting that varies in it; a trial that is being drawn stays unchanged."""
    made = copy.deepcopy(trial)
    if KEY in trial.user_attrs or trial.state.is_finished():
        for name, domain in space.domains.items():
            value, drawn = trial.params.get(name, space.unvaried(name)), domain.distribution()
            if name not in trial.params and not space.varies(name, made.params):
                continue
            if domain.holds(value) and not _mix(trial.distributions.get(name), drawn):
                made.distributions = {**made.distributions, name: drawn}
                made.params = {**made.params, name: value}
    return made


def _mix(old: BaseDistribution | None, new: BaseDistribution) -> bool:
    """Return whether both distributions of one setting can be in one study."""
    if isinstance(old, CategoricalDistribution) or isinstance(new, CategoricalDistribution):
        return old == new
    return type(old) is type(new) and getattr(old, "log", None) == getattr(new, "log", None)


def _is_same(trial: FrozenTrial, adapted: FrozenTrial) -> bool:
    return trial.params == adapted.params and trial.distributions == adapted.distributions
