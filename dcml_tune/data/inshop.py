"""In-Shop Clothes Retrieval: 7,982 items; which of them train, and what is query and gallery, the list says.

Source: Liu et al., "DeepFashion", CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path

from dcml_tune.config import TrialConfig
from dcml_tune.data.images import DataSet
from dcml_tune.data.published import Listing, assemble, bad_line, find, read_lines

_SIDES = ("train", "query", "gallery")


def read(config: TrialConfig) -> DataSet:
    """List the images of in-shop/Eval/list_eval_partition.txt: a count, a header, then path, item and status.

    Columns are any number of spaces apart. Test images are queries, searched in a gallery.

    Raises:
        SettingError: for a line of another form, and as `published.find` and `published.assemble`.
    """
    file = find(config, "in-shop", "Eval", "list_eval_partition.txt")
    rows = [_row(file, line) for line in read_lines(file, header=2)]
    items = sorted({item for _, item, _ in rows})
    label = {item: place for place, item in enumerate(items)}
    train, queries, gallery = ([(path, label[item]) for path, item, of in rows if of == side] for side in _SIDES)
    listing = Listing(
        class_names=tuple(items), train=train, tests=(("test", queries, gallery),), ks=(1, 10, 20, 30, 50)
    )
    return assemble(config, file.parent.parent, listing)


def _row(file: Path, line: str) -> tuple[str, str, str]:
    """Path, which may hold spaces, item and status."""
    words = line.rsplit(maxsplit=2)
    if len(words) < 3 or words[2] not in _SIDES:
        raise bad_line(file, line, "`path item_id train|query|gallery`")
    return words[0], words[1], words[2]
