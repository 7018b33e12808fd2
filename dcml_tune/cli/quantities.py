"""Numbers as text: each kind with its bounds, as types for argparse and for what a record holds.

Every number of a command line is read by one of these, so that infinity, NaN, empty text and numbers that nothing could
be done with are refused before anything runs. The numbers of a trial have their bounds in `config.TrialConfig`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from dcml_tune.config.errors import SettingError

_LONGEST = 3650 * 86400.0  # seconds of a duration
_LARGEST = 10**18  # bytes of a size
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class QuantityError(SettingError, argparse.ArgumentTypeError):
    """A text that is no number of its kind: one line that argparse shows behind the flag."""


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
    """A type for argparse: a finite number from low to high."""

    def read(text: str) -> float:
        value = _float(text)
        if value is None or not low <= value <= high:
            raise QuantityError(f"{shown(text)}: must be a number from {low:g} to {high:g}; give one")
        return value

    return read


def seconds(text: str) -> float:
    """Seconds of such as 90s, 30m, 10h or 2d.

    Raises:
        QuantityError: if it is no duration, or one of more than ten years.
    """
    value = _with_unit(text, _SECONDS)
    if value is None or not 0 < value <= _LONGEST:
        raise QuantityError(
            f"{shown(text)}: must be a number and a unit, such as 90s, 30m, 10h or 2d, above 0 and up to 3650d; give one"
        )
    return value


def size(text: str) -> int:
    """Bytes of such as 500MB or 20GB (decimal).

    Raises:
        QuantityError: if it is no size, or one of more than a million TB.
    """
    value = _with_unit(text.upper().removesuffix("B"), _BYTES)
    if value is None or not 1 <= value <= _LARGEST:
        raise QuantityError(
            f"{shown(text)}: must be a number and a unit, such as 500MB or 20GB, up to 1000000TB; give one"
        )
    return int(value)


def as_text(read: Callable[[str], object]) -> Callable[[str], str]:
    """A type for argparse: text that can be read, kept as it is, because the record of a search holds it so."""

    def check(text: str) -> str:
        read(text)
        return text

    return check


def shown(text: str) -> str:
    """A text in a message: quoted where it is blank, cut where it is long."""
    return repr(text) if not text.strip() else text if len(text) <= 40 else f"{text[:40]}..."


def _with_unit(text: str, units: dict[str, int]) -> float | None:
    value = _float(text[:-1])
    return None if value is None or text[-1:] not in units else value * units[text[-1:]]


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


AUTO = "auto"
"""Instead of a number of GPUs a trial: the share with which they are fastest in sum, as `probe` measures it."""


_MOST_GPUS = 1024


def gpus_per_trial(text: str) -> float | str:
    """Read the value of --gpus-per-trial: a number, or `auto`."""
    if text == AUTO:
        return AUTO
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if reason := _no_share(value):
        raise QuantityError(f"{shown(text)}: {reason}, or {AUTO}")
    return value


def _no_share(number: float) -> str | None:
    """Why a number cannot be that of the GPUs of a trial, or None."""
    if not 0 <= number <= _MOST_GPUS:
        return "must be a fraction up to 1, or whole; give such as 0.25, 0.5 or 1"
    if number > 1 and number != int(number):
        return f"above 1 it must be whole; give {int(number)} or {int(number) + 1}"
    return None
