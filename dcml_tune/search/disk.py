"""Disk space that the checkpoints of a search take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dcml_tune.config.errors import SettingError
from dcml_tune.models import backbones
from dcml_tune.models.fitting import refuse_unfit
from dcml_tune.runs.stores import SCRATCH, Stores
from dcml_tune.training.trial_data import TrialData
from dcml_tune.utils.files import free_bytes, readable_size

if TYPE_CHECKING:
    from pathlib import Path

    from dcml_tune.config.trial import TrialConfig
    from search_spaces import SearchSpace

# Bytes that are kept free for the study, the spool and the logs.
_RESERVE = 64 << 20
# Size of what a trial saves after each epoch, in models: the model and two moments of Adam; the best model.
_STATE, _BEST = 3, 1


@dataclass(frozen=True, kw_only=True)
class CheckpointSpace:
    """The models and training states that a search keeps, and their sizes in bytes."""

    model_bytes: int
    """Size of one model."""
    concurrent: int
    """Number of concurrent trials."""
    planned: int
    """Number of trials."""
    scored: int
    """Number of models that final scoring keeps."""
    copies: int = 0
    """Number of earlier models in a training state, for the mean and mix that is measured."""
    keep_models: int | None = None
    """Maximum number of models of ended trials; None: all."""
    shared: int = 0
    """Maximum number of states that trials share."""

    def most_bytes(self) -> int:
        """Maximum size of all checkpoints: of running trials, while they save, and the models of ended trials."""
        kept = self.planned if self.keep_models is None else min(self.planned, self.keep_models)
        return self._running_bytes() + (kept + self.scored) * _BEST * self.model_bytes

    def save_bytes(self) -> int:
        """Bytes that all running trials write if they save at the same time, and half of the reserve."""
        return self._saved_bytes() + _RESERVE // 2

    def _running_bytes(self) -> int:
        """A trial that saves has its old state and the new one. Shared states count in full, although some are links."""
        return 2 * self._saved_bytes() + self.shared * self._state_bytes()

    def _saved_bytes(self) -> int:
        return self.concurrent * self._state_bytes()

    def _state_bytes(self) -> int:
        return (_STATE + self.copies + _BEST) * self.model_bytes

    def within(self, budget: int, flag: str) -> CheckpointSpace:
        """Return the same space with as many models of ended trials as a budget has room for.

        Args:
            budget: bytes.
            flag: the budget as it was given.

        Raises:
            SettingError: if the budget has no room for one model.
        """
        if not self.has_room(budget):
            need = readable_size(self._fixed_bytes() + _BEST * self.model_bytes)
            raise SettingError(
                f"--checkpoint-budget {flag}: must be at least {need}, for "
                f"{self.concurrent} trials that run and one model that is kept; raise it, or lower --max-concurrent"
            )
        return replace(self, keep_models=(budget - self._fixed_bytes()) // (_BEST * self.model_bytes))

    def has_room(self, budget: int) -> bool:
        """Return whether a budget in bytes has room for one model of an ended trial."""
        return budget >= self._fixed_bytes() + _BEST * self.model_bytes

    def _fixed_bytes(self) -> int:
        return self._running_bytes() + 2 * _BEST * self.model_bytes


def model_bytes(config: TrialConfig) -> int:
    """Size of the model of a trial, in 32-bit floats.

    Raises:
        SettingError: if its backbone cannot be built, or does not fit the other settings.
    """
    backbone = backbones.build(config.arch, weights=config.weights, sz_crop=config.sz_crop, frozen_statistics=False)
    refuse_unfit(config, backbone)
    return 4 * (sum(p.numel() for p in backbone.parameters()) + (backbone.dim + 1) * config.sz_embedding)


def most_copies(space: SearchSpace, settings: dict[str, Any]) -> int:
    """Largest number of earlier models in the training state of a trial.

    Args:
        space: its domains give the settings that vary.
        settings: those that do not, where they differ from the published point.
    """

    def most(name: str) -> float:
        varies = name in space.domains and name not in settings
        return max(space.domains[name].ends()) if varies else settings.get(name, space.unvaried(name))

    return int(most("average_epochs")) - 1 + (most("pretrained_share") > 0)


def fits_the_disk(space: CheckpointSpace, config: TrialConfig, output: Path, stores: Stores) -> bool:
    """Return whether the disk has room for a whole search; without it, its trials share no epochs."""
    images = TrialData.needed_bytes(config, stores) if _share_a_disk(output, stores) else 0
    return images + space.most_bytes() + _RESERVE <= free_bytes(output)


def _share_a_disk(output: Path, stores: Stores) -> bool:
    """Return whether the image stores are on the disk of the output directory."""
    return stores.shared is None or stores.directory.stat().st_dev == output.stat().st_dev


def refuse_full_disk(
    space: CheckpointSpace, config: TrialConfig, output: Path, stores: Stores, *, resumes: bool
) -> None:
    """Refuse a search that would fill the disk.

    Args:
        space: what its checkpoints take.
        config: of a trial.
        output: directory of all searches.
        stores: directories of the image stores.
        resumes: whether the search is resumed: then only the next checkpoints have to fit.

    Raises:
        SettingError: if too few bytes are free.
    """
    images = TrialData.needed_bytes(config, stores)
    if stores.shared is not None and images and images + _RESERVE > free_bytes(stores.directory):
        raise SettingError(
            f"{SCRATCH} {stores.directory}: the image stores need {readable_size(images)} and "
            f"{readable_size(free_bytes(stores.directory))} are free there; free some space, choose another directory, or keep "
            "smaller images with --image-store small"
        )
    if not _share_a_disk(output, stores):
        images = 0
    need = images + space.most_bytes() + _RESERVE
    free = free_bytes(output)
    if not resumes and need > free:
        raise SettingError(
            f"--output-dir {output}: the search needs {readable_size(need)} there (image store {readable_size(images)}, "
            f"checkpoints {readable_size(space.most_bytes())}) and {readable_size(free)} are free; free some space, choose "
            "another directory, or bound the checkpoints by --checkpoint-budget"
        )
    if resumes and space.save_bytes() + _RESERVE > free:
        raise SettingError(
            f"--output-dir {output}: {readable_size(free)} are free, and the next checkpoints need "
            f"{readable_size(space.save_bytes() + _RESERVE)}; free some space there"
        )
