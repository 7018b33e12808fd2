"""DivideAndConquer: how Ray drives a Trainer. One `step()` is one epoch of the method.

Above 250 lines because every method that Ray calls is here, beside what it does to the trial's files.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import tune

from dcml_tune.cli.quantities import brief
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.runs.hits import HITS_FILE
from dcml_tune.runs.results import read_result, with_numbers
from dcml_tune.runs.storage import StorageError
from dcml_tune.training.devices import (
    cap_gpu_memory,
    exhausted_memory,
    gpu_memory,
    keep_freed_memory,
    set_arithmetic,
    set_threads,
)
from dcml_tune.training.overlap import Steps, finish, work_during
from dcml_tune.training.saving import Snapshot
from dcml_tune.training.trainer import Trainer
from dcml_tune.training.trial_data import TrialData
from dcml_tune.training.updates import NonFiniteLossError
from dcml_tune.utils.checkpoint import CheckpointError
from dcml_tune.utils.errnos import CANNOT_WRITE
from dcml_tune.utils.files import CorruptFileError, write_checksummed
from trainables.node_check import NodeFaultError, wrong_images
from trainables.node_disk import wrong_scratch
from trainables.run import (
    CURVE,
    DIVISION,
    FAILED,
    NOTE,
    RESULT_FILE,
    SCORED_BEFORE,
    SCORES_TEST,
    STOP_SEARCH,
    unpack,
)
from trainables.saved_reports import SavedReports
from trainables.sharing import Sharing
from trainables.stored_trial import StoredOwnership, take_stored
from trainables.trial_lock import Ownership, take

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Begun:
    """An epoch that has begun while the one before was saved."""

    saved: Snapshot
    """What was saved, while the trainer is between two epochs."""
    steps: Steps[dict[str, float]]
    """What is left of the epoch."""


class DivideAndConquer(tune.Trainable):
    """A trial of the divide-and-conquer method.

    Ray passes the dictionary that `trainables.run.pack` made.

    With `Run.directory` a trial saves its state after each epoch (or after each `Run.save_every` of them), before it reports
    the result, and continues from that state after a crash of this process, of the driver, or of the machine. It then
    reports the last saved epoch again, because that report may not have arrived, and trains and reports the epochs after it
    again. So whatever takes reports must be idempotent.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Build the trainer, and continue from the saved state. Only here the untyped dictionary becomes a TrialConfig."""
        settings, self.run = unpack(config)
        self.directory: Path | None = None
        self._again: deque[dict[str, Any]] = deque()
        self._reports = SavedReports(keeps_all=self.run.storage is not None)
        self._sharing: Sharing | None = None
        self._joins = False
        self._refused: str | None = None
        self._note: str | None = None
        self._begun: Begun | None = None
        if self.run.threads is not None:
            set_threads(max(1, self.run.threads // self.run.ranks))
        if self.run.device == "cpu":
            keep_freed_memory()
        else:
            cap_gpu_memory(self.run.gpu_fraction, settings.get("backend", "auto"))
        if self.run.directory is not None:
            self._take(Path(self.run.directory))
        self._guarded(lambda: self._begin(TrialConfig(**settings)))
        if self._refused is not None and self.run.on_cluster:
            self._blame_node(settings)

    def make_trainer(self, config: TrialConfig) -> Trainer:
        """Build the trainer of a configuration; a subclass may build another one."""
        name = f"{self.run.search}/{self.run.key}"
        run = self.run
        return Trainer(
            config,
            stores=run.places,
            metric=run.metric,
            name=name,
            note=run.note,
            device=run.device,
            ranks=run.ranks,
            compiled=run.compiled,
        )

    def step(self) -> dict[str, Any]:
        """Run one epoch. A trial that a retry cannot help ends here, with the reason of its failure."""
        try:
            if self._joins and not self._again:
                self._joins = False
                self._guarded(self._join)
            if self._refused is not None:
                return self._failed(self._refused)
            if self._again:
                return self._repeated()
            result = self._guarded(self._untrained if self.run.role == "untrained" else self._epoch)
            return self._failed(self._refused) if self._refused is not None or result is None else self._save(result)
        except OSError as error:
            if self.directory is not None:
                self._ownership.is_over()  # its files may be gone because it was replaced: then this process ends here
            if error.errno not in CANNOT_WRITE:
                raise
            reason = f"{error.filename or self.directory} cannot be written ({error.strerror}); free some space there"
            return {**self._worst(), STOP_SEARCH: reason}
        except StorageError as error:
            if self.run.on_cluster:
                raise NodeFaultError(str(error)) from None
            return {**self._worst(), STOP_SEARCH: str(error)}

    def _repeated(self) -> dict[str, Any]:
        """Return a result that was saved with the state; a process may have ended before it wrote the file of its result."""
        result = self._again.popleft()
        if self.directory is not None and not (self.directory / RESULT_FILE).exists():
            self._write_result(result)
            self._ownership.push()
        return result

    def _begin(self, config: TrialConfig) -> None:
        set_arithmetic(config, deterministic=self.run.deterministic)
        if self.directory is not None:
            with suppress(CorruptFileError):  # the usual case: the run has no result yet
                self._again.append(read_result(self.directory / RESULT_FILE))
                return
        self.trainer = self.make_trainer(config)
        if self.directory is None:
            return
        self._sharing = Sharing(self.run, self.trainer)
        self._joins = self.run.role != "untrained"
        if self.trainer.is_saved(self.directory):
            try:
                facts = self.trainer.load(self.directory)
                result = _result_of(facts.get("result", {}), self.directory)
                self._reports.restore([_result_of(each, self.directory) for each in facts.get("reports", [])])
                taken_over = self._sharing.resume(facts)
                self._again.extend(self._reports.after(self.run.reported) or taken_over or [result])
                if not self._reports.as_list():
                    self._reports.restore(self._again)
                self._joins = False
            except CheckpointError as error:
                self._note = f"starts again from its first epoch: {error}"
                self.trainer.close()
                self.trainer = self.make_trainer(config)
                self._sharing = Sharing(self.run, self.trainer)

    def _blame_node(self, settings: dict[str, Any]) -> None:
        """Raise if a trial was refused for what this node has lost since it was checked: the images, or room for them."""
        with suppress(SettingError):
            config, stores = TrialConfig(**settings), self.run.places
            reason = wrong_images(config, stores, self.run.images) or wrong_scratch(
                config, stores, lambda: TrialData.needed_bytes(config, stores)
            )
            if reason is not None:
                raise NodeFaultError(reason)

    def _blame_small_gpu(self) -> None:
        """Raise if a trial ran out of memory on a GPU that is smaller than others of the cluster."""
        there = gpu_memory()
        if there < self.run.largest_gpu:
            raise NodeFaultError(
                f"its GPU has {there / 2**30:.0f} GiB, too little for trial {self.run.key}, and others have "
                f"{self.run.largest_gpu / 2**30:.0f} GiB; lower --batch-size to use it, too"
            ) from None

    def _join(self) -> None:
        """Take over the first epochs from another trial, if there are such."""
        assert self._sharing is not None
        self._again.extend(self._sharing.join(self._before()))
        if self._again:
            self._reports.restore(self._again)
            self._ownership.push()

    def _guarded(self, work: Any) -> Any:
        """Run a function; an error that a retry would only repeat becomes the reason why the trial fails."""
        try:
            return work()
        except (NonFiniteLossError, SettingError) as error:
            self._refused = str(error)
        except (MemoryError, RuntimeError) as error:
            memory = exhausted_memory(error)
            if memory is None:
                raise
            if memory == "gpu":
                self._blame_small_gpu()
            share = self.run.gpu_fraction
            where = f"GPU memory with {share:g} of the GPU;" + (" raise --gpus-per-trial or" if share < 1 else "")
            if memory == "host":
                where = "memory; lower --max-concurrent or"
            self._refused = f"out of {where} lower --batch-size"
        return None

    def _epoch(self) -> dict[str, Any]:
        before = self._before()
        steps = self.trainer.epoch_steps() if self._begun is None else self._begun.steps
        self._begun = None  # its copy of the state is not needed any more
        measures: dict[str, Any] = finish(steps)
        until = self.run.until or self.trainer.config.nb_epochs
        done = self.trainer.epoch >= until
        if done and self.run.role in SCORES_TEST:
            measures |= self._test()
        complete = self.trainer.epoch >= self.trainer.config.nb_epochs
        return {**before, **measures, "epoch": self.trainer.epoch, "done": done, "done_all": complete}

    def _before(self) -> dict[str, Any]:
        """Return step 0 of the trial's curves before its first epoch: the measures of its network before training."""
        return {"untrained": self.trainer.untrained()} if self._compares() and self.trainer.epoch == 0 else {}

    def _compares(self) -> bool:
        return self.run.role == "trial" and self.trainer.compares

    def _untrained(self) -> dict[str, Any]:
        return {**self._test(penultimate=True), "epoch": 0, "done": True}

    def _test(self, **how: Any) -> dict[str, Any]:
        return {**self.trainer.test(**how), SCORED_BEFORE: self.trainer.test_scored_before}

    def _save(self, result: dict[str, Any]) -> dict[str, Any]:
        """Save the trial with the result of its last epoch, then return the result as the report."""
        result = {**result, "time_ms": int(time.time() * 1000)}
        if self._note is not None:
            result[NOTE], self._note = self._note, None
        if self.directory is None or self._ownership.is_over():
            return result
        if self.trainer.division is not None:
            result[DIVISION] = self.trainer.division.name
        if self._sharing is not None:
            result = self._sharing.add_to(result)
        if self.run.role != "untrained":
            self._save_epoch(self.directory, result)
        if result.get("done"):
            self._write_result(result)
            self._ownership.push()
        return result

    def _save_epoch(self, directory: Path, result: dict[str, Any]) -> None:
        """Save the state where it is due; the best model is saved after each epoch, because each may be the last one.

        Meanwhile the next epoch begins, unless this one is the last, or another trial waits for its state.
        """
        sharing = self._sharing
        self._reports.add(result)
        offers = sharing is not None and sharing.offers
        facts: dict[str, Any] = {"models_only": True}
        if self.trainer.epoch % self.run.save_every == 0 or result.get("done") or offers:
            facts = {
                "result": result,
                "reports": self._reports.as_list(),
                **(sharing.facts() if sharing is not None else {}),
            }
        if sharing is not None and offers:
            self.trainer.save(directory, **facts)
            sharing.offer()
            self._ownership.push()
        elif result.get("done"):
            self.trainer.save(directory, **facts)
        else:
            self._begun = begun = Begun(self.trainer.snapshot(), self.trainer.epoch_steps())
            work_during(lambda: self._save_snapshot(begun.saved, directory, facts), self._begin_next)

    def _save_snapshot(self, snapshot: Snapshot, directory: Path, facts: dict[str, Any]) -> None:
        snapshot.save(directory, **facts)
        self._ownership.push()

    def _begin_next(self) -> bool:
        """Do a step of the next epoch; returns whether another one may follow before the epoch is measured.

        If it fails for good, the next call of `step` reports that.
        """
        assert self._begun is not None
        steps = self._begun.steps
        return bool(self._guarded(lambda: next(steps)))

    def _write_result(self, result: dict[str, Any]) -> None:
        """Write the result of a run that is no trial, when it has ended; before it, what its queries found."""
        if self.directory is None or self.run.role == "trial" or not result.get("done"):
            return
        if self.trainer.hits is not None:
            self.trainer.hits.write(self.directory / HITS_FILE)
        write_checksummed(self.directory / RESULT_FILE, {**result, CURVE: self.trainer.history})

    def _failed(self, reason: str | None) -> dict[str, Any]:
        """Return the report of a failed trial, with the worst finite value: scheduler and sampler would wait for a finite one."""
        log.error("trial %s failed: %s", self.run.key, reason)
        epoch = self.trainer.epoch if hasattr(self, "trainer") else 0
        return {**self._worst(), FAILED: reason, "epoch": epoch, "done": True}

    def _worst(self) -> dict[str, float]:
        return {self.run.metric: 0.0, f"{self.run.metric}_best": 0.0}

    def _take(self, directory: Path) -> None:
        """Become the only process whose files of this trial count; they have a directory of their own."""
        if self.run.storage is not None:
            self._take_stored(directory, self.run.storage)
            return
        if not directory.parent.is_dir():
            raise NodeFaultError(
                f"{directory.parent} does not exist there; --output-dir must be on storage that all nodes share"
            )
        self._own(take(directory, self.run.attempt))

    def _take_stored(self, directory: Path, storage: str) -> None:
        try:
            self._own(take_stored(directory, self.run.attempt, storage))
        except StorageError as error:
            if self.run.on_cluster:
                raise NodeFaultError(str(error)) from None
            raise

    def _own(self, ownership: Ownership | StoredOwnership) -> None:
        self._ownership, self.directory = ownership, ownership.files
        self.run = replace(self.run, directory=str(self.directory))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the state of the trainer and its best model so far, for users of Ray's own checkpoints."""
        (self.trainer if self._begun is None else self._begun.saved).save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: str) -> None:  # type: ignore[override]
        """Continue from what `save_checkpoint` wrote; Ray has the result of that epoch."""
        if self._begun is not None and self.trainer.ranks.size > 1:
            while next(
                self._begun.steps
            ):  # the other ranks have begun the epoch, and are asked for something else after it
                pass
        self._give_up_begun()
        self.trainer.load(Path(checkpoint))
        self._again.clear()
        self._joins = False

    def _give_up_begun(self) -> None:
        if self._begun is not None:
            self._begun.steps.close()
            self._begun = None

    def cleanup(self) -> None:
        """End the loader's processes and the other ranks, and release the trial's directory."""
        self._give_up_begun()
        if hasattr(self, "trainer"):
            self.trainer.close()
        if self._sharing is not None:
            self._sharing.close()
        if hasattr(self, "_ownership"):
            self._ownership.release()

    def __repr__(self) -> str:
        """Text of the actor in the Ray dashboard: data set and searched settings."""
        if not hasattr(self, "trainer"):
            return type(self).__name__
        config = self.trainer.config
        settings = [f"{name}={brief(getattr(config, name))}" for name in self.run.varied]
        return " ".join([config.dataset, *([] if self.run.role == "trial" else [self.run.role]), *settings])


def _result_of(facts: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return a result that was saved with the state of a trainer."""
    try:
        return with_numbers(facts)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {directory}: its result is not valid ({error}); take another") from None


# Ray's processes search packages in the driver's working directory first. With this module name they import `dcml_tune`
# first, which makes `trainables` the installed package.
DivideAndConquer.__module__ = "dcml_tune"
