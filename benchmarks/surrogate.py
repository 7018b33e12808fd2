"""A regression of the value of a trial on its settings. samplers.py uses it in place of trainings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from objective_settings import Settings, acting
from objective_table import spearman
from sklearn.ensemble import ExtraTreesRegressor

Array = NDArray[np.float64]


class Surrogate:
    """Predicts the value of a setting from the settings that were measured. A measured one has its measured value."""

    def __init__(self, settings: Sequence[Settings], values: Array) -> None:
        """Fit.

        Args:
            settings: complete settings of the trials.
            values: their values.
        """
        rows = [acting(each) for each in settings]
        self._columns = _columns(rows)
        self._trees = ExtraTreesRegressor(100, random_state=0).fit(self._encoded(rows), values).estimators_

    def _encoded(self, rows: Sequence[Settings]) -> NDArray[np.float32]:
        """Numbers as they are; for other values whether a setting has them; -1 where a setting has no effect."""
        cells = [[_cell(row, *column) for column in self._columns] for row in rows]
        return np.array(cells, dtype=np.float32)

    def __call__(self, settings: Settings) -> float:
        """The value of complete settings."""
        row = self._encoded([acting(settings)])
        return float(np.mean([tree.tree_.predict(row) for tree in self._trees]))


def _columns(rows: Sequence[Settings]) -> list[tuple[str, Any]]:
    """Settings that differ between rows: (name, None) of numbers, otherwise (name, value) of each value."""
    found: list[tuple[str, Any]] = []
    for name in sorted({name for row in rows for name in row}):
        values = [row.get(name, _ABSENT) for row in rows]
        if all(_is_number(value) or value is _ABSENT for value in values):
            found += [(name, None)] if len(set(values)) > 1 else []
        else:
            found += [(name, value) for value in dict.fromkeys(values) if value is not _ABSENT and len(set(values)) > 1]
    return found


_ABSENT = object()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(row: Settings, name: str, value: Any) -> float:
    if name not in row:
        return -1.0
    own = row[name]
    return float(own) if value is None and _is_number(own) else float(own == value)


def leave_one_out(settings: Sequence[Settings], values: Array) -> float:
    """Spearman's correlation of values with what surrogates say that do not know them."""
    rest = [[n for n in range(len(settings)) if n != left] for left in range(len(settings))]
    said = [Surrogate([settings[n] for n in kept], values[kept])(settings[at]) for at, kept in enumerate(rest)]
    return float(spearman(np.array(said), values))
