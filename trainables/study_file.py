"""The Optuna study of a running search: a storage that waits for its file or server, and the change to a wider space."""

from __future__ import annotations

import copy
import functools
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import func, select, update
from sqlalchemy.exc import SQLAlchemyError

from dcml_tune.runs.paths import sqlite_address, sqlite_file
from dcml_tune.runs.study import KEY, Direction
from dcml_tune.runs.study_file import BUSY_S, complaint, copy_study, mend, patiently
from dcml_tune.runs.study_server import engine_options, is_made_by_another, without_password
from dcml_tune.utils.signals import SearchStopped
from search_spaces.space import SearchSpace

_OTHERS = 30  # attempts to open a server on which other searches create the tables


class PatientStorage(RDBStorage):
    """A storage that waits minutes for a file that is locked or a server that is away, then stops the search in good order.

    Each call is one transaction. One that failed in a file has changed nothing, so it is called again. A server may have
    committed it before its connection broke: then a second call finds what the first one did.

    Attributes:
        check: called before each write; raises if this process must not write any more.
    """

    def __init__(self, url: str) -> None:
        """Open the study's file or connect to its server; tables that are missing are created."""
        file = sqlite_file(url)
        self.place: Path | str = without_password(url) if file is None else file
        options = engine_options(url) if file is None else {"connect_args": {"timeout": BUSY_S}}
        self.check: Callable[[], None] = lambda: None
        super().__init__(url, engine_kwargs=options)

    def set_trial_intermediate_values(self, trial_id: int, values: dict[int, float]) -> None:
        """Set the values of several steps of a trial in one transaction; one that a step has already stays."""
        model = models.TrialIntermediateValueModel
        with _create_scoped_session(self.scoped_session) as session:
            trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session)
            self.check_trial_is_updatable(trial_id, trial.state)
            there = select(model.step).where(model.trial_id == trial_id, model.step.in_(values))
            for step in values.keys() - set(session.scalars(there)):
                stored, kind = model.intermediate_value_to_stored_repr(values[step])
                row = model(trial_id=trial_id, step=step, intermediate_value=stored, intermediate_value_type=kind)
                session.add(row)


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: PatientStorage, *arguments: Any, **options: Any) -> Any:
        if not method.__name__.startswith(("get_", "_get_")):
            self.check()
        attempt = method
        if not isinstance(self.place, Path) and method.__name__ in _AGAIN:
            attempt = _AGAIN[method.__name__](self, method, *arguments)
        try:
            return patiently(lambda: attempt(self, *arguments, **options), self.place)
        except (SQLAlchemyError, StorageInternalError) as error:
            raise SearchStopped(complaint(self.place, error)) from None

    return call


def _create_once(storage: PatientStorage, method: Callable[..., Any], study_id: int, *_: Any) -> Callable[..., Any]:
    """Return a function that creates a trial, and in further calls returns the one that was created."""
    before: int | None = None

    def create(self: PatientStorage, *arguments: Any, **options: Any) -> Any:
        nonlocal before
        trials = models.TrialModel.__table__
        with self.engine.connect() as connection:
            count = connection.scalar(select(func.count()).where(trials.c.study_id == study_id)) or 0
        if before is not None and count > before:
            newest = max(RDBStorage.get_all_trials(self, study_id, deepcopy=False), key=lambda trial: trial.number)
            return newest if method.__name__.startswith("_") else newest._trial_id
        before = count
        return method(self, *arguments, **options)

    return create


def _change_state_once(storage: PatientStorage, method: Callable[..., Any], *_: Any) -> Callable[..., Any]:
    """Return a function that changes a trial's state, and in further calls accepts that it has changed: no other process may."""
    has_tried = False

    def change(self: PatientStorage, trial_id: int, state: TrialState, *arguments: Any, **options: Any) -> Any:
        nonlocal has_tried
        if has_tried and RDBStorage.get_trial(self, trial_id).state == state:
            return True
        has_tried = True
        return method(self, trial_id, state, *arguments, **options)

    return change


