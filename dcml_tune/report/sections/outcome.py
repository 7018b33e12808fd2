"""The top of the page: status, counts and best trial of the search, and the notices above them."""

from __future__ import annotations

from dcml_tune.cli.parser import command
from dcml_tune.cli.quantities import brief
from dcml_tune.config.trial import PAPER_LABEL
from dcml_tune.report.page import percent
from dcml_tune.report.search_data import SearchData, Trial, moment


def head(search: SearchData) -> dict[str, str]:
    """The labelled facts at the top of the page."""
    state, best = search.record.state, search.best
    states = [trial.state for trial in search.trials]
    began = [trial.frozen.datetime_start for trial in search.trials if trial.frozen.datetime_start]
    counted = [f"{states.count('pruned')} pruned", f"{search.failed} failed", f"{states.count('running')} running"]
    shown = {
        "data set": str(search.published["dataset"]),
        "status": search.status + (f": {state.reason}" if state.reason else ""),
        "trials": f"{state.ended} of {state.planned or '?'} have ended ({', '.join(counted)})",
        "metric": f"{search.metric}, on {_compared_on(search)}",
        "when": f"{moment(min(began, default=None))} to {moment(state.changed or None)}, "
        f"{state.elapsed_s / 60:.1f} minutes of trials",
    }
    if state.untrained is not None:
        shown["untrained network"] = f"{search.metric} {percent(state.untrained)}"
    if best is not None:
        shown["best trial"] = _described(search, best)
    return shown


def _compared_on(search: SearchData) -> str:
    return PAPER_LABEL if search.metric.startswith("paper/") else "held-out training classes"


def _described(search: SearchData, best: Trial) -> str:
    epoch = next(epoch for epoch, value in sorted(best.curve.items()) if value == best.best)
    settings = ", ".join(f"{name}={brief(value)}" for name, value in best.settings.items())
    won = " (winner of the confirmation)" if search.verdict and search.verdict.get("winner") == best.key else ""
    return f"{best.key}{won}: {search.metric} {percent(best.best)} after epoch {epoch} of {best.config.nb_epochs}; {settings}"


def banners(search: SearchData) -> list[str]:
    """Notices above the page: problems, an unfinished search, and the measuring on test classes of the paper protocol."""
    state = search.record.state
    said = list(search.problems)
    if search.status == "running":
        said.insert(
            0,
            f"This search is still running ({state.owner}): the page shows how far it was at {moment(state.changed)}.",
        )
    if search.status == "interrupted":
        resume = command("dcml_tune.search", "--resume", search.name, "--output-dir", str(search.output))
        said.insert(
            0, f"This search was interrupted{f' ({state.reason})' if state.reason else ''}; resume it by: {resume}"
        )
    if search.metric.startswith("paper/"):
        said.append(f"{PAPER_LABEL}.")
    return said
