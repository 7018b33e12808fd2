"""The final stage: what is scored on the test classes, under which protocol, with which seeds, and how seeds are added."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from searches import SMALLEST

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.hits import HITS_FILE, QueryHits
from dcml_tune.runs.record import Record
from dcml_tune.search.confirmation import (
    NO_DIVISION,
    PUBLISHED,
    Candidate,
    Confirmation,
    FoldSeed,
    candidates,
    wanted_controls,
)
from dcml_tune.search.final_stage import AGAIN, by_seed, final_runs, hits_by_seed
from dcml_tune.search.flags import read_command_line
from dcml_tune.search.outcome import UNTRAINED
from dcml_tune.search.recording import final_stage, untrained_value
from dcml_tune.search.request import LaterSeeds
from dcml_tune.search.resume import _later_seeds
from dcml_tune.search.resumed_flags import refuse_changes
from dcml_tune.search.stage import StageRunner
from dcml_tune.search.trial_runs import FINAL, TrialRuns
from dcml_tune.utils.files import write_checksummed
from trainables import DivideAndConquer
from trainables.resources import share
from trainables.run import RESULT_FILE, run_of


def test_the_untrained_network_has_the_measure_of_the_others():
    """VehicleID's official one where the runs have it; None if it was not scored."""
    measures = {"test/recall_at_1": 0.9, "test/official_recall_at_1": 0.3, "test/map_at_r": 0.2}
    final = {UNTRAINED: {"seed 0": measures}, "001": {"seed 0": {**measures, "test/official_recall_at_1": 0.7}}}
    assert untrained_value("val/recall_at_1", final) == 0.3
    assert untrained_value("val/map_at_r", final) == 0.2
    assert untrained_value("val/recall_at_1", {UNTRAINED: {"seed 0": {"test/recall_at_1": 0.9}}}) == 0.9
    assert untrained_value("val/recall_at_1", {}) is None


@pytest.fixture
def plan(tmp_path):
    """What the final stage asks of a plan."""
    shares = share(num_samples=1, cores=1, gpus=0)
    runs = TrialRuns(search="s", output=tmp_path, shares=shares, metric="val/recall_at_1", varied=(), first_seed=0)
    return SimpleNamespace(runs=runs, final_seeds=2, config=SimpleNamespace(final_seeds=2))


def test_the_verdict_knows_what_matters_and_what_seeds_cost(tmp_path):
    """The flag counts points; a run without times says nothing of them."""
    words = ["emoji", "--difference", "0.8", "--controls", "published"]
    plan = SimpleNamespace(
        later=LaterSeeds(count=2, looks=(3,)),
        config=read_command_line(words).config,
        shares=share(num_samples=4, cores=4, gpus=0),
        name="s",
        output=tmp_path,
    )
    runs = {"001": {"seed 1": {"epoch": 4, "time/epoch_s": 30.0}, "seed 2": {"epoch": 2, "time/epoch_s": 30.0}}}
    found = final_stage(plan, {**runs, PUBLISHED: {"seed 1": {"epoch": 4}}}, {})
    assert (found.difference, found.looks, found.run_s, found.output) == (
        pytest.approx(0.008),
        (3,),
        90.0,
        str(tmp_path),
    )
    assert final_stage(plan, {}, {}).run_s is None
    assert wanted_controls(plan.config) == (PUBLISHED,)
    assert [each.name for each in candidates([], {"nb_clusters": 4}, 2, (PUBLISHED,))] == [PUBLISHED]


CONFIRMED = Confirmation(
    candidates=[Candidate(name=name, config={"dataset": "emoji"}) for name in ("001", "002", PUBLISHED, NO_DIVISION)],
    units=[FoldSeed(1, 1)],
    results={("001", FoldSeed(1, 1)): {"curve": [0.1, 0.3, 0.2]}},
    dropped={"002": 2},
    metric="val/recall_at_1",
)


def test_seeds_that_are_added_train_as_long_as_the_first_ones(plan):
    """So that all of a setting's seeds are comparable, whatever is confirmed since; the ledger says why they are scored."""
    first = {at: run_of(run) for at, run in final_runs(plan, CONFIRMED).items()}
    names = ("001", PUBLISHED, NO_DIVISION)
    assert list(first) == [(UNTRAINED, 0), *((name, number) for name in names for number in (0, 1))]
    assert {(name, run.until) for (name, _), run in first.items() if name in names} == {
        ("001", 2),
        (PUBLISHED, None),
        (NO_DIVISION, None),
    }
    for (name, number), run in first.items():
        directory = plan.runs.directory / run.key
        directory.mkdir(parents=True)
        measures = {"test/recall_at_1": 0.5, "test/map_at_r": 0.4}
        write_checksummed(directory / "result.json", {"epoch": 3 if name == "001" else 4, "done": True, **measures})
        if name == PUBLISHED:
            QueryHits(classes=np.array([1, 2]), hits=np.array([True, number == 0])).write(directory / HITS_FILE)
    (plan.runs.directory / first["001", 0].key / HITS_FILE).write_bytes(b"damaged")
    plan.final_seeds = 3
    runs = final_runs(plan, replace(CONFIRMED, results={}, kept="001"))
    added = {at: run_of(run) for at, run in runs.items() if at not in first}
    assert {at: run.until for at, run in added.items()} == {("001", 2): 3, (PUBLISHED, 2): 4, (NO_DIVISION, 2): 4}
    assert {run.note for run in added.values()} == {AGAIN}
    assert {run_of(runs[at]).note for at in first} == {""}
    known = plan.runs.results(list(runs.values()))
    final, hits = by_seed(runs, known), hits_by_seed(plan, runs)
    assert list(final[PUBLISHED]) == [f"seed {FINAL}", f"seed {1 + FINAL}"]
    assert {name: {seed: int(each.hits.sum()) for seed, each in found.items()} for name, found in hits.items()} == {
        PUBLISHED: {f"seed {FINAL}": 2, f"seed {1 + FINAL}": 1}
    }


