"""What can be said in the end: the verdict, the runs that confirm it, the test classes, the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcml_tune.cli.parser import command, dashboard_command, settings_to_flags
from dcml_tune.cli.quantities import brief
from dcml_tune.config.trial import PAPER_LABEL
from dcml_tune.report.figures import Album, axes, in_percent
from dcml_tune.report.page import NOTHING, Commands, Figure, Section, Table, percent, points
from dcml_tune.report.search_data import Facts, Trial, moment, read_ledger
from dcml_tune.runs import ledger
from dcml_tune.runs.paths import TRIALS, mlflow_address, study_address
from dcml_tune.runs.results import read_result
from dcml_tune.utils.files import CorruptFileError
from dcml_tune.utils.redaction import redact

_MOST_LINES = 100  # of the ledger that are shown
_NOT_SCORED = ("search", "trial", "confirm", "")
_NO_INTERVAL = "one pair: no interval"


def head(facts: Facts) -> dict[str, str]:
    """The facts at the top of the page."""
    state, best = facts.record.state, facts.best
    states = [trial.state for trial in facts.trials]
    began = [trial.frozen.datetime_start for trial in facts.trials if trial.frozen.datetime_start]
    counted = [f"{states.count('pruned')} pruned", f"{facts.failed} failed", f"{states.count('running')} running"]
    shown = {
        "data set": str(facts.published["dataset"]),
        "status": facts.status + (f": {state.reason}" if state.reason else ""),
        "trials": f"{state.ended} of {state.planned or '?'} have ended ({', '.join(counted)})",
        "metric": f"{facts.metric}, on {_compared_on(facts)}",
        "when": f"{moment(min(began, default=None))} to {moment(state.changed or None)}, "
        f"{state.elapsed_s / 60:.1f} minutes of trials",
    }
    if state.untrained is not None:
        shown["untrained network"] = f"{facts.metric} {percent(state.untrained)}"
    if best is not None:
        shown["best trial"] = _described(facts, best)
    return shown


def _compared_on(facts: Facts) -> str:
    return PAPER_LABEL if facts.metric.startswith("paper/") else "held-out training classes"


def _described(facts: Facts, best: Trial) -> str:
    epoch = next(epoch for epoch, value in sorted(best.curve.items()) if value == best.best)
    settings = ", ".join(f"{name}={brief(value)}" for name, value in best.settings.items())
    won = " (winner of the confirmation)" if facts.verdict and facts.verdict.get("winner") == best.key else ""
    return f"{best.key}{won}: {facts.metric} {percent(best.best)} after epoch {epoch} of {best.config.nb_epochs}; {settings}"


def banners(facts: Facts) -> list[str]:
    """What a reader must know first."""
    state = facts.record.state
    said = list(facts.problems)
    if facts.status == "running":
        said.insert(
            0,
            f"This search is still running ({state.owner}): the page shows how far it was at {moment(state.changed)}.",
        )
    if facts.status == "interrupted":
        resume = command("dcml_tune.search", "--resume", facts.name, "--output-dir", str(facts.output))
        said.insert(
            0, f"This search was interrupted{f' ({state.reason})' if state.reason else ''}; go on with it by: {resume}"
        )
    if facts.metric.startswith("paper/"):
        said.append(f"{PAPER_LABEL}.")
    return said


# -- the verdict -------------------------------------------------------------------------------------------


def verdict(facts: Facts, album: Album) -> Section:
    """Whether the winner is better than its controls."""
    section = Section(title="Verdict")
    if facts.verdict is None:
        section.say(
            "Nothing was confirmed yet: the best value of a search is the best of many, and so too high by some amount."
        )
        return section
    for line in facts.verdict.get("lines", []):
        section.say(line)
    comparisons = facts.verdict.get("comparisons", [])
    if comparisons:
        section.parts += [_comparisons(comparisons), _forest(comparisons, facts.verdict["metric"], album)]
    if gap := facts.verdict.get("gap"):
        section.parts.append(_gap(gap, facts.verdict["metric"]))
    return section


def _comparisons(comparisons: list[dict[str, Any]]) -> Table:
    rows = [
        [
            each["control"],
            each["on"],
            str(each["pairs"]),
            points(each["difference"]),
            _interval(each),
            NOTHING if each["needed"] is None else str(each["needed"]),
            each["found"],
        ]
        for each in comparisons
    ]
    columns = ["winner against", "on", "pairs", "difference (points)", "95 % interval", "pairs needed", "found"]
    return Table(title="Comparisons", columns=columns, rows=rows)


def _interval(each: dict[str, Any]) -> str:
    if each["low"] is None or each["high"] is None:
        return NOTHING
    return f"{points(each['low'])} to {points(each['high'])}"


def _forest(comparisons: list[dict[str, Any]], metric: str, album: Album) -> Figure:
    drawn = axes(height=1.6 + 0.5 * len(comparisons))
    for row, each in enumerate(comparisons):
        middle = 100 * each["difference"]
        known = each["low"] is not None and each["high"] is not None
        spread = [[middle - 100 * each["low"]], [100 * each["high"] - middle]] if known else None
        drawn.errorbar([middle], [row], xerr=spread, fmt="o", capsize=4, color="C1", mfc="C1" if known else "none")
    drawn.axvline(0, color="black", linewidth=1)
    drawn.set_yticks(
        range(len(comparisons)), [f"{each['control']}, {each['on']} ({each['pairs']})" for each in comparisons]
    )
    drawn.set_ylim(len(comparisons) - 0.5, -0.5)
    drawn.set_xlabel(f"winner minus control, {metric.rpartition('/')[2]} (points, 95 % interval)")
    drawn.set_ylabel("control (pairs)")
    caption = "Look for intervals that do not touch the line at zero: only there is a difference shown; an empty circle has no interval."
    return album.keep(drawn, "forest", title="The winner against its controls", caption=caption)


def _gap(gap: list[dict[str, Any]], metric: str) -> Table:
    rows = []
    for each in gap:
        held_out, test = each["validation"], each["test"]
        less = None if held_out is None or test is None else held_out - test
        rows.append([each["setting"], percent(held_out), percent(test), points(less)])
    columns = ["setting", "held-out classes", "test classes", "gap (points)"]
    return Table(title=f"From held-out to test classes ({metric})", columns=columns, rows=rows)


# -- confirmation, test classes ----------------------------------------------------------------------------


def confirmation(facts: Facts, album: Album) -> Section:
    """The runs that confirm the winner, and those that scored the test classes."""
    section = Section(title="Confirmation")
    if dots := _dots(facts):
        section.parts.append(_plot(dots, facts.metric, album))
    else:
        section.say("There are no confirming runs of this search in MLflow.")
    if scores := _scores(facts):
        section.parts.append(_final(scores))
    else:
        section.say("No run of this search has scored the test classes.")
    section.parts += _ledger(facts, section)
    return section


def _dots(facts: Facts) -> dict[str, dict[str, float]]:
    """Setting -> unit -> value."""
    found: dict[str, dict[str, float]] = {}
    for run in facts.runs:
        value = run.metrics.get(f"{facts.metric}_best")
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
        "Look for lines that all run the same way: a unit (one choice of classes and seed) compares settings with like."
    )
    return album.keep(drawn, "confirmation", title="Confirming runs", caption=caption)


def _scores(facts: Facts) -> dict[str, dict[str, float]]:
    """Role or name of a run -> its measures on the test classes, from MLflow and from the runs' own files."""
    found = {}
    for run in sorted(facts.runs, key=lambda run: run.key):
        measures = _test_measures(run.metrics)
        if run.role not in _NOT_SCORED and measures:
            found[run.key.rpartition("/")[2]] = measures
    for file in sorted((facts.directory / TRIALS).glob("*/result.json")):
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


