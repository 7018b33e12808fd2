"""Progress of the search: best value so far, learning curves, and cost."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from optuna.visualization.matplotlib import plot_optimization_history

from dcml_tune.config.schedule import EpochPlan
from dcml_tune.report.figures import SIZE, Album, axes, in_percent
from dcml_tune.report.page import Figure, Section, Table, percent
from dcml_tune.report.search_data import SearchData, Trial

_FULL = "full embedding"
_DEVICE, _SHARE = "dcml.device", "dcml.device_share"  # tags of a search: the device of a trial, and its share of it

Piece = list[tuple[float, float]]
"""A segment of a curve: two points of epoch and value."""


def learning(search: SearchData, album: Album) -> Section:
    """Best value so far over trials and over time, and the learning curves."""
    section = Section(title="Learning")
    if search.ended:
        section.parts += [_over_trials(search, album), _over_time(search, album)]
    else:
        section.say("No trial has ended with a value yet, so there is no best so far.")
    if any(trial.curve for trial in search.trials):
        section.parts.append(_curves(search, album))
    else:
        section.say("No trial has completed an epoch yet, so there are no learning curves.")
    return section


def _over_trials(search: SearchData, album: Album) -> Figure:
    drawn = plot_optimization_history(search.study(), target_name=search.metric)
    drawn.get_figure(root=True).set_size_inches(*SIZE)  # type: ignore[union-attr]
    keys = [trial.key for trial in search.ended]
    step = 1 + len(keys) // 20
    drawn.set_xticks(range(0, len(keys), step), keys[::step])
    drawn.set_xlabel("trial")
    caption = "Look for whether late trials still raise the best value: if they do, more trials may improve it further."
    return _best_so_far(drawn, search, album, over="trials", caption=caption)


def _over_time(search: SearchData, album: Album) -> Figure:
    drawn = axes()
    start = min(trial.frozen.datetime_start for trial in search.trials if trial.frozen.datetime_start)
    ended = [trial for trial in search.ended if trial.frozen.datetime_complete]
    ended.sort(key=lambda trial: trial.frozen.datetime_complete)  # type: ignore[arg-type, return-value]
    minutes = [(trial.frozen.datetime_complete - start).total_seconds() / 60 for trial in ended]  # type: ignore[operator]
    values = [trial.best or 0.0 for trial in ended]
    drawn.step(minutes, np.maximum.accumulate(values), where="post", label="best so far")
    drawn.scatter(minutes, values, s=18, color="C1", label="end of a trial")
    drawn.set_xlim(left=0)
    drawn.set_xlabel("time since the start of the first trial, pauses included (minutes)")
    caption = "Look for when the curve became flat: trials after that brought no improvement."
    return _best_so_far(drawn, search, album, over="time", caption=caption)


def _best_so_far(drawn: Axes, search: SearchData, album: Album, *, over: str, caption: str) -> Figure:
    _reference(drawn, search)
    _value_axis(drawn, search)
    return album.keep(drawn, f"best-over-{over}", title=f"Best so far over {over}", caption=caption)


def _curves(search: SearchData, album: Album) -> Figure:
    drawn = axes(height=5.5)
    handles, dots = [], 5 if max(trial.epochs for trial in search.trials) <= 30 else 1
    for phase, pieces in sorted(_pieces(search.trials).items(), key=lambda each: _place(each[0])):
        drawn.add_collection(LineCollection(pieces, colors=[_colour(phase)], linewidths=1.3))
        drawn.plot(*zip(*(piece[1] for piece in pieces), strict=True), ".", markersize=dots, color=_colour(phase))
        handles.append(Line2D([], [], color=_colour(phase), label=phase))
    pruned = [max(trial.curve.items()) for trial in search.trials if trial.state == "pruned" and trial.curve]
    drawn.plot(*zip(*pruned, strict=True) if pruned else ([], []), color="black", marker="x", linestyle="")
    handles.append(Line2D([], [], color="black", marker="x", linestyle="", label="pruned"))
    drawn.autoscale()
    if search.record.state.untrained is not None:
        handles.append(_reference(drawn, search))
    drawn.set_xlabel("epoch")
    drawn.xaxis.set_major_locator(MaxNLocator(integer=True))
    _value_axis(drawn, search)
    drawn.legend(handles=handles, title="phase", loc="upper left", bbox_to_anchor=(1.01, 1))
    drawn.set_ylabel(f"best {search.metric} so far")
    caption = "Look for the phase in which the curves diverge: before it the trials hardly differ, and pruning is close to random."
    return album.keep(drawn, "learning-curves", title="Learning curves of all trials", caption=caption)


def _pieces(trials: list[Trial]) -> dict[str, list[Piece]]:
    """Segments of all curves by the phase in which they end; the first segment of a curve is a point."""
    found: dict[str, list[Piece]] = {}
    for trial in trials:
        points = sorted(trial.curve.items())
        for before, (epoch, value) in zip([*points[:1], *points], points, strict=False):
            phase = EpochPlan.at(epoch - 1, trial.config).phase
            found.setdefault(phase, []).append([before, (epoch, value)])
    return found


def _place(phase: str) -> int:
    """Sort key of a phase in the order of a schedule: number of clusters, then the full embedding."""
    return sys.maxsize if phase == _FULL else int(phase.split()[0])


def _colour(phase: str) -> str | tuple[float, float, float, float]:
    """Colour of a phase: from dark for one cluster to light for 64; red for the full embedding."""
    if phase == _FULL:
        return "tab:red"
    return colormaps["viridis"](min(1.0, (_place(phase).bit_length() - 1) / 6))


def _reference(drawn: Axes, search: SearchData) -> Line2D:
    """Draw a line at the value of the untrained network, if it is known."""
    value = search.record.state.untrained
    if value is None:
        return Line2D([], [])
    return drawn.axhline(value, color="grey", linestyle="--", label=f"untrained network ({percent(value)})")


def _value_axis(drawn: Axes, search: SearchData) -> None:
    in_percent(drawn.yaxis)
    drawn.set_ylabel(search.metric)
    drawn.legend()


# -- what it cost ------------------------------------------------------------------------------------------


def costs(search: SearchData, album: Album) -> Section:
    """What pruning saved, and the cost of each gained point."""
    section = Section(title="Cost")
    trials = [trial for trial in search.trials if trial.curve]
    if not trials:
        section.say("No trial has completed an epoch yet, so there is nothing to count.")
        return section
    section.parts.append(_table(search, trials))
    section.say(_of_a_point(search, trials))
    return section


def _table(search: SearchData, trials: list[Trial]) -> Table:
    pruned = [trial for trial in trials if trial.state == "pruned"]
    planned, shared = sum(trial.config.nb_epochs for trial in trials), sum(trial.shared for trial in trials)
    run = sum(trial.epochs for trial in trials) - shared
    saved = sum(trial.config.nb_epochs - trial.epochs for trial in pruned)
    minutes = [
        (trial.config.nb_epochs - trial.epochs) * _seconds(search, trial) / (trial.epochs - trial.shared) / 60
        for trial in pruned
        if trial.epochs > trial.shared
    ]
    rows = [
        ("trials with an epoch", f"{len(trials)}, of which {len(pruned)} were pruned"),
        ("epochs run", f"{run} of {planned} planned ({percent(run / planned)})"),
        ("epochs shared, which another trial had computed", f"{shared} ({percent(shared / planned)})"),
        ("epochs saved by pruning", f"{saved} ({percent(saved / planned)})"),
        ("time of trials", f"{sum(_seconds(search, trial) for trial in trials) / 60:.1f} minutes"),
        ("time saved by pruning", f"about {sum(minutes):.1f} minutes, if the skipped epochs took as long as the completed ones"),
    ]  # fmt: skip
    return Table(title="What pruning saved", columns=["quantity", "value"], rows=rows)


def _of_a_point(search: SearchData, trials: list[Trial]) -> str:
    """Hours of trials for each percentage point over the untrained network."""
    untrained, best = search.record.state.untrained, search.best
    if untrained is None or best is None or best.best is None:
        return "The untrained network was not measured, so the cost of a gained point is not known."
    gain = 100 * (best.best - untrained)
    tags = next((run.tags for run in search.runs if _DEVICE in run.tags), {})
    device = f"{tags.get(_DEVICE, 'trial')} hours"
    hours = float(tags.get(_SHARE, 1)) * sum(_seconds(search, trial) for trial in trials) / 3600
    if gain <= 0:
        return f"{hours:.2f} {device} brought no gain over the untrained network."
    return (
        f"{hours / gain:.3f} {device} for each point of {search.metric} over the untrained network: "
        f"{hours:.2f} for {gain:.1f} points."
    )


def _seconds(search: SearchData, trial: Trial) -> float:
    """Seconds of the epochs that a trial has computed itself, in MLflow; if it has none, from the start of the trial to its end or the last record."""
    epochs = search.curve(trial.key, "time/epoch_s")
    if epochs:
        return sum(value for epoch, value in epochs if epoch > trial.shared)
    return trial.seconds or next(_last_sign(search, trial), 0.0)


def _last_sign(search: SearchData, trial: Trial) -> Iterator[float]:
    start, last = trial.frozen.datetime_start, search.record.state.changed
    if start is not None and last > start.timestamp():
        yield last - start.timestamp()
