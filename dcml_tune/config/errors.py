"""SettingError, and the messages of input that is refused: one line with setting, value, rule and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

_ALL_LISTED = 16  # names; of a longer list the first few are shown
_FEW = 6


class SettingError(ValueError):
    """Input that is refused, such as a setting that is unknown, out of range, or contradicts another one.

    The message has one line, which commands print after `error: `; they exit with `exit_code`.
    """

    exit_code: ClassVar[int] = 2
    """A retry of the same command fails again; errors that a retry may pass have another code."""


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """The message for an unknown name. It suggests the most similar known name, or lists the known ones.

    Args:
        kind: what the name stands for, such as `setting`.
        name: the unknown name.
        known: all known names.

    Example:
        >>> unknown_name("setting", "nb_cluster", ["nb_clusters", "nb_epochs"])
        "setting 'nb_cluster' is not known; did you mean 'nb_clusters'?"
    """
    similar = difflib.get_close_matches(name, known, n=1)
    if similar:
        return f"{kind} {name!r} is not known; did you mean {similar[0]!r}?"
    listed = ", ".join(known)
    if len(known) > _ALL_LISTED:
        listed = f"{', '.join(known[:_FEW])} and {len(known) - _FEW} more"
    return f"{kind} {name!r} is not known; known are: {listed}"


def invalid_setting(error: ValidationError, fields: Mapping[str, FieldInfo]) -> str:
    """The message for settings that pydantic refuses: its first error, with the setting's default as the remedy.

    Args:
        error: what pydantic raised.
        fields: of the model that was validated.
    """
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return unknown_name("setting", name, list(fields))
    if first["type"] == "value_error" and not name:
        return str(first["ctx"]["error"])
    default = f"; the default is {fields[name].default!r}" if name in fields else ""
    return f"{name}={first['input']!r}: {broken_bound(error)}{default}"


def broken_bound(error: ValidationError) -> str:
    """The rule that a value breaks, in pydantic's words but as `must be ...`."""
    return error.errors()[0]["msg"].replace("Input should be", "must be")
