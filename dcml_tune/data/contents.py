"""Identity of images by content, independent of the place of the files and of their modification time.

Two lists of images are equal if they have the same names and the same bytes. Reading a hundred gigabytes at each start would
take minutes. The hash of each file is therefore stored beside the image stores, in `contents/KEY.json`, with the size,
modification time and inode that the file had; KEY is a hash of the names. With --scratch each node has its own such file, and
reads the one of the output directory for what it does not know. A file is read again only if

- its size or modification time has changed, or
- both the directory and the inode have changed: a renamed directory is not read again, a copy is read once.

Test images are not opened before they are scored: `opens=False` returns only what is known without opening files.
Zip files need no hashes: the directory of the archive has a checksum of each file.
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

from dcml_tune.data.decoding import RefusedFileError, open_regular
from dcml_tune.data.image_list import DataSet, ImageList, fingerprint, named
from dcml_tune.runs.stores import Stores
from dcml_tune.utils.errnos import CANNOT_WRITE, SHORTAGE
from dcml_tune.utils.files import CorruptFileError, read_checksummed, write_checksummed
from dcml_tune.utils.locks import SharedLock
from dcml_tune.utils.machine import usable_cores
from dcml_tune.utils.stored import Count, Stored

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20  # bytes per read
# The directory cannot be written, or it or one of its parents is a file.
_NO_PLACE = CANNOT_WRITE | {errno.EEXIST, errno.ENOTDIR, errno.ENOENT}
_UNREAD = ""  # stands for the hash of a file that cannot be read or was not read yet


class _Known(Stored):
    """contents/KEY.json: what was known of each file of a list at its last check, in the order of the list."""

    root: str
    sizes: list[Count]
    times: list[int]
    inodes: list[int]
    hashes: list[str]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Fingerprints that identify the images of a search."""

    compared: str
    """Fingerprint of names and content of the images that are used to train and to compare trials."""
    test: str
    """Fingerprint of names and classes of the test images."""
    test_sizes: str
    """Fingerprint of names and sizes of the test images, which are not opened for it."""

    @classmethod
    def of(cls, dataset: DataSet, stores: Path | Stores, *, opens_test: bool) -> Identity:
        """Compute the identity of a data set.

        Args:
            dataset: the data set.
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


def contents(images: ImageList, stores: Path | Stores, *, opens: bool = True) -> list[str] | None:
    """Name, size and hash of the content of each image, in order.

    Args:
        images: the list.
        stores: directory of the image stores, where the hashes are kept; it need not exist.
        opens: whether files with unknown hashes may be read.

    Returns:
        One string per image; None if a hash is unknown and `opens` is false.
    """
    if images.root.suffix == ".zip":
        return images.states()
    now = _look(images)
    name = f"{fingerprint(*images.paths)}.json"
    files = [directory / "contents" / name for directory in Stores.of(stores).all]
    hashes = _all_known(files, now, str(images.root))
    if all(hashes):
        return _texts(images, now, hashes)
    if not opens:
        return None
    with _alone(files[0]):  # only one of the trials on a node reads the files
        before = _read(files[0], len(images))
        hashes = _all_known(files, now, str(images.root))
        unknown = [i for i, known in enumerate(hashes) if not known]
        for i, found in zip(unknown, _hash_all(images, unknown), strict=True):
            hashes[i] = found
        _say_changed(images, before, hashes)
        for file in files:
            _write(file, _Known(root=str(images.root), **now, hashes=hashes))
    return _texts(images, now, hashes)


def looks(images: ImageList) -> str:
    """Hash of what is known without opening files: the directory, and names, sizes, modification times and inodes."""
    now = _look(images)
    return fingerprint(images.root, *images.paths, *now["sizes"], *now["times"], *now["inodes"])


def _look(images: ImageList) -> dict[str, list[int]]:
    """Size, modification time and inode of each file; 0, -1 and -1 if the file cannot be accessed."""
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


def _all_known(files: list[Path], now: dict[str, list[int]], root: str) -> list[str]:
    """The hash of each image by several files of hashes; the first one counts where it knows an image."""
    hashes = [_UNREAD] * len(now["sizes"])
    for file in files:
        if not all(hashes):
            known = _still_known(_read(file, len(hashes)), now, root)
            hashes = [mine or other for mine, other in zip(hashes, known, strict=True)]
    return hashes


def _hash_all(images: ImageList, wanted: list[int]) -> list[str]:
    if len(wanted) > 1000:
        logger.info("%s: reading %s new images to compute their fingerprints", images.root, f"{len(wanted):,}")
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        found: list[str] = []
        for start in range(0, len(wanted), 256):  # in parts, so that Ctrl-C does not wait for all
            found += pool.map(lambda i: _hash(os.path.join(images.root, images.paths[i])), wanted[start : start + 256])
    return found


def _hash(path: str) -> str:
    """Hash of the bytes of a file; empty if it cannot be read or is not a regular file."""
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
    """Log the images whose content has changed; the old hashes are overwritten afterwards."""
    old = [] if before is None else before.hashes
    changed = [images.paths[i] for i, (was, found) in enumerate(zip(old, hashes, strict=False)) if was and was != found]
    if changed:
        logger.warning("%s: %s images have changed: %s", images.root, f"{len(changed):,}", named(changed))


def _read(file: Path, count: int) -> _Known | None:
    """The stored facts about `count` files; None if there are none."""
    try:
        known = _Known(**read_checksummed(file, _Known))
    except CorruptFileError:
        return None
    lengths = {len(each) for each in (known.sizes, known.times, known.inodes, known.hashes)}
    return known if lengths == {count} else None


def _write(file: Path, known: _Known) -> None:
    """Store the facts about files. If the directory cannot be written, the files are read again next time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_checksummed(file, known.model_dump())
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        logger.info("%s: the fingerprints of the images cannot be saved there (%s)", file, error.strerror)


def _alone(file: Path) -> AbstractContextManager[Any]:
    """The lock that is held while files are read; no lock if the directory cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return SharedLock(Path(f"{file}.lock")).__enter__()
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        return nullcontext()
