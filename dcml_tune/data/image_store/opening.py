"""The way to a store: open what is there, build what is not, and build anew what is damaged."""

from __future__ import annotations

import logging
import os
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from dcml_tune.data.image_list import ImageList, Indices, named, why
from dcml_tune.data.image_store.builder import build, unreadable
from dcml_tune.data.image_store.headers import needed
from dcml_tune.data.image_store.layout import Kind, Layout
from dcml_tune.data.image_store.reader import META, STAMP, ImageStore, state_of
from dcml_tune.data.image_store.room import writing
from dcml_tune.data.image_store.threads import Progress, attempt, map_threads, silent
from dcml_tune.data.image_store.wanted import Wanted, identity_of
from dcml_tune.utils.errnos import CANNOT_WRITE, SHORTAGE
from dcml_tune.utils.files import readable_size, write_checksummed

logger = logging.getLogger(__name__)


def open_or_build(
    images: ImageList,
    directory: Path,
    *,
    kind: Kind,
    sz_resize: int,
    sz_crop: int,
    skip_unreadable: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
) -> ImageStore:
    """Open the store of some images, or build it where there is none; one process builds, others wait.

    A store that is damaged is built anew, and the log says what was damaged. Processes that have the old one
    open keep it.

    A store belongs to the names and the content of its images (`dcml_tune.data.contents`): when one of them changes,
    another store is built; when the files are moved or only touched, it is used again. `full` keeps images as they are, `small` those with a shorter side above `sz_resize`
    resized to it, `evaluation` what the network sees in evaluation: shorter side resized to `sz_resize`
    (bilinear, antialiased), the middle `sz_crop` x `sz_crop` of it, exactly as torchvision does on Pillow's
    images.

    Args:
        images: what to store.
        directory: of all stores; it is made where it is missing.
        kind: see above.
        sz_resize: pixels.
        sz_crop: pixels.
        skip_unreadable: leave out images that cannot be decoded; `kept` says which are there.
        verify: read all pixels against their checksums, once for each state of the files (size and times of
            change; those of a copy differ, so that a copy is read once more).
        progress: is told how many images are decoded, of how many.

    Raises:
        UnreadableImageError: if images cannot be decoded and `skip_unreadable` is not set.
        SettingError: if the store cannot be written: no room, no permission, a read-only disk; nothing is left
            behind then.
    """
    wanted = Wanted.of(images, directory, Layout(kind, sz_resize, sz_crop))
    store = _ready(wanted, verify)
    if store is None:
        with writing(wanted), _alone(wanted.final):
            store = _sound(wanted, verify) or build(wanted, skip_unreadable, progress or silent)
    if store.left_out and not skip_unreadable:
        raise unreadable(store.left_out, len(images))
    return store


@dataclass(frozen=True)
class Inspection:
    """What decoding all images of a list brings to light."""

    kept: Indices
    """Positions of the images that can be decoded."""
    left_out: list[str]
    """Names of the others, each with the reason."""
    departures: dict[str, int]
    """How many had to be turned, scaled, ...; keys as in `decoding.DEPARTURES`."""


def inspect(images: ImageList, progress: Progress | None = None) -> Inspection:
    """Decode all images of a list, and write nothing."""
    found = map_threads(lambda i: attempt(lambda: images.decode(i).departures), len(images), progress or silent)
    kept = [i for i, each in enumerate(found) if not isinstance(each, str)]
    left_out = [f"{images.name(i)} ({each})" for i, each in enumerate(found) if isinstance(each, str)]
    departures = Counter(key for each in found if not isinstance(each, str) for key in each)
    return Inspection(np.array(kept, dtype=np.int64), left_out, departures)


def needed_bytes(
    images: ImageList, directory: Path, opens: bool = True, /, *, kind: Kind, sz_resize: int, sz_crop: int
) -> int:
    """Bytes that `open_or_build` would write; 0 where the store is there.

    Reads the headers of the images, which this process then does not read again to build; opens none for an
    `evaluation` store, whose images are all of one size. Images that cannot be read take nothing. Without `opens` no file
    is opened at all: a store of files whose content is not known then counts as one that is not there.
    """
    # Where there is no directory there is no store either, and no file need be read to know that.
    identity = identity_of(images, directory, opens=opens) if Path(directory).is_dir() else None
    wanted = Wanted(images, Path(directory), Layout(kind, sz_resize, sz_crop), identity or "")
    if identity is not None and isinstance(_open(wanted), ImageStore):
        return 0
    return needed(wanted)


def _open(wanted: Wanted) -> ImageStore | str | None:
    """The store, or what is wrong with it; None where there is none."""
    if not os.path.lexists(wanted.final):
        return None
    try:
        store = ImageStore(wanted.final)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno in SHORTAGE:
            raise
        return str(error)
    return store if store.is_of(wanted.facts) else f"{wanted.final / META}: describes another store"


def _ready(wanted: Wanted, verify: bool) -> ImageStore | None:
    """The store, if it can be used without reading more of it."""
    store = _open(wanted)
    return store if isinstance(store, ImageStore) and (store.is_verified() or not verify) else None


def _sound(wanted: Wanted, verify: bool) -> ImageStore | None:
    """The store, if it is there and whole; a damaged one is told in the log."""
    store = _open(wanted)
    if isinstance(store, ImageStore) and verify and not store.is_verified():
        store = _verified(store, wanted.images)
    if isinstance(store, str):
        logger.warning("%s: the image store is damaged (%s); it is built anew", wanted.final, store)
        return None
    return store


def _verified(store: ImageStore, images: ImageList) -> ImageStore | str:
    """The store, after its pixels were read, or which of them are damaged."""
    logger.info("%s: reading %s against their checksums", store.directory, readable_size(store.nbytes))
    # Taken before reading: what is changed meanwhile makes the stamp void.
    state = state_of(store.directory)
    if rows := store.damaged():
        names = [images.name(i) for i in store.kept[rows].tolist()]
        return f"{len(rows):,} of {len(store):,} images are not what was written: {named(names, limit=3)}"
    try:
        write_checksummed(store.directory / STAMP, state)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        logger.info("%s: is sound, but that cannot be noted there (%s)", store.directory, why(error))
    return store


def _alone(final: Path) -> AbstractContextManager[Any]:
    """Take the lock under which a store is built, until the end of the block; says so when another has it."""
    if not os.access(final.parent, os.W_OK | os.X_OK, effective_ids=True):
        return nullcontext()  # nobody builds here, and a store that is whole can be read without the lock
    lock = FileLock(f"{final}.lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        logger.info("%s: waiting for the process that builds this image store", final)
        return lock.acquire()
