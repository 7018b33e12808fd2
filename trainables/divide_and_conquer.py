"""DivideAndConquer: how Ray drives a Trainer. One `step()` is one epoch of the method."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from ray import tune

from dcml_tune.config import TrialConfig
from dcml_tune.resources import cap_gpu_memory, set_threads
from dcml_tune.trainer import NonFiniteLossError, Trainer

log = logging.getLogger(__name__)

Role = Literal["trial", "final", "published", "untrained"]

RUN = "run"
"""The key of a trial's dictionary that holds its `Run`; all other keys are settings of TrialConfig."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a trial is run: what is not a setting of it and must not change its result."""

    stores: str = "runs/store"
    """Directory of the image stores, absolute, shared by the trials of a node."""
    threads: int | None = None
    """Threads of a trial on the CPU; None leaves torch's own number."""
    gpu_fraction: float = 1.0
    """Share of the GPU's memory that the trial may take."""
    metric: str = "val/recall_at_1"
    """The measure by which a trial's best epoch is kept."""
    role: Role = "trial"
    """trial: compared on held-out classes. final, published, untrained: scored on the test classes at the end."""
    until: int | None = None
    """Epochs after which to stop; None: all of nb_epochs. The schedule stays that of nb_epochs."""
    varied: tuple[str, ...] = field(default_factory=tuple)
    """The searched settings, shown in the Ray dashboard."""

    def as_dict(self) -> dict[str, Any]:
        """For a trial's dictionary."""
        return {**asdict(self), "varied": list(self.varied)}


def whole(config: dict[str, Any]) -> dict[str, Any]:
    """A trial's dictionary; Ray's grid of whole dictionaries has each under the key `whole`."""
    return dict(config.get("whole", config))


class DivideAndConquer(tune.Trainable):
    """A trial of the divide-and-conquer method.

    The dictionary that Ray hands over holds the settings of TrialConfig, and under `run` those of `Run`.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Build the trainer. This is the only step from untyped to typed."""
        settings = whole(config)
        run = dict(settings.pop(RUN, {}))
        self.run = Run(**{**run, "varied": tuple(run.get("varied", ()))})
        if self.run.threads is not None:
            set_threads(self.run.threads)
        cap_gpu_memory(self.run.gpu_fraction)
        self.trainer = Trainer(TrialConfig(**settings), stores=self.run.stores, metric=self.run.metric)

    def step(self) -> dict[str, Any]:
        """Run one epoch; a trial that cannot go on ends here, with its reason, and without a retry."""
        try:
            return self._untrained() if self.run.role == "untrained" else self._epoch()
        except NonFiniteLossError as error:
            return self._failed(str(error))
        except torch.cuda.OutOfMemoryError:
            return self._failed(
                f"out of GPU memory with {self.run.gpu_fraction:g} of the GPU; raise --gpus-per-trial or lower --batch-size"
            )

    def _epoch(self) -> dict[str, Any]:
        # Step 0 of a trial's curves: what its network was worth before it was trained.
        before = {"untrained": self.trainer.untrained()} if self._compares() and self.trainer.epoch == 0 else {}
        measures: dict[str, Any] = self.trainer.run_epoch()
        until = self.run.until or self.trainer.config.nb_epochs
        done = self.trainer.epoch >= until
        if done and self.run.role != "trial":
            measures |= self.trainer.test()
        complete = self.trainer.epoch >= self.trainer.config.nb_epochs
        return {**before, **measures, "epoch": self.trainer.epoch, "done": done, "done_all": complete}

    def _compares(self) -> bool:
        return self.run.role == "trial" and self.trainer.data.validation is not None

    def _untrained(self) -> dict[str, Any]:
        return {**self.trainer.test(penultimate=True), "epoch": 0, "done": True}

    def _failed(self, reason: str) -> dict[str, Any]:
        """The worst finite value: a missing or infinite one would leave scheduler and sampler waiting for ever."""
        log.error("trial %s failed: %s", self.trial_id, reason)
        worst = {self.run.metric: 0.0, f"{self.run.metric}_best": 0.0}
        return {**worst, "failed_reason": reason, "epoch": self.trainer.epoch, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the trainer's state, and its best model so far into the folder `best`."""
        self.trainer.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: str) -> None:  # type: ignore[override]
        """Go on from what `save_checkpoint` wrote."""
        self.trainer.load(Path(checkpoint))

    def cleanup(self) -> None:
        """Give back what the loader's processes hold."""
        if hasattr(self, "trainer"):
            self.trainer.loader.close()

    def __repr__(self) -> str:
        """What the Ray dashboard shows of the actor: data set and searched settings."""
        if not hasattr(self, "trainer"):
            return type(self).__name__
        config = self.trainer.config
        settings = [f"{name}={getattr(config, name):.4g}" for name in self.run.varied]
        return " ".join([config.dataset, *([] if self.run.role == "trial" else [self.run.role]), *settings])
