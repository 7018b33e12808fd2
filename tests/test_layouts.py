"""Copies of the published data sets as people have them: the same images, classes and split in each layout."""

import re
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import trees

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import classes, load
from dcml_tune.data.datasets.official_counts import COUNTS, counts
from dcml_tune.data.layouts import LAYOUTS
from dcml_tune.data.lists import read_lines

CASES = [(name, make) for name, makers in trees.LAYOUTS.items() for make in makers]


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    for name in trees.MAKERS:
        trees.original(name, root / name)
    return root


def read(name, root, **settings):
    return load(TrialConfig(dataset=name, dataset_dir=str(root), **{"allow_partial": True, **settings}))


def lists(dataset):
    return [dataset.train, *(images for test in dataset.tests for images in test.lists)]


def pixels_by_class(images):
    """The images of each class by their pixels, in the order of the list."""
    found = defaultdict(list)
    for i, label in enumerate(images.labels.tolist()):
        found[label].append(images.read(i).tobytes())
    return found


@pytest.mark.parametrize(("name", "make"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_every_layout_gives_the_same_data_set(name, make, originals, tmp_path):
    """Labels, class names, split, super-classes and order; a line says which copy was read."""
    make(originals / name, tmp_path)
    expected, found = read(name, originals / name), read(name, tmp_path)
    assert found.class_names == expected.class_names
    assert [test.name for test in found.tests] == [test.name for test in expected.tests]
    in_one_order = not make.__name__.startswith(("cars_devkit", "cars_kaggle"))
    for ours, theirs in zip(lists(found), lists(expected), strict=True):
        assert ours.labels.tolist() == theirs.labels.tolist()
        supers = [None if each.super_labels is None else each.super_labels.tolist() for each in (ours, theirs)]
        assert supers[0] == supers[1]
        by_class = [pixels_by_class(ours), pixels_by_class(theirs)]
        if not in_one_order:
            by_class = [{label: sorted(images) for label, images in each.items()} for each in by_class]
        assert by_class[0] == by_class[1]
    said = [note for note in found.notes if note.startswith(f"{name} is read from {tmp_path}")]
    assert len(said) == 1
    assert not [note for note in expected.notes if " is read from " in note]


@pytest.mark.parametrize(("name", "make"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_published_counts_are_checked_in_every_layout(name, make, originals, tmp_path, monkeypatch):
    """A copy with other counts is refused; with the same counts it is taken as whole."""
    make(originals / name, tmp_path)
    with pytest.raises(SettingError, match=r"train classes: found 12, published .*--allow-partial"):
        read(name, tmp_path, allow_partial=False)
    monkeypatch.setitem(COUNTS, name, counts(read(name, originals / name)))
    assert not [note for note in read(name, tmp_path, allow_partial=False).notes if "partial" in note]


@pytest.mark.parametrize("name", list(trees.MAKERS))
def test_a_copy_is_found_up_to_two_folders_down(name, originals, tmp_path):
    """At the directory itself, below it, and not further; the error then says what lies there."""
    (own,) = (originals / name).iterdir()
    expected = read(name, originals / name)
    for given in (own, originals / name, originals):
        assert read(name, given).train.labels.tolist() == expected.train.labels.tolist()
    shutil.copytree(own, tmp_path / "a" / "b" / "c" / own.name)
    with pytest.raises(SettingError, match=rf"holds no copy of {name}, .*docs/data-sets.md.*holds a/"):
        read(name, tmp_path)


def test_a_directory_too_deep_says_which_to_give(originals):
    """The folder of the images is no copy, if its classes have no names."""
    inside = originals / "sop" / "sop" / "bicycle_final"
    with pytest.raises(SettingError, match=rf"give {re.escape(str(inside.parent))}[,;]"):
        read("sop", inside)


def test_two_copies_are_refused_and_the_own_one_is_preferred(originals, tmp_path):
    """Both are named; the folder of the original code goes first; one copy with two names is one."""
    trees.cub_unpacked(originals / "cub", tmp_path)
    (tmp_path / "same").symlink_to(tmp_path / "CUB_200_2011")
    assert read("cub", tmp_path).train.nb_classes == 12
    shutil.copytree(tmp_path / "CUB_200_2011", tmp_path / "another")
    with pytest.raises(SettingError, match=r"holds 2 copies of cub: .*CUB_200_2011.*another; give one of them"):
        read("cub", tmp_path)
    shutil.copytree(originals / "cub" / "cub-200-2011", tmp_path / "cub-200-2011")
    found = read("cub", tmp_path)
    assert found.train.root == tmp_path / "cub-200-2011" / "images"
    assert found.notes[1].startswith("other copies of cub are not used: ")


def test_cars_without_labelled_test_annotations(originals, tmp_path):
    """They are refused, also as a partial copy: nothing else says the classes; the error says how to get the file."""
    trees.cars_kaggle(originals / "cars", tmp_path)
    base = tmp_path / "stanford_cars"
    (base / "cars_test_annos_withlabels.mat").rename(base / "devkit" / "cars_test_annos.mat")
    with pytest.raises(SettingError) as refused:
        read("cars", tmp_path)
    said = str(refused.value)
    for words in (
        "cars_test_annos_withlabels.mat is missing",
        "docs/data-sets.md",
        "by class",
        "holds cars_test_annos.mat",
    ):
        assert words in said
    assert "\n" not in said
    shutil.rmtree(base / "devkit")
    with pytest.raises(SettingError, match=r"cars_train_annos\.mat, .*cars_test_annos_withlabels\.mat is missing"):
        read("cars", tmp_path)


@pytest.mark.parametrize(
    ("name", "gone", "words"),
    [
        ("cars", "cars196/car_ims", ["car_ims is missing", "car_ims.tgz", "holds cars_annos.mat"]),
        ("cars", "cars196/cars_annos.mat", ["cars_annos.mat is missing", "holds car_ims/"]),
        ("sop", "sop/Ebay_test.txt", ["Ebay_test.txt is missing", "holds Ebay_train.txt"]),
        ("inshop", "in-shop/img", ["img is missing", "img.zip", "holds Eval/"]),
        ("vid", "vehicle-id/VehicleID_V1.0/image", ["image is missing", "holds train_test_split/"]),
        ("vid", "vehicle-id/VehicleID_V1.0/train_test_split/test_list_1600.txt", ["test_list_1600.txt is missing"]),
    ],
)
def test_what_lies_beside_a_missing_part_is_named(name, gone, words, originals, tmp_path):
    """The part, the remedy, and the names that are there."""
    shutil.copytree(originals / name, tmp_path, dirs_exist_ok=True)
    path = tmp_path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(SettingError) as refused:
        read(name, tmp_path)
    assert not [word for word in words if word.lower() not in str(refused.value).lower()], refused.value


def test_parquet_files_are_named_with_the_remedy(tmp_path):
    """The usual form of Hugging Face holds no image files."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(SettingError, match="Hugging Face's Parquet files"):
        read("cub", tmp_path)


@pytest.mark.parametrize(("name", "file"), [("inshop", "list_eval_partition.txt"), ("vid", "train_test_split")])
def test_a_split_that_only_lists_have(name, file, tmp_path):
    """Folders train and test of items or vehicles, as exports have them, are refused with what has the split."""
    for side in ("train", "test"):
        trees.write(tmp_path / side / "id_00000001" / "1.jpg", 1, 1)
    with pytest.raises(SettingError, match=rf"images alone are not enough: only .*{file}"):
        read(name, tmp_path)


def test_other_data_sets_are_none_of_these(originals, tmp_path):
    """Folders of other classes, digits, other benchmarks' lists, tables without classes."""
    for place in ("train", "test"):
        for number in range(10):
            (tmp_path / "mnist" / place / str(number)).mkdir(parents=True)
        for kind in ("cat", "dog", "Cardinal"):
            (tmp_path / "pets" / place / kind).mkdir(parents=True)
    (tmp_path / "celeba" / "Eval").mkdir(parents=True)
    (tmp_path / "celeba" / "Eval" / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 1\n")
    (tmp_path / "file").mkdir()
    for name in ("images", "train"):
        (tmp_path / "file" / name).write_text("no folder")
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "metadata.jsonl").write_text('{"text": "no file"}\n[]\nno JSON\n')
    for name in trees.MAKERS:
        with pytest.raises(SettingError, match=f"holds no copy of {name}"):
            read(name, tmp_path)


def test_a_row_of_another_form_is_named(originals, tmp_path):
    """File and row; paths that lead out of the copy, too."""
    trees.cub_table(originals / "cub", tmp_path)
    table = tmp_path / "data" / "train" / "metadata.jsonl"
    whole = table.read_text()
    for row in ("no JSON", '{"label": "Cardinal"}', '{"file_name": "../../x.jpg", "label": "Cardinal"}', "[]"):
        table.write_text(f"{whole}\n{row}\n")
        with pytest.raises(
            SettingError, match=r"belongs to a folder that cannot be read .*metadata\.jsonl, line 81: "
        ) as refused:
            read("cub", tmp_path)
        assert "\n" not in str(refused.value)
    shutil.copytree(originals / "cub" / "cub-200-2011", tmp_path / "cub-200-2011")
    assert read("cub", tmp_path).train.nb_classes == 12
    shutil.rmtree(tmp_path / "cub-200-2011")
    shutil.rmtree(tmp_path / "data" / "validation")
    with pytest.raises(SettingError, match=r"a folder that may hold one cannot be read .*metadata\.jsonl, line 81: "):
        read("cub", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_no_line_of_a_list_is_lost(encoding, ending, tmp_path):
    """Whatever wrote it; bytes of another encoding are those of the file names."""
    lines = ["img/1.jpg 1", "img/caf\u00e9 2.jpg 2", "img/3.jpg 3"]
    file = tmp_path / "list.txt"
    file.write_bytes((ending.join(["image id", "", *lines]) + ending).encode(encoding))
    found = read_lines(file, is_header=lambda line: line.startswith("image"))
    if encoding == "latin-1":
        assert found[1].encode(errors="surrogateescape") == lines[1].encode("latin-1")
        del found[1], lines[1]
    assert found == lines


def test_a_list_that_is_no_text_is_refused(tmp_path):
    """Bytes of an archive, a torn file of UTF-16."""
    for data in (b"ab\0\0cd\n", "x 1\n".encode("utf-16")[:-1]):
        (tmp_path / "list.txt").write_bytes(data)
        with pytest.raises(SettingError, match=r"list\.txt: cannot be read"):
            read_lines(tmp_path / "list.txt")


@pytest.mark.parametrize("line", ["../x.JPG", "/etc/x.JPG", "a/../../x.JPG"])
def test_a_list_names_no_file_elsewhere(line, originals, tmp_path):
    """A path that leads out of the data set is no line of it."""
    shutil.copytree(originals / "sop", tmp_path, dirs_exist_ok=True)
    with (tmp_path / "sop" / "Ebay_train.txt").open("a") as file:
        file.write(f"1 2 1 {line}\n")
    with pytest.raises(SettingError, match="below the data set"):
        read("sop", tmp_path)


def test_names_in_other_case(originals, tmp_path):
    """Of folders and files, and of what marks a layout; a name of the very spelling goes first."""
    shutil.copytree(originals / "inshop" / "in-shop", tmp_path / "IN-SHOP")
    base = tmp_path / "IN-SHOP"
    (base / "Eval" / "list_eval_partition.txt").rename(base / "Eval" / "List_Eval_Partition.TXT")
    (base / "Eval").rename(base / "eval")
    (base / "img" / "WOMEN").rename(base / "img" / "Women")
    expected, found = read("inshop", originals / "inshop"), read("inshop", tmp_path)
    assert found.train.labels.tolist() == expected.train.labels.tolist()
    assert {path.split("/")[1] for path in found.train.paths} == {"Women"}


def test_classes_by_number_or_name():
    """Names in any spelling, numbers from 0 or from 1 of all classes; nothing else."""
    for name in ("cub", "cars"):
        all_of_them = classes.names(name)
        assert len(all_of_them) == classes.NB_CLASSES[name]
        spelled = [each.upper().replace("_", " ").replace("/", "-") for each in all_of_them]
        numbered = [f"{number:03d}.{each}" for number, each in enumerate(all_of_them, 1)]
        for texts in (all_of_them, spelled, numbered):
            assert list(classes.numbers(name, texts).values()) == list(range(1, len(all_of_them) + 1))
    assert classes.numbers("cars", map(str, range(196)))["0"] == 1
    assert classes.numbers("cars", [f"{number:03d}" for number in range(1, 197)])["001"] == 1
    for texts in (["0", "1"], ["1", "2"], map(str, range(197)), map(str, range(1, 198)), ["001.ak47", "002.flag"], []):
        assert classes.numbers("cars", texts) == {}
    assert list(classes.numbers("cars", ["Eagle Talon Hatchback 1998", "FIAT 500 Abarth 2012"]).values()) == [98, 99]
    assert list(classes.numbers("cub", ["Brown Pelican", "White Pelican"]).values()) == [100, 101]


def test_products_by_their_class_ids(tmp_path, monkeypatch):
    """Online Products without lists: class ids of all classes say the split, and there are no super-classes."""
    monkeypatch.setitem(classes.NB_CLASSES, "sop", 6)
    monkeypatch.setattr("dcml_tune.data.datasets.sop.NB_TRAIN_CLASSES", 4)
    for label in range(1, 7):
        for number in range(3):
            trees.write(tmp_path / "train" / str(label) / f"{number}.jpg", label, number)
    found = read("sop", tmp_path)
    assert np.unique(found.train.labels).tolist() == [0, 1, 2, 3]
    assert np.unique(found.tests[0].queries.labels).tolist() == [4, 5]
    assert found.train.super_labels is None
    assert "super-classes" in found.notes[1]


def test_documents_list_every_layout():
    """docs/data-sets.md has the title of each, and the README the page."""
    docs = Path(__file__).parent.parent
    page = (docs / "docs" / "data-sets.md").read_text()
    for layouts in LAYOUTS.values():
        assert not [layout.title for layout in layouts if f"`{layout.title}`" not in page]
    assert "docs/data-sets.md" in (docs / "README.md").read_text()
