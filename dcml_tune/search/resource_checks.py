"""What each trial of a search gets of this machine or of a cluster, and what is measured for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dcml_tune.cli.quantities import AUTO
from dcml_tune.clustering.kmeans import check_backend
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import load
from dcml_tune.search.cluster_checks import join_cluster
from dcml_tune.search.gpu_probe import compiling, full_division, resolve
from dcml_tune.search.later_runs import runs_per_later_stage
from dcml_tune.search.mps import about_mps, check_mps, start_mps
from dcml_tune.training.loading import LoaderProcesses
from trainables.resources import Shares, share

if TYPE_CHECKING:
    from dcml_tune.search.checks import CheckedSettings
    from dcml_tune.search.request import Request
    from trainables.cluster_run import ClusterRun


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each trial gets of the machine or of the cluster."""

    shares: Shares
    gpus_per_trial: float | None
    """As it was given or, for `auto`, measured."""
    measured: str | None
    """The measurement behind `auto`, in words; of a resumed search, that of its first process."""
    dashboard: str | None
    """Address of the dashboard of a joined cluster."""
    cluster: ClusterRun | None = None
    """The cluster that was joined; None: one is started on this machine."""
    compile: Literal["off", "auto", "on"] = "off"
    """As it was given or, for `auto`, measured: on or off."""
    lines: tuple[str, ...] = ()
    """What the machine lacks, and what was measured, as a search prints it."""


def resources(request: Request, settings: CheckedSettings) -> Resources:
    """Join the cluster if one is named, measure GPU sharing if that is asked for, and divide the resources.

    Raises:
        SettingError: if the cluster cannot be joined, or it lacks what a trial needs.
    """
    flags, address = request.config, settings.address
    asked, measured = flags.gpus_per_trial, request.record.asked.get("measured") if request.record else None
    if asked == AUTO and address is not None:
        raise SettingError(
            f"--gpus-per-trial {AUTO}: with --ray-address the GPUs are those of the cluster, and only this machine's can "
            "be measured; give a number, such as 0.5"
        )
    if flags.compile == AUTO and address is not None:
        raise SettingError(
            f"--compile {AUTO}: with --ray-address the GPUs are those of the cluster, and only this machine's can be "
            "measured; give on or off"
        )
    if flags.mps == "on":
        check_mps(asked, joins=address is not None)
        start_mps()
    most = max(request.planned, *runs_per_later_stage(request))
    if address is not None:
        assert not isinstance(asked, str), "`auto` was refused"
        cluster, dashboard = join_cluster(flags, address, request.output, trials=most)
        assert cluster.pool.shares is not None
        return Resources(
            shares=cluster.pool.shares,
            gpus_per_trial=asked,
            measured=measured,
            dashboard=dashboard,
            cluster=cluster,
            compile=flags.compile,
        )

    def shares(gpus_per_trial: float | None) -> Shares:
        return share(num_samples=most, gpus_per_trial=gpus_per_trial, max_concurrent=flags.max_concurrent)

    if isinstance(asked, str):  # auto
        nb_images = len(load(settings.base).train)  # images that are missing are refused before the measurement
        if shares(None).gpus_per_trial > 0:
            print("measuring how many trials a GPU can run at once: about a minute", flush=True)
        at_once = min(most, flags.max_concurrent or most)
        # It is recorded as a number, so a resumed search does not measure again.
        asked, measured = resolve(_divided(request, settings), at_once=at_once, images=nb_images)
    found = shares(asked)
    how_compiled, why = flags.compile, None
    if how_compiled == AUTO:
        how_compiled, why = _measured_compiling(_divided(request, settings), found.gpus_per_trial)
    check_backend(settings.base.backend)  # not for a cluster, whose GPUs and shared memory are not visible from here
    processes = LoaderProcesses.of(settings.base, on_gpu=found.gpus_per_trial > 0, threads=found.threads_per_trial)
    lines = tuple(line for line in (processes.note, about_mps(found.gpus_per_trial), why) if line is not None)
    return Resources(
        shares=found,
        gpus_per_trial=asked,
        measured=measured,
        dashboard=None,
        compile=how_compiled,
        lines=lines,
    )


def _measured_compiling(config: TrialConfig, share: float) -> tuple[Literal["off", "on"], str]:
    """What `--compile auto` means for trials with a share of this machine's GPUs, and why."""
    if share == 0:
        return "off", f"--compile {AUTO}: off, because trials train on the CPU"
    print("measuring whether trials train faster compiled: about two minutes", flush=True)
    gains, why = compiling(config, share)
    return "on" if gains else "off", why


def _divided(request: Request, settings: CheckedSettings) -> TrialConfig:
    """The setting that is measured: that of a trial with all of its learners."""
    return full_division(settings.base, {**request.space.published, **request.settings}.get("nb_clusters", 1))
