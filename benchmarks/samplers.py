"""Which sampler finds a good setting of the wide space in the fewest trials? Searches, simulated with a surrogate.

    python benchmarks/samplers.py [--repeats 200] [--trials 64] [--at-once 2] [--jobs 2] [--no-starts] [--output runs/objective]

The surrogate is a regression by extremely randomised trees on the settings that benchmarks/objective.py has trained. It
predicts the objective of a search: the best held-out MAP@R with a fifth of the classes held out. The value of a
simulated trial is the prediction plus a random error with the standard deviation of a seed, as measured there. Each
sampler runs many searches, with several trials at once, after the published point and the starts. The best of the
trained settings is one of the starts, and trees predict no more than the values that they were given. So after the starts a
search can only find settings that are as good, and its regret shows how often noise made it choose a worse one. With
--no-starts a search has to find a good setting by itself.

`regret`: the value of the best known setting minus that of the setting that a search selects by its noisy values, both
predicted without errors, in points. The best known setting is the best of all that any sampler has tried, of the
trained ones, and of random samples.

The surrogate is based on a few dozen settings and is uncertain between them. The program prints how well it predicts a
setting that it was not trained on (leave-one-out).

GPSampler of Optuna 5.0 takes running trials into account (q-LogEI). It models only the settings that every trial has;
settings that vary only under a condition are sampled independently and at random. It ignores pruned trials, so with
ASHA it learns from fewer trials than TPE does; here no trial is pruned. A suggestion takes a second or more of one
core, so it has fewer repeats (--gp-repeats).
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from objective import read
from objective_settings import Settings, draws, wide
from objective_table import FIFTHS, TODAY, Curves, Record, complete
from optuna.samplers import BaseSampler
from surrogate import Surrogate, leave_one_out

from dcml_tune.config.errors import SettingError
from search_spaces.space import SearchSpace

Array = NDArray[np.float64]
Truth = Callable[[Settings], float]
"""The true value of the complete settings of a trial."""

STEPS = (8, 16, 32, 64)
TPE, GP = "TPE, as a search has it", "GP, 6 random trials"
_DRAWS = 2000  # random settings, for the best there is


def _of_a_search(seed: int, space: SearchSpace, **changed: Any) -> BaseSampler:
    from trainables.searcher import Sampling

    return Sampling(seed=seed, **changed).build(0, space)


def _gp(seed: int, space: SearchSpace) -> BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=6, warn_independent_sampling=False)


SAMPLERS: dict[str, Callable[[int, SearchSpace], BaseSampler]] = {
    TPE: _of_a_search,
    "local": partial(_of_a_search, sampler="local"),
    "TPE, 3 random trials": partial(_of_a_search, startup=3),
    "TPE, 12 random trials": partial(_of_a_search, startup=12),
    GP: _gp,
    "random": partial(_of_a_search, sampler="random"),
}


def replay(
    sampler: BaseSampler,
    space: SearchSpace,
    truth: Truth,
    *,
    noise: float,
    trials: int,
    at_once: int,
    seed: int,
    first: Sequence[Settings] = (),
) -> tuple[Array, Array]:
    """One search.

    Args:
        sampler: suggests the trials.
        space: what they are drawn from.
        truth: their values.
        noise: standard deviation of the error of a value.
        trials: number of trials.
        at_once: number of trials that run at the same time.
        seed: seed of the errors.
        first: settings of the first trials.

    Returns:
        True and noisy values of the trials, in the order in which they ended.
    """
    rng, running, ended = np.random.default_rng(seed), list[tuple[optuna.Trial, float]](), list[tuple[float, float]]()
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for point in first:
        study.enqueue_trial(point)
    while len(ended) < trials:
        while len(running) < at_once:
            trial = study.ask()
            try:
                running.append((trial, truth(space.whole(space.suggest(trial)))))
            except SettingError:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
        trial, value = running.pop(0)
        ended.append((value, value + noise * rng.normal()))
        study.tell(trial, ended[-1][1])
    true, noisy = np.array(ended).T
    return true, noisy


def chosen(true: Array, noisy: Array, step: int) -> float:
    """The true value of the setting that a search of so many trials chooses."""
    return float(true[noisy[:step].argmax()])


def _repeat(name: str, seed: int, settings: Sequence[Settings], values: Array, options: Mapping[str, Any]) -> Array:
    """One search of a process of the pool: true and noisy values."""
    import torch

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    space, surrogate = wide(options["epochs"]), Surrogate(settings, values)
    sampling = {key: options[key] for key in ("noise", "trials", "at_once")}
    point, _ = space.published_point()
    first = [point, *(space.start_points(point)[0] if options["starts"] else [])]
    return np.array(replay(SAMPLERS[name](seed, space), space, surrogate, seed=seed, first=first, **sampling))


def searches(
    names: Sequence[str], settings: Sequence[Settings], values: Array, options: Mapping[str, Any]
) -> dict[str, Array]:
    """Searches of each sampler: repeats x (true, noisy) x trials."""
    found = {}
    with ProcessPoolExecutor(options["jobs"], multiprocessing.get_context("spawn")) as pool:
        for name in names:
            repeats = options["gp_repeats" if name == GP else "repeats"]
            print(f"{name}: {repeats} searches", file=sys.stderr, flush=True)
            work = partial(_repeat, name, settings=settings, values=values, options=options)
            found[name] = np.array(list(pool.map(work, range(repeats))))
    return found


def lines(found: Mapping[str, Array], best: float) -> list[str]:
    """The table: the regret of each sampler, and its paired difference from TPE as it is today."""
    steps = [step for step in STEPS if step <= next(iter(found.values())).shape[-1]]
    regret = {
        name: 100 * np.array([[best - chosen(*each, step) for step in steps] for each in runs])
        for name, runs in found.items()
    }
    head = [f"| sampler | {' | '.join(f'{step} trials' for step in steps)} |", f"|---|{'---|' * len(steps)}"]
    head += [f"| {name} | {' | '.join(_mean(each, '') for each in of.T)} |" for name, of in regret.items()]
    for name, of in regret.items():
        if name != TPE and TPE in regret:
            common = min(len(of), len(regret[TPE]))
            cells = [_mean(each, "+") for each in (of[:common] - regret[TPE][:common]).T]
            head.append(f"| {name}, less {TPE} | {' | '.join(cells)} |")
    return head


def _mean(values: Array, sign: str) -> str:
    half = f" ± {1.96 * values.std(ddof=1) / np.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{values.mean():{sign}.2f}{half}"


def measured(records: Sequence[Record], curves: Curves) -> tuple[list[Settings], Array, float]:
    """Settings of the table, the mean of the objective over seeds and folds, and the standard deviation of a trial."""
    of = {each["number"]: each["settings"] for each in records}
    values = curves.objective(*TODAY).mean(axis=1)
    return [of[number] for number in curves.numbers], values, seed_noise(records)


def seed_noise(records: Sequence[Record]) -> float:
    """The standard deviation of a trial's value over seeds, of the settings and folds that have several; 0 if none has.

    Args:
        records: of objective.py.
    """
    values: dict[tuple[int, str], list[float]] = {}
    for each in records:
        if each["part"] in FIFTHS and not each["failed"]:
            values.setdefault((each["number"], each["part"]), []).append(max(each["curves"]["val/map_at_r"]))
    variances = [np.var(of, ddof=1) for of in values.values() if len(of) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else 0.0


def main(argv: Sequence[str] | None = None) -> None:
    """Read the table, search, and print the regrets."""
    arguments = _arguments(argv)
    records = read(arguments.output / f"{arguments.epochs}-epochs.jsonl")
    curves = complete(records)
    if len(curves.numbers) < 3:
        raise SystemExit(f"{arguments.output}: too few settings; run benchmarks/objective.py first")
    settings, values, noise = measured(records, curves)
    print(f"{len(values)} settings, values from {100 * values.min():.1f} to {100 * values.max():.1f} %, a seed's standard deviation "
          f"{100 * noise:.2f} points; leave-one-out Spearman {leave_one_out(settings, values):.2f}; "
          f"{arguments.repeats} repeats ({arguments.gp_repeats} of GP), {arguments.at_once} trials at once\n")  # fmt: skip
    found = searches(arguments.samplers, settings, values, {**vars(arguments), "noise": noise})
    surrogate, drawn = Surrogate(settings, values), islice(draws(wide(arguments.epochs), seed=1), _DRAWS)
    best = max([values.max(), *map(surrogate, drawn), *(runs[:, 0].max() for runs in found.values())])
    print(f"regret in points, mean and half of its 95 % interval; the best known setting: {100 * best:.1f} %\n")
    print("\n".join(lines(found, best)))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--gp-repeats", type=int, default=20)
    parser.add_argument("--trials", type=int, default=max(STEPS))
    parser.add_argument("--no-starts", action="store_false", dest="starts",
                        help="only the published point first, as in a space without starts")  # fmt: skip
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS), metavar="SAMPLER")
    parser.add_argument("--output", type=Path, default=Path("runs/objective"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
