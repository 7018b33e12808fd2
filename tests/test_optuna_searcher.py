import pickle
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from ray.tune.search import Searcher

from dcml_tune.config.errors import SettingError
from search_spaces.space import Choice, Float, Int, SearchSpace
from trainables.prior_sampler import BELIEVED, draw_around
from trainables.run import Run
from trainables.searcher import Launching, OptunaSearcher, Sampling, StudyOptions, StudyStart

SPACE = SearchSpace(
    name="emoji",
    published={"dataset": "emoji", "nb_epochs": 6, "masking_lambda": 0.01},
    domains={"nb_clusters": Choice([1, 2]), "masking_lambda": Float(1e-3, 1.0, log=True)},
)
METRIC = "val/recall_at_1"


def opened(space, storage, *, metrics=(METRIC,), **options):
    """A searcher; each option is a field of one of its dataclasses."""
    options = {"seed": 1, **options}

    def of(kind):
        return kind(**{each.name: options.pop(each.name) for each in fields(kind) if each.name in options})

    made = {"sampling": of(Sampling), "start": of(StudyStart), "launching": of(Launching)}
    assert not options
    return OptunaSearcher(space, StudyOptions(storage=storage, name="s", metrics=list(metrics)), **made)


@pytest.fixture
def make(tmp_path):
    def searcher(**options):
        storage = f"sqlite:///{tmp_path / 'study.db'}"
        return opened(SPACE, storage, **options)

    return searcher


def states(searcher):
    return [trial.state.name for trial in searcher.study.trials]


def result(value, epoch=6, **facts):
    return {f"{METRIC}_best": value, "epoch": epoch, "done_all": epoch == 6, **facts}


def test_the_first_trials_are_the_given_points(make):
    """Then come draws; every dictionary is whole, and says how the trial is run."""
    trials = Path("/trials")
    searcher = make(points=[{"nb_clusters": 2, "masking_lambda": 0.01}], run=Run(threads=1), trials=trials)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert first == {
        "dataset": "emoji",
        "nb_epochs": 6,
        "masking_lambda": 0.01,
        "nb_clusters": 2,
        "run": Run(threads=1, key="000", directory="/trials/000", reported=0).as_dict(),
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
    searcher.set_failure_reason("002", "its process died")
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


def test_an_open_trial_is_read_once(make, monkeypatch):
    """However many epochs it reports: nobody else writes to the study, and a read takes milliseconds."""
    searcher = make()
    searcher.suggest("a")
    reads, get_trial = [], searcher.study._storage.get_trial
    monkeypatch.setattr(searcher.study._storage, "get_trial", lambda number: reads.append(number) or get_trial(number))
    for epoch in (1, 2, 2, 3, 1):
        searcher.on_trial_result("a", result(epoch / 10, epoch))
    assert len(reads) == 1
    searcher.known()  # writes what waits
    assert searcher.study.trials[0].intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3}


def test_an_epoch_that_the_study_did_not_take_is_written_later(make, monkeypatch):
    """A second later, or when the trial has ended."""
    searcher = make()
    searcher.suggest("a")

    def fails(*_):
        raise OSError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(searcher.study._storage._backend, "set_trial_intermediate_values", fails)
        searcher.on_trial_result("a", result(0.1, 1))
    searcher.write_due()
    assert searcher.study.trials[0].intermediate_values == {}
    searcher.on_trial_complete("a", result(0.2, 2))
    assert searcher.study.trials[0].intermediate_values == {1: 0.1, 2: 0.2}


def test_a_killed_driver_asks_for_the_epochs_that_waited(make):
    """The study says which those are; without a directory of trials nothing can repeat them."""
    first = make(trials=Path("/trials"))
    first.suggest("a")
    for epoch in (1, 2, 3):
        first.on_trial_result("a", result(epoch / 10, epoch))
    second = make(trials=Path("/trials"))
    assert second.study.trials[0].intermediate_values == {1: 0.1}
    assert second.suggest("b")["run"]["reported"] == 1
    for epoch in (2, 3):
        second.on_trial_result("b", result(epoch / 10, epoch))
    second.on_trial_complete("b", result(0.3, 3))
    assert second.known()[0].curve == {1: 0.1, 2: 0.2, 3: 0.3}


