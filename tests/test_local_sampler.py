"""LocalSampler: trials are neighbours of the best ones, and share their epochs."""

import json

import numpy as np
import optuna
import pytest

from dcml_tune.config.errors import SettingError
from dcml_tune.config.prefix import MEASURING, acting_settings, as_trained, common_epochs, training_settings
from dcml_tune.config.search import SearchConfig
from dcml_tune.config.trial import TrialConfig
from dcml_tune.search.request import Request
from search_spaces import Choice, Float, Int, SearchSpace, load_space
from search_spaces.neighbours import completed, neighbour
from search_spaces.prefixes import shared_epochs
from tests.test_optuna_searcher import opened, result
from trainables.searcher import Sampling

optuna.logging.set_verbosity(optuna.logging.WARNING)

WIDE = load_space("emoji", "wide").restricted({})
PUBLISHED = WIDE.published_point()[0]
STARTS = WIDE.start_points(PUBLISHED)[0]


def changes(parent, child):
    """The settings that vary in both and differ, and those that began to vary."""
    both = {name for name in parent.keys() & child.keys() if parent[name] != child[name]}
    return both, child.keys() - parent.keys()


@pytest.mark.parametrize("parent", [PUBLISHED, *STARTS], ids=["published", "pa", "ms", "plain"])
def test_a_neighbour_is_its_parent_with_one_or_two_changes(parent):
    """It can work, has a value for exactly the settings that vary in it, and each change of a condition has its consequences."""
    rng, numbers, begun = np.random.default_rng(0), [], set()
    for _ in range(40):
        child = neighbour(WIDE, parent, rng)
        changed, new = changes(parent, child)
        numbers.append(len(changed))
        begun |= new
        assert list(child) == WIDE.active(child)
        assert WIDE.refusal(child) is None
        assert not new or changed & {"criterion", "nb_clusters", "fixed_mask"}
        assert all(WIDE.domains[name].holds(value) for name, value in child.items())
    assert set(numbers) == {1, 2}
    assert 0.4 < numbers.count(1) / 40 < 0.85
    assert begun


def test_a_step_is_neither_small_nor_mostly_large():
    """Of numbers; of choices each other value is as likely."""
    space = SearchSpace(
        name="emoji",
        published={"dataset": "emoji", "nb_clusters": 2, "nb_epochs": 30},
        domains={
            "base_lr": Float(1e-6, 1e-2, log=True),
            "mod_epoch": Int(1, 9),
            "criterion": Choice(["margin", "triplet"]),
        },
    )
    point, rng = {"base_lr": 1e-4, "mod_epoch": 5, "criterion": "margin"}, np.random.default_rng(0)
    drawn = [neighbour(space, point, rng) for _ in range(200)]
    steps = [abs(np.log10(each["base_lr"]) + 4) for each in drawn if each["base_lr"] != 1e-4]
    assert min(steps) >= 0.05 * 4 - 1e-9
    assert 0.5 < np.median(steps) < 1.0
    assert max(steps) > 1.5
    assert {each["mod_epoch"] for each in drawn} == set(range(1, 10))


def test_a_setting_that_acts_late_is_changed_more_often():
    """The weight of the masks' overlap acts after 4 of 6 epochs, a rate from the first on. Rates are still tried."""
    rates = {name: WIDE.domains[name] for name in ("base_lr", "emb_lr_mult", "weight_decay")}
    late = SearchSpace(
        name="emoji",
        published={**WIDE.published, "nb_clusters": 2, "mod_epoch": 4, "force_full_embedding_epoch": 6},
        domains={**rates, "masking_lambda": WIDE.domains["masking_lambda"]},
    )
    point, rng = completed(late, {}), np.random.default_rng(0)
    found = [changes(point, neighbour(late, point, rng))[0] for _ in range(300)]
    count = {name: sum(name in each for each in found) for name in point}
    assert count["masking_lambda"] > 1.3 * max(count[name] for name in rates)
    assert min(count.values()) > 40


