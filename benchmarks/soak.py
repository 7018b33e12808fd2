"""A long search in which processes are killed again and again: `make soak`.

Ray, Optuna and MLflow are real. The trainable trains nothing, so that trials are short. While the search runs, its
driver, processes of trials and the tracking server are killed at random times (`--seed`). A driver that was killed is
resumed, and a server is started again. At the end, the study, MLflow and the trials' own records are compared: nothing
may be missing, duplicated or in a wrong state.

    DIRECTORY/diary.jsonl      the trials' own record: one line for each event
    DIRECTORY/search-N.txt     output of the N-th process of the search
    DIRECTORY/server.txt       output of the tracking server
    DIRECTORY/runs/soak        the search

    python benchmarks/soak.py --trials 24 --drivers 2 --workers 4 --servers 1    a short one
    python benchmarks/soak.py --search DIRECTORY ARGUMENTS...    the search alone, with arguments of dcml_tune.search
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal
from urllib.request import urlopen

import mlflow
import numpy as np
import optuna
from cheap import UNTRAINED, CheapTrainer
from PIL import Image

from dcml_tune.cli.parser import run_command
from dcml_tune.config.trial import TrialConfig
from dcml_tune.search.__main__ import main as search_main
from dcml_tune.utils.files import CorruptFileError, read_checksummed
from trainables import DivideAndConquer
from trainables.tuner import RETRIES

NAME, METRIC = "soak", "val/map_at_r"
EPOCHS, EPOCH_S = 4, 0.1

SETTINGS = [
    "--train-classes", "16", "--weights", "none", "--sz-resize", "32", "--sz-crop", "32", "--sz-embedding", "16",
    "--batch-size", "8", "--num-samples-per-class", "2", "--nb-epochs", str(EPOCHS),
    "--force-full-embedding-epoch", "2", "--mod-epoch", "1", "--mod-epoch-freeze", "0", "--confirm", "0", "--final", "none", "--no-share",
]  # fmt: skip

LOOK_S = 0.02  # between two looks at the search
STALLED_S = 600.0  # after which a search that does nothing is given up
SERVER_S = 120.0  # that a server has to start
AWAY_S = (2.0, 20.0)  # how long a killed server stays away
LATE_S = {"driver": 2.0, "worker": EPOCH_S, "server": 2.0}  # most time from a fault's moment to the fault

Kind = Literal["driver", "worker", "server"]

# -- the search -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happened in a trial."""

    what: Literal["setup", "begun", "trained", "saved"]
    trial: str
    epoch: int
    """Epochs completed; of `begun`, with the one that begins."""
    value: float | None
    driver: int
    """Process of the search."""
    pid: int
    """The trial's process."""
    started: int
    """As `started` has it: with its number, that names a process for good."""
    time: float
    """In seconds since 1970."""

    @property
    def process(self) -> tuple[int, int]:
        """The trial's process."""
        return self.pid, self.started


class Diary:
    """The file of events. A line is written by one call to the system, so a killed process leaves no half of one."""

    def __init__(self, file: Path) -> None:
        """Write and read a file; made in the process of the search, which is noted with each event."""
        self.file, self.driver = file, os.getpid()
        self._events: list[Event] = []
        self._offset = 0

    def write(self, trial: str, what: Any, epoch: int, value: float | None = None) -> None:
        """Add an event of this process."""
        pid = os.getpid()
        event = Event(what=what, trial=trial, epoch=epoch, value=value, driver=self.driver, pid=pid,
                      started=started(pid), time=time.time())  # fmt: skip
        with self.file.open("a") as file:
            file.write(json.dumps(asdict(event)) + "\n")

    def read(self) -> list[Event]:
        """All events, in the order in which they happened."""
        if self.file.exists():
            with self.file.open("rb") as file:
                file.seek(self._offset)
                lines, end, _ = file.read().rpartition(b"\n")
            self._events += [Event(**json.loads(line)) for line in lines.splitlines()]
            self._offset += len(lines + end)
        return self._events


