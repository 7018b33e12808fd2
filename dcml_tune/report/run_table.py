"""A table of runs: its rows are filtered, sorted and printed."""

from __future__ import annotations

import csv
import json
import operator
import re
import sys
from collections.abc import Callable
from typing import Any

from dcml_tune.cli.quantities import brief
from dcml_tune.config.errors import SettingError, unknown_name
from dcml_tune.utils.redaction import redact
from dcml_tune.utils.stored import printable

Row = dict[str, Any]
"""Values of a table row by the names of columns, settings and metrics."""

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "=": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_EXPRESSION = re.compile(r"\s*([^<>=!\s]+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*")


def known_name(name: str, names: list[str]) -> str:
    """Check a name of a column, setting or metric, and return it.

    Raises:
        SettingError: if there is no such name.
    """
    if name not in names:
        raise SettingError(unknown_name("column, setting or metric", name, names))
    return name


def meets(row: Row, expression: str, names: list[str]) -> bool:
    """Whether a row meets a condition; a row without the value does not.

    Raises:
        SettingError: if the condition has another form than NAME OP VALUE, or names something unknown.
    """
    parts = _EXPRESSION.fullmatch(expression)
    if parts is None:
        raise SettingError(f"--filter {expression}: must be NAME OP VALUE, where OP is one of {', '.join(_COMPARE)}")
    name, compare, wanted = known_name(parts[1], names), _COMPARE[parts[2]], parse_number(parts[3])
    found = row.get(name)
    found = parse_number(found) if isinstance(found, str) else found
    if found is None or found == "":
        return False
    try:
        return compare(found, wanted)
    except TypeError:  # a text compared with a number
        return compare(str(found), str(wanted))


def sort_rows(rows: list[Row], by: str, names: list[str], *, down: bool) -> list[Row]:
    """Sort rows by a value; rows without it come last in either order."""
    name = known_name(by, names)

    def place(row: Row) -> tuple[bool, float, str]:
        value = row[name]
        number = isinstance(value, int | float)
        return (not number, float(value) if number else 0.0, str(value))

    with_it = [row for row in rows if row.get(name) not in (None, "")]
    return [*sorted(with_it, key=place, reverse=down), *(row for row in rows if row.get(name) in (None, ""))]


def print_table(rows: list[Row], columns: list[str], *, as_json: bool, as_csv: bool) -> None:
    """Print rows as a table, as JSON with all values, or as comma-separated values."""
    if as_json:
        print(json.dumps(rows, indent=2, default=str))
        return
    cells = [["" if row.get(name) is None else brief(row[name]) for name in columns] for row in rows]
    if as_csv:
        csv.writer(sys.stdout).writerows([columns, *cells])
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout.isatty()
    table = Table(*map(printable, columns), box=box.HEAVY_HEAD if terminal else box.SIMPLE_HEAD)
    for each in cells:
        table.add_row(*(printable(redact(cell)) for cell in each))
    console = Console(width=None if terminal else 10_000, highlight=False, markup=False, emoji=False)
    console.print(table, no_wrap=not terminal, crop=False)
    if not rows:
        print("no runs")


def parse_number(text: str) -> Any:
    """The number that a text represents, or the text."""
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and re.fullmatch(r"-?\d+", text) else number
