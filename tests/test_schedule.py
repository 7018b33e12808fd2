import pytest

from dcml_tune.config import TrialConfig
from dcml_tune.schedule import EpochPlan


def plans(**settings):
    config = TrialConfig(**settings)
    return [EpochPlan.at(epoch, config) for epoch in range(config.nb_epochs)]


def test_top_bot_doubles_every_mod_epoch():
    """Clusters double every mod_epoch epochs up to nb_clusters, and divisions are where they double."""
    found = plans(nb_clusters=4, mod_epoch=2, nb_epochs=8)
    assert [plan.nb_clusters for plan in found] == [1, 1, 2, 2, 4, 4, 4, 4]
    assert [plan.divide for plan in found] == [False, False, True, False, True, False, False, False]
    assert [plan.recluster for plan in found] == [False, False, True, False, True, False, True, False]


def test_none_and_bot_top():
    """`none` has all clusters at once; `bot_top` halves them down to one."""
    assert [p.nb_clusters for p in plans(hierarchy_method="none", nb_clusters=3, nb_epochs=3)] == [3, 3, 3]
    found = plans(hierarchy_method="bot_top", nb_clusters=4, mod_epoch=1, nb_epochs=4)
    assert [p.nb_clusters for p in found] == [4, 2, 1, 1]
    assert [p.merge for p in found] == [False, True, True, False]


def test_freeze_and_full_embedding():
    """The backbone is frozen early in each period, with one cluster only if asked; the last phase has its epoch."""
    found = plans(nb_clusters=2, mod_epoch=2, mod_epoch_freeze=1, nb_epochs=4, force_full_embedding_epoch=3)
    assert [p.backbone_frozen for p in found] == [True, False, True, False]
    assert [p.full_embedding for p in found] == [False, False, False, True]
    assert not any(p.backbone_frozen for p in plans(mod_epoch_freeze=1, nb_epochs=4))
    frozen = plans(mod_epoch_freeze=1, nb_epochs=4, freeze_without_division=True)
    assert [p.backbone_frozen for p in frozen] == [True, False, True, False]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nb_cluster": 4}, ["nb_cluster", "nb_clusters"]),
        ({"nb_clusters": 3}, ["nb_clusters=3", "power of two", "take 2 or 4"]),
        ({"nb_clusters": 32, "nb_epochs": 8}, ["nb_epochs=8", "10"]),
        ({"nb_clusters": 8, "force_full_embedding_epoch": 6}, ["force_full_embedding_epoch=6"]),
        ({"mod_epoch_freeze": 2}, ["mod_epoch_freeze=2", "mod_epoch=2"]),
        ({"batch_size": 30}, ["batch_size=30", "num_samples_per_class=4"]),
        ({"sampler": "distance"}, ["sampler", "distanceweighted"]),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, words):
    """A setting that is unknown, out of range or contradictory is a ValueError of one line with value and remedy."""
    with pytest.raises(ValueError, match=r"=|not known") as caught:
        TrialConfig(**settings)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
