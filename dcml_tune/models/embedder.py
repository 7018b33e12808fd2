"""MaskedEmbedder: a backbone, pooling, a linear layer, and one mask per learner. Models are saved and loaded here, too.

Shapes: B images, F penultimate features, D embedding dimensions, K masks.

The file has more than 250 lines because a model, its files and the checks of what is loaded change together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.models.backbones import Backbone, build
from dcml_tune.models.fitting import refuse_unfit
from dcml_tune.models.pooling import pooling
from dcml_tune.runs.attempts import files_of
from dcml_tune.utils import checkpoint
from dcml_tune.utils.checkpoint import CheckpointError
from dcml_tune.utils.precision import fast_products
from dcml_tune.utils.stored import Finite, Scalar, Stored

BEST = "best"
"""Prefix of the folder in a trial's directory that contains its best model; the epoch follows."""

_MOST_MASKS = 1 << 16
# The settings that are needed to build a model from its weights, and to measure it on the classes that it was not trained
# on.
_MODEL_SETTINGS = (
    "dataset", "train_classes", "ratio_classes", "val_share", "split_seed", "protocol", "arch", "sz_resize", "sz_crop", "features_pooling", "features_dropout_prob", "bn_learnable",
    "sz_embedding", "mask_relu", "fixed_mask", "masks_sum_for_full_emb", "masks_normalize_before_sum", "amp",
)  # fmt: skip


