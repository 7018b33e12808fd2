"""Trainer: one trial of the method in plain PyTorch. It knows no Ray and no MLflow."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from filelock import FileLock
from pydantic import Field
from torch import Tensor

from dcml_tune import data
from dcml_tune.clustering.partition import drop_singles
from dcml_tune.clustering.reclustering import recluster
from dcml_tune.config.errors import SettingError
from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import EvaluationSet, ImageList, ImageStore, remains
from dcml_tune.data.loader import BatchLoader
from dcml_tune.data.transforms import TrainTransform
from dcml_tune.metrics.protocols import EmbeddedOnce, official_measures
from dcml_tune.metrics.retrieval import retrieval_measures
from dcml_tune.models.embedder import BEST, check_weights
from dcml_tune.runs.ledger import NAME as LEDGER
from dcml_tune.runs.ledger import enter
from dcml_tune.training.divisions import Division, cluster_measures, mask_measures
from dcml_tune.training.embedding import embed, evaluation_store
from dcml_tune.training.optimizer import load_moments, moments, replace_masks
from dcml_tune.training.starting_model import TrainedModel
from dcml_tune.training.step import TrainStep
from dcml_tune.training.trial_data import Indices, TrialData
from dcml_tune.utils import checkpoint
from dcml_tune.utils.checkpoint import CheckpointError
from dcml_tune.utils.files import CorruptFileError, read_checksummed, write_checksummed
from dcml_tune.utils.stored import Count, Finite, Scalar, Stored, printable

log = logging.getLogger(__name__)

_STATE, _BEST = "trainer", BEST
EPOCH = "epoch"
"""Models that `save_epoch` writes lie in folders of this name and the epoch."""
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class _BestFacts(Stored):
    epoch: Count
    value: Finite | None


class _State(Stored):
    """trainer-EPOCH.json."""

    epoch: Count
    best: _BestFacts | None
    history: list[Finite | None]
    config: dict[str, Scalar]
    facts: dict[str, Any]


class _Measures(Stored):
    """untrained-KEY.json: measures by name."""

    __pydantic_extra__: dict[str, Finite] = Field(init=False)


class NonFiniteLossError(ArithmeticError):
    """Training has diverged: the loss of an epoch is not a finite number."""


class Trainer(TrainStep):
    """Trains one configuration, an epoch at a time.

    Randomness is derived, not stored: batches, augmentation and dropout of epoch e are seeded from (seed, e), so a
    trainer that is saved and loaded at the end of an epoch goes on, on the CPU, with the very same numbers.

    Example:
        trainer = Trainer(TrialConfig(dataset="emoji", nb_epochs=2), stores=Path("runs/store"))
        while trainer.epoch < trainer.config.nb_epochs:
            print(trainer.run_epoch()["val/recall_at_1"])

    Attributes:
        epoch: number of epochs completed.
        division: what the last epoch's reclustering found; None if it had none.
        best: the best epoch so far by `metric`, with its value and its model's weights.
        history: value of `metric` after each epoch; empty when nothing is held out.
        test_scored_before: how often the test classes had been scored when this trainer did it last, by the ledger.
        pretrained: the network began with its backbone's weights, not with those of a trained model.
    """

    def __init__(
        self,
        config: TrialConfig,
        *,
        stores: Path | str = Path("runs/store"),
        device: torch.device | str | None = None,
        metric: str | None = None,
        ledger: Path | str | None = None,
        name: str = "",
    ) -> None:
        """Open the data and build the model.

        Args:
            config: every setting of the trial.
            stores: directory of the image stores.
            device: by default the GPU where there is one.
            metric: the measure by which the best epoch is kept; by default recall@1.
            ledger: file of the ledger of the test classes; by default beside the directory of the stores.
            name: of this run in the ledger.
        """
        self.stores = Path(stores)
        self.ledger, self.name = Path(ledger or self.stores.absolute().parent / LEDGER), name
        self.metric = metric or f"{config.compared_on}/recall_at_1"
        self.data = TrialData.open(config, self.stores)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        super().__init__(config, int(self.data.labels.max()) + 1, device)
        workers = config.num_workers if config.num_workers is not None else (4 if self.device.type == "cuda" else 0)
        self.loader = BatchLoader(
            self.data.originals,
            TrainTransform(config.sz_crop, config.album),
            num_workers=workers,
            pin=self.device.type == "cuda",
        )
        self.epoch = 0
        self.assignment: Indices | None = None
        self.partition = drop_singles(np.zeros(len(self.data.train)), self.data.labels[self.data.train])
        self.division: Division | None = None
        self.best: Best | None = None
        self.history: list[float] = []
        self.test_scored_before: int | None = None
        self.pretrained = True
        self._test_views: dict[ImageList, ImageStore] = {}

    def run_epoch(self) -> dict[str, float]:
        """Run one epoch of the method and measure the model on the held-out classes.

        Returns:
            Measures by the names of docs/architecture.md: shares of 1, times in seconds.

        Raises:
            NonFiniteLossError: if the loss was not finite.
        """
        plan = EpochPlan.at(self.epoch, self.config)
        self.division = None
        start = time.perf_counter()
        with _seeded(self.config.seed, self.epoch):
            measures = self._recluster(plan)
            clustered = time.perf_counter()
            measures |= self._train(plan)
            trained = time.perf_counter()
            measures |= self.evaluate()
        end = time.perf_counter()
        self.epoch += 1
        self._keep_best(measures)
        return measures | {
            "clusters/count": float(plan.nb_clusters),
            "phase/full_embedding": float(plan.full_embedding),
            "phase/backbone_frozen": float(plan.backbone_frozen),
            "time/cluster_s": clustered - start,
            "time/train_s": trained - clustered,
            "time/evaluate_s": end - trained,
            "time/epoch_s": end - start,
        }

    # -- the division ----------------------------------------------------------------------------------

    def _recluster(self, plan: EpochPlan) -> dict[str, float]:
        """Compute the partition anew where the plan says so, and let the masks follow."""
        measures: dict[str, float] = {}
        if plan.recluster:
            views = self.data.views
            penultimate = self.config.penultimate_for_clusters
            features = embed(self.model, views, self.data.train, penultimate=penultimate)
            labels = self.data.labels[self.data.train]
            found = recluster(features, labels, plan, self.assignment, config=self.config)
            self.partition, self.assignment = found.partition, found.assignment
            if found.nmi_previous is not None:
                measures["clusters/nmi_previous"] = found.nmi_previous
        if plan.divide or plan.merge:
            self.model.divide_masks() if plan.divide else self.model.merge_masks()
            replace_masks(self.optimizer, self.model.masks)
        labels = self.data.labels[self.data.train]
        if plan.recluster:
            self.division = Division.of(plan.epoch, self.partition, labels, self.model.masks)
        return measures | cluster_measures(self.partition, labels, plan.nb_clusters)

    # -- training --------------------------------------------------------------------------------------

    def _train(self, plan: EpochPlan) -> dict[str, float]:
        """One pass of batches, round robin over the learners."""
        self._set_trainable(plan)
        labels = self.data.labels[self.data.train]
        batches = data.epoch_batches(self.partition, labels, self.config, plan.epoch)
        generator = torch.Generator(self.device).manual_seed(_mixed(self.config.seed, plan.epoch))
        total = torch.zeros(2, device=self.device)
        rows = [(learner, self.data.train[indices]) for learner, indices in batches]
        for learner, images, indices in self.loader.epoch(rows, seed=self.config.seed, epoch=plan.epoch):
            total += self._step(images, self.data.labels[indices], learner, plan, generator)
        loss, overlap = (total / max(1, len(batches))).tolist()
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss of epoch {plan.epoch} is not finite (base_lr={self.config.base_lr}, "
                f"mask_lr_mult={self.config.mask_lr_mult}); lower the learning rates"
            )
        masks = mask_measures(self.model.masks)
        if not self._trains_masks(plan):
            overlap = masks["masks/overlap"]  # which is no part of the loss, but told, as the original does
        measures = {"train/loss": loss, "train/loss_masks": self.config.masking_lambda * overlap}
        return measures | {"train/batches": float(len(batches))} | masks | self.criterion.trained()

    # -- measuring -------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Measure the full embedding on the classes that trials are compared on; nothing when there are none."""
        return self._compare(penultimate=False)

    @property
    def compares(self) -> bool:
        """Whether `evaluate` has something to measure on."""
        return self.data.validation is not None or self.config.protocol == "paper"

    def _compare(self, *, penultimate: bool) -> dict[str, float]:
        """Measures `val/...` on the held-out classes, or `paper/...` on the test classes, as the original does."""
        if self.config.protocol == "paper":
            found = self.test(penultimate=penultimate)
            return {name.replace("test", "paper", 1): value for name, value in found.items()}
        queries, gallery = self.data.validation, self.data.gallery
        if queries is None:
            return {}
        labels = self.data.labels
        embeddings = embed(self.model, self.data.views, queries, penultimate=penultimate)
        found = retrieval_measures(
            embeddings,
            labels[queries],
            self.data.ks,
            gallery=None if gallery is None else embed(self.model, self.data.views, gallery, penultimate=penultimate),
            gallery_labels=None if gallery is None else labels[gallery],
        )
        if self.config.dataset == "vid":  # its protocol draws galleries: the same ones for every epoch and trial
            drawn = official_measures(embeddings, labels[queries], self.data.ks)
            found |= {name: value for name, value in drawn.items() if name in found}
        return {f"val/{name}": value for name, value in found.items()}

    def untrained(self) -> dict[str, float]:
        """Measures of the untrained network's penultimate features on the classes that trials are compared on.

        They are the same in every trial of a search, so they are kept beside the image stores. Only a trainer
        that has not begun can measure them.
        """
        config = self.config
        key = data.fingerprint(
            self.data.views.key,
            config.arch,
            config.weights,
            config.features_pooling,
            config.protocol,
            config.held_out_share,
            config.split_seed,
            *([config.fold] if config.fold else []),
        )
        path = self.stores / f"untrained-{key}.json"
        with FileLock(f"{path}.lock"):
            try:
                return cast("dict[str, float]", read_checksummed(path, _Measures))
            except CorruptFileError:
                assert self.epoch == 0, "the untrained network is gone"
                assert self.pretrained, "the network began with the weights of another training"
                measures = self._compare(penultimate=True)
                write_checksummed(path, measures)
                return measures

    def test(self, *, penultimate: bool = False) -> dict[str, float]:
        """Measure the model on the test classes. Of a search, this is the only place that scores a test image.

        That it does is written into the ledger first.

        Args:
            penultimate: measure penultimate features instead of the embedding (for the untrained network).

        Raises:
            OSError: if the ledger cannot be written; no test image was scored then.
        """
        dataset = self.data.dataset
        self.test_scored_before = enter(
            self.ledger, run=self.name, dataset=dataset.name, test_set=dataset.test_fingerprint
        )
        measures: dict[str, float] = {}
        embedded = EmbeddedOnce(lambda images: self._embed_list(images, penultimate))
        for number, test in enumerate(dataset.tests):
            prefix = "test" if number == 0 else f"test_{test.name}"
            measures |= {f"{prefix}/{name}": value for name, value in self._test(test, embedded).items()}
        return measures

    def _test(self, test: EvaluationSet, embedded: EmbeddedOnce) -> dict[str, float]:
        (queries, labels), *gallery = (embedded(images) for images in test.lists)
        kept = remains.matched_queries(test, labels, gallery[0][1] if gallery else None)
        queries, labels = queries[torch.from_numpy(kept).to(queries.device)], labels[kept]
        found = retrieval_measures(
            queries,
            labels,
            test.ks,
            gallery=gallery[0][0] if gallery else None,
            gallery_labels=gallery[0][1] if gallery else None,
        )
        if self.config.dataset == "vid":
            found |= {f"official_{name}": value for name, value in official_measures(queries, labels, test.ks).items()}
        return found

    def _embed_list(self, images: ImageList, penultimate: bool) -> tuple[Tensor, Indices]:
        if images not in self._test_views:
            self._test_views[images] = evaluation_store(images, self.config, self.stores)
        store = self._test_views[images]
        rows = np.arange(len(store.kept), dtype=np.int64)
        return embed(self.model, store, rows, penultimate=penultimate), images.labels[store.kept]

    def _keep_best(self, measures: dict[str, float]) -> None:
        """Add the best of the metric so far to the measures, and keep the weights that reached it."""
        value = measures.get(self.metric)
        if value is None:
            self.best = self._now(None)
            return
        self.history.append(value)
        if self.best is None or self.best.value is None or math.isnan(self.best.value) or value > self.best.value:
            self.best = self._now(value)
        measures[f"{self.metric}_best"] = cast(float, self.best.value)
        measures["epoch_best"] = float(self.best.epoch)

    def _now(self, value: float | None) -> Best:
        weights = _copied(self.model.state_dict())
        return Best(epoch=self.epoch, value=value, weights=weights, partition=self.partition.copy())

    # -- saving ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on after the last completed epoch: tensors by name, and facts."""
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"criterion/{name}": value for name, value in self.criterion.state_dict().items()}
        tensors |= {f"moments/{name}": value for name, value in moments(self.optimizer).items()}
        tensors["partition"] = torch.from_numpy(self.partition)
        if self.assignment is not None:
            tensors["assignment"] = torch.from_numpy(self.assignment)
        if self.best is not None:
            tensors |= {f"best/{name}": value for name, value in self.best.weights.items()}
            tensors["best_partition"] = torch.from_numpy(self.best.partition)
        return {
            "tensors": tensors,
            "epoch": self.epoch,
            "best": None if self.best is None else {"epoch": self.best.epoch, "value": self.best.value},
            "history": self.history,
            "config": self.config.model_dump(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another trainer of the same configuration was saved.

        Raises:
            SettingError: if the state is of another configuration.
        """
        self._check_same(state["config"])
        tensors = state["tensors"]
        self.model.load_state_dict(_under("model/", tensors))
        self.criterion.load_state_dict(_under("criterion/", tensors))
        replace_masks(self.optimizer, self.model.masks)
        load_moments(self.optimizer, _under("moments/", tensors))
        self.partition = tensors["partition"].cpu().numpy().copy()
        self.assignment = tensors["assignment"].cpu().numpy().copy() if "assignment" in tensors else None
        self.epoch = state["epoch"]
        self.history = [math.nan if value is None else value for value in state["history"]]
        self.best = None
        if state["best"] is not None:
            partition = tensors["best_partition"].cpu().numpy().copy()
            self.best = Best(**state["best"], weights=_copied(_under("best/", tensors)), partition=partition)

    def _check_same(self, settings: dict[str, Any]) -> None:
        ours = self.config.model_dump()
        for name, value in settings.items():
            if name not in ("num_workers", "dataset_dir", "skip_unreadable") and ours.get(name) != value:
                raise SettingError(f"{name}={ours.get(name)!r}: the checkpoint was made with {value!r}; use that")

    def _check_state(self, tensors: dict[str, Tensor], state: dict[str, Any], directory: Path) -> None:
        """A state with a right checksum must still be one that this trainer can have been in.

        Raises:
            CheckpointError: if it is not.
        """
        check_weights(self.model, _under("model/", tensors), directory)
        checkpoint.check_tensors(_under("criterion/", tensors), self.criterion.state_dict(), directory)
        rows = torch.from_numpy(self.partition)
        partitions = {name: rows for name in ("partition", "best_partition") if name == "partition" or state["best"]}
        found = {name: value for name, value in tensors.items() if name in ("partition", "best_partition")}
        checkpoint.check_tensors(found, partitions, directory)
        if state["best"] is not None:
            check_weights(self.model, _under("best/", tensors), directory)
        shapes = {"masks": tensors["model/masks"].shape}
        for name, value in _under("moments/", tensors).items():
            parameter, field = name.rpartition(":")[::2]
            wanted = {**self._shapes(), **shapes}.get(parameter)
            fits = wanted is not None and value.is_floating_point() and bool(value.isfinite().all())
            if not fits or value.shape not in (wanted, torch.Size([])) or field not in _MOMENTS:
                raise CheckpointError(
                    f"checkpoint {directory}: moments of {printable(name)} fit no parameter; take another"
                )
        assignment = tensors.get("assignment")
        if assignment is not None and (assignment.dtype != torch.int64 or assignment.ndim != 1):
            raise CheckpointError(f"checkpoint {directory}: its clusters are no list of numbers; take another")

    def _shapes(self) -> dict[str, torch.Size]:
        """Shapes of the parameters that are trained, by the optimiser's names."""
        groups = self.optimizer.param_groups
        return {
            name: p.shape for group in groups for name, p in zip(group["param_names"], group["params"], strict=True)
        }

    def save(self, directory: Path, **facts: Any) -> None:
        """Write the trainer's state into a directory, and its best model so far into the folder `best-EPOCH` of it.

        A process that is killed at any moment leaves a state that is whole: this one, or the one before.

        Args:
            directory: of this trial alone; it is made where it is missing.
            facts: what else to keep, as JSON; `load` gives it back.
        """
        state = self.state_dict()
        tensors = state.pop("tensors")
        own = {name: value for name, value in tensors.items() if not name.startswith("best/")}
        if self.best is not None:
            self._save_best(directory, self.best)
        if self.division is not None:
            self.division.save(directory)
        checkpoint.write(directory, checkpoint.numbered(_STATE, self.epoch), own, {**state, "facts": facts})
        checkpoint.keep_only(directory, _STATE, self.epoch)
        checkpoint.keep_only(directory, _BEST, self.best.epoch if self.best else None)

    def _save_best(self, directory: Path, best: Best) -> None:
        """Write the best model with its division, unless it was written in an earlier epoch."""
        place = directory / checkpoint.numbered(_BEST, best.epoch)
        if best.epoch == self.epoch or not (place / "model.json").exists():
            self._save_model(place, best)

    def _save_model(self, place: Path, model: Best) -> None:
        division = {"partition": torch.from_numpy(model.partition), "rows": torch.from_numpy(self.data.train)}
        facts = {"nb_clusters": int(model.partition.max()) + 1, "names": self._names}
        checkpoint.write(place, "division", division, facts)
        self.model.save(place, model.weights, epoch=model.epoch, **{self.metric: model.value})

    @cached_property
    def _names(self) -> str:
        """A hash of the names of the training images, by which a division is known to be of them."""
        return data.fingerprint(*self.data.images.paths)

    def save_epoch(self, directory: Path) -> Path:
        """Write the model as it is, with its division, into the folder `epoch-EPOCH` of a directory; it stays there."""
        place = directory / checkpoint.numbered(EPOCH, self.epoch)
        self._save_model(place, self._now(self.history[-1] if self.history else None))
        return place

    def load(self, directory: Path) -> dict[str, Any]:
        """Go on from what `save` wrote; returns the facts that were kept with it.

        Raises:
            CheckpointError: if no state there is whole.
            SettingError: if the state is of another configuration.
        """
        tensors, state = checkpoint.newest(directory, _STATE, _State)
        if state["best"] is not None:
            best, _ = checkpoint.read(directory / checkpoint.numbered(_BEST, state["best"]["epoch"]), "model")
            tensors |= {f"best/{name}": value for name, value in best.items()}
        self._check_same(state["config"])
        self._check_state(tensors, state, directory)
        self.load_state_dict({"tensors": tensors, **state})
        facts: dict[str, Any] = state["facts"]
        return facts

    def start_from(self, given: TrainedModel, *, restart: bool = False) -> None:
        """Go on with a trained model: at the epoch after the one that it was saved in, with its masks, as the original.

        The optimiser starts anew. If the model's division is of the same images, the learners keep them until the next
        reclustering; else the images are clustered now.

        Args:
            given: the model.
            restart: begin at epoch 0 instead, with its weights alone: its masks belong to its own division.

        Raises:
            SettingError: if the model has not the masks that these settings have after so many epochs.
        """
        self.pretrained = False
        if restart:
            self.model.load_state_dict({**given.model.state_dict(), "masks": self.model.masks.detach()})
            return
        learners = EpochPlan.at(max(0, given.epoch - 1), self.config).nb_clusters
        if len(given.model.masks) != learners:
            raise SettingError(
                f"--checkpoint {given.path}: has {len(given.model.masks)} masks after epoch {given.epoch}, and these settings "
                f"have {learners} learners then; give the settings that it was trained with, or --restart-schedule to "
                "begin at epoch 0 with its weights alone"
            )
        self.model.load_state_dict(given.model.state_dict())
        replace_masks(self.optimizer, self.model.masks)
        self.epoch = given.epoch
        if learners > 1:
            self._take_division(given, learners)

    def _take_division(self, given: TrainedModel, learners: int) -> None:
        """The partition of a model that was trained on the same images, or a new one."""
        # A model of version 0.1 has no names.
        same = given.names in (None, self._names) and given.model.config.dataset == self.config.dataset
        if same and given.division is not None and np.array_equal(given.division[0], self.data.train):
            self.partition, self.assignment = given.division[1], given.division[1].copy()
            return
        plan = EpochPlan.at(self.epoch, self.config)
        if not plan.recluster:
            self._recluster(replace(plan, nb_clusters=learners, recluster=True, divide=False, merge=False))

    @staticmethod
    def saved_config(directory: Path) -> TrialConfig:
        """The configuration of the trainer that `save` wrote.

        Raises:
            CheckpointError: if no state there is whole.
        """
        settings = checkpoint.newest(directory, _STATE, _State)[1]["config"]
        try:
            return TrialConfig(**settings)
        except SettingError as error:
            raise CheckpointError(f"checkpoint {directory}: its settings cannot be ({error}); take another") from None

    @staticmethod
    def is_saved(directory: Path) -> bool:
        """Whether `save` has written into this directory."""
        return bool(checkpoint.numbers(directory, _STATE))

    @staticmethod
    def forget_state(directory: Path) -> None:
        """Remove what only going on needs, and keep the best model."""
        checkpoint.keep_only(directory, _STATE)


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best epoch of a trial so far."""

    epoch: int
    """Epochs completed when it was reached."""
    value: float | None
    """Of the metric; None when nothing is held out, and the last epoch counts as the best."""
    weights: dict[str, Tensor]
    partition: Indices
    """Cluster of each image that trains; -1 for one that is left out."""


@contextmanager
def _seeded(seed: int, epoch: int) -> Iterator[None]:
    """Seed what draws from torch's global generators (dropout), and give them back as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_mixed(seed, epoch))
        yield


def _mixed(seed: int, epoch: int) -> int:
    """One seed from two numbers, without the overlaps that a sum would have."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
