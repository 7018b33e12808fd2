"""A rewrite of a convolutional network that keeps its output and speeds up its training on a CPU.

Frozen batch-norm is folded into the preceding convolution: `bn(conv(x, w, c)) = conv(x, w * s, b + (c - m) * s)` with
s = gamma / sqrt(var + eps). The statistics are never updated, so this also holds in training; scale and shift get their
gradients through the small product w * s instead of the feature map. Depthwise convolutions over small maps become those of
`dcml_tune.models.depthwise`.

`benchmarks/epoch.py` measures the effect of both. Names of parameters do not change, and neither do state dicts.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcml_tune.models.depthwise import convolve, is_depthwise, pads_same


def fold(network: nn.Module, example: Tensor) -> nn.Module:
    """Rewrite a network in place, as far as its output does not change.

    Each convolution is paired with the batch-norm that is defined directly after it. A forward pass of `example`
    (B x 3 x H x W, normalised images) checks that the network also applies them in this order; other pairs are not
    changed. If the features still differ, nothing is folded.
    """
    network.eval()
    with torch.no_grad():
        before, pairs = _applied_pairs(network, example)
        for conv, norm in pairs:
            _FoldedConv.adopt(conv, norm)
        after = cast(Any, network).forward_features(example)
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
            for conv, norm in pairs:
                _FoldedConv.release(conv, norm)
    return network


def _applied_pairs(network: nn.Module, example: Tensor) -> tuple[Tensor, list[tuple[nn.Module, nn.Module]]]:
    """Features, and the pairs whose batch-norm receives exactly the output of its convolution.

    Comparing features would not be enough: a newly initialised batch-norm changes almost nothing wherever it is applied.
    The check therefore compares the tensors themselves and their versions, which count in-place changes.
    """
    pairs = [pair for module in network.modules() for pair in pairwise(module.children()) if _foldable(*pair)]
    given: dict[nn.Module, list[tuple[Tensor, int]]] = {module: [] for pair in pairs for module in pair}

    def gives(conv: nn.Module, _: Any, output: Tensor) -> None:
        given[conv].append((output, output._version))

    def takes(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        given[norm].append((inputs[0], inputs[0]._version))

    hooks = [conv.register_forward_hook(gives) for conv, _ in pairs]
    hooks += [norm.register_forward_pre_hook(takes) for _, norm in pairs]
    features = cast(Any, network).forward_features(example)
    for hook in hooks:
        hook.remove()
    return features, [(conv, norm) for conv, norm in pairs if _same(given[conv], given[norm])]


def _same(given: list[tuple[Tensor, int]], taken: list[tuple[Tensor, int]]) -> bool:
    return len(given) == len(taken) > 0 and all(a is b and v == w for (a, v), (b, w) in zip(given, taken, strict=True))


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        (type(conv) is nn.Conv2d or pads_same(conv))
        and conv.padding_mode == "zeros"
        and not (type(conv) is nn.Conv2d and isinstance(conv.padding, str))
        and isinstance(norm, nn.BatchNorm2d)
        and norm.affine
        and norm.num_features == conv.out_channels
    )


class _FoldedNorm(nn.BatchNorm2d):
    """A batch-norm that was folded: only the activation that timm's layers include remains."""

    unfolded: type[nn.Module]

    def forward(self, input: Tensor) -> Tensor:
        for name in ("drop", "act"):
            layer = getattr(self, name, None)
            input = layer(input) if layer is not None else input
        return input


class _FoldedConv(nn.Conv2d):
    """A convolution that includes the following batch-norm."""

    norm: list[nn.BatchNorm2d]  # in a list, so that its parameters are not registered twice
    unfolded: type[nn.Module]
    pads_same: bool

    @classmethod
    def adopt(cls, conv: nn.Module, norm: nn.Module) -> None:
        cast(_FoldedConv, conv).pads_same = pads_same(conv)
        for module, folded in ((conv, cls), (norm, _FoldedNorm)):
            cast(Any, module).unfolded = type(module)
            module.__class__ = folded
        cast(_FoldedConv, conv).norm = [cast(nn.BatchNorm2d, norm)]

    @staticmethod
    def release(conv: nn.Module, norm: nn.Module) -> None:
        for module in (conv, norm):
            module.__class__ = cast(Any, module).unfolded

    def forward(self, input: Tensor) -> Tensor:
        norm = self.norm[0]
        scale = norm.weight * torch.rsqrt(cast(Tensor, norm.running_var) + norm.eps)
        mean = cast(Tensor, norm.running_mean)
        bias = norm.bias + ((0 if self.bias is None else self.bias) - mean) * scale
        weight = self.weight * scale[:, None, None, None]
        stride, padding = cast("tuple[int, int]", self.stride), cast("tuple[int, int]", self.padding)
        if self.pads_same:
            from timm.layers import pad_same

            input, padding = pad_same(input, self.kernel_size, self.stride, self.dilation), (0, 0)
        if is_depthwise(self):
            return convolve(input, weight, bias, stride, padding)
        return F.conv2d(input, weight, bias, stride, padding, self.dilation, self.groups)
