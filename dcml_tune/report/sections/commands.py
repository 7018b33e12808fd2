"""Commands that repeat the search or open its results."""

from __future__ import annotations

from typing import Any

from dcml_tune.cli.parser import command, dashboard_command, settings_to_flags
from dcml_tune.report.figures import Album
from dcml_tune.report.page import Commands, Section
from dcml_tune.report.search_data import SearchData
from dcml_tune.runs.paths import mlflow_address
from dcml_tune.runs.study_place import recorded_place
from dcml_tune.utils.redaction import redact


def commands(search: SearchData, album: Album) -> Section:
    """Commands for the search, this page, MLflow and the Optuna dashboard."""
    from dcml_tune.tracking import ui_command

    asked, output = search.record.asked, ["--output-dir", str(search.output)]
    settings = {name: value for name, value in asked["settings"].items() if name != "dataset"}
    words = [str(asked["settings"]["dataset"]), *_flags(asked["flags"]), *settings_to_flags(settings), *output]
    shown = {
        "This search": command("dcml_tune.search", *words),
        "This page again": command("dcml_tune.report", search.name, *output, *_elsewhere(search)),
        "MLflow": ui_command(search.uri),
        "Optuna's dashboard": dashboard_command(recorded_place(search.directory, asked).shown),
    }
    return Section(title="Commands", parts=[Commands(shown)])


def _flags(flags: dict[str, Any]) -> list[str]:
    """The flags of a search with their given or default values."""
    words: list[str] = []
    for name, value in flags.items():
        if isinstance(value, list):
            words += [word for each in value for word in (f"--{name.replace('_', '-')}", str(each))]
        elif value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def _elsewhere(search: SearchData) -> list[str]:
    """The flag --tracking-uri, if the store is not that of the output directory."""
    return [] if search.uri == mlflow_address(search.output) else ["--tracking-uri", redact(search.uri)]
