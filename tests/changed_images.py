"""A directory of images as a list, and what users do to it: move it, copy it, change a file."""

import shutil

import numpy as np

from dcml_tune.data import ImageList


def list_of(root):
    """The images of a directory, all of one class."""
    names = sorted(path.name for path in root.iterdir())
    return ImageList(tuple(names), np.zeros(len(names), np.int64), root)


def moved(images):
    """The directory has another name."""
    return list_of(images.root.rename(images.root.with_name("elsewhere")))


def copied(images):
    """All files have new times."""
    return list_of(shutil.copytree(images.root, images.root.with_name("copy"), copy_function=shutil.copyfile))


def with_other_content(images):
    """One byte of the first file has changed, and its size has not."""
    path = images.root / images.paths[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return images
