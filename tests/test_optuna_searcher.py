import pickle
from pathlib import Path

import optuna
import pytest
from ray.tune.search import Searcher

from dcml_tune.config import SettingError
from search_spaces.space import Choice, Float, SearchSpace
from trainables.optuna_searcher import OptunaSearcher

SPACE = SearchSpace(
    name="emoji",
    published={"dataset": "emoji", "nb_epochs": 6, "masking_lambda": 0.01},
    domains={"nb_clusters": Choice([1, 2]), "masking_lambda": Float(1e-3, 1.0, log=True)},
)
METRIC = "val/recall_at_1"


@pytest.fixture
def make(tmp_path):
    def searcher(**options):
        storage = f"sqlite:///{tmp_path / 'study.db'}"
        return OptunaSearcher(SPACE, storage=storage, study_name="s", metric=METRIC, **{"seed": 1, **options})

    return searcher


def states(searcher):
    return [trial.state.name for trial in searcher.study.trials]


def result(value, epoch=6, **facts):
    return {f"{METRIC}_best": value, "epoch": epoch, "done_all": epoch == 6, **facts}


def test_the_first_trials_are_the_given_points(make):
    """Then come draws; every dictionary is whole, and says how the trial is run."""
    trials = Path("/trials")
    searcher = make(points=[{"nb_clusters": 2, "masking_lambda": 0.01}], run={"threads": 1}, trials=trials)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert first == {
        "dataset": "emoji",
        "nb_epochs": 6,
        "masking_lambda": 0.01,
        "nb_clusters": 2,
        "run": {"threads": 1, "key": "000", "directory": "/trials/000"},
    }
    assert second["masking_lambda"] != 0.01


def test_the_study_knows_how_each_trial_ended(make):
    """Complete with its best value, pruned with its last, failed with a reason."""
    searcher = make()
    for name in "abcd":
        searcher.suggest(name)
    searcher.on_trial_result("b", result(0.4, epoch=3))
    searcher.on_trial_complete("a", result(0.6))
    searcher.on_trial_complete("b", result(0.4, epoch=3))
    searcher.on_trial_complete("c", error=True)
    searcher.on_trial_complete("d", result(0.0, failed_reason="out of GPU memory"))
    searcher.explain("002", "its process died")
    assert states(searcher) == ["COMPLETE", "PRUNED", "FAIL", "FAIL", "PRUNED", "PRUNED"]
    assert searcher.study.best_value == 0.6
    known = searcher.known()
    assert [trial.state for trial in known] == ["done", "pruned", "failed", "failed"]
    assert [trial.reason for trial in known] == [None, None, "its process died", "out of GPU memory"]
    assert [(trial.best, trial.best_epoch) for trial in known] == [(0.6, 6), (0.4, 3), (None, None), (None, None)]


def test_the_sampler_hears_of_a_failed_setting(make):
    """As one that was pruned at the worst value: TPE looks at no failed trials."""
    searcher = make()
    failed = searcher.suggest("a")
    searcher.on_trial_complete("a", error=True)
    echo = searcher.study.trials[1]
    assert (echo.state.name, echo.value, echo.params["masking_lambda"]) == ("PRUNED", 0.0, failed["masking_lambda"])
    assert len(searcher.known()) == 1


def test_an_epoch_that_is_reported_twice_counts_once(make):
    """The first value stays."""
    searcher = make()
    searcher.suggest("a")
    for value in (0.3, 0.4):
        searcher.on_trial_result("a", result(value, epoch=2))
    assert searcher.known()[0].curve == {2: 0.3}


def test_what_was_running_goes_on_first_with_its_settings(make):
    """Opened again, the study gives out its interrupted trials under their keys before anything new."""
    searcher = make()
    first, second = searcher.suggest("a"), searcher.suggest("b")
    searcher.on_trial_result("b", result(0.3, epoch=2))
    searcher.on_trial_complete("a", result(0.5))
    again = make()
    assert [trial.state for trial in again.known()] == ["done", "interrupted"]
    taken, new = again.suggest("x"), again.suggest("y")
    assert taken == second
    assert new["run"]["key"] == "002"
    assert new["masking_lambda"] not in (first["masking_lambda"], second["masking_lambda"])
    again.on_trial_complete("x", result(0.6))
    assert again.known()[1].curve == {2: 0.3, 6: 0.6}


