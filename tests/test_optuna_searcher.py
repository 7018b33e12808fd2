import pickle

import optuna
import pytest

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
    return {f"{METRIC}_best": value, "training_iteration": epoch, "done_all": epoch == 6, **facts}


def test_the_first_trials_are_the_given_points(make):
    """Then come draws; every dictionary is whole, with the constants."""
    searcher = make(points=[{"nb_clusters": 2, "masking_lambda": 0.01}], constants={"run": {"threads": 1}})
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert first == {
        "dataset": "emoji",
        "nb_epochs": 6,
        "masking_lambda": 0.01,
        "nb_clusters": 2,
        "run": {"threads": 1},
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
    assert states(searcher) == ["COMPLETE", "PRUNED", "FAIL", "FAIL"]
    assert searcher.study.best_value == 0.6
    assert searcher.study.trials[1].intermediate_values == {3: 0.4}
    assert searcher.study.trials[3].user_attrs["dcml.reason"] == "out of GPU memory"


def test_a_result_that_is_not_finite_fails_its_trial_alone(make):
    """A value that Optuna would refuse never raises."""
    searcher = make()
    searcher.suggest("a")
    searcher.on_trial_result("a", result(float("nan")))
    searcher.on_trial_complete("a", result(float("nan")))
    searcher.on_trial_complete("unknown", result(0.5))
    assert states(searcher) == ["FAIL"]


def test_what_cannot_work_is_told_as_failed_and_not_launched(make):
    """The study keeps the reason."""
    searcher = make(feasible=lambda config: "no division here" if config.nb_clusters > 1 else None)
    found = [searcher.suggest(str(number)) for number in range(8)]
    assert {each["nb_clusters"] for each in found} == {1}
    refused = [trial for trial in searcher.study.trials if trial.state == optuna.trial.TrialState.FAIL]
    assert refused
    assert {trial.user_attrs["dcml.reason"] for trial in refused} == {"no division here"}
    assert make(feasible=lambda config: "never").suggest("x") is None


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
