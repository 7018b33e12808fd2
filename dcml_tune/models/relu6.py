"""ReLU6 whose gradient is computed from its output: of an activation in place, PyTorch first copies the input for that.

The gradient passes where 0 < output < 6, which is where 0 < input < 6. The next layer keeps the output anyway, so less memory
is needed, too. Outputs and gradients are bit for bit those of `torch.nn.ReLU6`.

`benchmarks/epoch.py` measures the effect.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


def speed_up(network: nn.Module) -> None:
    """Let the ReLU6 layers of a network compute their gradients from their outputs."""
    for module in network.modules():
        if type(module) is nn.ReLU6:
            module.__class__ = _ReLU6


class _ReLU6(nn.ReLU6):
    def forward(self, input: Tensor) -> Tensor:
        # torch.compile fuses the activation by itself, and autograd refuses some views that a custom function changes in place
        if torch.compiler.is_compiling() or input._is_view() or not (torch.is_grad_enabled() and input.requires_grad):
            return super().forward(input)
        return cast(Tensor, _FromOutput.apply(input, self.inplace))


class _FromOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, inplace: bool) -> Tensor:
        output = torch.ops.aten.hardtanh_(input, 0, 6) if inplace else torch.ops.aten.hardtanh(input, 0, 6)
        if inplace:
            ctx.mark_dirty(input)
        ctx.save_for_backward(output)
        return cast(Tensor, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return torch.ops.aten.hardtanh_backward(grads[0], ctx.saved_tensors[0], 0, 6), None