def test_a_cheap_neighbour_keeps_half_of_the_epochs():
    """Where a change can do so; where none can, there is no cheap neighbour."""
    rng, config = np.random.default_rng(0), TrialConfig(**WIDE.whole(PUBLISHED))
    for _ in range(30):
        child = TrialConfig(**WIDE.whole(neighbour(WIDE, PUBLISHED, rng, cheap=True)))
        assert common_epochs(as_trained(config), as_trained(child)) >= 3
    rates = SearchSpace(
        name="emoji",
        published=WIDE.published,
        domains={name: WIDE.domains[name] for name in ("base_lr", "emb_lr_mult")},
    )
    assert neighbour(rates, {"base_lr": 1e-4, "emb_lr_mult": 10.0}, rng, cheap=True) is None


def test_a_parent_may_lack_settings_or_have_others():
    """As trials of other searches do, or those of a narrower space."""
    found = neighbour(WIDE, {"criterion": "supcon", "margin": 0.1, "unknown": 3}, np.random.default_rng(0))
    assert WIDE.refusal(found) is None
    assert completed(WIDE, {"criterion": "supcon", "margin": 0.1})["supcon_temperature"] == 0.1
    small = SearchSpace(name="emoji", published={"nb_clusters": 1}, domains={"criterion": Choice(["margin"])})
    assert neighbour(small, {"criterion": "margin"}, np.random.default_rng(0)) is None


@pytest.fixture
def make(tmp_path):
    def searcher(name="study", space=WIDE, sampler="local", **options):
        points = options.pop("points", [PUBLISHED, *STARTS])
        return opened(space, f"sqlite:///{tmp_path / name}.db", sampler=sampler, points=points, **options)

    return searcher


def settings_of(suggested):
    return {name: value for name, value in suggested.items() if name != "run"}


def truth(settings):
    """The starts are better than the published point, and a rate near 5e-5 is best."""
    return 0.7 + 0.02 * (settings["init_method"] == "pca") - 0.05 * np.log10(settings["base_lr"] / 5e-5) ** 2


def run(searcher, trials, at_once=2):
    """Suggest trials and report their values; returns their settings."""
    found, running = [], []
    for number in range(trials):
        found.append(settings_of(searcher.suggest(str(number))))
        running.append((str(number), result(truth(found[-1]))))
        if len(running) == at_once:
            searcher.on_trial_complete(*running.pop(0))
    for each in running:
        searcher.on_trial_complete(*each)
    return found


def test_a_search_keeps_to_its_best_trials_and_draws_no_trial_twice(make):
    """The queued points come first, then neighbours, then now and then a draw from anywhere."""
    searcher = make()
    found = run(searcher, 18)
    assert [found[n] for n in range(4)] == [WIDE.whole(each) for each in (PUBLISHED, *STARTS)]
    keys = [json.dumps(acting_settings(TrialConfig(**each), 6), sort_keys=True) for each in found]
    assert len(set(keys)) == 18
    assert all(WIDE.refusal(trial.params) is None for trial in searcher.study.trials if trial.state.name == "COMPLETE")
    params = [trial.params for trial in searcher.study.trials if trial.state.name == "COMPLETE"]
    near = [any(len(changes(other, each)[0]) <= 2 for other in params[:n]) for n, each in enumerate(params)]
    assert all(near[4:8])
    assert 5 <= sum(near[8:]) <= 10
    assert np.mean([truth(each) for each in found[4:]]) > 0.6


def test_two_samplers_with_the_same_study_draw_the_same(make, tmp_path):
    """Whether the search was stopped in between or not; another seed draws another trial."""
    searcher, stopped = make("one"), make("two")
    before, found = run(searcher, 5), run(stopped, 5)
    before.append(settings_of(searcher.suggest("next")))
    found.append(settings_of(make("two").suggest("next")))
    assert found == before
    other = make("three", seed=2)
    assert run(other, 6)[4:] != before[4:]


