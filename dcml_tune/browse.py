"""`python -m dcml_tune.browse [SEARCH]`: a table of all searches, or of the trials of one, from any MLflow store."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dcml_tune.cli.parser import Parser, run_command
from dcml_tune.cli.quantities import whole
from dcml_tune.config.errors import SettingError, unknown_name
from dcml_tune.report.run_table import Row, known_name, meets, parse_number, print_table, sort_rows
from dcml_tune.runs.paths import named_directory, output_directory
from dcml_tune.runs.study import first_best
from dcml_tune.tracking.uris import add_flag, tracking_uri

if TYPE_CHECKING:
    from dcml_tune.tracking.reading import StoredRun

_SEARCH_COLUMNS = [
    "name", "kind", "dataset", "state", "trials", "pruned", "failed", "best", "test", "protocol", "started", "min",
]  # fmt: skip
_BEST = re.compile(r"(val|paper)/.+_best")


@dataclass(frozen=True, kw_only=True)
class _Flags:
    """The command line."""

    search: str | None
    metric: str | None
    filter: list[str]
    sort: str | None
    descending: bool
    columns: str | None
    limit: int | None
    json: bool
    csv: bool
    output_dir: str
    tracking_uri: str | None
    experiment: str
    all: bool


def parser() -> Parser:
    """The parser of the command line."""
    made = Parser(
        prog="python -m dcml_tune.browse",
        description="Print a table of all searches and training runs, or of the trials of a search with the settings that vary.",
    )
    made.add_argument("search", nargs="?", help="name or directory of a search; default: all searches and runs")
    made.add_argument("--metric", help="measure to show, such as recall_at_1; default: the one that chose the best epoch, and "
                      "recall_at_1 of test classes")  # fmt: skip
    made.add_argument("--filter", action="append", default=[], metavar="EXPR", help="condition on a column, setting or "
                      "metric, such as nb_clusters=4, state=pruned, val/map_at_r_best>0.5; can be repeated")  # fmt: skip
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
    flags = _Flags(**vars(parser().parse_args(argv)))
    rows, columns = _read(flags)
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    rows = [row for row in rows if all(meets(row, each, names) for each in flags.filter)]
    rows = sort_rows(rows, flags.sort or "best", names, down=flags.descending or not flags.sort)[: flags.limit]
    if flags.columns:
        columns = [known_name(name, names) for name in flags.columns.split(",")]
    print_table(rows, columns, as_json=flags.json, as_csv=flags.csv)
    return 0


def _read(flags: _Flags) -> tuple[list[Row], list[str]]:
    """Rows and default columns of the table.

    Raises:
        SettingError: if the store, the experiment or the search does not exist.
    """
    from dcml_tune.tracking.reading import read_runs  # imported on use, as below, so that --help starts quickly

    output = output_directory(flags.output_dir)
    if flags.search is None:
        uri = tracking_uri(flags.tracking_uri, output)
        return _searches(read_runs(uri, flags.experiment, all_programs=flags.all), flags.metric)
    directory = named_directory("SEARCH", flags.search, output)
    uri, search = tracking_uri(flags.tracking_uri, directory.parent), directory.name
    runs = read_runs(uri, flags.experiment, search=search)
    if not runs:
        known = [run.key for run in read_runs(uri, flags.experiment) if run.role == "search"]
        raise SettingError(unknown_name("search", search, known))
    return _trials(runs, flags.metric, uri)


def _searches(runs: list[StoredRun], metric: str | None) -> tuple[list[Row], list[str]]:
    """Rows and columns of the table of searches, and of runs that belong to no search."""
    by_search: dict[str, list[StoredRun]] = {}
    for run in runs:
        if run.search and run.role != "search":
            by_search.setdefault(run.search, []).append(run)
    rows = [_search(run, by_search.get(run.key, []), metric) for run in runs if run.role in ("search", "train", "")]
    return rows, _SEARCH_COLUMNS


def _search(run: StoredRun, own: list[StoredRun], metric: str | None) -> Row:
    trials = [each for each in own if each.role == "trial"]
    test = f"test/{metric or 'recall_at_1'}"
    tests = [each.metrics[test] for each in own if each.role == "final" and test in each.metrics]
    states = [each.state for each in trials]
    shown = {
        "name": run.key,
        "kind": run.role or "other",
        "state": run.state,
        "trials": len(trials) or None,
        "pruned": states.count("pruned") if trials else None,
        "failed": states.count("failed") if trials else None,
        "best": _best(run, metric),
        "test": sum(tests) / len(tests) if tests else run.metrics.get(test),
    }
    return {**run.params, **run.metrics, **_common(run), **shown}


def _trials(runs: list[StoredRun], metric: str | None, uri: str) -> tuple[list[Row], list[str]]:
    """Rows and columns of the table of a search: its runs, with the settings that vary between its trials."""
    own = [run for run in runs if run.role not in ("search", "")]
    trials = [run for run in own if run.role == "trial"] or own
    settings = dict.fromkeys(name for run in trials for name in run.params)
    varied = [name for name in settings if len({run.params.get(name) for run in trials}) > 1]
    rows = [_trial(run, metric, uri) for run in own]
    return rows, ["name", *varied, "epochs", "last", "best", "best epoch", "test", "state", "min", "reason"]


def _trial(run: StoredRun, metric: str | None, uri: str) -> Row:
    from dcml_tune.tracking.reading import curve

    test = f"test/{metric or 'recall_at_1'}"
    chosen = next((name.removesuffix("_best") for name in run.metrics if _BEST.fullmatch(name)), None)
    names = [f"{on}/{metric}" for on in ("val", "paper")] if metric else [chosen]
    name = next((name for name in [*names, test] if name in run.metrics), None)
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
        "test": run.metrics.get(test),
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


def _best(run: StoredRun, metric: str | None) -> float | None:
    """The best value of a run on held-out classes or, in the paper protocol, on test classes."""
    wanted = "" if metric is None else f"/{metric}_best"
    return next((value for name, value in run.metrics.items() if _BEST.fullmatch(name) and name.endswith(wanted)), None)


def _typed(params: dict[str, str]) -> Row:
    return {name: parse_number(text) for name, text in params.items()}


if __name__ == "__main__":
    run_command(main)
