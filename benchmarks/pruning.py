"""Does pruning keep the best setting, and what does it save? Schedulers replayed over simulated learning curves.

    python benchmarks/pruning.py [--spaces cub emoji] [--trials 16] [--concurrent 4] [--searches 400] [--noise 2]

Each search draws settings from a published space at random and a learning curve of each (pruning_curves.py), and runs them
under each scheduler as Ray would: some at once, at different speeds. `best pruned`: in how many searches the setting whose
value without noise is the highest was stopped early. `lost`: by how many points the setting that came out is worse than the
one that came out of the same search without pruning, both without noise. `saved`: share of the epochs. Each with a 95 %
interval over the searches (Wilson's for the first). A search by TPE draws better settings later; that is not simulated.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pruning_curves import FOUR, WIDE, Curve, Setting, draw_curve, draw_settings
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from scipy.stats import binomtest

from dcml_tune.config.trial import TrialConfig
from trainables.run import unpack
from trainables.schedulers import rungs, scheduler

METRIC = "val/recall_at_1_best"
SPACES = {"emoji": ("emoji",), "folder": ("folder",), "cub": ("cub", "cars"), "sop": ("sop", "inshop", "vid")}
"""Name of a space -> the published spaces that have its phases, and so its results."""
REPORTS = 12
"""Number of a trial's epochs that are reported to a scheduler; all of them in a short schedule."""


