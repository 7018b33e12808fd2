"""The store of decoded images: what it holds, who builds it, and what it refuses."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import ImageList, ImageStore, load, open_or_build
from dcml_tune.data.image_list import UnreadableImageError
from dcml_tune.data.image_store import builder, headers, needed_bytes, room
from dcml_tune.data.loader import evaluation_batches
from dcml_tune.utils.files import read_checksummed, write_checksummed

SIZES = [(40, 30), (30, 40), (33, 33), (24, 51), (500, 31), (20, 20), (24, 24)]
MODES = ["RGB", "L", "P", "RGBA", "RGB", "1", "RGB"]
SUFFIXES = [".jpg", ".jpg", ".png", ".png", ".webp", ".gif", ".bmp"]


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    """Seven images of many sizes, modes and formats."""
    return drawn(tmp_path / "images")


def drawn(root: Path) -> ImageList:
    """The images of the fixture, in a directory that is made."""
    root.mkdir()
    for i, (size, mode, suffix) in enumerate(zip(SIZES, MODES, SUFFIXES, strict=True)):
        noise = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(root / f"{i}{suffix}")
    return ImageList(tuple(f"{i}{s}" for i, s in enumerate(SUFFIXES)), np.arange(7), root)


def build(images: ImageList, kind: Any = "full", directory: Path | None = None, **settings: Any) -> ImageStore:
    directory = directory or images.root.parent / "stores"
    return open_or_build(images, directory, kind=kind, **{"sz_resize": 24, "sz_crop": 20, **settings})


def is_whole(store: ImageStore, images: ImageList) -> bool:
    """Whether a full store holds all images."""
    return len(store) == len(images) and all((store.image(i) == images.read(i)).all() for i in range(len(images)))


def left_in(stores: Path) -> list[str]:
    """What there is beside stores and locks."""
    return [path.name for path in stores.glob("*") if re.search(r"\.(?!lock$)", path.name)]


def flip(path: Path, *positions: int) -> None:
    """Change bytes of a file without a trace in its size and its time of modification."""
    stat = path.stat()
    with path.open("r+b") as file:
        for position in positions:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


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
    from torchvision import transforms as T  # here and below: the child processes of this module need it not

    store = build(images, "small")
    for i in range(7):
        original = pil(images, i)
        wanted = T.Resize(24)(original) if min(original.size) > 24 else original
        assert (store.image(i) == np.asarray(wanted)).all()


def test_evaluation_equals_torchvision(images: ImageList) -> None:
    """An evaluation store holds exactly what torchvision's Resize and CenterCrop make of Pillow's images."""
    from torchvision import transforms as T

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
    [{"kind": "small"}, {"kind": "evaluation"}, {"kind": "evaluation", "sz_crop": 22}, {"grown": True}],
)
def test_other_contents_other_store(images: ImageList, change: dict[str, Any]) -> None:
    """Another kind, size or image gives another store; what does not act on it gives the same."""
    first = build(images, sz_crop=18)
    assert build(images, sz_resize=30).key == first.key
    os.utime(images.root / images.paths[2], ns=(5, 5))
    assert build(images).key == first.key
    if change.pop("grown", False):
        with (images.root / images.paths[3]).open("ab") as file:
            file.write(b"\0")
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
    with pytest.raises(SettingError, match=r"stores: the image store needs 0\.1 MB and 67\.1 MB are free") as error:
        build(images)
    assert "--image-store small" in str(error.value)
    left = {path.name for path in (images.root.parent / "stores").iterdir() if path.suffix != ".lock"}
    assert left <= {"contents"}


@pytest.mark.parametrize("file", ["pixels.npy", "index.npy", "meta.json"])
@pytest.mark.parametrize("length", [-3, 0, None])
def test_damaged_store_is_built_anew(images: ImageList, file: str, length: int | None) -> None:
    """A store of which a file was cut off, emptied or removed is noticed when it is opened, and built anew."""
    path = build(images).directory / file
    if length is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:length])
    assert is_whole(build(images), images)


def test_every_byte_of_index_and_description_counts(images: ImageList) -> None:
    """Whatever byte of index or description is changed, the store is refused; undone, it is accepted."""
    directory = build(images).directory
    for path in (directory / "index.npy", directory / "meta.json"):
        for position in range(path.stat().st_size):
            flip(path, position)
            with pytest.raises((ValueError, KeyError)):
                ImageStore(directory)
            flip(path, position)
    assert is_whole(ImageStore(directory), images)


@pytest.mark.parametrize("file", ["index.npy", "meta.json"])
def test_tampered_store_is_built_anew(images: ImageList, file: str, caplog: pytest.LogCaptureFixture) -> None:
    """A store whose index or description was changed is built anew even without verify, with one warning."""
    path = build(images).directory / file
    flip(path, path.stat().st_size // 2)
    assert is_whole(build(images), images)
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert "is damaged" in caplog.text


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("full", {"version": 0}),
        ("full", {"kind": "small"}),
        ("full", {"key": "full-0123456789abcdef"}),
        ("small", {"sz_resize": 25}),
        ("evaluation", {"sz_crop": 19}),
        ("evaluation", {"offset": None}),
        ("evaluation", {"shape": [7, 20, 20, 6]}),
    ],
)
def test_store_of_something_else_is_built_anew(images: ImageList, kind: str, change: dict[str, Any]) -> None:
    """A description that is sound but not of what was asked for leads to a new store."""
    store = build(images, kind)
    facts = read_checksummed(store.directory / "meta.json")
    write_checksummed(store.directory / "meta.json", {**facts, **change})
    again = build(images, kind)
    assert read_checksummed(again.directory / "meta.json") == facts
    assert (again.image(3) == store.image(3)).all()


def test_header_of_pixels_is_not_believed(images: ImageList) -> None:
    """The header of the pixels has no checksum, and whatever it says, the same images are seen."""
    store = build(images, "evaluation")
    before = store.array.copy()
    header = (store.directory / "pixels.npy").read_bytes()[:128]
    flip(store.directory / "pixels.npy", *range(len(header)))
    assert (build(images, "evaluation", verify=True).array == before).all()


def pixel_bytes(store: ImageStore, *rows: int) -> list[int]:
    """A position in the file of pixels within each of some rows."""
    offset = read_checksummed(store.directory / "meta.json")["offset"]
    starts = np.load(store.directory / "index.npy")[:, 1]
    return [offset + int(starts[row]) * (1200 if store.kind == "evaluation" else 1) + 5 for row in rows]


@pytest.mark.parametrize("kind", ["full", "small", "evaluation"])
def test_flipped_byte_is_found_named_and_mended(images: ImageList, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A byte that differs though size and time are the same is found by verify; its image is named, the store mended."""
    store = build(images, kind)
    wanted = store.image(6).copy()
    flip(store.directory / "pixels.npy", *pixel_bytes(store, 6))
    assert store.damaged() == [6]
    assert (build(images, kind).image(6) != wanted).any(), "nothing is read without verify"
    assert not caplog.records
    mended = build(images, kind, verify=True)
    assert (mended.image(6) == wanted).all()
    assert mended.damaged() == []
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"1 of 7 images differ from their checksums: {images.name(6)})" in warning