def started(pid: int) -> int:
    """When a process was started, in ticks of the system's clock."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


class CheapTrial(DivideAndConquer):
    """A trial that trains nothing, and keeps a diary."""

    diary: Diary

    def make_trainer(self, config: TrialConfig) -> Any:
        """A trainer that trains nothing."""
        return CheapTrainer(config, self.run.metric, partial(self.diary.write, self.run.key), epoch_s=EPOCH_S)


def search(directory: Path) -> None:
    """Run a search (a command line of dcml_tune.search) whose trials write into the diary of a directory."""
    CheapTrial.diary = Diary(directory / "diary.jsonl")
    run_command(lambda argv: search_main(argv, CheapTrial))


# -- faults -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that is to be killed."""

    kind: Kind
    moment: float
    """Trials ended."""
    delay_s: float
    """From the moment on, so that a fault falls anywhere in what a search does."""
    epoch: int = 1
    """The epoch of a trial in which its process is killed, or a later one."""
    away_s: float = 0.0
    """Until a server is started again."""


def drawn(asked: argparse.Namespace) -> list[Fault]:
    """The faults of a soak: each kind is spread over the search, at random within its part."""
    rng = random.Random(asked.seed)
    counts: dict[Kind, int] = {"driver": asked.drivers, "worker": asked.workers, "server": asked.servers}
    last = max(1, asked.trials - 6)  # after the last moment there must be something left to be hit
    return [
        Fault(
            kind=kind,
            moment=last * rng.uniform(part, part + 1) / count,
            delay_s=rng.uniform(0, LATE_S[kind]),
            epoch=rng.randint(1, EPOCHS),
            away_s=rng.uniform(*AWAY_S),
        )
        for kind, count in counts.items()
        for part in range(count)
    ]


