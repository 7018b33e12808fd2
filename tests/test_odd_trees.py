"""A tree of odd files and links: what is listed, what is decoded to which pixels, what is left out or refused, and how it is said."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import raw_images as raw
import trees
from PIL import ExifTags, Image

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import inspect, load, open_or_build
from dcml_tune.data.__main__ import main as data_command
from dcml_tune.data.image_list import UnreadableImageError
from dcml_tune.data.image_store import unreadable
from dcml_tune.data.remains import matched, of_train, store_tests
from dcml_tune.search.__main__ import main as search_command
from dcml_tune.training.trial_data import TrialData

RED = (250, 20, 30)
WIDE = np.full((6, 10, 3), RED, np.uint8)
TALL = np.full((10, 6, 3), RED, np.uint8)
GREY = np.full((6, 10, 3), 128, np.uint8)
WHITE = np.full((6, 10, 3), 255, np.uint8)
IMAGE = Image.fromarray(WIDE)
GRAY16 = np.full((6, 10), 128 * 257, np.uint16)
NOT_LISTED = "not listed"


def put(content: bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(content))


def void(_: object) -> None:
    """Nothing."""


def save(form: str, image: Image.Image = IMAGE, **options: Any) -> Callable[[Path], None]:
    return lambda path: image.save(path, form, **options)


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def listen(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(before)


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[ExifTags.Base.Orientation] = orientation
    return made


def frames(form: str) -> Callable[[Path], None]:
    return save(
        form, save_all=True, append_images=[Image.new("RGB", (10, 6), "blue"), Image.new("RGB", (10, 6), "lime")]
    )


TORN = raw.png(WIDE, 2)[:50]
# Path, how it is made, and what becomes of it: its pixels, why it cannot be decoded, or NOT_LISTED.
ODD: list[tuple[str, Callable[[Path], None], np.ndarray | str]] = [
    ("odd/plain.png", put(raw.png(WIDE, 2)), WIDE),
    ("odd/CAPITALS.PNG", put(raw.png(WIDE, 2)), WIDE),
    ("odd/two words, ünïcode.png", put(raw.png(WIDE, 2)), WIDE),
    ("odd/per%20cent#?&.png", put(raw.png(WIDE, 2)), WIDE),
    ("odd/line\nbreak.png", put(raw.png(WIDE, 2)), WIDE),
    (os.fsdecode(b"odd/latin-1 \xe9.png"), put(raw.png(WIDE, 2)), WIDE),
    (f"odd/{'x' * 251}.png", put(raw.png(WIDE, 2)), WIDE),
    ("odd/a png by name.jpg", put(raw.png(WIDE, 2)), WIDE),
    ("odd/16-bit.png", put(raw.png(GRAY16, 0)), GREY),
    ("odd/16-bit.tif", put(raw.tiff(GRAY16)), GREY),
    ("odd/float.tiff", put(raw.tiff(np.full((6, 10), 0.5, np.float32))), GREY),
    ("odd/32-bit.tif", put(raw.tiff(np.full((6, 10), 128, np.int32))), GREY),
    ("odd/16-bit.pgm", put(b"P5 10 6 65535\n" + b"\x80\x80" * 60), GREY),
    ("odd/turned.png", save("PNG", exif=exif(6)), TALL),
    ("odd/turned.tif", save("TIFF", exif=exif(8)), TALL),
    ("odd/turned.webp", save("WEBP", lossless=True, exif=exif(5)), TALL),
    ("odd/cmyk.tif", save("TIFF", IMAGE.convert("CMYK")), WIDE),
    ("odd/palette.gif", save("GIF"), WIDE),
    ("odd/grey.bmp", save("BMP", Image.fromarray(GREY).convert("L")), GREY),
    ("odd/transparent.png", save("PNG", Image.new("RGBA", (10, 6), (*RED, 0))), WHITE),
    ("odd/transparent.webp", save("WEBP", Image.new("RGBA", (10, 6), (*RED, 0)), lossless=True), WHITE),
    ("odd/opaque.png", save("PNG", Image.new("RGBA", (10, 6), (*RED, 255))), WIDE),
    ("odd/frames.gif", frames("GIF"), WIDE),
    ("odd/frames.png", frames("PNG"), WIDE),
    ("odd/pages.tif", frames("TIFF"), WIDE),
    ("odd/photo.qoi", save("QOI"), WIDE),
    ("odd/photo.tga", save("TGA"), WIDE),
    ("odd/photo.jp2", save("JPEG2000"), WIDE),
    ("odd/below/and deeper/photo.ppm", save("PPM"), WIDE),
    ("odd/link.png", link("plain.png"), WIDE),
    ("odd/chain.png", link("link.png"), WIDE),
    ("odd/link out.png", link("../../elsewhere/photo.png"), WIDE),
    ("odd/linked folder", link("../../elsewhere/folder"), NOT_LISTED),
    ("odd/linked folder/inside.png", void, WIDE),
    ("odd/linked folder/up", void, NOT_LISTED),
    ("odd/linked folder once more", link("../../elsewhere/folder"), NOT_LISTED),
    ("odd/circle", link(".."), NOT_LISTED),
    ("odd/another class", link("../a"), NOT_LISTED),
    ("odd/link to itself", link("link to itself"), NOT_LISTED),
    ("odd/link to nothing", link("gone"), NOT_LISTED),
    ("odd/link to itself.png", link("link to itself.png"), "Too many levels of symbolic links"),
    ("odd/link to nothing.png", link("gone.png"), "No such file or directory"),
    ("odd/fifo.png", os.mkfifo, "is a FIFO, not a regular file"),
    ("odd/fifo", os.mkfifo, NOT_LISTED),
    ("odd/socket.jpg", listen, "is a socket, not a regular file"),
    ("odd/zero.png", link("/dev/zero"), "is a device, not a regular file"),
    ("odd/memory.png", link("/proc/self/mem"), "no image in a format that is read|Input/output error|cannot"),
    ("odd/folder.png", lambda path: path.mkdir(), NOT_LISTED),
    ("odd/folder.png/inside.png", put(raw.png(WIDE, 2)), WIDE),
    ("odd/empty.png", put(b""), "no image in a format that is read"),
    ("odd/text.jpg", put(b"text\n" * 100), "no image in a format that is read"),
    ("odd/torn.png", put(TORN), "."),
    ("odd/postscript.jpg", put(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"), "no image in a format"),
    ("odd/drawing.eps", put(b"%!PS-Adobe-3.0 EPSF-3.0\n"), NOT_LISTED),
    ("odd/notes.txt", put(b"notes"), NOT_LISTED),
    ("odd/.hidden.png", put(raw.png(WIDE, 2)), NOT_LISTED),
    ("odd/._plain.png", put(b"\0\5\26\7"), NOT_LISTED),
    ("loose.png", put(raw.png(WIDE, 2)), NOT_LISTED),
    ("loop", link("loop"), NOT_LISTED),
    ("gone", link("nowhere"), NOT_LISTED),
    ("again", link("a"), NOT_LISTED),
    ("up", link("."), NOT_LISTED),
]  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Six plain classes, one of them a link, and what is odd."""
    root, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    for place in (*(root / name for name in "abcde"), elsewhere / "folder", elsewhere / "linked class"):
        place.mkdir(parents=True)
        for number in range(3):
            (place / f"{number}.png").write_bytes(raw.png(WIDE, 2))
    (root / "linked class").symlink_to(elsewhere / "linked class")
    for number in range(3):
        (elsewhere / "folder" / f"{number}.png").unlink()
    (elsewhere / "folder" / "inside.png").write_bytes(raw.png(WIDE, 2))
    (elsewhere / "folder" / "up").symlink_to(root)
    (elsewhere / "photo.png").write_bytes(raw.png(WIDE, 2))
    for path, make, _ in ODD:
        if make is not void:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            make(root / path)
    return root