def test_a_result_after_the_end_changes_nothing(make, caplog):
    """Of an actor that reported while its trial was ended; no failed write is logged."""
    searcher = make()
    searcher.suggest("a")
    for epoch in (1, 2):
        searcher.on_trial_result("a", result(0.1 * epoch, epoch))
    searcher.on_trial_complete("a", result(0.2, 2))
    searcher.on_trial_result("a", result(0.3, 3))
    assert searcher.study.trials[0].intermediate_values == {1: 0.1, 2: 0.2}
    assert caplog.text == ""


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
    searcher = make(infeasible_reason=lambda config: "no division here" if config.nb_clusters > 1 else None)
    found = [searcher.suggest(str(number)) for number in range(8)]
    assert {each["nb_clusters"] for each in found} == {1}
    refused = [trial for trial in searcher.study.trials if trial.state == optuna.trial.TrialState.FAIL]
    assert refused
    assert {trial.user_attrs["dcml.reason"] for trial in refused} == {"no division here"}
    searcher.launching = replace(searcher.launching, infeasible_reason=lambda config: "never")
    assert searcher.suggest("x") is None


def test_a_search_with_one_rare_combination_finds_it(tmp_path):
    """After many draws that cannot work the nearest one that can is taken: no search ends that has a feasible point."""
    names = ["sz_embedding", "nb_epochs", "mod_epoch", "lr_step"]
    space = SearchSpace(name="emoji", published={}, domains={name: Choice(range(10, 18)) for name in names})

    def rare(config):
        return (
            "not this one" if {config.sz_embedding, config.nb_epochs, config.mod_epoch, config.lr_step} - {11} else None
        )

    searcher = opened(space, f"sqlite:///{tmp_path / 'rare.db'}", infeasible_reason=rare, sampler="random")
    assert {name: searcher.suggest("a")[name] for name in names} == dict.fromkeys(names, 11)


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
        searcher = opened(SPACE, f"sqlite:///{tmp_path / name}.db", seed=seed)
        return [searcher.suggest(str(number))["masking_lambda"] for number in range(4)]

    assert draws("one", 3) == draws("two", 3) != draws("three", 4)


def test_patience_ends_the_launching(make):
    """After so many trials in a row without a new best; a failed one brings nothing; what runs may still bring it."""
    searcher = make(patience=2)
    for name in "abcde":
        assert searcher.suggest(name) != Searcher.FINISHED
    searcher.on_trial_complete("a", result(0.6))
    searcher.on_trial_complete("b", result(0.5))
    assert not searcher.patience_exhausted()
    searcher.on_trial_complete("c", error=True)
    assert searcher.patience_exhausted()
    assert searcher.suggest("f") == Searcher.FINISHED
    searcher.on_trial_complete("d", result(0.7))
    assert isinstance(searcher.suggest("f"), dict)
    assert not make().patience_exhausted()


def test_several_metrics_make_a_front(make):
    """Of recall at the best epoch, and of time by its mean; trials that another one beats in both are not on it."""
    metrics = [METRIC, "val/map_at_r", "time/epoch_s"]
    searcher = make(metrics=metrics, patience=2)
    for name in "abcd":
        searcher.suggest(name)
    for name, recall, seconds in (("a", 0.6, 2.0), ("b", 0.5, 1.0), ("c", 0.4, 3.0)):
        for epoch, best, other in ((3, recall, 0.3), (6, recall, 0.9)):
            last = result(best, epoch, **{"val/map_at_r": other, "time/epoch_s": seconds * epoch})
            (searcher.on_trial_result if epoch == 3 else searcher.on_trial_complete)(name, last)
    searcher.on_trial_complete("d", error=True)
    assert states(searcher) == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]
    assert searcher.pareto_front() == [("000", [0.6, 0.3, 9.0]), ("001", [0.5, 0.3, 4.5])]
    assert [trial.best for trial in searcher.known()] == [0.6, 0.5, 0.4, None]
    assert searcher.patience_exhausted()
    again = make(metrics=metrics)
    assert isinstance(again.suggest("e"), dict)
    again.on_trial_result("e", result(0.7, 3, **{"val/map_at_r": 0.1, "time/epoch_s": 1.0}))
    again.cut_short("the time budget was used up")
    assert again.known()[-1].state == "interrupted"


def test_earlier_trials_teach_and_are_not_launched(make):
    """They are in the study, and none of the search's own."""
    space = {name: domain.distribution() for name, domain in SPACE.domains.items()}
    earlier = [
        optuna.trial.create_trial(
            value=-abs(place - 20),
            distributions=space,
            params={"nb_clusters": 1 + place % 2, "masking_lambda": 10 ** (-place / 10)},
        )
        for place in range(31)
    ]
    searcher = make(earlier=earlier, startup=6)
    assert searcher.known() == []
    drawn = [searcher.suggest(str(number))["masking_lambda"] for number in range(12)]
    assert sum(0.003 < value < 0.03 for value in drawn) >= 8  # of independent draws a third
    assert [trial.key for trial in searcher.known()] == [f"{number:03d}" for number in range(12)]
    assert len(make(earlier=earlier).study.trials) == 31 + 12


