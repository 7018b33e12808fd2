"""Small copies of the published data sets, in their exact layouts, with real image files.

Each class has a pattern of its own, so that something can be learned. The quirks of the real copies are in them: files
that start with `._`, header lines, classes counted from 1, paths with spaces, grey and palette images.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat, savemat

from dcml_tune.data.classes import names

NB_IMAGES = 6
SIZE = 44, 36


def picture(of_class: int, number: int) -> Image.Image:
    """An image of a class: its pattern and some noise; one in six is grey, one has a palette."""
    pattern = np.random.default_rng(of_class).integers(0, 256, (6, 6, 3))
    noise = np.random.default_rng([of_class, number]).normal(0, 40, pattern.shape)
    image = Image.fromarray(np.clip(pattern + noise, 0, 255).astype(np.uint8)).resize(SIZE, Image.Resampling.NEAREST)
    return image.convert("L") if number % 6 == 4 else image


def write(path: Path, of_class: int, number: int) -> None:
    """Write an image as the file name asks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(of_class, number).save(path, "JPEG", quality=90)


def make_cub(
    root: Path, train: int = 12, test: int = 8, name: Callable[[int], str] = lambda label: f"Bird_Number_{label}"
) -> Path:
    """cub-200-2011/images/001.Name_Of_Bird/Name_0001_1.jpg; the first 100 numbers train."""
    base = root / "cub-200-2011" / "images"
    for label in [*range(1, train + 1), *range(101, 101 + test)]:
        folder = f"{label:03d}.{name(label)}"
        for number in range(NB_IMAGES):
            write(base / folder / f"Bird_{number:04d}_{label}.jpg", label, number)
        (base / folder / f"._Bird_0000_{label}.jpg").write_bytes(b"\0\5\26\7 the other half of a Mac's file")
    (base / "._001.Bird").write_bytes(b"not a folder")
    return root


def make_cars(root: Path, train: int = 12, test: int = 8) -> Path:
    """cars196/cars_annos.mat and car_ims/000001.jpg; classes from 1, of which the first 98 train."""
    rows, number = [], 0
    for label in [*range(1, train + 1), *range(99, 99 + test)]:
        for of_class in range(NB_IMAGES):
            number += 1
            path = f"car_ims/{number:06d}.jpg"
            write(root / "cars196" / path, label, of_class)
            rows.append((path, 1, 2, 40, 30, label, of_class % 2))
    names = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]
    annotations = np.empty((1, len(rows)), dtype=[(name, object) for name in names])
    for place, row in enumerate(rows):
        annotations[0, place] = row
    class_names = np.array([[f"Make Model {label}" for label in range(1, 197)]], dtype=object)
    savemat(root / "cars196" / "cars_annos.mat", {"annotations": annotations, "class_names": class_names})
    (root / "cars196" / "car_ims" / "._000001.jpg").write_bytes(b"\0\5\26\7")
    return root


