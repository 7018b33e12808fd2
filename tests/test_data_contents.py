"""Images are known again by their content, and a file is read for that only if it may have changed."""

import os
import shutil

import numpy as np
import pytest
from changed_images import copied, list_of, moved, with_other_content
from PIL import Image

from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import Identity, contents, load, open_or_build
from dcml_tune.utils.files import read_checksummed, write_checksummed


@pytest.fixture
def images(tmp_path):
    """A list of six images in a directory."""
    root = tmp_path / "images"
    root.mkdir()
    for number in range(6):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(root / f"{number}.png")
    return list_of(root)


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are read."""
    found, real = [], contents._hash
    monkeypatch.setattr(contents, "_hash", lambda path: found.append(os.path.basename(path)) or real(path))
    return found


def known(images, stores):
    return contents.contents(images, stores)


def touch(images):
    os.utime(images.root / images.paths[2], ns=(5, 5))
    return images


def added(images):
    shutil.copy(images.root / images.paths[0], images.root / "6.png")
    return list_of(images.root)


def swapped(images):
    one, two = (images.root / images.paths[i] for i in (0, 1))
    one.rename(images.root / "x")
    two.rename(one)
    (images.root / "x").rename(two)
    return images


@pytest.mark.parametrize(
    ("change", "same", "read"),
    [
        (lambda images: images, True, 0),
        (touch, True, 1),
        (moved, True, 0),
        (copied, True, 6),
        (with_other_content, False, 1),
        (swapped, False, 2),
        (added, False, 7),
    ],
)
def test_images_are_the_same_by_content(images, tmp_path, reads, change, same, read):
    """Wherever they lie; of what looks as it did nothing is read."""
    before = known(images, tmp_path / "stores")
    assert sorted(reads) == list(images.paths)
    reads.clear()
    now = change(images)
    assert (known(now, tmp_path / "stores") == before) == same
    assert len(reads) == read
    reads.clear()
    assert known(now, tmp_path / "stores") == known(now, tmp_path / "others")
    assert len(reads) == len(now)  # by the other directory, which knows nothing


def test_a_store_is_used_again_for_images_that_were_moved_and_touched(images, tmp_path):
    """It is neither built nor decoded anew."""
    how = {"kind": "full", "sz_resize": 8, "sz_crop": 8}
    store = open_or_build(images, tmp_path / "stores", **how)
    now = touch(copied(moved(images)))
    told = []
    again = open_or_build(now, tmp_path / "stores", **how, progress=lambda *done: told.append(done))
    assert (again.key, told) == (store.key, [])


def test_what_cannot_be_read_is_known_by_its_size(images, tmp_path):
    """It is no error here: which images may be left out is decided where they are decoded."""
    (images.root / "0.png").unlink()
    (images.root / "0.png").symlink_to("/proc/self/mem")
    (images.root / "1.png").unlink()
    os.remove(images.root / "2.png")
    os.mkfifo(images.root / "2.png")
    found = known(images, tmp_path / "stores")
    assert [text.split("|")[2] for text in found[:3]] == ["", "", ""]
    assert all(text.split("|")[2] for text in found[3:])


@pytest.mark.parametrize("damage", ["text", "short", "deep", "types", "gone"])
def test_a_damaged_note_costs_time_alone(images, tmp_path, reads, damage):
    """What was known is found out again."""
    before = known(images, tmp_path / "stores")
    (file,) = (tmp_path / "stores" / "contents").glob("*.json")
    facts = read_checksummed(file)
    if damage in ("text", "deep"):
        file.write_text("x" if damage == "text" else "[" * 100_000)
    elif damage == "gone":
        shutil.rmtree(tmp_path / "stores")
    else:
        write_checksummed(file, {**facts, "sizes": facts["sizes"][:3] if damage == "short" else ["1"] * 6})
    reads.clear()
    assert known(images, tmp_path / "stores") == before
    assert len(reads) == 6


def test_where_nothing_can_be_written_images_are_known_all_the_same(images, tmp_path):
    """Here a file is in the place of the directory."""
    (tmp_path / "stores").write_text("")
    assert known(images, tmp_path / "stores") == known(images, tmp_path / "others")


def test_test_images_are_not_opened_to_know_a_data_set(folder, tmp_path, reads):
    """Names, classes and sizes of them are known without that; trials that are compared on them open them anyway."""
    dataset = load(TrialConfig(dataset="folder", dataset_dir=str(folder), train_classes=16))
    held_out = Identity.of(dataset, tmp_path, opens_test=False)
    assert len(reads) == len(dataset.train)
    assert contents.contents(dataset.tests[0].queries, tmp_path, opens=False) is None
    paper = Identity.of(dataset, tmp_path, opens_test=True)
    assert len(reads) == len(dataset.train) + len(dataset.tests[0].queries)
    assert (held_out.test, held_out.test_sizes) == (paper.test, paper.test_sizes)
    assert held_out.compared != paper.compared
    assert contents.contents(dataset.tests[0].queries, tmp_path, opens=False) is not None


def test_the_embedded_images_are_known_by_the_checksums_of_their_archive(tmp_path):
    """Nothing is noted anywhere."""
    dataset = load(TrialConfig())
    assert Identity.of(dataset, tmp_path, opens_test=False).compared
    assert list(tmp_path.iterdir()) == []
