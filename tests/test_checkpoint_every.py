"""--checkpoint-every N: the state is saved every N epochs, the best model always, and a resume computes the same numbers."""

import pytest

from dcml_tune.models.embedder import best_model
from dcml_tune.runs.attempts import files_of
from dcml_tune.search import __main__ as search
from dcml_tune.search.flags import read_command_line
from dcml_tune.search.plan import given_plan
from dcml_tune.training.prefixes import PrefixStore


def measures(result):
    return {name: value for name, value in result.items() if name.startswith(("val/", "train/", "clusters/", "epoch"))}


def left(directory, stem):
    """Epochs of the states or models in the directory of a trial."""
    return sorted({int(path.name.split(".")[0].rpartition("-")[2]) for path in files_of(directory).glob(f"{stem}-*")})


@pytest.mark.parametrize(
    ("every", "killed_after", "state"), [(1, 3, 3), (2, 1, None), (2, 3, 2), (3, 2, None), (9, 3, None)]
)
def test_a_resume_trains_the_epochs_since_the_state_again(every, killed_after, state, trial, tmp_path):
    """With the very numbers that were reported before; the last epoch is always saved."""
    through = trial(directory=None)
    expected = [measures(through.train()) for _ in range(4)]
    first = trial(save_every=every)
    assert [measures(first.train()) for _ in range(killed_after)] == expected[:killed_after]
    first.stop()
    place = tmp_path / "trial"
    assert left(place, "trainer") == ([] if state is None else [state])
    second = trial(save_every=every)
    begins = max(1, state or 1)  # the epoch of the state is reported again
    assert [measures(second.train()) for _ in range(5 - begins)] == expected[begins - 1 :]
    assert left(place, "trainer") == [4]
    assert left(place, "best") == [expected[-1]["epoch_best"]]


@pytest.mark.parametrize(("reported", "again"), [(None, [3]), (0, [1, 2, 3]), (1, [1, 2, 3]), (2, [2, 3]), (3, [3])])
def test_what_the_study_may_lack_is_reported_again(reported, again, trial):
    """Values of the last second may be lost with the driver; without a number the last saved epoch is repeated.

    The last epoch that the study has is repeated, too, because the scheduler has not compared it.
    """
    first = trial()
    results = {result["epoch"]: result for result in (first.train() for _ in range(3))}
    first._ownership.release()
    second = trial(reported=reported)
    found = [second.train() for _ in again]
    assert [(each["epoch"], each["time_ms"], measures(each)) for each in found] == [
        (epoch, results[epoch]["time_ms"], measures(results[epoch])) for epoch in again
    ]
    assert second.train()["epoch"] == 4


def test_old_reports_are_not_kept(trial, monkeypatch):
    """A state would grow with each epoch; with a storage it does, because a driver on another machine may lack any."""
    started, now = trial(), [1000.0]
    monkeypatch.setattr("trainables.saved_reports.time.monotonic", lambda: now[0])
    for seconds in (0, 40, 40, 40):
        now[0] += seconds
        started.train()
    assert [report["epoch"] for report in started._reports.as_list()] == [3, 4]


def test_the_best_model_is_there_whenever_an_epoch_is_reported(trial, tmp_path):
    """A scheduler may end the trial at each report. The model that the saved state refers to stays until the next one."""
    started, place, bests = trial(save_every=2), tmp_path / "trial", {}
    for epoch, value in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)):
        started.trainer.evaluate = lambda value=value: {"val/map_at_r": value}
        assert started.train()["epoch_best"] == epoch
        assert best_model(place).name == f"best-{epoch:05d}"
        bests[epoch] = left(place, "best")
    assert bests == {1: [1], 2: [2], 3: [2, 3], 4: [4]}


def test_a_state_that_others_may_have_is_saved(trial, tmp_path):
    """Also between the epochs at which the trial's own state is due."""
    started = trial(save_every=3, prefixes=str(tmp_path / "prefixes"), shares=(1,))
    started.train()
    assert PrefixStore(tmp_path / "prefixes", started.trainer).has(1)
    started.train()
    assert left(tmp_path / "trial", "trainer") == [1]


def test_a_search_records_it(four_epochs, tmp_path):
    """A resume takes it over."""
    words = ["folder", "--output-dir", str(tmp_path), "--name", "s"]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in four_epochs.items() if name != "dataset"]
    plan = given_plan(read_command_line([*words, "--checkpoint-every", "7"]))
    assert plan.runs.run().save_every == 7
    plan.begin().release()
    resume = ["--resume", "s", "--output-dir", str(tmp_path), "--dry-run"]
    assert search.main(resume) == search.main([*resume, "--checkpoint-every", "7"]) == 0
    with pytest.raises(ValueError, match="--checkpoint-every 8: search s began with 7"):
        search.main([*resume, "--checkpoint-every", "8"])
