"""Whether the images of a resumed search are those that it began with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcml_tune.config.errors import SettingError

if TYPE_CHECKING:
    from dcml_tune.data import DataSet, Identity


def refuse_missing_images(name: str, settings: dict[str, Any]) -> None:
    """The images of a search must be somewhere.

    Raises:
        SettingError: if their directory is not there.
    """
    place = settings.get("dataset_dir")
    if place is not None and not Path(place).is_dir():
        raise SettingError(
            f"search {name}: its images were in {place}, which is not there; if they were moved, give --dataset-dir"
        )


def images_then_and_now(name: str, asked: dict[str, Any], now: Identity, dataset: DataSet) -> list[str]:
    """Lines about images that are not as they were when a search began, and that may differ.

    Training images must be the same, by their content: trials are compared on them. Test images may have been repaired.

    Raises:
        SettingError: if others than these have changed.
    """
    if asked.get("test") is None:  # of version 0.1
        by_time = dataset.fingerprint_by_time
        if by_time != asked["data"]:
            raise SettingError(
                f"search {name}: the images have changed since it began (fingerprint {by_time}, then {asked['data']}; version "
                "0.1, which began it, took files that were copied or touched for changed ones); put them back as they "
                "were, or start a new search"
            )
        return []
    if now.compared != asked["data"]:
        raise SettingError(
            f"search {name}: the images have changed since it began (fingerprint of their content {now.compared}, then "
            f"{asked['data']}); put them back, or start a new search"
        )
    if now.test != asked["test"]:
        raise SettingError(
            f"search {name}: there are other test images than when it began; put those back that were removed, take those "
            "away that were added, or start a new search"
        )
    if now.test_sizes != asked.get("test_sizes"):
        return ["test images have changed since it began; trials were compared on training images, which are the same"]
    return []
