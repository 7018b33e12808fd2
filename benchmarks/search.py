"""Does a search find a better recipe than the published one, and does it find a better one than random search?

    python benchmarks/search.py [--seeds 3] [--epoch-budget 64] [--nb-epochs 4] [--final-seeds 3] [--kinds wide four random]
                                [--output runs/search-benchmark] [-- FLAGS OF THE DATA SET]

For each seed, searches of `emoji` run until their trials have trained for the given number of epochs:

    wide    `--space wide` with the default sampler, pruned by asha-epochs
    four    `--space four`, the four settings of the division, with the default sampler, pruned by asha-epochs
    random  `--space wide`, settings drawn independently, no pruning

Each is one whole search of the command line: its final stage trains the winner and the published setting on all training
classes, with the same further seeds, and scores the test classes once for each run. Nothing is chosen by them. The search
seeds are the units of the table: the mean over the final seeds is one value.

Verdicts are stored, so a benchmark that was stopped continues where it stopped. benchmarks/results/search has those of

    python benchmarks/search.py --epoch-budget 40 --final-seeds 2 --output benchmarks/results/search

The last column of the first table is the
verdict of each search. `--data-set folder -- --dataset-dir DIR` takes another data set.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from dcml_tune.runs.paths import VERDICT
from dcml_tune.search.wording import TEST

Values = NDArray[np.float64]

KINDS = {
    "wide": ["--space", "wide", "--scheduler", "asha-epochs"],
    "four": ["--space", "four", "--scheduler", "asha-epochs"],
    "random": ["--space", "wide", "--searcher", "random", "--scheduler", "none"],
}
PUBLISHED = "published"
KEPT = ("metric", "test_metric", "winner", "comparisons", "test_means", "gap")
"""Parts of a verdict that are stored: not its commands, which name directories of one machine."""


def command(kind: str, seed: int, given: argparse.Namespace) -> list[str]:
    """The words of one search."""
    epochs = given.nb_epochs
    return [
        given.data_set, "--start-or-resume", f"{kind}-{seed}", "--seed", str(seed), *KINDS[kind],
        "--nb-epochs", str(epochs), "--force-full-embedding-epoch", str(epochs - max(1, epochs // 6)),
        "--num-samples", str(given.epoch_budget), "--epoch-budget", str(given.epoch_budget),
        "--confirm", "0", "--controls", PUBLISHED, "--final-seeds", str(given.final_seeds), *given.flags,
    ]  # fmt: skip


def run(kind: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Return the verdict of a search, which is kept in a file of the output; run or continue the search if there is none."""
    name, kept = f"{kind}-{seed}", given.output.absolute() / f"{kind}-{seed}.json"
    if not kept.exists():
        runs = given.output.absolute() / "runs"
        runs.mkdir(exist_ok=True)
        words = command(kind, seed, given)
        with (runs / f"{name}.log").open("a") as log:
            whole = [sys.executable, "-m", "dcml_tune.search", *words, "--quiet", "--output-dir", str(runs)]
            subprocess.run(whole, stdout=log, stderr=log, check=True)
        whole_verdict = json.loads((runs / name / VERDICT).read_text())
        kept.write_text(json.dumps({part: whole_verdict[part] for part in KEPT}, indent=1) + "\n")
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def scores(found: Mapping[str, Any]) -> dict[str, float]:
    """Test measure of winner and published setting in percent; where the winner is the published setting, both are its own."""
    tests = found["test_means"]
    winner = 100 * tests["winner"]
    return {"winner": winner, PUBLISHED: 100 * tests.get(PUBLISHED, tests["winner"])}


def answer(found: Mapping[str, Any]) -> str:
    """The line of a verdict about the published setting on test classes."""
    for each in found["comparisons"]:
        if each["control"] == PUBLISHED and each["on"] == TEST:
            ends = "" if each["low"] is None else f" ({100 * each['low']:+.1f} to {100 * each['high']:+.1f})"
            return f"{100 * each['difference']:+.1f}{ends}: {each['found']}"
    return "the winner is the published setting"


def interval(values: Sequence[float], sign: str = "") -> str:
    """Mean, and half width of Student's 95 % interval where there are several values."""
    array: Values = np.array(values)
    if len(array) < 2:
        return f"{array.mean():{sign}.1f}"
    half = t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return f"{array.mean():{sign}.1f} ± {half:.1f}"


def table(found: Mapping[tuple[str, int], Mapping[str, Any]], kinds: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """The means over the searches, and their differences paired by seed."""
    values = {kind: [scores(found[kind, seed])["winner"] for seed in seeds] for kind in kinds}
    values[PUBLISHED] = [scores(found[kinds[0], seed])[PUBLISHED] for seed in seeds]
    lines = ["| recipe | test recall@1: mean, 95 % interval of the mean |", "|---|---|"]
    lines += [f"| {kind} | {interval(each)} |" for kind, each in values.items()]
    names = list(values)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            differences = [a - b for a, b in zip(values[one], values[other], strict=True)]
            lines.append(f"| {one} - {other}, paired by seed | {interval(differences, '+')} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the tables."""
    given = _arguments(argv)
    given.output.mkdir(parents=True, exist_ok=True)
    found = {}
    print("| search | seed | winner, test recall@1 | published | winner - published |\n|---|---|---|---|---|")
    seeds = range(1, given.seeds + 1)
    for seed in seeds:
        for kind in given.kinds:
            each = found[kind, seed] = run(kind, seed, given)
            reached = scores(each)
            print(
                f"| {kind} | {seed} | {reached['winner']:.1f} | {reached[PUBLISHED]:.1f} | {answer(each)} |", flush=True
            )
    print("", *table(found, given.kinds, seeds), sep="\n")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-set", default="emoji")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epoch-budget", type=int, default=64)
    parser.add_argument("--nb-epochs", type=int, default=4)
    parser.add_argument("--final-seeds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--output", type=Path, default=Path("runs/search-benchmark"))
    parser.add_argument("flags", nargs="*", help="further flags of each search, after --")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