def _ledger(facts: Facts, section: Section) -> list[Table]:
    """When test classes were scored, by all searches of the output directory; of many times the last ones."""
    file = facts.output / ledger.NAME
    lines = read_ledger(file)
    if lines is None:
        scored = bool(_scores(facts))
        never = f"The test classes were never scored: there is no {ledger.NAME}."
        unrecorded = f"When and how often the test classes were scored is not recorded: there is no {ledger.NAME}."
        section.say(unrecorded if scored else never)
        return []
    if broken := ledger.broken(file):
        section.say(
            f"The ledger was changed: line {', '.join(map(str, broken[:10]))} of {ledger.NAME} does not follow from the one "
            "before it, so that more may have been scored than it says."
        )
    names = ("when", "run", "dataset", "before")
    rows = [[line["torn"]] if "torn" in line else [_cell(line.get(name)) for name in names] for line in lines]
    if len(rows) > _MOST_LINES:
        section.say(f"The test classes were scored {len(rows)} times; the last {_MOST_LINES} are shown.")
    return [Table(title="Ledger of the test classes", columns=names, rows=rows[-_MOST_LINES:])]


def _cell(value: Any) -> str:
    return NOTHING if value is None else str(value)


# -- commands ----------------------------------------------------------------------------------------------


def commands(facts: Facts, album: Album) -> Section:
    """What to paste: the search itself, this page, MLflow, the Optuna dashboard."""
    from dcml_tune.tracking import ui_command

    asked, output = facts.record.asked, ["--output-dir", str(facts.output)]
    settings = {name: value for name, value in asked["settings"].items() if name != "dataset"}
    words = [str(asked["settings"]["dataset"]), *_flags(asked["flags"]), *settings_to_flags(settings), *output]
    shown = {
        "This search": command("dcml_tune.search", *words),
        "This page again": command("dcml_tune.report", facts.name, *output, *_elsewhere(facts)),
        "MLflow": ui_command(facts.uri),
        "Optuna's dashboard": dashboard_command(study_address(facts.directory)),
    }
    return Section(title="Commands", parts=[Commands(shown)])


def _flags(flags: dict[str, Any]) -> list[str]:
    """The flags of a search as they were given, or their defaults."""
    words: list[str] = []
    for name, value in flags.items():
        if isinstance(value, list):
            words += [word for each in value for word in (f"--{name.replace('_', '-')}", str(each))]
        elif value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def _elsewhere(facts: Facts) -> list[str]:
    """The flag for an MLflow store that is not the search's usual one."""
    return [] if facts.uri == mlflow_address(facts.output) else ["--tracking-uri", redact(facts.uri)]
