"""In-Shop Clothes Retrieval: 7,982 items; which of them train, and what is query and gallery, the list says.

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
    """List the images of list_eval_partition.txt: a count, a header, then path, item and status.

    Columns are any number of spaces apart. Test images are queries, searched in a gallery.

    Raises:
        SettingError: for a line of another form, and as `copies.find_copy` and `published.assemble`.
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
    """The list calls the folder of images `img`; larger images of the same names lie in `img_highres`."""
    file, images = copy.parts["list"], copy.parts["images"]
    rows = [_row(file, line) for line in read_lines(file, is_header=_is_header)]
    return images.parent, [(f"{images.name}/{path.removeprefix('img/')}", item, side) for path, item, side in rows]


def _is_header(line: str) -> bool:
    return line.isdecimal() or line.lower().startswith("image_name")


def _row(file: Path, line: str) -> Row:
    """Path, which may hold spaces, item and status."""
    words = line.rsplit(maxsplit=2)
    if len(words) < 3 or words[2] not in _SIDES:
        raise bad_line(file, line, "`path item_id train|query|gallery`")
    return image_path(file, line, words[0]), words[1], words[2]


def _of_folders(copy: Copy) -> tuple[Path, list[Row]]:
    """A folder a side, with a folder an item."""
    rows = []
    for side in _SIDES:
        rows += [(entry.path, entry.name, side) for entry in images_below(copy.base, copy.parts[side])]
    return copy.base, rows
