"""A search over two nodes with PostgreSQL and S3, against the same search on one machine with SQLite and its disk.

    python benchmarks/cluster.py [--trials 1000] [--alone 250] [--epochs 4] [--reports 4000] [--at-once 4] [--profile]

All searches are those of `dcml_tune.search emoji` with a trainable that learns nothing, so that what is measured is what surrounds the
training. The two nodes are processes of Ray on this machine. A PostgreSQL server has the study, and moto's S3 server, in memory, has the
records and checkpoints (`--storage`, in `trials` alone). Each part runs in fresh processes, one after the other:

    trials      short trials, one search on one machine (`--alone`), one over two nodes: the wall time of a trial, and the driver's time
                for a result (all that Ray Tune does with it, our callbacks and the study included). Ratios are of equally many trials,
                the first ones
    reports     a few trials that report as fast as they can, over two nodes: the results a second that the driver takes, and the
                CPU time of the driver for each. That all processes share the cores of this machine lowers the first. Beside it:
                Ray Tune alone on one machine, with trials that do nothing and without anything of ours
    --profile   the functions in which the driver spends its time meanwhile, by package (cProfile, which slows it)

All processes share the cores of this machine, so the ratio of wall times is an upper bound: on a cluster the servers have their own.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cheap import CheapTrainer
from costs import grid, memory_mb

ROOT = Path(__file__).parents[1]
SEARCH = ["emoji", "--ratio-classes", "0.1", "--gpus-per-trial", "0", "--scheduler", "none", "--searcher", "optuna",
          "--confirm", "0", "--final", "none", "--no-share", "--quiet", "--mod-epoch", "1", "--mod-epoch-freeze", "0",
          "--force-full-embedding-epoch", "3"]  # fmt: skip
_PACKAGES = ("dcml_tune", "trainables", "ray", "optuna", "sqlalchemy", "psycopg", "mlflow", "rich", "json")


# -- the search, in a process of its own ---------------------------------------------------------------------


def search(file: Path, argv: list[str], *, profiled: bool) -> int:
    """Run a search of trials that learn nothing; writes what its driver took into a file."""
    from dcml_tune.search.__main__ import main as search_main
    from trainables import DivideAndConquer

    class Cheap(DivideAndConquer):
        def make_trainer(self, config: Any) -> Any:
            return CheapTrainer(config, self.run.metric)

    results = watched_results()
    profile = cProfile.Profile()
    status = profile.runcall(search_main, argv, Cheap) if profiled else search_main(argv, Cheap)
    packages = by_package(profile) if profiled else {}
    file.write_text(json.dumps({"results": results, "packages": packages, "memory": memory_mb("VmHWM")}))
    return status


def watched_results() -> list[tuple[float, float, float, float]]:
    """A list to which Ray Tune adds, for each result, when it ended, its seconds, and the CPU seconds of process and thread."""
    from ray.tune.execution.tune_controller import TuneController

    results: list[tuple[float, float, float, float]] = []
    process = TuneController._on_training_result

    def timed(controller: Any, trial: Any, result: Any) -> None:
        began = time.perf_counter()
        process(controller, trial, result)
        ended = time.perf_counter()
        results.append((ended, ended - began, time.process_time(), time.thread_time()))

    TuneController._on_training_result = timed
    return results


def bare(file: Path, trials: int, reports: int) -> int:
    """Let Ray Tune take the reports of trials by itself: without a searcher, callbacks, loggers, checkpoints and output."""
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    import ray
    from ray import tune

    class Reports(tune.Trainable):
        def step(self) -> dict[str, float]:
            return {"value": 1.0}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Save nothing at the end."""

    results = watched_results()
    ray.init(address="local", num_cpus=trials, include_dashboard=False, log_to_driver=False)
    stop = {"training_iteration": reports}
    tune.Tuner(
        tune.with_resources(Reports, {"cpu": 1}),
        param_space={"number": tune.grid_search(list(range(trials)))},
        run_config=tune.RunConfig(name="bare", storage_path=str(file.parent), stop=stop, verbose=0),
    ).fit()
    ray.shutdown()
    file.write_text(json.dumps({"results": results, "packages": {}, "memory": memory_mb("VmHWM")}))
    return 0


