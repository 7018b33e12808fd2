"""A stage of a search, run by Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune import Callback, CheckpointConfig, FailureConfig, PlacementGroupFactory, RunConfig, TuneConfig, Tuner

from dcml_tune.utils.signals import signals_wait
from trainables.resources import Shares
from trainables.run import run_of
from trainables.stopper import StopWhen
from trainables.trainable import DivideAndConquer

RETRIES = 2
"""How often a trial is tried again whose process died, hung, or raised."""


_task_failed = RayActorManager._actor_task_failed


def _died_if_out_of_memory(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
    """A trial that Ray's memory monitor ends in the middle of a step is a trial whose process died.

    Tune (of Ray 2.60) knows the errors of actors and of tasks; this one is neither, and would end the whole search.
    """
    died = isinstance(exception, OutOfMemoryError)
    _task_failed(manager, tracked_actor_task, RayActorError(error_msg=str(exception)) if died else exception)


RayActorManager._actor_task_failed = _died_if_out_of_memory  # type: ignore[method-assign, assignment]


def run_trials(
    trainable: type[DivideAndConquer],
    *,
    shares: Shares,
    directory: Path,
    callbacks: list[Callback],
    why_over: Callable[[], str | None] = lambda: None,
    param_space: dict[str, Any] | None = None,
    **tuning: Any,
) -> None:
    """Run the trials of a stage to their end.

    Trials keep their own state (`Run.directory`), so Ray keeps no checkpoints, and its snapshots are not used.

    Args:
        trainable: DivideAndConquer or a subclass.
        shares: what each trial gets.
        directory: for Ray's files; a new one for each call.
        callbacks: of the driver.
        why_over: says why all trials are to be ended, or None.
        param_space: of Ray, where no searcher is given.
        tuning: more of Ray's TuneConfig.
    """

    class Trial(trainable):  # type: ignore[misc, valid-type]
        @classmethod
        def default_resource_request(cls, config: dict[str, Any]) -> Any:
            return PlacementGroupFactory([{"CPU": shares.cpus_per_trial, "GPU": shares.gpus_per_trial}])

    Trial.__name__ = Trial.__qualname__ = "DivideAndConquer"
    tuner = Tuner(
        Trial,
        param_space=param_space,
        tune_config=TuneConfig(
            max_concurrent_trials=shares.concurrent or None,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            **tuning,
        ),
        run_config=RunConfig(
            name=directory.name,
            stop=StopWhen(why_over),
            storage_path=str(directory.parent),
            callbacks=callbacks,
            verbose=0,
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            failure_config=FailureConfig(max_failures=RETRIES),
        ),
    )
    with signals_wait():
        tuner.fit()


def _name(trial: Any) -> str:
    return run_of(trial.config).key
