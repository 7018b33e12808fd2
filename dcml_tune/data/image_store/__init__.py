"""Decoded images in memory-mapped files, shared by all trials of a node.

Decoding costs 12 to 36 times what cropping a decoded image costs, and a search looks at each image thousands
of times. A store is a directory of four files:

    pixels.npy     full, small: the pixels of all images one after the other; evaluation: N x S x S x 3
    index.npy      R x 5 int64, a row an image that could be read: its position in the list, where its pixels
                   begin (full, small: byte; evaluation: row), height, width, CRC-32 of its pixels
    meta.json      of which images the store is, what the other files must look like, which images were left
                   out and why; with a checksum of itself
    verified.json  in which state the files were when their pixels were last known to match their checksums

It is built beside its final name and then renamed, so that a store that has its name is whole. What happens to
it later is found out: a change of meta.json, of index.npy or of a size whenever the store is opened, a change of
pixels by `open_or_build(verify=True)`.
"""

from dcml_tune.data.image_store.builder import unreadable
from dcml_tune.data.image_store.layout import VERSION, Kind
from dcml_tune.data.image_store.opening import Inspection, inspect, needed_bytes, open_or_build
from dcml_tune.data.image_store.reader import ImageStore

__all__ = ["VERSION", "ImageStore", "Inspection", "Kind", "inspect", "needed_bytes", "open_or_build", "unreadable"]
