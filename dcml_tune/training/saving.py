"""Files of a trainer: its state after each epoch, and its models.

    DIRECTORY/trainer-EPOCH.safetensors, .json   state of the trainer; the newest valid one is loaded
              best-EPOCH/                        best model so far, for `dcml_tune.models.load`, with its division
              epoch-EPOCH/                       model of an epoch that was asked for

All writes are atomic: a process that is killed at any time leaves this state or the one before.

Above 250 lines because writing, reading and checking a state belong together.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.models.embedder import BEST, MaskedEmbedder, check_weights
from dcml_tune.runs.trial_files import STATE
from dcml_tune.training.averaging import check_kept
from dcml_tune.training.divisions import Division
from dcml_tune.training.state import BestEpoch, LearnedTensors, TrainerState, copied_to_cpu, to_array, under
from dcml_tune.training.step import TrainStep
from dcml_tune.training.trial_data import Indices
from dcml_tune.utils import checkpoint
from dcml_tune.utils.checkpoint import CheckpointError
from dcml_tune.utils.files import CorruptFileError, read_checksummed
from dcml_tune.utils.stored import Count, Finite, Scalar, Stored, printable

_EPOCH = "epoch"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_FREE = ("num_workers", "dataset_dir", "skip_unreadable")  # settings that may change when a trial is resumed


class _BestFacts(Stored):
    epoch: Count
    value: Finite | None


class _StateFacts(Stored):
    """trainer-EPOCH.json."""

    epoch: Count
    best: _BestFacts | None
    history: list[Finite | None]
    config: dict[str, Scalar]
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is written beside every model of a trial."""

    metric: str
    """Measure by which the best epoch is chosen."""
    rows: Indices
    """Rows of the images that train, in the order of the partition."""
    names: str
    """Hash of the names of the images from which the rows are; it identifies the images of a division."""


@dataclass(frozen=True)
class Snapshot:
    """What a trainer saves after an epoch."""

    state: TrainerState
    model: MaskedEmbedder
    """Only its settings are read: the weights are those of the state."""
    division: Division | None
    model_facts: ModelFacts
    ranks: int

    def copied(self) -> Snapshot:
        """Return one that may be saved while training continues: its tensors are copies on the CPU."""
        state = self.state
        learned = LearnedTensors(
            model=copied_to_cpu(state.learned.model),
            criterion=copied_to_cpu(state.learned.criterion),
            moments=copied_to_cpu(state.learned.moments),
        )
        return replace(self, state=replace(state, learned=learned, history=list(state.history)))

    def save(self, directory: Path, *, models_only: bool = False, **facts: Any) -> None:
        """Write the files, as `Trainer.save` does."""
        best = self.state.best
        if best is not None:
            is_new = best.epoch == self.state.epoch
            save_best_model(directory, self.model, best, self.model_facts, is_new=is_new)
        if self.division is not None:
            self.division.save(directory)
        if models_only:
            remove_old_models(directory, best)
            return
        if self.ranks > 1:
            facts["ranks"] = self.ranks
        save_state(directory, self.state, facts)


# -- models --------------------------------------------------------------------------------------------


def save_model(place: Path, model: MaskedEmbedder, saved: BestEpoch, facts: ModelFacts) -> None:
    """Write a model with its division into a directory."""
    division = {"partition": torch.from_numpy(saved.partition), "rows": torch.from_numpy(facts.rows)}
    about = {"nb_clusters": int(saved.partition.max()) + 1, "names": facts.names}
    checkpoint.write(place, "division", division, about)
    model.save(place, saved.weights, epoch=saved.epoch, **{facts.metric: saved.value})


def save_epoch_model(directory: Path, model: MaskedEmbedder, saved: BestEpoch, facts: ModelFacts) -> Path:
    """Write the model of an epoch into the folder `epoch-EPOCH` of a directory, where it stays; returns the folder."""
    place = directory / checkpoint.numbered(_EPOCH, saved.epoch)
    save_model(place, model, saved, facts)
    return place


