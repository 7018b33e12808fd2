"""Numbers of published classes, from the names of folders or labels of a copy.

Copies name classes by the published name in any spelling (`Black footed Albatross`), optionally after a number
(`001.Black_footed_Albatross`), or by the number only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

NB_CLASSES = {"cub": 200, "cars": 196, "sop": 22_634}
"""Number of classes of the data sets whose published split depends on class numbers, which begin at 1."""

_NUMBER = re.compile(r"^\d{1,5}[._\- ]+")


@cache
def names(dataset: str) -> tuple[str, ...]:
    """The published class names, ordered by number; empty if the classes of the data set have no names."""
    file = Path(__file__).parent / "embedded" / f"{dataset}_classes.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines()) if file.exists() else ()


def numbers(dataset: str, texts: Iterable[str]) -> dict[str, int]:
    """Number, from 1, of the class that each text names; texts that name no class are omitted.

    Bare numbers begin at 0 or 1. They are accepted if they include the first and the last class and none beyond, because
    only then their origin is unambiguous.

    Args:
        dataset: one of NB_CLASSES.
        texts: names of folders, or labels.

    Example:
        >>> numbers("cub", ["Laysan albatross", "001.Black_footed_Albatross", "cats"])
        {'Laysan albatross': 2, '001.Black_footed_Albatross': 1}
    """
    wanted, last = list(dict.fromkeys(texts)), NB_CLASSES[dataset]
    if wanted and all(text.isdecimal() for text in wanted):
        given = {text: int(text) for text in wanted}
        first = min(given.values())
        is_known = first in (0, 1) and max(given.values()) == first + last - 1
        return {text: number - first + 1 for text, number in given.items()} if is_known else {}
    known = _by_name(dataset)
    plain = {text: _plain(text) for text in wanted} | {
        text: _plain(_NUMBER.sub("", text)) for text in wanted if _plain(text) not in known
    }
    return {text: known[name] for text, name in plain.items() if name in known}


@cache
def _by_name(dataset: str) -> dict[str, int]:
    return {_plain(name): number for number, name in enumerate(names(dataset), 1)}


def _plain(name: str) -> str:
    """A name without the characters that copies spell differently: case, spaces, underscores, slashes."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())
