"""The verdict: the comparisons of the winner with its controls, and the gap to the test classes."""

from __future__ import annotations

from typing import Any

from dcml_tune.report.figures import Album, axes
from dcml_tune.report.page import NOTHING, Figure, Section, Table, percent, points
from dcml_tune.report.search_data import SearchData


def verdict(search: SearchData, album: Album) -> Section:
    """Comparison of the winner with its controls, and the gap to the test classes."""
    section = Section(title="Verdict")
    if search.verdict is None:
        section.say(
            "Nothing was confirmed yet. The best value of a search is the maximum of many values, and therefore biased upwards."
        )
        return section
    for line in search.verdict.get("lines", []):
        section.say(line)
    comparisons = search.verdict.get("comparisons", [])
    if comparisons:
        section.parts += [_comparisons(comparisons), _forest(comparisons, search.verdict["metric"], album)]
    if gap := search.verdict.get("gap"):
        section.parts.append(_gap(gap, search.verdict["metric"]))
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
    caption = (
        "Look for intervals that do not contain zero: only these show a difference. An empty circle has no interval."
    )
    return album.keep(drawn, "forest", title="The winner against its controls", caption=caption)


def _gap(gap: list[dict[str, Any]], metric: str) -> Table:
    rows = []
    for each in gap:
        held_out, test = each["validation"], each["test"]
        less = None if held_out is None or test is None else held_out - test
        rows.append([each["setting"], percent(held_out), percent(test), points(less)])
    columns = ["setting", "held-out classes", "test classes", "gap (points)"]
    return Table(title=f"From held-out to test classes ({metric})", columns=columns, rows=rows)
