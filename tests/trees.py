"""Small copies of the published data sets, in their exact layouts, with real image files.

Each class has a pattern of its own, so that something can be learned. The quirks of the real copies are in them: files
that start with `._`, header lines, classes counted from 1, paths with spaces, grey and palette images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

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


def make_cub(root: Path, train: int = 12, test: int = 8) -> Path:
    """cub-200-2011/images/001.Name_Of_Bird/Name_0001_1.jpg; the first 100 numbers train."""
    base = root / "cub-200-2011" / "images"
    for label in [*range(1, train + 1), *range(101, 101 + test)]:
        folder = f"{label:03d}.Bird_Number_{label}"
        for number in range(NB_IMAGES):
            write(base / folder / f"Bird_{number:04d}_{label}.jpg", label, number)
        (base / folder / f"._Bird_0000_{label}.jpg").write_bytes(b"\0\5\26\7 the other half of a Mac's file")
    (base / "._001.Bird_Number_1").write_bytes(b"not a folder")
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
