"""The flags of a search, made from the fields of SearchConfig and of TrialConfig."""

from __future__ import annotations

from argparse import SUPPRESS, Action, ArgumentParser, Namespace
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from dcml_tune.cli.parser import Parser, add_settings, given_settings
from dcml_tune.cli.quantities import as_text, gpus_per_trial, real, seconds, size, whole
from dcml_tune.config.search import SearchConfig
from dcml_tune.runs.storage_address import well_formed
from dcml_tune.runs.study_server import checked_address
from dcml_tune.tracking.uris import add_flag

_TEXTS = {"duration": as_text(seconds), "size": as_text(size)}
# Options of argparse that the type of a field does not determine.
_OPTIONS: dict[str, dict[str, Any]] = {
    "dataset": {"nargs": "?"},
    "metric": {"action": "append"},
    "warm_start": {"nargs": "+", "action": "extend", "metavar": "SEARCH"},
    "gpus_per_trial": {"type": gpus_per_trial},
    "resume": {"nargs": "?", "const": "", "metavar": "NAME"},
    "start_or_resume": {"metavar": "NAME"},
    "extend": {"metavar": "NAME"},
    "repeat_trial": {"metavar": "RUN"},
}


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """A command line of a search."""

    config: SearchConfig
    """The flags of the search; `model_fields_set` holds those that were given."""
    settings: dict[str, Any]
    """The settings of a trial that were given, not yet checked."""

    def checked_settings(self) -> dict[str, Any]:
        """Return the given settings of a trial in their types.

        Raises:
            SettingError: for a value out of range.
        """
        return given_settings(self.settings)

    def given(self) -> dict[str, Any]:
        """Return everything that was given: flags of the search and checked settings of a trial."""
        flags = {name: getattr(self.config, name) for name in self.config.model_fields_set}
        return {**flags, **self.checked_settings()}


def read_command_line(argv: list[str]) -> CommandLine:
    """Parse a command line; input that is not valid ends the process with one line and exit code 2."""
    given = parser().given(argv)
    flags = {name: value for name, value in given.items() if name in SearchConfig.model_fields}
    settings = {name: value for name, value in given.items() if name not in SearchConfig.model_fields}
    return CommandLine(config=SearchConfig(**flags), settings=settings)


def parser() -> Parser:
    """Return the parser of the command line."""
    made = Parser(
        prog="python -m dcml_tune.search",
        description="Search the divide-and-conquer settings of a data set. Trials are compared on held-out training "
        "classes; the winner is retrained on all of them, and the test classes are scored once.",
    )
    for name, field in SearchConfig.model_fields.items():
        about = " ".join((field.description or "").split()).replace("%", "%%")
        if name == "tracking_uri":
            add_flag(made, about)
        elif name in _ADDRESSES:
            flag = f"--{name.replace('_', '-')}"
            made.add_argument(flag, action=_Address, default=SUPPRESS, help=about)
        else:
            flag = name if name == "dataset" else f"--{name.replace('_', '-')}"
            default = field.default if field.default else SUPPRESS  # help shows no default that is None or False
            made.add_argument(flag, default=default, help=about, **_options(name, field))
    add_settings(made, exclude=("dataset",))
    return made


_ADDRESSES = {"study_uri": checked_address, "storage": well_formed}


class _Address(Action):
    """An action instead of a `type`: argparse would print the address, with its password, in its own error message."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, flag: Any = None) -> None:
        setattr(namespace, self.dest, _ADDRESSES[self.dest](str(values)))


def _options(name: str, field: FieldInfo) -> dict[str, Any]:
    """The options of argparse for a flag."""
    if name in _OPTIONS:
        return _OPTIONS[name]
    kind, notes = _type_of(field)
    if kind is bool:
        return {"action": "store_true"}
    if get_origin(kind) is Literal:
        return {"choices": list(get_args(kind))}
    if kind in (int, float):
        low, high = (next(getattr(note, end) for note in notes if hasattr(note, end)) for end in ("ge", "le"))
        return {"type": whole(low, high) if kind is int else real(low, high)}
    return next(({"type": _TEXTS[note]} for note in notes if note in _TEXTS), {})


def _type_of(field: FieldInfo) -> tuple[Any, list[Any]]:
    """The type of a field without None, and its constraints."""
    kind: Any = field.annotation
    if get_origin(kind) in (Union, UnionType):
        kind = next(each for each in get_args(kind) if each is not NoneType)
    if get_origin(kind) is not Annotated:
        return kind, list(field.metadata)
    kind, *notes = get_args(kind)
    return kind, [rule for note in notes for rule in (note.metadata if isinstance(note, FieldInfo) else [note])]
