"""Safe reading of files: JSON that is parsed strictly, models that validate it, and text that is safe to show.

A checksum shows that a file was not changed, not that its content is valid: another version, another program or a person
may have written it. Each file that is read back has a model derived from `Stored`. Content that does not fit raises a
`ValueError` whose message has one line.
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
"""A whole number, 0 or more."""
Finite = Annotated[float, Strict(), Field(allow_inf_nan=False)]
"""A number that is neither infinite nor NaN."""
Moment = Annotated[Finite, Field(ge=0, lt=253402300800)]
"""Seconds since 1970, up to the year 9999, the last that `datetime` can represent."""
Duration = Annotated[Finite, Field(ge=0, le=3.2e9)]
"""Seconds, up to a hundred years."""
Scalar = None | bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | Finite | str
"""The value of a setting or a flag."""

_LONGEST = 200  # characters of a value in a message
_NOT_SHOWN = frozenset(
    {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}
)  # Unicode categories; private use is shown, as emoji fonts use it


class Stored(BaseModel):
    """Base of models of files: strict types, finite numbers. Unknown keys, which a later version wrote, are kept."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)


def parse(text: str | bytes) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: if it is not valid, also where Python's parser accepts it or raises another error: numbers that are
            not finite, duplicate keys, nesting that is too deep, bytes that are not UTF-8. The message has one line.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        return json.loads(text, parse_constant=_refuse_number, parse_float=_number, object_pairs_hook=_without_twins)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(_one_line(str(error))) from None


def checked(kind: type[T], value: Any) -> T:
    """Validate a value against a model or a type.

    Raises:
        ValueError: if it does not fit. The message has one line: the first place that does not fit, its value, the rule.
    """
    try:
        found: T = _adapter(cast(Hashable, kind)).validate_python(value)
        return found
    except ValidationError as error:
        raise ValueError(_complaint(error)) from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def printable(text: str) -> str:
    r"""Escape the characters of a text that could control a terminal: control characters, including line ends.

    Marks that change the direction of writing are escaped, too, and characters that no encoding can write: halves of
    surrogate pairs, which stand for the bytes of a file name that is not UTF-8.

    Example:
        >>> printable("a\x1b[31mred é")
        'a\\x1b[31mred é'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(each if is_shown(each) else each.encode("unicode_escape").decode() for each in text)


def printable_lines(text: str) -> str:
    """Escape a text of several lines as `printable` does, and keep its line ends."""
    return "\n".join(map(printable, text.split("\n")))


def is_shown(character: str) -> bool:
    """Whether `printable` keeps a character unchanged."""
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
    raise ValueError(f"{text} is not a finite number")


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
        raise ValueError(f"the key {twin!r} is duplicated")
    return found
