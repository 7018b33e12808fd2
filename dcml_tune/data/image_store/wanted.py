"""Which store is asked for, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcml_tune.data.image_store.layout import VERSION, Layout
from dcml_tune.data.images import ImageList, fingerprint


@dataclass(frozen=True)
class Wanted:
    """The store that is asked for."""

    images: ImageList
    directory: Path
    layout: Layout
    identity: str
    """Tells one state of one list of images from all others."""

    @classmethod
    def of(cls, images: ImageList, directory: Path, layout: Layout) -> Wanted:
        """The store of a list as it is now."""
        assert len(images), "an image list without images"
        return cls(images, Path(directory), layout, identity_of(images))

    @property
    def final(self) -> Path:
        """The directory of the store."""
        return self.directory / "-".join([self.layout.kind, *map(str, self.layout.sizes.values()), self.identity])

    @property
    def facts(self) -> dict[str, Any]:
        """What the store must say of itself."""
        return {"key": self.final.name, "version": VERSION, "kind": self.layout.kind, **self.layout.sizes}


def identity_of(images: ImageList) -> str:
    """Hash of the images, where they lie, and how they are decoded."""
    # Two directories may hold files of the same names, sizes and times; the checksums of a zip tell enough.
    place = images.root.resolve() if images.root.is_dir() else "zip"
    return fingerprint(VERSION, place, images.fingerprint)
