"""The settings: a table of all trials, and the effect of each setting on the metric."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from optuna.study import Study, create_study
from optuna.trial import TrialState, create_trial
from optuna.visualization.matplotlib import (
    plot_parallel_coordinate,
    plot_pareto_front,
    plot_slice,
)

from dcml_tune.cli.quantities import DIFFERENCES, MOST_COLUMNS, brief, differences
from dcml_tune.report.figures import SIZE, Album, axes, in_percent
from dcml_tune.report.page import Figure, Part, Section, Table, percent
from dcml_tune.report.search_data import PUBLISHED, SearchData
from dcml_tune.runs.importance import Importance
from dcml_tune.runs.study import KEY, direction

_MOST_BARS, _MOST_DRAWN = 10, 6
"""Largest numbers of settings in the figure of the importance, and in each other figure: the most important ones."""


def settings(search: SearchData, album: Album) -> Section:
    """All trials in a table; importance, slices and parallel coordinates of the settings that vary."""
    section = Section(title="Settings")
    section.parts.append(_table(search))
    if len(search.metrics) > 1:
        section.parts += _fronts(search, album)
    if len({trial.best for trial in search.ended}) < 2 or not search.varied:
        section.say(
            f"Importance needs at least two trials that ended with different values and settings; "
            f"{len(search.ended)} have ended."
        )
        return section
    rated = search.importance()
    section.parts.append(_importance(search, rated, album))
    names = search.varied if len(search.varied) <= _MOST_DRAWN else list(rated.of)[:_MOST_DRAWN]
    for draw, study in ((_slices, search.study()), (_parallel, search.study(whole=True))):
        _add(section, draw, search, study, names, album)
    return section


def _add(
    section: Section, draw: Callable[..., Figure], search: SearchData, study: Study, names: list[str], album: Album
) -> None:
    """Add a figure that Optuna draws, or a sentence that says why it cannot be drawn."""
    try:
        with warnings.catch_warnings():  # a setting that few trials have may have a single value in them
            warnings.filterwarnings("ignore", message="Attempting to set identical")
            section.parts.append(draw(search, study, names, album))
    except Exception as error:  # too few trials for the evaluator, or values that cannot be ordered
        section.say(f"{(draw.__doc__ or '').split(',')[0]} cannot be drawn: {' '.join(str(error).split())}.")


def _fronts(search: SearchData, album: Album) -> list[Part]:
    """The Pareto-optimal trials, and the first metric against each other metric."""
    trials = [trial for trial in search.ended if trial.frozen.state == TrialState.COMPLETE]
    if not trials:
        return []
    directions = [direction(name) for name in search.metrics]
    study = create_study(directions=directions)
    study.add_trials([create_trial(values=each.frozen.values, user_attrs=each.frozen.user_attrs) for each in trials])
    rows = sorted(([each.user_attrs[KEY], each.values] for each in study.best_trials), key=lambda row: -row[1][0])
    shown = [[key, *(percent(v) if d == "maximize" else f"{v:.1f} s" for v, d in zip(values, directions, strict=True))]
             for key, values in rows]  # fmt: skip
    parts: list[Part] = [Table(title="Pareto-optimal trials", columns=["trial", *search.metrics], rows=shown)]
    for place, metric in enumerate(search.metrics[1:], 1):
        pair = create_study(directions=[directions[0], directions[place]])
        pair.add_trials([create_trial(values=[each.frozen.values[0], each.frozen.values[place]]) for each in trials])
        drawn = plot_pareto_front(pair, target_names=[search.metric, metric])
        in_percent(drawn.xaxis)
        caption = "Look along the marked Pareto front: there one metric can improve only if the other gets worse."
        name = f"front-{metric.replace('/', '-')}"
        parts.append(album.keep(drawn, name, title=f"{search.metric} against {metric}", caption=caption))
    return parts


def _importance(search: SearchData, rated: Importance, album: Album) -> Figure:
    """The importance of the settings, the largest first."""
    bars = list(rated.of.items())[:_MOST_BARS]
    drawn = axes(height=1.5 + 0.5 * len(bars))
    drawn.barh([name for name, _ in bars], [rated.scale * value for _, value in bars], color="C1")
    drawn.invert_yaxis()
    drawn.set_xlabel(f"{rated.label}, for {search.metric}")
    drawn.set_ylabel("setting")
    others = f" The {len(rated.of) - len(bars)} others are smaller." if len(rated.of) > len(bars) else ""
    caption = (
        f"Look for the longest bar: this setting explains most of the difference between the {len(search.ended)} trials that "
        f"ended. With fewer than about twenty trials it is no more than a hint.{others}"
    )
    return album.keep(drawn, "importance", title="Importance of the settings", caption=caption)


def _slices(search: SearchData, study: Study, names: list[str], album: Album) -> Figure:
    """The slices, one for each setting."""
    found = plot_slice(study, params=names, target_name=search.metric)
    several = cast("list[Axes]", np.atleast_1d(cast(Any, found)).tolist())
    number = next((place for place, trial in enumerate(search.ended) if trial.key == PUBLISHED), None)
    for each in several:
        each.set_title("")
        in_percent(each.yaxis)
        if number is not None:
            _mark(each, number)
    caption = (
        "Look for a slope or a maximum: if the points only scatter, the setting made no difference. The star is the published "
        "setting, darker points are later trials, and pruned trials count with the best value that they reached."
    )
    return album.keep(
        several[0], "slices", title=f"{search.metric} against each setting", caption=caption, several=True
    )


def _mark(drawn: Axes, number: int) -> None:
    """Mark a trial with a star."""
    cloud = cast(PathCollection, drawn.collections[0])
    for place, trial in zip(np.asarray(cloud.get_offsets()), np.asarray(cloud.get_array()), strict=True):
        if trial == number:
            drawn.plot(*place, marker="*", markersize=16, color="tab:red", markeredgecolor="white", zorder=5)


def _parallel(search: SearchData, study: Study, names: list[str], album: Album) -> Figure:
    """The parallel coordinates, a line for each trial."""
    drawn = plot_parallel_coordinate(study, params=names, target_name=search.metric)
    drawn.get_figure(root=True).set_size_inches(SIZE[0] + 1, SIZE[1] + 0.5)  # type: ignore[union-attr]
    in_percent(drawn.yaxis)
    in_percent(drawn.collections[0].colorbar.ax.yaxis)  # type: ignore[union-attr]
    for each in drawn.get_figure(root=True).axes:  # type: ignore[union-attr]
        each.grid(visible=False)
    drawn.set_facecolor("#cfcfcf")
    drawn.set_ylabel(search.metric)
    drawn.set_xlabel("measure and settings")
    caption = (
        "Look for where the dark lines, the best trials, converge: that range of a setting is worth a closer search."
    )
    return album.keep(drawn, "parallel", title="Settings of each trial", caption=caption)


def _table(search: SearchData) -> Table:
    """All trials, best first; of many settings only those that differ from the published point."""
    names = search.varied or list(dict.fromkeys(name for trial in search.trials for name in trial.settings))
    trials = sorted(search.trials, key=lambda trial: -(trial.best or 0.0))
    columns, published = names, search.published_point
    if len(names) > MOST_COLUMNS:
        columns = [DIFFERENCES]
    rows = [
        [
            trial.key + (" (published)" if trial.key == PUBLISHED else ""),
            *(
                [brief(trial.settings.get(name, "")) for name in names]
                if columns is names
                else [differences({name: getattr(trial.config, name) for name in names}, published)]
            ),
            f"{trial.epochs} of {trial.config.nb_epochs}",
            percent(trial.best),
            trial.state,
        ]
        for trial in trials
    ]
    return Table(
        title="Trials, the best first", columns=["trial", *columns, "epochs", search.metric, "state"], rows=rows
    )
