"""The requested store: its identity and its directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcml_tune.data.contents import contents
from dcml_tune.data.image_list import ImageList, fingerprint
from dcml_tune.data.image_store.layout import VERSION, Layout
from dcml_tune.runs.stores import Stores


@dataclass(frozen=True)
class Wanted:
    """A requested store."""

    images: ImageList
    stores: Stores
    layout: Layout
    identity: str
    """Hash of names and content of the images, in order."""

    @classmethod
    def of(cls, images: ImageList, stores: Path | Stores, layout: Layout) -> Wanted:
        """The store of an image list in its current state."""
        assert len(images), "an image list without images"
        return cls(images, Stores.of(stores), layout, identity_of(images, stores) or "")

    @property
    def directory(self) -> Path:
        """The directory of all stores."""
        return self.stores.directory

    @property
    def key(self) -> str:
        """The name of the store."""
        return "-".join([self.layout.kind, *map(str, self.layout.sizes.values()), self.identity])

    @property
    def final(self) -> Path:
        """The directory of the store."""
        return self.directory / self.key

    @property
    def facts(self) -> dict[str, Any]:
        """Facts that the description of the store must contain."""
        return {"key": self.key, "version": VERSION, "kind": self.layout.kind, **self.layout.sizes}


def identity_of(images: ImageList, stores: Path | Stores, *, opens: bool = True) -> str | None:
    """Hash of the images and of the version of decoding; None if files would have to be opened.

    Args:
        images: the list.
        stores: directory of all stores, which also contains the hashes of files.
        opens: whether files may be opened.
    """
    known = contents(images, stores, opens=opens)
    return None if known is None else fingerprint(VERSION, *known)
