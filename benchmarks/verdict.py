"""Does the verdict keep its promises? Made-up results go through the real functions of a search, again and again.

    python benchmarks/verdict.py [--repeats 2000] [--seed 0] [--only WORD ...] [--output runs/verdict.json]

A search of the simulation has trials on fold 0, of which the best are confirmed on further folds; winner and controls are then
scored on test classes. `candidates`, `race`, `Comparison` and `verdict` are those of `dcml_tune.search`; only the results are
drawn. Values are recall@1 in points (hundredths):

    held-out   effect of the setting + fold + setting x fold + seed
    test       each class has queries that always hit, that never do, and some that hit with a probability of the setting, the
               setting x class and the seed

`--only` picks cells whose name contains a word. Columns:

    said       searches in which any line says "better"
    false      searches in which a line says "better" of a setting that is not better: on these test classes, on new ones, on
               held-out classes, or anywhere
    covered    intervals that contain the true difference: on these test classes, on new ones, lower ends on held-out classes
    half       median half width of both intervals on test classes, in points
    won, found the truly best setting wins; and is found to be better than the published setting on the test classes
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtr, stdtrit

from dcml_tune.runs.hits import QueryHits
from dcml_tune.search.answers import DIFFERENCE, level_at, seeds_needed
from dcml_tune.search.confirmation import (
    CONTROLS,
    NO_DIVISION,
    PUBLISHED,
    Candidate,
    Confirmation,
    FoldSeed,
    candidates,
    race,
    units,
)
from dcml_tune.search.deciding import FinalStage
from dcml_tune.search.statistics import Comparison
from dcml_tune.search.verdict import verdict
from trainables.known_trial import KnownTrial

METRIC = "val/recall_at_1"
QUERIES, OPEN = 20, 4  # of each test class; those that neither always hit nor never
RIGHT = 8  # queries of each class that always hit


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Searches of one kind. Standard deviations and gains are in points."""

    name: str
    confirm: int = 4
    folds: int = 3
    seeds: int = 1
    final_seeds: int = 5
    """0: the test classes are not scored, so the controls compete on the held-out classes."""
    trials: int = 8
    gain: float = 0.0
    """By which one trial is better than all other settings."""
    fold_sd: float = 2.5
    interaction_sd: float = 0.5
    """Of setting x fold. A fold has as many classes as a quarter of the test classes."""
    seed_sd: float = 0.6
    loud: float = 1.0
    """Standard deviation of seeds of the control without division, relative to that of the others (held-out classes)."""
    classes: int = 100
    """Number of test classes."""
    on_test: float = 1.0
    """Standard deviation of setting x class on test classes, relative to that of the folds. 0: equal settings are equal on
    these test classes, too."""


