from dataclasses import replace

import pytest

from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig


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


def test_without_reclustering_nothing_is_frozen():
    """After the last reclustering that stop_recluster leaves, the backbone trains in every epoch, as in the original."""
    settings = {"nb_clusters": 4, "mod_epoch": 2, "mod_epoch_freeze": 1, "nb_epochs": 9}
    on, off = plans(**settings), plans(**settings, stop_recluster=True)
    assert [p.epoch for p in on if p.backbone_frozen] == [0, 2, 4, 6, 8]
    assert [p.epoch for p in off if p.backbone_frozen] == [0, 2, 4]
    assert [p.epoch for p in off if p.recluster] == [2, 4]
    # A loop over the epochs: each reclustering that was due freezes the next `mod_epoch_freeze` epochs.
    settings = {"nb_clusters": 2, "mod_epoch": 3, "mod_epoch_freeze": 2, "nb_epochs": 12, "stop_recluster": True}
    left, clusters, expected = 0, 1, []
    for epoch in range(12):
        if epoch % 3 == 0 and (clusters == 1 or epoch == 0):
            clusters, left = (1 if epoch == 0 else 2), 2
        expected.append(left > 0)
        left -= 1
    assert [p.backbone_frozen for p in plans(**settings)] == expected
    alone = {"nb_clusters": 1, "mod_epoch_freeze": 1, "freeze_without_division": True, "nb_epochs": 5}
    assert plans(**alone, stop_recluster=True) == plans(**alone)


def test_the_backbone_is_frozen_in_the_warm_up():
    """With or without division, beside the epochs of mod_epoch_freeze; nothing else changes."""
    assert [p.backbone_frozen for p in plans(warmup_epochs=2, nb_epochs=4)] == [True, True, False, False]
    settings = {"nb_clusters": 4, "mod_epoch": 2, "mod_epoch_freeze": 1, "nb_epochs": 9}
    cold, warm = plans(**settings), plans(**settings, warmup_epochs=4)
    assert [p.epoch for p in warm if p.backbone_frozen] == [0, 1, 2, 3, 4, 6, 8]
    assert [replace(p, backbone_frozen=False) for p in warm] == [replace(p, backbone_frozen=False) for p in cold]


def test_full_embedding_from_the_start():
    """Allowed without a hierarchy, as in the original: all clusters give batches, no mask is trained."""
    found = plans(hierarchy_method="none", nb_clusters=3, force_full_embedding_epoch=0, nb_epochs=3)
    assert [(p.nb_clusters, p.full_embedding) for p in found] == [(3, True)] * 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nb_cluster": 4}, ["nb_cluster", "nb_clusters"]),
        ({"nb_clusters": 3}, ["nb_clusters=3", "power of two", "take 2 or 4"]),
        ({"nb_clusters": 32, "nb_epochs": 8}, ["nb_epochs=8", "10"]),
        ({"nb_clusters": 8, "force_full_embedding_epoch": 6}, ["force_full_embedding_epoch=6"]),
        ({"mod_epoch_freeze": 2}, ["mod_epoch_freeze=2", "mod_epoch=2"]),
        ({"warmup_epochs": 4, "nb_epochs": 4}, ["warmup_epochs=4", "nb_epochs=4", "never trains"]),
        ({"average_epochs": 5, "nb_epochs": 4}, ["average_epochs=5", "nb_epochs=4", "lower it"]),
        ({"batch_size": 30}, ["batch_size=30", "num_samples_per_class=4"]),
        ({"batch_size": 20, "num_replicas": 2}, ["batch_size=20", "num_samples_per_class=4 times num_replicas=2"]),
        ({"batch_size": 24, "num_replicas": 5}, ["batch_size=24", "num_replicas=5"]),
        ({"batch_sampler": "npairs", "num_samples_per_class": 1}, ["num_samples_per_class=1", "at least 2"]),
        (
            {"nb_clusters": 2, "force_full_embedding_epoch": 0},
            ["force_full_embedding_epoch=0", "hierarchy_method=none"],
        ),
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
