"""result.json: the measures of a run that is not a trial, such as a confirming or a final run.

A run that has this file is not repeated, and does not score the test classes again. A measure that is not finite is null
in the file, because JSON has no such numbers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from dcml_tune.utils.files import CorruptFileError, read_checksummed
from dcml_tune.utils.stored import Count, Finite, Scalar, Stored, checked

Measures = dict[str, Finite | None]


class Result(Stored):
    """What a run reports after an epoch and writes to the file. Names with a slash are measures."""

    epoch: Count
    done: bool
    done_all: bool = False
    time_ms: Count | None = None
    note: str | None = None
    test_scored_before: Count | None = None
    untrained: Measures = Field(default_factory=dict)
    curve: list[Finite | None] = Field(default_factory=list)
    __pydantic_extra__: dict[str, Scalar] = Field(init=False)

    @model_validator(mode="after")
    def _measures_are_numbers(self) -> Result:
        for name, value in (self.__pydantic_extra__ or {}).items():
            if "/" in name and isinstance(value, str | bool):
                raise ValueError(f"{name}={value!r}: a measure must be a number")
        return self


def read_result(file: Path) -> dict[str, Any]:
    """Read the result of a run.

    Raises:
        CorruptFileError: if the file is missing or does not hold a result.
    """
    try:
        return with_numbers(read_checksummed(file))
    except ValueError as error:
        raise error if isinstance(error, CorruptFileError) else CorruptFileError(f"{file}: {error}") from None


def with_numbers(facts: dict[str, Any]) -> dict[str, Any]:
    """Validate the facts of a result, and turn measures that are null into NaN.

    Raises:
        ValueError: if they are not the facts of a result.
    """
    checked(Result, facts)
    found: dict[str, Any] = {
        name: math.nan if value is None and "/" in name else value for name, value in facts.items()
    }
    if "curve" in found:
        found["curve"] = [math.nan if value is None else value for value in found["curve"]]
    return found
