"""Loading of training and evaluation batches. A trial has one training loader, for all clusters and epochs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dcml_tune.data.image_list import Indices, Pixels
from dcml_tune.data.image_store import ImageStore
from dcml_tune.data.transforms import TrainTransform

# First word of the seed of augmentation; the batch samplers (samplers.py) use another.
STREAM = 2

PREFETCH = 2
"""Number of batches that each loader process prepares ahead."""

EVALUATION_BATCH = {"cpu": 64, "cuda": 256}
"""Batch size of evaluation, by type of device."""

# A batch to prepare: words of the seed, and rows of the store.
Order = tuple[list[int], Indices]


class BatchLoader:
    """Prepares training batches, in this process or in worker processes that persist between epochs.

    Without workers a batch is prepared when it is requested: a thread would compete with training for the same core. The
    number of workers does not change the content of batches.
    """

    def __init__(
        self, store: ImageStore, transform: TrainTransform, *, num_workers: int = 0, pin: bool = False
    ) -> None:
        """Create the loader; workers start with the first epoch.

        Args:
            store: training images.
            transform: augmentation.
            num_workers: number of worker processes; 0 prepares batches in this process.
            pin: put batches in page-locked memory, so that copies to a GPU do not block.
        """
        self._batches = _Batches(store, transform)
        self._orders = _Orders()
        self._num_workers, self._pin = num_workers, pin
        self._loader: DataLoader[Tensor] | None = None

    def epoch(
        self, batches: Sequence[tuple[int, Indices]], seed: int, epoch: int, numbers: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Tensor, Indices]]:
        """Prepare the batches of an epoch, in order; batch b is augmented from (seed, epoch, b).

        Args:
            batches: learner and rows of the store, as `epoch_batches` returns them.
            seed: seed of the trial.
            epoch: number of the epoch, from 0.
            numbers: number of each batch in the epoch; None: 0, 1, 2, ...

        Yields:
            Learner, uint8 images B x 3 x S x S in channels_last memory format, and their rows.
        """
        if numbers is None:
            numbers = range(len(batches))
        orders = [([STREAM, seed, epoch, number], rows) for number, (_, rows) in zip(numbers, batches, strict=True)]
        for (learner, rows), images in zip(batches, self._prepared(orders), strict=True):
            yield learner, images.permute(0, 3, 1, 2), rows

    def close(self) -> None:
        """Stop the workers. The next epoch starts new ones."""
        # torch stops them when the iterator in the loader is deleted.
        self._loader = None

    def _prepared(self, orders: list[Order]) -> Iterator[Tensor]:
        """Batches B x S x S x 3, a contiguous layout, which is passed between processes without conversion."""
        if self._num_workers == 0:
            prepared = (self._batches[order] for order in orders)
            return (images.pin_memory() for images in prepared) if self._pin else prepared
        self._orders.current = orders
        if self._loader is None:
            self._loader = DataLoader(
                self._batches,
                batch_size=None,
                sampler=self._orders,
                num_workers=self._num_workers,
                prefetch_factor=PREFETCH,
                pin_memory=self._pin,
                persistent_workers=True,
                # Without it each epoch draws a seed from torch's global generator, which dropout uses.
                generator=torch.Generator(),
            )
        return iter(self._loader)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """The stream of all copies to a GPU: blocks of memory belong to a stream, and each further one would keep its own."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


class ToDevice:
    """Copies batches to a device.

    Copies to a GPU use page-locked memory and a separate stream: a batch is copied while the GPU computes the previous one,
    and the host does not block.
    """

    def __init__(self, device: torch.device) -> None:
        """Prepare copies to a device."""
        self._device = device
        self._copies = _copy_stream(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Copy a batch to the device, in its memory format; on the CPU it is returned unchanged."""
        if self._copies is None or images.is_cuda:
            return images.to(self._device)
        pinned = images if images.is_pinned() else images.pin_memory()
        with torch.cuda.stream(self._copies):
            copy = pinned.to(self._device, non_blocking=True)
        work = torch.cuda.current_stream(self._device)
        work.wait_stream(self._copies)
        copy.record_stream(work)  # the allocator must not reuse its memory before the work on it is complete
        return copy


if TYPE_CHECKING:
    _DatasetOfBatches = Dataset[Tensor]
    _SamplerOfOrders = Sampler[Order]
else:
    _DatasetOfBatches, _SamplerOfOrders = Dataset, Sampler


class _Batches(_DatasetOfBatches):
    """A data set whose items are complete batches, indexed by their order."""

    def __init__(self, store: ImageStore, transform: TrainTransform) -> None:
        self.store, self.transform = store, transform

    def __getitem__(self, order: Order) -> Tensor:
        seed, rows = order
        images = self.transform(self.store.images(rows), np.random.default_rng(seed))
        return images.permute(0, 2, 3, 1)


class _Orders(_SamplerOfOrders):
    """The orders of the current epoch; torch iterates over them in each epoch."""

    current: list[Order] = []  # noqa: RUF012

    def __iter__(self) -> Iterator[Order]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)


def evaluation_batches(store: ImageStore, indices: Indices, batch_size: int) -> Iterator[Tensor]:
    """Yield rows of an evaluation store in batches, uint8 B x 3 x S x S in channels_last memory format.

    Batches of consecutive rows are views of the memory map. Do not write to them.
    """
    for start in range(0, len(indices), batch_size):
        rows = indices[start : start + batch_size]
        first, last = int(rows[0]), int(rows[-1])
        follow = last - first == len(rows) - 1 and bool((np.diff(rows) == 1).all())
        images = store.array[first : last + 1] if follow else store.array[rows]
        yield _tensor(images).permute(0, 3, 1, 2)


def _tensor(images: Pixels) -> Tensor:
    """A tensor that shares the memory of an array, without torch's warning that the array is read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images)
