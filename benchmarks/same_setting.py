"""Does the verdict find a difference where there is none? The published setting of `emoji` against itself, in real runs.

    python benchmarks/same_setting.py [--pairs 40] [--seeds 3] [--folds 3] [--jobs 2] [--output runs/same-setting]

In each pair the setting competes under the name of a trial with itself as its control, with other seeds: first on folds of
held-out classes, then on the test classes. Both are the same setting, so any "better" or "worse" is a false finding, and an
interval is right if it contains zero. `race` and `verdict` are those of `dcml_tune.search`.

**This benchmark reads the test classes**: each final run scores them once, after its last epoch. Nothing is chosen by them.

The runs are cheap on purpose: a fifth of the training classes, images of 32 pixels, two epochs. Their noise is real: that of
initial weights, of batches and of augmentation. Each finished run is a file, so a benchmark that was stopped continues.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dcml_tune.runs.hits import QueryHits
from dcml_tune.search.confirmation import PUBLISHED, Candidate, FoldSeed, candidates, race, units
from dcml_tune.search.deciding import FinalStage
from dcml_tune.search.verdict import verdict
from trainables.known_trial import KnownTrial

METRIC, TEST = "val/recall_at_1", "test/recall_at_1"
ARMS = ("001", PUBLISHED)
CHEAP = {"nb_epochs": 2, "force_full_embedding_epoch": 1, "nb_clusters": 1, "mod_epoch_freeze": 0, "mod_epoch": 2,
         "ratio_classes": 0.2, "sz_resize": 36, "sz_crop": 32}  # fmt: skip


class OneRun(NamedTuple):
    """A run: fold 0 is the final stage, in which all training classes train."""

    arm: str
    fold: int
    seed: int

    def file(self, output: Path) -> Path:
        """The file of its result; the hits of a final run lie beside it."""
        return output / f"{self.arm}-fold-{self.fold}-seed-{self.seed}.json"


def train(run: OneRun, output: Path) -> None:
    """Train, and write what was measured."""
    import torch

    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.training.trainer import Trainer
    from search_spaces.emoji import SPACE

    torch.set_num_threads(1)
    held_out = {"val_share": 0.2, "fold": run.fold} if run.fold else {"val_share": 0.0}
    config = TrialConfig(**{**SPACE.published, **CHEAP, **held_out, "seed": run.seed})
    trainer = Trainer(config, stores=output / "store", ledger=output / "test-ledger.jsonl", name=run.file(output).stem)
    curve = [trainer.run_epoch().get(METRIC) for _ in range(config.nb_epochs)]
    if run.fold:
        found: dict[str, Any] = {f"{METRIC}_best": curve[-1], "curve": curve, "epoch": config.nb_epochs}
    else:
        found = trainer.test()
        assert trainer.hits is not None
        trainer.hits.write(run.file(output).with_suffix(".npz"))
    run.file(output).write_text(json.dumps(found))


def first_seed(pair: int, arm: str, per_arm: int) -> int:
    """The seed before the first one of an arm: no two arms of any pair share a seed."""
    return (2 * pair + ARMS.index(arm)) * per_arm


def runs_of(pair: int, folds: int, seeds: int) -> list[OneRun]:
    """All runs of a pair."""
    found = []
    for arm in ARMS:
        before = first_seed(pair, arm, folds + seeds)
        found += [OneRun(arm, fold, before + fold) for fold in range(1, folds + 1)]
        found += [OneRun(arm, 0, before + folds + seed) for seed in range(1, seeds + 1)]
    return found


def judge(pair: int, folds: int, seeds: int, output: Path) -> list[dict[str, Any]]:
    """The comparisons of the verdict of a pair."""

    def results(wanted: list[tuple[Candidate, FoldSeed]]) -> dict[tuple[str, FoldSeed], dict[str, Any]]:
        found = {}
        for candidate, unit in wanted:
            run = OneRun(candidate.name, unit.fold, first_seed(pair, candidate.name, folds + seeds) + unit.fold)
            found[candidate.name, unit] = json.loads(run.file(output).read_text())
        return found

    trial = KnownTrial(key=ARMS[0], config={"nb_clusters": 1, "number": 1}, curve={1: 0.5}, state="done", reason=None)
    test, hits = _final_runs(pair, folds, seeds, output)
    said: list[dict[str, Any]] = []
    for scored in (
        False,
        True,
    ):  # a search with --final none, in which the controls compete, and one with final scoring
        raced = race(
            candidates([trial], {"nb_clusters": 1}, 1, (PUBLISHED,)),
            units(folds, 1, 0),
            metric=METRIC,
            results=results,
            is_over=lambda: False,
            controls_compete=not scored,
        )
        final = FinalStage(hits=hits if scored else {})
        nothing = {"validation": None, "test": None}
        said += verdict(raced, raced.winner.name, test if scored else {}, nothing, final)["comparisons"]
    return said


def _final_runs(
    pair: int, folds: int, seeds: int, output: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, QueryHits]]]:
    """Measures and hits of the final runs of a pair: arm -> seed -> both."""
    test: dict[str, dict[str, Any]] = {arm: {} for arm in ARMS}
    hits: dict[str, dict[str, QueryHits]] = {arm: {} for arm in ARMS}
    for arm in ARMS:
        for number in range(1, seeds + 1):
            file = OneRun(arm, 0, first_seed(pair, arm, folds + seeds) + folds + number).file(output)
            read = QueryHits.read(file.with_suffix(".npz"))
            assert read is not None
            test[arm][f"seed {number}"], hits[arm][f"seed {number}"] = json.loads(file.read_text()), read
    return test, hits


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3, help="final runs of each arm")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/same-setting"))
    asked = parser.parse_args()
    output = asked.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    wanted = [run for pair in range(asked.pairs) for run in runs_of(pair, asked.folds, asked.seeds)]
    missing = [run for run in wanted if not run.file(output).exists()]
    start = time.perf_counter()
    with ProcessPoolExecutor(asked.jobs, multiprocessing.get_context("spawn")) as pool:
        for count, future in enumerate(as_completed([pool.submit(train, run, output) for run in missing]), 1):
            future.result()
            if count % 20 == 0:
                left = (len(missing) - count) * (time.perf_counter() - start) / count / 60
                print(f"{count} of {len(missing)} runs; {left:.0f} minutes left", file=sys.stderr, flush=True)
    show([judge(pair, asked.folds, asked.seeds, output) for pair in range(asked.pairs)])


def show(judged: list[list[dict[str, Any]]]) -> None:
    """Print what the verdicts said."""
    print(f"{len(judged)} pairs of the published setting and itself\n")
    print("| interval | pairs | contains zero | half width, points | better | worse |\n|---|---|---|---|---|---|")
    places = {"held-out classes": "held-out classes, lower end", "test classes": "these test classes"}
    for place, name in places.items():
        _row(name, [each for pair in judged for each in pair if each["on"] == place])
    _row("new classes", [each["new_classes"] for pair in judged for each in pair if each["new_classes"]])


def _row(name: str, found: list[dict[str, Any]]) -> None:
    known = [each for each in found if each["low"] is not None]
    right = sum(each["low"] <= 0 and (each["high"] is None or each["high"] >= 0) for each in known)
    halves = [50 * (each["high"] - each["low"]) for each in known if each["high"] is not None]
    half = f"{np.median(halves):.2f}" if halves else "-"
    said = [sum(each["found"] == word for each in found) for word in ("better", "worse")]
    share = f"{right} ({100 * right / len(known):.0f} %)" if known else "-"
    print(f"| {name} | {len(known)} | {share} | {half} | {said[0]} | {said[1]} |")


if __name__ == "__main__":
    main()
