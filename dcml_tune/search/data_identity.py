"""Checks that the images of a resumed search are those that it began with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcml_tune.config.errors import SettingError

if TYPE_CHECKING:
    from dcml_tune.data import DataSet, Identity


def refuse_missing_images(name: str, settings: dict[str, Any]) -> None:
    """Refuse a search whose images are missing.

    Args:
        name: of the search.
        settings: of its trials.

    Raises:
        SettingError: if the directory of the images does not exist.
    """
    place = settings.get("dataset_dir")
    if place is not None and not Path(place).is_dir():
        raise SettingError(
            f"search {name}: its images were in {place}, which does not exist; if they were moved, give --dataset-dir"
        )


def images_then_and_now(name: str, asked: dict[str, Any], now: Identity, dataset: DataSet) -> list[str]:
    """Compare the images with those that a search began with.

    Training images must have the same content, because trials are compared on them. Test images may have been repaired.

    Args:
        name: of the search.
        asked: its record.
        now: fingerprints of the images.
        dataset: has the fingerprint of version 0.1.

    Returns:
        A line if test images have changed.

    Raises:
        SettingError: if training images have changed, or test images were added or removed.
    """
    if asked.get("test") is None:  # a record of version 0.1
        by_time = dataset.fingerprint_by_time
        if by_time != asked["data"]:
            raise SettingError(
                f"search {name}: the images have changed since it began (fingerprint {by_time}, then {asked['data']}; version "
                "0.1, which began it, treats copied or touched files as changed); restore them, or start a new search"
            )
        return []
    if now.compared != asked["data"]:
        raise SettingError(
            f"search {name}: the images have changed since it began (fingerprint of their content {now.compared}, then "
            f"{asked['data']}); put them back, or start a new search"
        )
    if now.test != asked["test"]:
        raise SettingError(
            f"search {name}: there are other test images than when it began; restore those that were removed and remove "
            "those that were added, or start a new search"
        )
    if now.test_sizes != asked.get("test_sizes"):
        return ["test images have changed since it began; trials were compared on training images, which are the same"]
    return []
