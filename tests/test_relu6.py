"""ReLU6 with the gradient from its output: PyTorch's values, bit for bit."""

import pytest
import torch
from torch import nn

from dcml_tune.models.backbones import build
from dcml_tune.models.relu6 import speed_up

EDGES = [-torch.inf, -1.0, -0.0, 0.0, 1e-45, 3.0, 5.9999995, 6.0, 6.0000005, torch.inf, torch.nan]


def output_and_gradient(layer, dtype, *, view=False):
    x = torch.tensor([*EDGES, *torch.linspace(-2, 8, 53).tolist()], dtype=dtype, requires_grad=True)
    given = (x + 0).view(8, 8) if view else x + 0
    out = layer(given)
    assert (out is given) == (layer.inplace and not view)
    out.backward(torch.arange(64, dtype=dtype).view_as(out))
    return out.detach().flatten(), x.grad


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_gradients_are_those_of_torch(inplace, dtype, view):
    ours, torchs = nn.ReLU6(inplace), nn.ReLU6(inplace)
    speed_up(ours)
    assert type(ours) is not nn.ReLU6
    if view and inplace:  # PyTorch returns another tensor object for a view that is changed in place
        ours.inplace = torchs.inplace = False
    for found, right in zip(
        output_and_gradient(ours, dtype, view=view), output_and_gradient(torchs, dtype, view=view), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=0, atol=0, equal_nan=True)


def test_a_view_is_changed_in_place():
    layer = nn.ReLU6(inplace=True)
    speed_up(layer)
    x = torch.tensor([[-1.0, 1.0], [7.0, 2.0]], requires_grad=True)
    whole = x + 0
    layer(whole[1]).sum().backward()
    assert whole.tolist() == [[-1.0, 1.0], [6.0, 2.0]]
    assert x.grad.tolist() == [[0.0, 0.0], [0.0, 1.0]]


def gradients_and_copies(backbone, images):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        backbone(images).square().mean().backward()
    copied = [event for event in profile.key_averages(group_by_input_shape=True) if event.key == "aten::copy_"]
    maps = sum(event.count for event in copied if event.input_shapes[0][:1] == [len(images)])
    return [parameter.grad for parameter in backbone.parameters()], maps


def test_a_network_has_the_same_gradients_and_copies_no_activation():
    """EfficientNet-Lite0 has 33 activations, each in place."""
    images = torch.randn(6, 3, 64, 64).to(memory_format=torch.channels_last)
    ours = build("tf_efficientnet_lite0", weights="none", sz_crop=64)
    plain = build("tf_efficientnet_lite0", weights="none", sz_crop=64)
    plain.load_state_dict(ours.state_dict())
    for module in plain.modules():
        if isinstance(module, nn.ReLU6):
            module.__class__ = nn.ReLU6
    (found, few), (right, many) = gradients_and_copies(ours, images), gradients_and_copies(plain, images)
    assert many - few == 33
    torch.testing.assert_close(found, right, rtol=0, atol=0)


def test_second_derivatives_are_those_of_torch():
    grads = []
    for rewritten in (True, False):
        layer = nn.ReLU6()
        if rewritten:
            speed_up(layer)
        x = torch.tensor([-1.0, 0.5, 2.0, 7.0], dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(layer(x.pow(3)).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        grads.append(second)
    torch.testing.assert_close(grads[0], grads[1])
