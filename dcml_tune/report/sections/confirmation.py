"""The runs that confirm the winner, the final runs on the test classes, and the ledger of the test classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcml_tune.report.figures import Album, axes, in_percent
from dcml_tune.report.page import NOTHING, Figure, Section, Table, percent
from dcml_tune.report.reading import read_ledger
from dcml_tune.report.search_data import SearchData
from dcml_tune.runs import ledger
from dcml_tune.runs.paths import TRIALS
from dcml_tune.runs.results import read_result
from dcml_tune.utils.files import CorruptFileError

_MOST_LINES = 100  # lines of the ledger that are shown
_NOT_SCORED = ("search", "trial", "confirm", "ablate", "")  # roles of runs that do not score the test classes


def confirmation(search: SearchData, album: Album) -> Section:
    """The confirmation runs, the final runs on the test classes, and the ledger."""
    section = Section(title="Confirmation")
    if dots := _dots(search):
        section.parts.append(_plot(dots, search.metric, album))
    else:
        section.say("There are no confirming runs of this search in MLflow.")
    if scores := _scores(search):
        section.parts.append(_final(scores))
    else:
        section.say("No run of this search has scored the test classes.")
    section.parts += _ledger(search, section)
    return section


def _dots(search: SearchData) -> dict[str, dict[str, float]]:
    """Setting -> unit (split seed, fold and seed) -> best value."""
    found: dict[str, dict[str, float]] = {}
    for run in search.runs:
        value = run.metrics.get(f"{search.metric}_best")
        if run.role == "confirm" and value is not None:
            unit = ", ".join(f"{name} {run.params.get(name, '?')}" for name in ("split_seed", "fold", "seed"))
            found.setdefault(run.tags.get("dcml.setting", "?"), {})[unit] = value
    return dict(sorted(found.items(), reverse=True))


def _plot(dots: dict[str, dict[str, float]], metric: str, album: Album) -> Figure:
    drawn = axes()
    units = sorted({unit for values in dots.values() for unit in values})
    for number, unit in enumerate(units):
        places = [place for place, values in enumerate(dots.values()) if unit in values]
        heights = [values[unit] for values in dots.values() if unit in values]
        drawn.plot(places, heights, marker="o", linewidth=0.8, alpha=0.8, color=f"C{number % 7}", label=unit)
    drawn.set_xticks(range(len(dots)), list(dots))
    drawn.margins(x=0.2)
    drawn.set_xlabel("setting")
    drawn.set_ylabel(f"best {metric}")
    in_percent(drawn.yaxis)
    if len(units) <= 12:
        drawn.legend(title="unit")
    caption = (
        "Look for lines that all slope in the same direction. A line is a unit: the settings were trained with the same "
        "held-out classes and the same seed. A point is the best epoch of a run; the verdict values a run at the epoch that is "
        "best in the setting's other runs."
    )
    return album.keep(drawn, "confirmation", title="Confirming runs", caption=caption)


def _scores(search: SearchData) -> dict[str, dict[str, float]]:
    """Name of a run -> its measures on the test classes, from MLflow and from the result files of the runs."""
    found = {}
    for run in sorted(search.runs, key=lambda run: run.key):
        measures = _test_measures(run.metrics)
        if run.role not in _NOT_SCORED and measures:
            found[run.key.rpartition("/")[2]] = measures
    for file in sorted((search.directory / TRIALS).glob("*/result.json")):
        if file.parent.name not in found and (measures := _read_measures(file)):
            found[file.parent.name] = measures
    return found


def _read_measures(file: Path) -> dict[str, float]:
    try:
        return _test_measures(read_result(file))
    except CorruptFileError:
        return {}


def _test_measures(measures: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in measures.items() if name.startswith("test")}


def _final(scores: dict[str, dict[str, float]]) -> Table:
    names = list(dict.fromkeys(name for measures in scores.values() for name in measures))
    rows = [[run, *(percent(measures.get(name)) for name in names)] for run, measures in scores.items()]
    return Table(title="Final runs, on the test classes", columns=["run", *names], rows=rows)


def _ledger(search: SearchData, section: Section) -> list[Table]:
    """The last entries of the ledger: when which search of the output directory scored the test classes."""
    file = search.output / ledger.NAME
    lines = read_ledger(file)
    if lines is None:
        scored = bool(_scores(search))
        never = f"The test classes were never scored: there is no {ledger.NAME}."
        unrecorded = f"When and how often the test classes were scored is not recorded: there is no {ledger.NAME}."
        section.say(unrecorded if scored else never)
        return []
    if broken := ledger.broken(file):
        section.say(
            f"The ledger was changed: line {', '.join(map(str, broken[:10]))} of {ledger.NAME} does not match the one "
            "before it. The test classes may have been scored more often than it says."
        )
    names = ["when", "run", "dataset", "before"]
    if any("note" in line for line in lines):
        names.append("note")
    rows = [[line["torn"]] if "torn" in line else [_cell(line.get(name)) for name in names] for line in lines]
    if len(rows) > _MOST_LINES:
        section.say(f"The test classes were scored {len(rows)} times; the last {_MOST_LINES} are shown.")
    return [Table(title="Ledger of the test classes", columns=names, rows=rows[-_MOST_LINES:])]


def _cell(value: Any) -> str:
    return NOTHING if value is None else str(value)
