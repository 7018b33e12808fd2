"""Trainer: one trial of the method in plain PyTorch, without Ray and MLflow.

Above 250 lines because training, the facade of `Evaluator` and that of `saving` are one class to users and to Ray.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcml_tune import data
from dcml_tune.clustering.partition import drop_singles
from dcml_tune.clustering.reclustering import recluster
from dcml_tune.config.errors import SettingError
from dcml_tune.config.measures import chooses
from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from dcml_tune.runs.hits import QueryHits
from dcml_tune.runs.ledger import Ledger
from dcml_tune.runs.stores import Stores
from dcml_tune.training import saving
from dcml_tune.training.averaging import MeasuredWeights
from dcml_tune.training.devices import finish_work
from dcml_tune.training.divisions import Division, cluster_measures, mask_measures
from dcml_tune.training.embedding import embedding_steps
from dcml_tune.training.evaluator import Evaluator
from dcml_tune.training.loading import training_loader
from dcml_tune.training.optimizer import replace_masks
from dcml_tune.training.overlap import Steps, finish, timed
from dcml_tune.training.pca_start import initialise_by_pca
from dcml_tune.training.ranks.exchange import ALONE
from dcml_tune.training.ranks.processes import RankProcesses
from dcml_tune.training.seeding import epoch_seeded
from dcml_tune.training.starting_model import TrainedModel
from dcml_tune.training.state import BestEpoch, LearnedTensors, TrainerState
from dcml_tune.training.step import TrainStep
from dcml_tune.training.trial_data import Indices, TrialData
from dcml_tune.training.updates import Updates


class Trainer:
    """Trains one configuration, epoch by epoch.

    Random numbers are derived, not stored: those of batches, augmentation and dropout of epoch e are seeded from
    (seed, e). A trainer that is saved after an epoch and loaded continues, on the CPU, with identical numbers.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from dcml_tune import Trainer, TrialConfig
        >>> network = {"arch": "test_resnet", "weights": "none", "sz_resize": 32, "sz_crop": 32, "sz_embedding": 16}
        >>> config = TrialConfig(
        ...     dataset="emoji", ratio_classes=0.02, nb_epochs=1, batch_size=8, num_samples_per_class=2, **network
        ... )
        >>> with TemporaryDirectory() as stores:
        ...     trainer = Trainer(config, stores=stores)
        ...     while trainer.epoch < config.nb_epochs:
        ...         measures = trainer.run_epoch()
        >>> trainer.epoch, 0 <= measures["val/recall_at_1"] <= 1
        (1, True)

    Attributes:
        config: settings of the trial.
        data: images of the trial.
        train_step: model, loss and optimiser; `model`, `criterion` and `optimizer` are its own.
        epoch: number of epochs completed.
        partition: cluster of each training image; -1 for an image that is left out.
        division: what the last epoch's reclustering found; None if it did not recluster.
        best: the best epoch so far by `metric`, with its value and its weights.
        history: value of `metric` after each epoch; empty when no classes are held out.
        measured: the weights that are measured, kept as best and tested instead of those of `model`.
    """

    def __init__(
        self,
        config: TrialConfig,
        *,
        stores: Path | str | Stores = Path("runs/store"),
        device: torch.device | str | None = None,
        metric: str | None = None,
        ledger: Path | str | None = None,
        name: str = "",
        note: str = "",
        ranks: int = 1,
        compiled: bool = False,
    ) -> None:
        """Open the data and build the model.

        Args:
            config: settings of the trial.
            stores: directory of the image stores.
            device: device of the model; default: the GPU if there is one.
            metric: measure by which the best epoch is chosen; default: recall@1.
            ledger: file of the ledger of the test classes; default: beside the directory of the stores that nodes share.
            name: name of this run in the ledger.
            note: why it scores the test classes, for the ledger.
            ranks: number of processes that train together, on as many GPUs; part of the result. `close` ends the others.
            compiled: whether `torch.compile` compiles the training of the backbone; the last digits of its results differ.
        """
        stores = Stores.of(stores)
        self.config = config
        self.metric = metric or chooses(config)
        self.device = device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._processes = None
        if ranks != 1:  # they start while this process opens the data
            self._processes = RankProcesses(config, size=ranks, stores=stores, device=device, compiled=compiled)
        try:
            self._build(stores, compiled)
        except BaseException:
            self.close()
            raise
        self._evaluator = Evaluator(
            model=self.model,
            config=config,
            data=self.data,
            ledger=Ledger.of(ledger, stores),
            name=name,
            note=note,
            ranks=self.ranks,
        )
        self.epoch = 0
        self.assignment: Indices | None = None
        self.partition = drop_singles(np.zeros(len(self.data.train)), self._labels)
        self.division: Division | None = None
        self.best: BestEpoch | None = None
        self.history: list[float] = []
        self.measured = MeasuredWeights(average_epochs=config.average_epochs, share=config.pretrained_share)
        self._pretrained = True  # the network starts from the weights of its backbone

    def _build(self, stores: Stores, compiled: bool) -> None:
        """Open the data, build the model, and join the other ranks."""
        config = self.config
        self.data = TrialData.open(config, stores)
        nb_classes, trained = int(self.data.labels.max()) + 1, np.unique(self._labels)
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)  # libraries such as Faiss take the current device
        self.train_step = step = TrainStep(config, nb_classes, self.device, trained, compiled=compiled)
        self.model, self.criterion, self.optimizer = step.model, step.criterion, step.optimizer
        if config.init_method == "pca":
            initialise_by_pca(self.model, self.data)
        self.loader = training_loader(config, self.data, self.device)
        self.ranks = ALONE if self._processes is None else self._processes.join()
        step.lr_scale = self.ranks.lr_scale
        self._updates = Updates(config=config, data=self.data, step=step, loader=self.loader, ranks=self.ranks)

    def close(self) -> None:
        """End the processes of the loader and the other ranks. Without them a trainer may go on."""
        finish_work(self.device)
        if hasattr(self, "loader"):
            self.loader.close()
        if self._processes is not None:
            self._processes.close()

    @cached_property
    def _labels(self) -> Indices:
        """Class of each image that trains."""
        return self.data.labels[self.data.train]

    def run_epoch(self) -> dict[str, float]:
        """Run one epoch of the method and measure the model on the held-out classes.

        Returns:
            Measures, by the names that docs/mlflow.md lists: shares as fractions of 1, times in seconds.

        Raises:
            NonFiniteLossError: if the loss is not finite.
            RankError: if another rank has failed.
        """
        return finish(self.epoch_steps())

    def epoch_steps(self) -> Steps[dict[str, float]]:
        """Run one epoch as `run_epoch` does, in steps, between which something else may be done.

        With several ranks an epoch that is given up must first be done until the model is trained: the other ranks have begun it.

        Yields:
            True after each batch that is embedded for the clusters, and each update; False when the model is trained and not
            yet measured. Until then `epoch`, `best` and `history` are those of the epoch before.
        """
        plan = EpochPlan.at(self.epoch, self.config)
        self.division = None
        start = time.perf_counter()
        self.measured.before_epoch(self.model, is_first=self.best is None)
        copy_s = time.perf_counter() - start
        with epoch_seeded(self.config.seed, self.epoch):
            measures, cluster_s = yield from timed(self._recluster(plan))
            trained, train_s = yield from timed(self._train(plan))
            yield False
            start = time.perf_counter()
            measures |= trained | self.evaluate()
        times = {"cluster": copy_s + cluster_s, "train": train_s, "evaluate": time.perf_counter() - start}
        times["epoch"] = sum(times.values())
        self.epoch += 1
        self._keep_best(measures)
        return measures | plan.measures() | {f"time/{part}_s": seconds for part, seconds in times.items()}

    def _recluster(self, plan: EpochPlan) -> Steps[dict[str, float]]:
        """Compute a new partition if the plan says so, and split or merge the masks."""
        measures: dict[str, float] = {}
        if plan.recluster:
            views, rows, penultimate = self.data.views, self.data.train, self.config.penultimate_for_clusters
            features = yield from embedding_steps(self.model, views, rows, penultimate=penultimate, ranks=self.ranks)
            found = recluster(features, self._labels, plan, self.assignment, config=self.config)
            self.partition, self.assignment = found.partition, found.assignment
            if found.nmi_previous is not None:
                measures["clusters/nmi_previous"] = found.nmi_previous
        if plan.divide or plan.merge:
            self.model.divide_masks() if plan.divide else self.model.merge_masks()
            replace_masks(self.optimizer, self.model.masks)
        if plan.recluster:
            self.division = Division.of(plan.epoch, self.partition, self._labels, self.model.masks)
        return measures | cluster_measures(self.partition, self._labels, plan.nb_clusters)

    def _train(self, plan: EpochPlan) -> Steps[dict[str, float]]:
        """Train on one pass of batches, round robin over the learners."""
        found = yield from self._updates.steps(plan, self.partition)
        masks = mask_measures(self.model.masks)
        # The original logs the overlap also where the loss does not include it.
        overlap = found.overlap if self.train_step.trains_masks(plan) else masks["masks/overlap"]
        measures = {"train/loss": found.loss, "train/loss_masks": self.config.masking_lambda * overlap}
        measures["train/batches"] = float(found.batches)
        return measures | masks | self.criterion.trained()

    def _keep_best(self, measures: dict[str, float]) -> None:
        """Add the best value of the metric so far to the measures, and keep the weights of that epoch."""
        value = measures.get(self.metric)
        if value is None:
            self.best = self._snapshot(None)
            return
        self.history.append(value)
        if self.best is None or self.best.is_beaten_by(value):
            self.best = self._snapshot(value)
        assert self.best.value is not None
        measures |= {f"{self.metric}_best": self.best.value, "epoch_best": float(self.best.epoch)}

    def _snapshot(self, value: float | None) -> BestEpoch:
        """Copy the model that is measured and the partition as they are now."""
        weights = self.measured.of(self.model)
        return BestEpoch(epoch=self.epoch, value=value, weights=weights, partition=self.partition.copy())

    @property
    def compares(self) -> bool:
        """Whether `evaluate` has classes to measure on."""
        return self._evaluator.compares

    @property
    def test_scored_before(self) -> int | None:
        """How often the test classes had been scored, by the ledger, when this trainer scored them last."""
        return self._evaluator.test_scored_before

    @property
    def hits(self) -> QueryHits | None:
        """What the queries found when the model was last measured; None before."""
        return self._evaluator.hits

    def evaluate(self) -> dict[str, float]:
        """Measure the full embedding on the classes that trials are compared on; empty if there are none."""
        with self.measured.swapped_into(self.model):
            return self._evaluator.compare()

    def untrained(self) -> dict[str, float]:
        """Measures of the untrained network, as `Evaluator.untrained`; before the first epoch."""
        return self._evaluator.untrained(is_untrained=self.epoch == 0 and self._pretrained)

    def test(self, *, penultimate: bool = False) -> dict[str, float]:
        """Measure the model on the test classes, after an entry in the ledger; see `Evaluator.test`."""
        with self.measured.swapped_into(self.model):
            return self._evaluator.test(penultimate=penultimate)

    # -- saving and loading ----------------------------------------------------------------------------

    @cached_property
    def _model_facts(self) -> saving.ModelFacts:
        names = data.fingerprint(*self.data.images.paths)
        return saving.ModelFacts(metric=self.metric, rows=self.data.train, names=names)

    def state(self) -> TrainerState:
        """Return the state after the last completed epoch. Its tensors share the trainer's memory."""
        return TrainerState(
            config=self.config.model_dump(),
            epoch=self.epoch,
            history=self.history,
            best=self.best,
            partition=self.partition,
            assignment=self.assignment,
            learned=LearnedTensors.of(self.train_step),
            kept=self.measured.tensors(),
        )

    def restore(self, state: TrainerState) -> None:
        """Continue from the state of another trainer of the same configuration."""
        state.learned.load_into(self.train_step)
        self.epoch, self.history, self.best = state.epoch, list(state.history), state.best
        self.partition, self.assignment = state.partition, state.assignment
        self.measured.load(state.kept)

    def save(self, directory: Path, *, models_only: bool = False, **facts: Any) -> None:
        """Write the state into a directory, and the best model so far into its folder `best-EPOCH`; writes are atomic.

        Args:
            directory: directory of this trial alone; created if it does not exist.
            models_only: leave the saved state as it is; its best model stays, too.
            facts: anything else to keep, as JSON; `load` returns it.
        """
        self._unsaved().save(directory, models_only=models_only, **facts)

    def snapshot(self) -> saving.Snapshot:
        """Return a copy of what `save` writes; its own `save` may write it while training continues."""
        return self._unsaved().copied()

    def _unsaved(self) -> saving.Snapshot:
        about, ranks = self._model_facts, self.ranks.size
        return saving.Snapshot(self.state(), self.model, division=self.division, model_facts=about, ranks=ranks)

    def save_epoch(self, directory: Path) -> Path:
        """Write the model that is measured with its division into the folder `epoch-EPOCH` of a directory, where it stays."""
        now = self._snapshot(self.history[-1] if self.history else None)
        return saving.save_epoch_model(directory, self.model, now, self._model_facts)

    def load(self, directory: Path) -> dict[str, Any]:
        """Continue from what `save` wrote; returns the facts that were saved with it.

        Raises:
            CheckpointError: if no valid state is there.
            SettingError: if the state has another configuration, or was made with another number of ranks.
        """
        state, facts = saving.load_state(directory, self.train_step, len(self.partition))
        if (ranks := facts.pop("ranks", 1)) != self.ranks.size:
            raise SettingError(f"ranks={self.ranks.size}: the checkpoint was made with {ranks!r}; use that")
        self.restore(state)
        return facts

    @staticmethod
    def is_saved(directory: Path) -> bool:
        """Return whether `save` has written to this directory."""
        return saving.has_state(directory)

    def measure_epoch(self, state: TrainerState) -> dict[str, float]:
        """Continue from the next epoch of a trainer that trains the same, and measure it as this one does.

        The two configurations may differ in `average_epochs` and `pretrained_share`.

        Args:
            state: of the other trainer after the epoch; its best epoch and copies are not looked at.

        Returns:
            What this trainer measures after the epoch, as `run_epoch` returns it.
        """
        start = time.perf_counter()
        self.measured.before_epoch(self.model, is_first=self.best is None)
        state.learned.load_into(self.train_step)
        self.partition, self.assignment, self.division = state.partition, state.assignment, None
        with epoch_seeded(self.config.seed, self.epoch):
            measures = self.evaluate()
        measures["time/evaluate_s"] = time.perf_counter() - start
        self.epoch += 1
        self._keep_best(measures)
        return measures

    # -- starting from a trained model -----------------------------------------------------------------

    def start_from(self, given: TrainedModel, *, restart: bool = False) -> None:
        """Continue with a trained model, at the epoch after that of its checkpoint and with its masks, as the original.

        The optimiser starts without moments, and the loss with new parameters. If the model's division is of the same images, the learners keep it until
        the next reclustering; otherwise the images are clustered now.

        Args:
            given: the model.
            restart: start at epoch 0 with its weights alone; its masks belong to its own division.

        Raises:
            SettingError: if the model has another number of masks than these settings have after so many epochs.
        """
        self._pretrained = False
        if restart:
            self.model.load_state_dict({**given.model.state_dict(), "masks": self.model.masks.detach()})
            return
        learners = EpochPlan.at(max(0, given.epoch - 1), self.config).nb_clusters
        given.check_learners(learners)
        self.model.load_state_dict(given.model.state_dict())
        replace_masks(self.optimizer, self.model.masks)
        self.epoch = given.epoch
        if learners > 1:
            self._take_division(given, learners)

    def _take_division(self, given: TrainedModel, learners: int) -> None:
        """Take the partition of a model that was trained on the same images, or compute one."""
        partition = given.partition_of(self.config.dataset, self._model_facts.names, self.data.train)
        if partition is not None:
            self.partition, self.assignment = partition, partition.copy()
            return
        plan = EpochPlan.at(self.epoch, self.config)
        if not plan.recluster:
            finish(self._recluster(replace(plan, nb_clusters=learners, recluster=True, divide=False, merge=False)))
