"""Which objective predicts the test measures best? Settings of the wide space of `emoji`, trained in full.

    python benchmarks/objective.py [--settings 26] [--seeds 2] [--epochs 6] [--jobs 2] [--output runs/objective]
    python benchmarks/objective.py --table [--output runs/objective]

**This benchmark reads the test classes to judge objectives**: after every epoch of every training, or with --quick only
after the last epoch of the trainings on all classes. No other program of this project reads them for this purpose, and
no setting may be taken from it. It serves to choose the defaults of --metric and --val-share, and whether a trial
counts by its best or its last epoch.

Each setting is trained four times with each seed: with a fifth of the training classes held out (two folds), with a
third held out, and on all training classes, as in the final stage of a search. The value to predict comes from the last
of these: the mean over the seeds of the test measures after the last epoch. objective_table.py computes the tables.

Each finished training is stored as a line of a file, so a benchmark that was stopped continues where it stopped.
`--table` prints the tables of the stored trainings. benchmarks/results/objective has the trainings so far of

    python benchmarks/objective.py --settings 24 --epochs 4 --quick --output benchmarks/results/objective
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from objective_settings import Drawn, settings
from objective_table import PARTS, Record, show

MEASURES = ("recall_at_1", "map_at_r")


class Training(NamedTuple):
    """One training of a setting."""

    setting: Drawn
    part: str
    """Which classes are held out: a key of `PARTS`."""
    seed: int

    @property
    def key(self) -> tuple[int, str, int]:
        """What tells it from the others of the file."""
        return self.setting.number, self.part, self.seed


def train(training: Training, output: Path, stores: Path, *, quick: bool = False) -> Record:
    """Train, and measure held-out and test classes after each epoch; the ledger of the test classes lies in `output`.

    Args:
        training: the training.
        output: directory of the ledger.
        stores: directory of the image stores.
        quick: score the test classes only after the last epoch, and only if all classes train.
    """
    import torch

    from dcml_tune.config.errors import SettingError
    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.training.trainer import Trainer
    from dcml_tune.training.updates import NonFiniteLossError

    torch.set_num_threads(1)
    (number, name, chosen), part, seed = training
    share, fold = PARTS[part]
    record = Record(number=number, name=name, settings=chosen, part=part, seed=seed, curves={}, minutes=0.0, failed="")
    label = f"objective/{number:03d}, {part}, seed {seed}"
    start = time.perf_counter()
    try:
        config = TrialConfig(**{**chosen, "val_share": share, "fold": fold, "seed": seed})
        trainer = Trainer(config, stores=stores, ledger=output / "test-ledger.jsonl", name=label)
        while trainer.epoch < config.nb_epochs:
            measures = trainer.run_epoch()
            scores = not quick or (share == 0 and trainer.epoch == config.nb_epochs)
            _add(record, {**measures, **(trainer.test() if scores else {})})
    except (NonFiniteLossError, SettingError) as error:
        record["failed"] = str(error)
    record["minutes"] = (time.perf_counter() - start) / 60
    return record


def _add(record: Record, measures: dict[str, float]) -> None:
    for side in ("val", "test"):
        for name in MEASURES:
            if f"{side}/{name}" in measures:
                record["curves"].setdefault(f"{side}/{name}", []).append(measures[f"{side}/{name}"])


def trainings(drawn: Sequence[Drawn], seeds: int) -> list[Training]:
    """All trainings: those of the first seed come first, so that a table can be made early."""
    return [Training(each, part, seed) for seed in range(1, seeds + 1) for each in drawn for part in PARTS]


def read(file: Path) -> list[Record]:
    """The completed trainings; an incomplete last line is ignored."""
    found: list[Record] = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def append(file: Path, record: Record) -> None:
    """Add the line of a training."""
    text = file.read_bytes() if file.exists() else b""
    torn = "\n" if text and not text.endswith(b"\n") else ""
    with file.open("a") as out:
        out.write(f"{torn}{json.dumps(record)}\n")


def run(missing: Sequence[Training], jobs: int, output: Path, *, quick: bool) -> Iterator[Record]:
    """Run trainings, several at once in processes of one thread each; yields each when it is complete.

    Raises:
        SystemExit: at the end, if some failed for a reason that is not their setting. The next call runs them again.
    """
    pool, errors = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")), list[BaseException]()
    try:
        waiting = [pool.submit(train, each, output, output.parent / "store", quick=quick) for each in missing]
        for future in as_completed(waiting):
            if error := future.exception():
                errors.append(error)
            else:
                yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
    if errors:
        raise SystemExit(
            f"{len(errors)} trainings failed; the next call runs them again. The first error: {errors[0]!r}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, and print the table."""
    arguments = _arguments(argv)
    output = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{arguments.epochs}-epochs.jsonl"
    if not arguments.table:
        drawn = settings(output / f"{arguments.epochs}-epochs-settings.jsonl", arguments.settings, arguments.epochs)
        there = {(each["number"], each["part"], each["seed"]) for each in read(file)}
        missing = [each for each in trainings(drawn, arguments.seeds) if each.key not in there]
        start = time.perf_counter()
        for count, record in enumerate(run(missing, arguments.jobs, output, quick=arguments.quick), 1):
            append(file, record)
            left = (len(missing) - count) * (time.perf_counter() - start) / count / 60
            done = record["failed"] or f"{record['minutes']:.1f} minutes"
            line = f"{count} of {len(missing)}: setting {record['number']}, {record['part']}, seed {record['seed']}: {done}"
            print(f"{line}; {left:.0f} minutes left", file=sys.stderr, flush=True)
    show(read(file), resamples=arguments.resamples)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=26)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--resamples", type=int, default=2000, help="number of bootstrap resamples, for the intervals")
    parser.add_argument("--quick", action="store_true", help="score the test classes only after the last epoch of the "
                        "trainings on all classes; saves a fifth of the time, but there is no table of epochs")  # fmt: skip
    parser.add_argument("--table", action="store_true", help="only print the tables of the stored trainings")
    parser.add_argument("--output", type=Path, default=Path("runs/objective"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
