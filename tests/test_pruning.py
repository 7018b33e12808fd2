"""A short form of benchmarks/pruning.py: searches simulated with the real schedulers."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def pruning(monkeypatch):
    """The program, imported as a run of it does."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    yield importlib.import_module("pruning")
    for name in ("pruning", "pruning_curves"):
        del sys.modules[name]


@pytest.mark.parametrize(("space", "wide"), [("cub", False), ("sop", True), ("folder", False)])
def test_asha_keeps_the_best_setting(pruning, space, wide):
    """It stops the best setting in at most 5 % of searches, within what chance allows here, and saves epochs."""
    found = pruning.simulate(space, wide=wide, trials=16, concurrent=4, searches=60, seed=1)
    stopped = {name: sum(each.best_pruned for each in outcomes) for name, outcomes in found.items()}
    saved = {name: np.mean([each.saved for each in outcomes]) for name, outcomes in found.items()}
    assert (stopped["none"], saved["none"]) == (0, 0)
    # Of 60 searches with a probability of 5 % each, more than 7 are pruned in 1 % of cases.
    assert stopped["asha"] <= 7
    assert stopped["asha"] <= stopped["asha of version 0.1"]
    assert saved["asha"] > 0.05


def test_spaces_that_are_simulated_together_have_the_same_phases(pruning):
    """What varies in them, and their published epochs, are the same."""

    def schedule(name, which):
        space = getattr(importlib.import_module(f"search_spaces.{name}"), which)
        return space.domains, [space.unvaried(each) for each in ("nb_epochs", "force_full_embedding_epoch")]

    for names in pruning.SPACES.values():
        for which in ("SPACE", "WIDE"):
            assert all(schedule(name, which) == schedule(names[0], which) for name in names)
