"""In-Shop Clothes Retrieval: 7,982 items. A list defines which images train, are queries, or are in the gallery.

Source: Liu et al., "DeepFashion", CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path

from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.copies import Copy, find_copy
from dcml_tune.data.datasets.official_counts import Listing, assemble
from dcml_tune.data.image_folder import images_below
from dcml_tune.data.image_list import DataSet
from dcml_tune.data.lists import bad_line, image_path, read_lines

_SIDES = ("train", "query", "gallery")

Row = tuple[str, str, str]
"""Path, item and side of an image."""


def read(config: TrialConfig) -> DataSet:
    """List the images of list_eval_partition.txt: a count, a header, then lines of path, item and status.

    Columns are separated by one or more spaces. Test queries are searched in the gallery.

    Raises:
        SettingError: for a malformed line, and as in `copies.find_copy` and `official_counts.assemble`.
    """
    copy = find_copy(config)
    root, rows = _of_list(copy) if copy.layout.key == "list" else _of_folders(copy)
    items = sorted({item for _, item, _ in rows})
    label = {item: place for place, item in enumerate(items)}
    train, queries, gallery = ([(path, label[item]) for path, item, of in rows if of == side] for side in _SIDES)
    listing = Listing(
        class_names=tuple(items), train=train, tests=(("test", queries, gallery),), ks=(1, 10, 20, 30, 50)
    )
    return assemble(config, root, listing, copy.notes)


def _of_list(copy: Copy) -> tuple[Path, list[Row]]:
    """Images of the list. It names the folder `img`; `img_highres` holds larger images with the same names."""
    file, images = copy.parts["list"], copy.parts["images"]
    rows = [_row(file, line) for line in read_lines(file, is_header=_is_header)]
    return images.parent, [(f"{images.name}/{path.removeprefix('img/')}", item, side) for path, item, side in rows]


def _is_header(line: str) -> bool:
    return line.isdecimal() or line.lower().startswith("image_name")


def _row(file: Path, line: str) -> Row:
    """Path, which may contain spaces, item and status of a line."""
    words = line.rsplit(maxsplit=2)
    if len(words) < 3 or words[2] not in _SIDES:
        raise bad_line(file, line, "`path item_id train|query|gallery`")
    return image_path(file, line, words[0]), words[1], words[2]


def _of_folders(copy: Copy) -> tuple[Path, list[Row]]:
    """Images of a copy with one folder per side, and in it one folder per item."""
    rows = []
    for side in _SIDES:
        rows += [(entry.path, entry.name, side) for entry in images_below(copy.base, copy.parts[side])]
    return copy.base, rows
