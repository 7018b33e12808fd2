"""Ranks: the processes that train one setting together, and what they exchange.

Rank 0 is the process that has the Trainer: it clusters, measures, saves and decides. The others carry out its orders
(`dcml_tune.training.ranks.__main__`). Each order brings the state that it acts on, so they keep no state of their own between
orders: whatever rank 0 has loaded, divided or merged, the others continue from it.

Orders are JSON and tensors, never pickles: the sockets have no login.

Sources:
    the mean of the gradients, and `lr_scale`: Goyal et al., Accurate, Large Minibatch SGD, 2017 (arXiv:1706.02677), section 2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class RankError(RuntimeError):
    """A rank has failed, or the ranks do not agree."""


@dataclass(frozen=True)
class Turn(Generic[T]):
    """What one rank does in one update."""

    number: int
    """Number of its batch in the epoch."""
    batch: T | None
    """Its batch; None where the last update has fewer batches than there are ranks."""
    batches: int
    """Number of batches of the update, of all ranks."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """One rank's view of all of them. Every method but `turns` and `lr_scale` is called by all ranks at once.

    With one rank nothing is exchanged and nothing is copied.

    Example:
        >>> ALONE.size, [turn.number for turn in ALONE.turns("abc")]
        (1, [0, 1, 2])
        >>> [(turn.number, turn.batch, turn.batches) for turn in Ranks(rank=1, size=2).turns("abc")]
        [(1, 'b', 2), (3, None, 1)]
    """

    rank: int = 0
    """Number of this rank; rank 0 has the trainer."""
    size: int = 1
    """Number of ranks."""
    why_failed: Callable[[], str | None] = lambda: None
    """Returns why another rank has ended, if an exchange with it fails; None if that is not known."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0 of several."""
        return self.rank == 0 and self.size > 1

    @property
    def lr_scale(self) -> float:
        """Factor of all learning rates: the number of ranks (linear scaling rule).

        N ranks make an N-th of the updates. With this factor an epoch moves the weights as far as with one rank, while the
        gradient changes little between updates. docs/scale.md compares it with the square root.
        """
        return float(self.size)

    def turns(self, batches: Sequence[T]) -> list[Turn[T]]:
        """Divide the batches of an epoch: rank r takes batch r of each `size` consecutive ones.

        Consecutive batches are of different clusters, so learners train side by side. All ranks take the same number of
        turns, and every batch is taken.
        """
        return [
            Turn(
                number=first + self.rank,
                batch=batches[first + self.rank] if first + self.rank < len(batches) else None,
                batches=min(self.size, len(batches) - first),
            )
            for first in range(0, len(batches), self.size)
        ]

    # -- tensors ---------------------------------------------------------------------------------------

    def add(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the ranks; returns it."""
        if self.size > 1:
            with self._exchange():
                dist.all_reduce(tensor)
        return tensor

    def average_gradients(self, parameters: Iterable[nn.Parameter], batches: int) -> None:
        """Replace the gradients by the mean over the batches of an update.

        A trainable parameter without a gradient on this rank counts as 0, so that a rank without a batch takes part. Frozen
        parameters keep none: the optimiser skips them as without ranks.

        Args:
            parameters: the same ones on all ranks, in the same order.
            batches: number of batches of the update, of all ranks.
        """
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        self._replace(gradients, lambda flat: self.add(flat).div_(batches))

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the ranks."""
        if self.size > 1:
            self._replace(tensors, lambda flat: self.add(flat).div_(self.size))

    @staticmethod
    def _replace(tensors: Sequence[Tensor], change: Any) -> None:
        """Change the values of tensors as one flat tensor for each type of number."""
        with torch.no_grad():
            for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
                chosen = [tensor for tensor in tensors if tensor.dtype == dtype]
                flat = change(torch.cat([tensor.detach().reshape(-1) for tensor in chosen]))
                for tensor, values in zip(chosen, flat.split([tensor.numel() for tensor in chosen]), strict=True):
                    tensor.copy_(values.view(tensor.shape))

    def check_equal(self, tensors: Sequence[Tensor], what: str) -> float:
        """Check that tensors have the same values on all ranks, up to rounding.

        Args:
            tensors: floating-point numbers.
            what: their name in the error.

        Returns:
            The largest difference between two ranks.

        Raises:
            RankError: if it exceeds a thousandth of the largest value.
        """
        if self.size == 1:
            return 0.0
        with torch.no_grad():
            largest = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
            smallest = -largest
            scale = largest.abs().max().clone()
            with self._exchange():
                dist.all_reduce(largest, dist.ReduceOp.MAX)
                dist.all_reduce(smallest, dist.ReduceOp.MAX)
            difference, scale_value = torch.stack([(largest + smallest).max(), scale]).tolist()
        if difference > 1e-3 * scale_value:
            raise RankError(
                f"{what} of the {self.size} ranks differ by {difference:.2g}: they did not exchange what they should; give "
                "--gpus-per-trial 1"
            )
        return float(difference)

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Join the rows of all ranks, in the order of the ranks.

        Args:
            rows: N x D, those of this rank.
            counts: N of each rank.
        """
        if self.size == 1:
            return rows
        padded = rows.new_zeros((max(counts), rows.shape[1]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        with self._exchange():
            dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    # -- orders ----------------------------------------------------------------------------------------

    def tell(self, order: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Give the other ranks an order (rank 0 only).

        Args:
            order: as JSON.
            tensors: what it acts on.
            device: device of the model, through which the tensors are sent.
        """
        shapes = [[name, list(value.shape), _name(value.dtype)] for name, value in tensors.items()]
        text = torch.frombuffer(bytearray(json.dumps([dict(order), shapes]).encode()), dtype=torch.uint8)
        with self._exchange():
            dist.broadcast(torch.tensor([len(text)]), 0)
            dist.broadcast(text, 0)
            for dtype in _dtypes(shapes):
                chosen = [tensor for tensor in tensors.values() if _name(tensor.dtype) == dtype]
                dist.broadcast(torch.cat([tensor.detach().to(device).reshape(-1) for tensor in chosen]), 0)

    def hear(self, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Wait for an order of rank 0; returns it with new tensors on the device (other ranks only)."""
        length = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(length, 0)
        text = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(text, 0)
        order, shapes = json.loads(text.numpy().tobytes())
        tensors: dict[str, Tensor] = {}
        for dtype in _dtypes(shapes):
            chosen = [(name, shape) for name, shape, kind in shapes if kind == dtype]
            sizes = [math.prod(shape) for _, shape in chosen]
            flat = torch.empty(sum(sizes), dtype=getattr(torch, dtype), device=device)
            dist.broadcast(flat, 0)
            for (name, shape), values in zip(chosen, flat.split(sizes), strict=True):
                tensors[name] = values.view(shape)
        return order, tensors

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Raise a RankError with the reason if the block fails because another rank has ended."""
        try:
            yield
        except RuntimeError as error:
            raise RankError(self.why_failed() or f"an exchange of {self.size} ranks failed: {error}") from error


ALONE = Ranks()
"""The one rank of a training in a single process."""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtypes(shapes: Sequence[Sequence[Any]]) -> list[str]:
    return sorted({kind for _, _, kind in shapes})
