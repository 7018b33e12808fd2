import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dcml_tune.report.figures import Album, drawing
from dcml_tune.report.page import Table
from dcml_tune.report.reading import _Verdict
from dcml_tune.report.sections.verdict import verdict as section
from dcml_tune.runs.hits import QueryHits
from dcml_tune.search.confirmation import NO_DIVISION, PUBLISHED, Candidate, Confirmation, FoldSeed
from dcml_tune.search.deciding import FinalStage
from dcml_tune.search.verdict import FORMAT, verdict
from dcml_tune.utils.stored import checked

METRIC = "val/recall_at_1"
NOTHING = {"validation": None, "test": None}


def confirmed(values):
    """A confirmation with these values: candidate -> (fold, seed) -> value."""
    found = [Candidate(name=name, config={}, key=None if " " in name or "p" in name else name) for name in values]
    results = {
        (name, FoldSeed(*unit)): {f"{METRIC}_best": value, "curve": [value]}
        for name, of in values.items()
        for unit, value in of.items()
    }
    units = list(dict.fromkeys(unit for _, unit in results))
    return Confirmation(candidates=found, units=units, results=results, dropped={}, metric=METRIC)


def on_folds(noise=0.002, folds=(1, 2, 3), seeds=(1,), **levels):
    rng = np.random.default_rng(0)
    units = [(fold, seed) for fold in folds for seed in seeds]
    names = {"published": PUBLISHED, "none": NO_DIVISION}
    return confirmed(
        {
            names.get(name, name.removeprefix("t")): {
                u: level + 0.02 * u[0] + float(rng.normal(0, noise)) for u in units
            }
            for name, level in levels.items()
        }
    )


def scored(seeds=5, noise=0.006, **levels):
    """Measures of the test classes, and the hits that they come from."""
    rng, names = np.random.default_rng(1), {"published": PUBLISHED, "none": NO_DIVISION}
    measures, hits, by_class = {}, {}, {}
    for name, level in levels.items():
        own = names.get(name, name.removeprefix("t"))
        by_class[own] = np.repeat(rng.permutation(np.linspace(-0.1, 0.1, 100)), 40)
        for number in range(seeds):
            right = rng.random(4000) < level + by_class[own] + rng.normal(0, noise)
            run = QueryHits(classes=np.repeat(np.arange(100), 40), hits=right)
            measures.setdefault(own, {})[f"seed {number}"] = {"test/recall_at_1": float(right.mean())}
            hits.setdefault(own, {})[f"seed {number}"] = run
    return measures, hits


THREE = {"t001": 0.60, "published": 0.58, "none": 0.5}


def test_the_verdict_is_plain_data_that_the_report_reads():
    """JSON, valid for the model of the file, with a format."""
    measures, hits = scored(**THREE)
    found = verdict(on_folds(**THREE), "001", measures, NOTHING, FinalStage(hits=hits, name="s", run_s=60.0))
    assert json.loads(json.dumps(found)) == found
    checked(_Verdict, found)
    assert found["format"] == FORMAT == 2
    places = [(each["on"], each["control"], each["unit"], each["sided"]) for each in found["comparisons"]]
    assert places == [
        ("held-out classes", PUBLISHED, "folds", "lower"),
        ("held-out classes", NO_DIVISION, "folds", "lower"),
        ("test classes", PUBLISHED, "seeds", "both"),
        ("test classes", NO_DIVISION, "seeds", "both"),
    ]


def test_better_has_two_intervals_and_says_by_how_much():
    """That for new classes is wider; the least is the lower end."""
    measures, hits = scored(t001=0.65, published=0.58, none=0.5)
    found = verdict(on_folds(**THREE), "001", measures, NOTHING, FinalStage(hits=hits))
    [line] = [line for line in found["lines"] if line.startswith("winner - published, test classes")]
    each = found["comparisons"][2]
    new = each["new_classes"]
    assert (each["found"], new["found"], new["classes"]) == ("better", "better", 100)
    assert new["low"] < each["low"] < each["difference"] < each["high"] < new["high"]
    assert f"better by at least {100 * each['low']:.1f} points on these classes" in line
    assert f"better by at least {100 * new['low']:.1f} points for new ones" in line
    assert any("also the sampling of classes" in line for line in found["lines"])
    assert found["decides"] is None


def test_undecided_says_what_would_decide():
    """Seeds, runs, hours and the command; more for a smaller difference, and after a look."""
    measures, hits = scored(t001=0.583, published=0.58, none=0.5)
    facts = FinalStage(hits=hits, name="night", run_s=3600.0, at_once=3, difference=0.005)
    found = verdict(on_folds(**THREE), "001", measures, NOTHING, facts)
    decides = found["decides"]
    assert found["comparisons"][2]["found"] == "undecided"
    assert decides["more"] == decides["seeds"] - 5 == decides["runs"] // 3 > 0
    assert decides["seconds"] == 3600 * decides["more"]
    assert f"dcml_tune.search --extend night --more-final-seeds {decides['more']}" in decides["command"]
    [line] = [line for line in found["lines"] if line.startswith("what would decide")]
    assert line.endswith(decides["command"])
    assert f"about {decides['more']:.1f} hours" in line
    smaller = verdict(on_folds(**THREE), "001", measures, NOTHING, replace(facts, difference=0.0025))
    assert smaller["decides"]["seeds"] > 3 * decides["seeds"]
    later = verdict(on_folds(**THREE), "001", measures, NOTHING, replace(facts, looks=(3, 4)))
    assert later["comparisons"][2]["difference"] == found["comparisons"][2]["difference"]
    assert later["comparisons"][2]["low"] != found["comparisons"][2]["low"]


