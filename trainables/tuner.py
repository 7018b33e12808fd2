"""Runs the trials of one stage with Ray Tune."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune import Callback, CheckpointConfig, FailureConfig, PlacementGroupFactory, RunConfig, TuneConfig, Tuner

from dcml_tune.utils.signals import signals_wait
from trainables.cluster_run import ClusterRun
from trainables.node_watch import NodeWatch
from trainables.placement import placed_on
from trainables.resources import Shares
from trainables.run import run_of
from trainables.starts import Starts, numbered_starts
from trainables.stopper import StopWhen
from trainables.trainable import DivideAndConquer

RETRIES = 2
"""How often a trial is tried again whose process died, hung, or raised."""


_task_failed = RayActorManager._actor_task_failed


def _report_out_of_memory_as_death(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
    """Report a trial that Ray's memory monitor ends during a step as a trial whose process died.

    Tune of Ray 2.60 handles the errors of actors and of tasks. OutOfMemoryError is neither, and aborts the whole search.
    """
    died = isinstance(exception, OutOfMemoryError)
    _task_failed(manager, tracked_actor_task, RayActorError(error_msg=str(exception)) if died else exception)


RayActorManager._actor_task_failed = _report_out_of_memory_as_death  # type: ignore[method-assign, assignment]


def run_trials(
    trainable: type[DivideAndConquer],
    *,
    shares: Shares,
    directory: Path,
    callbacks: list[Callback],
    why_over: Callable[[], str | None] = lambda: None,
    param_space: dict[str, Any] | None = None,
    nodes: ClusterRun | None = None,
    starts: Starts | None = None,
    **tuning: Any,
) -> None:
    """Run the trials of a stage until all have ended.

    Trials save their own state (`Run.directory`), so Ray keeps no checkpoints, and its snapshots are not used.

    Args:
        trainable: DivideAndConquer or a subclass.
        shares: resources of each trial.
        directory: directory for Ray's files; a new one for each call.
        callbacks: callbacks on the driver.
        why_over: returns why all trials end now, or None.
        param_space: Ray's search space, where there is no searcher; see `trainables.run.pack_list`.
        nodes: the cluster that was joined; None: a local one.
        starts: what is done before each start of a trial.
        tuning: further arguments of Ray's TuneConfig.
    """
    concurrent: int | None = shares.concurrent or None
    if nodes is not None:
        callbacks = [NodeWatch(nodes.pool, nodes.wait_s), *callbacks]
        concurrent = nodes.max_concurrent
        if "search_alg" in tuning:
            tuning["search_alg"], concurrent = nodes.limited(tuning["search_alg"], tuning["num_samples"]), None
    tuner = Tuner(
        _with_resources(trainable, shares),
        param_space=param_space,
        tune_config=TuneConfig(
            max_concurrent_trials=concurrent,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            **tuning,
        ),
        run_config=_run_config(directory, callbacks, StopWhen(why_over)),
    )
    with numbered_starts(starts or Starts()), placed_on(nodes.pool if nodes is not None else None), signals_wait():
        tuner.fit()


def _with_resources(trainable: type[DivideAndConquer], shares: Shares) -> type[DivideAndConquer]:
    """Return a subclass that requests the resources of a trial. Ray shows its name."""
    # The class does not refer to `shares`, for which the process of a trial would import torch.
    bundle = {"CPU": shares.cpus_per_trial, "GPU": shares.gpus_per_trial}

    class Trial(trainable):  # type: ignore[misc, valid-type]
        @classmethod
        def default_resource_request(cls, config: dict[str, Any]) -> Any:
            return PlacementGroupFactory([bundle])

    Trial.__name__ = Trial.__qualname__ = "DivideAndConquer"
    return Trial


def _run_config(directory: Path, callbacks: list[Callback], stop: StopWhen) -> RunConfig:
    return RunConfig(
        name=directory.name,
        stop=stop,
        storage_path=str(directory.parent),
        callbacks=callbacks,
        verbose=0,
        checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
        failure_config=FailureConfig(max_failures=RETRIES),
    )


def _name(trial: Any) -> str:
    return run_of(trial.config).key
