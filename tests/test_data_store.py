"""The store of decoded images: what it holds, who builds it, and what it refuses."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from dcml_tune.config import SettingError, TrialConfig
from dcml_tune.data import ImageList, ImageStore, evaluation_batches, load, open_or_build
from dcml_tune.data.images import UnreadableImageError

SIZES = [(40, 30), (30, 40), (33, 33), (24, 51), (500, 31), (20, 20), (24, 24)]
MODES = ["RGB", "L", "P", "RGBA", "RGB", "1", "RGB"]
SUFFIXES = [".jpg", ".jpg", ".png", ".png", ".webp", ".gif", ".bmp"]


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    """Seven images of many sizes, modes and formats."""
    root = tmp_path / "images"
    root.mkdir()
    for i, (size, mode, suffix) in enumerate(zip(SIZES, MODES, SUFFIXES, strict=True)):
        noise = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(root / f"{i}{suffix}")
    return ImageList(tuple(f"{i}{s}" for i, s in enumerate(SUFFIXES)), np.arange(7), root)


def build(
    images: ImageList, kind: Any = "full", directory: Path | None = None, **settings: Any
) -> ImageStore:
    directory = directory or images.root.parent / "stores"
    return open_or_build(images, directory, kind=kind, **{"sz_resize": 24, "sz_crop": 20, **settings})


def pil(images: ImageList, i: int) -> Image.Image:
    return Image.open(images.root / images.paths[i]).convert("RGB")


def test_full_holds_every_pixel(images: ImageList) -> None:
    """A full store holds what decoding gives, for every format and mode."""
    store = build(images)
    assert store.kept.tolist() == list(range(7))
    for i, view in enumerate(store.images(np.arange(7))):
        assert (view == np.asarray(pil(images, i))).all()
        assert (view == images.read(i)).all()


def test_small_resizes_shorter_side(images: ImageList) -> None:
    """A small store holds images as torchvision resizes them; those that are smaller stay as they are."""
    store = build(images, "small")
    for i in range(7):
        original = pil(images, i)
        wanted = T.Resize(24)(original) if min(original.size) > 24 else original
        assert (store.image(i) == np.asarray(wanted)).all()


def test_evaluation_equals_torchvision(images: ImageList) -> None:
    """An evaluation store holds exactly what torchvision's Resize and CenterCrop make of Pillow's images."""
    store = build(images, "evaluation")
    transform = T.Compose([T.Resize(24), T.CenterCrop(20)])
    assert store.array.shape == (7, 20, 20, 3)
    for i in range(7):
        assert (store.image(i) == np.asarray(transform(pil(images, i)))).all()


def test_emoji_store(tmp_path: Path) -> None:
    """The images of a zip are stored as those of a directory."""
    emoji = load(TrialConfig()).train.take([5, 900, 17])
    store = build(emoji, "evaluation", tmp_path, sz_resize=64, sz_crop=64)
    assert all((store.image(i) == emoji.read(i)).all() for i in range(3))


def test_views_cannot_be_written(images: ImageList) -> None:
    """Nobody can change the images of others."""
    store = build(images)
    with pytest.raises(ValueError, match="read-only"):
        store.image(0)[:] = 0


def test_store_is_opened_again(images: ImageList) -> None:
    """A store that is there is opened, and no image is read, so long as all look the same."""
    built = build(images)
    path = images.root / images.paths[0]
    state = path.stat()
    path.write_bytes(b"x" * state.st_size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert build(images).directory == built.directory


@pytest.mark.parametrize(
    "change",
    [{"kind": "small"}, {"kind": "evaluation"}, {"kind": "evaluation", "sz_crop": 22}, {"touch": True}],
)
def test_other_contents_other_store(images: ImageList, change: dict[str, Any]) -> None:
    """Another kind, size or image gives another store; what does not act on it gives the same."""
    first = build(images, sz_crop=18)
    assert build(images, sz_resize=30).key == first.key
    if change.pop("touch", False):
        os.utime(images.root / images.paths[3], ns=(5, 5))
    others = build(images, "evaluation") if change.get("sz_crop") else first
    assert build(images, **change).key not in (first.key, others.key)


def test_changed_image_is_decoded_anew(images: ImageList) -> None:
    """After an image is replaced, the store that is opened holds the new one."""
    build(images)
    Image.new("RGB", (9, 9), (1, 2, 3)).save(images.root / images.paths[6])
    assert (build(images).image(6) == (1, 2, 3)).all()


def damage(images: ImageList) -> None:
    """Empty the file of image 1, and cut off those of images 0 and 3 in their middle."""
    (images.root / images.paths[1]).write_bytes(b"")
    for i, share in ((0, 0.5), (3, 0.6)):
        path = images.root / images.paths[i]
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize("kind", ["full", "small", "evaluation"])
def test_unreadable_images_are_refused_or_left_out(images: ImageList, kind: str) -> None:
    """Empty and truncated files stop the build with their number and names, or are left out when asked to."""
    damage(images)
    with pytest.raises(UnreadableImageError, match="--skip-unreadable") as error:
        build(images, kind)
    assert "of 7 images" in str(error.value)
    assert images.name(1) in str(error.value)
    assert "\n" not in str(error.value)
    store = build(images, kind, skip_unreadable=True)
    assert store.kept.tolist() == [2, 4, 5, 6]
    assert len(store.left_out) == 3
    whole = build(images.take(store.kept), kind)
    assert all((store.image(i) == whole.image(i)).all() for i in range(4))
    assert store.damaged() == []
    with pytest.raises(UnreadableImageError, match="3 of 7 images"):
        build(images, kind)


def test_truncated_images_alone_are_counted(images: ImageList) -> None:
    """Files whose headers are sound are found out when their pixels are decoded, all of them."""
    damage(images)
    with pytest.raises(UnreadableImageError, match="2 of 6 images"):
        build(images.take([0, 2, 3, 4, 5, 6]), "evaluation")
    assert not list((images.root.parent / "stores").glob("*building*"))


def test_nothing_readable_is_an_error(images: ImageList) -> None:
    """A list of which nothing can be read is refused even when unreadable images may be left out."""
    damage(images)
    with pytest.raises(UnreadableImageError, match="1 of 1 images"):
        build(images.take([1]), skip_unreadable=True)
    with pytest.raises(UnreadableImageError, match="2 of 2 images"):
        build(images.take([0, 3]), skip_unreadable=True)


def test_full_disk_is_refused_before_it_is_filled(images: ImageList, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not fit is refused with need, free space and remedy; nothing is written."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 64 << 20))
    with pytest.raises(
        SettingError, match=r"stores: the image store needs 0\.1 MB and 67\.1 MB are free"
    ) as error:
        build(images)
    assert "--image-store small" in str(error.value)
    assert [path.suffix for path in (images.root.parent / "stores").iterdir()] in ([], [".lock"])


@pytest.mark.parametrize("file", ["pixels.npy", "index.npy", "meta.json"])
def test_damaged_store_is_built_anew(images: ImageList, file: str) -> None:
    """A store that was cut off is noticed when it is opened, and built anew."""
    store = build(images)
    path = store.directory / file
    path.write_bytes(path.read_bytes()[:-3])
    assert (build(images).image(0) == images.read(0)).all()


def test_changed_pixels_are_found(images: ImageList) -> None:
    """The full check finds the image that is not what was written."""
    store = build(images, "evaluation")
    with (store.directory / "pixels.npy").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\x00\x01")
    assert ImageStore(store.directory).damaged() == [6]


def _build_noting(images: ImageList, start: Any, answers: Any) -> None:
    """Build a store when the start is given; tell what it holds, and whether this process decoded it."""
    decoded: list[int] = []
    start.wait()
    store = build(
        images, "evaluation", sz_resize=96, sz_crop=96, progress=lambda done, _: decoded.append(done)
    )
    answers.put((len(store), int(store.array.astype(np.int64).sum()), bool(decoded)))


def test_two_processes_build_one_store(tmp_path: Path) -> None:
    """Of two processes that want a store at once one builds it, and both see the same."""
    (tmp_path / "images").mkdir()
    for i in range(60):
        noise = np.random.default_rng(i).integers(0, 256, (150, 150, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{i}.jpg")
    images = ImageList(tuple(f"{i}.jpg" for i in range(60)), np.zeros(60, np.int64), tmp_path / "images")
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(2), context.Queue()
    both = [context.Process(target=_build_noting, args=(images, start, answers)) for _ in range(2)]
    for process in both:
        process.start()
    (one, sum_one, built_one), (two, sum_two, built_two) = answers.get(timeout=60), answers.get(timeout=60)
    for process in both:
        process.join(timeout=60)
    assert (one, sum_one) == (two, sum_two)
    assert one == 60
    assert built_one != built_two


def test_leftovers_of_a_killed_builder_are_removed(images: ImageList) -> None:
    """What a builder that was killed left behind is removed by the next."""
    store = build(images)
    left = store.directory.with_name(f"{store.directory.name}.building-1")
    store.directory.rename(left)
    build(images)
    assert not left.exists()


def _first_pixels(store: ImageStore) -> int:
    return int(store.image(0).sum())


def test_store_travels_by_its_directory(images: ImageList) -> None:
    """Another process gets the directory of a store, not its pixels."""
    store = build(images)
    assert len(pickle.dumps(store)) < 1000
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_first_pixels, (store,)) == _first_pixels(store)


def test_nothing_is_unpickled(images: ImageList) -> None:
    """A store whose index holds Python objects is not loaded but built anew: unpickling can run code."""
    store = build(images)
    np.save(store.directory / "index.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        ImageStore(store.directory)
    assert len(build(images)) == 7


def test_progress_is_told(images: ImageList) -> None:
    """Progress ends at the number of images."""
    told: list[tuple[int, int]] = []
    build(images, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (7, 7)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("rows", "shared"), [([0, 1, 2, 3, 4, 5, 6], True), ([2, 3], True), ([5, 1, 1], False)]
)
def test_evaluation_batches(images: ImageList, rows: list[int], shared: bool) -> None:
    """Batches hold the rows that were asked for, channels_last; rows in a row are not copied."""
    store = build(images, "evaluation")
    batches = list(evaluation_batches(store, np.array(rows), 3))
    assert [len(batch) for batch in batches] == [3] * (len(rows) // 3) + [len(rows) % 3] * (len(rows) % 3 > 0)
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in batches if len(batch) > 1)
    found = torch.cat(batches).permute(0, 2, 3, 1).numpy()
    assert (found == store.array[rows]).all()
    assert np.shares_memory(batches[0].numpy(), store.array) == shared


def test_meta_tells_what_the_store_is(images: ImageList) -> None:
    """A store says of itself what it holds, for people who look into the directory."""
    store = build(images, "evaluation")
    meta = json.loads((store.directory / "meta.json").read_text())
    assert (meta["kind"], meta["images"], meta["sz_crop"]) == (store.kind, 7, 20)
    assert store.nbytes == meta["bytes"]
