"""Settings that vary only where a condition holds: spaces, draws, studies, warm starts and reports without them."""

import json
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest

from dcml_tune.cli.quantities import DIFFERENCES
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.report.figures import Album
from dcml_tune.report.search_data import SearchData, Trial
from dcml_tune.report.sections.settings import settings
from search_spaces import Choice, Float, Int, SearchSpace, When, load_space
from tests.test_optuna_searcher import opened, result
from trainables import warm_start

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPACE = SearchSpace(
    name="emoji",
    published={"dataset": "emoji", "nb_epochs": 9, "masking_lambda": 0.01, "margin": 0.07},
    domains={
        "nb_clusters": Choice([1, 2, 4]),
        "masking_lambda": Float(1e-3, 1.0, log=True),
        "mod_epoch": Int(1, 3),
        "criterion": Choice(["MarginLoss", "triplet", "npairs"]),
        "margin": Float(0.02, 0.3),
        "beta": Float(0.6, 1.4),
    },
    conditions={
        "masking_lambda": When("nb_clusters", above=1),
        "mod_epoch": (When("nb_clusters", above=1),),
        "margin": When("criterion", among=["margin", "triplet"]),
        "beta": [When("criterion", among=["margin"]), When("nb_clusters", above=1)],
    },
)


@pytest.fixture
def make(tmp_path):
    def searcher(space=SPACE, **options):
        return opened(space, f"sqlite:///{tmp_path / 'study.db'}", **options)

    return searcher


def draws(space, number=60):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.suggest(study.ask()) for _ in range(number)]


def test_a_setting_is_sampled_only_where_its_condition_holds():
    """Where it does not hold, the trial has the published value, or the default for another criterion."""
    for chosen in draws(SPACE):
        divides, criterion = chosen["nb_clusters"] > 1, chosen["criterion"]
        assert ("masking_lambda" in chosen) == ("mod_epoch" in chosen) == divides
        assert ("margin" in chosen) == (criterion != "npairs")
        assert ("beta" in chosen) == (divides and criterion == "MarginLoss")
        assert list(chosen) == SPACE.active(chosen)
        whole = SPACE.whole(chosen)
        assert {**whole, **chosen} == whole
        TrialConfig(**whole)
        if not divides:
            assert (whole["masking_lambda"], whole["mod_epoch"]) == (0.01, 2)
        if criterion == "npairs":  # 0.07 was published for the margin loss
            assert whole["margin"] == 0.2
    assert SPACE.published_point()[0] == {"nb_clusters": 1, "criterion": "MarginLoss", "margin": 0.07}


def test_a_fixed_setting_decides_its_conditions():
    """What can never vary leaves the space; what always varies stays in it, without the condition."""
    alone = SPACE.restricted({"nb_clusters": 1})
    assert list(alone.domains) == ["criterion", "margin"]
    divided = SPACE.restricted({"nb_clusters": 2})
    assert set(divided.domains) == {"masking_lambda", "mod_epoch", "criterion", "margin", "beta"}
    assert set(divided.conditions) == {"margin", "beta"}
    proxies = SPACE.restricted({"criterion": "npairs"})
    assert set(proxies.domains) == {"nb_clusters", "masking_lambda", "mod_epoch"}
    assert "margin" not in proxies.published  # it was published for the margin loss
    assert SPACE.restricted({"criterion": "npairs", "margin": 0.1}).published["margin"] == 0.1
    few = SPACE.restricted({}, lambda config: "too few classes" if config.nb_clusters > 1 else None)
    assert list(few.domains) == ["nb_clusters", "criterion", "margin"]
    with pytest.raises(SettingError, match="every setting that varies is fixed"):
        load_space("emoji").restricted({"nb_clusters": 1})


@pytest.mark.parametrize("dataset", ["cub", "cars", "sop", "inshop", "vid", "emoji", "folder"])
def test_in_a_shipped_space_one_cluster_varies_nothing_of_the_division(dataset):
    """Where one cluster is added to the choices, masks and division vary only with more."""
    shipped = load_space(dataset)
    space = shipped.widened(nb_clusters=Choice([1, *shipped.domains["nb_clusters"].values])).restricted({})
    assert space.active({"nb_clusters": 1}) == ["nb_clusters"]
    assert space.active({"nb_clusters": 4}) == list(space.domains)
    assert space.unused_settings() == []


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"mod_epoch": When("nb_cluster", above=1)}, "did you mean 'nb_clusters'"),
        ({"mod_epochs": When("nb_clusters", above=1)}, "did you mean 'mod_epoch"),
        ({"mod_epoch": When("nb_clusters", above=4)}, "holds only with nb_clusters above 4, and nb_clusters is 1, 2, 4"),
        ({"mod_epoch": When("sampler", among=["EPHN"])}, "with sampler EPHN, and sampler is easypeasy"),
        ({"mod_epoch": When("criterion", among=["tripplet"])}, "criterion=tripplet: must be"),
        ({"nb_clusters": When("mod_epoch", above=1)}, "list mod_epoch before nb_clusters"),
        ({"mod_epoch": When("mod_epoch", above=1)}, "need each other"),
        ({"mod_epoch": When("criterion", among=["npairs"]), "criterion": When("mod_epoch", above=1)}, "need each other"),
        ({"margin": When("masking_lambda", above=0.1)}, "masking_lambda is a range of real numbers"),
        ({"mod_epoch": ("nb_clusters",)}, "write When"),
    ],
)  # fmt: skip
def test_a_condition_that_cannot_work_is_refused(conditions, words):
    """With the setting and the remedy."""
    with pytest.raises(SettingError, match=words):
        replace(SPACE, conditions=conditions)


