"""Where the image stores of a node lie: below the output directory, or in the directory of --scratch on the node's own disk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from dcml_tune.config.errors import SettingError
from dcml_tune.config.search import SearchConfig
from dcml_tune.runs.paths import STORES, absolute

SCRATCH = "--scratch"
SCRATCH_HELP = " ".join(str(SearchConfig.model_fields["scratch"].description).split())


@dataclass(frozen=True)
class Stores:
    """The directories of the image stores on a node.

    Functions that take one take a path, too: the directory of the image stores, which is then the only directory.

    Example:
        >>> Stores.below(Path("/shared/runs"), "/local").directory.as_posix()
        '/local'
        >>> Stores.below(Path("/shared/runs"), None).directory.as_posix()
        '/shared/runs/store'
    """

    directory: Path
    """The image stores, and the hashes of files of this node."""
    shared: Path | None = None
    """OUTPUT/store, if `directory` is another one. Image stores that are there are copied instead of built, where that takes
    less time. Hashes of files are read and written there, too."""
    storage: str | None = None
    """Address of --storage. Then nodes share no directory, and `shared` is on the node's own disk, too."""

    @classmethod
    def of(cls, place: Path | str | Stores) -> Stores:
        """Return the directories that were given, or a single directory."""
        return place if isinstance(place, Stores) else cls(Path(place))

    @classmethod
    def below(cls, output: Path, scratch: str | None, storage: str | None = None) -> Stores:
        """Return the directories of an output directory, of --scratch and of --storage, which may be None."""
        shared = output / STORES
        if scratch is None or Path(scratch) == shared:
            return cls(shared, storage=storage)
        return cls(Path(scratch), shared, storage)

    @property
    def on_node(self) -> bool:
        """Whether the image stores are on each node's own disk."""
        return self.shared is not None or self.storage is not None

    @property
    def all(self) -> tuple[Path, ...]:
        """The directories, the node's own first."""
        return (self.directory,) if self.shared is None else (self.directory, self.shared)

    @property
    def common(self) -> Path:
        """The directory that all nodes share, or all trials of a node: small results that trials use are kept there."""
        return self.all[-1]

    def make_common(self) -> Path:
        """Create the directory that all nodes share, and return it."""
        self.common.mkdir(parents=True, exist_ok=True)
        return self.common


def scratch_directory(text: str | None, images: str | None) -> str | None:
    """Create the directory of --scratch on this machine.

    Args:
        text: the word of the command line, or None.
        images: directory of the data set, or None.

    Returns:
        Its absolute path; None if none was given.

    Raises:
        SettingError: if it is an address, cannot be written, or lies inside the data set.
    """
    if text is None:
        return None
    if re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        raise SettingError(
            f"{SCRATCH} {text}: image stores are files that are memory-mapped; give a directory on a local disk"
        )
    directory = absolute(SCRATCH, text)
    if fault := scratch_fault(directory, images):
        raise SettingError(f"{SCRATCH} {directory}: {fault}; choose another directory")
    return str(directory)


def scratch_fault(directory: Path, images: str | None) -> str | None:
    """Create the directory of --scratch; returns why it cannot be used on this machine, or None.

    Args:
        directory: its absolute path.
        images: directory of the data set, or None.
    """
    if images is not None and directory.resolve().is_relative_to(Path(images).expanduser().resolve()):
        return f"it lies inside the data set {images}"
    probe = directory / f".writable-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"it cannot be written ({error.strerror})"
    return None
