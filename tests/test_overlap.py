"""A trial trains on while its last epoch is saved; what it saves, reports and computes is as if it had waited."""

import errno
import math
import threading
import time
import weakref

import pytest
import torch

from dcml_tune.training import overlap, saving
from dcml_tune.training.overlap import finish
from dcml_tune.training.trainer import Trainer
from dcml_tune.training.updates import Updates
from trainables.run import FAILED, STOP_SEARCH


@pytest.fixture
def save(monkeypatch):
    """Makes each save wait until the next epoch has had some updates; counts those that were made during a save."""

    class Save:
        updates, wanted, during, error = 0, 2, 0, None

        def wait(self):
            if threading.current_thread() is threading.main_thread():
                return
            begun, until = self.updates, time.monotonic() + 60
            while self.updates < begun + self.wanted and time.monotonic() < until:
                time.sleep(0.001)
            self.during += self.updates - begun
            if self.error is not None:
                raise self.error

    save, snapshot_save, steps = Save(), saving.Snapshot.save, Updates.steps

    def slow(snapshot, directory, **options):
        save.wait()
        snapshot_save(snapshot, directory, **options)

    def counted(updates, plan, partition):
        pending = steps(updates, plan, partition)
        while True:
            try:
                found = next(pending)
            except StopIteration as end:
                return end.value
            save.updates += 1
            yield found

    monkeypatch.setattr(saving.Snapshot, "save", slow)
    monkeypatch.setattr(Updates, "steps", counted)
    return save


def measures(result):
    return {name: value for name, value in result.items() if name.startswith(("val/", "train/", "clusters/", "epoch"))}


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.fixture
def expected(trial):
    """Measures and weights after each epoch of a trial that saves nothing."""
    through = trial(directory=None)
    return [(measures(through.train()), weights(through.trainer)) for _ in range(4)]


def test_the_next_epoch_trains_while_one_is_saved(trial, save, expected):
    """All epochs but the last one; each result is the same."""
    first = trial()
    assert [measures(first.train()) for _ in range(4)] == [each for each, _ in expected]
    assert save.during >= 3 * save.wanted
    assert_equal(weights(first.trainer), expected[-1][1])


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_a_trial_that_is_killed_in_the_begun_epoch_goes_on_from_the_saved_one(killed_after, trial, save, expected):
    """What was trained ahead, with a division or without, is neither in the saved state nor in what follows."""
    first = trial()
    for _ in range(killed_after):
        first.train()
    assert first._begun is not None
    first._ownership.release()  # a process that is killed closes nothing
    second = trial()
    assert_equal(weights(second.trainer), expected[killed_after - 1][1])
    found = [measures(second.train()) for _ in range(5 - killed_after)]
    assert found == [each for each, _ in expected[killed_after - 1 :]]


def test_an_epoch_is_reported_when_it_is_saved(trial, save, tmp_path):
    """Not before; the next epoch is not measured ahead, however long the save takes."""
    first, reported = trial(), []
    work = threading.Thread(target=lambda: reported.append(first.train()))
    released = threading.Event()
    save.wait = lambda: threading.current_thread() is work or released.wait(60)
    work.start()
    time.sleep(2)
    assert not reported
    assert (first.trainer.epoch, len(first.trainer.history)) == (1, 1)
    assert not Trainer.is_saved(first.directory)
    released.set()
    work.join()
    assert reported[0]["epoch"] == 1
    assert Trainer.is_saved(first.directory)
    assert first.train()["epoch"] == 2


def test_a_save_that_fails_stops_the_search(trial, save):
    """As one that is waited for does."""
    first = trial()
    save.error = OSError(errno.ENOSPC, "No space left on device", "the file")
    assert "the file cannot be written (No space left on device)" in first.train()[STOP_SEARCH]


def test_a_failure_of_the_begun_epoch_is_reported_after_the_saved_one(trial, save, monkeypatch):
    """The driver gets the epoch that was saved first, then the reason."""
    first, evaluate = trial(), Trainer.evaluate
    monkeypatch.setattr(Trainer, "evaluate", spoilt)
    result = first.train()
    assert FAILED not in result
    assert result["epoch"] == 1
    assert "is not finite" in first.train()[FAILED]
    first._ownership.release()
    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    assert trial().train()["epoch"] == 1


def spoilt(trainer):
    """Measure, and spoil what the next epoch begins with."""
    torch.nn.init.constant_(trainer.model.embedding.weight, math.nan)
    return {"val/map_at_r": 0.5}