@pytest.mark.parametrize(
    "make_it",
    [lambda: When("margin"), lambda: When("margin", above=1, among=[2]), lambda: When("margin", above="1"),
     lambda: When("margin", among=[]), lambda: When("margin", among="ab")],
)  # fmt: skip
def test_a_condition_is_one_of_two_kinds(make_it):
    """Where it is made."""
    with pytest.raises(SettingError, match="must"):
        make_it()


def test_a_space_with_conditions_is_read_back():
    """Also one of version 0.1, which has none."""
    assert SearchSpace.from_json(json.loads(json.dumps(SPACE.as_json()))) == SPACE
    recorded = SPACE.as_json()
    del recorded["conditions"]
    assert SearchSpace.from_json(recorded).conditions == {}
    recorded["conditions"] = {"margin": [{"settings": "criterion"}]}
    with pytest.raises(SettingError, match="not valid"):
        SearchSpace.from_json(recorded)


def test_the_plan_names_the_conditions():
    """Beside the domain."""
    shown = {name: domain for name, domain, _ in SPACE.describe()}
    assert shown["mod_epoch"] == "1 to 3, with nb_clusters above 1"
    assert shown["margin"] == "0.02 to 0.3, with criterion margin or triplet"


def test_a_setting_without_effect_is_one_that_never_acts_where_it_varies():
    """A margin that varies with N-pairs, too, acts with other losses; one that varies with N-pairs alone does not."""
    assert SPACE.unused_settings() == []
    vain = replace(SPACE, conditions={**SPACE.conditions, "margin": When("criterion", among=["npairs"])})
    assert [line.split()[0] for line in vain.unused_settings()] == ["margin"]


@pytest.mark.parametrize("sampler", ["optuna", "random"])
def test_a_study_holds_trials_with_different_settings(make, sampler):
    """Each dictionary is whole; a seed gives the same draws; a resume goes on with what was running."""
    points = [SPACE.published_point()[0]]
    searcher = make(points=points, sampler=sampler)
    for number in range(20):
        drawn = searcher.suggest(str(number))
        assert {"nb_epochs", *SPACE.domains} <= drawn.keys()
        if number < 19:
            searcher.on_trial_complete(str(number), result(0.5 + drawn["nb_clusters"] / 100))
    assert len({tuple(trial.params) for trial in searcher.study.trials}) > 2
    assert [trial.config for trial in searcher.known()][-1] == {k: v for k, v in drawn.items() if k != "run"}
    assert make(sampler=sampler).suggest("again") == drawn


def test_a_prior_of_a_point_without_some_settings_draws_them(make):
    """Settings that the published point does not vary are drawn by the sampler."""
    point = SPACE.published_point()[0]
    searcher = make(prior=point, points=[point])
    drawn = [searcher.suggest(str(number)) for number in range(30)]
    assert {each["nb_clusters"] for each in drawn} > {1}


def test_a_resumed_or_wider_study_is_not_given_settings_that_do_not_vary(make, tmp_path):
    """A trial of one cluster has no number of the division; one with clusters has the published one."""
    narrow = replace(SPACE, domains={"nb_clusters": Choice([1, 2])}, conditions={})
    searcher = make(narrow, points=[{"nb_clusters": 1}, {"nb_clusters": 2}])
    for name in "ab":
        searcher.suggest(name)
        searcher.on_trial_complete(name, result(0.5))
    wider = narrow.extended(SPACE)
    assert wider.conditions == SPACE.conditions
    trials = make(wider).study.trials
    assert trials[0].params == {"nb_clusters": 1, "margin": 0.07}
    assert trials[1].params == {"nb_clusters": 2, "margin": 0.07, "masking_lambda": 0.01, "mod_epoch": 2, "beta": 1.2}
    written = (tmp_path / "study.db").stat().st_ino
    assert isinstance(make(wider).suggest("c"), dict)
    assert (tmp_path / "study.db").stat().st_ino == written


def test_a_users_file_gives_conditions(tmp_path):
    """They are part of what `search_spaces` offers; a fault is named with its line."""
    file = tmp_path / "space.py"
    head = (
        "from dataclasses import replace\nfrom search_spaces import *\nfrom search_spaces.emoji import SPACE as EMOJI\n"
    )
    file.write_text(
        head
        + "SPACE = replace(EMOJI.widened(margin=Float(0.02, 0.3)), conditions={'margin': When('nb_clusters', above=2)})"
    )
    assert load_space("emoji", file).active({"nb_clusters": 2}) == list(EMOJI_DOMAINS)
    file.write_text(head + "SPACE = replace(EMOJI, conditions={\n 'mod_epoch': When('nb_clusters', above=9)})")
    with pytest.raises(SettingError, match=r"space\.py, line 5: .*mod_epoch holds only with nb_clusters above 9"):
        load_space("emoji", file)