GRID = [
    Cell(name=f"flags: --confirm {confirm} --folds {folds} --seeds {seeds} --final-seeds {final}", confirm=confirm,
         folds=folds, seeds=seeds, final_seeds=final)
    for confirm, folds, seeds, final in (
        (4, 3, 1, 5), (1, 3, 1, 5), (8, 3, 1, 5), (4, 1, 1, 5), (4, 1, 6, 5), (4, 2, 1, 5), (4, 4, 3, 5), (4, 6, 1, 5),
        (4, 6, 2, 5), (2, 6, 1, 5), (4, 3, 1, 1), (4, 3, 1, 2), (4, 3, 1, 3), (4, 3, 1, 6),
    )
]  # fmt: skip
HELD_OUT_ALONE = [
    Cell(name=f"--final none: --confirm {confirm} --folds {folds} --seeds {seeds}", confirm=confirm, folds=folds,
         seeds=seeds, final_seeds=0)
    for confirm, folds, seeds in ((4, 3, 1), (8, 3, 1), (1, 3, 1), (4, 3, 2), (4, 4, 3), (4, 6, 1), (4, 1, 6), (8, 6, 2))
]  # fmt: skip
RATIOS = [
    Cell(name=f"spreads: fold {fold}, setting x fold {interaction}, seed {seed}", fold_sd=fold,
         interaction_sd=interaction, seed_sd=seed)
    for fold, interaction, seed in ((2.5, 0.0, 0.6), (2.5, 1.0, 0.6), (2.5, 2.0, 0.6), (2.5, 0.5, 1.5), (8.0, 0.5, 0.6), (0.5, 0.5, 0.6))
]  # fmt: skip
EQUAL = [
    Cell(name=f"equal on test classes: --confirm {confirm} --folds {folds} --seeds {seeds} --final-seeds {final}",
         confirm=confirm, folds=folds, seeds=seeds, final_seeds=final, on_test=0.0)
    for confirm, folds, seeds, final in ((4, 3, 1, 5), (8, 3, 1, 5), (4, 3, 2, 5), (4, 4, 3, 5), (4, 1, 6, 5), (4, 3, 1, 3))
]  # fmt: skip
FEW = [Cell(name=f"classes: {classes} test classes", classes=classes) for classes in (10, 30, 400)]
POWER = [
    Cell(name=f"power: +{gain} points{name}", gain=gain, **kind)
    for gain in (1.0, 2.0, 4.0)
    for name, kind in (("", {}), (", --confirm 2 --folds 6", {"confirm": 2, "folds": 6}),
                       (", one of 4 trials", {"trials": 5}))
]  # fmt: skip
LOUD = [
    replace(cell, name=f"{cell.name}, no division {loud} times as noisy", loud=loud)
    for cell in HELD_OUT_ALONE[:1]
    for loud in (0.3, 3.0)
]
CELLS = [*GRID, *EQUAL, *HELD_OUT_ALONE, *RATIOS, *FEW, *POWER, *LOUD]


# -- one search ------------------------------------------------------------------------------------------


class Truth:
    """The true values behind one search, and what its runs measure."""

    def __init__(self, cell: Cell, rng: np.random.Generator) -> None:
        self.cell, self.rng = cell, rng
        self.trials = [f"{number:03d}" for number in range(cell.trials)]
        self.names = [*self.trials[1:], PUBLISHED, NO_DIVISION]
        self.best = self.trials[1]
        self.effect = {name: cell.gain * (name == self.best) for name in self.names}
        self.level = rng.normal(50, cell.fold_sd, cell.folds + 1)
        drawn = rng.normal(0, cell.interaction_sd, (len(self.names), cell.folds + 1))
        self.interaction = dict(zip(self.names, drawn, strict=True))
        # On a fold of a quarter of the classes, the mean over classes has the standard deviation of setting x fold.
        spread = cell.on_test * cell.interaction_sd * math.sqrt(cell.classes / 4)
        self.by_class = {name: rng.normal(0, spread, cell.classes) for name in (self.best, *CONTROLS)}
        self._spread = spread

    def held_out(self, name: str, fold: int) -> float:
        """The value of a run on a fold, as a share of 1."""
        sd = self.cell.seed_sd * (self.cell.loud if name == NO_DIVISION else 1)
        return float(self.effect[name] + self.level[fold] + self.interaction[name][fold] + self.rng.normal(0, sd)) / 100

    def known_trials(self) -> list[KnownTrial]:
        """The trials of the search, on fold 0."""
        return [
            KnownTrial(
                key=key,
                config=settings(number),
                curve={1: self.held_out(PUBLISHED if number == 0 else key, 0)},
                state="done",
                reason=None,
            )
            for number, key in enumerate(self.trials)
        ]

    def race(self) -> Confirmation:
        """Choose a winner on the further folds."""

        def results(wanted: list[tuple[Candidate, FoldSeed]]) -> dict[tuple[str, FoldSeed], dict[str, Any]]:
            values = [(candidate.name, unit, self.held_out(candidate.name, unit.fold)) for candidate, unit in wanted]
            return {(name, unit): {f"{METRIC}_best": v, "curve": [v], "epoch": 1} for name, unit, v in values}

        cell = self.cell
        return race(
            candidates(self.known_trials(), settings(0), cell.confirm),
            units(cell.folds, cell.seeds, 0),
            metric=METRIC,
            results=results,
            is_over=lambda: False,
            controls_compete=cell.final_seeds == 0,
        )

    def test_runs(self, name: str, seeds: int) -> dict[str, QueryHits]:
        """The final runs of a setting."""
        cell, rng = self.cell, self.rng
        own = self.by_class.setdefault(name, rng.normal(0, self._spread, cell.classes))
        binomial = OPEN / QUERIES * 0.5 / math.sqrt(cell.classes * OPEN)  # of the queries that may hit, as a share of 1
        rest = math.sqrt(max(0.0, (cell.seed_sd / 100) ** 2 - binomial**2))
        of_seeds = rng.normal(0, rest, (seeds, 1))
        chance = 0.5 + QUERIES / OPEN * ((self.effect[name] + own) / 100 + of_seeds)
        hits = np.zeros((seeds, cell.classes, QUERIES), dtype=bool)
        hits[..., :RIGHT] = True
        hits[..., RIGHT : RIGHT + OPEN] = rng.random((seeds, cell.classes, OPEN)) < chance[..., None]
        classes = np.repeat(np.arange(cell.classes), QUERIES)
        return {f"seed {n}": QueryHits(classes=classes, hits=each.ravel()) for n, each in enumerate(hits)}

    def difference(self, one: str, other: str, *, on_these_classes: bool) -> float:
        """The true difference of two settings, as a share of 1."""
        found = self.effect[one] - self.effect[other]
        if on_these_classes:
            found += float(np.mean(self._bounded(one) - np.mean(self._bounded(other))))
        return found / 100

    def _bounded(self, name: str) -> Any:
        """Deviations of a setting on classes; a probability is not outside of 0 and 1."""
        most = 50 * OPEN / QUERIES
        return np.clip(self.by_class[name] + self.effect[name], -most, most) - self.effect[name]


