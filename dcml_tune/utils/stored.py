"""What is read back from disk: JSON that is safe to parse, models that say what it must be, and text that is safe to show.

A checksum says that a file is what was written, not that it makes sense: another version, another program or a person
may have written it. Each file that is read back has a model below `Stored`; what does not fit is a `ValueError` of one
line.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Hashable
from functools import lru_cache
from typing import Annotated, Any, NoReturn, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError

T = TypeVar("T")

Count = Annotated[int, Strict(), Field(ge=0, le=2**53)]
"""A whole number that is counted up from 0."""
Finite = Annotated[float, Strict(), Field(allow_inf_nan=False)]
"""A number that is neither infinite nor NaN."""
Moment = Annotated[Finite, Field(ge=0, lt=253402300800)]
"""Seconds since 1970, up to the year 9999, which is the last that clocks can show."""
Duration = Annotated[Finite, Field(ge=0, le=3.2e9)]
"""Seconds, up to a hundred years."""
Scalar = None | bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | Finite | str
"""The value of a setting or a flag."""

_LONGEST = 200  # characters of a value that a message shows
_NOT_SHOWN = frozenset({"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"})  # categories of Unicode; private use may be emoji fonts


class Stored(BaseModel):
    """A file or line that is read back: types are strict, numbers finite. Unknown keys are of a later version, and stay."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)


def parse(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: in one line, also where Python's own parser accepts or raises something else: numbers that are not
            finite, a key that is there twice, nesting too deep to be followed, bytes that are no UTF-8.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        return json.loads(text, parse_constant=_refuse_number, parse_float=_number, object_pairs_hook=_without_twins)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(_one_line(str(error))) from None


def checked(kind: type[T], value: Any) -> T:
    """A value as a model or type says it must be.

    Raises:
        ValueError: one line that names the first place that does not fit, its value and the rule.
    """
    try:
        found: T = _adapter(cast(Hashable, kind)).validate_python(value)
        return found
    except ValidationError as error:
        raise ValueError(_complaint(error)) from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def printable(text: str) -> str:
    r"""Text on one line that cannot steer a terminal: control characters, line ends included, are shown escaped.

    So are marks that change the direction of writing, and what no encoding can write (halves of surrogate pairs, which
    are the bytes of a file name that is no UTF-8).

    Example:
        >>> printable("a\x1b[31mred é")
        'a\\x1b[31mred é'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(each if is_shown(each) else each.encode("unicode_escape").decode() for each in text)


def is_shown(character: str) -> bool:
    """Whether `printable` leaves a character as it is."""
    return unicodedata.category(character) not in _NOT_SHOWN


@lru_cache(maxsize=256)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _complaint(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(each) for each in first["loc"]) or "its content"
    if first["type"] == "missing":
        return _one_line(f"{place} is missing")
    rule = first["msg"].replace("Input should be", "must be").removeprefix("Value error, ")
    shown = repr(first["input"]) if isinstance(first["input"], str | int | float | bool | None) else "its value"
    return _one_line(f"{place}: {shown[:_LONGEST]}: {rule}")


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))[: 2 * _LONGEST]


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no finite number")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse_number(text[:20])
    return number


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"the key {twin!r} is there twice")
    return found