def test_three_damaged_images_are_named(images: ImageList, caplog: pytest.LogCaptureFixture) -> None:
    """Of many damaged images three are named, and the others counted."""
    store = build(images, "evaluation")
    flip(store.directory / "pixels.npy", *pixel_bytes(store, 0, 1, 3, 4, 6))
    build(images, "evaluation", verify=True)
    names = ", ".join(images.name(i) for i in (0, 1, 3))
    assert f"5 of 7 images differ from their checksums: {names} and 2 more)" in caplog.text


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A list that grows each time the pixels of a store are read against their checksums."""
    found: list[Path] = []
    read = ImageStore.damaged
    monkeypatch.setattr(ImageStore, "damaged", lambda store: (found.append(store.directory), read(store))[1])
    return found


def test_pixels_are_read_once_a_state(images: ImageList, readings: list[Path]) -> None:
    """Nothing is read of a store that was just built; what was touched or copied is read once, and is the same store."""
    store = build(images, verify=True)
    build(images, verify=True)
    assert len(readings) == 0
    (store.directory / "pixels.npy").touch()
    for _ in range(3):
        build(images, verify=True)
    assert len(readings) == 1
    shutil.copytree(store.directory, images.root / "elsewhere")  # with all its times of modification
    shutil.rmtree(store.directory)
    (images.root / "elsewhere").rename(store.directory)
    decoded: list[int] = []
    for _ in range(3):
        build(images, verify=True, progress=lambda done, _: decoded.append(done))
    assert len(readings) == 2
    assert not decoded
    (store.directory / "verified.json").write_text("{")
    for _ in range(3):
        build(images, verify=True)
    assert len(readings) == 3


def test_change_while_pixels_are_read_is_not_overlooked(images: ImageList, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is changed after it was read, but before that was noted, is found the next time."""
    pixels = build(images).directory / "pixels.npy"
    pixels.touch()
    damaged = ImageStore.damaged
    monkeypatch.setattr(ImageStore, "damaged", lambda store: (damaged(store), flip(pixels, 200))[0])
    build(images, verify=True)
    monkeypatch.undo()
    assert build(images, verify=True).damaged() == []


