"""PKU VehicleID: vehicles seen by surveillance cameras; three test lists, of which each is part of the next larger one.

Source: Liu et al., "Deep Relative Distance Learning: Tell the Difference Between Similar Vehicles", CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path

from dcml_tune.config import TrialConfig
from dcml_tune.data.images import DataSet
from dcml_tune.data.published import Listing, assemble, bad_line, find, read_lines

SIZES = ("2400", "1600", "800")
"""Vehicles of the test lists, which are the names of the test sets; published results are of the first."""


def read(config: TrialConfig) -> DataSet:
    """List the images of train_list.txt and test_list_2400.txt, _1600 and _800: `image vehicle` a line.

    Everyone is searched in everyone else of a list, as in the original; the official protocol, with one gallery image a
    vehicle, is `dcml_tune.evaluate`'s.

    Raises:
        SettingError: for a line of another form, and as `published.find` and `published.assemble`.
    """
    base = find(config, "vehicle-id", "VehicleID_V1.0")
    lists = [find(config, "vehicle-id", "VehicleID_V1.0", "train_test_split", f"{name}.txt")
             for name in ("train_list", *(f"test_list_{size}" for size in SIZES))]  # fmt: skip
    rows = [_rows(file) for file in lists]
    vehicles = sorted({vehicle for own in rows for _, vehicle in own}, key=int)
    label = {vehicle: place for place, vehicle in enumerate(vehicles)}
    train, *tests = ([(path, label[vehicle]) for path, vehicle in own] for own in rows)
    listing = Listing(
        class_names=tuple(vehicles),
        train=train,
        tests=tuple((size, own, None) for size, own in zip(SIZES, tests, strict=True)),
        ks=(1, 5),
    )
    return assemble(config, base, listing)


def _rows(file: Path) -> list[tuple[str, str]]:
    """Path and vehicle of each image."""
    rows = []
    for line in read_lines(file):
        image, *vehicle = line.split()
        if len(vehicle) != 1 or not vehicle[0].isdigit():
            raise bad_line(file, line, "`image vehicle`")
        rows.append((f"image/{image.removesuffix('.jpg')}.jpg", vehicle[0]))
    return rows
