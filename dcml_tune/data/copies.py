"""Search for a copy of a published data set, which is recognised by its content.

The copy may be at `dataset_dir` or up to two folders below. Its folder may have any name, and the case of names is ignored.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.datasets.folder import directory
from dcml_tune.data.folders import Folders
from dcml_tune.data.image_list import named
from dcml_tune.data.layouts import LAYOUTS, OWN, SPLIT_IN, Layout, Parts
from dcml_tune.data.tree import is_folder
from dcml_tune.utils.stored import printable

DEEPEST = 2
"""Depth of the search below `dataset_dir`, in folders."""

# Largest number of folders that are searched per level, so that a directory of a million folders does not take minutes.
_MOST_FOLDERS = 5_000


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A copy that was found."""

    layout: Layout
    base: Path
    """The folder to which the paths of the layout are relative."""
    parts: Parts
    """Existing parts and extras of the layout."""
    notes: tuple[str, ...] = ()
    """Lines for the user: which copy is used, and why."""


def find_copy(config: TrialConfig) -> Copy:
    """Find the copy of the data set that the configuration selects.

    Copies at a smaller depth take precedence. Among several at the same depth, the one with the folder name of the original
    code is used, with a note.

    Raises:
        SettingError: if there is no copy, it is incomplete, or there are several.
    """
    root = directory(config)
    tree = _Tree()
    incomplete: list[tuple[Copy, list[str]]] = []
    for folders in tree.levels(root):
        found = [each for folder in folders for each in _copies(config.dataset, folder, tree)]
        whole = [copy for copy, missing in found if not missing]
        if whole:
            return _choose(config, root, whole, tree)
        incomplete += found
    if incomplete:
        raise _incomplete(config, *max(incomplete, key=_likeness))
    raise _none(config, root, tree)


def _copies(dataset: str, folder: Path, tree: _Tree) -> Iterator[tuple[Copy, list[str]]]:
    """Yield the complete copy in a folder, or the incomplete copies of all layouts, with the names of missing parts."""
    found = []
    for layout in LAYOUTS[dataset]:
        parts = tree.parts(folder, layout.parts)
        missing = [name for name in layout.parts if name not in parts]
        if missing and not any(name in parts for name in layout.known_by):
            continue
        if not _holds(layout, folder, parts, tree):
            continue
        found.append((Copy(layout=layout, base=folder, parts={**parts, **tree.parts(folder, layout.extras)}), missing))
        if not missing:
            found = found[-1:]
            break
    yield from found


def _holds(layout: Layout, folder: Path, parts: Parts, tree: _Tree) -> bool:
    """Whether the parts are those of the data set. Unreadable ones are not, and are recorded in the tree."""
    try:
        return layout.holds(folder, parts)
    except NotADirectoryError:
        return False
    except (OSError, SettingError) as error:
        tree.unreadable.append((folder, str(error)))
        return False


def _choose(config: TrialConfig, root: Path, whole: list[Copy], tree: _Tree) -> Copy:
    """Select one of several complete copies, with notes for the user."""
    own_places = (root / OWN[config.dataset], root / Path(OWN[config.dataset]).parts[0])
    own = [copy for copy in whole if copy.base in own_places]
    places = {copy.base.resolve(): copy for copy in reversed(whole)}  # links may give one copy several paths
    if len(places) > 1 and not own:
        raise SettingError(
            f"dataset_dir={config.dataset_dir}: holds {len(places)} copies of {config.dataset}: "
            f"{named(sorted(str(copy.base) for copy in places.values()))}; give one of them with --dataset-dir"
        )
    taken = (own or whole)[0]
    part_of = [why for folder, why in tree.unreadable if taken.base.is_relative_to(folder)]
    if part_of and not own:
        raise SettingError(f"{config.dataset} in {taken.base}: belongs to a folder that cannot be read ({part_of[0]})")
    others = sorted(str(copy.base) for place, copy in places.items() if place != taken.base.resolve())
    notes = [] if own and not others else [f"{config.dataset} is read from {taken.base} ({taken.layout.title})"]
    if others:
        notes.append(f"other copies of {config.dataset} are not used: {named(others)}")
    return replace(taken, notes=tuple(notes))


def _likeness(found: tuple[Copy, list[str]]) -> tuple[int, int]:
    """Similarity of a folder to a copy: number of existing parts, and number of these with the names of the archive."""
    copy, _ = found
    archived = [
        name for name, spellings in copy.layout.parts.items() if copy.parts.get(name) == copy.base / spellings[0]
    ]
    return len(copy.parts), len(archived)


def _incomplete(config: TrialConfig, copy: Copy, missing: list[str]) -> SettingError:
    wanted = [copy.layout.parts[name][0] for name in missing]
    place = (copy.base / wanted[0]).parent
    return SettingError(
        f"{config.dataset} in {copy.base}: {named(wanted)} is missing, and the copy cannot be read without it; "
        f"{copy.layout.remedy} ({_beside(place if place.is_dir() else copy.base, Path(wanted[0]).name)})"
    )


def _none(config: TrialConfig, root: Path, tree: _Tree) -> SettingError:
    """The error if no copy was found. It names a copy up to three folders above, if there is one."""
    titles = "; or ".join(layout.title for layout in LAYOUTS[config.dataset])
    above = [
        parent for parent in root.parents[:3] for copy, missing in _copies(config.dataset, parent, tree) if not missing
    ]
    hint = f"give {above[0]}" if above else "give the folder that holds one"
    if not above and any(path.suffix == ".parquet" for place in (root, root / "data") for path in place.glob("*")):
        hint = "Hugging Face's Parquet files contain the images: export them as image files first"
    if config.dataset in SPLIT_IN:
        hint += f" (images alone are not enough: only {SPLIT_IN[config.dataset]} has the published split)"
    if tree.unreadable:
        hint = f"a folder that may hold one cannot be read ({tree.unreadable[0][1]})"
    return SettingError(
        f"dataset_dir={config.dataset_dir}: holds no copy of {config.dataset}, nor do folders up to {DEEPEST} levels below; {hint}, or "
        f"one of the layouts of docs/data-sets.md: {titles} ({_beside(root, OWN[config.dataset].split('/')[0])})"
    )


def _beside(folder: Path, wanted: str) -> str:
    """The content of a folder, for messages; names similar to the missing one come first."""
    with os.scandir(folder) as entries:
        there = sorted(f"{entry.name}/" if is_folder(entry) else entry.name for entry in entries)
    near = difflib.get_close_matches(wanted, there, n=3, cutoff=0.5)
    rest = [name for name in there if name not in near]
    return f"{folder} holds {printable(named([*near, *rest], limit=6))}" if there else f"{folder} is empty"


class _Tree:
    """The folders in which a copy is searched."""

    def __init__(self) -> None:
        self._disk = Folders()
        self.unreadable: list[tuple[Path, str]] = []
        """Folders that may be copies but cannot be read, with the reason."""

    def levels(self, root: Path) -> Iterator[list[Path]]:
        """Yield the directory, the folders in it, and the folders in those, up to a limit per level."""
        level = [root]
        for _ in range(DEEPEST + 1):
            yield level
            level = list(islice((below for folder in level for below in self._disk.below(folder)), _MOST_FOLDERS))

    def parts(self, base: Path, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, Path]:
        """The existing ones of the wanted paths, by name of the part."""
        found = {}
        for name, spellings in wanted.items():
            there = (self._disk.spelled(base, each) for each in spellings)
            if (first := next((path for path in there if path is not None), None)) is not None:
                found[name] = base / first
        return found
