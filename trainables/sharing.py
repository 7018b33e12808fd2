"""Sharing: how a trial takes over the epochs that another trial has computed, and leaves its own for others.

Above 250 lines because taking over, measuring anew and leaving states follow the same locks and the same list of results.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from dcml_tune.runs.results import with_numbers
from dcml_tune.training.divisions import files as division_files
from dcml_tune.training.prefixes import PrefixStore
from dcml_tune.training.trainer import Trainer
from dcml_tune.utils.checkpoint import CheckpointError
from dcml_tune.utils.locks import HeldError, SharedLock
from trainables.run import DIVISION, NOTE, SHARED, Run

_LOOK_S = 0.5  # interval between looks for the state of another trial

_SHOW_S = 5.0  # interval between signs of progress

_OF_THE_OTHER = (NOTE, "untrained", "test_scored_before")
"""Entries of a result that belong to the trial which computed it."""


class Sharing:
    """The epochs that a trial shares with others.

    Of trials that begin with the same epochs, the first one to take the lock of the next shared state computes it, and
    the others wait. If it ends before, its lock is free and another one takes over. If it hangs, the others compute the
    epochs themselves: it shows progress with each batch that passes its network. Without a directory, or with no epochs to
    share, nothing is shared.

    Attributes:
        count: number of epochs that were taken over.
    """

    def __init__(self, run: Run, trainer: Trainer) -> None:
        """Share nothing yet.

        Args:
            run: of the trial.
            trainer: of the trial, before its first epoch.
        """
        until = min(run.until or trainer.config.nb_epochs, trainer.config.nb_epochs)
        # The last epoch is always its own: its report has more than the others.
        self._epochs = [epoch for epoch in sorted(run.shares) if epoch < until]
        self._run, self._trainer = run, trainer
        self._results: list[dict[str, Any]] = []
        self._locks: dict[int, SharedLock] = {}
        self.count = 0
        active = run.prefixes is not None and run.directory is not None and bool(self._epochs)
        self._store = PrefixStore(Path(run.prefixes), trainer) if active and run.prefixes else None
        self._shown = 0.0
        hook = trainer.model.backbone.register_forward_hook(self._show_progress) if self._store is not None else None
        self._hook = hook

    # -- before the first epoch ------------------------------------------------------------------------

    def join(self, before: dict[str, Any]) -> list[dict[str, Any]]:
        """Continue from the longest prefix that is there or is computed now; return the reports of its epochs.

        Epochs that another trial has trained and measured in another way are measured anew.

        The trial's own state is saved, so that what was taken over does not depend on the other trial any more.

        Args:
            before: what the first report also has.
        """
        if self._store is None or self._run.directory is None:
            return []
        directory, store = Path(self._run.directory), self._store
        patience = _Patience(self._run)
        while True:
            self._load_longest(store, directory)
            self._measure_trained(store, directory)
            wanted = self._next()
            if wanted is None or self._begins(store, wanted) or patience.is_over(wanted, store.progress(wanted)):
                break
            time.sleep(_LOOK_S)
        if self.count:
            self._results[0] = {**before, **self._results[0]}
            self._trainer.save(directory, **self.facts(), result=self._results[-1])
        return list(self._results)

    def _load_longest(self, store: PrefixStore, directory: Path) -> None:
        for epoch in reversed(self._epochs):
            if epoch <= self.count:
                return
            if not store.has(epoch):
                continue
            found = store.load(epoch, directory, partial(_taken_over, epochs=epoch, directory=directory))
            if found is not None:
                self._results, self.count = found, epoch
                return
            self._epochs.remove(epoch)  # what cannot be read is computed, and not offered again

    def _measure_trained(self, store: PrefixStore, directory: Path) -> None:
        """Continue over the next epochs that a trial has trained which differs in the weights that are measured.

        They are measured anew, so each of them must be there.
        """
        trainer = self._trainer
        while trainer.epoch + 1 in self._epochs:
            found = store.trained(trainer.epoch + 1, directory)
            if found is None:
                return
            state, facts = found
            try:
                report = _taken_over(facts, epochs=state.epoch, directory=directory)[-1]
            except CheckpointError:
                return
            prefix, measured = trainer.config.compared_on, trainer.measure_epoch(state)
            trained = {name: value for name, value in report.items() if not name.startswith(f"{prefix}/")}
            self._results = [{**each, SHARED: each["epoch"]} for each in self._results]
            self._results.append({**trained, **measured})
            self.count = trainer.epoch

    def _begins(self, store: PrefixStore, epoch: int) -> bool:
        """Return whether this trial is the one that computes a state, because no other one does or has."""
        if not self._lock(store, epoch):
            return False
        if not any(store.has(each) for each in self._epochs if each >= epoch):
            return True
        self._release(epoch)
        return False

    # -- after an epoch --------------------------------------------------------------------------------

    def resume(self, facts: dict[str, Any]) -> list[dict[str, Any]]:
        """Continue after a restart, from the facts of the trial's own state.

        Returns:
            The reports of the epochs that were taken over, if they may not all have arrived; else none.

        Raises:
            CheckpointError: if the facts are not valid.
        """
        self.count = facts["shared"] if type(facts.get("shared")) is int else 0
        self._results = _checked(facts)
        if self._store is not None and (wanted := self._next()) is not None:
            self._lock(self._store, wanted)
        return self._results if self._trainer.epoch == self.count else []

    def add_to(self, result: dict[str, Any]) -> dict[str, Any]:
        """Add the number of shared epochs to the result of an own epoch, and keep it for others."""
        if self._store is not None:
            result = {**result, SHARED: self.count}
            if self._may_be_taken:
                self._results.append(result)
        return result

    def facts(self) -> dict[str, Any]:
        """Return what is saved with the state of the trial: while others may take it over, the results of all epochs."""
        if self._store is None:
            return {}
        return {"shared": self.count, **({"results": self._results} if self._may_be_taken else {})}

    @property
    def _may_be_taken(self) -> bool:
        """Whether another trial may take over the epochs so far, now or after the next ones."""
        return self._trainer.epoch <= max([*self._epochs, self.count])

    def offer(self) -> None:
        """Leave the state of the trial, which was saved just now, for others if it is one that they may have."""
        epoch = self._trainer.epoch
        if self._store is None or self._run.directory is None or epoch not in self._epochs:
            return
        if (wanted := self._next()) is not None:  # before the others, which wait for this state, can take it
            self._lock(self._store, wanted)
        if len(self._results) == epoch:  # not after a restart from a state without results
            self._store.add(Path(self._run.directory))
        self._release(epoch)

    @property
    def offers(self) -> bool:
        """Whether the state after the last epoch is one that others may have, so that it must be saved."""
        return self._store is not None and self._trainer.epoch in self._epochs

    def close(self) -> None:
        """Release all locks."""
        if self._hook is not None:
            self._hook.remove()
        for epoch in list(self._locks):
            self._release(epoch)

    # -- locks and progress ----------------------------------------------------------------------------

    def _show_progress(self, *_: Any) -> None:
        """Show the trials that wait for this one that it does not hang; called after each batch."""
        if self._store is None or not self._locks or time.monotonic() - self._shown < _SHOW_S:
            return
        self._shown = time.monotonic()
        for epoch in self._locks:
            self._store.show_progress(epoch)

    def _next(self) -> int | None:
        """Return the number of epochs after which the trial next has a state to share."""
        return next((epoch for epoch in self._epochs if epoch > self._trainer.epoch), None)

    def _lock(self, store: PrefixStore, epoch: int) -> bool:
        """Return whether no other trial computes a state, as far as the file system tells."""
        lock = store.lock(epoch)
        try:
            lock.acquire()
        except HeldError:
            return False
        except OSError:  # without locks, such as on a full disk, nothing is waited for
            return True
        self._locks[epoch] = lock
        return True

    def _release(self, epoch: int) -> None:
        if (lock := self._locks.pop(epoch, None)) is not None:
            lock.release()


class _Patience:
    """Decides how long a trial waits for one that computes the same epochs. Clocks of two machines are not compared."""

    def __init__(self, run: Run) -> None:
        """Start the clocks of a run."""
        self._run = run
        self._begun = self._changed = time.monotonic()
        self._last: tuple[int, int | None] | None = None

    def is_over(self, epoch: int, progress: int | None) -> bool:
        """Return whether it waits no longer, given the state that it waits for and the progress of the other trial."""
        now = time.monotonic()
        if (epoch, progress) != self._last:
            self._last, self._changed = (epoch, progress), now
        limit = self._run.wait_s
        return (limit is not None and now - self._begun >= limit) or now - self._changed >= self._run.stalled_s


def _taken_over(facts: dict[str, Any], epochs: int, directory: Path) -> list[dict[str, Any]]:
    """Return the results of another trial as reports of this one.

    Raises:
        CheckpointError: if there is not one for each epoch.
    """
    now = int(time.time() * 1000)
    found = _checked(facts)
    if [each["epoch"] for each in found] != list(range(1, epochs + 1)):
        raise CheckpointError("the results of shared epochs are not complete; they are computed again")
    reports = []
    for each in found:
        report = {name: value for name, value in each.items() if name not in _OF_THE_OTHER}
        if DIVISION in report and not division_files(directory, report[DIVISION]):
            del report[DIVISION]
        reports.append({**report, "done": False, "done_all": False, "time_ms": now, SHARED: each["epoch"]})
    return reports


def _checked(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results that were saved with a state.

    Raises:
        CheckpointError: if they are not valid.
    """
    try:
        return [with_numbers(each) for each in facts.get("results", [])]
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"its results are not valid ({error}); take another") from None
