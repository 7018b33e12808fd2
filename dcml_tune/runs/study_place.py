"""Where the study of a search lies: in a file of its directory, or on a server."""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.paths import TRIALS, sqlite_file, study_address
from dcml_tune.runs.record import read_asked
from dcml_tune.runs.study_file import PATIENCE_S, complaint, mend, patiently
from dcml_tune.runs.study_server import check_server, without_password
from dcml_tune.utils.files import CorruptFileError


@dataclass(frozen=True, kw_only=True)
class StudyPlace:
    """Address and name of a study."""

    address: str = field(repr=False)
    """SQLAlchemy address, with its password if it was given one."""
    name: str
    """Name of the study; on a server no two searches have the same."""

    @property
    def file(self) -> Path | None:
        """The file of the study; None if it lies on a server."""
        return sqlite_file(self.address)

    @property
    def shown(self) -> str:
        """The address without its password."""
        return self.address if self.file is not None else without_password(self.address)

    def is_begun(self, directory: Path) -> bool:
        """Whether the search in a directory may have launched trials, so that its study must be there."""
        trials = directory / TRIALS
        return trials.is_dir() and any(trials.iterdir())

    def check(self, directory: Path) -> None:
        """Check the study of a search that is to be resumed; a damaged file is replaced by its copy.

        Args:
            directory: of the search.

        Raises:
            SettingError: if the study cannot be used, after minutes if that may pass.
        """
        if self.file is not None:
            mend(self.file, self.name)
            return
        self._check_server(has_begun=self.is_begun(directory), patience=None)

    def check_new(self) -> None:
        """Check the server of a new search; one that does not answer is refused at once."""
        if self.file is None:
            self._check_server(has_begun=False, patience=0.0)

    def _check_server(self, *, has_begun: bool, patience: float | None) -> None:
        try:
            patiently(lambda: check_server(self.address, self.name, has_begun=has_begun), self.shown, patience=patience)
        except SettingError:
            raise
        except Exception as error:
            waited = PATIENCE_S if patience is None else patience
            raise SettingError(complaint(self.shown, error, waited=waited)) from None


def new_place(directory: Path, study_uri: str | None) -> StudyPlace:
    """The place of the study of a new search.

    Args:
        directory: of the search.
        study_uri: address of a server; None: a file in the directory.
    """
    if study_uri is None:
        return StudyPlace(address=study_address(directory), name=directory.name)
    # The name alone is not enough: searches of other users and of other output directories may have it.
    return StudyPlace(address=study_uri, name=f"{directory.name}-{uuid.uuid4().hex[:12]}")


def recorded_place(directory: Path, asked: dict[str, Any], study_uri: str | None = None) -> StudyPlace:
    """The place of the study of a search that was begun.

    Args:
        directory: of the search.
        asked: its record.
        study_uri: address of the server with the password, as it is given now; None: that of the record.
    """
    recorded = asked.get("flags", {}).get("study_uri")
    if recorded is None:
        return StudyPlace(address=study_address(directory), name=directory.name)
    return StudyPlace(address=study_uri or recorded, name=str(asked.get("study") or directory.name))


def place_of(directory: Path) -> StudyPlace:
    """The place of the study of the search in a directory. Without a valid record it is the file."""
    asked: dict[str, Any] = {}
    with suppress(CorruptFileError, ValueError, OSError):
        asked = read_asked(directory)
    return recorded_place(directory, asked)
