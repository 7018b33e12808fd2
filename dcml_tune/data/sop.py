"""Stanford Online Products: 22,634 products of 12 kinds; the first 11,318 train.

Source: Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path

from dcml_tune.config import TrialConfig
from dcml_tune.data.images import DataSet
from dcml_tune.data.published import Entries, Listing, assemble, bad_line, find, read_lines


def read(config: TrialConfig) -> DataSet:
    """List the images of sop/Ebay_train.txt and Ebay_test.txt: a header, then image_id class_id super_class_id path.

    Held-out classes are stratified by super-class.

    Raises:
        SettingError: for a line of another form, and as `published.find` and `published.assemble`.
    """
    lists = [find(config, "sop", f"Ebay_{side}.txt") for side in ("train", "test")]
    (train, supers), (test, _) = (_entries(file) for file in lists)
    names = tuple(str(number) for number in range(1, max((label for _, label in [*train, *test]), default=0) + 2))
    listing = Listing(class_names=names, train=train, tests=(("test", test, None),), ks=(1, 10, 100), super_of=supers)
    return assemble(config, lists[0].parent, listing)


def _entries(file: Path) -> tuple[Entries, dict[str, int]]:
    """Path and label (class_id - 1) of each image, and the super-class of each path."""
    entries, supers = [], {}
    for line in read_lines(file, header=1):
        words = line.split(maxsplit=3)  # the path may hold spaces
        if len(words) < 4 or not all(word.isdigit() for word in words[:3]):
            raise bad_line(file, line, "`image_id class_id super_class_id path`")
        entries.append((words[3], int(words[1]) - 1))
        supers[words[3]] = int(words[2])
    return entries, supers
