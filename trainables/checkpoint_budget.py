"""CheckpointBudget: the models of ended trials that are kept, in the trials' directories and in MLflow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dcml_tune.runs.study import by_launch


@dataclass(frozen=True, kw_only=True)
class KeptModel:
    """The best model of a trial."""

    directory: Path
    step: int
    """Step under which it was logged: the number of epochs of the trial."""
    value: float | None
    """Best value of the trial."""


class CheckpointBudget:
    """Keeps the models of the best trials, and removes those of the others."""

    def __init__(self, most: int | None, forget: Callable[[str, int], None]) -> None:
        """Start without models.

        Args:
            most: maximum number of models that are kept; None: all.
            forget: removes a logged model, by key of the trial and step.
        """
        self._most, self._forget = most, forget
        self._kept: dict[str, KeptModel] = {}

    def add(self, key: str, model: KeptModel) -> None:
        """Count the model of a trial, by the trial's key."""
        self._kept[key] = model

    def enforce(self) -> list[Path]:
        """Remove the models of the worst trials until the budget is met; of equal trials the first are kept.

        Returns:
            The directories of the removed models.
        """
        if self._most is None:
            return []
        removed = []
        order = sorted(self._kept, key=lambda key: (-(self._kept[key].value or 0.0), by_launch(key)))
        for key in order[self._most :]:
            model = self._kept.pop(key)
            self._forget(key, model.step)
            remove_model(model.directory)
            removed.append(model.directory)
        return removed


def remove_model(directory: Path) -> None:
    """Remove the directory of a model."""
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
