"""The weights that are measured: the mean over the last epochs, mixed with the weights at the start of training.

Only the evaluation, the best model and the test see them. Training and clustering use the trained weights, so they are the
same, bit for bit, with and without. Batch-norm statistics are averaged and mixed as parameters are.

Sources:
    average_epochs: equal weights as in Izmailov et al., Averaging Weights Leads to Wider Optima, UAI 2018; of the latest
        epochs as in Kaddour, Stop Wasting My Time, 2022 (arXiv:2209.14981).
    pretrained_share: Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, CVPR 2022 (WiSE-FT).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dcml_tune.models.embedder import MaskedEmbedder, check_weights
from dcml_tune.training.state import Weights, copied_to_cpu, under
from dcml_tune.utils import checkpoint

_MIXED = ("backbone.", "pooling.", "embedding.")
"""Prefixes of the weights that are mixed with those at the start. The masks at the start belong to other learners."""


@dataclass(kw_only=True)
class MeasuredWeights:
    """Computes the weights that are measured. It keeps no copies if both settings are off.

    Copies lie on the CPU. Sums are float64, from the oldest epoch to the newest, so a resumed trial computes the same
    numbers; equal weights have exactly themselves as mean and as mix.

    Example:
        >>> from dcml_tune import TrialConfig
        >>> network = {"arch": "test_resnet", "weights": "none", "sz_resize": 32, "sz_crop": 32, "sz_embedding": 16}
        >>> model = MaskedEmbedder(TrialConfig(**network))
        >>> measured = MeasuredWeights(average_epochs=1, share=0.25)
        >>> measured.before_epoch(model, is_first=True)
        >>> _ = model.embedding.bias.data.add_(4.0)
        >>> trained = model.embedding.bias[0].item()
        >>> with measured.swapped_into(model):
        ...     trained - model.embedding.bias[0].item()
        1.0
    """

    average_epochs: int
    """Number of epochs over which weights are averaged."""
    share: float
    """Share of the weights at the start in the mix."""
    start: Weights | None = None
    """Backbone, pooling and embedding layer at the start of training; None without a share, or before training."""
    earlier: list[Weights] = field(default_factory=list)
    """State dicts after the epochs before the last one, the oldest first, at most `average_epochs` - 1."""

    def before_epoch(self, model: MaskedEmbedder, *, is_first: bool) -> None:
        """Copy what is needed later of the weights that the next epoch changes.

        Args:
            model: as the previous epoch left it.
            is_first: no epoch was trained before, so that these are the weights at the start.
        """
        if is_first:
            self.start = copied_to_cpu(_mixed_part(model.state_dict())) if self.share else None
        elif self.average_epochs > 1:
            self.earlier = [*self.earlier, copied_to_cpu(model.state_dict())][1 - self.average_epochs :]

    def of(self, model: MaskedEmbedder) -> Weights:
        """Return the measured state dict of a model, on the CPU; it shares no memory with the model."""
        weights = model.state_dict()
        if not self._differs:
            return copied_to_cpu(weights)
        return {name: self._measured(name, value.detach()) for name, value in weights.items()}

    @contextmanager
    def swapped_into(self, model: MaskedEmbedder) -> Iterator[None]:
        """Let a model have the measured weights inside the block; after it, it has its own tensors again."""
        if not self._differs:
            yield
            return
        tensors = model.state_dict(keep_vars=True)
        own = {name: tensor.data for name, tensor in tensors.items()}
        try:
            for name, value in own.items():
                tensors[name].data = torch.empty_like(value).copy_(self._measured(name, value))
            yield
        finally:
            for name, value in own.items():
                tensors[name].data = value

    def tensors(self) -> Weights:
        """Return all copies, named start/NAME and earlier/NUMBER/NAME."""
        found = {f"start/{name}": value for name, value in (self.start or {}).items()}
        for number, weights in enumerate(self.earlier):
            found |= {f"earlier/{number}/{name}": value for name, value in weights.items()}
        return found

    def load(self, tensors: Weights) -> None:
        """Take the copies that `tensors` returned."""
        self.start = under("start/", tensors) or None
        self.earlier = _earlier(tensors, self.average_epochs)

    @property
    def _differs(self) -> bool:
        return bool(self.earlier) or self.start is not None

    def _measured(self, name: str, trained: Tensor) -> Tensor:
        """Return the mean and mix of one tensor, on the CPU. Counters, which are integers, keep their value.

        Masks are averaged since the last division or merge, which changes their number.
        """
        if not trained.is_floating_point():
            return trained.to("cpu", copy=True)
        copies = [kept[name] for kept in self.earlier if kept[name].shape == trained.shape]
        mean = torch.zeros(trained.shape, dtype=torch.float64)
        for copy in [*copies, trained.cpu()]:
            mean += copy
        mean /= len(copies) + 1
        if self.start is not None and name in self.start:
            mean = mean.lerp(self.start[name].double(), self.share)
        return mean.to(trained.dtype)


def check_kept(tensors: Weights, model: MaskedEmbedder, file: Path, *, is_trained: bool) -> None:
    """Check that tensors are copies that `MeasuredWeights` of a model can have.

    Args:
        tensors: as `MeasuredWeights.tensors` returns them.
        model: the model; its configuration says what is kept.
        file: file of the tensors, for messages.
        is_trained: at least one epoch was trained.

    Raises:
        CheckpointError: if they are not.
    """
    start = _mixed_part(model.state_dict()) if is_trained and model.config.pretrained_share else {}
    checkpoint.check_tensors(under("start/", tensors), start, file)
    for weights in _earlier(tensors, model.config.average_epochs):
        check_weights(model, weights, file)


def _earlier(tensors: Weights, average_epochs: int) -> list[Weights]:
    found = (under(f"earlier/{number}/", tensors) for number in range(average_epochs - 1))
    return [weights for weights in found if weights]


def _mixed_part(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that `pretrained_share` acts on: those of backbone, pooling and embedding layer."""
    return {name: value for name, value in weights.items() if name.startswith(_MIXED)}
