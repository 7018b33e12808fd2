"""Numbers as text: types for argparse that read numbers, durations and sizes, and how values are shown.

Every number on a command line is read by one of these types, so that infinity, NaN, empty text and numbers outside of
their bounds are refused before anything runs. The bounds of a trial's settings are in `dcml_tune.config.trial`.

`pydantic.ByteSize` does not read the sizes: it accepts a number without a unit, so that `20` would be 20 bytes, and refuses
the exponents (`1e3GB`) that recorded searches may hold.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any

from dcml_tune.config.errors import SettingError

AUTO = "auto"
"""Value of --gpus-per-trial that has `dcml_tune.search.gpu_probe` measure the share of a GPU with the highest total speed."""

MOST_GPUS = 8
"""Largest number of GPUs that train one trial together."""

_LONGEST = 3650 * 86400.0  # seconds of a duration
_LARGEST = 10**18  # bytes of a size
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class QuantityError(SettingError, argparse.ArgumentTypeError):
    """A text that is not a number of the kind that is expected. argparse shows the message after the flag."""


# -- reading ---------------------------------------------------------------------------------------


def whole(low: int, high: int) -> Callable[[str], int]:
    """A type for argparse: a whole number from low to high.

    Example:
        >>> whole(1, 100)("7")
        7
    """

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise QuantityError(f"{shown(text)}: must be a whole number from {low:,} to {high:,}; give one")
        return value

    return read


def real(low: float, high: float) -> Callable[[str], float]:
    """A type for argparse: a finite number from low to high.

    Example:
        >>> real(0, 1)("0.5")
        0.5
    """

    def read(text: str) -> float:
        value = _float(text)
        if value is None or not low <= value <= high:
            raise QuantityError(f"{shown(text)}: must be a number from {low:g} to {high:g}; give one")
        return value

    return read


def seconds(text: str) -> float:
    """Read a duration such as 90s, 30m, 10h or 2d.

    Returns:
        Seconds.

    Raises:
        QuantityError: if the text is not a duration, or it is longer than ten years.

    Example:
        >>> seconds("1.5h")
        5400.0
    """
    value = _with_unit(text, _SECONDS)
    if value is None or not 0 < value <= _LONGEST:
        raise QuantityError(
            f"{shown(text)}: must be a number and a unit, such as 90s, 30m, 10h or 2d, above 0 and up to 3650d; give one"
        )
    return value


def size(text: str) -> int:
    """Read a size such as 500MB or 20GB; units are decimal.

    Returns:
        Bytes.

    Raises:
        QuantityError: if the text is not a size, or it is larger than a million TB.

    Example:
        >>> size("20GB")
        20000000000
    """
    value = _with_unit(text.upper().removesuffix("B"), _BYTES)
    if value is None or not 1 <= value <= _LARGEST:
        raise QuantityError(
            f"{shown(text)}: must be a number and a unit, such as 500MB or 20GB, up to 1000000TB; give one"
        )
    return int(value)


def gpus_per_trial(text: str) -> float | str:
    """Read the value of --gpus-per-trial: a fraction up to 1, a whole number, or `auto`.

    Raises:
        QuantityError: if the text is none of these.
    """
    if text == AUTO:
        return AUTO
    value = _float(text)
    share = math.nan if value is None else value
    if reason := invalid_share(share):
        raise QuantityError(f"{shown(text)}: {reason}, or {AUTO}")
    return share


def as_text(read: Callable[[str], object]) -> Callable[[str], str]:
    """A type for argparse that checks a text by `read` and keeps it as text, as the record of a search does."""

    def check(text: str) -> str:
        read(text)
        return text

    return check


def _with_unit(text: str, units: dict[str, int]) -> float | None:
    value = _float(text[:-1])
    return None if value is None or text[-1:] not in units else value * units[text[-1:]]


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def invalid_share(number: float) -> str | None:
    """Why a trial cannot have this number of GPUs, or None if it can."""
    if 0 <= number <= 1 or (1 < number <= MOST_GPUS and number == int(number)):
        return None
    return f"must be a fraction up to 1, or a whole number up to {MOST_GPUS}; give such as 0.25, 0.5, 1 or 2"


# -- showing ---------------------------------------------------------------------------------------


def shown(text: str) -> str:
    """A text for a message: in quotes if it is blank, cut after 40 characters."""
    return repr(text) if not text.strip() else text if len(text) <= 40 else f"{text[:40]}..."


def brief(value: Any) -> str:
    """A setting's value for a table: floating-point numbers have four significant digits.

    Example:
        >>> brief(0.012345), brief(4), brief("margin")
        ('0.01235', '4', 'margin')
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


MOST_COLUMNS = 6
"""Largest number of settings that have a column each in a table of trials; more share a column of those that differ."""

DIFFERENCES = "differs from the published setting"
"""Title of that column."""


def differences(settings: Mapping[str, Any], published: Mapping[str, Any]) -> str:
    """The settings of a trial whose value, as a table shows it, differs from the published one.

    Example:
        >>> differences({"nb_clusters": 4, "masking_lambda": 0.5}, {"nb_clusters": 4, "masking_lambda": 0.01})
        'masking_lambda=0.5'
    """
    shown = {name: brief(value) for name, value in settings.items()}
    return " ".join(f"{name}={value}" for name, value in shown.items() if value != brief(published.get(name)))