def config(root: Path, **settings: object) -> TrialConfig:
    return TrialConfig(dataset="folder", dataset_dir=str(root), sz_resize=8, sz_crop=8, **settings)


@pytest.mark.timeout(60)
def test_each_has_its_outcome(tree: Path, tmp_path: Path) -> None:
    """Of forty and more files and links: listed or not, decoded to these pixels or not, in list, store and inspection."""
    assert len(ODD) > 40
    dataset = load(config(tree))
    assert dataset.class_names == ("a", "b", "c", "d", "e", "linked class", "odd")
    images = next(test.queries for test in dataset.tests)
    images = images.take([i for i, path in enumerate(images.paths) if path.startswith("odd/")])
    listed = {path: outcome for path, _, outcome in ODD if isinstance(outcome, np.ndarray) or outcome != NOT_LISTED}
    assert set(images.paths) == set(listed)
    store = open_or_build(images, tmp_path / "stores", kind="full", sz_resize=8, sz_crop=8, skip_unreadable=True)
    stored = {images.paths[i]: store.image(row) for row, i in enumerate(store.kept.tolist())}
    for i, path in enumerate(images.paths):
        wanted = listed[path]
        if isinstance(wanted, np.ndarray):
            assert stored[path].tolist() == wanted.tolist(), path
            assert images.read(i).tolist() == wanted.tolist(), path
        else:
            assert path not in stored
            with pytest.raises(UnreadableImageError, match=rf"\(({wanted})"):
                images.read(i)
    seen = inspect(images)
    assert seen.kept.tolist() == store.kept.tolist()
    assert set(seen.left_out) == set(store.left_out)
    assert seen.departures == store.departures == {"scaled": 5, "rotated": 3, "alpha": 2, "converted": 1, "frames": 3}
    with pytest.raises(UnreadableImageError, match=r"images cannot be decoded: .*--skip-unreadable"):
        open_or_build(images, tmp_path / "other", kind="evaluation", sz_resize=8, sz_crop=8)


