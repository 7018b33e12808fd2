"""PKU VehicleID: vehicles in images of surveillance cameras. Each of its three test lists is part of the next larger one.

Source: Liu et al., "Deep Relative Distance Learning: Tell the Difference Between Similar Vehicles", CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path

from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.copies import find_copy
from dcml_tune.data.datasets.official_counts import Listing, assemble
from dcml_tune.data.image_list import DataSet
from dcml_tune.data.lists import bad_line, image_path, read_lines

SIZES = ("2400", "1600", "800")
"""Numbers of vehicles of the test lists, which name the test sets. Published results are for the first one."""

OFFICIAL = "official"
"""Name of VehicleID's own protocol, which `dcml_tune.metrics.protocols.official_measures` computes."""


def has_official_protocol(dataset: str) -> bool:
    """Whether a data set has an official protocol besides the search of each image in all others: VehicleID alone."""
    return dataset == "vid"


def official_name(measure: str) -> str:
    """Name of a measure by the official protocol, such as `official_recall_at_1`."""
    return f"{OFFICIAL}_{measure}"


def read(config: TrialConfig) -> DataSet:
    """List the images of train_list.txt and test_list_2400.txt, _1600 and _800: lines of image and vehicle.

    Each image of a test list is searched in all others of the list, as in the original. The official protocol has one
    gallery image per vehicle; see `dcml_tune.metrics.protocols.official_measures`.

    Raises:
        SettingError: for a malformed line, and as in `copies.find_copy` and `official_counts.assemble`.
    """
    copy = find_copy(config)
    images = copy.parts["images"]
    rows = [_rows(copy.parts[name], images.name) for name in ("train", *SIZES)]
    vehicles = sorted({vehicle for own in rows for _, vehicle in own}, key=int)
    label = {vehicle: place for place, vehicle in enumerate(vehicles)}
    train, *tests = ([(path, label[vehicle]) for path, vehicle in own] for own in rows)
    listing = Listing(
        class_names=tuple(vehicles),
        train=train,
        tests=tuple((size, own, None) for size, own in zip(SIZES, tests, strict=True)),
        ks=(1, 5),
    )
    return assemble(config, images.parent, listing, copy.notes)


def _rows(file: Path, folder: str) -> list[tuple[str, str]]:
    """Path and vehicle of each image."""
    rows = []
    for line in read_lines(file):
        image, *vehicle = line.split()
        if len(vehicle) != 1 or not vehicle[0].isdecimal():
            raise bad_line(file, line, "`image vehicle`")
        rows.append((image_path(file, line, f"{folder}/{image.removesuffix('.jpg')}.jpg"), vehicle[0]))
    return rows
