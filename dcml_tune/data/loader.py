"""BatchLoader: one loader for all clusters and epochs, with results that do not depend on its processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dcml_tune.data.store import ImageStore
from dcml_tune.data.transforms import TrainTransform

Indices = NDArray[np.int64]
Request = tuple[tuple[int, int, int], Indices]
"""What a worker is asked for: (seed, epoch, batch), from which the augmentation is seeded, and rows of the store."""


class _Views(Dataset[Tensor]):
    """Augmented batches; an item is a whole batch."""

    def __init__(self, store: ImageStore, transform: TrainTransform) -> None:
        self.store, self.transform = store, transform

    def __getitem__(self, request: Request) -> Tensor:
        chance, rows = request
        return self.transform([self.store.image(int(row)) for row in rows], np.random.default_rng(chance))


class _Requests:
    """A sampler whose requests are replaced for every epoch, so that the loader's processes live on."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


class BatchLoader:
    """Augmented training batches."""

    def __init__(
        self, store: ImageStore, transform: TrainTransform, *, num_workers: int = 0, pin: bool = False
    ) -> None:
        """`num_workers` 0 prepares batches in this process; `pin` puts them into memory that a GPU reads from."""
        self._requests = _Requests()
        self._loader: Any = DataLoader(
            _Views(store, transform),
            sampler=cast(Any, self._requests),
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin,
        )

    def epoch(
        self, batches: list[tuple[int, Indices]], *, seed: int, epoch: int
    ) -> Iterator[tuple[int, Tensor, Indices]]:
        """(learner, images B x 3 x S x S uint8, rows) of each batch; batch b is seeded from (seed, epoch, b)."""
        self._requests.requests = [((seed, epoch, number), rows) for number, (_, rows) in enumerate(batches)]
        for (learner, rows), images in zip(batches, self._loader, strict=True):
            yield learner, images, rows

    def close(self) -> None:
        """End the loader's processes."""
        self._loader = None


def evaluation_batches(store: ImageStore, rows: Indices, size: int) -> Iterator[Tensor]:
    """Batches of an evaluation store, B x 3 x S x S uint8 in channels_last."""
    array = store.array
    for start in range(0, len(rows), size):
        yield torch.from_numpy(array[rows[start : start + size]]).permute(0, 3, 1, 2)
