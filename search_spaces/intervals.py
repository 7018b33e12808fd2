"""Interval: a real number of which only the range is known. A comparison is decided, or raises UndecidedError."""

from __future__ import annotations

from dataclasses import dataclass


class UndecidedError(Exception):
    """The numbers of a range differ in the result."""


@dataclass(frozen=True, eq=False)
class Interval:
    """Any number from low to high.

    Example:
        >>> Interval(0.1, 0.5) > 0
        True
        >>> Interval(0.1, 0.5) == 0
        False
    """

    low: float
    high: float

    __hash__ = None  # type: ignore[assignment] # it equals many numbers

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int | float) and self.low <= other <= self.high:
            raise UndecidedError
        return False

    def __lt__(self, other: float) -> bool:
        return _agreed(self.low < other, self.high < other)

    def __le__(self, other: float) -> bool:
        return _agreed(self.low <= other, self.high <= other)

    def __gt__(self, other: float) -> bool:
        return _agreed(self.low > other, self.high > other)

    def __ge__(self, other: float) -> bool:
        return _agreed(self.low >= other, self.high >= other)

    def __bool__(self) -> bool:
        return self != 0

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


def _agreed(one: bool, other: bool) -> bool:
    if one != other:
        raise UndecidedError
    return one