def make_sop(root: Path, train: int = 12, test: int = 8) -> Path:
    """sop/Ebay_train.txt, Ebay_test.txt and CATEGORY_final/ID_0.JPG; two super-classes."""
    kinds = ["bicycle", "coffee_maker"]
    number = 0
    for name, labels in [("train", range(1, train + 1)), ("test", range(11319, 11319 + test))]:
        lines = ["image_id class_id super_class_id path"]
        for label in labels:
            kind = label % 2
            for image in range(NB_IMAGES):
                number += 1
                path = f"{kinds[kind]}_final/{11100000 + label}_{image}.JPG"
                write(root / "sop" / path, label, image)
                lines.append(f"{number} {label} {kind + 1} {path}")
        (root / "sop" / f"Ebay_{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def make_inshop(root: Path, train: int = 12, test: int = 8) -> Path:
    """in-shop/Eval/list_eval_partition.txt and img/WOMEN/Kind/id_00000001/01_1_front.jpg; queries and gallery."""
    lines = []
    for label in range(1, train + test + 1):
        for number in range(NB_IMAGES):
            status = "train" if label <= train else "query" if number % 2 else "gallery"
            path = f"img/WOMEN/Blouses_Shirts/id_{label:08d}/{number + 1:02d}_{number}_front.jpg"
            write(root / "in-shop" / path, label, number)
            lines.append(f"{path}{' ' * (3 + label % 5)}id_{label:08d}   {status}")
    place = root / "in-shop" / "Eval" / "list_eval_partition.txt"
    place.parent.mkdir(parents=True)
    place.write_text("\n".join([str(len(lines)), "image_name item_id evaluation_status", *lines]) + "\n")
    return root


def make_vid(root: Path, train: int = 12, test: int = 8) -> Path:
    """vehicle-id/VehicleID_V1.0: train_list.txt and three test lists, each a part of the next larger one."""
    base, number = root / "vehicle-id" / "VehicleID_V1.0", 0
    lines: dict[int, list[str]] = {}
    for label in range(train + test):
        for image in range(NB_IMAGES):
            number += 1
            write(base / "image" / f"{number:07d}.jpg", label, image)
            lines.setdefault(label, []).append(f"{number:07d} {1000 + label}")
    lists = {"train_list": range(train), "test_list_800": range(train, train + test // 2)}
    lists |= {"test_list_1600": range(train, train + test - 1), "test_list_2400": range(train, train + test)}
    (base / "train_test_split").mkdir()
    for name, labels in lists.items():
        text = "\n".join(line for label in labels for line in lines[label])
        (base / "train_test_split" / f"{name}.txt").write_text(text + "\n")
    return root


MAKERS = {"cub": make_cub, "cars": make_cars, "sop": make_sop, "inshop": make_inshop, "vid": make_vid}


# -- the same images in the layouts that are about -------------------------------------------------------------


def original(name: str, root: Path) -> Path:
    """The tree of the original code's layout; birds have their published names."""
    return make_cub(root, name=lambda label: names("cub")[label - 1]) if name == "cub" else MAKERS[name](root)


def cub_unpacked(root: Path, to: Path) -> None:
    """The archive: the lists beside `images`."""
    shutil.copytree(root / "cub-200-2011", to / "CUB_200_2011")
    images = sorted((to / "CUB_200_2011" / "images").glob("*/[!.]*.jpg"))
    lines = [f"{place} {path.parent.name}/{path.name}" for place, path in enumerate(reversed(images), 1)]
    (to / "CUB_200_2011" / "images.txt").write_text("\n".join(lines) + "\n")
    labels = [f"{place} {int(path.parent.name[:3])}" for place, path in enumerate(reversed(images), 1)]
    (to / "CUB_200_2011" / "image_class_labels.txt").write_text("\n".join(labels) + "\n")


def cub_classes(root: Path, to: Path) -> None:
    """The class folders themselves, in a folder of any name."""
    shutil.copytree(root / "cub-200-2011" / "images", to / "birds")


def cub_split(root: Path, to: Path) -> None:
    """Folders train and test, split by image; classes without their numbers."""
    for image in (root / "cub-200-2011" / "images").glob("*/[!.]*.jpg"):
        side = "test" if int(image.name.split("_")[1]) % 3 == 0 else "train"
        _copy(image, to / "export" / side / image.parent.name[4:].replace("_", " ") / image.name)


def cub_table(root: Path, to: Path) -> None:
    """A table a side, JSON Lines and CSV."""
    rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": []}
    for image in sorted((root / "cub-200-2011" / "images").glob("*/[!.]*.jpg")):
        side = "validation" if int(image.name.split("_")[1]) % 3 == 0 else "train"
        _copy(image, to / "data" / side / image.name)
        rows[side].append({"file_name": image.name, "label": image.parent.name})
    text = "\n".join(json.dumps(row) for row in rows["train"])
    (to / "data" / "train" / "metadata.jsonl").write_text(text)
    lines = ["label,file_name", *(f"{row['label']},{row['file_name']}" for row in rows["validation"])]
    (to / "data" / "validation" / "metadata.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")


def _cars(root: Path) -> list[tuple[Path, int, bool]]:
    """Image, class and side of the annotations."""
    found = loadmat(root / "cars196" / "cars_annos.mat", squeeze_me=True)["annotations"]
    rows = zip(found["relative_im_path"], found["class"], found["test"], strict=True)
    return [(root / "cars196" / str(path), int(number), bool(test)) for path, number, test in rows]


def cars_devkit(root: Path, to: Path, *, nested: bool = False, beside: bool = False) -> None:
    """cars_train and cars_test, numbered anew in no order of classes, with annotations of each."""
    rng = np.random.default_rng(0)
    for side in ("train", "test"):
        rows = [row for row in _cars(root) if row[2] == (side == "test")]
        fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
        annotations = np.empty((1, len(rows)), dtype=[(name, object) for name in fields])
        for place, at in enumerate(rng.permutation(len(rows))):
            image, number, _ = rows[at]
            name = f"{place + 1:05d}.jpg"
            _copy(image, to / "stanford_cars" / f"cars_{side}" / (f"cars_{side}" if nested else "") / name)
            annotations[0, place] = (1, 2, 40, 30, number, name)
        file = "cars_train_annos.mat" if side == "train" else "cars_test_annos_withlabels.mat"
        place = to / "stanford_cars" / ("" if beside and side == "test" else "devkit")
        place.mkdir(exist_ok=True)
        savemat(place / file, {"annotations": annotations})


def cars_kaggle(root: Path, to: Path) -> None:
    """As Kaggle has them: folders in folders, the labels of the test images beside, and annotations of other names."""
    cars_devkit(root, to, nested=True, beside=True)
    shutil.copy(root / "cars196" / "cars_annos.mat", to / "stanford_cars")


def cars_classes(root: Path, to: Path) -> None:
    """A folder a class below `images`, called by the class."""
    for image, number, _ in _cars(root):
        _copy(image, to / "cars" / "images" / names("cars")[number - 1].replace("/", "-") / image.name)


def cars_split(root: Path, to: Path) -> None:
    """Folders train and test two folders down, split by image."""
    for image, number, test in _cars(root):
        _copy(
            image,
            to
            / "car_data"
            / "car_data"
            / ("test" if test else "train")
            / names("cars")[number - 1].replace("/", "")
            / image.name,
        )


def sop_unpacked(root: Path, to: Path) -> None:
    """The archive, its lists from an editor of Windows."""
    shutil.copytree(root / "sop", to / "Stanford_Online_Products")
    for file in (to / "Stanford_Online_Products").glob("*.txt"):
        _rewrite(file, encoding="utf-8-sig", ending="\r\n")


def sop_info_files(root: Path, to: Path) -> None:
    """Lists and images in folders of their own, names in small letters."""
    for file in (root / "sop").glob("*.txt"):
        _copy(file, to / "online_products" / "Info_Files" / file.name)
    for image in (root / "sop").glob("*/*.JPG"):
        _copy(image, to / "online_products" / "images" / image.parent.name / image.name.lower())


def inshop_top(root: Path, to: Path) -> None:
    """The list at the top, and the larger images."""
    shutil.copytree(root / "in-shop" / "img", to / "DeepFashion_InShop" / "img_highres")
    _copy(root / "in-shop" / "Eval" / "list_eval_partition.txt", to / "DeepFashion_InShop" / "list_eval_partition.txt")


def inshop_archive(root: Path, to: Path) -> None:
    """As downloaded: Anno, Img; the list in UTF-16."""
    base = to / "In-shop Clothes Retrieval Benchmark"
    shutil.copytree(root / "in-shop" / "img", base / "Img" / "img")
    _copy(root / "in-shop" / "Eval" / "list_eval_partition.txt", base / "Anno" / "list_eval_partition.txt")
    _rewrite(base / "Anno" / "list_eval_partition.txt", encoding="utf-16", ending="\n")


def inshop_split(root: Path, to: Path) -> None:
    """A folder a side, with a folder an item."""
    for line in (root / "in-shop" / "Eval" / "list_eval_partition.txt").read_text().splitlines()[2:]:
        path, item, side = line.split()
        _copy(root / "in-shop" / path, to / "export" / side / item / Path(path).name)


def vid_marked(root: Path, to: Path) -> None:
    """Another name, and lists with a byte-order mark."""
    shutil.copytree(root / "vehicle-id" / "VehicleID_V1.0", to / "VehicleID")
    for file in (to / "VehicleID" / "train_test_split").glob("*.txt"):
        _rewrite(file, encoding="utf-8-sig", ending="\r\n")


def vid_flat(root: Path, to: Path) -> None:
    """Lists beside the images, in UTF-16 without a mark; names in other case."""
    base = root / "vehicle-id" / "VehicleID_V1.0"
    for file in (base / "train_test_split").glob("*.txt"):
        _copy(file, to / "pku" / file.name)
        _rewrite(to / "pku" / file.name, encoding="utf-16-le", ending="\n")
    for image in (base / "image").glob("*.jpg"):
        _copy(image, to / "pku" / "Images" / f"{image.stem}.JPG")


LAYOUTS = {
    "cub": (cub_unpacked, cub_classes, cub_split, cub_table),
    "cars": (cars_devkit, cars_kaggle, cars_classes, cars_split),
    "sop": (sop_unpacked, sop_info_files),
    "inshop": (inshop_top, inshop_archive, inshop_split),
    "vid": (vid_marked, vid_flat),
}
"""What makes a copy in another layout from the tree of the original one."""


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, to)


def _rewrite(file: Path, *, encoding: str, ending: str) -> None:
    file.write_bytes((ending.join(file.read_text().splitlines()) + ending).encode(encoding))
