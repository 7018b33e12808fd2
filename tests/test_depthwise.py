"""Depthwise convolutions over small maps: as PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from dcml_tune.models import depthwise
from dcml_tune.models.backbones import build
from dcml_tune.models.depthwise import depthwise_conv2d, is_faster

CASES = [  # height, width, kernel, stride, padding
    (4, 4, (5, 5), (1, 1), (2, 2)),
    (2, 2, (3, 3), (1, 1), (1, 1)),
    (7, 7, (5, 5), (2, 2), (0, 0)),
    (8, 5, (5, 3), (1, 2), (2, 1)),
    (3, 6, (2, 3), (2, 1), (1, 0)),
    (1, 1, (5, 5), (1, 1), (2, 2)),
]


def gradients(convolve, channels_last, case):
    height, width, kernel, stride, padding = case
    torch.manual_seed(0)
    x = torch.randn(3, 6, height, width, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    tensors = [
        x.requires_grad_(),
        torch.randn(6, 1, *kernel, dtype=torch.float64, requires_grad=True),
        torch.randn(6, dtype=torch.float64, requires_grad=True),
    ]
    out = convolve(*tensors, stride, padding)
    out.pow(3).sum().backward()
    return [out.detach(), *(each.grad for each in tensors)]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_are_those_of_torch(case, channels_last):
    found = gradients(depthwise_conv2d, channels_last, case)
    right = gradients(
        lambda x, w, b, stride, padding: F.conv2d(x, w, b, stride, padding, 1, len(w)), channels_last, case
    )
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_gradient_of_the_input_keeps_its_layout():
    """Else the layers before it convert each gradient."""
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    out = depthwise_conv2d(x, torch.randn(8, 1, 5, 5), torch.zeros(8), (1, 1), (2, 2))
    out.backward(torch.randn_like(out))
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_only_what_needs_a_gradient_gets_one():
    weight, bias = torch.randn(4, 1, 3, 3, requires_grad=True), torch.randn(4)
    depthwise_conv2d(torch.randn(2, 4, 2, 2), weight, bias, (1, 1), (1, 1)).sum().backward()
    assert weight.grad is not None
    assert bias.grad is None


@pytest.mark.parametrize("frozen", [True, False])
def test_a_network_computes_and_learns_the_same(frozen, monkeypatch):
    """With batch-norm folded into the convolutions and without, with padding of both kinds."""
    image = torch.linspace(-1, 1, 2 * 3 * 64 * 64, dtype=torch.float64).view(2, 3, 64, 64)

    def trained():
        network = build("tf_efficientnet_lite0", sz_crop=64, frozen_statistics=frozen).double().eval()
        features = network(image)
        features.square().mean().backward()
        return network, [features.detach(), *(each.grad for each in network.parameters() if each.grad is not None)]

    fast, found = trained()
    monkeypatch.setattr(depthwise, "is_faster", lambda *_: False)
    plain, right = trained()
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert len(found) == len(right) > 50
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    kinds = {type(module).__name__ for module in fast.modules()}
    assert kinds >= ({"_FoldedConv"} if frozen else {"_Depthwise", "_SamePadded"})


def test_large_maps_and_small_kernels_are_left_to_onednn():
    def faster(size, kernel, stride=1):
        return is_faster(torch.empty(1, 2, size, size), torch.empty(2, 1, kernel, kernel), (stride, stride))

    assert faster(4, 5)
    assert faster(2, 3)
    assert faster(8, 5)
    assert faster(7, 5, 2)
    assert not faster(4, 3)
    assert not faster(14, 5)
    assert not faster(2, 1)
