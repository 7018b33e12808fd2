from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

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
    return scheduler(name, metric=METRIC, epochs=8, ended=ended or {}, running=running or {})


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


@pytest.mark.parametrize("name", ["asha", "median"])
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
    fresh = made("asha")
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
    asha = made("asha", {"000": {4: 0.9}, "001": {4: 0.8}}, {"002": {3: 0.1, 4: 0.1}})
    trial = Trial("002", "x")
    asha.on_trial_add(None, trial)
    assert report(asha, trial, 4, 0.1) == TrialScheduler.STOP