def settings(number: int) -> dict[str, Any]:
    """The settings of a trial; 0 is the published one."""
    return {"nb_clusters": 4, "number": number}


def one_search(cell: Cell, rng: np.random.Generator) -> dict[str, Any]:
    """Run a search, and compare its verdict with the truth."""
    truth = Truth(cell, rng)
    raced = truth.race()
    winner = raced.winner.name
    hits = {
        name: truth.test_runs(name, cell.final_seeds) for name in dict.fromkeys((winner, *CONTROLS)) if cell.final_seeds
    }
    measures = {n: {s: {"test/recall_at_1": float(r.hits.mean())} for s, r in of.items()} for n, of in hits.items()}
    found = verdict(raced, winner, measures, {"validation": None, "test": None}, FinalStage(hits=hits))
    noted: dict[str, Any] = {"won": winner == truth.best, "found": False, "said": False}
    noted |= {"false": set(), "covered": {}, "half": {}}
    for each in found["comparisons"]:
        new = truth.difference(winner, each["control"], on_these_classes=False)
        if each["on"] == "held-out classes":
            _note(noted, "held-out", each, new)
            continue
        _note(noted, "these", each, truth.difference(winner, each["control"], on_these_classes=True))
        _note(noted, "new", each["new_classes"], new)
        better = each["control"] == PUBLISHED and each["found"] == "better"
        noted["found"] |= bool(better and winner == truth.best)
    return noted


def _note(noted: dict[str, Any], place: str, each: dict[str, Any], true: float) -> None:
    """Note whether an interval covers the truth, and whether its line says what is not so."""
    if each["low"] is None:
        return
    high = math.inf if each["high"] is None else each["high"]
    noted["covered"].setdefault(place, []).append(each["low"] <= true <= high)
    if each["high"] is not None:
        noted["half"].setdefault(place, []).append(50 * (each["high"] - each["low"]))
    noted["said"] |= each["found"] == "better"
    if each["found"] == "better" and true <= 1e-12:
        noted["false"].add(place)


def simulate(cell: Cell, repeats: int, seed: int = 0) -> dict[str, Any]:
    """Repeat a search; returns the shares and medians of a row of the table."""
    rng = np.random.default_rng([seed, *map(ord, cell.name)])
    noted = [one_search(cell, rng) for _ in range(repeats)]
    row: dict[str, Any] = {name: share(n[name] for n in noted) for name in ("won", "found") if cell.gain}
    row["said"] = share(n["said"] for n in noted)
    row["false anywhere"] = share(bool(n["false"]) for n in noted)
    for place in ("these", "new", "held-out"):
        row[f"false {place}"] = share(place in n["false"] for n in noted)
        row[f"covered {place}"] = share(each for n in noted for each in n["covered"].get(place, []))
        half = [each for n in noted for each in n["half"].get(place, [])]
        row[f"half {place}"] = float(np.median(half)) if half else None
    return row


