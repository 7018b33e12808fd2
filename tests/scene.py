"""A place where searches run in processes of their own, and what they leave there; for tests/faults and tests/cluster."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import mlflow
import optuna

SCRIPT = Path(__file__).parent / "faults" / "faulty_search.py"
REPORT = re.compile(r"^trial (\d+) epoch (\d+):", re.MULTILINE)

SETTINGS = [
    "--train-classes", "16", "--weights", "none", "--sz-resize", "32", "--sz-crop", "32", "--sz-embedding", "16",
    "--batch-size", "8", "--num-samples-per-class", "2", "--nb-epochs", "4", "--force-full-embedding-epoch", "2",
    "--mod-epoch", "1", "--mod-epoch-freeze", "0",
]  # fmt: skip
# Trials share no epochs, because the tests count the epochs that each one trains; `shares` in a test overrides it.
SEARCH = ["--final", "none", "--final-seeds", "1", "--confirm", "0"]


class Scene:
    """A place where searches run, with faults, and what they leave there."""

    def __init__(self, directory, images):
        self.directory, self.images, self.output = directory, images, directory / "runs"
        self.environment = {**os.environ, "COLUMNS": "200"}
        self.processes = []
        self.faults()

    def faults(self, *faults):
        (self.directory / "faults.json").write_text(json.dumps(faults))

    def start(self, *words, name="s", new=True, settings=SETTINGS, output=None, shares=False):
        """Start a search (or a command on one), its output in a file, or where `output` says."""
        search = SEARCH if shares else [*SEARCH, "--no-share"]
        flags = ["folder", "--dataset-dir", self.images, "--name", name, *search, *settings] if new else []
        log = (self.directory / f"log-{len(self.processes)}.txt").open("w")
        script = [sys.executable, SCRIPT, self.directory]
        process = subprocess.Popen(
            [str(w) for w in [*script, *flags, *words, "--output-dir", self.output]],
            stdout=output or log,
            stderr=subprocess.STDOUT,
            env=self.environment,
            cwd=self.directory,
        )
        process.log = Path(log.name)
        self.processes.append(process)
        return process

    def search(self, *words, **options):
        """Run a search to its end; returns its status and what it said."""
        process = self.start(*words, **options)
        return process.wait(480), process.log.read_text()

    def resume(self, *words, name="s"):
        return self.search("--resume", name, *words, new=False)

    def wait_for(self, text, process, seconds=300):
        """Wait until a process has said something."""
        self._wait(lambda: text in process.log.read_text(), process, seconds)

    def wait_for_hang(self, trial, process, seconds=300, number=0):
        """Wait until a trial's step hangs, for which it has reported the epoch before."""
        self._wait((self.directory / f"done-{trial}-hang-{number}").exists, process, seconds)

    def _wait(self, happened, process, seconds):
        end = time.monotonic() + seconds
        while not happened():
            assert process.poll() is None, process.log.read_text()
            assert time.monotonic() < end, process.log.read_text()
            time.sleep(0.05)

    def close(self):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(60)

    @property
    def uri(self):
        return f"sqlite:///{self.output / 'mlflow.db'}"

    def runs(self, uri=None):
        """The runs of MLflow by key; each key once."""
        client = mlflow.MlflowClient(uri or self.uri)
        found = client.search_runs([client.get_experiment_by_name("dcml_tune").experiment_id])
        keys = [run.data.tags["dcml.key"] for run in found]
        assert len(keys) == len(set(keys)), "a trial has two runs"
        return dict(zip(keys, found, strict=True))

    def curve(self, key, metric="val/map_at_r", uri=None):
        """Step and value of each point of a run, as MLflow has them."""
        points = mlflow.MlflowClient(uri or self.uri).get_metric_history(self.runs(uri)[key].info.run_id, metric)
        return sorted((point.step, point.value) for point in points)

    def times(self, key, uri):
        """When each epoch of a run was reported, in seconds since 1970, in order."""
        client = mlflow.MlflowClient(uri)
        points = client.get_metric_history(self.runs(uri)[key].info.run_id, "train/loss")
        return sorted(point.timestamp / 1000 for point in points)

    def study(self, name="s"):
        """The launched trials of the study, by key."""
        study = optuna.load_study(study_name=name, storage=f"sqlite:///{self.output / name / 'optuna.db'}")
        return {t.user_attrs["dcml.key"]: t for t in study.trials if "dcml.key" in t.user_attrs}

    def states(self, name="s"):
        return {key: trial.state.name for key, trial in sorted(self.study(name).items())}

    def trained(self):
        """Each epoch that was trained, as often as it was."""
        return (self.directory / "trained.txt").read_text().split("\n")[:-1]

    def lost(self):
        """Epochs that a process had reported and a later one trained again; one that was in flight may be."""
        times = Counter(self.trained())
        reports = [set(REPORT.findall(process.log.read_text())) for process in self.processes]
        reporters = Counter(f"{key} {epoch}" for found in reports for key, epoch in found)
        return sorted(epoch for epoch in times if times[epoch] > 1 and reporters[epoch] > 1)

    def assert_sound(self, trials, name="s", epochs=4, uri=None):
        """Nothing is lost, doubled, or left running: each trial has one run, with each of its epochs once."""
        runs, study = self.runs(uri), self.study(name)
        assert sorted(study) == [f"{number:03d}" for number in range(trials)]
        assert {key for key, run in runs.items() if run.data.tags["dcml.role"] == "trial"} >= {
            f"{name}/{key}" for key in study
        }
        assert {run.info.status for run in runs.values()} <= {"FINISHED", "FAILED"}
        for key, trial in study.items():
            assert trial.state.is_finished()
            steps = [step for step, _ in self.curve(f"{name}/{key}", uri=uri)]
            last = max(trial.intermediate_values, default=0)
            assert steps == list(range(last + 1)) or (last, steps) == (0, []), (key, steps, last)
            if trial.state.name == "COMPLETE":
                assert last == epochs
