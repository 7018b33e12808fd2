"""Opens image stores, builds missing ones, and rebuilds damaged ones."""

from __future__ import annotations

import logging
import os
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.image_list import ImageList, Indices, why
from dcml_tune.data.image_store.builder import build, unreadable
from dcml_tune.data.image_store.copying import copied
from dcml_tune.data.image_store.damage import damaged_pixels, opened
from dcml_tune.data.image_store.headers import needed
from dcml_tune.data.image_store.layout import Kind, Layout
from dcml_tune.data.image_store.reader import STAMP, ImageStore, state_of
from dcml_tune.data.image_store.room import writing
from dcml_tune.data.image_store.threads import OnProgress, attempt, map_threads, silent
from dcml_tune.data.image_store.wanted import Wanted, identity_of
from dcml_tune.runs.stores import Stores
from dcml_tune.utils.errnos import CANNOT_WRITE
from dcml_tune.utils.files import readable_size, write_checksummed
from dcml_tune.utils.locks import HeldError, SharedLock

logger = logging.getLogger(__name__)


def open_store(
    config: TrialConfig, images: ImageList, stores: Path | Stores, *, kind: Kind = "evaluation", verify: bool = False
) -> ImageStore:
    """Open or build a store as the settings of a trial say; see `open_or_build`.

    Args:
        config: gives the sizes, and whether images that cannot be decoded are left out.
        images: images to store.
        stores: directory of all stores.
        kind: as in `open_or_build`; by default the images as the network sees them in evaluation.
        verify: as in `open_or_build`.

    Raises:
        SettingError: as in `open_or_build`.
    """
    return open_or_build(
        images,
        stores,
        kind=kind,
        sz_resize=config.sz_resize,
        sz_crop=config.sz_crop,
        skip_unreadable=config.skip_unreadable,
        verify=verify,
    )


def open_or_build(
    images: ImageList,
    stores: Path | Stores,
    *,
    kind: Kind,
    sz_resize: int,
    sz_crop: int,
    skip_unreadable: bool = False,
    verify: bool = False,
    progress: OnProgress | None = None,
) -> ImageStore:
    """Open the store of some images, or build it if there is none. One process builds, others wait.

    A damaged store is rebuilt, and the log says what was damaged. Processes that have the old store open keep it.

    A store is identified by names and content of its images (`dcml_tune.data.contents`): if one of them changes, another
    store is built; if the files are moved or touched, the store is used again. The kinds are:

    - `full`: images in their own size.
    - `small`: images whose shorter side exceeds `sz_resize` are resized to it.
    - `evaluation`: the input of the network in evaluation. The shorter side is resized to `sz_resize` (bilinear,
      antialiased), and the central `sz_crop` x `sz_crop` pixels are cut out, exactly as torchvision does with Pillow images.

    Args:
        images: images to store.
        stores: directory of all stores; it is created if it does not exist. A store that lies in the directory that all
            nodes share is copied instead of built, where that takes less time.
        kind: see above.
        sz_resize: pixels.
        sz_crop: pixels.
        skip_unreadable: exclude images that cannot be decoded; `kept` lists the others.
        verify: compare all pixels with their checksums, once per state of the files (size and times of change; those
            of a copy differ, so that a copy is read once more). With --scratch always: other nodes do not see this store.
        progress: called with the number of decoded images and their total.

    Raises:
        UnreadableImageError: if images cannot be decoded and `skip_unreadable` is not set.
        SettingError: if the store cannot be written (disk full, no permission, read-only disk); no files remain.
    """
    wanted = Wanted.of(images, stores, Layout(kind, sz_resize, sz_crop))
    verify = verify or wanted.stores.shared is not None
    store = _ready(wanted, verify)
    if store is None:
        with writing(wanted), _alone(wanted.final):
            report = progress or silent
            store = _sound(wanted, verify) or copied(wanted, report) or build(wanted, skip_unreadable, report)
    if store.left_out and not skip_unreadable:
        raise unreadable(store.left_out, len(images))
    return store


@dataclass(frozen=True)
class Inspection:
    """Result of decoding all images of a list."""

    kept: Indices
    """Positions of the decodable images."""
    left_out: list[str]
    """Names of the other images, each with the reason."""
    departures: dict[str, int]
    """Number of images by applied conversion; keys as in `decoding.DEPARTURES`."""


def inspect(images: ImageList, progress: OnProgress | None = None) -> Inspection:
    """Decode all images of a list without storing them."""
    found = map_threads(lambda i: attempt(lambda: images.decode(i).departures), len(images), progress or silent)
    kept = [i for i, each in enumerate(found) if not isinstance(each, str)]
    left_out = [f"{images.name(i)} ({each})" for i, each in enumerate(found) if isinstance(each, str)]
    departures = Counter(key for each in found if not isinstance(each, str) for key in each)
    return Inspection(np.array(kept, dtype=np.int64), left_out, departures)


def needed_bytes(
    images: ImageList, stores: Path | Stores, opens: bool = True, /, *, kind: Kind, sz_resize: int, sz_crop: int
) -> int:
    """Bytes that `open_or_build` would write; 0 if the store exists.

    The headers of the images are read, and cached for the build. For an `evaluation` store, whose images have one size, no
    header is read. Unreadable images need no space. Without `opens` no file is opened, and a store of files with unknown
    content counts as missing.
    """
    places = Stores.of(stores)
    # Without a directory there is no store, and no file needs to be read.
    identity = identity_of(images, places, opens=opens) if places.directory.is_dir() else None
    wanted = Wanted(images, places, Layout(kind, sz_resize, sz_crop), identity or "")
    if identity is not None and isinstance(opened(wanted.final, wanted.facts), ImageStore):
        return 0
    return needed(wanted)


def _ready(wanted: Wanted, verify: bool) -> ImageStore | None:
    """The store, if it can be used without further reading; else None."""
    store = opened(wanted.final, wanted.facts)
    return store if isinstance(store, ImageStore) and (store.is_verified() or not verify) else None


def _sound(wanted: Wanted, verify: bool) -> ImageStore | None:
    """The store, if it exists and is intact; else None. Damage is logged."""
    store = opened(wanted.final, wanted.facts)
    if isinstance(store, ImageStore) and verify and not store.is_verified():
        store = _verified(store, wanted.images)
    if isinstance(store, str):
        logger.warning("%s: the image store is damaged (%s) and is rebuilt", wanted.final, store)
        return None
    return store


def _verified(store: ImageStore, images: ImageList) -> ImageStore | str:
    """The store, after its pixels were read, or which of them are damaged."""
    logger.info("%s: reading %s against their checksums", store.directory, readable_size(store.nbytes))
    # Determined before reading: a later change invalidates the stamp.
    state = state_of(store.directory)
    if damage := damaged_pixels(store, images):
        return damage
    try:
        write_checksummed(store.directory / STAMP, state)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        logger.info("%s: is intact, but this cannot be saved there (%s)", store.directory, why(error))
    return store


def _alone(final: Path) -> AbstractContextManager[Any]:
    """Hold the lock of building a store during the block; waiting for another process is logged."""
    if not os.access(final.parent, os.W_OK | os.X_OK, effective_ids=True):
        return nullcontext()  # no process can build here, and reading needs no lock
    lock = SharedLock(Path(f"{final}.lock"))
    try:
        lock.acquire()
    except HeldError:
        logger.info("%s: waiting for the process that builds this image store", final)
    return lock  # the block waits for it