def test_a_belief_fades(make):
    """Draws lie around the point at first; later ones are the sampler's; the study says which are which."""
    point = {"nb_clusters": 2, "masking_lambda": 0.01}
    searcher = make(prior=point, points=[point], sampler="random")
    for number in range(80):
        searcher.suggest(str(number))
    believed = [BELIEVED in trial.user_attrs for trial in searcher.study.trials]
    assert sum(believed[1:7]) > sum(believed[-20:]) > 0
    chosen = [trial.params for trial, own in zip(searcher.study.trials, believed, strict=True) if own]
    assert sum(params["nb_clusters"] == 2 for params in chosen) > 0.6 * len(chosen)


@pytest.mark.parametrize(
    "domain", [Float(1e-3, 1.0, log=True), Float(-1.0, 1.0), Int(1, 9), Int(1, 64, log=True)], ids=str
)
def test_draws_from_a_belief_keep_to_the_range_and_near_the_point(domain):
    """Also where the point is at an end, or outside."""
    rng = np.random.default_rng(0)
    scale = np.log if domain.log else np.asarray
    low, high = scale(domain.low), scale(domain.high)
    for value in (domain.low, domain.high, domain.nearest(1e6)):
        drawn = [draw_around(value, domain.distribution(), rng) for _ in range(400)]
        assert all(domain.holds(each) for each in drawn)
        assert (
            np.mean(np.abs(scale(np.array(drawn, float)) - scale(value)) < 0.3 * (high - low)) > 0.6
        )  # of uniform: 0.3
    assert {draw_around(3, Choice([1, 2]).distribution(), rng) for _ in range(50)} == {1, 2}


def test_a_search_goes_on_in_a_wider_space(tmp_path):
    """Choices and settings may come; earlier trials count with the values that they had, and a study is not written twice."""
    storage = f"sqlite:///{tmp_path / 'study.db'}"

    def make(space):
        return opened(space, storage, sampler="random")

    searcher = make(SPACE)
    for name in "abc":
        searcher.suggest(name)
    searcher.on_trial_complete("a", result(0.6))
    searcher.on_trial_complete("b", error=True)
    searcher.set_failure_reason("001", "its process died")
    searcher.on_trial_result("c", result(0.5, epoch=2))
    before = searcher.known()
    wider = SPACE.extended(
        SPACE.widened(nb_clusters=Choice([1, 2, 4]), mod_epoch=Int(1, 3), masking_lambda=Float(1e-4, 9.0))
    )
    searcher = make(wider)
    assert [(t.key, t.state, t.reason, t.curve) for t in searcher.known()] == [
        (t.key, "interrupted" if t.state == "running" else t.state, t.reason, t.curve) for t in before
    ]
    settings = [searcher.suggest(str(number)) for number in range(20)]
    assert settings[0]["run"]["key"] == "002"
    assert settings[0]["nb_clusters"] == before[2].config["nb_clusters"]
    assert {each["nb_clusters"] for each in settings[1:]} == {1, 2, 4}
    assert searcher.study.trials[0].params["mod_epoch"] == 2  # the published one
    written = (tmp_path / "study.db").stat().st_ino
    make(wider)
    assert (tmp_path / "study.db").stat().st_ino == written


@pytest.mark.parametrize(
    ("domains", "published", "words"),
    [
        ({"nb_clusters": Choice([2, 4])}, {}, r"nb_clusters was 1, 2 and 2, 4 now; .* keep 1"),
        ({"masking_lambda": Float(1e-2, 1.0)}, {}, r"masking_lambda .* keep 0\.001"),
        ({"mod_epoch": Int(1, 3)}, {"nb_epochs": 12}, r"nb_epochs of every trial was 6 and is 12 now"),
    ],
)
def test_a_search_is_only_widened(domains, published, words):
    """What would make its trials others is refused."""
    wider = replace(SPACE.widened(**domains), published={**SPACE.published, **published})
    with pytest.raises(SettingError, match=words):
        SPACE.extended(wider)
    gone = replace(SPACE, domains={"nb_clusters": Choice([1, 2])})
    with pytest.raises(SettingError, match=r"masking_lambda was .* does not vary now"):
        SPACE.extended(gone)
