"""Checks that the disks of a node have room for temporary files and, with --scratch, for the image stores."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.image_store.room import RESERVE
from dcml_tune.runs.stores import SCRATCH, Stores, scratch_fault
from dcml_tune.utils.files import free_bytes, readable_size

_TEMPORARY = 500 * 10**6
"""Bytes that must be free for temporary files: Ray ends the processes of a node whose disk is full."""


def full_disk() -> str | None:
    """Return why there is no room for temporary files, or None."""
    directory = Path(tempfile.gettempdir())
    free = free_bytes(directory)
    if free < _TEMPORARY:
        return f"{directory} has {readable_size(free)} left there; free {readable_size(_TEMPORARY)}"
    return None


def wrong_scratch(config: TrialConfig, stores: Stores, missing: Callable[[], int]) -> str | None:
    """Return why the image stores cannot lie on the disk of this node, or None.

    Args:
        config: says where the images are.
        stores: directories of the image stores.
        missing: returns the bytes of the image stores that are not there yet.
    """
    if not stores.on_node:
        return None
    scratch = stores.directory
    flag = SCRATCH if stores.shared is not None else "--output-dir"
    if fault := scratch_fault(scratch, config.dataset_dir):
        return f"{flag} {scratch}: {fault} there; all nodes need the same path"
    need, free = missing(), free_bytes(scratch)
    if need and need + RESERVE > free:
        return (
            f"{flag} {scratch}: the image stores need {readable_size(need)} and {readable_size(free)} are free there; free "
            "some space"
        )
    return None


def missing_bytes(directory: Path, sizes: Mapping[str, int]) -> int:
    """Return the bytes of the image stores that are not in a directory yet; one that is being built has taken its space.

    Args:
        directory: of all stores.
        sizes: name -> size of the stores that are needed.
    """
    return sum(
        size
        for name, size in sizes.items()
        if not (directory / name).exists() and not any(directory.glob(f"{name}.building-*"))
    )
