"""Data sets, their splits, and what is held out."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import EvaluationSet, ImageList, hold_out, hold_out_rows, load, open_or_build
from dcml_tune.data.image_list import DataSet, UnreadableImageError
from dcml_tune.data.splits import nb_folds


def save(path: Path, *, size: tuple[int, int] = (12, 10), mode: str = "RGB", seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six classes: `a` with one image; `b` with a nested one; the rest with two."""
    for name in ["a/1.jpg", "b/1.png", "b/back/2.webp", *(f"{c}/{i}.JPG" for c in "cdef" for i in "12")]:
        save(tmp_path / name)
    for name in ["b/._1.png", "b/.hidden.png", ".cache/1.png", "b/.thumbs/1.png", "c/notes.txt", "loose.jpg"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    return tmp_path


def config(folder: Path, **settings: object) -> TrialConfig:
    return TrialConfig(**{"dataset": "folder", "dataset_dir": str(folder), **settings})


def labelled(per_class: list[int], supers: list[int] | None = None) -> ImageList:
    """A list of images that are on no disk."""
    labels = np.repeat(np.arange(len(per_class)), per_class)
    paths = tuple(f"{label}/{i}.jpg" for i, label in enumerate(labels))
    super_labels = None if supers is None else np.repeat(np.array(supers), per_class)
    return ImageList(paths, labels, Path("nowhere"), super_labels)


def test_emoji_halves_alternate() -> None:
    """Of 1,241 sorted emoji every second one trains; no class is on both sides, no image is lost."""
    emoji = load(TrialConfig())
    (test,) = emoji.tests
    assert (emoji.train.nb_classes, test.queries.nb_classes) == (621, 620)
    assert len(emoji.train) + len(test.queries) == 6653
    assert set(np.unique(emoji.train.labels)) == set(range(0, 1241, 2))
    assert test.ks == (1, 2, 4, 8)
    assert test.gallery is None
    folders = [path.split("/")[0] for path in emoji.train.paths]
    assert folders == [emoji.class_names[label] for label in emoji.train.labels]
    assert list(emoji.class_names) == sorted(emoji.class_names)
    assert "621 training classes" in emoji.counts()


def _sums(images: ImageList) -> list[int]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda i: int(images.read(i).sum()), range(len(images))))


def test_zip_is_read_by_threads_and_processes() -> None:
    """Images of a zip are the same in this process, in threads, and in forked processes that inherit it."""
    images = load(TrialConfig()).train.take(range(40))
    here = [int(images.read(i).sum()) for i in range(len(images))]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_sums, [images] * 4) == [here] * 4


def test_folder_lists_classes(folder: Path) -> None:
    """The first half of the sorted usable classes trains; hidden files are no images; the rest is named."""
    found = load(config(folder))
    assert found.class_names == ("b", "c", "d", "e", "f")
    assert found.train.paths == ("b/1.png", "b/back/2.webp", "c/1.JPG", "c/2.JPG", "d/1.JPG", "d/2.JPG")
    assert found.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.tests[0].queries.labels.tolist() == [3, 3, 4, 4]
    assert "left out 1 class with a single image: a" in found.notes
    assert sum("empty" in note or "loose.jpg" in note or ".txt" in note for note in found.notes) == 3


def test_folder_takes_train_classes(folder: Path) -> None:
    """`train_classes` says how many of the sorted classes train."""
    assert load(config(folder, train_classes=2)).train.nb_classes == 2


def test_listing_opens_no_file(folder: Path) -> None:
    """Test images that cannot be read are listed, and the training images are stored without them."""
    (folder / "f/1.JPG").write_bytes(b"")
    (folder / "f/2.JPG").unlink()
    (folder / "f/2.JPG").symlink_to("/proc/self/mem")  # Reading its first byte is an error, for root too.
    found = load(config(folder))
    assert "f/2.JPG" in found.tests[0].queries.paths
    assert found.fingerprint_by_time
    assert found.test_fingerprint
    store = open_or_build(found.train, folder / ".stores", kind="full", sz_resize=8, sz_crop=8)
    assert len(store) == len(found.train)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dataset": "foldr"}, ["foldr", "did you mean 'folder'"]),
        ({"dataset": "imagenet-22k"}, ["imagenet-22k", "emoji", "folder", "cub", "vid"]),
        ({"dataset": "carz"}, ["did you mean 'cars'"]),
        ({"dataset_dir": None}, ["dataset_dir", "--dataset-dir"]),
        ({"dataset_dir": "/no/such/place"}, ["/no/such/place", "does not exist"]),
        ({"dataset_dir": __file__}, ["is no directory"]),
        ({"strict": True}, ["1 classes", "(a)", "strict"]),
        ({"train_classes": 4}, ["train_classes=4", "2 to 3"]),
        ({"train_classes": 1}, ["train_classes=1", "2 to 3"]),
    ],
)
def test_errors_name_value_and_remedy(folder: Path, settings: dict[str, object], words: list[str]) -> None:
    """What cannot be loaded is refused in one line that says what to do."""
    with pytest.raises(SettingError) as error:
        load(config(folder, **settings))
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_empty_and_small_directories_are_refused(tmp_path: Path) -> None:
    """An empty directory, and one with too few classes, say so."""
    with pytest.raises(SettingError, match="is empty"):
        load(config(tmp_path))
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        save(tmp_path / name)
    with pytest.raises(SettingError, match="2 folders in it hold two images or more"):
        load(config(tmp_path))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "LA"])
