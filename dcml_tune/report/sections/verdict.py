"""The verdict: the comparisons of the winner with its controls, and the gap to the test classes."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from dcml_tune.config.measures import title
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
        section.parts += [_comparisons(comparisons), _forest(comparisons, search.verdict, album)]
    if gap := search.verdict.get("gap"):
        section.parts.append(_gap(gap, search.verdict["metric"]))
    return section


def _comparisons(comparisons: list[dict[str, Any]]) -> Table:
    if _unit(comparisons[0]) == "pairs":  # version 0.1
        columns = ["winner against", "on", "pairs", "difference (points)", "95 % interval", "pairs needed", "found"]
        rows = [[*_cells(each)[:-1], _needed(each), each["found"]] for each in comparisons]
    else:
        columns = ["winner against", "on", "measured on", "difference (points)", "95 % interval", "for new classes"]
        columns += ["final seeds needed", "found"]
        rows = [[*_cells(each), _needed(each), each["found"]] for each in comparisons]
    return Table(title="Comparisons", columns=columns, rows=rows)


def _cells(each: dict[str, Any]) -> list[str]:
    amount = str(each["pairs"]) if _unit(each) == "pairs" else f"{each['pairs']} {_unit(each)}"
    difference = points(each["difference"])
    return [each["control"], each["on"], amount, difference, _interval(each), _interval(_new_classes(each))]


def _needed(each: dict[str, Any]) -> str:
    return NOTHING if each["needed"] is None else str(each["needed"])


def _unit(each: dict[str, Any]) -> str:
    """What a difference is a mean of: folds, seeds or, in verdicts of version 0.1, pairs."""
    return str(each.get("unit", "pairs"))


def _new_classes(each: dict[str, Any]) -> dict[str, Any]:
    """The interval for new classes; one without ends if there is none."""
    return each.get("new_classes") or {"low": None, "high": None}


def _interval(each: dict[str, Any]) -> str:
    if each["low"] is None:
        return NOTHING
    if each["high"] is None:
        return f"at least {points(each['low'])}"
    return f"{points(each['low'])} to {points(each['high'])}"


def _forest(comparisons: list[dict[str, Any]], verdict: dict[str, Any], album: Album) -> Figure:
    drawn = axes(height=1.6 + 0.5 * len(comparisons))
    for row, each in enumerate(comparisons):
        middle = 100 * each["difference"]
        known = each["low"] is not None
        _draw_interval(drawn, row, _new_classes(each), width=1.5)
        _draw_interval(drawn, row, each, width=5.0)
        drawn.plot([middle], [row], "o", color="black" if known else "C1", mfc="black" if known else "none")
    drawn.axvline(0, color="black", linewidth=1)
    drawn.set_yticks(
        range(len(comparisons)), [f"{each['control']}, {each['on']} ({each['pairs']})" for each in comparisons]
    )
    drawn.set_ylim(len(comparisons) - 0.5, -0.5)
    test, held_out = title(verdict.get("test_metric") or verdict["metric"]), title(verdict["metric"])
    measures = test if test == held_out else f"{test} of test classes, {held_out} of held-out classes"
    drawn.set_xlabel(f"winner minus control (points of {measures})")
    drawn.set_ylabel(f"control ({', '.join(dict.fromkeys(map(_unit, comparisons)))})")
    caption = (
        "Look for bars that do not contain zero: only these show a difference. Thick: 95 % interval over seeds, for these test "
        "classes. Thin: also over classes, for new classes of the same kind. An arrow begins at the lower end of a lead on "
        "held-out classes, which chose the winner: evidence of selection, with no upper end. An empty circle has no interval."
    )
    return album.keep(drawn, "forest", title="The winner against its controls", caption=caption)


def _draw_interval(drawn: Axes, row: int, each: dict[str, Any], *, width: float) -> None:
    """Draw an interval as a bar, one without an upper end as an arrow; nothing if there is none."""
    if each["low"] is None:
        return
    low = 100 * each["low"]
    if each["high"] is not None:
        drawn.plot([low, 100 * each["high"]], [row, row], color="C1", linewidth=width, solid_capstyle="butt")
        return
    end = max(0.0, 100 * each["difference"]) + 0.5
    drawn.annotate("", (end, row), (low, row), arrowprops={"arrowstyle": "->", "color": "C1", "linewidth": 1.5})
    drawn.plot([low], [row], "|", color="C1", markersize=12)
    drawn.plot([end], [row], ",", alpha=0.0)  # an arrow does not widen the axes


def _gap(gap: list[dict[str, Any]], metric: str) -> Table:
    rows = []
    for each in gap:
        held_out, test = each["validation"], each["test"]
        less = None if held_out is None or test is None else held_out - test
        rows.append([each["setting"], percent(held_out), percent(test), points(less)])
    columns = ["setting", "held-out classes", "test classes", "gap (points)"]
    return Table(title=f"From held-out to test classes ({title(metric)})", columns=columns, rows=rows)
