"""Readers of the published data sets: their exact formats, and copies that are not whole."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import trees
from scipy.io import loadmat, savemat

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import hold_out, load
from dcml_tune.data.datasets.official_counts import COUNTS
from search_spaces.published import RESULTS, as_text

NAMES = list(trees.MAKERS)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    root = tmp_path_factory.mktemp("copies")
    for name, make in trees.MAKERS.items():
        make(root / name)
    return root


@pytest.fixture
def copy(copies, tmp_path):
    """A copy that may be damaged."""

    def of(name):
        return Path(shutil.copytree(copies / name, tmp_path / name))

    return of


def read(name, root, **settings):
    return load(TrialConfig(dataset=name, dataset_dir=str(root), **{"allow_partial": True, **settings}))


@pytest.mark.parametrize("name", NAMES)
def test_classes_and_images_are_those_of_the_tree(name, copies):
    """12 classes of 6 images train, 8 others test; every image decodes, and no other file is one."""
    dataset = read(name, copies / name)
    assert Counter(dataset.train.labels.tolist()) == dict.fromkeys(set(dataset.train.labels.tolist()), 6)
    assert dataset.train.nb_classes == 12
    test = dataset.tests[0]
    labels = np.concatenate([images.labels for images in test.lists])
    assert sorted(Counter(labels.tolist()).values()) == [6] * 8
    assert not set(labels.tolist()) & set(dataset.train.labels.tolist())
    for images in (dataset.train, *test.lists):
        assert not [path for path in images.paths if "/._" in path or path.startswith("._")]
        assert images.read(0).shape == (36, 44, 3)
        assert images.read(len(images) - 1).shape == (36, 44, 3)
    assert max(labels.max(), dataset.train.labels.max()) < len(dataset.class_names)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_has_the_class_that_its_file_says(name, copies):
    """Images of one label look alike: they are of one pattern of the tree."""
    dataset = read(name, copies / name)
    patterns = {}
    for i, label in enumerate(dataset.train.labels.tolist()):
        patterns.setdefault(label, []).append(dataset.train.read(i).mean(axis=2))
    means = {label: np.mean(images, axis=0) for label, images in patterns.items()}
    for label, images in patterns.items():
        nearest = [min(means, key=lambda other: np.abs(image - means[other]).mean()) for image in images]
        assert nearest == [label] * 6


def test_what_is_special_of_each(copies):
    """Classes of 1-based numbers, super-classes, queries and gallery, three lists; the k of each."""
    cars = read("cars", copies / "cars")
    assert [cars.class_names[label] for label in np.unique(cars.train.labels)][:2] == ["1", "2"]
    assert [cars.class_names[label] for label in np.unique(cars.tests[0].queries.labels)][:2] == ["99", "100"]
    cub = read("cub", copies / "cub")
    assert cub.class_names[0] == "001.Bird_Number_1"
    sop = read("sop", copies / "sop")
    assert set(sop.train.super_labels.tolist()) == {1, 2}
    assert next(sop.class_names[label] for label in np.unique(sop.tests[0].queries.labels)) == "11319"
    inshop = read("inshop", copies / "inshop")
    assert (len(inshop.tests[0].queries), len(inshop.tests[0].gallery)) == (24, 24)
    vid = read("vid", copies / "vid")
    assert [(test.name, test.queries.nb_classes) for test in vid.tests] == [("2400", 8), ("1600", 7), ("800", 4)]
    assert set(vid.tests[2].queries.paths) < set(vid.tests[0].queries.paths)
    assert [len(images) for images in vid.test_lists] == [48]
    ks = [read(name, copies / name).tests[0].ks for name in NAMES]
    assert ks == [(1, 2, 4, 8), (1, 2, 4, 8), (1, 10, 100), (1, 10, 20, 30, 50), (1, 5)]


def test_held_out_classes_copy_the_protocol(copies):
    """Of each of SOP's super-classes the same share; In-Shop's into queries and gallery."""
    train, held = hold_out(read("sop", copies / "sop"), share=1 / 3, seed=0)
    assert Counter(held.queries.super_labels.tolist()) == {1: 12, 2: 12}
    assert train.nb_classes == 8
    _, held = hold_out(read("inshop", copies / "inshop"), share=0.25, seed=0)
    assert len(held.queries) == len(held.gallery) == 9


@pytest.mark.parametrize("name", NAMES)
def test_a_partial_copy_is_refused_or_noted(name, copies):
    """The counts that differ are named with the published ones, and so is the flag to go on; then a note says it."""
    with pytest.raises(SettingError) as refused:
        read(name, copies / name, allow_partial=False)
    said = str(refused.value)
    assert f"train classes: found 12, published {COUNTS[name]['train classes']:,}" in said
    assert "--allow-partial" in said
    assert "\n" not in said
    assert read(name, copies / name).notes[0].startswith("partial copy: ")


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_copy_has_no_note(name, copies, monkeypatch):
    """With the counts of the tree in place of the published ones."""
    from dcml_tune.data.datasets.official_counts import counts

    monkeypatch.setitem(COUNTS, name, counts(read(name, copies / name)))
    assert read(name, copies / name, allow_partial=False).notes == ()


@pytest.mark.parametrize("name", ["cars", "sop", "inshop", "vid"])
def test_listed_images_that_are_missing(name, copy):
    """They are counted and named, and left out when that is allowed."""
    root = copy(name)
    images = sorted(path for path in root.rglob("*.[jJ][pP][gG]") if not path.name.startswith("._"))
    images[0].unlink()
    with pytest.raises(SettingError, match=r"1 listed images are missing \(.*" + images[0].name):
        read(name, root, allow_partial=False)
    dataset = read(name, root)
    assert len(dataset.train) == 71
    assert images[0].name in dataset.notes[0]


def test_paths_with_spaces(copy):
    """Of directories and of files, one or two in a row; in the lists, too."""
    root = copy("sop")
    shutil.move(root / "sop" / "bicycle_final", root / "sop" / "bicycle  new_final")
    for side in ("train", "test"):
        file = root / "sop" / f"Ebay_{side}.txt"
        file.write_text(file.read_text().replace("bicycle_final", "bicycle  new_final"))
    assert len(read("sop", root).train) == 72
    root = copy("inshop")
    shutil.move(root / "in-shop" / "img" / "WOMEN", root / "in-shop" / "img" / "ALL WOMEN")
    file = root / "in-shop" / "Eval" / "list_eval_partition.txt"
    file.write_text(file.read_text().replace("img/WOMEN", "img/ALL WOMEN"))
    assert len(read("inshop", root).train) == 72
    moved = root.parent / "a copy with spaces"
    shutil.move(root, moved)
    assert read("inshop", moved).train.read(0).shape == (36, 44, 3)


def test_cars_with_one_annotation_or_none_that_can_be_read(copy):
    """MATLAB's arrays of one element are no arrays any more when they are read."""
    root = copy("cars")
    file = root / "cars196" / "cars_annos.mat"
    whole = loadmat(file)["annotations"]
    savemat(file, {"annotations": whole[:, :1]})
    with pytest.raises(SettingError, match="fewer than two classes of the split"):
        read("cars", root)
    savemat(file, {"other": 1})
    with pytest.raises(SettingError, match=r"cars_annos\.mat: cannot be read as MATLAB annotations"):
        read("cars", root)
    file.write_bytes(b"no matlab")
    with pytest.raises(SettingError, match=r"cars_annos\.mat: cannot be read as MATLAB annotations"):
        read("cars", root)


