from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from trainables.known_trial import KnownTrial
from trainables.schedulers import scheduler

METRIC = "val/recall_at_1_best"


@dataclass(eq=False)
class Trial:
    """What a scheduler asks of Ray's trial."""

    key: str
    trial_id: str
    config: dict[str, Any] = field(init=False)

    def __post_init__(self):
        self.config = {"run": {"key": self.key}}


def made(name, ended=None, running=None):
    known = [past(key, curve, "done") for key, curve in (ended or {}).items()]
    known += [past(key, curve, "interrupted") for key, curve in (running or {}).items()]
    return scheduler(name, metric=METRIC, epochs=8, known=known)


def past(key, curve, state, **settings):
    return KnownTrial(key=key, config=settings, curve=curve, state=state, reason=None)


def report(scheduler, trial, epoch, value):
    return scheduler.on_trial_result(None, trial, {"epoch": epoch, METRIC: value})


def decisions(scheduler, trials, curves):
    """What a scheduler says of each epoch of some trials, one after the other, up to the one that ends a trial."""
    found = {}
    for key, curve in curves.items():
        for epoch, value in curve.items():
            found[key, epoch] = report(scheduler, trials[key], epoch, value)
            if found[key, epoch] == TrialScheduler.STOP:
                break
    return found


@pytest.mark.parametrize("name", ["asha-epochs", "median"])
def test_after_a_resume_it_decides_as_if_nothing_had_been(name):
    """What it hears after a resume leads to the decisions of one that heard all of it in one process."""
    good, poor = dict.fromkeys(range(1, 9), 0.9), dict.fromkeys(range(1, 9), 0.1)
    curves = {"000": good, "001": good, "002": good, "003": poor}
    trials = {key: Trial(key, f"old{key}") for key in curves}
    through = made(name)
    for trial in trials.values():
        through.on_trial_add(None, trial)
    expected = decisions(through, trials, curves)
    assert expected["003", 4] == TrialScheduler.STOP
    resumed = made(name, {key: curves[key] for key in ("000", "001", "002")}, {"003": {1: 0.1, 2: 0.1}})
    again = Trial("003", "new003")
    resumed.on_trial_add(None, again)
    # The newest epoch is reported again; earlier ones are not decided upon a second time.
    found = [report(resumed, again, epoch, 0.1) for epoch in (2, 3, 4)]
    assert found == [expected["003", epoch] for epoch in (2, 3, 4)]


def test_without_its_memory_it_would_not_prune():
    """The counter-check: a scheduler that knows of no earlier trial lets the poor one run on."""
    fresh = made("asha-epochs")
    trial = Trial("003", "new003")
    fresh.on_trial_add(None, trial)
    assert report(fresh, trial, 4, 0.1) == TrialScheduler.CONTINUE


def test_an_epoch_that_is_reported_twice_counts_once():
    """A trial that goes on reports its last epoch again: no rung or mean takes it twice."""
    median = made("median")
    trial = Trial("000", "a")
    median.on_trial_add(None, trial)
    for epoch in (1, 2, 2, 3, 3):
        report(median, trial, epoch, 0.5)
    assert [result["epoch"] for result in median._results[trial]] == [1, 2, 3]


def test_a_trial_interrupted_at_a_rung_is_judged_there_when_it_goes_on():
    """Killed between the decision to prune it and its end, a poor trial does not run on."""
    asha = made("asha-epochs", {"000": {4: 0.9}, "001": {4: 0.8}}, {"002": {3: 0.1, 4: 0.1}})
    trial = Trial("002", "x")
    asha.on_trial_add(None, trial)
    assert report(asha, trial, 4, 0.1) == TrialScheduler.STOP


FOUR = {"nb_clusters": 4, "mod_epoch": 2, "nb_epochs": 20, "force_full_embedding_epoch": 12}  # milestones 6, 12, 16
TWO = {**FOUR, "nb_clusters": 2}  # milestones 4, 12, 16
SHORT = {"nb_clusters": 4, "mod_epoch": 2, "nb_epochs": 6, "force_full_embedding_epoch": 5}  # all of them at 5


def by_phase(trials, **more):
    """A phase-aware ASHA and trials of some settings, by key."""
    asha = scheduler("asha", metric=METRIC, epochs=20, **more)
    made = {key: Trial(key, f"ray-{key}") for key in trials}
    for key, settings in trials.items():
        made[key].config |= settings
        asha.on_trial_add(None, made[key])
    return asha, made


def test_trials_are_judged_at_the_phases_of_their_own_division():
    """One that divides into four is judged two epochs later than one that divides into two, and never in between."""
    good = dict.fromkeys(range(1, 21), 0.9)
    asha, trials = by_phase({"000": TWO, "001": TWO, "002": TWO, "poor-two": TWO, "poor-four": FOUR})
    decisions(asha, trials, {"000": good, "001": good, "002": good})
    poor = dict.fromkeys(range(1, 21), 0.1)
    found = decisions(asha, trials, {"poor-two": poor, "poor-four": poor})
    assert [key for key, decision in found.items() if decision == TrialScheduler.STOP] == [
        ("poor-two", 4),
        ("poor-four", 6),
    ]


@pytest.mark.parametrize("epoch", [12, 16])
def test_trials_are_judged_before_and_within_the_full_embedding_phase(epoch):
    """A trial that falls behind later is stopped there."""
    good = dict.fromkeys(range(1, 21), 0.9)
    asha, trials = by_phase(dict.fromkeys(["000", "001", "002", "003"], FOUR))
    decisions(asha, trials, {"000": good, "001": good, "002": good})
    falls = {e: 0.95 if e < epoch else 0.1 for e in range(1, 21)}
    found = decisions(asha, trials, {"003": falls})
    assert [key for key, decision in found.items() if decision == TrialScheduler.STOP] == [("003", epoch)]


def test_milestones_that_coincide_are_one_judgement_at_each_of_their_rungs():
    """A later epoch is not taken for an earlier rung."""
    asha, trials = by_phase({"000": SHORT, "001": SHORT})
    report(asha, trials["000"], 5, 0.5)
    assert report(asha, trials["000"], 6, 0.9) == TrialScheduler.CONTINUE
    assert [list(rung.values()) for _, rung in asha._brackets[0]._rungs if rung] == [[0.5]] * 3
    assert report(asha, trials["001"], 5, 0.4) == TrialScheduler.STOP


def test_phase_aware_asha_remembers():
    """After a resume it has the rungs of the trials that ended."""
    curve = dict.fromkeys(range(1, 21), 0.9)
    asha, trials = by_phase({"new": FOUR}, known=[past(key, curve, "done", **TWO) for key in ("000", "001")])
    assert [report(asha, trials["new"], epoch, 0.1) for epoch in (4, 5, 6)] == ["CONTINUE", "CONTINUE", "STOP"]
