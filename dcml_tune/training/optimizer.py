"""The optimiser: Adam or AdamW over named groups, and its state by the names of the parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dcml_tune.config.trial import TrialConfig
from dcml_tune.losses.criterion import MetricLoss
from dcml_tune.models.embedder import MaskedEmbedder


def build_optimizer(model: MaskedEmbedder, criterion: MetricLoss, config: TrialConfig) -> torch.optim.Optimizer:
    """Build an optimiser with the groups backbone, embedding, masks; pooling, loss, proxies if they have parameters.

    The fused implementation reads no step count on the host, so a step does not synchronise with the device.
    """
    rate, decay = config.base_lr, config.weight_decay
    groups: list[dict[str, Any]] = [
        _group("backbone", model.backbone, rate, decay),
        _group("pooling", model.pooling, rate, 0.0),
        _group("embedding", model.embedding, rate * config.emb_lr_mult, decay),
        _of_loss(criterion, config),
        {"name": "masks", "params": [model.masks], "param_names": ["masks"]}
        | {"lr": rate * config.mask_lr_mult, "weight_decay": decay * config.mask_wd_mult},
    ]
    groups = [{**group, "initial_lr": group["lr"]} for group in groups if group["params"]]
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, fused=True)


def _of_loss(criterion: MetricLoss, config: TrialConfig) -> dict[str, Any]:
    if criterion.proxies is not None:
        return _group("proxies", criterion.proxies, config.base_lr * config.proxy_lr_mult, 0.0)
    return _group("loss", criterion, config.lr_alpha if config.criterion == "npairs" else config.lr_beta, 0.0)


def _group(name: str, module: nn.Module, rate: float, decay: float) -> dict[str, Any]:
    names, params = zip(*module.named_parameters(), strict=True) if any(True for _ in module.parameters()) else ((), ())
    return {
        "name": name,
        "params": list(params),
        "param_names": [f"{name}.{each}" for each in names],
        "lr": rate,
        "weight_decay": decay,
    }


def replace_masks(optimizer: torch.optim.Optimizer, masks: nn.Parameter) -> None:
    """Train these masks instead of the previous ones, without moments."""
    group = next(group for group in optimizer.param_groups if group["name"] == "masks")
    for old in group["params"]:
        optimizer.state.pop(old, None)
    group["params"] = [masks]


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as tensors named PARAMETER:FIELD."""
    return {
        f"{name}:{field}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        for field, value in optimizer.state.get(parameter, {}).items()
    }


def load_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load the state that `moments` returned; other parameters start without moments."""
    parameters = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
    optimizer.state.clear()
    for key, value in tensors.items():
        name, field = key.rsplit(":", 1)
        # A copy in the parameter's own memory layout, as the optimiser itself would have made it.
        if value.shape == parameters[name].shape:
            value = torch.empty_like(parameters[name]).copy_(value)
        else:
            value = value.to(parameters[name].device, copy=True)
        optimizer.state[parameters[name]][field] = value
