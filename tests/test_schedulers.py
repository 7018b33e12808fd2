from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from trainables.known_trial import KnownTrial
from trainables.schedulers import rungs, scheduler

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


FOUR = {"nb_clusters": 4, "mod_epoch": 2, "nb_epochs": 20, "force_full_embedding_epoch": 12}  # rungs at 10 and 15
TWO = {**FOUR, "nb_clusters": 2}
ONE = {**FOUR, "nb_clusters": 1}
LATE = {**FOUR, "mod_epoch": 5}  # two clusters at the first rung
LONGER = {**FOUR, "nb_epochs": 30}  # its first rung is the second one of the others
VALUES = (0.6, 0.65, 0.75, 0.8, 0.9)  # the lower quarter ends at 0.65


def within_phases(trials, **more):
    """The default scheduler and trials of some settings, by key."""
    asha = scheduler("asha", metric=METRIC, epochs=20, **more)
    made = {key: Trial(key, f"ray-{key}") for key in trials}
    for key, settings in trials.items():
        made[key].config |= settings
        asha.on_trial_add(None, made[key])
    return asha, made


def flat(value, epochs=30):
    """A curve of one value."""
    return dict.fromkeys(range(1, epochs + 1), value)


def stops(decisions):
    """Keys and epochs of the trials that were stopped."""
    return [key for key, decision in decisions.items() if decision == TrialScheduler.STOP]


@pytest.mark.parametrize(
    ("peers", "settings", "value", "epoch"),
    [
        pytest.param([FOUR] * 5, FOUR, 0.64, 10, id="below the lower quarter of its peers"),
        pytest.param([FOUR] * 5, FOUR, 0.65, None, id="at the lower quarter"),
        pytest.param([FOUR] * 4, FOUR, 0.1, None, id="too few peers"),
        pytest.param([TWO] * 5, FOUR, 0.1, 15, id="another number of clusters: until the full-embedding phase"),
        pytest.param([ONE] * 5, FOUR, 0.1, 15, id="undivided peers"),
        pytest.param([FOUR] * 5, ONE, 0.1, 15, id="undivided trial"),
        pytest.param([LATE] * 5, FOUR, 0.1, 15, id="peers that divide later"),
        pytest.param([LATE] * 5, TWO, 0.1, 10, id="as many clusters at this epoch"),
        pytest.param([TWO, TWO, LATE, LATE, FOUR], TWO, 0.1, 15, id="only those of its phase count"),
        pytest.param([LONGER] * 5, FOUR, 0.1, None, id="another number of epochs, at the same epoch 15"),
    ],
)
def test_asha_compares_trials_of_equal_epochs_and_phases(peers, settings, value, epoch):
    """A trial stops at a rung only where enough others have trained as long and are in its phase."""
    keys = [f"{number:03d}" for number in range(len(peers))]
    asha, trials = within_phases({**dict(zip(keys, peers, strict=True)), "new": settings})
    assert not stops(decisions(asha, trials, {key: flat(best) for key, best in zip(keys, VALUES, strict=False)}))
    found = stops(decisions(asha, trials, {"new": flat(value, 20)}))
    assert found == ([] if epoch is None else [("new", epoch)])


def test_asha_stops_a_trial_that_falls_behind_later():
    """It is compared again at three quarters of its epochs."""
    asha, trials = within_phases(dict.fromkeys(["000", "001", "002", "003", "004", "new"], FOUR))
    decisions(asha, trials, {f"{n:03d}": {e: v + 0.01 * e for e in range(1, 21)} for n, v in enumerate(VALUES)})
    assert stops(decisions(asha, trials, {"new": flat(0.79, 20)})) == [("new", 15)]


def test_epochs_that_trials_share_are_one_peer():
    """Trials that have the same value by the same computation are no evidence of their own, and stop each other never."""
    keys = [f"{number:03d}" for number in range(8)]
    asha, trials = within_phases(dict.fromkeys([*keys, "new"], FOUR))
    assert not stops(decisions(asha, trials, {key: flat(0.9, 14) for key in keys}))
    assert not stops(decisions(asha, trials, {"new": flat(0.1, 14)}))


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, []), (2, [1]), (3, [2]), (6, [3, 5]), (24, [12, 18]), (180, [90, 135])]
)
def test_rungs_lie_at_half_and_three_quarters(epochs, expected):
    """They are rounded up, and the last epoch is none."""
    assert rungs(epochs) == expected


@pytest.mark.parametrize("state", ["done", "pruned", "interrupted"])
def test_asha_remembers(state):
    """After a resume it compares with the trials of the earlier process, whether they ended or continue."""
    known = [past(f"{n:03d}", flat(value, 11), state, **FOUR) for n, value in enumerate(VALUES)]
    again = {} if state != "interrupted" else {each.key: FOUR for each in known}
    asha, trials = within_phases({**again, "new": FOUR}, known=known)
    assert [report(asha, trials["new"], epoch, 0.1) for epoch in (8, 9, 10)] == ["CONTINUE", "CONTINUE", "STOP"]


def test_asha_forgets_failed_trials():
    """Their last value is the worst possible one."""
    known = [past(f"{n:03d}", flat(value, 11), "failed", **FOUR) for n, value in enumerate(VALUES)]
    asha, trials = within_phases({"new": FOUR}, known=known)
    assert report(asha, trials["new"], 10, 0.1) == "CONTINUE"
