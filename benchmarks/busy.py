"""Speed of a trial on the CPU beside programs that take all cores: how threads wait, and the niceness of Ray's workers.

    python benchmarks/busy.py [--hogs 0 4] [--repeats 3] [--seconds 3] [--threads 2]

A trial trains the published setting of `emoji` with 4 clusters on random images, in batches of 16. Each kind of trial has a
process of its own. They take turns: all kinds train for some seconds beside the same number of other programs, each of
which computes on one core without a pause. Then the number changes, and all of this is repeated.

    spinning   threads wait in a loop, as GNU OpenMP does by default: for milliseconds, which a thread that is
               not running does not get
    briefly    threads wait in a loop for some microseconds, then sleep, as in the trials of a search
               (`dcml_tune.utils.openmp`)
    passive    threads sleep at once
    nice 15    briefly, with the niceness that Ray gives its workers by default

A row has the seconds of an epoch of 700 images (medians), and the ratio to a spinning trial: how many times as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from measure import Row, ratio_line, show

from dcml_tune.utils.openmp import SPIN_COUNT

IMAGES = 700
SPINNING, BRIEFLY, PASSIVE, NICE = "spinning", "briefly", "passive", "nice 15"
KINDS: dict[str, tuple[dict[str, str], int]] = {
    SPINNING: ({"GOMP_SPINCOUNT": "300000"}, 0),
    BRIEFLY: ({"GOMP_SPINCOUNT": SPIN_COUNT}, 0),
    PASSIVE: ({"GOMP_SPINCOUNT": "0"}, 0),
    NICE: ({"GOMP_SPINCOUNT": SPIN_COUNT}, 15),
}
"""Kind of trial -> what it adds to its environment, and its niceness."""


def trial(threads: int, niceness: int) -> None:
    """Warm up; for each number of seconds that is read, train as long, and answer with the seconds of an epoch."""
    import torch

    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.search.gpu_probe.trial import SyntheticTrial
    from search_spaces.emoji import SPACE

    torch.set_num_threads(threads)
    config = TrialConfig(**{**SPACE.published, "nb_clusters": 4, "batch_size": 16, "weights": "none"})
    made = SyntheticTrial(config, torch.device("cpu"))
    made.steps(1)
    os.nice(niceness)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(IMAGES / made.measured(float(line)).images_per_s), flush=True)


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """Programs that compute on one core each, as long as the block runs."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def child(kind: str, threads: int) -> Iterator[subprocess.Popen[str]]:
    """The process of a kind of trial; its first line says that it is ready."""
    environment, niceness = KINDS[kind]
    words = [sys.executable, __file__, "--child", str(threads), str(niceness)]
    process = subprocess.Popen(
        words, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def asked(process: subprocess.Popen[str], seconds: float) -> float:
    """Seconds of an epoch, by a child that trains for some seconds."""
    entrance, answers = _pipes(process)
    print(seconds, file=entrance, flush=True)
    return float(json.loads(answers.readline()))


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def measured(
    kinds: Sequence[str], counts: Sequence[int], repeats: int, seconds: float, threads: int
) -> dict[tuple[int, str], list[float]]:
    """Seconds of an epoch beside a number of other programs, by this number and the kind of trial, for each repeat."""
    found: dict[tuple[int, str], list[float]] = {(count, kind): [] for count in counts for kind in kinds}
    with ExitStack() as stack:
        children = {kind: stack.enter_context(child(kind, threads)) for kind in kinds}
        for process in children.values():
            if _pipes(process)[1].readline() != "ready\n":
                raise SystemExit("a trial could not start; its error is above")
        for _ in range(repeats):
            for count in counts:
                with hogs(count):
                    time.sleep(0.2)
                    for kind, process in children.items():
                        found[count, kind].append(asked(process, seconds))
    return found


def lines(found: dict[tuple[int, str], list[float]]) -> list[Row]:
    """The rows of the table."""
    return [
        ratio_line(f"beside {count}: {kind}, against {SPINNING}", taken, found[count, SPINNING], goal="", unit="s")
        for (count, kind), taken in found.items()
        if kind != SPINNING
    ]


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hogs", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    given: Any = parser.parse_args(argv)
    if given.child:
        trial(*given.child)
        return []
    kinds = dict.fromkeys([SPINNING, *given.kinds])
    before = os.getloadavg()[0]
    rows = lines(measured(list(kinds), given.hogs, given.repeats, given.seconds, given.threads))
    show(f"an epoch of {IMAGES} images, {given.threads} threads; load before: {before:.1f}", rows)
    return rows


if __name__ == "__main__":
    main()
