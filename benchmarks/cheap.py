"""A trainer that learns nothing, for benchmarks of what surrounds the training. Its module is quick to import in a trial's process."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from dcml_tune.config.trial import TrialConfig
from dcml_tune.models.embedder import BEST
from dcml_tune.utils import checkpoint
from dcml_tune.utils.files import read_checksummed, write_checksummed

UNTRAINED = 0.1


class CheapTrainer:
    """Has what DivideAndConquer asks of a trainer, and learns nothing: its value follows from settings and epoch."""

    def __init__(
        self, config: TrialConfig, metric: str, note: Callable[..., None] = lambda *_: None, *, epoch_s: float = 0.0
    ) -> None:
        """Begin a trial; what happens is told to `note`. An epoch takes `epoch_s` seconds."""
        self.config, self.metric, self.note, self.epoch_s, self.epoch = config, metric, note, epoch_s, 0
        self.loader, self.compares, self.division = self, True, None
        self._best, self._epoch_best = -math.inf, 0
        note("setup", 0)

    def close(self) -> None:
        """There is no loader to close."""

    def untrained(self) -> dict[str, float]:
        """The measures before training."""
        return {self.metric: UNTRAINED}

    def epoch_steps(self) -> Generator[bool, None, dict[str, float]]:
        """Let some time pass."""
        yield False
        self.note("begun", self.epoch + 1)
        time.sleep(self.epoch_s)
        self.epoch += 1
        value = self._value(self.epoch)
        if value > self._best:
            self._best, self._epoch_best = value, self.epoch
        self.note("trained", self.epoch, value)
        measures = {self.metric: value, f"{self.metric}_best": self._best, "train/loss": 1 / self.epoch}
        return {**measures, "epoch_best": self._epoch_best}

    def _value(self, epoch: int) -> float:
        """The value after an epoch; some settings are better earlier, and their best is not their last."""
        far = abs(math.log10(self.config.masking_lambda) + 1)
        return 0.3 - 0.03 * far + 0.05 * epoch - 0.012 * epoch**2 * (self.config.mask_lr_mult > 100)

    @staticmethod
    def is_saved(directory: Path) -> bool:
        """Whether `save` has written."""
        return (directory / "cheap.json").exists()

    def save(self, directory: Path, *, models_only: bool = False, **facts: Any) -> None:
        """Write the epoch, and a best model; nothing if no state is due."""
        if models_only:
            return
        best = int(facts["result"]["epoch_best"])
        place = directory / checkpoint.numbered(BEST, best)
        place.mkdir(exist_ok=True)
        write_checksummed(place / "model.json", {"epoch": best})
        write_checksummed(directory / "cheap.json", {"epoch": self.epoch, **facts})
        self.note("saved", self.epoch, facts["result"][self.metric])
        checkpoint.keep_only(directory, BEST, best)

    def snapshot(self) -> CheapTrainer:
        """Return a copy that can be saved."""
        return copy.copy(self)

    def load(self, directory: Path) -> dict[str, Any]:
        """Go on from what was saved."""
        facts = read_checksummed(directory / "cheap.json")
        self.epoch = facts["epoch"]
        curve = [self._value(epoch) for epoch in range(1, self.epoch + 1)]
        self._best = max(curve)
        self._epoch_best = curve.index(self._best) + 1
        return facts