def test_read_converts_to_rgb(tmp_path: Path, mode: str) -> None:
    """Grey, palette, alpha and other modes come out as Pillow's convert("RGB") has them."""
    path = tmp_path / ("x.gif" if mode == "P" else "x.tiff")
    save(path, mode=mode)
    read = ImageList((path.name,), np.zeros(1, np.int64), tmp_path).read(0)
    assert read.shape == (10, 12, 3)
    assert read.dtype == np.uint8
    assert (read == np.asarray(Image.open(path).convert("RGB"))).all()


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\nrubbish", b"\xff\xd8\xff\xe0 rubbish"])
def test_read_names_unreadable_file(tmp_path: Path, content: bytes) -> None:
    """A file that is no image is refused in one line with its name and the choice to leave it out."""
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"x\.png: cannot be decoded .*--skip-unreadable") as error:
        ImageList(("x.png",), np.zeros(1, np.int64), tmp_path).read(0)
    assert "\n" not in str(error.value)


def test_take_and_dense_labels() -> None:
    """Taking images takes labels and super-classes along; dense labels keep the order of the classes."""
    images = labelled([2, 1, 3], [5, 5, 9]).take([5, 0, 1])
    assert images.paths == ("2/5.jpg", "0/0.jpg", "0/1.jpg")
    assert images.labels.tolist() == [2, 0, 0]
    assert images.super_labels is not None
    assert images.super_labels.tolist() == [9, 5, 5]
    assert images.dense_labels().tolist() == [1, 0, 0]
    assert images.nb_classes == 2


@pytest.mark.parametrize(
    ("classes", "share", "held"), [(10, 0.2, 2), (10, 0.25, 2), (5, 0.9, 3), (4, 0.01, 2), (621, 0.2, 124)]
)
def test_hold_out_takes_whole_classes(classes: int, share: float, held: int) -> None:
    """A share of the classes is held out, two or more on either side; no class is on both; none is lost."""
    images = labelled([3] * classes)
    rows, validation = hold_out_rows(images, share=share, seed=4)
    assert validation is not None
    assert validation.gallery is None
    train, other = set(images.labels[rows]), set(images.labels[validation.queries])
    assert len(other) == held
    assert not train & other
    assert sorted([*rows, *validation.queries]) == list(range(len(images)))


def test_hold_out_is_seeded() -> None:
    """The same seed holds out the same classes, however many images they have; another seed others."""
    chosen = [
        set(images.labels[hold_out_rows(images, share=0.3, seed=seed)[0]])
        for images, seed in [(labelled([2] * 30), 1), (labelled([5] * 30), 1), (labelled([2] * 30), 2)]
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_hold_out_is_stratified_by_super_class() -> None:
    """Each super-class gives its share of classes, to within one."""
    supers = [0] * 40 + [1] * 20 + [2] * 15 + [3] * 5
    for seed in range(20):
        images = labelled([2] * 80, supers)
        _, validation = hold_out_rows(images, share=0.2, seed=seed)
        assert validation is not None
        classes = np.unique(images.labels[validation.queries])
        given = Counter(np.array(supers)[classes].tolist())
        assert len(classes) == 16
        assert all(abs(given[group] - 0.2 * supers.count(group)) <= 1 for group in range(4)), given


def test_hold_out_splits_query_and_gallery() -> None:
    """Where the test set has a gallery, each held-out class is split in half."""
    images = labelled([5] * 10)
    with_gallery = EvaluationSet("test", images, images, (1, 10))
    dataset = DataSet("x", tuple("0123456789"), images, (with_gallery,))
    train, validation = hold_out(dataset, share=0.2, seed=0)
    assert validation is not None
    assert validation.gallery is not None
    assert validation.ks == (1, 10)
    assert sorted(Counter(validation.queries.labels.tolist()).values()) == [2, 2]
    assert sorted(Counter(validation.gallery.labels.tolist()).values()) == [3, 3]
    assert not {*validation.queries.paths} & {*validation.gallery.paths}
    assert len(train) == 40


def test_hold_out_none_and_too_few() -> None:
    """Share 0 holds nothing out; with three classes a share is refused."""
    emoji = load(TrialConfig())
    assert hold_out(emoji, share=0, seed=0) == (emoji.train, None)
    with pytest.raises(SettingError, match=r"val_share=0\.2: 3 training classes are too few"):
        hold_out_rows(labelled([2] * 3), share=0.2, seed=0)


def test_folds_share_no_class() -> None:
    """All folds of a seed are of the same size and stratified; no two share a class; another is refused by name."""
    supers = [0] * 40 + [1] * 20 + [2] * 15 + [3] * 5
    images, seen = labelled([2] * 80, supers), set()
    for fold in range(nb_folds(80, 0.2)):
        _, validation = hold_out_rows(images, share=0.2, seed=3, fold=fold)
        assert validation is not None
        classes = set(images.labels[validation.queries].tolist())
        given = Counter(supers[number] for number in classes)
        assert len(classes) == 16
        assert not classes & seen
        assert all(abs(given[group] - 0.2 * supers.count(group)) <= 2 for group in range(4)), given
        seen |= classes
    assert len(seen) == 80
    with pytest.raises(SettingError, match=r"fold=5: 80 classes with 16 held out give folds 0 to 4"):
        hold_out_rows(images, share=0.2, seed=3, fold=5)
