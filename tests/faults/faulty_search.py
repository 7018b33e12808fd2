"""A search whose trials misbehave as they are told.

    python faulty_search.py DIRECTORY ARGUMENTS...      (those of dcml_tune.search)

DIRECTORY/faults.json is a list of {"trial": key, "epoch": epochs completed before it, "kind": ..., "times": n}. A fault
happens `times` times (default 1), and leaves a file in DIRECTORY each time. DIRECTORY/trained.txt gets a line for each
epoch that was trained. With "cheap" in the environment variable DCML_TEST_TRAINER nothing is trained: an epoch takes
no time and its measures depend on the settings alone.
"""

import copy
import json
import math
import os
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch

from dcml_tune.cli.parser import run_command
from dcml_tune.runs import record, stored_record, study_file
from dcml_tune.runs.stored_lock import StoredLock
from dcml_tune.search import plan
from dcml_tune.search.__main__ import main
from dcml_tune.utils.files import read_checksummed, write_checksummed
from dcml_tune.utils.locks import SharedLock
from trainables import DivideAndConquer, node_check
from trainables.node_check import NodeFaultError
from trainables.searcher import OptunaSearcher

DIRECTORY = Path(sys.argv[1]).absolute()
CHEAP = os.environ.get("DCML_TEST_TRAINER") == "cheap"
study_file.PATIENCE_S = float(os.environ.get("DCML_TEST_STUDY_PATIENCE", study_file.PATIENCE_S))
PAUSE_S = float(os.environ.get("DCML_TEST_PAUSE", "0.3"))


class CheapTrainer:
    """Has what DivideAndConquer asks of a trainer, and learns nothing."""

    def __init__(self, config, metric):
        self.config, self.metric, self.epoch, self.best = config, metric, 0, -math.inf
        self.compares = True
        self.history, self.test_scored_before, self.division, self.hits = [], None, None, None

    def close(self):
        pass

    def untrained(self):
        return {self.metric: 0.1}

    def epoch_steps(self):
        yield False
        time.sleep(PAUSE_S)
        self.epoch += 1
        value = 0.2 + 0.05 * self.epoch - 0.02 * abs(math.log10(self.config.masking_lambda) + 1)
        self.best = max(self.best, value)
        self.history.append(value)
        measures = {self.metric: value, f"{self.metric}_best": self.best, "train/loss": 1 / self.epoch}
        return {**measures, "epoch_best": self.epoch}

    def test(self, penultimate=False):
        self.test_scored_before = 0
        return {"test/recall_at_1": 0.5, "test/map_at_r": 0.4}

    @staticmethod
    def is_saved(directory):
        return (directory / "cheap.json").exists()

    def save(self, directory, models_only=False, **facts):
        if models_only:
            return
        write_checksummed(directory / "cheap.json", {"epoch": self.epoch, "best": self.best, **facts})

    def snapshot(self):
        return copy.copy(self)

    def load(self, directory):
        facts = read_checksummed(directory / "cheap.json")
        self.epoch, self.best = facts["epoch"], facts["best"]
        return facts


class Faulty(DivideAndConquer):
    """Does at the given moments what trials and machines do in long nights."""

    def make_trainer(self, config):
        if self._due("setup"):
            raise OSError("the file server does not answer")
        if os.environ.get("DCML_TEST_NODE") == "breaks":
            raise NodeFaultError("its images are gone")
        return CheapTrainer(config, self.run.metric) if CHEAP else super().make_trainer(config)

    def _epoch(self):
        for kind in FAULTS:
            if self._due(kind):
                FAULTS[kind](self)
        result = super()._epoch()
        with (DIRECTORY / "trained.txt").open("a") as file:
            file.write(f"{self.run.key} {self.trainer.epoch}\n")
        return result

    def step(self):
        result = super().step()
        if self._due("kill after saving"):
            kill(self)
        return result

    def _due(self, kind):
        epoch = self.trainer.epoch if hasattr(self, "trainer") else 0
        for fault in json.loads((DIRECTORY / "faults.json").read_text()):
            if (fault["trial"], fault["kind"], fault.get("epoch", 0)) != (self.run.key, kind, epoch):
                continue
            done = len(list(DIRECTORY.glob(f"done-{self.run.key}-{kind}-*")))
            if done < fault.get("times", 1):
                (DIRECTORY / f"done-{self.run.key}-{kind}-{done}").touch()
                return True
        return False


def kill(trial):
    os.kill(os.getpid(), signal.SIGKILL)


def freeze(trial):
    os.kill(os.getpid(), signal.SIGSTOP)


def hang(trial):
    time.sleep(10**6)


def fail(trial):
    raise RuntimeError("the file server does not answer")


def diverge(trial):
    torch.nn.init.constant_(trial.trainer.model.embedding.weight, math.nan)


def want_memory(trial):
    torch.empty(10**14)


def want_gpu_memory(trial):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def hoard(trial):
    """Take 6 GiB of memory, and wait for the end."""
    trial.hoarded = bytearray(b"x") * (6 << 30)
    time.sleep(10**6)


def leave_no_room(trial):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def has_a_bug(searcher, *arguments, **options):
    """Takes the place of a method of the searcher."""
    try:
        raise KeyError("a bug")
    except KeyError as error:
        raise RuntimeError("something is wrong\nwith this search") from error


FAULTS = {
    "kill": kill,
    "freeze": freeze,
    "hang": hang,
    "raise": fail,
    "diverge": diverge,
    "no room": leave_no_room,
    "memory": want_memory,
    "hoard": hoard,
    "GPU memory": want_gpu_memory,
}


def examine_pretended_node(needs, gpus):
    """Check a node of a test: its GPUs are pretended, and an environment variable of the node says what it lacks."""
    from trainables.node_check import examine as examine_node

    if "lacks the package" in os.environ.get("DCML_TEST_NODE", ""):
        raise ModuleNotFoundError("No module named 'dcml_tune'")
    return examine_node({**needs, "gpus": False}, gpus)


if __name__ == "__main__":
    sys.argv[1:2] = []
    node_check.examine = examine_pretended_node
    if os.environ.get("DCML_TEST_LEASE"):
        lease_s = float(os.environ["DCML_TEST_LEASE"])
        record.SharedLock = partial(SharedLock, lease_s=lease_s, heartbeat_s=lease_s / 6)
        for module in (plan, stored_record):
            module.StoredLock = partial(StoredLock, lease_s=lease_s, heartbeat_s=lease_s / 6)
    if os.environ.get("DCML_TEST_BUG"):
        OptunaSearcher.on_trial_complete = has_a_bug
    run_command(lambda argv: main(argv, Faulty))