EMOJI_DOMAINS = load_space("emoji").domains


def ended(params, value, key):
    """A trial of the shared space that has ended."""
    return optuna.trial.create_trial(
        params=params,
        distributions={name: SPACE.domains[name].distribution() for name in params},
        value=value,
        intermediate_values={9: value},
        user_attrs={"dcml.key": key},
    )


def test_figures_of_a_report_show_trials_with_different_settings(tmp_path):
    """Importance and parallel coordinates give a trial the value that it had; slices show those that varied."""
    chosen = draws(SPACE, 12)
    trials = [
        Trial(
            key=f"{number:03d}",
            settings=each,
            config=TrialConfig(**SPACE.whole(each)),
            curve={9: 0.5 + number / 100},
            state="done",
            frozen=ended(each, 0.5 + number / 100, f"{number:03d}"),
        )
        for number, each in enumerate(chosen)
    ]
    search = SearchData(
        directory=tmp_path,
        record=SimpleNamespace(asked={"metrics": ["val/recall_at_1"]}),
        trials=trials,
        failed=0,
        runs=[],
        problems=[],
        verdict=None,
        uri="",
    )
    section = settings(search, Album(tmp_path))
    titles = [getattr(part, "title", part) for part in section.parts]
    assert "Importance of the settings" in titles
    assert "Settings of each trial" in titles
    assert "val/recall_at_1 against each setting" in titles
    made = search.study(whole=True)
    assert {tuple(sorted(trial.params)) for trial in made.trials} == {tuple(sorted(SPACE.domains))}


def test_an_earlier_search_with_other_conditions_teaches(tmp_path, monkeypatch):
    """A number that has no effect there or here makes no difference; only settings that vary here are taken over."""
    earlier = replace(SPACE, conditions={})
    taught = {
        "nb_clusters": 1,
        "masking_lambda": 0.3,
        "mod_epoch": 3,
        "criterion": "MarginLoss",
        "margin": 0.1,
        "beta": 1.2,
    }
    monkeypatch.setattr(warm_start, "read_study", lambda directory: [ended(taught, 0.6, "000")])
    record = SimpleNamespace(directory=tmp_path, name="old", asked={"space": earlier.as_json()})
    found = warm_start.WarmStart()
    warm_start._add(
        found, record, replace(SPACE, domains={**SPACE.domains, "criterion": Choice(["margin", "npairs"])}), None
    )
    assert [trial.params for trial in found.trials] == [{"nb_clusters": 1, "criterion": "margin", "margin": 0.1}]


def feasible(space, number):
    """Draws that can work."""
    study, found = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)), []
    while len(found) < number:
        with suppress(SettingError):
            found.append(space.suggest(study.ask()))
    return found


def test_a_report_of_many_settings_shows_the_most_important(tmp_path, monkeypatch):
    """Ten in the figure of the importance, six in the others; a trial by what differs from trial 0."""
    space = load_space("emoji", "wide").restricted({})
    published = space.published_point()[0]
    distributions = {name: domain.distribution() for name, domain in space.domains.items()}
    trials = []
    for number, each in enumerate([published, *space.start_points(published)[0], *feasible(space, 10)]):
        value, key = 0.5 + 0.1 * (each["init_method"] == "pca") + number / 1000, f"{number:03d}"
        own = {name: distributions[name] for name in each}
        frozen = optuna.create_trial(
            params=each, distributions=own, value=value, intermediate_values={6: value}, user_attrs={"dcml.key": key}
        )
        config = TrialConfig(**space.whole(each))
        trials.append(Trial(key=key, settings=each, config=config, curve={6: value}, state="done", frozen=frozen))
    record = SimpleNamespace(asked={"metrics": ["val/recall_at_1"]})
    search = SearchData(
        directory=tmp_path, record=record, trials=trials, failed=0, runs=[], problems=[], verdict=None, uri=""
    )
    drawn = []
    monkeypatch.setattr(Album, "keep", lambda album, axes, name, **words: drawn.append((name, axes)) or name)
    table, *_ = settings(search, Album(tmp_path)).parts
    assert table.columns == ["trial", DIFFERENCES, "epochs", "val/recall_at_1", "state"]
    rows = {row[0]: row[1] for row in table.rows}
    assert rows["000 (published)"] == ""
    assert "criterion=proxy_anchor" in rows["001"]
    figures = dict(drawn)
    names = [label.get_text() for label in figures["importance"].get_yticklabels()]
    assert len(names) == 10
    assert names[0] == "init_method"
    assert len(figures["slices"].get_figure().axes) == 6 + 1  # the last is the colour bar
    shown = {label.get_text() for label in figures["parallel"].get_xticklabels()[1:]}
    assert shown == set(list(search.importance().of)[:6])
