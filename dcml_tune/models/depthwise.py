"""Depthwise convolution whose weight gradient is fast on a CPU over small maps.

oneDNN computes the weight gradient of a depthwise convolution slowly where the kernel is large for the map: 17 ms for
64 x 672 x 4 x 4 and kernel 5, and 2 ms as below; 15 and 1 ms for 64 x 1152 x 2 x 2 (shortest of 30 calls, one thread, AVX-512,
torch 2.14; limited to AVX2 69 and 3, 91 and 2). Its forward pass, the gradient of the input, and kernel 3 over maps of more than 2 x 2 are fast, and stay.

The gradient of entry (i, j) of a channel's kernel is the sum over images of input[y, x] * gradient[p, q] for all pairs of
pixels that this entry connects. So one matrix product for each channel gives the sums over images of all pairs, and a second
one, with a constant matrix of 0 and 1, adds those of each entry.

`benchmarks/epoch.py` measures the effect.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALL_MAP = 81
"""Number of pixels of the input map up to which the matrix products are faster with a kernel of 5 or more."""

_TINY_MAP = 4
"""Number of pixels of the output map up to which they are faster with any kernel."""


def is_faster(input: Tensor, weight: Tensor, stride: tuple[int, int]) -> bool:
    """Return whether `depthwise_conv2d` trains faster than `torch.nn.functional.conv2d`.

    Args:
        input: (B, C, H, W), padded or not.
        weight: (C, 1, k, l).
        stride: of the convolution.
    """
    height, width = input.shape[2:]
    output = (height // stride[0]) * (width // stride[1])
    kernel = min(weight.shape[2:])
    small = height * width <= _SMALL_MAP and kernel >= 5
    return input.device.type == "cpu" and kernel > 1 and (small or output <= _TINY_MAP)


def speed_up(network: nn.Module) -> None:
    """Make the depthwise convolutions of a network fast where `is_faster` holds; their outputs and names stay."""
    for module in network.modules():
        known = type(module) is nn.Conv2d or pads_same(module)
        if known and is_depthwise(module) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = _SamePadded if pads_same(module) else _Depthwise


def is_depthwise(conv: nn.Module) -> bool:
    """Return whether each channel of a convolution has its own kernel, without gaps."""
    return bool(conv.groups == conv.in_channels == conv.out_channels and conv.dilation == (1, 1))


def pads_same(conv: nn.Module) -> bool:
    """Return whether this is timm's convolution with the padding of TensorFlow. If timm, which is slow to import, is not loaded: no."""
    layers = sys.modules.get("timm.layers")
    return layers is not None and type(conv) is layers.Conv2dSame


class _Depthwise(nn.Conv2d):
    """A depthwise convolution that chooses how it is computed."""

    def forward(self, input: Tensor) -> Tensor:
        stride, padding = cast("tuple[int, int]", self.stride), cast("tuple[int, int]", self.padding)
        return convolve(input, self.weight, self.bias, stride, padding)


class _SamePadded(nn.Conv2d):
    """The same with the padding of TensorFlow."""

    def forward(self, input: Tensor) -> Tensor:
        from timm.layers import pad_same

        stride = cast("tuple[int, int]", self.stride)
        padded = pad_same(input, self.kernel_size, self.stride, self.dilation)
        return convolve(padded, self.weight, self.bias, stride, (0, 0))


def convolve(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Convolve each channel with its own kernel in the way that trains faster; arguments as for `depthwise_conv2d`."""
    if is_faster(input, weight, stride):
        return depthwise_conv2d(input, weight, bias, stride, padding)
    return F.conv2d(input, weight, bias, stride, padding, 1, len(weight))


def depthwise_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Convolve each channel with its own kernel, as `torch.nn.functional.conv2d` with as many groups as channels.

    Args:
        input: (B, C, H, W).
        weight: (C, 1, k, l).
        bias: (C,), or None.
        stride: of the convolution.
        padding: zeros on each side.

    Returns:
        (B, C, P, Q).

    Example:
        >>> x, w, b = torch.ones(2, 3, 4, 4), torch.ones(3, 1, 3, 3), torch.zeros(3)
        >>> depthwise_conv2d(x, w, b, (1, 1), (1, 1))[0, 0, 0]
        tensor([4., 6., 6., 4.])
    """
    return cast(Tensor, _DepthwiseConv.apply(input, weight, bias, stride, padding))


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(input, weight, bias, stride, padding, 1, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        grad = grads[0]
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_input = _input_gradient(grad, input, weight, ctx.stride, ctx.padding) if needs_input else None
        grad_weight = _weight_gradient(grad, input, weight.shape, ctx.stride, ctx.padding) if needs_weight else None
        return grad_input, grad_weight, grad.sum((0, 2, 3)) if needs_bias else None, None, None


def _input_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return oneDNN's gradient of the input. `torch.nn.grad.conv2d_input` would lose the layout channels_last."""
    backward = torch.ops.aten.convolution_backward
    masks, groups = (True, False, False), weight.shape[0]
    found = backward(grad, input, weight, None, stride, padding, (1, 1), False, (0, 0), groups, masks)
    return cast(Tensor, found[0])


def _weight_gradient(
    grad: Tensor, input: Tensor, shape: torch.Size, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return the gradient (C, 1, k, l) of the kernels."""
    sums_CPQ = torch.bmm(_by_channel(grad), _by_channel(input).transpose(1, 2))
    entries = _entries(input.shape[2:], grad.shape[2:], shape[2:], stride, padding).to(grad.dtype)
    return (sums_CPQ.flatten(1) @ entries).view(shape)


def _by_channel(maps: Tensor) -> Tensor:
    """Return (B, C, H, W) maps as C x HW x B, with the images in contiguous memory."""
    images, channels, height, width = maps.shape
    rows = maps.permute(0, 2, 3, 1).reshape(images, -1).t().contiguous()
    return rows.view(height * width, channels, images).transpose(0, 1)


@lru_cache(maxsize=64)
def _entries(
    input: tuple[int, int],
    output: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Return (PQ HW) x kl: 1 where an entry of the kernel connects a pixel of the input with one of the output."""
    rows, columns = (
        torch.arange(size)[None] - torch.arange(count)[:, None] * step + pad
        for size, count, step, pad in zip(input, output, stride, padding, strict=True)
    )
    row_Phk, column_Qwl = (F.one_hot(each.clamp(-1, size) + 1, size + 2)[..., 1:-1]
                           for each, size in zip((rows, columns), kernel, strict=True))  # fmt: skip
    pairs = torch.einsum("phk,qwl->pqhwkl", row_Phk.float(), column_Qwl.float())
    return pairs.reshape(-1, kernel[0] * kernel[1])
