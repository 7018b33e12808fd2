"""The values of trials that report often are written together; each is in the study when anybody may look."""

import math

import pytest
from sqlalchemy import event

from trainables import study_values
from trainables.study_file import open_study
from trainables.study_values import StudyValues


@pytest.fixture
def study(tmp_path):
    return open_study(f"sqlite:///{tmp_path / 'study.db'}", "s", ["maximize"])


def curve(study, number=0):
    return study.trials[number].intermediate_values


def test_values_of_a_second_are_written_together(study, clock):
    """The first one at once, the others a second after it."""
    values, trial = StudyValues(study), study.ask()._trial_id
    values.add(trial, 1, 0.1)
    assert curve(study) == {1: 0.1}
    for epoch in (2, 3, 4):
        clock.now += 0.3
        values.add(trial, epoch, epoch / 10)
    assert curve(study) == {1: 0.1}
    clock.now += 0.2
    values.write_due()
    assert curve(study) == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}


def test_a_trial_does_not_wait_for_others(study, clock):
    """Each has its own second."""
    values, trials = StudyValues(study), [study.ask()._trial_id for _ in range(2)]
    values.add(trials[0], 1, 0.1)
    values.add(trials[1], 1, 0.2)
    assert (curve(study, 0), curve(study, 1)) == ({1: 0.1}, {1: 0.2})


def test_many_values_are_one_transaction(study, clock):
    """However many there are."""
    values, trial = StudyValues(study), study.ask()._trial_id
    values.add(trial, 0, 0.0)
    for epoch in range(1, 200):
        values.add(trial, epoch, epoch / 1000)
    commits = []
    event.listen(study._storage._backend.engine, "commit", lambda connection: commits.append(connection))
    values.write_all()
    assert len(commits) == 1
    assert curve(study) == {epoch: epoch / 1000 for epoch in range(200)}


def test_an_epoch_has_one_value(study, clock):
    """The first, whether it waits, was written, or was there before."""
    trial = study.ask()
    trial.report(0.5, 1)
    values = StudyValues(study)
    added = [
        values.add(trial._trial_id, epoch, value) for epoch, value in ((1, 0.6), (2, 0.7), (2, 0.8), (3, 0.9), (3, 1.0))
    ]
    assert added == [False, True, False, True, False]
    values.write_all()
    assert curve(study) == {1: 0.5, 2: 0.7, 3: 0.9}


def test_what_the_study_has_stays(study):
    """Also where this process does not know of it: a server may have committed before its connection broke."""
    trial = study.ask()
    trial.report(0.5, 1)
    storage = study._storage._backend
    for _ in range(2):
        storage.set_trial_intermediate_values(trial._trial_id, {1: 0.9, 2: 0.2, 3: math.inf})
    assert curve(study) == {1: 0.5, 2: 0.2, 3: math.inf}


def test_nothing_is_added_to_a_trial_that_has_ended(study, clock):
    """What waited is written when it ends."""
    values, trial = StudyValues(study), study.ask()
    for epoch in (1, 2):
        values.add(trial._trial_id, epoch, 0.1)
    values.end(trial._trial_id)
    assert curve(study) == {1: 0.1, 2: 0.1}
    study.tell(trial, 0.1)
    assert not values.add(trial._trial_id, 3, 0.3)
    values.end(trial._trial_id)


def test_a_write_that_fails_at_the_end_of_a_trial_is_not_tried_again(study, clock, monkeypatch):
    """The study would refuse it each second: the trial has ended."""
    values, trial = StudyValues(study), study.ask()
    values.add(trial._trial_id, 1, 0.1)
    values.add(trial._trial_id, 2, 0.2)

    def fails(*_):
        raise OSError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(study_values, "write_values", fails)
        with pytest.raises(OSError, match="no room"):
            values.end(trial._trial_id)
    study.tell(trial, 0.1)
    clock.now += 5
    values.write_due()
    assert curve(study) == {1: 0.1}


def test_a_write_that_fails_is_tried_again_a_second_later(study, clock, monkeypatch):
    """Not at each step of Ray Tune, and no value is lost."""
    values, trial, calls = StudyValues(study), study.ask()._trial_id, []

    def fails(*arguments):
        calls.append(arguments)
        raise OSError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(study_values, "write_values", fails)
        with pytest.raises(OSError, match="no room"):
            values.add(trial, 1, 0.1)
        values.write_due()
        assert len(calls) == 1
    clock.now += 1
    values.write_due()
    assert curve(study) == {1: 0.1}


def test_a_write_that_fails_does_not_hold_up_other_trials(study, clock, monkeypatch):
    """All others are written, now and at the end; the error is told."""
    values, trials = StudyValues(study), [study.ask()._trial_id for _ in range(3)]
    for trial in trials:
        values.add(trial, 1, 0.1)
        values.add(trial, 2, 0.2)
    write = study_values.write_values

    def fails(study, trial, waiting):
        if trial == trials[0]:
            raise OSError("no room")
        write(study, trial, waiting)

    monkeypatch.setattr(study_values, "write_values", fails)
    clock.now += 1
    with pytest.raises(OSError, match="no room"):
        values.write_due()
    assert [curve(study, number) for number in range(3)] == [{1: 0.1}, {1: 0.1, 2: 0.2}, {1: 0.1, 2: 0.2}]
    values.add(trials[2], 3, 0.3)
    with pytest.raises(OSError, match="no room"):
        values.write_all()
    assert curve(study, 2) == {1: 0.1, 2: 0.2, 3: 0.3}
