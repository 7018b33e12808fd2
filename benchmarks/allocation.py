"""How the runs of confirmation and final scoring are best spent: simulated searches, one row for each design.

    python benchmarks/allocation.py [--repeats 20000] [--fold 2.5] [--seed 0.6] [--interaction 0.5]

Four settings and two controls are compared. A value is effect + fold + setting x fold + seed, each normal with the given
standard deviation in points of recall; test classes are one more fold. One setting is better than the rest by 1 or 2 points. A
design is right if it chooses this setting, and finds it if the 95 % interval of its difference from the published setting on test
classes (two-way layout over the final seeds, as in `dcml_tune.search.statistics`) is above 0.

A second table has what it costs a control that its number of epochs is chosen by one curve instead of three: curves of 40 epochs
rise to a plateau, which then changes by so many points an epoch; the loss is that of the true curve at the chosen epoch.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import t

from dcml_tune.search.halving import Round, rounds

TRIALS, PUBLISHED, SETTINGS = 4, 4, 6
FOLDS = 4  # that are left beside that of the search, with the default --val-share


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Standard deviations in points."""

    fold: float
    seed: float
    interaction: float


@dataclass(frozen=True, kw_only=True)
class Design:
    """How runs are spent."""

    about: str
    rounds: list[Round]
    compete: int = 0
    """Number of controls that are among the settings to choose from."""
    once: int = 0
    """Number of controls that run on one unit, for their number of epochs."""
    seeds: int = 5

    @property
    def runs(self) -> int:
        """Number of runs of confirmation and final scoring; that of the untrained network is none."""
        return sum(each.settings * len(each.units) for each in self.rounds) + self.once + 3 * self.seeds


DESIGNS = [
    Design(about="all six on 3 units (version 0.1, no setting dropped)", rounds=[Round(6, range(3))], compete=2, seeds=3),
    Design(about="all six on 2 units", rounds=[Round(6, range(2))], compete=2),
    Design(about="six on 1 unit, three on 2 more", rounds=[Round(6, range(1)), Round(3, range(1, 3))], compete=2),
    Design(about="four and published on 2 units, two on 1 more",
           rounds=[Round(5, range(2)), Round(2, range(2, 3))], compete=1, once=1),
    Design(about="four on 1 unit, two on 3 more", rounds=[Round(4, range(1)), Round(2, range(1, 4))], once=2),
    Design(about="four on 2 units, two on 1 more (the defaults)", rounds=rounds(TRIALS, 3), once=2),
    Design(about="four on 2 units, two on 1 more, 4 final seeds", rounds=rounds(TRIALS, 3), once=2, seeds=4),
    Design(about="four on 2 units, two on 2 more (--folds 4)", rounds=rounds(TRIALS, 4), once=2),
]  # fmt: skip


def simulate(design: Design, difference: float, noise: Noise, repeats: int) -> tuple[float, float, float]:
    """Return the shares of repeats that choose the better setting and that find it, and the mean half width in points."""
    rng = np.random.default_rng(0)
    effects = np.zeros((repeats, SETTINGS))
    effects[:, 0] = difference
    units = sum(len(each.units) for each in design.rounds)
    at = np.arange(units) % FOLDS
    values = effects[:, :, None] + rng.normal(0, noise.interaction, (repeats, SETTINGS, FOLDS))[:, :, at]
    values += rng.normal(0, noise.fold, (repeats, 1, FOLDS))[:, :, at]
    values += rng.normal(0, noise.seed, values.shape)
    left = np.broadcast_to(np.arange(SETTINGS) < TRIALS + design.compete, (repeats, SETTINGS))
    for each in design.rounds:
        if each.units.start:
            means = np.where(left, values[:, :, : each.units.start].mean(2), -np.inf)
            worst = np.sort(means, axis=1)[:, -each.settings][:, None]
            left = means >= worst
    chosen = np.where(left, values.mean(2), -np.inf).argmax(1)
    test = effects + rng.normal(0, noise.interaction, effects.shape)
    scores = test[:, :, None] + rng.normal(0, noise.seed, (repeats, SETTINGS, design.seeds))
    compared = np.stack([scores[np.arange(repeats), chosen], scores[:, PUBLISHED], scores[:, PUBLISHED + 1]], axis=1)
    rest = compared - compared.mean(2, keepdims=True) - compared.mean(1, keepdims=True)
    rest += compared.mean((1, 2), keepdims=True)
    freedom = 2 * (design.seeds - 1)
    spread = np.sqrt((rest**2).sum((1, 2)) / freedom)
    half = t.ppf(0.975, freedom) * spread * np.sqrt(2 / design.seeds)
    ahead = compared[:, 0].mean(1) - compared[:, 1].mean(1) > half
    right = chosen == 0
    return float(right.mean()), float((right & ahead).mean()), float(half.mean())


def epoch_loss(curves: int, drift: float, noise: float, repeats: int) -> float:
    """Return the mean loss in points, where the highest epoch of the mean of several noisy curves is chosen.

    Args:
        curves: number of curves.
        drift: change after 12 epochs, in points an epoch.
        noise: standard deviation of an epoch of one curve, in points.
        repeats: number of choices.
    """
    epochs = np.arange(40)
    true = -20 * np.exp(-epochs / 4) + drift * np.maximum(0, epochs - 12)
    means = true + np.random.default_rng(0).normal(0, noise / np.sqrt(curves), (repeats, len(epochs)))
    return float(true.max() - true[means.argmax(1)].mean())


def main(argv: list[str] | None = None) -> list[tuple[str, ...]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20_000)
    parser.add_argument("--fold", type=float, default=2.5)
    parser.add_argument("--seed", type=float, default=0.6)
    parser.add_argument("--interaction", type=float, default=0.5)
    given = parser.parse_args(argv)
    noise = Noise(fold=given.fold, seed=given.seed, interaction=given.interaction)
    table = Table("confirmation", "final seeds", "runs", "right, +1", "found, +1", "found, +2", "half width")
    rows = []
    for design in DESIGNS:
        right, found, half = simulate(design, 1.0, noise, given.repeats)
        _, found_two, _ = simulate(design, 2.0, noise, given.repeats)
        shares = (f"{100 * share:.0f} %" for share in (right, found, found_two))
        rows.append((design.about, str(design.seeds), str(design.runs), *shares, f"{half:.2f}"))
        table.add_row(*rows[-1])
    Console().print(table)
    losses = Table("drift", "noise", "lost with one curve", "with three", "more")
    for drift in (-0.08, -0.03, 0.0, 0.03):
        for noise_of_epoch in (0.4, 0.8):
            one, three = (epoch_loss(curves, drift, noise_of_epoch, given.repeats) for curves in (1, 3))
            values = (f"{value:.2f}" for value in (one, three, one - three))
            losses.add_row(f"{drift:+.2f}", f"{noise_of_epoch}", *values)
    Console().print(losses)
    return rows


if __name__ == "__main__":
    main()
