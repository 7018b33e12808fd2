"""TrialData: the images of a trial, which of them train and which are held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcml_tune import data
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import ImageList, ImageStore, remains
from dcml_tune.runs.stores import Stores

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TrialData:
    """The images of a trial, as rows of the stores of a data set's training classes."""

    dataset: data.DataSet
    images: ImageList
    """All images of the training classes that can be read, held out or not."""
    labels: Indices
    """Class of each image, 0 .. number of classes - 1."""
    train: Indices
    """Rows of the images that train."""
    validation: Indices | None
    """Rows of the images that are held out; None when there are none."""
    gallery: Indices | None
    """Rows of the gallery that held-out queries are searched in; None: each other."""
    ks: tuple[int, ...]
    originals: ImageStore
    """Decoded images that training crops are taken from."""
    views: ImageStore
    """The same images as the network sees them in evaluation."""
    stores: Stores
    """Where the image stores lie."""

    @classmethod
    def open(cls, config: TrialConfig, stores: Path | Stores, *, verify: bool = False) -> TrialData:
        """Open the image stores of a trial; missing ones are built.

        Args:
            config: gives the data set, the share that is held out, and the sizes of the images.
            stores: directory of the image stores, which the trials of a node share.
            verify: compare the stored images with their checksums, and rebuild damaged stores.

        Raises:
            SettingError: for a data set that is missing, unreadable, or too small for the settings.
        """
        dataset = data.load(config)
        originals, views = (
            data.open_store(config, dataset.train, stores, kind=kind, verify=verify) for kind in _kinds(config)
        )
        images = dataset.train.take(originals.kept)
        remains.of_train(config, dataset, originals).checked()
        train, held_out = data.hold_out_rows(
            images,
            share=config.held_out_share,
            seed=config.split_seed,
            fold=config.fold,
            gallery=dataset.tests[0].gallery is not None,
        )
        labels = np.unique(images.labels, return_inverse=True)[1].astype(np.int64)
        # After the split, so that the choice of the held-out classes does not depend on unreadable images.
        matched = remains.matched(dataset.train.labels, images.labels)

        def kept(rows: Indices) -> Indices:
            return rows[matched[rows]]

        trial = cls(
            dataset=dataset,
            images=images,
            labels=labels,
            train=kept(train),
            validation=kept(held_out.queries) if held_out else None,
            gallery=kept(held_out.gallery) if held_out and held_out.gallery is not None else None,
            ks=_ks(dataset),
            originals=originals,
            views=views,
            stores=Stores.of(stores),
        )
        if reason := trial.cannot_train(config):
            raise SettingError(reason)
        return trial

    @staticmethod
    def needed_bytes(config: TrialConfig, stores: Path | Stores) -> int:
        """Return the bytes on disk that `open` and the scoring of the test classes will need; existing stores count 0."""
        dataset, sizes = data.load(config), {"sz_resize": config.sz_resize, "sz_crop": config.sz_crop}
        train = sum(data.needed_bytes(dataset.train, stores, kind=kind, **sizes) for kind in _kinds(config))
        opens = config.protocol == "paper"
        tests = (data.needed_bytes(images, stores, opens, kind="evaluation", **sizes) for images in dataset.test_lists)
        return train + sum(tests)

    def identity(self, config: TrialConfig) -> data.Identity:
        """Return fingerprints of the images that trials are trained, compared and scored on."""
        return data.Identity.of(self.dataset, self.stores, opens_test=config.protocol == "paper")

    def store_bytes(self, config: TrialConfig, *, tests: bool) -> dict[str, int]:
        """Return name -> size of the image stores of a search; those of the test images, if they count, must exist."""
        lists = self.dataset.test_lists if tests else ()
        stores = [self.originals, self.views, *(data.open_store(config, images, self.stores) for images in lists)]
        return {store.key: store.nbytes for store in stores}

    def notes(self, config: TrialConfig) -> list[str]:
        """Return lines for the user: which training images cannot be decoded, and how others were converted."""
        return remains.of_train(config, self.dataset, self.originals).lines

    def split(self, config: TrialConfig) -> str:
        """Return one line: what trains, what epochs are compared on, and which flags select the original's protocol."""
        trains, all_classes = len(np.unique(self.labels[self.train])), len(np.unique(self.labels))
        line = f"{trains:,} classes ({len(self.train):,} images) train"
        if config.protocol == "paper":
            return f"{line}; epochs are compared on the test classes"
        if self.validation is None:
            return f"{line}; none are held out, so that the last epoch counts as the best"
        held_out = f"{all_classes - trains:,} ({len(self.labels) - len(self.train):,} images)"
        return (
            f"{line}, {held_out} are held out to find the best epoch; --val-share 0 trains on all, --protocol paper compares "
            "on the test classes, as the original"
        )

    def cannot_train(self, config: TrialConfig) -> str | None:
        """Return why the classes that train are too few for some settings, or None.

        Every cluster needs two classes, and a batch what its sampler asks for.
        """
        classes = len(np.unique(self.labels[self.train]))
        if 2 * config.nb_clusters > classes:
            return (
                f"nb_clusters={config.nb_clusters}: every cluster needs two classes, and {classes} classes train; "
                f"take at most {1 << max(0, (classes // 2).bit_length() - 1)}"
            )
        return None


def _kinds(config: TrialConfig) -> tuple[data.Kind, ...]:
    """The stores of a trial's training images."""
    return config.image_store, "evaluation"


def _ks(dataset: data.DataSet) -> tuple[int, ...]:
    return dataset.tests[0].ks
