"""Every setting of a trial acts in a whole training: none is parsed and ignored."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dcml_tune.cli import reference_flags
from dcml_tune.config.trial import TrialConfig
from dcml_tune.config.unused import unused_settings
from dcml_tune.train import Flags
from dcml_tune.training.embedding import embed
from dcml_tune.training.trainer import Trainer

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "settings.md"

# A training in which much happens: 1, 2, 4 clusters, reclustering, the full-embedding phase.
BASE = {
    "dataset": "folder",
    "train_classes": 20,
    "arch": "test_resnet",
    "weights": "none",
    "sz_resize": 32,
    "sz_crop": 32,
    "sz_embedding": 8,
    "batch_size": 8,
    "num_samples_per_class": 2,
    "batch_sampler": "adaptbalanced",
    "sampler": "distanceweighted",
    "nb_epochs": 4,
    "nb_clusters": 4,
    "mod_epoch": 1,
    "force_full_embedding_epoch": 3,
    "mask_lr_mult": 100.0,
    "mask_wd_mult": 1.0,
    "base_lr": 1e-3,
    "features_dropout_prob": 0.1,
}

BETA = {"lr_beta": 0.1}
RANDAUGMENT = {"album": "RandAugment"}
NPAIRS = {"criterion": "npairs"}
TRIPLET = {"criterion": "triplet"}
MULTI_SIMILARITY = {"criterion": "multi_similarity"}
SUPCON = {"criterion": "supcon"}
CONTRASTIVE = {"criterion": "contrastive"}
PROXY_ANCHOR = {"criterion": "proxy_anchor"}
SOFTMAX = {"criterion": "normalized_softmax"}
ARCFACE = {"criterion": "arcface"}
SUM = {"masks_sum_for_full_emb": True}
SLOW = {"nb_clusters": 2, "mod_epoch": 2}
DECAY = {"lr_step": 1}
FEW = {"num_samples_per_class": 1}  # which losses of proxies allow
COSINE = {"lr_decay": "cosine"}

# Setting, the other settings that it needs, and the values of which each must give another training.
CASES = [
    ("train_classes", {}, [20, 16]),
    ("val_share", {}, [0.2, 0.4, 0.0]),
    ("split_seed", {}, [0, 1]),
    ("fold", {}, [0, 1]),
    ("protocol", {}, ["held_out", "paper"]),
    ("ratio_classes", {}, [1.0, 0.5]),
    ("image_store", {"sz_resize": 36}, ["full", "small"]),
    ("sz_resize", {}, [32, 36]),
    ("sz_crop", {"sz_resize": 40}, [32, 40]),
    ("album", {}, [None, "Geom", "GeomColor", "ColorHeavy", "RandAugment"]),
    ("crop_scale", {}, [0.08, 0.5, 1.0]),
    ("randaugment_ops", RANDAUGMENT, [2, 1]),
    ("randaugment_magnitude", RANDAUGMENT, [9, 20]),
    ("arch", {}, ["test_resnet", "test_convnext"]),
    ("features_pooling", {"sz_resize": 64, "sz_crop": 64}, ["avg", "max", "avg+max", "gem"]),
    ("features_dropout_prob", {}, [0.0, 0.5]),
    ("bn_learnable", {}, [False, True]),
    ("sz_embedding", {}, [8, 16]),
    (
        "init_method",
        {},
        [None, "pt_splitted", "xavier_uniform_1", "xavier_uniform_2", "xavier_normal_1", "kaiming_normal_fan_in",
         "kaiming_normal_fan_out", "trunc_normal", "pca"],
    ),
    ("masking_init", {}, ["ones", "normal"]),
    ("mask_relu", {"masking_init": "normal"}, [True, False]),
    ("fixed_mask", {}, [False, True]),
    ("masks_freeze_one_cluster", SLOW, [True, False]),
    ("masks_sum_for_full_emb", {}, [False, True]),
    ("masks_normalize_before_sum", {**SUM, "masking_init": "normal", "seed": 3}, [None, "l1"]),
    (
        "criterion",
        {},
        ["margin", "kantorov_margin", "triplet", "triplet_semihard", "triplet_all", "npairs", "multi_similarity", "supcon",
         "contrastive", "proxy_anchor", "normalized_softmax", "arcface"],
    ),
    ("margin", {}, [0.2, 0.1]),
    ("beta", {}, [1.2, 1.0]),
    ("nu", BETA, [0.0, 1.0]),
    ("lr_beta", {}, [0.0, 0.1]),
    ("soft_loss", TRIPLET, [False, True]),
    ("alpha", NPAIRS, [1.0, 4.0]),
    ("lr_alpha", NPAIRS, [1.0, 100.0]),
    ("ms_alpha", MULTI_SIMILARITY, [2.0, 0.01, 20.0]),
    ("ms_beta", MULTI_SIMILARITY, [50.0, 30.0, 160.0]),
    ("ms_base", MULTI_SIMILARITY, [0.5, 0.4, 0.9]),
    ("ms_epsilon", MULTI_SIMILARITY, [0.1, 0.0, 2.5]),
    ("supcon_temperature", SUPCON, [0.1, 0.01, 0.2]),
    ("contrastive_pos_margin", CONTRASTIVE, [0.0, 0.2]),
    ("contrastive_neg_margin", CONTRASTIVE, [1.0, 0.5]),
    ("pa_alpha", PROXY_ANCHOR, [32.0, 16.0, 64.0]),
    ("pa_delta", PROXY_ANCHOR, [0.1, 0.05, 0.2]),
    ("softmax_temperature", SOFTMAX, [0.05, 0.1]),
    ("arcface_margin", ARCFACE, [28.6, 15.0, 30.0]),
    ("arcface_scale", ARCFACE, [64.0, 16.0, 220.0]),
    ("proxy_lr_mult", {**SOFTMAX, **FEW}, [100.0, 5.0, 0.0]),
    ("masking_lambda", {}, [0.0, 1.0]),
    ("sampler", {}, ["distanceweighted", "easypeasy", "HPHN", "EPHN", "EPSHN", "HPSHN", "RPSHN", "RPHN"]),
    ("cutoff", {"sampler": "easypeasy"}, [0.01, 1.3]),
    ("batch_sampler", {"batch_size": 16}, ["adaptbalanced", "balanced_old", "npairs", "randombatch"]),
    ("batch_size", {}, [8, 16]),
    ("num_samples_per_class", {}, [2, 4]),
    ("small_class_action", {"batch_size": 16, "num_samples_per_class": 8}, ["sample_other", "duplicate", "smaller_batch"]),
    ("num_replicas", {}, [1, 2]),
    ("nb_epochs", {}, [4, 5]),
    ("nb_clusters", {}, [1, 2, 4]),
    ("mod_epoch", {"nb_clusters": 2}, [1, 2]),
    ("mod_epoch_freeze", SLOW, [0, 1]),
    ("freeze_without_division", {"nb_clusters": 1, "mod_epoch": 2, "mod_epoch_freeze": 1}, [False, True]),
    ("warmup_epochs", {}, [0, 1, 3]),
    ("force_full_embedding_epoch", {"nb_clusters": 2}, [3, 2, None]),
    ("hierarchy_method", {}, ["top_bot", "none", "bot_top"]),
    ("stop_recluster", {"nb_clusters": 2}, [False, True]),
    ("reassign_random", {"hierarchy_method": "none"}, [False, True]),
    ("clustering_method", {"hierarchy_method": "none"}, ["kmeans", "kmeans_adaptive_centroids"]),
    ("clustering_random_state", {}, [None, 5]),
    ("penultimate_for_clusters", {}, [True, False]),
    ("optimizer", {"weight_decay": 0.5}, ["adam", "adamw"]),
    ("base_lr", {}, [1e-3, 1e-4]),
    ("emb_lr_mult", {}, [1.0, 10.0]),
    ("mask_lr_mult", {}, [1.0, 100.0]),
    ("mask_wd_mult", {"weight_decay": 0.1}, [0.0, 1.0]),
    ("weight_decay", {}, [1e-3, 0.1]),
    ("lr_decay", {}, ["step", "cosine"]),
    ("lr_step", {}, [None, 1]),
    ("lr_gamma", DECAY, [0.5, 0.1]),
    ("average_epochs", {}, [1, 2, 4]),
    ("pretrained_share", {}, [0.0, 0.3, 0.6]),
    ("seed", {}, [1, 2]),
]  # fmt: skip

ONE = {"nb_clusters": 1}
SHORT = {"nb_clusters": 1, "nb_epochs": 1, "force_full_embedding_epoch": None}
FIXED = {"fixed_mask": True}
SEMIHARD = {"criterion": "triplet_semihard"}
FULL = {"hierarchy_method": "none", "force_full_embedding_epoch": 0}

# Setting, what makes it meaningless, and two values.
IDLE = [
    *[(name, FIXED, values) for name, values in [
        ("masking_lambda", [1.0, 0.1]), ("mask_lr_mult", [1.0, 100.0]), ("mask_wd_mult", [0.0, 1.0]),
        ("masking_init", ["ones", "normal"]), ("mask_relu", [True, False]), ("masks_freeze_one_cluster", [True, False]),
    ]],
    *[(name, ONE, values) for name, values in [
        ("fixed_mask", [False, True]), ("masking_lambda", [1.0, 0.1]), ("mask_lr_mult", [1.0, 100.0]),
        ("mask_wd_mult", [0.0, 1.0]), ("mask_relu", [True, False]), ("force_full_embedding_epoch", [None, 2]),
        ("hierarchy_method", ["top_bot", "none"]), ("stop_recluster", [False, True]),
        ("reassign_random", [False, True]), ("clustering_method", ["kmeans", "kmeans_adaptive_centroids"]),
        ("clustering_random_state", [None, 3]), ("penultimate_for_clusters", [True, False]),
        ("backend", ["auto", "sklearn"]),
    ]],
    ("mod_epoch_freeze", {**ONE, "mod_epoch": 2}, [0, 1]),
    ("masks_freeze_one_cluster", {"hierarchy_method": "none"}, [True, False]),
    ("mask_wd_mult", {"weight_decay": 0.0}, [0.0, 1.0]),
    ("sampler", SEMIHARD, ["easypeasy", "HPHN"]),
    ("cutoff", SEMIHARD, [0.5, 0.1]),
    ("cutoff", {"sampler": "HPHN"}, [0.5, 0.1]),
    ("alpha", {}, [1.0, 2.0]),
    ("lr_alpha", {}, [1.0, 2.0]),
    ("nu", {}, [0.0, 1.0]),
    ("nu", {**SEMIHARD, "lr_beta": 0.1}, [0.0, 1.0]),
    ("lr_beta", SEMIHARD, [0.0, 0.1]),
    ("beta", SEMIHARD, [1.2, 1.0]),
    ("soft_loss", {}, [False, True]),
    *[(name, criterion, values) for criterion in (MULTI_SIMILARITY, SUPCON, CONTRASTIVE, ARCFACE) for name, values in [
        ("sampler", ["distanceweighted", "HPHN"]), ("cutoff", [0.5, 0.1]), ("margin", [0.2, 0.1]), ("beta", [1.2, 1.0]),
        ("nu", [0.0, 1.0]), ("lr_beta", [0.0, 0.1]), ("soft_loss", [False, True]), ("alpha", [1.0, 2.0]),
        ("lr_alpha", [1.0, 2.0]),
    ]],
    *[(name, NPAIRS, values) for name, values in [
        ("ms_alpha", [2.0, 1.0]), ("ms_beta", [50.0, 40.0]), ("ms_base", [0.5, 0.4]), ("ms_epsilon", [0.1, 0.2]),
        ("supcon_temperature", [0.1, 0.2]), ("contrastive_pos_margin", [0.0, 0.1]),
        ("contrastive_neg_margin", [1.0, 0.9]), ("pa_alpha", [32.0, 16.0]), ("pa_delta", [0.1, 0.2]),
        ("softmax_temperature", [0.05, 0.1]), ("arcface_margin", [28.6, 20.0]), ("arcface_scale", [64.0, 32.0]),
        ("proxy_lr_mult", [100.0, 10.0]),
    ]],
    *[(name, PROXY_ANCHOR, values) for name, values in [
        ("softmax_temperature", [0.05, 0.1]), ("arcface_margin", [28.6, 20.0]), ("arcface_scale", [64.0, 32.0]),
        ("supcon_temperature", [0.1, 0.2]), ("margin", [0.2, 0.1]), ("sampler", ["distanceweighted", "HPHN"]),
    ]],
    ("margin", NPAIRS, [0.2, 0.1]),
    ("margin", {**SEMIHARD, "soft_loss": True}, [0.2, 0.1]),
    ("small_class_action", {"batch_sampler": "balanced_old"}, ["sample_other", "duplicate"]),
    ("lr_beta", NPAIRS, [0.0, 0.1]),
    ("stop_recluster", {**ONE, "mod_epoch": 2, "mod_epoch_freeze": 1, "freeze_without_division": True}, [False, True]),
    *[(name, FULL, values) for name, values in [
        ("masking_lambda", [1.0, 0.1]), ("mask_lr_mult", [1.0, 100.0]), ("mask_wd_mult", [0.0, 1.0]),
        ("mask_relu", [True, False]),
    ]],
    ("num_samples_per_class", {"batch_sampler": "randombatch"}, [4, 2]),
    ("lr_gamma", {}, [0.5, 0.1]),
    ("lr_gamma", {**COSINE, **DECAY}, [0.5, 0.1]),
    ("lr_step", COSINE, [None, 1]),
    ("lr_decay", SHORT, ["step", "cosine"]),
    ("lr_step", SHORT, [None, 1]),
    ("lr_gamma", {**SHORT, **DECAY}, [0.5, 0.1]),
    ("freeze_without_division", {}, [False, True]),
    ("mod_epoch", {**ONE, "mod_epoch_freeze": 0}, [2, 3]),
    ("val_share", {"protocol": "paper"}, [0.2, 0.1]),
    ("split_seed", {"protocol": "paper"}, [0, 1]),
    ("fold", {"protocol": "paper"}, [0, 1]),
    ("split_seed", {"val_share": 0.0}, [0, 1]),
    ("fold", {"val_share": 0.0}, [0, 1]),
    ("allow_partial", {}, [False, True]),
    ("randaugment_ops", {}, [2, 3]),
    ("randaugment_magnitude", {"album": "Geom"}, [9, 3]),
]  # fmt: skip

# What must not change a result, and what says where things are or which images are refused.
# Measures that say how a training was run: times, phases, and the weighted overlap also where nothing is trained by it.
UNLIKE = ("time/", "phase/", "train/loss_masks")
WITHOUT_RESULT = {"num_workers", "backend", "amp"}
ELSEWHERE = {"dataset", "dataset_dir", "allow_partial", "strict", "skip_unreadable", "weights"}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


TRAINED = {}


def training(settings, folder, stores):
    """All that a training leaves; the same configuration is trained once."""
    config = TrialConfig(**settings, dataset_dir=str(folder))
    key = config.model_dump_json()
    if key not in TRAINED:
        TRAINED[key] = trained(config, stores)
    return TRAINED[key]


def trained(config, stores):
    """Losses, measures, embeddings and weights of a training."""
    torch.set_num_threads(1)
    trainer = Trainer(config, stores=stores, device="cpu")
    curve = []
    while trainer.epoch < trainer.config.nb_epochs:
        curve.append({n: v for n, v in trainer.run_epoch().items() if not n.startswith(UNLIKE)})
    rows = trainer.data.train
    with trainer.measured.swapped_into(trainer.model):
        found = embed(trainer.model, trainer.data.views, rows)
    return curve, found.numpy(), {name: value.numpy() for name, value in trainer.model.state_dict().items()}


def same(first, second):
    """Whether two trainings left the same."""
    if first[0] != second[0] or not np.array_equal(first[1], second[1]):
        return False
    return all(np.array_equal(value, second[2][name]) for name, value in first[2].items())


@pytest.mark.parametrize(("setting", "context", "values"), CASES, ids=[case[0] for case in CASES])
def test_a_setting_acts(setting, context, values, folder, stores):
    """Each value gives another training than each other value, with finite losses."""
    found = [training({**BASE, **context, setting: value}, folder, stores) for value in values]
    for number, (value, one) in enumerate(zip(values, found, strict=True)):
        assert all(np.isfinite(epoch["train/loss"]) for epoch in one[0]), value
        for other, another in zip(values[:number], found, strict=False):
            assert not same(one, another), f"{setting}={value} trains as {setting}={other} does"


@pytest.mark.parametrize(("setting", "context", "values"), IDLE)
def test_a_setting_that_is_said_to_have_no_effect_has_none(setting, context, values, folder, stores):
    """It is named before anything runs, and the training is the same to the last bit."""
    settings = [{**BASE, **context, setting: value} for value in values]
    said = unused_settings(TrialConfig(**settings[1]), [setting])
    assert [line.split(" has no effect")[0] for line in said] == [f"{setting}={values[1]}"]
    assert same(*(training(each, folder, stores) for each in settings))


@pytest.mark.parametrize(("setting", "context", "values"), CASES, ids=[case[0] for case in CASES])
def test_no_setting_that_acts_is_said_to_have_no_effect(setting, context, values):
    """The cases of `test_a_setting_acts`."""
    for value in values:
        assert unused_settings(TrialConfig(**{**BASE, **context, setting: value}), [setting]) == []


@pytest.mark.parametrize(
    ("setting", "values"), [("num_workers", [0, 2]), ("backend", ["torch", "faiss"]), ("amp", [True, False])]
)
def test_a_setting_of_the_machine_changes_no_result(setting, values, folder, stores):
    """The same numbers with any number of loader processes, with either k-means, and with bfloat16 allowed on the CPU."""
    configs = [TrialConfig(**BASE, **{setting: value}, dataset_dir=str(folder)) for value in values]
    first, second = (trained(config, stores) for config in configs)
    assert same(first, second)


def test_all_settings_are_covered():
    """A new setting comes with a case here."""
    covered = {case[0] for case in CASES} | WITHOUT_RESULT | ELSEWHERE
    assert set(TrialConfig.model_fields) - covered == set()


def rows_of_the_page():
    """Rows of the tables of docs/settings.md: first cell and tests."""
    lines = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return {cells[0].strip().strip("`"): re.findall(r"`(test_[^`]+)`", cells[3]) for cells in lines}


def test_the_page_names_every_setting_and_tests_that_exist():
    """Each flag of the original and each setting of ours has a row, and each row at least one test."""
    rows = rows_of_the_page()
    flags = [row["flags"] for row in csv.DictReader((HERE / "original_flags.csv").open())]
    assert [flag for flag in flags if flag not in rows] == []
    names = {flag.split()[-1].lstrip("-").replace("-", "_") for flag in rows} | {"seed"}
    assert [name for name in TrialConfig.model_fields if name not in names] == []
    for flag, tests in rows.items():
        assert_they_exist(tests, flag)


def test_each_difference_from_the_original_has_its_tests():
    """The rows of the page are numbered from 1, and each has at least one test that exists."""
    lines = [line for line in PAGE.read_text().splitlines() if re.match(r"\| \d+ \| ", line)]
    assert [int(line.split("|")[1]) for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) >= 16
    for line in lines:
        assert_they_exist(re.findall(r"`(test_[^`]+)`", line), line)


def assert_they_exist(tests, of):
    """There is at least one, and each names a file and a function of it."""
    assert tests, of
    for test in tests:
        file, _, function = test.partition("::")
        text = (HERE / file).read_text()
        assert not function or f"def {function.split('[')[0]}(" in text, test


# How the file of the original's flags writes what is another way of writing our value.
SAME = {"inf": None, "": None, "True": True, "False": False, "0": False, "1": True}


def test_train_has_the_defaults_of_the_original():
    """Without flags, but for the backbones and sizes of our own data sets, and the number of loader processes."""
    config = Flags.read([]).config()
    assert (config.dataset, config.dataset_dir) == ("cub", reference_flags.DATA_PATH)
    names = {"random_seed": "seed"}
    for row in csv.DictReader((HERE / "original_flags.csv").open()):
        flag = row["flags"].split()[-1].lstrip("-").replace("-", "_")
        name = names.get(flag, flag)
        if name not in TrialConfig.model_fields or name in ("dataset_dir", "num_workers", "backend"):
            continue
        value, text = getattr(config, name), row["default"]
        expected = (
            SAME.get(text, text) if not isinstance(value, int | float) or isinstance(value, bool) else float(text)
        )
        if isinstance(value, str):
            expected = original_name(text)
        assert value == expected, f"{name}: {value} is not {text}"


def original_name(text):
    """Our name of the original's choice."""
    from dcml_tune.config.trial import ORIGINAL_NAMES

    return ORIGINAL_NAMES.get(text, text)
