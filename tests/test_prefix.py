"""Which settings have acted after some epochs, and which trials therefore share them."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import dcml_tune
from dcml_tune.config.errors import SettingError
from dcml_tune.config.prefix import CONDITIONAL, SCHEDULED, acting_settings, common_epochs
from dcml_tune.config.trial import TrialConfig
from dcml_tune.training.trainer import Trainer
from search_spaces.domains import Choice, Float, Int
from search_spaces.prefixes import count_states, shared_epochs, shared_with

ROOT = Path(dcml_tune.__file__).parent

BASE = {"nb_epochs": 8, "nb_clusters": 4, "mod_epoch": 2, "masking_init": "ones"}
ONE = {"nb_clusters": 1}

# Settings of two trials besides BASE, and the number of first epochs that they have in common.
PAIRS = [
    ({}, {}, 8),
    ({}, {"masking_lambda": 0.5}, 2),
    ({}, {"mask_lr_mult": 7.0}, 2),
    ({}, {"mask_wd_mult": 1.0}, 2),
    ({}, {"nb_clusters": 2}, 4),
    ({}, {"nb_clusters": 1}, 2),
    ({}, {"mod_epoch": 3}, 2),
    ({"mod_epoch": 3}, {"mod_epoch": 3, "masking_lambda": 0.5, "nb_clusters": 2}, 3),
    ({}, {"nb_epochs": 6}, 6),
    ({}, {"clustering_method": "kmeans_adaptive_centroids"}, 2),
    ({}, {"penultimate_for_clusters": False}, 2),
    ({}, {"reassign_random": True}, 2),
    ({}, {"clustering_random_state": 3}, 2),
    ({}, {"force_full_embedding_epoch": 6}, 6),
    ({"force_full_embedding_epoch": 6}, {"force_full_embedding_epoch": 7}, 6),
    ({}, {"hierarchy_method": "none"}, 0),
    ({}, {"hierarchy_method": "bot_top"}, 0),
    ({**ONE, "hierarchy_method": "none"}, {**ONE, "hierarchy_method": "bot_top"}, 8),
    ({"lr_step": 3}, {"lr_step": 4}, 3),
    ({"lr_step": 3}, {"lr_step": 3, "lr_gamma": 0.1}, 3),
    ({"lr_decay": "cosine"}, {"lr_decay": "cosine", "mask_lr_mult": 7.0}, 2),
    ({"lr_decay": "cosine"}, {"lr_decay": "cosine", "nb_epochs": 9}, 1),  # the first epoch has the full rates
    ({"lr_decay": "cosine"}, {}, 1),
    ({"warmup_epochs": 1}, {"warmup_epochs": 2}, 1),
    ({"warmup_epochs": 1, "mod_epoch_freeze": 1}, {"mod_epoch_freeze": 1}, 8),
    ({"mod_epoch_freeze": 1}, {}, 0),
    ({"mod_epoch_freeze": 1}, {**ONE, "mod_epoch_freeze": 1}, 0),
    ({"mod_epoch_freeze": 1}, {**ONE, "mod_epoch_freeze": 1, "freeze_without_division": True}, 2),
    ({**ONE, "masks_freeze_one_cluster": False}, {**ONE, "masks_freeze_one_cluster": False, "mask_lr_mult": 7.0}, 0),
    ({**ONE, "masking_lambda": 0.5}, {**ONE, "masking_lambda": 0.1}, 8),
    ({"fixed_mask": True}, {"fixed_mask": True, "mask_lr_mult": 7.0}, 8),
    ({}, {"init_method": "trunc_normal"}, 0),
    ({}, {"init_method": "pca"}, 0),
    ({"init_method": "pca"}, {"init_method": "pca", "nb_clusters": 2}, 4),
    ({"init_method": "trunc_normal"}, {"init_method": "trunc_normal", "nb_clusters": 2}, 0),
    ({"average_epochs": 3}, {}, 1),
    ({"average_epochs": 3}, {"average_epochs": 2}, 2),
    *(
        ({}, changed, 0)
        for changed in (
            {"pretrained_share": 0.1},
            {"seed": 2}, {"fold": 1}, {"split_seed": 5}, {"val_share": 0.4}, {"base_lr": 1e-4}, {"emb_lr_mult": 3.0},
            {"weight_decay": 0.0}, {"batch_size": 64}, {"margin": 0.1}, {"beta": 1.0}, {"sampler": "RPHN"},
            {"criterion": "triplet"}, {"arch": "resnet18"}, {"sz_embedding": 128}, {"optimizer": "adamw"},
            {"mask_relu": False}, {"masking_init": "normal"}, {"sz_crop": 32}, {"album": "Geom"}, {"amp": False},
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "common"), PAIRS)
def test_epochs_in_common(first, second, common):
    """The table says it, in both directions, and so do the acting settings."""
    one, two = (TrialConfig(**{**BASE, **changed}) for changed in (first, second))
    assert common_epochs(one, two) == common_epochs(two, one) == common
    for epochs in range(1, min(one.nb_epochs, two.nb_epochs) + 1):
        assert (acting_settings(one, epochs) == acting_settings(two, epochs)) == (epochs <= common)


def test_a_setting_that_is_not_known_to_act_later_counts_from_the_start():
    """So a new setting is never left out by mistake."""
    found = acting_settings(TrialConfig(**BASE), 1)
    assert found.keys() | CONDITIONAL == {*TrialConfig.model_fields, "plans"} | CONDITIONAL
    assert not found.keys() & CONDITIONAL


def test_scheduled_settings_are_read_by_the_schedule_alone():
    """Any other code of a training that reads one would make it act in another way than by the plans."""
    allowed = {
        "models/embedder.py": {"nb_clusters", "hierarchy_method"},  # first masks, slices of the embedding layer
        "training/starting_model.py": {"nb_epochs"},  # trials of a search start from no model
        "training/trainer.py": {"nb_epochs"},  # an example
        "training/trial_data.py": {"nb_clusters"},  # refuses what cannot train
    }
    for room in ("training", "models", "losses", "data", "clustering", "metrics"):
        for file in sorted((ROOT / room).rglob("*.py")):
            name = str(file.relative_to(ROOT))
            if name == "training/prefixes.py":
                continue
            read = set(re.findall(r"config\.(\w+)", file.read_text()))
            assert read & SCHEDULED <= allowed.get(name, set()), name


# -- two trainings with the same key have the same state -----------------------------------------------------

TINY = {
    "dataset": "emoji", "ratio_classes": 0.02, "arch": "test_resnet", "weights": "none", "sz_resize": 32, "sz_crop": 32,
    "sz_embedding": 8, "batch_size": 8, "num_samples_per_class": 2, "base_lr": 1e-3,
}  # fmt: skip

VARIED = {
    "nb_epochs": st.integers(2, 3),
    "nb_clusters": st.sampled_from([1, 2, 2, 4]),
    "mod_epoch": st.integers(1, 3),
    "mod_epoch_freeze": st.sampled_from([0, 0, 1]),
    "freeze_without_division": st.booleans(),
    "force_full_embedding_epoch": st.sampled_from([None, None, 1, 2, 3]),
    "hierarchy_method": st.sampled_from(["top_bot", "top_bot", "none", "bot_top"]),
    "stop_recluster": st.booleans(),
    "lr_step": st.sampled_from([None, 1, 2]),
    "lr_decay": st.sampled_from(["step", "step", "cosine"]),
    "warmup_epochs": st.sampled_from([0, 0, 1, 2]),
    "lr_gamma": st.sampled_from([0.5, 0.1]),
    "masking_lambda": st.sampled_from([0.01, 1.0]),
    "mask_lr_mult": st.sampled_from([1.0, 100.0]),
    "mask_wd_mult": st.sampled_from([0.0, 1.0]),
    "fixed_mask": st.booleans(),
    "masks_freeze_one_cluster": st.sampled_from([True, True, False]),
    "masking_init": st.sampled_from(["ones", "ones", "normal"]),
    "average_epochs": st.sampled_from([1, 1, 2, 3]),
    "reassign_random": st.booleans(),
    "clustering_method": st.sampled_from(["kmeans", "kmeans_adaptive_centroids"]),
    "clustering_random_state": st.sampled_from([None, 3]),
    "penultimate_for_clusters": st.booleans(),
}


def config_of(chosen):
    try:
        return TrialConfig(**TINY, **chosen)
    except SettingError:
        return None


@st.composite
def pairs(draw):
    """Two settings that often have epochs in common: the second changes a few of the conditional ones."""
    first = draw(st.fixed_dictionaries(VARIED))
    names = draw(st.sets(st.sampled_from(sorted(set(VARIED) & CONDITIONAL)), min_size=1, max_size=4))
    return first, {**first, **{name: draw(VARIED[name]) for name in names}}


def flat(trainer):
    state = trainer.state()
    found = {
        f"{part}/{name}": value for part, tensors in vars(state.learned).items() for name, value in tensors.items()
    }
    found["partition"] = torch.from_numpy(state.partition)
    if state.assignment is not None:
        found["assignment"] = torch.from_numpy(state.assignment)
    best = state.best
    return {name: value.clone() for name, value in (found | {f"best/{k}": v for k, v in best.weights.items()}).items()}


@cache
def trained(config, stores):
    """For each epoch the state and the measures, times apart."""
    trainer = Trainer(config, stores=stores, device="cpu")
    found = []
    for _ in range(config.nb_epochs):
        try:
            measured = trainer.run_epoch()
        except SettingError:  # a cluster without a batch
            break
        found.append((flat(trainer), {name: value for name, value in measured.items() if not name.startswith("time/")}))
    return found


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(pair=pairs())
def test_the_same_key_means_the_same_state(pair, stores):
    """To the last bit: weights, moments, partition, best epoch, and every measure."""
    one, two = map(config_of, pair)
    assume(one is not None and two is not None and one != two)
    common = common_epochs(one, two)
    assume(common > 0)
    for epoch, (first, second) in enumerate(zip(trained(one, stores), trained(two, stores), strict=False)):
        if epoch >= common:
            return
        assert first[1] == pytest.approx(second[1], abs=0, rel=0, nan_ok=True)
        assert first[0].keys() == second[0].keys()
        assert all(torch.equal(value, second[0][name]) for name, value in first[0].items())


# -- the epochs after which a trial leaves its state for others ------------------------------------------------

MASKS = {"masking_lambda": Float(0.001, 1.0, log=True), "mask_lr_mult": Float(1.0, 1000.0, log=True)}
FOUR = {"nb_clusters": Choice([2, 4]), "mod_epoch": Int(2, 4), **MASKS}


@pytest.mark.parametrize(
    ("domains", "changed", "expected"),
    [
        (FOUR, {"mod_epoch": 2}, (2,)),
        (FOUR, {"mod_epoch": 3}, (2, 3)),
        (FOUR, {"mod_epoch": 4, "nb_clusters": 2}, (2, 3, 4)),
        ({**FOUR, "base_lr": Float(1e-5, 1e-3)}, {}, ()),
        ({"base_lr": Choice([1e-5, 1e-4])}, {}, ()),
        ({"nb_clusters": Choice([1, 2, 4])}, {"nb_clusters": 2}, (2, 4)),
        (
            {"nb_clusters": Choice([2]), "masking_lambda": Float(0.5, 0.5)},
            {"nb_clusters": 2, "masking_lambda": 0.5},
            (),
        ),
    ],
)
def test_states_are_shared_where_another_point_leaves(domains, changed, expected):
    """And nowhere else: a state that no other trial can have is not kept."""
    config = TrialConfig(**{**BASE, "nb_epochs": 9, **changed})
    assert shared_epochs(config, domains) == expected


def test_states_are_counted_for_the_disk():
    """Those of all points together, up to a number."""
    config = TrialConfig(**{**BASE, "nb_epochs": 9})
    assert count_states(config, FOUR, most=8) == 3
    assert count_states(config, FOUR, most=2) == 2
    assert count_states(config, {**FOUR, "base_lr": Float(1e-5, 1e-3)}, most=8) == 0


def test_runs_of_a_list_share_with_each_other():
    """Such as those of a confirmation: the winner and the published setting."""
    one, two, other = (TrialConfig(**{**BASE, **changed}) for changed in ({}, {"mask_lr_mult": 9.0}, {"seed": 5}))
    assert shared_with(one, [one, two, other]) == (2,)
    assert shared_with(other, [one, two, other]) == ()