def test_what_is_left_out_is_named(tree: Path) -> None:
    """A line for each kind."""
    notes = "\n".join(load(config(tree)).notes)
    for line in (
        "left out 1 images that lie in no class folder: loose.png",
        "links to folders that are listed already: again, odd/another class, odd/circle, odd/linked folder once more, odd/linked "
        "folder/up, up",
        "left out 4 broken or circular links: gone, loop, odd/link to itself, odd/link to nothing",
        "files have no suffix of an image format: .eps, .txt, no suffix",
    ):
        assert line in notes, notes


def grown(root: Path, classes: dict[str, list[str]]) -> Path:
    """Folder -> names of images in it."""
    for folder, names in classes.items():
        for name in names:
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw.png(WIDE, 2))
    return root


def sides(root: Path, **settings: object) -> tuple[set[str], set[str], str]:
    """Names of the classes that train, of those that test, and the notes."""
    found = load(config(root, **settings))
    train, test = (
        {found.class_names[label] for label in np.unique(images.labels)}
        for images in (found.train, found.tests[0].queries)
    )
    return train, test, "\n".join(found.notes)


TWO = ["1.png", "2.png"]


def test_names_cannot_steer_a_terminal(tmp_path: Path) -> None:
    """Control characters, line ends and bytes of other encodings are shown escaped wherever an image or a class is named."""
    bad = os.fsdecode(b"\x1b[31mred\n\xe9")
    grown(tmp_path, {name: [f"{bad}{number}.png" for number in range(3)] for name in ("a", "b", "c", "d", bad)})
    grown(tmp_path, {f"single {bad}": ["1.png"], "": [f"loose {bad}.png"]})
    (tmp_path / f"empty {bad}").mkdir()
    (tmp_path / f"gone {bad}").symlink_to("nowhere")
    for folder in ("a", "d"):
        (tmp_path / folder / f"{bad}0.png").write_bytes(b"")
    found = load(config(tmp_path))
    seen = inspect(found.train)
    for text in (
        *found.notes,
        *seen.left_out,
        str(unreadable(seen.left_out, 9)),
        *of_train(config(tmp_path), found, seen).lines,
    ):
        assert text.isprintable(), repr(text)


def test_a_class_disjoint_split_is_taken_as_it_is(tmp_path: Path) -> None:
    """Classes of train/ and valid/ train, those of test/ test; --train-classes contradicts it."""
    folders = ["Train/a", "Train/c", "valid/e", "TEST/b", "TEST/d"]
    grown(tmp_path, dict.fromkeys(folders, TWO))
    train, test, notes = sides(tmp_path)
    assert (train, test) == ({"a", "c", "e"}, {"b", "d"})
    assert "the split of the directory is taken: the classes of TEST/ test, the others train" in notes
    with pytest.raises(SettingError, match=r"train_classes=2: TEST/, Train/, valid/ .* leave --train-classes out"):
        load(config(tmp_path, train_classes=2))
    grown(tmp_path, {"bus": TWO})
    assert "split" not in sides(tmp_path)[2], "with another folder they are classes"


def test_without_test_the_classes_of_val_test(tmp_path: Path) -> None:
    """If none of them trains."""
    grown(tmp_path, {f"{folder}": TWO for folder in ("train/a", "train/c", "val/b", "val/d")})
    assert sides(tmp_path)[:2] == ({"a", "c"}, {"b", "d"})


