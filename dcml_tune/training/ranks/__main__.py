"""A rank that is not rank 0: `python -m dcml_tune.training.ranks DIRECTORY RANK`, started by `RankProcesses`."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from dcml_tune.training.devices import keep_freed_memory, set_arithmetic, set_threads
from dcml_tune.training.embedding import EMBED, embed_part
from dcml_tune.training.loading import training_loader
from dcml_tune.training.ranks.exchange import Ranks
from dcml_tune.training.ranks.processes import SPEC, failed, meet, ready
from dcml_tune.training.seeding import epoch_seeded
from dcml_tune.training.step import TrainStep
from dcml_tune.training.trial_data import TrialData
from dcml_tune.training.updates import TRAIN, Updates
from dcml_tune.utils.files import read_checksummed

_LOOK_S = 1.0
_ENDS_S = 0.5  # the sockets of a process are closed before it has ended
_ALONE = 75  # exit code of a rank whose rank 0 has ended


def main(directory: Path, rank: int) -> None:
    """Meet the other ranks, and carry out the orders of rank 0 until that ends."""
    spec = read_checksummed(directory / SPEC)
    threading.Thread(target=_watch, args=(spec["parent"], directory), name="dcml-rank", daemon=True).start()
    try:
        set_threads(spec["threads"])
        if spec["device"] == "cpu":
            keep_freed_memory()
        ready(directory, rank).touch()
        ranks = meet(directory, rank, spec["size"], spec["device"])
        updates = _updates(spec, ranks)
        while True:
            _obey(updates, *ranks.hear(updates.step.device))
    except Exception as error:
        time.sleep(_ENDS_S)
        if os.getppid() == spec["parent"]:  # otherwise the error is that rank 0 has ended
            failed(directory, rank).write_text(" ".join(f"{type(error).__name__}: {error}".split())[:2000])
            raise
        _leave(directory)


def _updates(spec: dict[str, Any], ranks: Ranks) -> Updates:
    """Open the images and build the model. Its weights come with each order."""
    config = TrialConfig(**spec["config"])
    set_arithmetic(config, deterministic=spec["deterministic"])
    device = torch.device(*(("cuda", ranks.rank) if spec["device"] == "cuda" else ("cpu",)))
    images = TrialData.open(config, Path(spec["stores"]))
    nb_classes, trained = int(images.labels.max()) + 1, np.unique(images.labels[images.train])
    step = TrainStep(config, nb_classes, device, trained, compiled=spec["compiled"])
    loader = training_loader(config, images, device)
    return Updates(config=config, data=images, step=step, loader=loader, ranks=ranks)


def _obey(updates: Updates, order: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    if order["do"] == EMBED:
        embed_part(updates.step.model, tensors, order, updates.ranks)
        return
    assert order["do"] == TRAIN, order
    plan = EpochPlan.at(order["epoch"], updates.config)
    updates.step.lr_scale = order["lr_scale"]
    with epoch_seeded(updates.config.seed, plan.epoch, updates.ranks.rank):
        updates.follow(plan, tensors)


def _watch(parent: int, directory: Path) -> None:
    """End this process when rank 0 has ended, in the middle of what it does."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    _leave(directory)


def _leave(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(_ALONE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