class MaskedEmbedder(nn.Module):
    """Embeds images. In training it is one of K learners, which share all parameters but their mask.

    Images are B x 3 x H x W: uint8 (0..255), which the model normalises as its backbone's weights require, or normalised
    floats. Embeddings are float32 and have unit length.

    Source: TPAMI 2021, section 3.2.
    """

    def __init__(self, config: TrialConfig) -> None:
        """Build the model. Its random initialisation depends on `config.seed` only.

        Raises:
            SettingError: if the backbone is unknown, its weights are not on this machine, or it does not fit the settings.
        """
        super().__init__()
        self.config = config
        frozen_statistics = not config.bn_learnable
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.backbone: Backbone = build(
                config.arch, weights=config.weights, sz_crop=config.sz_crop, frozen_statistics=frozen_statistics
            )
            refuse_unfit(config, self.backbone)
            self.pooling = pooling(config.features_pooling)
            self.embedding = nn.Linear(self.backbone.dim, config.sz_embedding)
            _initialise(self.embedding, config)
            self.masks = nn.Parameter(self._first_masks(), requires_grad=not config.fixed_mask)
        mean, std = torch.tensor(self.backbone.mean), torch.tensor(self.backbone.std)
        self.register_buffer("scale", (1 / (255 * std))[:, None, None], persistent=False)
        self.register_buffer("shift", (-mean / std)[:, None, None], persistent=False)
        self._compiled: Callable[[Tensor], Tensor] | None = None

    def forward(self, images: Tensor, learner: int | None = None) -> Tensor:
        """Embeddings B x D of unit length, of one learner or (None) full ones."""
        return self.embed(self.penultimate(images), learner)

    def penultimate(self, images: Tensor) -> Tensor:
        """Penultimate features B x F (float32, not normalised) of uint8 or normalised images."""
        if images.dtype == torch.uint8:
            images = torch.addcmul(cast(Tensor, self.shift), images, cast(Tensor, self.scale))
        images = images.contiguous(memory_format=torch.channels_last)
        fast = self.config.amp and images.is_cuda
        bfloat16 = fast and self.training  # measures and clusterings are float32; products in the backbone may be TF32
        with torch.autocast("cuda", torch.bfloat16, enabled=bfloat16), fast_products(fast):
            features = self._backbone_for(images)(images)
        if not self.backbone.pooled:
            features = self.pooling(features.float())
        return F.dropout(features.float(), self.config.features_dropout_prob, self.training)

    def compile_backbone(self, backend: str = "inductor") -> None:
        """Train batches of `batch_size` images with a backbone compiled by `torch.compile`, on a GPU with CUDA graphs.

        It is compiled at the first batch, and once more where its parameters are first frozen. Other batches, clusterings
        and measures use the backbone as it is. Parameters and state dict do not change.

        Args:
            backend: of `torch.compile`.
        """
        graphs = {"mode": "reduce-overhead"} if backend == "inductor" else {}
        self._compiled = torch.compile(self.backbone.forward, dynamic=False, backend=backend, **graphs)  # type: ignore[call-overload]

    @property
    def compiled(self) -> bool:
        """Whether `compile_backbone` was called."""
        return self._compiled is not None

    def _backbone_for(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """The backbone, compiled or not, as `compile_backbone` says."""
        usual = self.training and len(images) == self.config.batch_size
        return self._compiled if usual and self._compiled is not None else self.backbone

    def embed(self, features: Tensor, learner: int | None = None) -> Tensor:
        """Embeddings B x D of unit length from penultimate features B x F."""
        z_BD, factors = self.embedding(features), self.factors(learner)
        return F.normalize(z_BD if factors is None else z_BD * factors, dim=1)

    def factors(self, learner: int | None = None) -> Tensor | None:
        """The factors D of the embeddings of one learner or (None) of full ones; None if these are not multiplied."""
        if learner is not None:
            return self.effective_masks()[learner]
        return self._sum_of_masks() if self.config.masks_sum_for_full_emb else None

    def effective_masks(self) -> Tensor:
        """The factors K x D of the embedding: masks, rectified unless `mask_relu` is off."""
        return F.relu(self.masks) if self.config.mask_relu else self.masks

    def _sum_of_masks(self) -> Tensor:
        masks_KD = self.effective_masks()
        if self.config.masks_normalize_before_sum == "l1":
            masks_KD = F.normalize(masks_KD, p=1, dim=1)
        return masks_KD.sum(0)

    def divide_masks(self) -> None:
        """Divide K masks into 2K: masks 2k and 2k+1 are copies of mask k, or halves of a fixed mask."""
        masks_KD = self.masks.detach().repeat_interleave(2, 0)
        if self.config.fixed_mask:
            for child in range(len(masks_KD)):
                owned = masks_KD[child].nonzero().flatten()
                half = len(owned) // 2
                masks_KD[child, owned[half:] if child % 2 == 0 else owned[:half]] = 0
        self._replace_masks(masks_KD)

    def merge_masks(self) -> None:
        """Merge 2K masks into K: mask k is the mean of masks 2k and 2k+1, or the union of fixed masks."""
        pairs = self.masks.detach().reshape(-1, 2, self.config.sz_embedding)
        self._replace_masks(pairs.amax(1) if self.config.fixed_mask else pairs.mean(1))

    def _first_masks(self) -> Tensor:
        """The masks at epoch 0: a single one with `top_bot`, else one per cluster."""
        config = self.config
        count = 1 if config.hierarchy_method == "top_bot" else config.nb_clusters
        if config.fixed_mask:
            slices = np.array_split(np.arange(config.sz_embedding), count)
            return torch.stack([torch.isin(torch.arange(config.sz_embedding), torch.tensor(s)).float() for s in slices])
        if config.masking_init == "normal":
            return torch.normal(0.9, 0.7, (count, config.sz_embedding))
        return torch.ones(count, config.sz_embedding)

    def _replace_masks(self, masks_KD: Tensor) -> None:
        self.masks = nn.Parameter(masks_KD.contiguous(), requires_grad=self.masks.requires_grad)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load a state as torch does; the number of masks becomes that of the state."""
        masks = state_dict.get("masks")
        if masks is not None and masks.shape != self.masks.shape:
            self._replace_masks(torch.empty_like(masks, device=self.masks.device))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def train(self, mode: bool = True) -> MaskedEmbedder:
        """Set the mode as torch does, but keep batch-norm layers in evaluation mode unless `bn_learnable`."""
        super().train(mode)
        if not self.config.bn_learnable:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def save(self, directory: Path | str, state: dict[str, Tensor] | None = None, **facts: Any) -> None:
        """Write `model.safetensors` and `model.json` into a directory.

        Args:
            directory: it is created if it does not exist.
            state: weights to write instead of the current ones.
            facts: further entries of `model.json`, such as measures.
        """
        settings = {name: getattr(self.config, name) for name in _MODEL_SETTINGS}
        facts = {"settings": settings, "mean": self.backbone.mean, "std": self.backbone.std, **facts}
        checkpoint.write(Path(directory), "model", state or self.state_dict(), facts)


class _Facts(Stored):
    """model.json."""

    settings: dict[str, Scalar]
    mean: Annotated[list[Finite], Field(min_length=3, max_length=3)]
    std: Annotated[list[Finite], Field(min_length=3, max_length=3)]


def load(path: str | Path) -> MaskedEmbedder:
    """Load the model of a checkpoint, in evaluation mode. `load(path)(images)` returns full embeddings.

    Reading the files executes no code from them.

    Args:
        path: directory of a model, or of a trial; of a trial its best model is loaded.

    Raises:
        CheckpointError: if a file is missing, truncated or changed, or does not describe a model.
        SettingError: if the installed versions cannot build the backbone.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from dcml_tune import TrialConfig, load_model
        >>> from dcml_tune.models import MaskedEmbedder
        >>> config = TrialConfig(arch="test_resnet", weights="none", sz_resize=32, sz_crop=32, sz_embedding=16)
        >>> with TemporaryDirectory() as directory:
        ...     MaskedEmbedder(config).save(directory)
        ...     model = load_model(directory)
        >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> with torch.no_grad():
        ...     model(images).shape
        torch.Size([2, 16])
    """
    directory = best_model(Path(path)) or Path(path)
    tensors, facts = checkpoint.read(directory, "model", _Facts)
    model = MaskedEmbedder(_config_of(facts["settings"], directory))
    check_weights(model, tensors, directory / "model.safetensors")
    model.load_state_dict(tensors)
    return model.eval()


def check_weights(model: MaskedEmbedder, tensors: dict[str, Tensor], file: Path) -> None:
    """Check that tensors are the weights of a model; the number of masks may differ.

    Raises:
        CheckpointError: if names, shapes or types differ.
    """
    wanted = model.state_dict()
    masks = tensors.get("masks")
    if masks is not None and masks.ndim == 2 and 1 <= len(masks) <= _MOST_MASKS:
        wanted["masks"] = wanted["masks"].new_empty((len(masks), model.config.sz_embedding))
    checkpoint.check_tensors(tensors, wanted, file)


def _config_of(settings: dict[str, Any], directory: Path) -> TrialConfig:
    """The configuration of a saved model.

    Raises:
        CheckpointError: if this version does not accept it.
    """
    try:
        return TrialConfig(**{**settings, "weights": "none"})
    except SettingError as error:
        raise CheckpointError(f"checkpoint {directory}: its settings cannot be ({error}); take another") from None


def best_model(trial: Path) -> Path | None:
    """The directory of the best model in a trial's directory; None if there is none that was written to its end."""
    trial = files_of(trial)
    places = [trial / checkpoint.numbered(BEST, number) for number in checkpoint.numbers(trial, BEST)]
    return next((place for place in places if (place / "model.json").exists()), None)


def _initialise(layer: nn.Linear, config: TrialConfig) -> None:
    """Initialise the embedding layer by `init_method`, the slice of each cluster as a separate layer, as in the original.

    Gains are those of a linear layer. Biases are torch's default, and 0.1 for trunc_normal. `pca` needs images: it is done
    by `dcml_tune.training.pca_start`.
    """
    method = config.init_method or "pt_default"
    if method in ("pt_default", "pca"):
        return
    sizes = [len(part) for part in np.array_split(np.arange(layer.out_features), config.nb_clusters)]
    slices = [nn.Linear(layer.in_features, size) for size in sizes if size]
    for part in slices:
        _initialise_slice(part, method)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([part.weight for part in slices]))
        layer.bias.copy_(torch.cat([part.bias for part in slices]))


def _initialise_slice(layer: nn.Linear, method: str) -> None:
    """Initialise the weights of a slice; torch's default initialisation was already applied."""
    if method == "pt_splitted":
        return
    if method.startswith("kaiming_normal"):
        mode = method.removeprefix("kaiming_normal_")
        nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="linear")  # type: ignore[arg-type]
    elif method == "trunc_normal":
        nn.init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2)
        nn.init.constant_(layer.bias, 0.1)
    else:
        kind, _, gain = method.rpartition("_")
        draw = nn.init.xavier_uniform_ if kind == "xavier_uniform" else nn.init.xavier_normal_
        draw(layer.weight, gain=float(gain))