def share(found: Any) -> float | None:
    """Share of what is true; None of nothing."""
    values = list(found)
    return sum(values) / len(values) if values else None


# -- a pair that is fixed beforehand ----------------------------------------------------------------------


def fixed_pair(folds: int, counts: list[int], settings: int, repeats: int, seed: int = 0) -> dict[str, Any]:
    """Coverage of the interval of two equal settings on folds with these numbers of seeds; None where there is none."""
    rng, covered, none = np.random.default_rng(seed), [], 0
    for _ in range(repeats):
        level, values = rng.normal(50, 2.5, folds), {}
        for setting in range(settings):
            own = rng.normal(0, 0.5, folds)
            runs = [(fold, n) for fold in range(folds) for n in range(counts[fold])]
            values[str(setting)] = {
                FoldSeed(f, n): float(level[f] + own[f] + rng.normal(0, 0.6)) / 100 for f, n in runs
            }
        found = Comparison(values).difference("0", "1")
        none += found.low is None
        if found.low is not None and found.high is not None:
            covered.append(found.low <= 0 <= found.high)
    return {"covered": share(covered), "none": none / repeats}


PAIRS = {
    "3 folds x 1 seed": (3, [1] * 3, 2), "3 x 2": (3, [2] * 3, 2), "4 x 3": (4, [3] * 4, 2), "3 x 4": (3, [4] * 3, 2),
    "6 x 1": (6, [1] * 6, 2), "1 x 6": (1, [6], 2), "4, 1, 1, 1": (4, [4, 1, 1, 1], 2), "6, 2": (2, [6, 2], 2),
    "3 x 2, six settings": (3, [2] * 3, 6), "2, 1, 1, six settings": (3, [2, 1, 1], 6),
}  # fmt: skip


def unequal_noise(loud: float, repeats: int, seed: int = 0) -> dict[str, Any]:
    """Coverage on test classes if the control without division is `loud` times as noisy as the other two settings."""
    rng, covered = np.random.default_rng(seed), {name: [] for name in CONTROLS}
    for _ in range(repeats):
        spreads = {"001": 0.6, PUBLISHED: 0.6, NO_DIVISION: 0.6 * loud}
        values = {
            n: {f"seed {i}": float(v) / 100 for i, v in enumerate(rng.normal(50, sd, 5))} for n, sd in spreads.items()
        }
        for control, found in covered.items():
            compared = Comparison(values)
            difference = compared.difference("001", control, compared.noise_of("001", control))
            found.append(difference.low is not None and difference.low <= 0 <= (difference.high or 0))
    return {f"covered {control}": share(found) for control, found in covered.items()}


# -- more final seeds --------------------------------------------------------------------------------------


