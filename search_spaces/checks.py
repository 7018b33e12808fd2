"""Checks of the values and domains of a search space."""

from __future__ import annotations

from typing import Any, get_args

from dcml_tune.cli.parser import typed
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from search_spaces.constant import MAY_NOT_VARY
from search_spaces.domains import Domain, Float


class SpaceError(SettingError):
    """An error in one setting of a search space."""

    def __init__(self, space: str, message: str, setting: str) -> None:
        super().__init__(f"search space {space}: {message}")
        self.setting = setting


def check_domain(space: str, setting: str, domain: Any) -> None:
    """Check that a setting may vary and can have the values of its domain.

    Raises:
        SpaceError: if it may not vary, the object is not a domain, or the setting cannot have one of its values.
    """
    if not isinstance(domain, Domain):
        kind = type(domain).__name__
        raise SpaceError(
            space,
            f"the domain of {setting} is of type {kind}; write Choice([...]), Int(low, high) or Float(low, high)",
            setting,
        )
    if setting in MAY_NOT_VARY:
        raise SpaceError(space, f"{setting} may not vary: {MAY_NOT_VARY[setting]}; fix it by its flag", setting)
    if isinstance(domain, Float) and not _takes_fractions(setting):
        raise SpaceError(space, f"{setting} is a whole number, and its domain a Float; write Int(low, high)", setting)
    for value in domain.ends():
        check_value(space, setting, value)


def check_value(space: str, setting: str, value: Any) -> None:
    """Check that a setting can have a value, and that it is written in the setting's own type.

    Raises:
        SpaceError: if it cannot, or is not.
    """
    try:
        meant = typed(setting, value)
    except SettingError as error:
        raise SpaceError(space, str(error), setting) from None
    if meant != value and not isinstance(meant, str):
        raise SpaceError(space, f"{setting}={value!r}: write it as {meant!r}", setting)


def _takes_fractions(setting: str) -> bool:
    annotation = TrialConfig.model_fields[setting].annotation
    return float in (annotation, *get_args(annotation))