def test_cub_without_numbers_is_halved(copy):
    """Numbers say the side of a class; without them the first half of the sorted folders trains."""
    root = copy("cub")
    base = root / "cub-200-2011" / "images"
    for folder in list(base.iterdir()):
        if folder.is_dir():
            folder.rename(base / folder.name[4:])
    dataset = read("cub", root)
    assert (dataset.train.nb_classes, dataset.tests[0].queries.nb_classes) == (10, 10)


@pytest.mark.parametrize(
    ("name", "file", "line"),
    [
        ("sop", "sop/Ebay_train.txt", "1 one 2 path.JPG"),
        ("sop", "sop/Ebay_train.txt", "1 2"),
        ("inshop", "in-shop/Eval/list_eval_partition.txt", "img/x.jpg id_1 training"),
        ("vid", "vehicle-id/VehicleID_V1.0/train_test_split/test_list_800.txt", "0000001"),
        ("vid", "vehicle-id/VehicleID_V1.0/train_test_split/train_list.txt", "0000001 red"),
    ],
)
def test_a_line_of_another_form_is_named(name, file, line, copy):
    """File, line and form."""
    root = copy(name)
    with (root / file).open("a") as written:
        written.write(f"{line}\n")
    with pytest.raises(SettingError) as refused:
        read(name, root)
    assert repr(line) in str(refused.value)
    assert Path(file).name in str(refused.value)


def test_a_wrong_directory_is_refused():
    """One that is not there, and none."""
    with pytest.raises(SettingError, match="dataset_dir=/no/where: does not exist"):
        read("cub", "/no/where")
    with pytest.raises(SettingError, match="dataset_dir is not given"):
        load(TrialConfig(dataset="cub"))


def test_single_images_are_counted_or_refused(copy):
    """They stay in the training images, which the published counts hold."""
    root = copy("cub")
    (folder,) = (root / "cub-200-2011" / "images").glob("003.*")
    for image in sorted(folder.glob("Bird*"))[1:]:
        image.unlink()
    dataset = read("cub", root)
    assert dataset.notes[-1] == "1 training classes have a single image: 003.Bird_Number_3"
    assert len(dataset.train) == 67
    with pytest.raises(SettingError, match="leave --strict out"):
        read("cub", root, strict=True)


def test_a_share_of_the_training_classes(copies):
    """The first ones; test classes stay whole; a share that leaves one class is refused."""
    dataset = read("sop", copies / "sop", ratio_classes=0.25)
    assert np.unique(dataset.train.labels).tolist() == [0, 1, 2]
    assert dataset.tests[0].queries.nb_classes == 8
    assert "3 of 12 training classes are used" in dataset.notes[-1]
    assert set(dataset.train.super_labels.tolist()) == {1, 2}
    with pytest.raises(SettingError, match=r"ratio_classes=0\.1: leaves 1 of 12 training classes"):
        read("sop", copies / "sop", ratio_classes=0.1)


def test_published_results_are_there():
    """Each published data set has both variants, values are percents, and the text names them."""
    assert set(RESULTS) == set(NAMES)
    for name, results in RESULTS.items():
        assert {"learned", "fixed"} <= {each.variant for each in results}
        assert all(50 < each.value < 100 for each in results)
        assert "learned: nmi" in as_text(name)
    assert sum(map(len, RESULTS.values())) == 57
    assert [e.value for e in RESULTS["cars"] if (e.variant, e.metric) == ("learned", "recall_at_1")] == [86.9]
    assert as_text("emoji") == "no published results"


def test_lists_in_the_head_of_a_space_are_the_published_ones():
    """The lab notes at the heads of the search spaces hold the numbers of the table."""
    import importlib

    for name in NAMES:
        text = importlib.import_module(f"search_spaces.{name}").__doc__
        for each in RESULTS[name]:
            assert f"{each.value:.2f}" in text, (name, each)