def milestones(config: TrialConfig) -> list[int]:
    """The rungs of version 0.1, at each trial's own phases.

    One `mod_epoch` after its number of clusters is reached, at the beginning of the full-embedding phase, and in its middle.
    """
    division, last = config.epoch_of_full_division + config.mod_epoch, config.nb_epochs
    phase = config.force_full_embedding_epoch
    if phase is None or phase == 0 or phase >= last:
        phase = (min(division, last) + last) // 2
    return [min(division, phase), phase, (phase + last) // 2]


class OwnPhases(AsyncHyperBandScheduler):
    """The default scheduler of version 0.1: Ray's ASHA whose time is the number of a trial's milestones."""

    def __init__(self) -> None:
        super().__init__(time_attr="rung", metric=METRIC, mode="max", grace_period=1, max_t=8, reduction_factor=2)
        self._milestones: dict[str, list[int]] = {}

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        """Keep the milestones of a trial."""
        super().on_trial_add(controller, trial)
        self._milestones[trial.trial_id] = milestones(TrialConfig(**unpack(trial.config)[0]))

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Judge a trial at each milestone that it reaches."""
        for number, epoch in enumerate(self._milestones[trial.trial_id]):
            judged = epoch == result["epoch"]
            if judged and super().on_trial_result(controller, trial, {**result, "rung": 2**number}) == "STOP":
                return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)


SCHEDULERS: Mapping[str, Callable[[int], TrialScheduler]] = {
    "none": lambda epochs: scheduler("none", metric=METRIC, epochs=epochs),
    "asha of version 0.1": lambda epochs: OwnPhases(),
    "asha-epochs": lambda epochs: scheduler("asha-epochs", metric=METRIC, epochs=epochs),
    "median": lambda epochs: scheduler("median", metric=METRIC, epochs=epochs),
    "asha": lambda epochs: scheduler("asha", metric=METRIC, epochs=epochs),
}


@dataclass(eq=False)
class Trial:
    """What a scheduler asks of Ray's trial, and how it runs."""

    trial_id: str
    config: dict[str, Any]
    curve: Curve = field(repr=False)
    reports: list[int]
    """The epochs that it reports."""
    speed: float
    """Time of an epoch."""
    end: int = field(default=0)
    """Number of epochs that it has run."""
    pruned: bool = False


def make_trials(settings: Sequence[Setting], curves: Sequence[Curve], rng: np.random.Generator) -> list[Trial]:
    """The trials of a search, in the order in which they begin."""
    made = []
    for number, (setting, curve) in enumerate(zip(settings, curves, strict=True)):
        last = setting.config.nb_epochs
        grid = {math.ceil(part * last / REPORTS) for part in range(1, REPORTS + 1)}
        reports = sorted(grid | {*rungs(last), *milestones(setting.config), last})
        config = {**setting.config.model_dump(), "run": {"key": str(number)}}
        made.append(Trial(str(number), config, curve, reports, speed=float(np.exp(rng.normal(0, 0.2)))))
    return made


def replay(pruner: Any, trials: Sequence[Trial], concurrent: int) -> None:
    """Run the trials, some at once, until their last epoch or until the scheduler stops them."""
    waiting, ticket, events = iter(trials), itertools.count(), list[tuple[float, int, int, Trial]]()

    def start(now: float) -> None:
        if (trial := next(waiting, None)) is not None:
            pruner.on_trial_add(None, trial)
            heapq.heappush(events, (now + trial.reports[0] * trial.speed, next(ticket), 0, trial))

    for _ in range(concurrent):
        start(0.0)
    while events:
        now, _, place, trial = heapq.heappop(events)
        trial.end = trial.reports[place]
        result = {"epoch": trial.end, METRIC: float(trial.curve.best[trial.end - 1])}
        if place + 1 == len(trial.reports):
            pruner.on_trial_complete(None, trial, result)
            start(now)
        elif pruner.on_trial_result(None, trial, result) == TrialScheduler.STOP:
            trial.pruned = True
            start(now)
        else:
            step = (trial.reports[place + 1] - trial.end) * trial.speed
            heapq.heappush(events, (now + step, next(ticket), place + 1, trial))


@dataclass(frozen=True)
class Outcome:
    """What a scheduler did to one search."""

    best_pruned: bool
    value: float
    """Of the setting that came out, without noise."""
    saved: float
    """Share of the epochs."""


def outcome(trials: Sequence[Trial]) -> Outcome:
    """The outcome of trials that have run."""
    best = max(trials, key=lambda trial: trial.curve.true)
    winner = max(trials, key=lambda trial: float(trial.curve.best[trial.end - 1]))
    planned = sum(trial.reports[-1] for trial in trials)
    return Outcome(best.pruned, winner.curve.true, 1 - sum(trial.end for trial in trials) / planned)


def simulate(
    name: str, *, wide: bool, trials: int, concurrent: int, searches: int, noise: float = 1.0, seed: int = 0
) -> dict[str, list[Outcome]]:
    """The outcomes of the same searches under each scheduler; `noise` multiplies that of seeds and epochs."""
    rng, shape = np.random.default_rng(seed), WIDE if wide else FOUR
    shape = replace(shape, seed=noise * shape.seed, noise=noise * shape.noise)
    settings = draw_settings(name, wide=wide, number=100, seed=seed)
    found: dict[str, list[Outcome]] = {each: [] for each in SCHEDULERS}
    for _ in range(searches):
        drawn = [settings[place] for place in rng.integers(len(settings), size=trials)]
        curves = [draw_curve(setting, shape, rng) for setting in drawn]
        made = make_trials(drawn, curves, rng)
        for each, make in SCHEDULERS.items():
            run = [Trial(trial.trial_id, trial.config, trial.curve, trial.reports, trial.speed) for trial in made]
            replay(make(drawn[0].config.nb_epochs), run, concurrent)
            found[each].append(outcome(run))
    return found


def row(outcomes: Sequence[Outcome], unpruned: Sequence[Outcome]) -> list[str]:
    """The cells of a scheduler: best pruned, points lost, epochs saved."""
    pruned = sum(each.best_pruned for each in outcomes)
    low, high = binomtest(pruned, len(outcomes)).proportion_ci(method="wilson")
    lost = [full.value - each.value for each, full in zip(outcomes, unpruned, strict=True)]
    saved = [100 * each.saved for each in outcomes]
    half = 1.96 * float(np.std(lost, ddof=1)) / math.sqrt(len(lost))
    around = 1.96 * float(np.std(saved, ddof=1)) / math.sqrt(len(saved))
    return [
        f"{100 * pruned / len(outcomes):.1f} % ({100 * low:.1f} to {100 * high:.1f})",
        f"{np.mean(lost):+.2f} ± {half:.2f}",
        f"{np.mean(saved):.0f} ± {around:.1f} %",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table of spaces and schedulers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", default=SPACES, choices=SPACES)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--concurrent", type=int, default=4)
    parser.add_argument("--searches", type=int, default=400)
    parser.add_argument("--noise", type=float, default=1.0, help="times the noise of seeds and epochs")
    given = parser.parse_args(argv)
    print("| space | scheduler | best pruned | lost, points | epochs saved |\n|---|---|---|---|---|")
    flags = {"trials": given.trials, "concurrent": given.concurrent, "searches": given.searches, "noise": given.noise}
    for name, wide in itertools.product(given.spaces, (False, True)):
        found = simulate(name, wide=wide, **flags)
        for each, outcomes in found.items():
            cells = row(outcomes, found["none"])
            print(
                f"| {', '.join(SPACES[name])}: {'wide' if wide else 'four'} | {each} | {' | '.join(cells)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