def test_an_error_of_the_begun_epoch_waits_for_the_save(trial, save, monkeypatch):
    """A retry then continues from the saved epoch."""
    first = trial()

    def broken(*_):
        time.sleep(0.2)
        raise RuntimeError("the file server does not answer")
        yield True

    save.wanted = 0
    steps = [first.trainer.epoch_steps(), broken()]
    monkeypatch.setattr(first.trainer, "epoch_steps", lambda: steps.pop(0))
    with pytest.raises(RuntimeError, match="does not answer"):
        first.train()
    first._ownership.release()
    assert trial().train()["epoch"] == 1


def test_rays_own_checkpoint_is_of_the_reported_epoch(trial, save, expected, tmp_path):
    """Though the trainer has begun the next one; loading one gives that up."""
    first = trial()
    first.train()
    assert first._begun is not None
    (tmp_path / "ray").mkdir()
    first.save_checkpoint(str(tmp_path / "ray"))
    first.train()
    first.load_checkpoint(str(tmp_path / "ray"))
    assert_equal(weights(first.trainer), expected[0][1])
    assert measures(first.train()) == expected[1][0]


def test_what_other_trials_wait_for_is_saved_before_anything_else(trial, tmp_path):
    """An epoch that is shared is waited for, and so is the last one."""
    first = trial(prefixes=str(tmp_path / "prefixes"), shares=(1, 2))
    begun = [first.train() and first._begun is not None for _ in range(4)]
    assert begun == [False, False, True, False]


def test_the_time_of_an_epoch_does_not_include_a_pause(four_epochs, tmp_path):
    """A step of Ray ends in the middle of an epoch; the driver may take long to ask for the next one."""
    from dcml_tune.config.trial import TrialConfig

    trainer = Trainer(TrialConfig(**four_epochs), stores=tmp_path / "store", device="cpu")
    trainer.run_epoch()
    steps, begun = trainer.epoch_steps(), time.perf_counter()
    next(steps)
    time.sleep(3)
    found = finish(steps)
    took = time.perf_counter() - begun
    parts = [found[f"time/{part}_s"] for part in ("cluster", "train", "evaluate")]
    assert found["time/epoch_s"] == pytest.approx(sum(parts))
    assert found["time/epoch_s"] <= took - 3


def test_a_report_does_not_wait_for_the_clusters_of_the_next_epoch(four_epochs, tmp_path, monkeypatch):
    """The embedding of the images for them is work in steps, too: nothing has changed after them but the clusters' features."""
    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.data.loader import EVALUATION_BATCH

    monkeypatch.setitem(EVALUATION_BATCH, "cpu", 8)
    trainer = Trainer(TrialConfig(**four_epochs), stores=tmp_path / "store", device="cpu")
    trainer.run_epoch()
    before, steps = weights(trainer), trainer.epoch_steps()
    for _ in range(-(-len(trainer.data.train) // 8)):
        assert next(steps)
        assert trainer.division is None
        assert not torch.is_inference_mode_enabled()
        assert_equal(weights(trainer), before)
    assert next(steps)
    assert trainer.division is not None
    steps.close()


def test_the_copy_of_a_state_is_given_up_when_the_epoch_goes_on(trial, monkeypatch):
    """It is as large as the state."""
    first = trial()
    first.train()
    copy, evaluate, found = weakref.ref(first._begun.saved), Trainer.evaluate, []
    monkeypatch.setattr(Trainer, "evaluate", lambda trainer: found.append(copy()) or evaluate(trainer))
    first.train()
    assert found == [None]


def test_time_between_steps_is_not_counted(monkeypatch):
    """Whatever the caller does then."""
    now = iter([0, 1, 11, 13, 113, 116])
    monkeypatch.setattr(overlap.time, "perf_counter", lambda: next(now))

    def work():
        yield True
        yield True
        return "done"

    assert finish(overlap.timed(work())) == ("done", 1 + 2 + 3)


def test_work_ends_with_the_save_or_when_none_is_left():
    """Whichever is first; the save is always waited for."""
    saved, done = threading.Event(), []
    overlap.work_during(lambda: time.sleep(0.2) or saved.set(), lambda: done.append(1) or len(done) < 3)
    assert (len(done), saved.is_set()) == (3, True)
    overlap.work_during(lambda: time.sleep(0.2), lambda: not time.sleep(0.01))
    with pytest.raises(ValueError, match="a value"):
        overlap.work_during(lambda: int("a value"), lambda: False)