def save_best_model(
    directory: Path, model: MaskedEmbedder, best: BestEpoch, facts: ModelFacts, *, is_new: bool
) -> None:
    """Write the best model into the folder `best-EPOCH` of a directory, unless an earlier epoch has written it."""
    place = directory / checkpoint.numbered(BEST, best.epoch)
    if is_new or not (place / "model.json").exists():
        save_model(place, model, best, facts)


def remove_old_models(directory: Path, best: BestEpoch | None) -> None:
    """Remove the best models of all epochs but the best one and that of the newest saved state."""
    of_state = None
    for number in checkpoint.numbers(directory, STATE)[:1]:
        with suppress(CorruptFileError):
            facts = read_checksummed(directory / f"{state_name(number)}.json")
            of_state = (facts.get("best") or {}).get("epoch")
    checkpoint.keep_only(directory, BEST, best.epoch if best else None, of_state)


# -- state ---------------------------------------------------------------------------------------------


def save_state(directory: Path, state: TrainerState, facts: dict[str, Any]) -> None:
    """Write the state of a trainer, then remove the states and the best models that it replaces.

    Args:
        directory: directory of this trial alone; the best model must have been written to it.
        state: what to write.
        facts: anything else to keep, as JSON.
    """
    best = state.best
    about = {
        "epoch": state.epoch,
        "best": None if best is None else {"epoch": best.epoch, "value": best.value},
        "history": state.history,
        "config": state.config,
        "facts": facts,
    }
    checkpoint.write(directory, checkpoint.numbered(STATE, state.epoch), _tensors(state), about)
    checkpoint.keep_only(directory, STATE, state.epoch)
    checkpoint.keep_only(directory, BEST, best.epoch if best else None)


def _tensors(state: TrainerState) -> dict[str, Tensor]:
    """Return the tensors of the state; the weights of the best epoch lie in a folder of their own."""
    learned = state.learned
    tensors = {f"model/{name}": value for name, value in learned.model.items()}
    tensors |= {f"criterion/{name}": value for name, value in learned.criterion.items()}
    tensors |= {f"moments/{name}": value for name, value in learned.moments.items()}
    tensors |= {f"kept/{name}": value for name, value in state.kept.items()}
    tensors["partition"] = torch.from_numpy(state.partition)
    if state.assignment is not None:
        tensors["assignment"] = torch.from_numpy(state.assignment)
    if state.best is not None:
        tensors["best_partition"] = torch.from_numpy(state.best.partition)
    return tensors


def load_state(
    directory: Path, step: TrainStep, images: int, *, shared: bool = False, trained_only: bool = False
) -> tuple[TrainerState, dict[str, Any]]:
    """Read and check the newest valid state of a directory.

    Args:
        directory: directory that `save_state` wrote to.
        step: train step that the state must fit.
        images: number of training images.
        shared: the state may have other settings, which have not acted yet.
        trained_only: it may have other settings of the weights that are measured; its best epoch and copies are left out.

    Returns:
        The state, and the facts that were saved with it.

    Raises:
        CheckpointError: if no valid state is there, or it does not fit the train step.
        SettingError: if the state has another configuration.
    """
    tensors, about = checkpoint.newest(directory, STATE, _StateFacts)
    best = None if trained_only else about["best"]
    if trained_only:
        tensors = {name: value for name, value in tensors.items() if not name.startswith(("kept/", "best"))}
    if best is not None:
        weights, _ = checkpoint.read(directory / checkpoint.numbered(BEST, best["epoch"]), "model")
        tensors |= {f"best/{name}": value for name, value in weights.items()}
    if not (shared or trained_only):
        _check_config(about["config"], step.config)
    _check_tensors(tensors, step, images, directory, has_best=best is not None)
    state = TrainerState(
        config=about["config"],
        epoch=about["epoch"],
        history=[math.nan if value is None else value for value in about["history"]],
        best=None if best is None else _best(tensors, **best),
        partition=to_array(tensors["partition"]),
        assignment=to_array(tensors["assignment"]) if "assignment" in tensors else None,
        learned=LearnedTensors(**{part: under(f"{part}/", tensors) for part in ("model", "criterion", "moments")}),
        kept=under("kept/", tensors),
    )
    return state, about["facts"]