class Server:
    """A real `mlflow server` on a loopback port."""

    def __init__(self, directory: Path) -> None:
        """Choose a port."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.directory, self.uri = directory, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.away_until = 0.0

    def start(self) -> None:
        """Begin to start it."""
        store = ["--backend-store-uri", f"sqlite:///{self.directory / 'server.db'}"]
        files = ["--artifacts-destination", str(self.directory / "server-files"), "--serve-artifacts"]
        words = ["-m", "mlflow", "server", *store, *files, "--port", str(self.port), "--workers", "1"]
        quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.directory / "server.txt").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words], stdout=log, stderr=log, env=quiet, start_new_session=True
            )

    def answers(self) -> bool:
        """Whether it is up."""
        try:
            urlopen(f"{self.uri}/health", timeout=2).close()
        except OSError:
            return False
        return True

    def wait(self) -> None:
        """Start it if it is away, and wait until it answers."""
        if self.process is None:
            self.start()
        end = time.monotonic() + SERVER_S
        while not self.answers():
            if time.monotonic() > end:
                raise TimeoutError(f"the server does not answer, see {self.directory / 'server.txt'}")
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill it with its processes."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


class Soak:
    """A search, its tracking server, and what is done to them."""

    def __init__(self, directory: Path, asked: argparse.Namespace) -> None:
        """Prepare everything in an empty directory."""
        self.directory, self.output, self.asked = directory, directory / "runs", asked
        self.diary, self.server = Diary(directory / "diary.jsonl"), Server(directory)
        self.began = time.time()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.injected: Counter[str] = Counter()
        self.killed: list[Event] = []  # by its last event, each worker that was killed
        self.kills: list[float] = []  # times at which the search was killed, one for each process but the last
        self.complaints: list[str] = []

    def run(self) -> None:
        """Search under fire to the end, and have everything delivered."""
        draw_images(self.directory / "images")
        self.server.wait()
        self._start("folder", "--dataset-dir", self.directory / "images", "--name", NAME, "--num-samples",
                    self.asked.trials, "--tracking-uri", self.server.uri, *SETTINGS)  # fmt: skip
        waiting = drawn(self.asked)
        status = self._inject(waiting)
        self.say(f"the search has ended with status {status}")
        self._complain(status, len(waiting))
        self._deliver()

    def say(self, text: str) -> None:
        """One line, with the time since the beginning."""
        print(f"{(time.time() - self.began) / 60:7.2f} min  {self.ended():3d} trials ended  {text}", flush=True)

    def ended(self) -> int:
        """Trials that have ended."""
        try:
            return int(read_checksummed(self.output / NAME / "state.json")["ended"])
        except CorruptFileError:
            return 0

    def close(self) -> None:
        """End what still runs."""
        if self.processes and self.search.poll() is None:
            self._end_search()
        self.server.kill()

    @property
    def search(self) -> subprocess.Popen[bytes]:
        """The process of the search."""
        return self.processes[-1]

    def _start(self, *words: Any) -> None:
        log = (self.directory / f"search-{len(self.processes)}.txt").open("w")
        argv = [sys.executable, __file__, "--search", self.directory, *words, "--output-dir", self.output]
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "160"}
        self.processes.append(
            subprocess.Popen([str(word) for word in argv], stdout=log, stderr=log, env=environment, cwd=self.directory)
        )
        log.close()

    def _inject(self, waiting: list[Fault]) -> int:
        """Kill things when their moments have come, until the search has ended; returns its status.

        What was injected is removed from the list.
        """
        inject = {"driver": self._kill_driver, "worker": self._kill_worker, "server": self._kill_server}
        while self.search.poll() is None:
            ended = self.ended()
            for fault in [each for each in waiting if each.moment <= ended]:
                if inject[fault.kind](fault):
                    self.injected[fault.kind] += 1
                    waiting.remove(fault)
            self._bring_back_server()
            self._give_up_if_stalled()
            time.sleep(LOOK_S)
        return int(self.search.returncode)

    def _kill_driver(self, fault: Fault) -> bool:
        """Kill the process of the search, if its trials have begun to train, and resume it."""
        if not any(event.what == "begun" and event.driver == self.search.pid for event in self.diary.read()):
            return False
        time.sleep(fault.delay_s)
        if self.search.poll() is not None:
            return False
        self.search.kill()
        self.search.wait()
        self.kills.append(time.time())
        self.say(f"driver killed (process {self.search.pid}); it is resumed")
        self._start("--resume", NAME)
        return True

    def _kill_worker(self, fault: Fault) -> bool:
        """Kill the process of a trial in an epoch."""
        victim = self._victim(fault.epoch)
        if victim is None:
            return False
        time.sleep(fault.delay_s)
        last = [event for event in self.diary.read() if event.process == victim.process][-1]
        if last.what == "saved" or last.epoch != victim.epoch or not killed(victim):
            return False
        self.killed.append(last)
        self.say(f"worker killed (process {last.pid}): trial {last.trial}, epoch {last.epoch} {last.what}")
        return True

    def _victim(self, epoch: int) -> Event | None:
        """A trial that has begun this epoch or a later one, of those that Ray will try again."""
        newest = {event.trial: event for event in self.diary.read() if event.driver == self.search.pid}
        kills = Counter((event.trial, event.driver) for event in self.killed)
        for event in newest.values():
            can_be = event.what == "begun" and event.epoch >= epoch and kills[event.trial, event.driver] < RETRIES
            if can_be and is_alive(event):
                return event
        return None

    def _kill_server(self, fault: Fault) -> bool:
        """Kill the tracking server, if it is up."""
        if self.server.process is None or not self.server.answers():
            return False
        time.sleep(fault.delay_s)
        self.server.kill()
        self.server.away_until = time.monotonic() + fault.away_s
        self.say(f"server killed; it stays away for {fault.away_s:.0f} s")
        return True

    def _bring_back_server(self) -> None:
        if self.server.process is None and time.monotonic() > self.server.away_until:
            self.server.start()
            self.say("server is started again")

    def _give_up_if_stalled(self) -> None:
        newest = self.diary.file.stat().st_mtime if self.diary.file.exists() else self.began
        if time.time() - max([newest, *self.kills[-1:]]) > STALLED_S:
            self.complaints.append(f"no trial did anything for {STALLED_S:.0f} s; the search was ended")
            self._end_search()

    def _end_search(self) -> None:
        self.search.terminate()
        try:
            self.search.wait(60)
        except subprocess.TimeoutExpired:
            self.search.kill()
            self.search.wait()

    def _complain(self, status: int, faults: int) -> None:
        if status != 0:
            self.complaints.append(f"the search ended with status {status}: {self._last_line()}")
        if faults:
            self.complaints.append(f"the search ended before {faults} faults could be injected")

    def _deliver(self) -> None:
        self.server.wait()
        flush = ["-m", "dcml_tune.tracking", "flush", NAME, "--output-dir", str(self.output), "--timeout", "300"]
        done = subprocess.run([sys.executable, *flush], capture_output=True, text=True, check=False)
        self.say(f"flush: {(done.stdout + done.stderr).strip()}")
        if done.returncode != 0:
            self.complaints.append(f"MLflow did not take everything: {done.stdout.strip()}")

    def _last_line(self) -> str:
        text = (self.directory / f"search-{len(self.processes) - 1}.txt").read_text().strip()
        return text.rpartition("\n")[2]


def is_alive(event: Event) -> bool:
    """Whether the process of an event is still there, and a worker of Ray's."""
    try:
        return started(event.pid) == event.started and b"ray::" in Path(f"/proc/{event.pid}/cmdline").read_bytes()
    except OSError:
        return False


