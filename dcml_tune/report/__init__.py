"""The report of a search: one page that needs no network, and its figures as files beside it. It does not change the search."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dcml_tune.config.errors import SettingError
from dcml_tune.utils import tracebacks

if TYPE_CHECKING:
    from dcml_tune.report.figures import Album
    from dcml_tune.report.page import Section
    from dcml_tune.report.search_data import SearchData

__all__ = ["write_report"]

log = logging.getLogger(__name__)


def write_report(directory: Path, *, uri: str, pictures: bool = True) -> Path:
    """Write `report/index.html` into the directory of a search, and the figures as PNG files beside it.

    If a part cannot be read or drawn, the page says why in its place.

    Args:
        directory: directory of the search.
        uri: address of the MLflow store.
        pictures: show queries with their neighbours, and images of clusters. This embeds up to 3,000 images twice.

    Returns:
        The path of the page.

    Raises:
        SettingError: if the record of the search cannot be read, or the page cannot be written.
    """
    # Imported on use, as below: matplotlib, optuna and torch take seconds to import.
    from dcml_tune.report.figures import Album, drawing
    from dcml_tune.report.page import render
    from dcml_tune.report.reading import read_search_data
    from dcml_tune.report.search_data import moment
    from dcml_tune.report.sections import outcome
    from dcml_tune.utils.files import write_atomic

    search = read_search_data(directory, uri)
    album = Album(directory / "report")
    try:
        album.directory.mkdir(exist_ok=True)
        with drawing():
            sections = [_section(build, search, album) for build in _builders(pictures)]
        page = render(
            name=search.name,
            written=f"Report of {moment(time.time())}",
            banners=outcome.banners(search),
            head=outcome.head(search),
            sections=sections,
        )
        write_atomic(album.directory / "index.html", page.encode())
        album.remove_others()
    except OSError as error:
        raise SettingError(
            f"{album.directory}: cannot be written ({error.strerror or error}); free disk space, or correct the permissions"
        ) from None
    return album.directory / "index.html"


def _builders(pictures: bool) -> list[Callable[[SearchData, Album], Section]]:
    """The functions that build the sections, in their order."""
    from dcml_tune.report.sections import ablation, commands, confirmation, division, progress, settings, verdict
    from dcml_tune.report.sections.pictures import pictures as of_images

    builders = [
        verdict.verdict,
        ablation.ablation,
        progress.learning,
        settings.settings,
        progress.costs,
        division.division,
    ]
    return [*builders, *([of_images] if pictures else []), confirmation.confirmation, commands.commands]


def _section(build: Callable[[SearchData, Album], Section], search: SearchData, album: Album) -> Section:
    """Build a section of the page; if that fails, the section says why, and the others are still shown."""
    from dcml_tune.report.page import Section, Text

    try:
        return build(search, album)
    except Exception as error:
        what = f"report of {search.name}: {build.__name__} failed"
        if isinstance(error, SettingError):
            log.warning("%s: %s", what, error)
        else:
            tracebacks.warn(log, what, error)
        reason = " ".join(str(error).split()) or type(error).__name__
        return Section(title=build.__name__.capitalize(), parts=[Text(f"This part cannot be shown: {reason}.")])
