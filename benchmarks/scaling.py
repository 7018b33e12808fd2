"""Growth of time and memory with the number of images, and of a search's driver with the number of trials.

    python benchmarks/scaling.py [--images 10000 60000 220000] [--trials 10 100 1000] [--parts clustering evaluation ...]

    clustering     k-means of 2,048 numbers per image into 32 clusters with the default backend; 20 iterations at each size,
                   where a trial stops after 10 to 30
    evaluation     recall@1, 10 and 100 and MAP@R of 512 numbers per image, in classes of 5
    building       an image store, from JPEGs of 40 x 30 with the same content
    reading        all images of the store in batches of 128, in random order
    driver         the driver of a search without Ray (scaling_trials.py)
    actor          one run of Ray with the smallest number of trials, which do nothing: the cost of a trial's process

Each size is measured once, in a fresh process. Memory is the peak minus what the process used before the work,
including the data (`data`). The exponent is the slope of log(value) over log(size), by least squares: 1 is linear; for
values per trial, 0 is linear in total. The last column extrapolates the value to 10 million images or 10,000 trials,
and shows which part becomes the limit first. The whole benchmark takes a quarter of an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from costs import child, grid, watch_memory

Values = dict[str, float]
K, CLUSTERED, EMBEDDED, ITERATIONS = 32, 2048, 512, 20
BATCH, PER_CLASS = 128, 5
REAL = {"full, 500 x 375": 500 * 375 * 3, "small, 341 x 256": 341 * 256 * 3, "evaluation, 224 x 224": 224 * 224 * 3}
"""Bytes of an image in a store, of the sizes that real data sets have."""
BEYOND = {"images": 10_000_000, "trials": 10_000}


def unit_rows(count: int, numbers: int, classes: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Unit vectors around as many centres as there are classes, made in parts that need little memory."""
    rng = np.random.default_rng(0)
    rows = np.empty((count, numbers), dtype=np.float32)
    centres = rng.standard_normal((min(classes, 1000), numbers), dtype=np.float32)
    for start in range(0, count, 4096):
        part = rows[start : start + 4096]
        rng.standard_normal(dtype=np.float32, out=part)
        part += centres[np.arange(start, start + len(part)) % len(centres)]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def clustering(count: int, place: Path) -> Values:
    from dcml_tune.clustering import lloyd
    from dcml_tune.clustering.kmeans import kmeans

    rows = unit_rows(count, CLUSTERED, 200)
    # As many iterations at each size: none is too small.
    with patch.multiple(lloyd, MAX_ITERATIONS=ITERATIONS, LEAST_GAIN=-1.0):
        kmeans(rows[:1000], K, seed=0)  # what is loaded once
        return {**timed(lambda: kmeans(rows, K, seed=0)), "data, MB": rows.nbytes / 1e6}


def evaluation(count: int, place: Path) -> Values:
    from dcml_tune.metrics.retrieval import retrieval_measures

    rows, labels = unit_rows(count, EMBEDDED, count // PER_CLASS), np.arange(count) // PER_CLASS
    retrieval_measures(rows[:1000], labels[:1000], (1, 10))
    return {**timed(lambda: retrieval_measures(rows, labels, (1, 10, 100))), "data, MB": rows.nbytes / 1e6}


def building(count: int, place: Path) -> Values:
    from memory import draw, open_stores

    if not (place / "images").exists():
        draw(count, place / "images", width=40, height=30)
    made = timed(lambda: open_stores(place / "images", place / "stores", kinds=("full",)))
    size = sum(file.stat().st_size for file in (place / "stores").rglob("*.npy"))
    return {**made, "bytes an image": size / count}


def reading(count: int, place: Path) -> Values:
    from memory import open_stores

    building(count, place)

    def read() -> None:
        (store,) = open_stores(place / "images", place / "stores", kinds=("full",))
        order = np.random.default_rng(0).permutation(len(store))
        for start in range(0, len(order), BATCH):
            for image in store.images(order[start : start + BATCH]):
                image.copy()

    return timed(read)


def driver(count: int, place: Path) -> Values:
    from scaling_trials import driver as run

    return run(count, place)


def actor(count: int, place: Path) -> Values:
    from tracking import run_trials

    from trainables.cluster import connect, disconnect

    connect(None)
    try:
        run_trials(1, 1, 4, place / "first", [])
        found = timed(lambda: run_trials(count, 1, 4, place / "all", []))
    finally:
        disconnect()
    return {**found, "s a trial": found["s"] / count}


PARTS = {"images": (clustering, evaluation, building, reading), "trials": (driver, actor)}
BY_NAME = {part.__name__: part for parts in PARTS.values() for part in parts}


def kind_of(part: str) -> str:
    """What a part grows with."""
    return next(kind for kind, parts in PARTS.items() if BY_NAME[part] in parts)


def timed(work: Callable[[], object]) -> Values:
    """Seconds of a work, and the most megabytes that it takes beside what is there."""
    grown, start = watch_memory(), time.perf_counter()
    work()
    return {"s": time.perf_counter() - start, "memory, MB": grown()}


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of log time over log size by least squares; not a number for a single size."""
    if len(set(sizes)) < 2:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measured(names: Sequence[str], sizes: dict[str, list[int]], root: Path) -> dict[str, dict[int, Values]]:
    """Part -> size -> values. The stores that are built are those that are read."""
    found: dict[str, dict[int, Values]] = {}
    for kind, parts in PARTS.items():
        for part in parts:
            if part.__name__ not in names:
                continue
            wanted = sizes[kind][:1] if part is actor else sizes[kind]
            found[part.__name__] = {size: child(__file__, "--child", part.__name__, size, root / f"{kind}-{size}")
                                    for size in wanted}  # fmt: skip
    return found


def grown(part: str, found: dict[int, Values]) -> list[dict[str, Any]]:
    """Rows of a table: each value at each size, its exponent, and what it would be beyond if it grew on like that."""
    sizes = list(found)
    beyond = BEYOND[kind_of(part)]
    rows = []
    for name in found[sizes[0]]:
        values = [found[size][name] for size in sizes]
        slope = exponent(sizes, values) if min(values) > 0 else math.nan
        row: dict[str, Any] = {part: name, **{f"{n:,}": value for n, value in zip(sizes, values, strict=True)}}
        row |= {"exponent": "", f"at {beyond:,}": ""}
        if not math.isnan(slope):
            row |= {"exponent": f"{slope:.2f}", f"at {beyond:,}": values[-1] * (beyond / sizes[-1]) ** slope}
        rows.append(row)
    return rows


def main() -> None:
    """Measure, and print a table a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 60_000, 220_000])
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--parts", nargs="+", choices=list(BY_NAME), default=list(BY_NAME))
    parser.add_argument("--output", type=Path, help="directory of the files; a temporary one by default")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, size, place = arguments.child
        Path(place).mkdir(parents=True, exist_ok=True)
        print(json.dumps(BY_NAME[name](int(size), Path(place))))
        return
    sizes = {"images": sorted(arguments.images), "trials": sorted(arguments.trials)}
    with tempfile.TemporaryDirectory(dir=arguments.output) as root:
        found = measured(arguments.parts, sizes, Path(root))
    for name, values in found.items():
        grid(f"{name}, by the number of {kind_of(name)}", grown(name, values))
    print("bytes of an image in a store: " + ", ".join(f"{kind}: {size:,}" for kind, size in REAL.items()))


if __name__ == "__main__":
    main()