def killed(event: Event) -> bool:
    """Kill the process of an event; returns whether it was still there."""
    try:
        if is_alive(event):
            os.kill(event.pid, signal.SIGKILL)
            return True
    except ProcessLookupError:  # it ended just now
        pass
    return False


def draw_images(directory: Path) -> None:
    """Make a data set of 24 classes with 6 images each."""
    rng = np.random.default_rng(0)
    for label in range(24):
        place = directory / f"class {label:02d}"
        place.mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")


# -- what is left -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Left:
    """What a search left behind."""

    events: list[Event]
    study: dict[str, optuna.trial.FrozenTrial]
    """The launched trials by key."""
    open_trials: int
    """Trials of the study, launched or not, that have not ended."""
    runs: dict[str, list[Any]]
    """The runs of MLflow by key."""
    points: dict[str, dict[str, list[tuple[int, float]]]]
    """Of each run, by key: of each metric, step and value of each point."""
    models: Counter[str]
    """Models of MLflow by key."""

    @classmethod
    def of(cls, soak: Soak) -> Left:
        """Read it all."""
        study = optuna.load_study(study_name=NAME, storage=f"sqlite:///{soak.output / NAME / 'optuna.db'}")
        client = mlflow.MlflowClient(soak.server.uri)
        experiment = client.get_experiment_by_name("dcml_tune").experiment_id
        runs = defaultdict(list)
        for run in all_pages(partial(client.search_runs, [experiment])):
            runs[run.data.tags["dcml.key"]].append(run)
        models = all_pages(partial(client.search_logged_models, [experiment]))
        return cls(
            events=soak.diary.read(),
            study={t.user_attrs["dcml.key"]: t for t in study.trials if "dcml.key" in t.user_attrs},
            open_trials=sum(not trial.state.is_finished() for trial in study.trials),
            runs=dict(runs),
            points={key: points_of(client, some[0]) for key, some in runs.items()},
            models=Counter(model.tags["dcml.key"] for model in models),
        )


def all_pages(search: Callable[..., Any]) -> Iterator[Any]:
    """What a search of MLflow finds, on all of its pages."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        if not (token := page.token):
            return


def points_of(client: mlflow.MlflowClient, run: Any) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each point of a run."""
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


@dataclass(kw_only=True)
class Findings:
    """What is wrong, a line each."""

    lost: list[str] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """All of them."""
        named = {"lost": self.lost, "doubled": self.points + self.runs, "wrong": self.wrong}
        return [f"{name}: {line}" for name, lines in named.items() for line in lines]


