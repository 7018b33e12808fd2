"""Two rewrites of a convolutional network that keep its output and speed up its training on a CPU.

1. Frozen batch-norm is folded into the preceding convolution: `bn(conv(x, w, c)) = conv(x, w * s, b + (c - m) * s)`
   with s = gamma / sqrt(var + eps). The statistics are never updated, so this also holds in training (forward and
   backward of 64 images are 1.14 times as fast; docs/performance.md); scale and
   shift get their gradients through the small product w * s instead of the feature map.
2. The weight gradient of a depthwise convolution over a small map is a sum of shifted products. oneDNN takes
   10 times as long on processors with AVX2 (48 ms against 4 ms for 64 x 1152 x 2 x 2, kernel 5).

`benchmarks/epoch.py` measures the effect of both. Names of parameters do not change, and neither do state dicts.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

# Number of pixels of the output map up to which the sum of shifted products is faster.
_SMALL_MAP = 16


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
        (type(conv) is nn.Conv2d or _pads_same(conv))
        and conv.padding_mode == "zeros"
        and not (type(conv) is nn.Conv2d and isinstance(conv.padding, str))
        and isinstance(norm, nn.BatchNorm2d)
        and norm.affine
        and norm.num_features == conv.out_channels
    )


def _pads_same(conv: nn.Module) -> bool:
    """Whether this is timm's convolution with the padding of TensorFlow. If timm, which is slow to import, is not loaded: no."""
    layers = sys.modules.get("timm.layers")
    return layers is not None and type(conv) is layers.Conv2dSame


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
        cast(_FoldedConv, conv).pads_same = _pads_same(conv)
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
        padding = cast("tuple[int, int]", self.padding)
        if self.pads_same:
            from timm.layers import pad_same

            input, padding = pad_same(input, self.kernel_size, self.stride, self.dilation), (0, 0)
        if self._small_depthwise(input):
            return cast(Tensor, _SmallDepthwise.apply(input, weight, bias, self.stride, padding))
        return F.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _small_depthwise(self, input: Tensor) -> bool:
        """Whether the weight gradient of this module is faster than oneDNN's."""
        pixels = (input.shape[2] // self.stride[0]) * (input.shape[3] // self.stride[1])
        return (
            input.device.type == "cpu"
            and self.groups == self.in_channels == self.out_channels
            and self.dilation == (1, 1)
            and pixels <= _SMALL_MAP
        )


class _SmallDepthwise(torch.autograd.Function):
    """Depthwise convolution whose weight gradient is a sum of shifted products."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(input, weight, bias, stride, padding, 1, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        grad = grads[0]
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_input = None
        if needs_input:
            grad_input = conv2d_input(input.shape, weight, grad, ctx.stride, ctx.padding, 1, weight.shape[0])
        grad_weight = _weight_gradient(input, grad, weight.shape, ctx.stride, ctx.padding) if needs_weight else None
        return grad_input, grad_weight, grad.sum((0, 2, 3)) if needs_bias else None, None, None


def _weight_gradient(
    input: Tensor, grad: Tensor, shape: torch.Size, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Gradient C x 1 x k x l of a depthwise kernel: for each entry, the product of two shifted maps."""
    (down, right), (pad_h, pad_w) = stride, padding
    height, width = grad.shape[2:]
    map_NHWC = F.pad(input.permute(0, 2, 3, 1), (0, 0, pad_w, pad_w, pad_h, pad_h))
    grad_NHWC = grad.permute(0, 2, 3, 1)
    entries = [
        (map_NHWC[:, i : i + down * height : down, j : j + right * width : right][:, :height, :width] * grad_NHWC).sum(
            (0, 1, 2)
        )
        for i in range(shape[2])
        for j in range(shape[3])
    ]
    return torch.stack(entries, 1).view(shape)