def test_what_has_no_time_left_ends_as_pruned(make):
    """With its best value and the reason; a trial that has none waits on."""
    searcher = make()
    for name in "ab":
        searcher.suggest(name)
    searcher.on_trial_result("a", result(0.3, epoch=2))
    searcher.cut_short("no time")
    first, second = searcher.known()
    assert (first.state, first.best, first.reason) == ("pruned", 0.3, "no time")
    assert (second.state, second.reason) == ("interrupted", None)


def test_a_damaged_study_comes_from_its_copy(make, tmp_path, caplog):
    """The copy knows every trial that was launched or has ended; without it the damage is refused, by name."""
    searcher = make()
    searcher.suggest("a")
    searcher.on_trial_complete("a", result(0.5))
    searcher.suggest("b")
    file = tmp_path / "study.db"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    again = make()
    assert [trial.state for trial in again.known()] == ["done", "interrupted"]
    assert f"{file}: the Optuna study is damaged" in caplog.text
    file.write_bytes(data[: len(data) // 2])
    (tmp_path / "study.db.copy").unlink()
    with pytest.raises(SettingError, match="is damaged and has no copy"):
        make()


def test_a_result_that_is_not_finite_fails_its_trial_alone(make):
    """A value that Optuna would refuse never raises."""
    searcher = make()
    searcher.suggest("a")
    searcher.on_trial_result("a", result(float("nan")))
    searcher.on_trial_complete("a", result(float("nan")))
    searcher.on_trial_complete("unknown", result(0.5))
    assert [trial.state for trial in searcher.known()] == ["failed"]


def test_what_cannot_work_is_told_as_failed_and_not_launched(make):
    """The study keeps the reason."""
    searcher = make(feasible=lambda config: "no division here" if config.nb_clusters > 1 else None)
    found = [searcher.suggest(str(number)) for number in range(8)]
    assert {each["nb_clusters"] for each in found} == {1}
    refused = [trial for trial in searcher.study.trials if trial.state == optuna.trial.TrialState.FAIL]
    assert refused
    assert {trial.user_attrs["dcml.reason"] for trial in refused} == {"no division here"}
    searcher.feasible = lambda config: "never"
    assert searcher.suggest("x") is None


def test_a_pickled_searcher_goes_on_with_its_running_trials(make):
    """Ray keeps its searcher by pickle; the study is opened again, and nothing is drawn twice."""
    searcher = make(sampler="random")
    before = [searcher.suggest(name)["masking_lambda"] for name in "ab"]
    again = pickle.loads(pickle.dumps(searcher))
    again.on_trial_complete("a", result(0.5))
    assert states(again) == ["COMPLETE", "RUNNING"]
    assert again.suggest("c")["masking_lambda"] not in before


def test_a_seed_gives_the_same_draws(tmp_path):
    """Two studies of one seed draw alike; another seed draws differently."""

    def draws(name, seed):
        searcher = OptunaSearcher(
            SPACE, storage=f"sqlite:///{tmp_path / name}.db", study_name="s", metric=METRIC, seed=seed
        )
        return [searcher.suggest(str(number))["masking_lambda"] for number in range(4)]

    assert draws("one", 3) == draws("two", 3) != draws("three", 4)


def test_patience_ends_the_launching(make):
    """After so many trials in a row without a new best; a failed one brings nothing; what runs may still bring it."""
    searcher = make(patience=2)
    for name in "abcde":
        assert searcher.suggest(name) != Searcher.FINISHED
    searcher.on_trial_complete("a", result(0.6))
    searcher.on_trial_complete("b", result(0.5))
    assert not searcher.is_patient_no_more()
    searcher.on_trial_complete("c", error=True)
    assert searcher.is_patient_no_more()
    assert searcher.suggest("f") == Searcher.FINISHED
    searcher.on_trial_complete("d", result(0.7))
    assert isinstance(searcher.suggest("f"), dict)
    assert not make().is_patient_no_more()