def test_a_split_by_image_is_merged_by_class(tmp_path: Path) -> None:
    """Classes that test must be new; then --train-classes acts as ever, and a class may have one image a side."""
    grown(tmp_path, {f"{side}/{name}": ["1.png"] for side in ("train", "val", "test") for name in "abcd"})
    train, test, notes = sides(tmp_path)
    assert (train, test) == ({"a", "b"}, {"c", "d"})
    assert "test/, train/, val/: a split by image is merged by class" in notes
    assert len(load(config(tmp_path)).train) == 6
    grown(tmp_path, {"train/e": TWO})
    assert sides(tmp_path, train_classes=3)[0] == {"a", "b", "c"}


def test_train_alone_is_no_class(tmp_path: Path) -> None:
    """An export that has nothing else."""
    grown(tmp_path, {f"train/{name}": TWO for name in "abcd"})
    assert sides(tmp_path)[:2] == ({"a", "b"}, {"c", "d"})


def test_a_split_without_classes_is_refused(tmp_path: Path) -> None:
    """With what to do."""
    grown(tmp_path, {"train": TWO, "test": TWO})
    with pytest.raises(SettingError, match=r"test/, train/ hold images and no class folders; .*metadata\.csv"):
        load(config(tmp_path))


def test_a_split_with_one_class_is_refused(tmp_path: Path) -> None:
    """On either side."""
    grown(tmp_path, dict.fromkeys(("train/a", "train/b", "train/c", "test/d"), TWO))
    with pytest.raises(SettingError, match=r"3 train and 1 test; at least two are needed"):
        load(config(tmp_path))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("split", [False, True])
def test_lists_of_hugging_face(suffix: str, split: bool, tmp_path: Path) -> None:
    """Classes are those of the column `label`, for text and numbers, with a byte-order mark or without."""
    for side, classes in ({"train": "abc", "test": "de"} if split else {"": "abcde"}).items():
        rows = [
            {"file_name": f"x/{name}{i}.png", "label": name, "text": 'a "photo", of\na thing'}
            for name in classes
            for i in (1, 2)
        ]
        grown(tmp_path, {side: [row["file_name"] for row in rows] + ["unnamed.png"]})
        lines = [json.dumps(row) for row in rows]
        if suffix == "csv":
            quoted = [
                f'{row["file_name"]},"{row["text"].replace(chr(34), 2 * chr(34))}",{row["label"]}' for row in rows
            ]
            lines = ["file_name,text,label", *quoted]
        (tmp_path / side / f"metadata.{suffix}").write_text(
            "\ufeff" + "\n".join(lines) if split else "\n".join(lines) + "\n\n"
        )
    train, test, notes = sides(tmp_path)
    assert (train, test) == ({*"abc"}, {*"de"})
    assert f"metadata.{suffix}" in notes
    assert f"left out {1 + split} images that no list names" in notes
    assert ("the split of the directory is taken" in notes) == split