def test_it_copes_with_what_a_search_can_have(make):
    """No queued point, a prior, several metrics, a rule of the data, trials of other searches, settings without a neighbour."""
    assert len(run(make("empty", points=[]), 3)) == 3
    assert len(run(make("prior", prior=PUBLISHED), 7)) == 7
    earlier = [
        optuna.trial.create_trial(
            params=each, distributions={name: WIDE.domains[name].distribution() for name in each}, value=0.9
        )
        for each in STARTS
    ]
    taught = make("earlier", points=[], earlier=earlier)
    first = settings_of(taught.suggest("0"))
    assert first["init_method"] == "pca" or "init_method" in changes(STARTS[0], first)[0]
    both = make("metrics", metrics=("val/recall_at_1", "time/epoch_s"))
    for number in range(6):
        settings = settings_of(both.suggest(str(number)))
        value = result(truth(settings), **{"time/epoch_s": 1.0})
        both.on_trial_complete(str(number), value)
    assert len(both.known()) == 6
    few = make("batches", infeasible_reason=lambda config: "too large" if config.batch_size > 112 else None)
    assert {each["batch_size"] for each in run(few, 8)} <= {64, 112}
    tiny = SearchSpace(name="emoji", published={"nb_clusters": 1}, domains={"criterion": Choice(["margin", "triplet"])})
    assert (
        len(run(make("tiny", tiny.widened(init_method=Choice([None, "pca"]), base_lr=Choice([1e-4])), points=[]), 8))
        == 8
    )


def test_auto_is_local_in_a_wide_space():
    """And TPE where few settings vary; a record holds which."""
    four = load_space("emoji").restricted({})

    def chosen(space, **flags):
        request = Request(
            config=SearchConfig(dataset="emoji", **flags), settings={}, space=space, directory=None, planned=8
        )
        return request.with_searcher(space).config.searcher

    assert (chosen(WIDE), chosen(four)) == ("local", "optuna")
    assert chosen(WIDE, searcher="optuna") == "optuna"


def test_states_are_kept_where_a_neighbour_leaves():
    """At the epochs before cosine decay, the division and the masks act, although rates vary from the first epoch on."""
    config = TrialConfig(**WIDE.whole(PUBLISHED))
    measured = {name: WIDE.domains[name] for name in MEASURING}
    late = {name: domain for name, domain in WIDE.domains.items() if name not in measured}
    assert shared_epochs(config, WIDE.domains, local=True) == (1, 2, 3, 4, 5)
    assert shared_epochs(config, late, local=True) == (1, 2, 4)
    assert shared_epochs(config.changed(nb_epochs=30), WIDE.domains, local=True) == (1, 2, 4)
    assert shared_epochs(config, WIDE.domains) == ()
    rng = np.random.default_rng(0)
    for _ in range(30):
        child = TrialConfig(**WIDE.whole(neighbour(WIDE, PUBLISHED, rng)))
        assert common_epochs(config, child) in (0, *shared_epochs(config, WIDE.domains, local=True))


def test_a_search_shares_a_quarter_of_its_epochs_after_the_starts():
    """12 trials of 6 epochs, whichever trials are the best; epochs that are trained alike are measured anew."""
    shares = []
    for seed in range(4):
        rng, seen, shared = np.random.default_rng(seed), set(), 0
        study = optuna.create_study(direction="maximize", sampler=Sampling(sampler="local", seed=seed).build(0, WIDE))
        for point in [PUBLISHED, *STARTS]:
            study.enqueue_trial(point)
        while len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])) < 16:
            trial = study.ask()
            try:
                config = TrialConfig(**WIDE.whole(WIDE.suggest(trial)))
            except SettingError:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            keys = [json.dumps([e, training_settings(config, e)], sort_keys=True) for e in range(1, config.nb_epochs)]
            shared += sum(key in seen for key in keys)
            seen |= set(keys)
            study.tell(trial, rng.normal())
        shares.append(shared / (12 * 6))
    assert np.mean(shares) >= 0.25