def test_one_seed_asks_for_more():
    """There is no interval, and the remedy is named."""
    measures, hits = scored(seeds=1, **THREE)
    found = verdict(on_folds(**THREE), "001", measures, NOTHING, FinalStage(hits=hits, name="night"))
    assert [each["found"] for each in found["comparisons"][2:]] == ["no interval", "no interval"]
    [line] = [line for line in found["lines"] if line.startswith("what would tell more")]
    assert "5 final seeds give an interval; that is 4 more, 12 runs" in line
    assert "--extend night --more-final-seeds 4" in line


def test_equivalent_within_the_difference():
    """Where many seeds agree."""
    measures, _ = scored(seeds=60, t001=0.58, published=0.58, none=0.5)
    found = verdict(on_folds(**THREE), "001", measures, NOTHING, FinalStage(difference=0.01))
    each = found["comparisons"][2]
    assert (each["found"], each["needed"], each["new_classes"]["low"]) == ("equivalent", None, None)
    said = "\n".join(found["lines"])
    assert "equivalent within ± 1.0 points; for new classes no interval: the hits of its queries are not known" in said
    assert "they leave out the sampling of classes" in said


def test_a_measure_that_is_not_the_share_of_hits_has_no_interval_for_new_classes():
    """Such as VehicleID's official protocol, or MAP@R."""
    measures, hits = scored(**THREE)
    measures = {
        n: {s: {"test/recall_at_1": v["test/recall_at_1"] / 2} for s, v in of.items()} for n, of in measures.items()
    }
    found = verdict(on_folds(**THREE), "001", measures, NOTHING, FinalStage(hits=hits))
    assert found["comparisons"][2]["new_classes"]["low"] is None
    assert "no interval: the measure is not the share" in found["comparisons"][2]["new_classes"]["found"]


@pytest.mark.parametrize(
    ("folds", "seeds", "said", "line"),
    [
        ((1, 2, 3), (1,), "(3 folds)", "(3 folds), at least "),
        ((1, 2, 3), (1, 2), "(3 folds, 6 runs)", "(3 folds), at least "),
        ((1,), (1, 2, 3), "(1 fold, 3 runs)", "(1 fold): one fold, no interval"),
        ((1,), (1,), "(1 fold)", "(1 fold): one fold, no interval"),
    ],
)
def test_folds_are_counted_and_not_runs(folds, seeds, said, line):
    """One fold has no interval, however many seeds there are."""
    raced = on_folds(folds=folds, seeds=seeds, noise=0.001, **THREE)
    found = verdict(raced, "001", {}, NOTHING)
    assert said in found["lines"][0]
    assert any(line in each for each in found["lines"] if each.startswith("winner - published, held-out classes"))


def test_a_lead_on_held_out_classes_is_evidence_of_selection():
    """It is better only where the lower end for the best of all settings is above zero."""
    found = verdict(
        on_folds(t001=0.60, t002=0.598, t003=0.597, published=0.5, none=0.599, noise=0.005), "001", {}, NOTHING
    )
    [published, none] = found["comparisons"]
    assert (published["found"], none["found"]) == ("better", "undecided")
    assert published["low"] > 0 > none["low"]
    assert (published["high"], none["high"]) == (None, None)
    assert any("evidence of selection" in line for line in found["lines"])
    assert set(found["not_told_from_winner"]) >= {"002", NO_DIVISION}
    assert PUBLISHED not in found["not_told_from_winner"]


def test_a_control_that_wins_says_what_could_not_be_told_from_it():
    """And what would tell more."""
    found = verdict(on_folds(t001=0.599, t002=0.5, published=0.6, none=0.4), "000", {}, NOTHING)
    assert "the search found nothing better than its controls" in found["lines"]
    [line] = [line for line in found["lines"] if line.startswith("not told from the winner")]
    assert (
        line
        == "not told from the winner on held-out classes (3 folds): 001; more --folds would tell more of them apart"
    )


def test_equal_values_are_said_to_be_equal():
    """On either classes; no interval comes from rounding."""
    raced = on_folds(t001=0.6, published=0.5, none=0.4)
    same = {unit: value["curve"][0] for (name, unit), value in raced.results.items() if name == "001"}
    raced = confirmed(
        {name: {(u.fold, u.seed): v for u, v in same.items()} for name in ("001", PUBLISHED, NO_DIVISION)}
    )
    measures = {name: {f"seed {n}": {"test/recall_at_1": 0.1 * n} for n in range(3)} for name in ("001", PUBLISHED)}
    found = verdict(raced, "001", measures, NOTHING)
    assert [each["found"] for each in found["comparisons"]] == ["equal values"] * 3
    assert all(each["low"] is None for each in found["comparisons"])
    assert sum(line.endswith("equal values in all pairs, no interval") for line in found["lines"]) == 3
    assert f"winner - {NO_DIVISION}, test classes: not compared, as {NO_DIVISION} has no value there" in found["lines"]


def test_the_report_shows_both_intervals(tmp_path):
    """In a table and a figure; that of held-out classes has no upper end."""
    measures, hits = scored(**THREE)
    found = verdict(on_folds(**THREE), "001", measures, NOTHING, FinalStage(hits=hits))
    with drawing():
        shown = section(SimpleNamespace(verdict=found), Album(tmp_path))
    [table] = [part for part in shown.parts if isinstance(part, Table) and part.title == "Comparisons"]
    held_out, test = table.rows[0], table.rows[2]
    assert held_out[:3] == [PUBLISHED, "held-out classes", "3 folds"]
    assert held_out[4].startswith("at least ")
    assert test[2] == "5 seeds"
    assert (" to " in test[4], " to " in test[5]) == (True, True)
    assert (tmp_path / "forest.png").exists()