def judge(left: Left, soak: Soak) -> Findings:
    """Find what is lost, doubled, or in a wrong state."""
    saved: dict[str, dict[int, float]] = {key: {} for key in left.study}
    for event in left.events:
        if event.what == "saved":
            saved.setdefault(event.trial, {})[event.epoch] = event.value or 0.0
    return Findings(
        lost=[*trained_again(left.events, soak), *missing(left, saved)],
        points=list(doubled_points(left)),
        runs=list(doubled_runs(left)),
        wrong=[*soak.complaints, *wrong_states(left, soak), *unknown_epochs(left, saved)],
    )


def trained_again(events: list[Event], soak: Soak) -> Iterator[str]:
    """Epochs that were trained again though they had been saved, or though nobody had killed their process."""
    workers = {event.process for event in soak.killed}
    saved, begun = set(), {}
    for event in events:
        at = event.trial, event.epoch
        if event.what == "saved":
            saved.add(at)
        if event.what != "begun":
            continue
        before = begun.get(at)
        if at in saved:
            yield f"trial {event.trial} trained epoch {event.epoch} again, which it had saved"
        elif before and before.driver == event.driver and before.process not in workers:
            yield f"trial {event.trial} trained epoch {event.epoch} again, and nobody had killed it"
        begun[at] = event


def missing(left: Left, saved: dict[str, dict[int, float]]) -> Iterator[str]:
    """Saved epochs that MLflow or the study lacks, or has with another value."""
    for key, curve in saved.items():
        tracked = dict(left.points.get(f"{NAME}/{key}", {}).get(METRIC, []))
        for epoch, value in {0: UNTRAINED, **curve}.items():
            if tracked.get(epoch) != value:
                yield f"trial {key}, epoch {epoch}: MLflow has {tracked.get(epoch)}, it was {value}"
        known = left.study[key].intermediate_values if key in left.study else {}
        best = accumulate((curve[epoch] for epoch in sorted(curve)), max)
        for epoch, value in zip(sorted(curve), best, strict=True):
            if known.get(epoch) != value:
                yield f"trial {key}, epoch {epoch}: the study has {known.get(epoch)}, the best was {value}"


def unknown_epochs(left: Left, saved: dict[str, dict[int, float]]) -> Iterator[str]:
    """Epochs that MLflow or the study has, and no trial saved."""
    for key, curve in saved.items():
        tracked = {step for step, _ in left.points.get(f"{NAME}/{key}", {}).get(METRIC, [])}
        known = set(left.study[key].intermediate_values) if key in left.study else set()
        if more := (tracked | known) - set(curve) - {0}:
            yield f"trial {key} has epochs {sorted(more)}, which it never saved"


def doubled_points(left: Left) -> Iterator[str]:
    """Steps of a metric that a run has twice; on the run of the search, whose steps repeat, with the same value."""
    for key, metrics in left.points.items():
        for name, points in metrics.items():
            marks = points if key == NAME else [step for step, _ in points]
            for mark, times in Counter(marks).items():
                if times > 1:
                    yield f"run {key} has {name} of step {mark} {times} times"


def doubled_runs(left: Left) -> Iterator[str]:
    """Keys of more than one run, and trials of more than one model."""
    yield from (f"{key} has {len(runs)} runs" for key, runs in left.runs.items() if len(runs) > 1)
    yield from (f"{key} has {count} models" for key, count in left.models.items() if count > 1)