_AGAIN = {
    "create_new_trial": _create_once,
    "_create_new_trial": _create_once,
    "set_trial_state_values": _change_state_once,
}
"""What is done in a second call of methods that do more than to set a value."""


# All methods that a study, or Optuna's cache in front of the storage, calls.
for _name, _method in {**vars(RDBStorage), **vars(PatientStorage)}.items():
    if callable(_method) and _name.startswith(
        ("create_", "_create_new", "delete_", "get_", "_get_", "set_", "_set_trial")
    ):
        setattr(PatientStorage, _name, _patient(_method))


def open_study(
    storage: str, name: str, directions: list[Direction], check: Callable[[], None] | None = None
) -> optuna.Study:
    """Open or create the study; a damaged file is replaced by its copy.

    Args:
        storage: SQLAlchemy address.
        name: name of the study.
        directions: direction of each value of a trial.
        check: called before each write; raises if this process must not write any more.

    Raises:
        SettingError: as `dcml_tune.runs.study_file.mend`.
    """
    if (file := sqlite_file(storage)) is not None:
        mend(file, name)
    opened = _opened(storage)
    opened.check = check or opened.check
    return optuna.create_study(storage=opened, study_name=name, directions=directions, load_if_exists=True)


def _opened(storage: str) -> PatientStorage:
    """Open a storage. Searches that begin at the same time on one server create its tables only once."""
    place = sqlite_file(storage) or without_password(storage)
    for _ in range(_OTHERS):
        try:
            return patiently(lambda: PatientStorage(storage), place)
        except SQLAlchemyError as error:
            origin = getattr(error, "orig", None)
            if origin is not None and is_made_by_another(origin):
                time.sleep(1.0)
                continue
            raise SearchStopped(complaint(place, error)) from None
    raise SearchStopped(f"{place}: other searches create its tables; resume the search")


def adapt_study(storage: str, name: str, space: SearchSpace) -> None:
    """Rewrite a study whose choices or scales differ from those of the space: Optuna does not let them change.

    In earlier trials, a setting that did not vary then gets the value that all of them had.

    Raises:
        SettingError: as `open_study`.
    """
    if (file := sqlite_file(storage)) is not None:
        mend(file, name)
        if not file.exists():
            return
    opened = _opened(storage)
    try:
        old = optuna.load_study(study_name=name, storage=opened)
    except KeyError:  # a search on a server that has begun no trial
        return
    trials = old.get_trials(deepcopy=False)
    adapted = [_adapted(trial, space) for trial in trials]
    if all(_is_same(*pair) for pair in zip(trials, adapted, strict=True)):
        return
    if file is None:
        _replace_on_server(opened, old, adapted)
        return
    fresh = file.with_suffix(".db.new")
    fresh.unlink(missing_ok=True)
    _fill(optuna.create_study(study_name=name, storage=sqlite_address(fresh), directions=old.directions), old, adapted)
    os.replace(fresh, file)
    copy_study(file)


def _fill(made: optuna.Study, old: optuna.Study, trials: list[FrozenTrial]) -> None:
    for key, value in old.user_attrs.items():
        made.set_user_attr(key, value)
    made.add_trials(trials)


def _replace_on_server(storage: PatientStorage, old: optuna.Study, trials: list[FrozenTrial]) -> None:
    """Replace a study by one with other trials. The names change in one transaction, so a kill loses neither."""
    name, fresh, aside = old.study_name, f"{old.study_name}.new", f"{old.study_name}.before"
    for rest in (fresh, aside):
        with suppress(KeyError):
            optuna.delete_study(study_name=rest, storage=storage)
    _fill(optuna.create_study(study_name=fresh, storage=storage, directions=old.directions), old, trials)
    studies = models.StudyModel.__table__
    with storage.engine.begin() as connection:
        for before, after in ((name, aside), (fresh, name)):
            connection.execute(update(studies).where(studies.c.study_name == before).values(study_name=after))
    optuna.delete_study(study_name=aside, storage=storage)


def keep_copy(storage: str) -> None:
    """Copy the file of a study; a server has its own backups."""
    if (file := sqlite_file(storage)) is not None:
        copy_study(file)


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