def test_old_store_serves_until_the_new_one_is_there(images: ImageList) -> None:
    """While a damaged store is built anew it can be opened, and those who have it open keep it after that."""
    old = build(images)
    flip(old.directory / "pixels.npy", *pixel_bytes(old, 2))
    before = old.image(2).copy()
    seen: list[bool] = []
    new = build(images, verify=True, progress=lambda *_: seen.append(len(ImageStore(old.directory)) == 7))
    assert seen == [True]
    assert (old.image(2) == before).all()
    assert (new.image(2) != before).any()
    assert left_in(new.directory.parent) == []


def test_damaged_store_outlives_a_build_that_fails(images: ImageList, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a damaged store cannot be built anew, it stays, and nothing is left beside it."""
    store = build(images)
    flip(store.directory / "pixels.npy", *pixel_bytes(store, 2))
    decode = ImageList.decode
    monkeypatch.setattr(ImageList, "decode", lambda images, i: decode(images, i if i != 4 else 99))
    with pytest.raises(UnreadableImageError, match="1 of 7 images"):
        build(images, verify=True)
    assert len(ImageStore(store.directory)) == 7
    assert left_in(store.directory.parent) == []


def test_images_that_change_while_they_are_stored_are_refused(images: ImageList) -> None:
    """A store of images that were replaced while they were decoded does not get the name of either state."""
    path = images.root / images.paths[3]
    with pytest.raises(SettingError, match="changed while they were stored"):
        build(images, progress=lambda *_: path.open("ab").write(b"\0"))
    assert [path.name for path in (images.root.parent / "stores").iterdir() if path.is_dir()] == ["contents"]
    assert is_whole(build(images), images)


def scenario(name: str, *arguments: object, through: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start a function of this module in a Python of its own."""
    command = [*through, sys.executable, __file__, name, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> str:
    """What a scenario printed, once it has succeeded."""
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return printed.strip()


def build_at_once(root: Path, own: Path, go: Path) -> None:
    """Say that this process is ready; build when all are; tell what the store holds, and whether it was built here."""
    images = ImageList(tuple(f"{i}.jpg" for i in range(60)), np.zeros(60, np.int64), root)
    decoded: list[int] = []
    own.touch()
    while not go.exists():
        time.sleep(0.001)
    store = build(images, "evaluation", sz_resize=96, sz_crop=96, progress=lambda done, _: decoded.append(done))
    print(len(store), store.damaged(), int(store.array.astype(np.int64).sum()), len(decoded))


def test_two_processes_build_one_store(tmp_path: Path) -> None:
    """Of two processes that want a store at once one builds it, and both get the same whole store."""
    (tmp_path / "images").mkdir()
    for i in range(60):
        noise = np.random.default_rng(i).integers(0, 256, (150, 150, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{i}.jpg")
    ready, go = [tmp_path / "ready-0", tmp_path / "ready-1"], tmp_path / "go"
    both = [scenario("build_at_once", tmp_path / "images", own, go) for own in ready]
    while not all(own.exists() for own in ready) and all(process.poll() is None for process in both):
        time.sleep(0.01)
    go.touch()
    one, two = (outcome(process).rsplit(" ", 1) for process in both)
    assert one[0] == two[0]
    assert one[0].startswith("60 [] ")
    assert sorted([one[1], two[1]]) == ["0", "1"]
    assert left_in(tmp_path / "stores") == []


def die() -> None:
    """End this process as `kill -9` and the system's lack of memory do."""
    os.kill(os.getpid(), signal.SIGKILL)


def _build_until(images: ImageList, moment: str) -> None:
    """Build a store and die at some moment."""
    decode, rename, describe = ImageList.decode, Path.rename, builder._describe
    if moment == "decoding":
        ImageList.decode = lambda images, i: die() if i == 4 else decode(images, i)  # type: ignore
    if moment == "before the description":
        builder._describe = lambda *_: die()  # type: ignore
    if moment == "before the name":
        builder._describe = lambda *all: (describe(*all), die())  # type: ignore
    if moment == "between the names":
        Path.rename = lambda path, to: die() if "building" in path.name else rename(path, to)  # type: ignore
    build(images, verify=True)


@pytest.mark.parametrize("moment", ["decoding", "before the description", "before the name", "between the names"])
@pytest.mark.parametrize("damaged", [False, True])
def test_killed_builder_leaves_nothing_that_is_taken_for_a_store(images: ImageList, moment: str, damaged: bool) -> None:
    """Whenever a builder is killed, the next one starts afresh, gets a whole store and removes what was left."""
    if damaged:
        store = build(images)
        flip(store.directory / "pixels.npy", *pixel_bytes(store, 2))
    child = multiprocessing.get_context("fork").Process(target=_build_until, args=(images, moment))
    child.start()
    child.join(timeout=60)
    assert child.exitcode == -signal.SIGKILL
    stores = images.root.parent / "stores"
    assert left_in(stores), "it died in the middle"
    # The old store is there until the new one has its name.
    assert any(".old-" in name for name in left_in(stores)) == (damaged and moment == "between the names")
    decoded: list[int] = []
    assert is_whole(build(images, verify=True, progress=lambda done, _: decoded.append(done)), images)
    assert decoded == [7]
    assert left_in(stores) == []


@pytest.fixture
def mounting(tmp_path: Path) -> Callable[[str], str]:
    """Runs a function of this module where it may mount file systems that nobody else sees."""
    namespace = ("unshare", "-m") if os.geteuid() == 0 else ("unshare", "-rm")
    trial = subprocess.run([*namespace, "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True, text=True)
    if trial.returncode:
        pytest.skip(f"no file system can be mounted here: {trial.stderr.strip()}")
    return lambda name: outcome(scenario(name, tmp_path, through=namespace))


@contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    """A file system in memory, for the time of the block."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def remount(directory: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", directory], check=True)


def assert_refused(images: ImageList, stores: Path, match: str, kind: str = "full") -> None:
    """Building is refused in one line, and only locks are left."""
    with pytest.raises(SettingError, match=match) as error:
        build(images, kind, stores, verify=True)
    assert "\n" not in str(error.value)
    assert str(stores) in str(error.value)
    assert left_in(stores) == []


def fill_disk(tmp_path: Path) -> None:
    """Build on disks that are too small, and that become full after the room was measured."""
    images, disk = drawn(tmp_path / "images"), tmp_path / "disk"
    disk.mkdir()
    reserve = room.RESERVE
    with mounted(disk, "size=32m"):
        assert_refused(images, disk, r"needs 0\.1 MB and 33\.\d MB are free there; free some space")
        # As if another process took the space after it was measured.
        remount(disk, "size=32k")
        room.RESERVE = -(1 << 30)
        assert_refused(images, disk, r"needs 0\.1 MB and 0\.0 MB are free there \(No space left on device\)")
        room.RESERVE = reserve
        remount(disk, "size=128m")
        store = build(images, "full", disk)
        assert is_whole(store, images)

        # With room for one store only, a damaged one makes way; with room for none, it stays.
        flip(store.directory / "pixels.npy", *pixel_bytes(store, 2))
        used = shutil.disk_usage(disk).used
        remount(disk, f"size={used + reserve - (1 << 20)}")
        assert_refused(images, disk, "free some space")
        assert len(ImageStore(store.directory)) == 7
        del store
        remount(disk, f"size={used + reserve + (16 << 10)}")
        assert is_whole(build(images, "full", disk, verify=True), images)


def run_out_of_files(tmp_path: Path) -> None:
    """Build on disks that have room for one more file, until there is room for all."""
    images, disk = drawn(tmp_path / "images"), tmp_path / "disk"
    disk.mkdir()
    built = False
    for files in range(1, 20):
        with mounted(disk, f"size=128m,nr_inodes={files}"):
            try:
                built = is_whole(build(images, "full", disk / "stores"), images)
            except SettingError:
                assert_refused(images, disk / "stores", r"\(No space left on device\)")
        if built:
            break
    print(built, files)


def write_protect(tmp_path: Path) -> None:
    """Build and verify on a disk that is read-only."""
    images, disk = drawn(tmp_path / "images"), tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "size=128m"):
        store = build(images, "full", disk)
        (store.directory / "verified.json").unlink()
        remount(disk, "ro")
        assert is_whole(build(images, "full", disk, verify=True), images), "a store that is whole can be used"
        assert_refused(images, disk, r"cannot be written there \(Read-only file system\)", "evaluation")
        with pytest.raises(SettingError, match="Read-only file system"):
            build(images, "full", disk / "deeper" / "still")
        remount(disk, "rw")
        flip(store.directory / "pixels.npy", *pixel_bytes(store, 2))
        remount(disk, "ro")
        assert_refused(images, disk, "Read-only file system")
        assert len(ImageStore(store.directory)) == 7
        remount(disk, "rw")
        assert is_whole(build(images, "full", disk, verify=True), images)
        assert len(build(images, "evaluation", disk)) == 7


def forbid(tmp_path: Path) -> None:
    """Build in directories that may not be written."""
    images, stores = drawn(tmp_path / "images"), tmp_path / "stores"
    build(images, "full", stores)
    stores.chmod(0o500)
    assert is_whole(build(images, "full", stores, verify=True), images)
    assert_refused(images, stores, r"cannot be written there \(Permission denied\)", "evaluation")
    assert_refused(images, stores / "below", "Permission denied", "evaluation")
    stores.chmod(0o700)
    assert len(build(images, "evaluation", stores)) == 7


def test_full_disk_is_refused_and_recovered_from(mounting: Callable[[str], str]) -> None:
    """On a disk that is full building is refused and nothing is left; when there is room again it succeeds."""
    mounting("fill_disk")


def test_disk_that_takes_no_more_files_is_refused(mounting: Callable[[str], str]) -> None:
    """Whichever file of a store finds no place, building is refused and nothing is left."""
    assert re.fullmatch(r"True \d+", mounting("run_out_of_files"))


def test_read_only_disk_is_refused_and_recovered_from(mounting: Callable[[str], str]) -> None:
    """On a read-only disk a whole store is used and another refused; once the disk can be written it is built."""
    mounting("write_protect")


def test_directory_without_permission_is_refused(tmp_path: Path) -> None:
    """Where this user may not write, a whole store is used and another refused."""
    powerless = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override") if os.geteuid() == 0 else ()
    outcome(scenario("forbid", tmp_path, through=powerless))


def test_file_in_the_place_of_the_directory_is_refused(images: ImageList) -> None:
    """A directory of stores that is a file, or below one, is refused in one line."""
    for place in (images.root / "0.jpg", images.root / "0.jpg" / "stores"):
        with pytest.raises(SettingError, match="cannot be written there"):
            build(images, directory=place)


@pytest.mark.parametrize("kind", ["full", "small", "evaluation"])
def test_need_is_what_is_written(images: ImageList, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The need that is told ahead is what is written; headers are read once for both, for evaluation not ahead."""
    opened: list[int] = []
    open_image = ImageList.open
    monkeypatch.setattr(ImageList, "open", lambda images, i: (opened.append(i), open_image(images, i))[1])
    stores = images.root.parent / "stores"
    headers.known_sizes.cache_clear()  # as in a new process
    need = needed_bytes(images, stores, kind=kind, sz_resize=24, sz_crop=20)
    assert sorted(opened) == ([] if kind == "evaluation" else list(range(7)))
    assert not stores.exists()
    store = build(images, kind)
    assert sorted(opened) == sorted(2 * list(range(7)))
    two_headers = 2 * 128
    assert need == sum((store.directory / name).stat().st_size for name in ("pixels.npy", "index.npy")) - two_headers
    assert needed_bytes(images, stores, kind=kind, sz_resize=24, sz_crop=20) == 0
    (store.directory / "meta.json").unlink()
    assert needed_bytes(images, stores, kind=kind, sz_resize=24, sz_crop=20) == need


def test_header_that_could_not_be_read_is_read_again(images: ImageList) -> None:
    """What is remembered of headers are sizes, not failures: an image that can be read later is found."""
    path = images.root / images.paths[3]
    state, whole = path.stat(), path.read_bytes()
    path.write_bytes(b"x" * len(whole))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(UnreadableImageError, match="1 of 7 images"):
        build(images)
    path.write_bytes(whole)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert is_whole(build(images), images)


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
    crc = zlib.crc32((store.directory / "index.npy").read_bytes())
    write_checksummed(
        store.directory / "meta.json", {**read_checksummed(store.directory / "meta.json"), "index_crc": crc}
    )
    with pytest.raises(ValueError, match="allow_pickle=False"):
        ImageStore(store.directory)
    assert len(build(images)) == 7


def test_progress_is_told(images: ImageList) -> None:
    """Progress ends at the number of images."""
    told: list[tuple[int, int]] = []
    build(images, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (7, 7)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("rows", "shared"), [([0, 1, 2, 3, 4, 5, 6], True), ([2, 3], True), ([5, 1, 1], False)])
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


if __name__ == "__main__":
    globals()[sys.argv[1]](*map(Path, sys.argv[2:]))