def wrong_states(left: Left, soak: Soak) -> Iterator[str]:
    """Trials that are not there, not at their end, failed, or not the same to the study and to MLflow."""
    planned = [f"{number:03d}" for number in range(soak.asked.trials)]
    for key in sorted({*planned, *left.study}):
        found = left.study.get(key)
        state = found.state.name if found else "missing"
        tracked = [tracked_state(run) for run in left.runs.get(f"{NAME}/{key}", [])]
        whole = found is not None and max(found.intermediate_values, default=0) == EPOCHS
        right = {"COMPLETE": ("FINISHED", "done"), "PRUNED": ("FINISHED", "pruned")}.get(state)
        if key not in planned or tracked[:1] != [right] or whole != (state == "COMPLETE"):
            yield f"trial {key}: {state} in the study, {tracked} in MLflow, {'all' if whole else 'not all'} epochs"
        if left.models[f"{NAME}/{key}"] == 0:
            yield f"trial {key} has no model in MLflow"
    yield from (f"{key}: a run of no trial" for key in left.runs.keys() - {NAME, *(f"{NAME}/{k}" for k in planned)})
    if left.open_trials:
        yield f"{left.open_trials} trials of the study have not ended"
    if [tracked_state(run) for run in left.runs.get(NAME, [])] != [("FINISHED", "done")]:
        yield f"the run of the search is {[tracked_state(run) for run in left.runs.get(NAME, [])]}"


def tracked_state(run: Any) -> tuple[str, str | None]:
    """A run's state, to MLflow and to us."""
    return run.info.status, run.data.tags.get("dcml.state")


def resume_minutes(left: Left, soak: Soak) -> float:
    """Median time from a kill of the search to the first epoch that its next process trained."""
    first: dict[int, float] = {}
    for event in left.events:
        if event.what == "trained":
            first.setdefault(event.driver, event.time)
    nexts = zip(soak.kills, soak.processes[1:], strict=True)
    taken = [first[process.pid] - kill for kill, process in nexts if process.pid in first]
    return statistics.median(taken) / 60 if taken else math.nan


def table(left: Left, found: Findings, soak: Soak) -> str:
    """The outcome, aligned."""
    begun = [(event.trial, event.epoch) for event in left.events if event.what == "begun"]
    states = Counter(trial.state.name.lower() for trial in left.study.values())
    asked = {"driver": soak.asked.drivers, "worker": soak.asked.workers, "server": soak.asked.servers}
    rows: dict[str, Any] = {f"{kind}s killed": f"{soak.injected[kind]} of {count}" for kind, count in asked.items()}
    rows |= {
        "trials": f"{len(left.study)} ({', '.join(f'{count} {state}' for state, count in sorted(states.items()))})",
        "epochs trained": len({(event.trial, event.epoch) for event in left.events if event.what == "saved"}),
        "epochs begun again (allowed: those in flight)": len(begun) - len(set(begun)),
        "epochs lost": len(found.lost),
        "points doubled": len(found.points),
        "runs doubled": len(found.runs),
        "trials in a wrong state": len(found.wrong),
        "minutes": f"{(time.time() - soak.began) / 60:.1f}",
        "minutes of a resume, median": f"{resume_minutes(left, soak):.2f}",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


# -- the command ------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Search while drivers, workers and the tracking server are killed.")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--drivers", type=int, default=5, help="how often the driver of the search is killed")
    parser.add_argument("--workers", type=int, default=20, help="how many processes of trials are killed")
    parser.add_argument("--servers", type=int, default=3, help="how often the tracking server is killed")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times at which processes are killed")
    parser.add_argument("--keep", action="store_true", help="keep the directory; it is always kept after a failure")
    return parser.parse_args()


def main() -> int:
    """Soak a search; returns 1 if anything was lost, doubled or wrong, or not all faults could be injected."""
    asked = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"in {directory}", flush=True)
    whole = soaked(directory, asked)
    if whole and not asked.keep:
        shutil.rmtree(directory)
    return 0 if whole else 1


def soaked(directory: Path, asked: argparse.Namespace) -> bool:
    """Soak a search and say what came out; returns whether all is well."""
    soak = Soak(directory, asked)
    try:
        soak.run()
        left = Left.of(soak)
    finally:
        soak.close()
    found = judge(left, soak)
    print("", table(left, found, soak), *found.lines(), sep="\n")
    return not found.lines()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--search"]:
        directory = Path(sys.argv[2]).absolute()
        del sys.argv[1:3]
        search(directory)
    raise SystemExit(main())
