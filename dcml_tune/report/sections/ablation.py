"""The ablation: the winner with its most important settings put back to the published value, one at a time."""

from __future__ import annotations

from typing import Any

from dcml_tune.cli.quantities import brief
from dcml_tune.report.figures import Album, axes
from dcml_tune.report.page import NOTHING, Figure, Section, Table, points
from dcml_tune.report.search_data import SearchData


def ablation(search: SearchData, album: Album) -> Section:
    """What each setting of the winner is worth: a table and a figure."""
    section = Section(title="What made the difference")
    found = (search.verdict or {}).get("ablation")
    if found is None:
        section.say(
            "No setting of the winner was put back to the published value: --ablate K does that for K settings."
        )
        return section
    settings = found["settings"]
    if not settings:
        section.say(" ".join(found["lines"]))
        return section
    section.say(
        f"The winner ({found['winner']}) with one setting put back to its published value, minus the winner as it is, on "
        f"held-out classes; the most important first, by {found['order']}. The winner was chosen on these classes, so "
        "its lead may be too large here. Each interval holds for its own setting, not for all of them together."
    )
    section.parts.append(_table(settings))
    if measured := [each for each in settings if each["difference"] is not None]:
        section.parts.append(_bars(measured, album))
    return section


def _table(settings: list[dict[str, Any]]) -> Table:
    rows = [
        [
            each["change"],
            ", ".join(f"{one['setting']} {brief(one['from'])} -> {brief(one['to'])}" for one in each["changes"][1:])
            or NOTHING,
            str(each["pairs"]),
            points(each["difference"]),
            NOTHING if each["low"] is None else f"{points(each['low'])} to {points(each['high'])}",
        ]
        for each in settings
    ]
    columns = ["put back", "put back with it", "folds", "difference (points)", "95 % interval"]
    return Table(title="The winner without each setting", columns=columns, rows=rows)


def _bars(measured: list[dict[str, Any]], album: Album) -> Figure:
    drawn = axes(height=1.6 + 0.5 * len(measured))
    for row, each in enumerate(measured):
        value = 100 * each["difference"]
        drawn.barh([row], [value], height=0.6, color="C1", alpha=0.7)
        if each["low"] is not None:
            spread = [[value - 100 * each["low"]], [100 * each["high"] - value]]
            drawn.errorbar([value], [row], xerr=spread, fmt="none", capsize=4, color="black")
    drawn.axvline(0, color="black", linewidth=1)
    drawn.set_yticks(range(len(measured)), [f"{each['change']} ({each['pairs']})" for each in measured])
    drawn.set_ylim(len(measured) - 0.5, -0.5)
    drawn.set_xlabel("points, with one setting put back (95 % interval)")
    drawn.set_ylabel("setting (folds)")
    caption = (
        "Look for the longest bars to the left whose interval does not contain zero: without these settings the winner is "
        "worse. A bar without a line has no interval, because there is one fold."
    )
    return album.keep(drawn, "ablation", title="What each setting of the winner is worth", caption=caption)
