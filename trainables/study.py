"""The Optuna study of a search: an SQLite file, and a copy of it that is whole when the file is not."""

from __future__ import annotations

import copy
import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from dcml_tune.config import SettingError
from dcml_tune.paths import sqlite_address, sqlite_file
from dcml_tune.studies import KEY, Direction
from search_spaces.space import SearchSpace

log = logging.getLogger(__name__)


def open_study(storage: str, name: str, directions: list[Direction]) -> optuna.Study:
    """Open the study, or make it; a damaged file is replaced by its copy.

    Args:
        storage: SQLAlchemy address.
        name: of the study.
        directions: of each of a trial's values.

    Raises:
        SettingError: if the file is damaged and there is no copy that is whole.
    """
    file = sqlite_file(storage)
    if file is not None and file.exists() and not _is_whole(file):
        _restore(file)
    return optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)


def adapt_study(storage: str, name: str, space: SearchSpace) -> None:
    """Write a study anew whose choices or scales are not those of the space: Optuna does not let them change.

    A setting that did not vary before has the value of all trials then.

    Raises:
        SettingError: as `open_study`.
    """
    file = sqlite_file(storage)
    if file is None or not file.exists():
        return
    if not _is_whole(file):
        _restore(file)
    old = optuna.load_study(study_name=name, storage=storage)
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
    copy_study(storage)


def _adapted(trial: FrozenTrial, space: SearchSpace) -> FrozenTrial:
    """The trial with a value for each setting of the space; one that is being drawn is left as it is."""
    made = copy.deepcopy(trial)
    if KEY in trial.user_attrs or trial.state.is_finished():
        for name, domain in space.domains.items():
            value, drawn = trial.params.get(name, space.unvaried(name)), domain.distribution()
            if domain.holds(value) and not _mix(trial.distributions.get(name), drawn):
                made.distributions = {**made.distributions, name: drawn}
                made.params = {**made.params, name: value}
    return made


def _mix(old: BaseDistribution | None, new: BaseDistribution) -> bool:
    """Whether a study takes both for one setting."""
    if isinstance(old, CategoricalDistribution) or isinstance(new, CategoricalDistribution):
        return old == new
    return type(old) is type(new) and getattr(old, "log", None) == getattr(new, "log", None)


def _is_same(trial: FrozenTrial, adapted: FrozenTrial) -> bool:
    return trial.params == adapted.params and trial.distributions == adapted.distributions


def copy_study(storage: str) -> None:
    """Copy the study's file beside it, whole or not at all."""
    file = sqlite_file(storage)
    if file is None:
        return
    fresh = file.with_suffix(".db.new")
    try:
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(fresh)) as target:
            source.backup(target)
        os.replace(fresh, _copy(file))
    finally:
        fresh.unlink(missing_ok=True)


def _restore(file: Path) -> None:
    copy, damaged = _copy(file), file.with_suffix(".db.damaged")
    if not copy.exists() or not _is_whole(copy):
        raise SettingError(
            f"{file}: the Optuna study is damaged and has no copy; put the file back, or start a new search (the trials' "
            "checkpoints and their MLflow runs are still there)"
        )
    log.warning("%s: the Optuna study is damaged; its copy takes its place, and it is kept as %s", file, damaged.name)
    os.replace(file, damaged)
    for rest in (file.with_name(f"{file.name}-journal"), file.with_name(f"{file.name}-wal")):
        rest.unlink(missing_ok=True)  # they belong to the damaged file
    file.write_bytes(copy.read_bytes())


def _is_whole(file: Path) -> bool:
    try:
        with closing(sqlite3.connect(file)) as connection:
            return bool(connection.execute("PRAGMA quick_check").fetchall() == [("ok",)])
    except sqlite3.DatabaseError:
        return False


def _copy(file: Path) -> Path:
    return file.with_suffix(".db.copy")
