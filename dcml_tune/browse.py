"""`python -m dcml_tune.browse [SEARCH]`: a table of all searches, or of the trials of one, from any MLflow store."""

from __future__ import annotations

import csv
import json
import operator
import re
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dcml_tune.cli.parser import Parser, run_command
from dcml_tune.cli.quantities import brief, whole
from dcml_tune.config.errors import SettingError, unknown_name
from dcml_tune.runs.paths import named_directory, output_directory
from dcml_tune.runs.study import first_best
from dcml_tune.tracking.uris import add_flag, tracking_uri
from dcml_tune.utils.redaction import redact
from dcml_tune.utils.stored import printable

if TYPE_CHECKING:
    from dcml_tune.tracking.reading import StoredRun

Row = dict[str, Any]
"""Values of a table row by the names of columns, settings and metrics."""

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "=": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_SEARCH_COLUMNS = [
    "name", "kind", "dataset", "state", "trials", "pruned", "failed", "best", "test", "protocol", "started", "min",
]  # fmt: skip
_EXPRESSION = re.compile(r"\s*([^<>=!\s]+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*")


def parser() -> Parser:
    """The parser of the command line."""
    made = Parser(
        prog="python -m dcml_tune.browse",
        description="Print a table of all searches and training runs, or of the trials of a search with the settings that vary.",
    )
    made.add_argument("search", nargs="?", help="name or directory of a search; default: all searches and runs")
    made.add_argument("--metric", default="recall_at_1", help="metric to show: its name after val/, paper/ or test/")
    made.add_argument("--filter", action="append", default=[], metavar="EXPR", help="condition on a column, setting or "
                      "metric, such as nb_clusters=4, state=pruned, val/recall_at_1_best>0.7; can be repeated")  # fmt: skip
    made.add_argument(
        "--sort", metavar="NAME", help="column, setting or metric to sort by, lowest first; default: best first"
    )
    made.add_argument("--descending", action="store_true", help="sort highest first")
    made.add_argument(
        "--columns", help="comma-separated columns, settings or metrics to show instead of the default columns"
    )
    made.add_argument("--limit", type=whole(1, 10**9), help="maximum number of rows")
    made.add_argument("--json", action="store_true", help="print the rows with all settings and metrics as JSON")
    made.add_argument("--csv", action="store_true", help="print the table as comma-separated values")
    made.add_argument("--output-dir", default="runs", help="directory in which the searches were written")
    add_flag(made, "MLflow server or database; default: OUTPUT/mlflow.db")
    made.add_argument("--experiment", default="dcml_tune", help="name of the experiment in MLflow")
    made.add_argument("--all", action="store_true", help="include runs of other programs in the experiment")
    return made


def main(argv: list[str]) -> int:
    """Read, filter, sort and print the table; returns the exit code."""
    arguments = parser().parse_args(argv)
    from dcml_tune.tracking.reading import read_runs  # imported on use, as below, so that --help starts quickly

    output, search = output_directory(arguments.output_dir), None
    if arguments.search is not None:
        directory = named_directory("SEARCH", arguments.search, output)
        output, search = directory.parent, directory.name
    uri = tracking_uri(arguments.tracking_uri, output)
    if search is None:
        rows, columns = _searches(read_runs(uri, arguments.experiment, all_programs=arguments.all), arguments.metric)
    else:
        runs = read_runs(uri, arguments.experiment, search=search)
        if not runs:
            known = [run.key for run in read_runs(uri, arguments.experiment) if run.role == "search"]
            raise SettingError(unknown_name("search", search, known))
        rows, columns = _trials(runs, arguments.metric, uri)
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    rows = [row for row in rows if all(_holds(row, each, names) for each in arguments.filter)]
    rows = _sorted(rows, arguments.sort or "best", names, down=arguments.descending or not arguments.sort)[
        : arguments.limit
    ]
    if arguments.columns:
        columns = [_known(name, names) for name in arguments.columns.split(",")]
    _print(rows, columns, arguments)
    return 0


def _searches(runs: list[StoredRun], metric: str) -> tuple[list[Row], list[str]]:
    """Rows and columns of the table of searches, and of runs that belong to no search."""
    by_search: dict[str, list[StoredRun]] = {}
    for run in runs:
        if run.search and run.role != "search":
            by_search.setdefault(run.search, []).append(run)
    rows = [_search(run, by_search.get(run.key, []), metric) for run in runs if run.role in ("search", "train", "")]
    return rows, _SEARCH_COLUMNS


def _search(run: StoredRun, own: list[StoredRun], metric: str) -> Row:
    trials = [each for each in own if each.role == "trial"]
    tests = [
        each.metrics[f"test/{metric}"] for each in own if each.role == "final" and f"test/{metric}" in each.metrics
    ]
    states = [each.state for each in trials]
    shown = {
        "name": run.key,
        "kind": run.role or "other",
        "state": run.state,
        "trials": len(trials) or None,
        "pruned": states.count("pruned") if trials else None,
        "failed": states.count("failed") if trials else None,
        "best": _best(run, metric),
        "test": sum(tests) / len(tests) if tests else run.metrics.get(f"test/{metric}"),
    }
    return {**run.params, **run.metrics, **_common(run), **shown}


