"""Table of the directory layouts of published data sets. docs/data-sets.md describes each.

Copies come from the unpacked archives, from Kaggle, from exports of Hugging Face, or have the layout of the original code.
`data/copies.py` searches for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dcml_tune.data import image_folder
from dcml_tune.data.lists import read_lines

Parts = Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A directory layout of a data set."""

    key: str
    """Name of the layout, for the reader of the data set."""
    title: str
    """Description of the layout, for messages."""
    parts: Mapping[str, tuple[str, ...]]
    """Required parts of a copy: the alternative paths of each, relative to the folder of the copy."""
    known_by: tuple[str, ...] = ()
    """Parts each of which identifies a copy, complete or not; if empty, only all parts together identify one."""
    extras: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Optional parts."""
    holds: Callable[[Path, Parts], bool] = lambda base, parts: True
    """Whether the parts of a folder belong to this data set: names such as `train` are ambiguous."""
    remedy: str = "complete the copy"
    """How to get missing parts."""


def _at(name: str, *places: str) -> tuple[str, ...]:
    """Alternative paths of a file in several folders."""
    return tuple(f"{place}/{name}" if place else name for place in places)


def _of_classes(dataset: str, part: str) -> Callable[[Path, Parts], bool]:
    """A function that checks whether a part contains classes of a data set."""
    return lambda base, parts: image_folder.holds_classes(dataset, parts[part])


def _is_own_or_of_cub(base: Path, parts: Parts) -> bool:
    """Whether `images` lies in the original code's folder, with any content, or contains classes of CUB."""
    return base.name == OWN["cub"] or image_folder.holds_classes("cub", parts["images"])


def _is_partition_of_inshop(base: Path, parts: Parts) -> bool:
    """Whether the list is that of In-Shop: other benchmarks have a list of the same name."""
    lines = read_lines(parts["list"])[:10]
    return any(line.split()[-1] in ("train", "query", "gallery") for line in lines)


def _has_items_of_inshop(base: Path, parts: Parts) -> bool:
    """Whether each side has folders of items."""
    return all(any(name.startswith("id_") for name in image_folder.class_folders(side)) for side in parts.values())


def _by_classes(dataset: str) -> tuple[Layout, ...]:
    """The layouts that are common to all data sets whose classes have known numbers or names."""
    return (
        Layout(
            key="split folders",
            title="train/CLASS/*.jpg and test/CLASS/*.jpg",
            parts={"train": ("train", "data/train")},
            extras={"test": ("test", "data/test"), "validation": ("validation", "valid", "val", "data/validation")},
            holds=_of_classes(dataset, "train"),
        ),
        Layout(
            key="class folders", title="CLASS/*.jpg", parts={"images": (".",)}, holds=_of_classes(dataset, "images")
        ),
    )


OWN = {"cub": "cub-200-2011", "cars": "cars196", "sop": "sop", "inshop": "in-shop", "vid": "vehicle-id/VehicleID_V1.0"}
"""Folder of each data set in the original code. Among several copies the one in this folder is used."""

SPLIT_IN = {"inshop": "list_eval_partition.txt", "vid": "the lists of train_test_split"}
"""Files that define the published split of data sets whose classes do not."""

_DEVKIT = ("devkit", "", "car_devkit/devkit", "devkit/devkit")
_VEHICLE_LISTS = ("train_test_split", "", "VehicleID_V1.0/train_test_split", "VehicleID/train_test_split")

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "cub": (
        Layout(
            key="images",
            title="images/001.CLASS/*.jpg",
            parts={"images": ("images",)},
            extras={"list": ("images.txt",)},
            holds=_is_own_or_of_cub,
        ),
        *_by_classes("cub"),
    ),
    "cars": (
        Layout(
            key="annotations",
            title="cars_annos.mat and car_ims/*.jpg",
            parts={"annotations": _at("cars_annos.mat", "", "devkit"), "images": ("car_ims",)},
            known_by=("annotations", "images"),
            remedy="car_ims.tgz holds the images that cars_annos.mat names",
        ),
        Layout(
            key="devkit",
            title="cars_train/*.jpg, cars_test/*.jpg, devkit/cars_train_annos.mat and cars_test_annos_withlabels.mat",
            parts={
                "train": ("cars_train/cars_train", "cars_train"),
                "test": ("cars_test/cars_test", "cars_test"),
                "train annotations": _at("cars_train_annos.mat", *_DEVKIT),
                "test annotations": (
                    *_at("cars_test_annos_withlabels.mat", *_DEVKIT),
                    *_at("cars_test_annoswithlabels.mat", *_DEVKIT),
                ),
            },
            known_by=("train", "test"),
            remedy="the published split is by class, and nothing else says the class of these images (cars_annos.mat numbers them "
            "otherwise, cars_test_annos.mat has no classes); docs/data-sets.md says where to get the file",
        ),
        Layout(
            key="class folders",
            title="images/CLASS/*.jpg",
            parts={"images": ("images",)},
            holds=_of_classes("cars", "images"),
        ),
        *_by_classes("cars"),
    ),
    "sop": (
        Layout(
            key="lists",
            title="Ebay_train.txt, Ebay_test.txt and CATEGORY_final/*.JPG",
            parts={side: _at(f"Ebay_{side}.txt", "", "Info_Files") for side in ("train", "test")},
            known_by=("train", "test"),
            extras={"images": ("images",)},
        ),
        *_by_classes("sop"),
    ),
    "inshop": (
        Layout(
            key="list",
            title="Eval/list_eval_partition.txt and img/*/*/id_NUMBER/*.jpg",
            parts={
                "list": _at("list_eval_partition.txt", "Eval", "", "Anno", "Anno/Eval"),
                "images": ("Img/img", "Img/img_highres", "img", "img_highres"),
            },
            known_by=("list",),
            holds=_is_partition_of_inshop,
            remedy="unpack img.zip there",
        ),
        Layout(
            key="split folders",
            title="train/id_NUMBER/*.jpg, query/id_NUMBER/*.jpg and gallery/id_NUMBER/*.jpg",
            parts={side: (side, f"data/{side}") for side in ("train", "query", "gallery")},
            holds=_has_items_of_inshop,
        ),
    ),
    "vid": (
        Layout(
            key="lists",
            title="train_test_split/train_list.txt, test_list_2400.txt, _1600 and _800, and image/*.jpg",
            parts={
                "train": _at("train_list.txt", *_VEHICLE_LISTS),
                **{size: _at(f"test_list_{size}.txt", *_VEHICLE_LISTS) for size in ("2400", "1600", "800")},
                "images": ("image", "images", "VehicleID_V1.0/image", "VehicleID/image"),
            },
            known_by=("train", "2400", "1600", "800"),
            remedy="lists and images come in one archive from the authors of the data set",
        ),
    ),
}
"""The layouts of each data set; if a folder matches several, the first one is used."""
