"""The dictionaries from which Ray makes the trials and the later runs of a search, and the results of those runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcml_tune.config.trial import SEEDS, TrialConfig
from dcml_tune.runs.paths import PREFIXES, TRIALS
from dcml_tune.runs.results import read_result
from dcml_tune.runs.stores import Stores
from dcml_tune.utils.files import CorruptFileError
from dcml_tune.utils.signals import SearchStopped
from search_spaces.prefixes import shared_with
from trainables import Run
from trainables.run import CURVE, RESULT_FILE, SCORES_TEST, pack, run_of, unpack

if TYPE_CHECKING:
    from dcml_tune.search.confirmation import Candidate, FoldSeed
    from trainables.resources import Shares
    from trainables.run import Role

FINAL = 10**6 + 1
"""The first final seed minus that of the trials. A confirmation has at most a million units, each with its own seed."""

_TEST_MEASURES = ("test/recall_at_1", "test/map_at_r")


@dataclass(frozen=True, kw_only=True)
class TrialRuns:
    """Makes the dictionaries of one search: the settings of a trial, and its `run` entry."""

    search: str
    """Name of the search."""
    output: Path
    """Directory of all searches."""
    shares: Shares
    """What each trial gets of the machine."""
    metric: str
    """By which epochs are compared."""
    varied: tuple[str, ...]
    """Names of the settings that vary."""
    first_seed: int
    """Seed of the trials. Those of the confirmation follow it, and those of final runs are a million further, so that no two
    stages share a seed: what chance favoured in one must not count again in the next."""
    old_final_seeds: int = 0
    """Number of final runs of each setting that keep the seeds of earlier versions, from that of the trials on."""
    scratch: str | None = None
    """Directory of the image stores on the disk of each node; None: they are in the output directory."""
    storage: str | None = None
    """Address of the storage that has the files of trials; None: all nodes share the output directory."""
    images: str | None = None
    """Fingerprint of the content of the images."""
    shares_epochs: bool = True
    """Whether trials share the epochs that are the same computation."""
    on_cluster: bool = False
    """Whether trials run on the nodes of a cluster that was joined."""
    largest_gpu: int = 0
    """Most bytes of memory that the GPUs of a node of it have; 0: it has none."""
    save_every: int = 1
    """Number of epochs after which a trial saves its state."""
    deterministic: bool = False
    """Whether trials take only deterministic algorithms."""
    compiles: bool = False
    """Whether trials on a GPU compile the training of their backbone."""

    @property
    def compiled(self) -> bool:
        """Whether the trials compile the training of their backbone."""
        return self.compiles and self.shares.gpus_per_trial > 0

    wait_s: float | None = None
    """Longest time that a trial waits for another one that computes the same epochs, in seconds; None: no limit."""

    @property
    def prefixes(self) -> Path | None:
        """Directory of the states that the trials of a stage share; None: they share none."""
        return self.output / self.search / PREFIXES if self.shares_epochs else None

    @property
    def directory(self) -> Path:
        """Directory of the trials."""
        return self.output / self.search / TRIALS

    def run(self, **changes: Any) -> Run:
        """Return how the trials of this search are run."""
        stores = Stores.below(self.output, self.scratch, self.storage)
        return Run(
            search=self.search,
            storage=self.storage,
            images=self.images,
            on_cluster=self.on_cluster,
            largest_gpu=self.largest_gpu,
            stores=str(stores.directory),
            shared_stores=None if stores.shared is None else str(stores.shared),
            threads=self.shares.threads_per_trial,
            device="cuda" if self.shares.gpus_per_trial > 0 else "cpu",
            ranks=self.shares.ranks,
            gpu_fraction=min(1.0, self.shares.gpus_per_trial or 1.0),
            save_every=self.save_every,
            deterministic=self.deterministic,
            compiled=self.compiled,
            metric=self.metric,
            varied=self.varied,
            wait_s=self.wait_s,
            **changes,
        )

    def confirm_run(self, candidate: Candidate, unit: FoldSeed) -> dict[str, Any]:
        """Return the dictionary of a run that compares a setting on further held-out classes."""
        key = f"confirm-{candidate.slug}-fold-{unit.fold}-seed-{unit.seed}"
        run = self._run_of(key, "confirm", candidate)
        return pack({**candidate.config, "fold": unit.fold, "seed": unit.seed}, run)

    def ablate_run(self, candidate: Candidate, unit: FoldSeed, slug: str) -> dict[str, Any]:
        """Return the dictionary of a run that measures the winner with a setting put back; `slug` is a part of its key."""
        run = self._run_of(f"ablate-{slug}-fold-{unit.fold}-seed-{unit.seed}", "ablate", candidate)
        return pack({**candidate.config, "fold": unit.fold, "seed": unit.seed}, run)

    def final_run(
        self, candidate: Candidate, role: Role, number: int, until: int | None, *, note: str = ""
    ) -> dict[str, Any]:
        """Return the dictionary of a run that trains a setting on all training classes and scores the test classes.

        Args:
            candidate: the setting.
            role: of the run.
            number: of its seed, from 0.
            until: number of epochs; None: all of them.
            note: why the test classes are scored, for the ledger.
        """
        is_old = number < self.old_final_seeds
        seed = (self.first_seed + number + (0 if is_old else FINAL)) % SEEDS
        key = f"final-{candidate.slug}" + (f"-seed-{seed}" if number else "")
        if role == "untrained":
            key = role
        run = self._run_of(key, role, candidate, until=until, note=note)
        return pack({**candidate.config, "val_share": 0.0, "seed": seed}, run)

    def _run_of(self, key: str, role: Role, candidate: Candidate, **changes: Any) -> Run:
        return self.run(key=key, role=role, setting=candidate.name, directory=str(self.directory / key), **changes)

    def sharing(self, runs: list[dict[str, Any]], others: Sequence[TrialConfig] = ()) -> list[dict[str, Any]]:
        """Return the dictionaries of runs that are made in one stage, so that they share epochs with each other.

        Args:
            runs: their dictionaries.
            others: configurations of earlier trials, with which they share epochs, too.
        """
        if self.prefixes is None:
            return runs
        configs = [TrialConfig(**unpack(run)[0]) for run in runs]
        shared = []
        for run, config in zip(runs, configs, strict=True):
            settings, how = unpack(run)
            shares = () if how.role == "untrained" else shared_with(config, [*configs, *others])
            shared.append(pack(settings, replace(how, prefixes=str(self.prefixes), shares=shares)))
        return shared

    def results(self, runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return key -> what the run measured, for the runs that completed.

        Raises:
            SearchStopped: if a result lacks measures of its role. The run is not repeated by itself, because it would
                score the test classes again.
        """
        found = {}
        for run in map(run_of, runs):
            file = self.directory / run.key / RESULT_FILE
            try:
                found[run.key] = read_result(file)
            except CorruptFileError:
                continue
            needed = _TEST_MEASURES if run.role in SCORES_TEST else (f"{self.metric}_best", CURVE)
            if missing := [name for name in needed if name not in found[run.key]]:
                raise SearchStopped(f"{file}: has no {', '.join(missing)}; move it away to repeat this run")
        return found
