"""Decoded images in memory-mapped files, shared by all trials of a node.

Decoding an image takes 12 to 36 times as long as cropping a decoded one, and a search uses each image thousands of
times. A store is a directory of four files:

    pixels.npy     full, small: the pixels of all images one after the other; evaluation: N x S x S x 3
    index.npy      R x 5 int64, one row per image that was decoded: its position in the list, start of its pixels
                   (full, small: byte; evaluation: row), height, width, CRC-32 of its pixels
    meta.json      identity of the images, description of the other files, excluded images with reasons; with a
                   checksum of itself
    verified.json  state of the files when their pixels last matched their checksums

A store is built under a temporary name and then renamed, so that a store under its final name is complete. Later damage is
detected: changes of meta.json, of index.npy or of a file size when the store is opened, changes of pixels by
`open_or_build(verify=True)`.
"""

from dcml_tune.data.image_store.builder import unreadable
from dcml_tune.data.image_store.layout import VERSION, Kind
from dcml_tune.data.image_store.opening import Inspection, inspect, needed_bytes, open_or_build, open_store
from dcml_tune.data.image_store.reader import ImageStore

__all__ = [
    "VERSION",
    "ImageStore",
    "Inspection",
    "Kind",
    "inspect",
    "needed_bytes",
    "open_or_build",
    "open_store",
    "unreadable",
]