def by_package(profile: cProfile.Profile) -> dict[str, float]:
    """Seconds by the package whose functions took them; functions in C count to the package that called them."""
    found: dict[str, float] = defaultdict(float)
    stats: Any = pstats.Stats(profile)
    for (file, _, name), (_, _, own, _, callers) in stats.stats.items():
        if file != "~":
            found[_package(file)] += own
            continue
        for (calling, _, _), facts in callers.items():
            waits = any(word in name for word in ("sleep", "poll", "acquire", "select", "get_objects", "wait"))
            found["waiting" if waits else _package(calling)] += facts[2]
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _package(file: str) -> str:
    parts = Path(file).parts
    return next((name for name in _PACKAGES if name in parts), "other")


# -- what is measured ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Driven:
    """What the driver of a search took."""

    ends: list[float]
    """When each result was processed, in seconds."""
    seconds: list[float]
    """What processing each took."""
    cpus: list[float]
    """CPU seconds of the process so far, at each of them."""
    mains: list[float]
    """Those of its main thread, in which Ray Tune runs."""
    memory: float
    """Most megabytes of the process."""
    packages: dict[str, float]
    database: float
    """Megabytes of mlflow.db."""

    @classmethod
    def of(cls, facts: dict[str, Any], output: Path) -> Driven:
        """Read what a search has written."""
        ends, seconds, cpu, main = (list(each) for each in zip(*facts["results"], strict=True))
        store = output / "mlflow.db"
        size = store.stat().st_size / 1e6 if store.exists() else 0.0
        return cls(ends=ends, seconds=seconds, cpus=cpu, mains=main, memory=facts["memory"], packages=facts["packages"],
                   database=size)  # fmt: skip

    def part(self, begin: int, end: int) -> Driven:
        """Some of its results; memory and database stay those of the whole search."""
        lists = {name: getattr(self, name)[begin:end] for name in ("ends", "seconds", "cpus", "mains")}
        return replace(self, **lists)

    def quarters(self) -> list[Driven]:
        """Four parts with equally many results."""
        size = max(2, len(self.ends) // 4)
        return [self.part(number * size, (number + 1) * size) for number in range(4)]

    @property
    def wall(self) -> float:
        """Seconds from the first result to the last."""
        return self.ends[-1] - self.ends[0]

    @property
    def cpu(self) -> float:
        """CPU seconds of the driver from the first result to the last."""
        return self.cpus[-1] - self.cpus[0]

    @property
    def main(self) -> float:
        """Those of its main thread."""
        return self.mains[-1] - self.mains[0]

    @property
    def median_ms(self) -> float:
        """Median milliseconds of a result."""
        return 1e3 * statistics.median(self.seconds)

    def percentile(self, share: float) -> float:
        """Seconds that a share of the results needed at most."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def driven(place: Path, words: list[Any], *, profiled: bool = False, environment: dict[str, str]) -> Driven:
    """Run a search in a fresh process.

    Raises:
        SystemExit: if it fails, with what it said.
    """
    mode = "--profiled" if profiled else "--search"
    return _in_process(place, [mode, *SEARCH, *words, "--output-dir", place, "--name", "s"], environment)


def _in_process(place: Path, words: list[Any], environment: dict[str, str]) -> Driven:
    """Run a mode of this program, with the file that it writes as its next word, in a fresh process."""
    place.mkdir()
    command = [sys.executable, __file__, words[0], place / "driver.json", *words[1:]]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=environment, cwd=place
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return Driven.of(json.loads((place / "driver.json").read_text()), place)


@contextmanager
def two_nodes(environment: dict[str, str], cpus: int) -> Iterator[str]:
    """The address of a cluster of a head without CPUs and two nodes."""
    command = [sys.executable, str(ROOT / "tests" / "cluster" / "cluster_process.py"), '{"num_cpus": 0, "num_gpus": 0}']
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True, env=environment, start_new_session=True)  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    def answer() -> Any:
        return json.loads(next(line for line in process.stdout or () if line.startswith(('"', "["))))

    try:
        address = answer()[0]
        for _ in range(2):
            process.stdin.write(json.dumps(["add", {"num_cpus": cpus, "num_gpus": 0}]) + "\n")
            process.stdin.flush()
            answer()
        yield address
    finally:
        process.stdin.close()
        process.wait(120)


def measured(asked: argparse.Namespace, root: Path) -> dict[str, Driven]:
    """Run all searches."""
    sys.path.insert(0, str(ROOT / "tests"))
    from postgresql import Server
    from s3_server import S3Server

    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    clean |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "MLFLOW_DISABLE_TELEMETRY": "true"}
    short = ["--nb-epochs", asked.epochs, "--max-concurrent", asked.at_once]
    each = max(asked.epochs, asked.reports // asked.at_once)
    fast = [
        "--num-samples",
        asked.at_once,
        "--nb-epochs",
        each,
        "--max-concurrent",
        asked.at_once,
        "--checkpoint-every",
        each,
    ]
    server, s3 = Server(), S3Server()
    environment = {**clean, "PGPASSWORD": server.PASSWORD, **s3.environment}
    open_ = {**environment, "RAY_AUTH_MODE": "disabled", "RAY_worker_register_timeout_seconds": "600"}
    found: dict[str, Driven] = {}

    def run(name: str, words: list[Any], *, profiled: bool = False) -> None:
        found[name] = driven(root / name, words, profiled=profiled, environment=environment)
        print(
            f"{name}: {len(found[name].ends)} results in {found[name].wall / 60:.1f} minutes",
            file=sys.stderr,
            flush=True,
        )

    try:
        run("one", [*short, "--num-samples", asked.alone])
        with two_nodes(open_, max(1, asked.at_once // 2)) as address:
            server.execute("CREATE DATABASE studies")
            where = ["--ray-address", address, "--study-uri", server.address("studies", login="ann")]
            stored = ["--storage", "s3://searches/runs"]
            run("two", [*short, "--num-samples", asked.trials, *where, *stored])
            run("fast", [*fast, *where])
            found["bare"] = _in_process(root / "bare", ["--bare", asked.at_once, each], clean)
            if asked.profile:
                run("profile", [*fast, *where], profiled=True)
    finally:
        server.close()
        s3.close()
    return found


_REPORTS: dict[str, Callable[[Driven], float]] = {
    "results a second": lambda each: (len(each.ends) - 1) / each.wall,
    "driver's time for a result, median, ms": lambda each: each.median_ms,
    "driver's time for a result, 95th percentile, ms": lambda each: 1e3 * each.percentile(0.95),
    "CPU time of the main thread for a result, ms": lambda each: 1e3 * each.main / len(each.ends),
    "CPU time of the driver for a result, ms": lambda each: 1e3 * each.cpu / len(each.ends),
    "results a second at most, by this CPU time on one core": lambda each: len(each.ends) / each.cpu,
}


def tables(found: dict[str, Driven], trials: int, alone: int) -> dict[str, list[dict[str, Any]]]:
    """The tables, by title."""
    one, two, fast = found["one"], found["two"], found["fast"]
    first, results = two.part(0, len(one.ends)), len(two.ends) / trials

    def row(what: str, value: Any) -> dict[str, Any]:
        a, b = value(one), value(first)
        return {"": what, "one machine": a, "two nodes, PostgreSQL, S3": b, "ratio": b / a}

    quarters = [
        {
            "": f"quarter {number}",
            "wall time of a trial, s": each.wall / len(each.ends) * results,
            "driver's time for a result, median, ms": each.median_ms,
            "95th percentile, ms": 1e3 * each.percentile(0.95),
            "CPU time of the driver for a trial, s": each.cpu / len(each.ends) * results,
        }
        for number, each in enumerate(two.quarters(), 1)
    ]
    made = {
        f"the first {alone} trials": [
            row("wall time of a trial, s", lambda each: each.wall / alone),
            row("driver's time for a result, median, ms", lambda each: each.median_ms),
            row("driver's time for a result, 95th percentile, ms", lambda each: 1e3 * each.percentile(0.95)),
            row("CPU time of the driver for a trial, s", lambda each: each.cpu / alone),
        ],
        f"{trials} trials over two nodes: {two.wall / 60:.0f} minutes, driver at most {two.memory:.0f} MB, mlflow.db "
        f"{two.database:.0f} MB": quarters,
        f"{len(fast.ends):,} reports as fast as possible": [
            {"": what, "two nodes, PostgreSQL": value(fast), "Ray Tune alone": value(found["bare"])}
            for what, value in _REPORTS.items()
        ],
    }
    if "profile" in found:
        packages, total = found["profile"].packages, sum(found["profile"].packages.values())
        made["the driver's main thread, by package"] = [
            {"package": name, "s": seconds, "%": 100 * seconds / total} for name, seconds in packages.items()
        ]
    return made


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--alone", type=int, default=250, help="trials of the search on one machine")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--reports", type=int, default=4000)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--profile", action="store_true", help="run the reports again, with a profile")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        found = measured(asked, Path(root))
    for title, rows in tables(found, asked.trials, asked.alone).items():
        grid(title, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        raise SystemExit(bare(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
    if sys.argv[1:2] in (["--search"], ["--profiled"]):
        raise SystemExit(search(Path(sys.argv[2]), sys.argv[3:], profiled=sys.argv[1] == "--profiled"))
    main()
