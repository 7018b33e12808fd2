"""Number of trials that a search completes in a night, computed from rates: on 1, 8 and 80 GPUs, for Cars and SOP.

    python benchmarks/night.py [--train 2000] [--hours 10]

Nothing is measured: the rates are arguments. For each epoch of the published setting, the program counts the images
that are trained on (with a trained or a frozen backbone), embedded for the clustering, and embedded for the evaluation.
Confirmation and final runs are those of the default flags, or of small ones. They run in parallel as far as there are
GPUs: those of a round of the confirmation together.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.datasets.official_counts import COUNTS
from dcml_tune.search.confirmation import CONTROLS
from dcml_tune.search.halving import rounds
from search_spaces import load_space

FROZEN = 2.9  # times as fast as with a trained backbone: engineering notes of the project
FORWARD = 3.0  # images a second that are only embedded, in those that are trained
PRUNED = 0.84  # share of the epochs that ASHA runs, of 64 trials: docs/performance.md
DEFAULT, SMALL = (4, 3, 5), (1, 2, 1)  # settings that are confirmed, units, final seeds


@dataclass(frozen=True)
class Rates:
    """Images a second of one GPU, all trials on it together, and the share of an epoch that they take."""

    train: float
    share: float = 0.9


def run_hours(name: str, rates: Rates, images: int) -> float:
    """Hours of one run in full on one GPU.

    Args:
        name: of the data set.
        rates: of the GPU.
        images: of the training classes.
    """
    config = TrialConfig(**load_space(name).published)
    held = config.val_share * images
    trained = images - held
    seconds = 0.0
    for epoch in range(config.nb_epochs):
        plan = EpochPlan.at(epoch, config)
        seconds += trained / (rates.train * (FROZEN if plan.backbone_frozen else 1.0))
        seconds += (held + (trained if plan.recluster else 0.0)) / (rates.train * FORWARD)
    return seconds / rates.share / 3600


def night(hours: float, run: float, gpus: int, flags: tuple[int, int, int]) -> tuple[float, float, int]:
    """Hours of the search and of what follows it, and the trials of the search (0 if there is no time for one)."""
    confirm, units, seeds = flags
    together = [each.settings * len(each.units) for each in rounds(confirm, units)]
    together[0] += len(CONTROLS)
    together.append(seeds * (1 + len(CONTROLS)))
    after = run * sum(math.ceil(each / gpus) for each in together)
    left = max(0.0, hours - after)
    return left, after, int(left * gpus / (run * PRUNED))


def main(argv: list[str] | None = None) -> list[tuple[str, ...]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=float, default=2000.0, help="images per second that one GPU trains on")
    parser.add_argument("--hours", type=float, default=10.0)
    given = parser.parse_args(argv)
    title = f"{given.hours:g} hours, {given.train:g} images/s"
    table = Table(
        "data set", "GPUs", "one run, min", "flags", "confirmation and final, h", "trials before", title=title
    )
    rows = []
    for name in ("cars", "sop"):
        run = run_hours(name, Rates(given.train), COUNTS[name]["train images"])
        for gpus in (1, 8, 80, 800):
            for words, flags in (("default", DEFAULT), ("small", SMALL)):
                _, after, trials = night(given.hours, run, gpus, flags)
                rows.append((name, str(gpus), f"{60 * run:.0f}", words, f"{after:.1f}", f"{trials:,}"))
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    return rows


if __name__ == "__main__":
    main()
