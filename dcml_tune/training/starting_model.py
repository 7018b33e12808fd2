"""The trained model that a training starts from (`--checkpoint`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.models.embedder import MaskedEmbedder, best_model, load
from dcml_tune.training.trial_data import Indices
from dcml_tune.utils import checkpoint


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A trained model that a training continues."""

    path: Path
    model: MaskedEmbedder
    epoch: int
    """Epochs completed when it was saved."""
    division: tuple[Indices, Indices] | None
    """Rows of the images that trained it, and the cluster of each; None if unknown."""
    names: str | None = None
    """Hash of the names of the images that the rows refer to; None if unknown, as in a model of version 0.1."""

    def check_learners(self, learners: int) -> None:
        """Check that the model has as many masks as a training has learners after so many epochs.

        Raises:
            SettingError: if it has not.
        """
        if len(self.model.masks) != learners:
            raise SettingError(
                f"--checkpoint {self.path}: has {len(self.model.masks)} masks after epoch {self.epoch}, and these settings "
                f"have {learners} learners then; give the settings that it was trained with, or --restart-schedule to "
                "start at epoch 0 with its weights alone"
            )

    def partition_of(self, dataset: str, names: str, rows: Indices) -> Indices | None:
        """Return the cluster of each training image; None if the model was trained on others.

        Args:
            dataset: data set of the training.
            names: hash of the names of its images.
            rows: rows of those that train.
        """
        same = self.names in (None, names) and self.model.config.dataset == dataset
        if same and self.division is not None and np.array_equal(self.division[0], rows):
            return self.division[1]
        return None


def trained_model(path: Path, config: TrialConfig, *, restart: bool = False) -> TrainedModel:
    """Load the model that a training continues, and check it against the configuration.

    Args:
        path: directory, as `dcml_tune.models.load` takes it.
        config: configuration of the training.
        restart: as `Trainer.start_from`.

    Raises:
        CheckpointError: if no valid model is there.
        SettingError: if it is another network, or was trained for at least as many epochs as this configuration trains.
    """
    if path.is_file():
        raise SettingError(
            f"--checkpoint {path}: is a file; give the directory of a model that dcml_tune saved (files of the original run "
            "code when they are loaded, and their format is not described)"
        )
    place = best_model(path) or path
    given, facts = load(place), checkpoint.read(place, "model")[1]
    epoch = 0 if restart else facts.get("epoch")
    if type(epoch) is not int or epoch < 0:
        raise SettingError(f"--checkpoint {path}: does not say its epoch; add --restart-schedule to begin at epoch 0")
    if epoch >= config.nb_epochs:
        raise SettingError(f"nb_epochs={config.nb_epochs}: the model in {path} was saved after epoch {epoch}; raise it")
    for name in ("arch", "sz_embedding"):
        ours, theirs = getattr(config, name), getattr(given.config, name)
        if ours != theirs:
            raise SettingError(
                f"{name}={ours}: the model in {path} has {theirs}; give --{name.replace('_', '-')} {theirs}"
            )
    if not (place / "division.json").exists():
        return TrainedModel(path=path, model=given, epoch=epoch, division=None)
    kept, said = checkpoint.read(place, "division")
    rows, partition = (kept.get(name, torch.empty(0)) for name in ("rows", "partition"))
    fits = rows.dtype == partition.dtype == torch.int64 and rows.dim() == 1 and rows.shape == partition.shape
    if not fits or not len(rows) or not -1 <= int(partition.min()) <= int(partition.max()) < len(given.masks):
        raise checkpoint.CheckpointError(
            f"checkpoint {place}: its division does not fit its learners; use another checkpoint"
        )
    division = rows.numpy(), partition.numpy()
    return TrainedModel(path=path, model=given, epoch=epoch, division=division, names=said.get("names"))
