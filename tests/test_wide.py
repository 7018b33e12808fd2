"""`--space wide`: every draw can be trained, trial 0 is the published point, and the starts follow it."""

import itertools
import json
from dataclasses import replace

import optuna
import pytest

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import PROXY_CRITERIA, TrialConfig
from dcml_tune.config.unused import OWN_SETTINGS, unused_reasons
from dcml_tune.models.backbones import build
from dcml_tune.models.fitting import refuse_unfit
from dcml_tune.runs.record import SpaceFacts
from dcml_tune.utils.stored import checked
from search_spaces import Choice, Float, SearchSpace, load_space
from search_spaces.user_file import recorded_name

optuna.logging.set_verbosity(optuna.logging.WARNING)
DATASETS = ["cub", "cars", "sop", "inshop", "vid", "emoji", "folder"]


@pytest.fixture(params=DATASETS)
def space(request):
    return load_space(request.param, "wide").restricted({})


def test_draws_can_be_trained_and_hold_no_setting_without_effect(space):
    """Apart from those that a rule refuses, of which there are few."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    feasible = 0
    for _ in range(40):
        try:
            chosen = space.suggest(study.ask())
        except SettingError:
            continue
        config = TrialConfig(**space.whole(chosen))
        assert not unused_reasons(config).keys() & chosen.keys() - {"lr_decay"}
        feasible += 1
    assert feasible > 30
    assert space.unused_settings() == []


def test_trial_0_is_that_of_the_four_settings(space):
    """Every range holds the published value."""
    four = load_space(space.name).restricted({})
    assert TrialConfig(**space.whole(space.published_point()[0])) == TrialConfig(
        **four.whole(four.published_point()[0])
    )


def test_the_starts_follow_as_they_were_published(space):
    """Each with its source; unless a flag fixes their loss."""
    point = space.published_point()[0]
    points, lines = space.start_points(point)
    first, second, third = (TrialConfig(**space.whole(each)) for each in points)
    assert (first.criterion, first.init_method, first.base_lr, first.proxy_lr_mult) == (
        "proxy_anchor",
        "pca",
        1e-4,
        100,
    )
    assert (second.criterion, second.ms_beta) == ("multi_similarity", 50)
    assert (third.criterion, third.base_lr, third.batch_size, third.nb_clusters) == ("margin", 5e-5, 112, 1)
    assert all(space.refusal(each) is None for each in points)
    assert lines[0].startswith("trial 1: proxy-anchor (Kim et al.")
    fixed = load_space(space.name, "wide").restricted({"criterion": "supcon"})
    assert fixed.start_points(fixed.published_point()[0]) == ([], [])


def test_a_start_is_moved_to_what_can_work():
    """A line says to where."""
    space = load_space("emoji", "wide").restricted({"num_samples_per_class": 5, "batch_size": 100})
    points, _ = space.start_points(space.published_point()[0])
    assert [space.whole(each)["batch_size"] for each in points] == [100, 100, 100]
    few = space.widened(warmup_epochs=Choice([0]))
    points, lines = few.start_points(few.published_point()[0])
    assert points[0]["warmup_epochs"] == 0
    assert "trial 1: warmup_epochs 1" in lines[1]


def test_a_given_backbone_varies_only_what_it_has():
    """A vision transformer pools by itself, has no batch-norm, other rates, and here fewer features than 384."""
    arch = "vit_tiny_patch16_224"
    whole, space = load_space("emoji", "wide"), load_space("emoji", "wide", arch).restricted({"arch": arch})
    assert whole.domains.keys() - space.domains.keys() == {"features_pooling", "bn_learnable"}
    assert space.domains["base_lr"] == Float(3e-6, 1e-4, log=True)
    assert space.domains["sz_embedding"] == Choice([128])
    assert load_space("emoji", "wide", "tf_efficientnet_lite0") == whole
    with pytest.raises(SettingError, match="did you mean"):
        load_space("emoji", "wide", "vit_tinny")


@pytest.mark.parametrize(
    ("given", "starts_as"),
    [
        ({}, "pca"),
        ({"sz_embedding": 1280}, "pca"),
        ({"sz_embedding": 1281}, None),
        ({"arch": "resnet18"}, "pca"),
        ({"arch": "test_resnet"}, None),
        ({"arch": "test_resnet", "sz_embedding": 8}, "pca"),
    ],
)
@pytest.mark.parametrize("path", ["four", "wide"])
def test_the_embedding_layer_starts_as_a_pca_where_there_are_enough_features(path, given, starts_as):
    """EfficientNet-Lite0 has 1,280 features, ResNet-18 512; the network of the tests has fewer than any size of `wide`."""
    space = load_space("folder", path, **given).restricted(given)
    config = TrialConfig(**space.whole(space.published_point()[0]))
    assert config.init_method == starts_as
    varied = space.domains.get("init_method")
    assert varied == (Choice([None, "pca"]) if path == "wide" and starts_as == "pca" else None)
    refuse_unfit(config, build(config.arch, weights="none", sz_crop=config.sz_crop))


def test_a_losss_own_numbers_vary_with_it_alone(space):
    """As the rules say which settings have no effect."""
    for owner, names in OWN_SETTINGS.items():
        if owner in space.domains["criterion"].values:
            varied = set(space.active({"criterion": owner, "nb_clusters": 1})) & space.conditions.keys()
            assert varied - {"proxy_lr_mult"} == set(names) & space.domains.keys()
            assert ("proxy_lr_mult" in varied) == (owner in PROXY_CRITERIA)


def test_the_record_holds_the_whole_space(space):
    """So that a resume needs no name."""
    recorded = json.loads(json.dumps(space.as_json()))
    checked(SpaceFacts, recorded)
    assert SearchSpace.from_json(recorded) == space


def test_names_are_no_files():
    """Everything else is one; the default is recorded as version 0.1 did."""
    assert (recorded_name("wide"), recorded_name("four"), recorded_name(None)) == ("wide", None, None)
    assert recorded_name("./wide").endswith("/wide")
    assert load_space("emoji", "four") == load_space("emoji")
    with pytest.raises(SettingError, match=r"--space \./wide: no such file"):
        load_space("emoji", "./wide")


@pytest.mark.parametrize("nb_epochs", [2, 3, 8, 30])
@pytest.mark.parametrize("classes", [10, 64, 400])
def test_a_short_search_of_few_classes_has_every_number_of_clusters_that_works(nb_epochs, classes):
    """Of `folder`: nothing is refused, because one cluster always works; trial 0 works, too."""

    def infeasible_reason(config):
        return "too few classes" if 2 * config.nb_clusters > classes else None

    space = load_space("folder", "wide").restricted({"nb_epochs": nb_epochs}, infeasible_reason)
    whole = replace(load_space("folder", "wide"), published=space.published)
    works = {
        clusters
        for clusters, epochs in itertools.product(whole.domains["nb_clusters"].values, range(1, 9))
        if whole.refusal({"nb_clusters": clusters, "mod_epoch": epochs}, infeasible_reason) is None
    }
    assert set(space.domains["nb_clusters"].values) == works | {1}
    assert space.refusal(space.published_point(infeasible_reason)[0], infeasible_reason) is None