def test_a_list_without_labels_is_not_used(tmp_path: Path) -> None:
    """Folders are classes then, and a line says it."""
    grown(tmp_path, dict.fromkeys("abcd", TWO))
    (tmp_path / "metadata.csv").write_text("file_name,text\na/1.png,nice\n")
    assert "metadata.csv has no column `label` and is not used" in sides(tmp_path)[2]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metadata.csv", "file_name,label\na/1.png,\n", "line 2: must name"),
        ("metadata.csv", "file_name,label\na/1.png,x\n../out.png,y\n", "line 3: must name an image below"),
        ("metadata.csv", "file_name,label\n/etc/passwd,y\n", "line 2: must name an image below"),
        ("metadata.csv", "path,label\na/1.png,x\n", "line 2: must name"),
        ("metadata.csv", "file_name,label\na/1.png,x\na/1.png,y\n", "line 3: gives a/1.png a second class"),
        ("metadata.jsonl", '{"file_name": "a/1.png", "label": 1}\n[1]\n', "line 2: is not a JSON object"),
        ("metadata.jsonl", '{"file_name": "a/1.png", "label": [1]}\n', "line 1: must name"),
        ("metadata.jsonl", "[" * 100_000, "line 1: is not a JSON object"),
        ("metadata.csv", "file_name,label\n\0\n", "metadata.csv"),
    ],
)  # fmt: skip
def test_a_bad_list_is_refused(name: str, text: str, said: str, tmp_path: Path) -> None:
    """In one line that names the file and the line."""
    grown(tmp_path, dict.fromkeys("abcd", TWO))
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingError, match=said) as error:
        load(config(tmp_path))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_a_list_that_is_no_file_is_refused(tmp_path: Path) -> None:
    """It does not hang."""
    grown(tmp_path, dict.fromkeys("abcd", TWO))
    os.mkfifo(tmp_path / "metadata.csv")
    with pytest.raises(SettingError, match=r"metadata\.csv: cannot be read \(is a FIFO"):
        load(config(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("~nobody-of-that-name/x", "cannot be read"),
        ("loop", "cannot be read|does not exist"),
        ("a\0b", "cannot be read"),
    ],
)
def test_a_directory_that_cannot_be_is_refused(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line."""
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(SettingError, match=said):
        load(config(Path(name)))


def test_folders_that_cannot_be_read_are_refused_or_left_out(tmp_path: Path) -> None:
    """By name, for a user without root's powers."""
    grown(tmp_path, dict.fromkeys(["a", "b", "c", "d", "d/inner"], TWO))
    (tmp_path / "d" / "inner").chmod(0)
    code = (
        "import sys; from dcml_tune.data import load; from dcml_tune.config import TrialConfig\n"
        "for skip in (True, False): print(*load(TrialConfig(dataset='folder', dataset_dir=sys.argv[1], skip_unreadable=skip)).notes)"
    )
    powerless = [
        "setpriv",
        "--bounding-set=-dac_override,-dac_read_search",
        "--inh-caps=-dac_override,-dac_read_search",
    ]
    words = [*(powerless if os.geteuid() == 0 else []), sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert "left out 1 folders that cannot be read: d/inner" in done.stdout, done.stderr
    assert (
        "1 folders cannot be read (d/inner); change their permissions, or leave them out with --skip-unreadable"
        in done.stderr
    )


def rows(root: Path) -> None:
    """Twelve classes of three images."""
    grown(root, {f"{number:02d}": ["0.png", "1.png", "2.png"] for number in range(12)})


def few(root: Path) -> None:
    """A split of which two classes test."""
    grown(root, {f"train/{number:02d}": ["0.png", "1.png", "2.png"] for number in range(10)})
    grown(root, {f"test/{name}": TWO for name in "xy"})


def damage(path: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damaged(root: Path) -> None:
        rows(root)
        (root / path).unlink()
        make(root / path)

    return damaged


def one_left(*folders: str, grow: Callable[[Path], None] = rows) -> Callable[[Path], None]:
    """Of the images of some classes only the last can be decoded."""

    def damaged(root: Path) -> None:
        grow(root)
        for folder in folders:
            for path in sorted((root / folder).iterdir())[:-1]:
                path.write_bytes(TORN)

    return damaged


SKIP = "--skip-unreadable"


@pytest.mark.parametrize(
    ("make", "words", "accepted", "said"),
    [
        (rows, [], True, ""),
        (damage("01/0.png", put(TORN)), [], False, "1 of 36 images cannot be decoded|1 of 18 images cannot be decoded"),
        (damage("01/0.png", put(TORN)), [SKIP], True, "left out 1 of 18 training images: not decodable"),
        (damage("11/0.png", put(TORN)), [], False, "of 36 images cannot be decoded|of 18 images cannot be decoded"),
        (damage("11/0.png", put(TORN)), [SKIP], True, "left out 1 of 18 test images: not decodable"),
        (damage("01/0.png", link("gone")), [], False, "No such file or directory"),
        (damage("01/0.png", link("gone")), [SKIP], True, "left out 1 of 18 training images"),
        (damage("11/0.png", link("gone")), [SKIP], True, "left out 1 of 18 test images"),
        (damage("11/0.png", os.mkfifo), [], False, "is a FIFO, not a regular file"),
        (damage("11/0.png", os.mkfifo), [SKIP], True, "left out 1 of 18 test images"),
        (damage("01/0.png", save("PNG", exif=exif(6))), [], True, "1 training images: rotated according to their EXIF orientation"),
        (one_left("02"), [SKIP], True, "left out 1 training classes have fewer than two images that can be decoded: 02"),
        (one_left("07"), [SKIP], True, "left out 1 test classes have fewer than two images that can be decoded: 07"),
        (one_left("02"), [SKIP, "--strict"], False, "1 training classes have fewer than two images that can be decoded: 02"),
        (one_left("test/x", grow=few), [SKIP], False, "1 test classes are left; at least two are needed"),
        (rows, ["--train-classes", "2"], False, "val_share=0.2: 2 training classes are too few"),
    ],
)  # fmt: skip
def test_data_accepts_what_a_search_accepts(
    make: Callable[[Path], None],
    words: list[str],
    accepted: bool,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both say the same in the same words, before anything runs."""
    make(tmp_path / "images")
    given = ["folder", "--dataset-dir", str(tmp_path / "images"), "--sz-resize", "16", "--sz-crop", "16", *words]
    tiny = [
        "--arch",
        "test_resnet",
        "--weights",
        "none",
        "--sz-embedding",
        "8",
        "--nb-clusters",
        "2",
        "--batch-size",
        "8",
    ]
    commands: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
        "data": (data_command, [*given, "--check-only", "--output-dir", str(tmp_path / "data")]),
        "search": (search_command, [*given, *tiny, "--dry-run", "--output-dir", str(tmp_path / "search")]),
    }
    for name, (command, line) in commands.items():
        try:
            status, error = command(line), ""
        except SettingError as refused:
            status, error = 2, str(refused)
        text = error + "".join(capsys.readouterr())
        assert (status == 0) == accepted, (name, text)
        assert re.search(said, text), (name, text)


def test_a_class_that_keeps_one_image_is_neither_trained_nor_scored(tmp_path: Path) -> None:
    """It can only miss. The other held-out classes are those that would be held out anyway."""
    one_left("02", "07")(tmp_path / "images")
    settings = config(tmp_path / "images", skip_unreadable=True)
    whole = grown(tmp_path / "whole", {f"{number:02d}": ["0.png", "1.png", "2.png"] for number in range(12)})
    for seed in range(4):
        found, other = (
            TrialData.open(each.changed(split_seed=seed), tmp_path / "stores")
            for each in (settings, config(whole, skip_unreadable=True))
        )
        assert found.validation is not None
        assert other.validation is not None
        assert 2 not in found.labels[[*found.train, *found.validation]]
        assert set(other.labels[other.validation]) - {2} == set(found.labels[found.validation])
    labels = np.array([0, 0, 1, 1, 2])
    assert matched(labels, np.array([0, 1, 1, 2])).tolist() == [False, True, True, True], (
        "a class that always had one stays"
    )
    assert matched(labels, labels, gallery=(np.array([0, 1]), np.array([1]))).tolist() == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_a_damaged_test_image_is_found_before_the_ledger_is_written(tmp_path: Path) -> None:
    """Decoding is no scoring: the store is built, and nothing else."""
    damage("11/0.png", put(TORN))(tmp_path / "images")
    settings = config(tmp_path / "images")
    with pytest.raises(UnreadableImageError, match=r"11/0\.png"):
        store_tests(settings, load(settings), tmp_path / "store")
    assert not list(tmp_path.rglob("*ledger*"))
    (tmp_path / "images" / "11" / "0.png").write_bytes(raw.png(WIDE, 2))
    assert store_tests(settings, load(settings), tmp_path / "store") == []


@pytest.mark.parametrize("name", list(trees.MAKERS))
@pytest.mark.timeout(60)
def test_odd_entries_in_published_copies(name: str, tmp_path: Path) -> None:
    """In every folder a FIFO, a socket, a link to itself and one to nothing: the copy is what it was without them."""
    settings = TrialConfig(dataset=name, dataset_dir=str(tmp_path), allow_partial=True, skip_unreadable=True)
    trees.MAKERS[name](tmp_path)
    before = load(settings)
    for folder in [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]:
        for odd in ("loop", "loop.jpg"):
            (folder / odd).symlink_to(odd)
        (folder / "gone").symlink_to("nothing")
        os.mkfifo(folder / "fifo")
    after = load(settings)
    assert after.class_names == before.class_names
    assert set(before.train.paths) <= set(after.train.paths)
    assert all(path.endswith("loop.jpg") for path in set(after.train.paths) - set(before.train.paths))
    image = tmp_path / Path(after.train.name(0)).relative_to(tmp_path)
    image.unlink()
    os.mkfifo(image)
    assert f"{image} (is a FIFO, not a regular file)" in inspect(load(settings).train).left_out


@pytest.mark.parametrize("name", ["cars", "sop", "inshop", "vid"])
@pytest.mark.timeout(60)
def test_a_published_list_that_is_a_fifo_is_refused(name: str, tmp_path: Path) -> None:
    """Nothing waits for it."""
    trees.MAKERS[name](tmp_path)
    for path in [*tmp_path.rglob("*.txt"), *tmp_path.rglob("*.mat")]:
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(SettingError) as error:
        load(TrialConfig(dataset=name, dataset_dir=str(tmp_path), allow_partial=True))
    assert "\n" not in str(error.value)
