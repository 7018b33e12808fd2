import importlib
import math
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
REPEATS = 400


@pytest.fixture
def program(monkeypatch):
    """benchmarks/verdict.py as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("verdict")


def slack(share, number):
    """Three standard errors of a share."""
    return 3 * math.sqrt(share * (1 - share) / number)


@pytest.mark.parametrize(
    "flags",
    [{}, {"final_seeds": 0, "folds": 3, "seeds": 2}, {"confirm": 2, "folds": 6, "interaction_sd": 0.0, "classes": 30}],
)
def test_searches_without_a_difference(program, flags):
    """Any line says "better" in at most 5 % of them, and intervals cover the truth in at least 94 %."""
    row = program.simulate(program.Cell(name="short", **flags), REPEATS)
    assert row["false anywhere"] <= 0.05 + slack(0.05, REPEATS)
    places = ["held-out"] if flags.get("final_seeds") == 0 else ["these", "new"]
    for place in places:
        assert row[f"covered {place}"] >= 0.94 - slack(0.94, REPEATS)
    assert row["covered these"] is None or "held-out" not in places


def test_more_seeds_as_the_verdict_asks_for(program):
    """False findings at both looks together stay at 5 %, and a true difference of the wanted size is found."""
    row = program.two_stages(0.0, 1.0, REPEATS)
    assert row["better at either look"] <= 0.05 + slack(0.05, REPEATS)
    row = program.two_stages(1.0, 1.0, REPEATS)
    assert row["asked for enough"] >= 0.8 - slack(0.8, REPEATS)
    assert row["published: better at either look"] >= 0.8