@pytest.fixture
def finished(tmp_path):
    """The record of a finished search with a verdict."""
    record = Record.create(tmp_path / "s", {**SMALLEST, "flags": {**SMALLEST["flags"], "final_seeds": 5}})
    write_checksummed(tmp_path / "s" / "verdict.json", {"winner": "000"})
    record.update(status="finished")
    return record


def later(record, *words):
    return _later_seeds(record, record.asked, read_command_line(list(map(str, words))))


def test_the_record_knows_how_many_seeds_each_verdict_had(finished):
    """Also after a second extension; a resume goes on with it, and an extension by trials lets the winner change."""
    first = later(finished, "--extend", "s", "--more-final-seeds", 3)
    assert first == LaterSeeds(count=3, looks=(5,), winner=PUBLISHED)
    finished.ask(later_seeds=first.as_json())
    assert later(finished, "--resume", "s") == first
    second = later(finished, "--extend", "s", "--more-final-seeds", 2)
    assert second == LaterSeeds(count=5, looks=(5, 8), winner=PUBLISHED)
    finished.ask(later_seeds=second.as_json())
    read = Record.open(finished.directory)
    assert later(read, "--extend", "s", "--num-samples", 4) == replace(second, winner=None)
    assert LaterSeeds.from_json(None) == LaterSeeds()


@pytest.mark.parametrize(
    ("words", "change", "expected"),
    [
        (["--num-samples", 4], {}, "--num-samples adds trials"),
        (["--space", "wide"], {}, "--space adds trials"),
        ([], {"status": "interrupted"}, "is not finished; first resume it:"),
        ([], {"final": "none"}, "has scored no test classes"),
        ([], {"verdict": None}, "has scored no test classes"),
        ([], {"verdict": "torn"}, "verdict.json"),
    ],
)
def test_seeds_are_added_to_nothing_else(finished, words, change, expected):
    """One line says why."""
    if "status" in change:
        finished.update(**change)
    if "final" in change:
        finished.ask(flags={**finished.asked["flags"], **change})
    if "verdict" in change:
        file = finished.directory / "verdict.json"
        file.unlink()
        if change["verdict"]:
            file.write_text(change["verdict"])
    with pytest.raises(SettingError, match=expected) as error:
        later(finished, "--extend", "s", "--more-final-seeds", 3, *words)
    assert "\n" not in str(error.value)


def test_another_number_of_final_seeds_names_the_flag_that_adds_some(finished):
    """It would otherwise change what the first verdict was."""
    with pytest.raises(SettingError, match=r"--final-seeds 8: search s began with 5;.*--more-final-seeds N"):
        refuse_changes("s", finished.asked, {"final_seeds": 8}, extends=True)


@pytest.mark.parametrize(
    ("state", "runs_again"), [("done", False), ("pruned", False), ("running", True), ("killed", True), (None, True)]
)
def test_a_run_whose_end_was_not_recorded_reports_again(tmp_path, monkeypatch, state, runs_again):
    """Its process wrote the result, and the driver was killed before it took the report."""
    ran, shares = [], share(num_samples=1, cores=1, gpus=0)
    runs = TrialRuns(
        search="s",
        output=tmp_path,
        shares=shares,
        metric="val/recall_at_1",
        varied=(),
        first_seed=0,
        shares_epochs=False,
    )
    run = runs.final_run(Candidate(name="001", config={"dataset": "emoji"}), "final", 0, None)
    directory = runs.directory / run_of(run).key
    directory.mkdir(parents=True)
    write_checksummed(
        directory / RESULT_FILE, {"test/recall_at_1": 0.5, "test/map_at_r": 0.4, "epoch": 1, "done": True}
    )
    record = SimpleNamespace(state=SimpleNamespace(elapsed_s=0.0))
    tracker = SimpleNamespace(state=lambda key: state if key == f"s/{run_of(run).key}" else "done")
    stages = StageRunner(SimpleNamespace(runs=runs, name="s"), record, tracker, {}, DivideAndConquer)
    monkeypatch.setattr(stages, "new_progress", lambda planned: None)
    monkeypatch.setattr(stages, "run", lambda progress, **tuning: ran.append(tuning))
    assert stages.run_missing([run]).keys() == {run_of(run).key}
    assert bool(ran) == runs_again
    trial = DivideAndConquer(run)  # without images
    assert trial.train()["test/recall_at_1"] == 0.5
    trial.stop()