def _trials(runs: list[StoredRun], metric: str, uri: str) -> tuple[list[Row], list[str]]:
    """Rows and columns of the table of a search: its runs, with the settings that vary between its trials."""
    own = [run for run in runs if run.role not in ("search", "")]
    trials = [run for run in own if run.role == "trial"] or own
    settings = dict.fromkeys(name for run in trials for name in run.params)
    varied = [name for name in settings if len({run.params.get(name) for run in trials}) > 1]
    rows = [_trial(run, metric, uri) for run in own]
    return rows, ["name", *varied, "epochs", "last", "best", "best epoch", "test", "state", "min", "reason"]


def _trial(run: StoredRun, metric: str, uri: str) -> Row:
    from dcml_tune.tracking.reading import curve

    name = next((f"{on}/{metric}" for on in ("val", "paper", "test") if f"{on}/{metric}" in run.metrics), None)
    points = curve(uri, run.run_id, name) if name else []
    trained = [point for point in points if point[0] > 0]
    best = first_best(trained, lambda point: point[1])
    shown = {
        "name": run.key.rpartition("/")[2],
        "kind": run.role,
        "epochs": max((step for step, _ in points), default=0),
        "last": run.metrics.get(name) if name and not name.startswith("test") else None,
        "best": None if best is None or (name or "").startswith("test") else best[1],
        "best epoch": None if best is None else best[0],
        "test": run.metrics.get(f"test/{metric}"),
        "state": run.state,
        "reason": run.reason,
    }
    return {**_typed(run.params), **run.metrics, **_common(run), **shown}


def _common(run: StoredRun) -> Row:
    end = run.ended or time.time()
    return {
        "dataset": run.params.get("dataset", ""),
        "protocol": run.tags.get("dcml.protocol", ""),
        "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started)),
        "min": round((end - run.started) / 60, 1),
        "run_id": run.run_id,
    }


def _best(run: StoredRun, metric: str) -> float | None:
    """The best value of a run on held-out classes or, in the paper protocol, on test classes."""
    found = [run.metrics[name] for on in ("val", "paper") if (name := f"{on}/{metric}_best") in run.metrics]
    return found[0] if found else None


def _typed(params: dict[str, str]) -> Row:
    return {name: _value(text) for name, text in params.items()}


def _value(text: str) -> Any:
    """The number that a text represents, or the text."""
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and re.fullmatch(r"-?\d+", text) else number


def _known(name: str, names: list[str]) -> str:
    """Check a name of a column, setting or metric, and return it.

    Raises:
        SettingError: if there is no such name.
    """
    if name not in names:
        raise SettingError(unknown_name("column, setting or metric", name, names))
    return name


def _holds(row: Row, expression: str, names: list[str]) -> bool:
    """Whether a row meets a condition; a row without the value does not.

    Raises:
        SettingError: if the condition has another form than NAME OP VALUE, or names something unknown.
    """
    parts = _EXPRESSION.fullmatch(expression)
    if parts is None:
        raise SettingError(f"--filter {expression}: must be NAME OP VALUE, where OP is one of {', '.join(_COMPARE)}")
    name, compare, wanted = _known(parts[1], names), _COMPARE[parts[2]], _value(parts[3])
    found = row.get(name)
    found = _value(found) if isinstance(found, str) else found
    if found is None or found == "":
        return False
    try:
        return compare(found, wanted)
    except TypeError:  # a text compared with a number
        return compare(str(found), str(wanted))


def _sorted(rows: list[Row], by: str, names: list[str], *, down: bool) -> list[Row]:
    """Sort rows by a value; rows without it come last in either order."""
    name = _known(by, names)

    def place(row: Row) -> tuple[bool, float, str]:
        value = row[name]
        number = isinstance(value, int | float)
        return (not number, float(value) if number else 0.0, str(value))

    with_it = [row for row in rows if row.get(name) not in (None, "")]
    return [*sorted(with_it, key=place, reverse=down), *(row for row in rows if row.get(name) in (None, ""))]


def _print(rows: list[Row], columns: list[str], arguments: Any) -> None:
    if arguments.json:
        print(json.dumps(rows, indent=2, default=str))
        return
    cells = [["" if row.get(name) is None else brief(row[name]) for name in columns] for row in rows]
    if arguments.csv:
        csv.writer(sys.stdout).writerows([columns, *cells])
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout.isatty()
    table = Table(*columns, box=box.HEAVY_HEAD if terminal else box.SIMPLE_HEAD)
    for each in cells:
        table.add_row(*(printable(redact(cell)) for cell in each))
    console = Console(width=None if terminal else 10_000, highlight=False, markup=False, emoji=False)
    console.print(table, no_wrap=not terminal, crop=False)
    if not rows:
        print("no runs")


if __name__ == "__main__":
    run_command(main)
