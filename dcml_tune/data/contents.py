"""Which images these are: identity is content, wherever the files lie and whenever they were written.

Two lists of images are the same if they have the same names and the same bytes. Reading a hundred gigabytes at each start
would take minutes, so the hash of each file is kept beside the image stores, in `contents/KEY.json`, with the size, time
of change and inode that the file had then; KEY is a hash of the names. A file is read again only if

- its size or its time of change is another, or
- the directory is another, and the inode is, too: a directory that was renamed is not read again, a copy is read once.

Test images are not opened before they are scored: what is not known of them without that is asked by `opens=False`.
A zip file needs none of this: its own directory holds a checksum of each file.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from dcml_tune.data.decoding import RefusedFileError, open_regular
from dcml_tune.data.image_list import DataSet, ImageList, fingerprint, named
from dcml_tune.utils.errnos import CANNOT_WRITE, SHORTAGE
from dcml_tune.utils.files import CorruptFileError, read_checksummed, write_checksummed
from dcml_tune.utils.machine import usable_cores
from dcml_tune.utils.stored import Count, Stored

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20  # bytes that are read at once
# Where nothing can be written, or where the directory should be, or above it, there is a file.
_NO_PLACE = CANNOT_WRITE | {errno.EEXIST, errno.ENOTDIR, errno.ENOENT}
_UNREAD = ""  # instead of the hash of a file that cannot be read, or was not yet


class _Known(Stored):
    """contents/KEY.json: what was known of each file of a list when it was last looked at, in the order of the list."""

    root: str
    sizes: list[Count]
    times: list[int]
    inodes: list[int]
    hashes: list[str]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What tells the images of a search from others; each is a fingerprint."""

    compared: str
    """Of names and content of the images that train and that trials are compared on."""
    test: str
    """Of names and classes of the test images."""
    test_sizes: str
    """Of names and sizes of the test images, which are not opened for that."""

    @classmethod
    def of(cls, dataset: DataSet, stores: Path, *, opens_test: bool) -> Identity:
        """The identity of a data set.

        Args:
            dataset: its files.
            stores: directory of the image stores, where the hashes are kept.
            opens_test: whether trials are compared on the test images, so that their content counts.
        """
        lists = [dataset.train, *(dataset.test_lists if opens_test else ())]
        known = {each for images in lists for each in contents(images, stores) or ()}
        sizes = {f"{path}|{size}" for images in dataset.test_lists for path, size in _sizes(images)}
        return cls(
            compared=fingerprint(dataset.name, *sorted(known)),
            test=dataset.test_fingerprint,
            test_sizes=fingerprint(dataset.name, *sorted(sizes)),
        )


def contents(images: ImageList, directory: Path, *, opens: bool = True) -> list[str] | None:
    """Name, size and hash of the content of each image, in order.

    Args:
        images: the list.
        directory: where the hashes are kept; it need not be there.
        opens: whether files may be read whose hash is not known.

    Returns:
        One text an image; None if some hash is not known and may not be found out.
    """
    if images.root.suffix == ".zip":
        return images.states()
    now = _look(images)
    file = directory / "contents" / f"{fingerprint(*images.paths)}.json"
    hashes = _still_known(_read(file, len(images)), now, str(images.root))
    if all(hashes):
        return _texts(images, now, hashes)
    if not opens:
        return None
    with _alone(file):  # the trials of a node do not all read the same files
        before = _read(file, len(images))
        hashes = _still_known(before, now, str(images.root))
        unknown = [i for i, known in enumerate(hashes) if not known]
        for i, found in zip(unknown, _hash_all(images, unknown), strict=True):
            hashes[i] = found
        _say_changed(images, before, hashes)
        _write(file, _Known(root=str(images.root), **now, hashes=hashes))
    return _texts(images, now, hashes)


def looks(images: ImageList) -> str:
    """Hash of what is seen of the files without opening one: the directory, and names, sizes and times of change."""
    now = _look(images)
    return fingerprint(images.root, *images.paths, *now["sizes"], *now["times"], *now["inodes"])


def _look(images: ImageList) -> dict[str, list[int]]:
    """Size, time of change and inode of each file; of one that is gone or cannot be looked at, -1."""
    stats = []
    for path in images.paths:
        try:
            found = os.stat(os.path.join(images.root, path))
            stats.append((found.st_size, found.st_mtime_ns, found.st_ino))
        except OSError:
            stats.append((0, -1, -1))
    return {name: [each[place] for each in stats] for place, name in enumerate(("sizes", "times", "inodes"))}


def _sizes(images: ImageList) -> list[tuple[str, int]]:
    if images.root.suffix == ".zip":
        return [(state.rsplit("|", 2)[0], int(state.rsplit("|", 2)[1])) for state in images.states()]
    return list(zip(images.paths, _look(images)["sizes"], strict=True))


def _still_known(known: _Known | None, now: dict[str, list[int]], root: str) -> list[str]:
    """The hash of each file that is as it was when it was read; empty for the others."""
    if known is None:
        return [_UNREAD] * len(now["sizes"])
    old = zip(known.sizes, known.times, known.inodes, known.hashes, strict=True)
    new = zip(now["sizes"], now["times"], now["inodes"], strict=True)
    return [
        found if (size, time) == (s, t) and (known.root == root or inode == i) else _UNREAD
        for (size, time, inode, found), (s, t, i) in zip(old, new, strict=True)
    ]


def _hash_all(images: ImageList, wanted: list[int]) -> list[str]:
    if len(wanted) > 1000:
        logger.info(
            "%s: reading %s images that were not read before, to know them again", images.root, f"{len(wanted):,}"
        )
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        found: list[str] = []
        for start in range(0, len(wanted), 256):  # a part at a time, so that Ctrl-C does not wait for all
            found += pool.map(lambda i: _hash(os.path.join(images.root, images.paths[i])), wanted[start : start + 256])
    return found


def _hash(path: str) -> str:
    """Hash of a file's bytes; empty if it cannot be read, or is none that ends."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open_regular(path) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except RefusedFileError:
        return _UNREAD
    except OSError as error:
        if error.errno in SHORTAGE:
            raise
        return _UNREAD
    return digest.hexdigest()


def _texts(images: ImageList, now: dict[str, list[int]], hashes: list[str]) -> list[str]:
    return [f"{path}|{size}|{found}" for path, size, found in zip(images.paths, now["sizes"], hashes, strict=True)]


def _say_changed(images: ImageList, before: _Known | None, hashes: list[str]) -> None:
    """Name the images that are others than they were, which only this moment knows."""
    old = [] if before is None else before.hashes
    changed = [images.paths[i] for i, (was, found) in enumerate(zip(old, hashes, strict=False)) if was and was != found]
    if changed:
        logger.warning("%s: %s images are not what they were: %s", images.root, f"{len(changed):,}", named(changed))


def _read(file: Path, count: int) -> _Known | None:
    """What is known of so many files; None if nothing is."""
    try:
        known = _Known(**read_checksummed(file, _Known))
    except CorruptFileError:
        return None
    lengths = {len(each) for each in (known.sizes, known.times, known.inodes, known.hashes)}
    return known if lengths == {count} else None


def _write(file: Path, known: _Known) -> None:
    """Keep what is known; where nothing can be written it is found out again next time."""
    try:
        write_checksummed(file, known.model_dump())
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        logger.info("%s: the content of the images cannot be noted there (%s)", file, error.strerror)


def _alone(file: Path) -> AbstractContextManager[Any]:
    """The lock under which files are read; none where nothing can be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{file}.lock").acquire()
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        return nullcontext()
