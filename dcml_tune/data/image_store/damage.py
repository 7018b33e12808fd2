"""What is wrong with a store on disk, in words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dcml_tune.data.image_list import ImageList, named
from dcml_tune.data.image_store.reader import META, ImageStore
from dcml_tune.utils.errnos import SHORTAGE


def opened(directory: Path, facts: dict[str, Any]) -> ImageStore | str | None:
    """The store of a directory, or the description of its damage; None if there is none.

    Args:
        directory: of the store.
        facts: that its description must contain.
    """
    if not os.path.lexists(directory):
        return None
    try:
        store = ImageStore(directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno in SHORTAGE:
            raise
        return str(error)
    return store if store.is_of(facts) else f"{directory / META}: describes another store"


def damaged_pixels(store: ImageStore, images: ImageList) -> str | None:
    """Which images of a store differ from their checksums; None if none does. The whole store is read."""
    rows = store.damaged()
    if not rows:
        return None
    names = [images.name(i) for i in store.kept[rows].tolist()]
    return f"{len(rows):,} of {len(store):,} images differ from their checksums: {named(names, limit=3)}"