def _best(tensors: dict[str, Tensor], *, epoch: int, value: float | None) -> BestEpoch:
    partition = to_array(tensors["best_partition"])
    return BestEpoch(epoch=epoch, value=value, weights=under("best/", tensors), partition=partition)


def saved_config(directory: Path) -> tuple[TrialConfig, dict[str, Any]]:
    """Return the configuration of the newest valid state of a directory, and the facts that were saved with it.

    Raises:
        CheckpointError: if no valid state is there, or this version does not know its settings.
    """
    about = checkpoint.newest(directory, STATE, _StateFacts)[1]
    try:
        return TrialConfig(**about["config"]), about["facts"]
    except SettingError as error:
        raise CheckpointError(f"checkpoint {directory}: its settings are not valid ({error}); take another") from None


def state_name(epoch: int) -> str:
    """Return the name of the files of a state, without suffix."""
    return checkpoint.numbered(STATE, epoch)


def has_state(directory: Path) -> bool:
    """Return whether a state was saved in a directory, valid or not."""
    return bool(checkpoint.numbers(directory, STATE))


def remove_state(directory: Path) -> None:
    """Remove the state that only a resume needs; the best model stays."""
    checkpoint.keep_only(directory, STATE)


# -- checks --------------------------------------------------------------------------------------------


def _check_config(settings: dict[str, Scalar], config: TrialConfig) -> None:
    ours = config.model_dump()
    for name, value in settings.items():
        if name not in _FREE and ours.get(name) != value:
            raise SettingError(f"{name}={ours.get(name)!r}: the checkpoint was made with {value!r}; use that")


def _check_tensors(
    tensors: dict[str, Tensor], step: TrainStep, images: int, directory: Path, *, has_best: bool
) -> None:
    """Check that the train step can have been in this state: a valid checksum does not prove it.

    Raises:
        CheckpointError: if it cannot.
    """
    check_weights(step.model, under("model/", tensors), directory)
    checkpoint.check_tensors(under("criterion/", tensors), step.criterion.state_dict(), directory)
    names = ("partition", "best_partition")
    wanted = {name: torch.empty(images, dtype=torch.int64) for name in names if name == "partition" or has_best}
    checkpoint.check_tensors({name: tensors[name] for name in names if name in tensors}, wanted, directory)
    if has_best:
        check_weights(step.model, under("best/", tensors), directory)
    check_kept(under("kept/", tensors), step.model, directory, is_trained=has_best)
    _check_moments(tensors, step, directory)
    assignment = tensors.get("assignment")
    if assignment is not None and (assignment.dtype != torch.int64 or assignment.ndim != 1):
        raise CheckpointError(f"checkpoint {directory}: its clusters are no list of integers; take another")


def _check_moments(tensors: dict[str, Tensor], step: TrainStep, directory: Path) -> None:
    # The checkpoint may have another number of masks than the model has now.
    shapes = {**_parameter_shapes(step.optimizer), "masks": tensors["model/masks"].shape}
    for name, value in under("moments/", tensors).items():
        parameter, field = name.rpartition(":")[::2]
        wanted = shapes.get(parameter)
        fits = wanted is not None and value.is_floating_point() and bool(value.isfinite().all())
        if not fits or value.shape not in (wanted, torch.Size([])) or field not in _MOMENTS:
            raise CheckpointError(
                f"checkpoint {directory}: moments of {printable(name)} fit no parameter; take another"
            )


def _parameter_shapes(optimizer: torch.optim.Optimizer) -> dict[str, torch.Size]:
    groups = optimizer.param_groups
    return {name: p.shape for group in groups for name, p in zip(group["param_names"], group["params"], strict=True)}