def two_stages(gain: float, wanted: float, repeats: int, seed: int = 0, *, controls: int = 2) -> dict[str, Any]:
    """A user who looks at five final seeds and, where the answer is undecided, adds as many as the verdict asks for.

    Args:
        gain: of the winner over both controls, in points.
        wanted: the smallest difference that matters, in points.
        repeats: number of users.
        seed: of the random numbers.
        controls: number of controls.
    """
    rng, names = np.random.default_rng(seed), [PUBLISHED, NO_DIVISION][:controls]
    config = {name: Candidate(name=name, config={}, key=None) for name in ("001", *names)}
    raced = Confirmation(candidates=list(config.values()), units=[], results={}, dropped={}, metric=METRIC)
    noted, sd = [], 0.6
    for _ in range(repeats):
        level = dict(zip(("001", *names), (gain, 0.0, 0.0), strict=False))

        def drawn(count: int, level: dict[str, float] = level) -> dict[str, list[float]]:
            return {name: list((50 + mean + rng.normal(0, sd, count)) / 100) for name, mean in level.items()}

        values = drawn(5)
        found = _judged(raced, values, FinalStage(difference=wanted / 100))
        first = {each["control"]: each["found"] for each in found["comparisons"]}
        noise = Comparison({n: dict(enumerate(of)) for n, of in values.items()}).noise_of("001", PUBLISHED)
        assert noise is not None
        total = seeds_needed(noise, difference=wanted / 100, level=level_at(2) / controls) or 1000
        limit = -float(stdtrit(noise.freedom, level_at(2) / controls / 2)) * 100 * noise.sd / sd
        power = float(ndtr(wanted / sd / math.sqrt(2 / max(5, total)) - limit))
        last, more = first, 0
        if "undecided" in first.values() and found["decides"]["more"]:
            more = min(found["decides"]["more"], 995)
            further = drawn(more)
            both = {name: of + further[name] for name, of in values.items()}
            found = _judged(raced, both, FinalStage(difference=wanted / 100, looks=(5,)))
            last = {each["control"]: each["found"] for each in found["comparisons"]}
        noted.append((first, last, more, power))
    ever = [
        {name for look in (first, last) for name, said in look.items() if said == "better"}
        for first, last, _, _ in noted
    ]
    return {
        "better at the first look": share("better" in first.values() for first, *_ in noted),
        "better at either look": share(bool(each) for each in ever),
        "published: better at either look": share(PUBLISHED in each for each in ever),
        "published: equivalent at the end": share(last[PUBLISHED] == "equivalent" for _, last, *_ in noted),
        "published: undecided at the end": share(last[PUBLISHED] == "undecided" for _, last, *_ in noted),
        "median further seeds": float(np.median([more for *_, more, _ in noted])),
        "asked for enough": share(power >= 0.8 for *_, power in noted),
    }


def _judged(raced: Confirmation, values: dict[str, list[float]], final: FinalStage) -> dict[str, Any]:
    """The verdict on some test values."""
    measures = {
        name: {f"seed {n}": {"test/recall_at_1": value} for n, value in enumerate(of)} for name, of in values.items()
    }
    raced = replace(raced, candidates=sorted(raced.candidates, key=lambda each: each.name in CONTROLS))
    return verdict(raced, "001", measures, {"validation": None, "test": None}, final)


# -- the program --------------------------------------------------------------------------------------------


def jobs(repeats: int, seed: int) -> dict[str, Any]:
    """Name -> what simulates it."""
    found: dict[str, Any] = {cell.name: lambda cell=cell: simulate(cell, repeats, seed) for cell in CELLS}
    for name, pair in PAIRS.items():
        found[f"pair: {name}"] = lambda pair=pair: fixed_pair(*pair, repeats, seed)
    for loud in (0.3, 0.5, 2.0, 3.0):
        found[f"unequal: no division {loud} times as noisy"] = lambda loud=loud: unequal_noise(loud, repeats, seed)
    for gain, wanted in ((0.0, 0.5), (0.0, 1.0), (0.5, 0.5), (1.0, 1.0)):
        found[f"stages: +{gain} points, --difference {wanted}"] = lambda g=gain, w=wanted: two_stages(
            g, w, repeats, seed
        )
    return found


def as_text(value: Any) -> str:
    """A cell of the table: shares in percent, other numbers as they are."""
    return "-" if value is None else f"{100 * value:.1f} %" if value <= 1 else f"{value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD")
    parser.add_argument("--output", type=Path, default=Path("runs/verdict.json"))
    asked = parser.parse_args()
    print(f"{asked.repeats} repeats; differences of {100 * DIFFERENCE} points matter unless noted", flush=True)
    rows: dict[str, Any] = json.loads(asked.output.read_text()) if asked.output.exists() else {}
    for name, job in jobs(asked.repeats, asked.seed).items():
        if not any(word in name for word in asked.only):
            continue
        began = time.perf_counter()
        rows[name] = row = job()
        halves = {key: f"{value:.2f}" for key, value in row.items() if key.startswith("half") and value is not None}
        others = {key: as_text(value) for key, value in row.items() if not key.startswith("half")}
        said = ", ".join(f"{key} {value}" for key, value in (others | halves).items() if value != "-")
        print(f"{name}: {said} ({time.perf_counter() - began:.0f} s)", flush=True)
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        asked.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
