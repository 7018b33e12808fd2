"""The checks of a search on a cluster: its nodes can hold a trial, and have what the driver has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dcml_tune.cli.quantities import seconds
from trainables.cluster import connect
from trainables.cluster_run import ClusterRun
from trainables.joining import join_nodes, wait_until_fit
from trainables.node_check import Needs
from trainables.resources import check_concurrent, check_gpus, share_nodes

if TYPE_CHECKING:
    from pathlib import Path

    from dcml_tune.config.search import SearchConfig
    from dcml_tune.config.trial import TrialConfig


def join_cluster(flags: SearchConfig, address: str, output: Path, *, trials: int) -> tuple[ClusterRun, str]:
    """Join a cluster, check its nodes, and divide those that can run trials; returns it and the address of its dashboard.

    Args:
        flags: of the search; --gpus-per-trial is a number.
        address: of the cluster.
        output: directory of all searches.
        trials: number of trials, or of runs of a later stage if these are more.

    Raises:
        SettingError: if the cluster cannot be joined, or no node has what a trial needs.
    """
    asked = flags.gpus_per_trial if isinstance(flags.gpus_per_trial, float | int) else None
    check_gpus(asked, math.inf)
    check_concurrent(flags.max_concurrent)
    dashboard, wait_s = connect(address), seconds(flags.wait_for_nodes)
    pool = join_nodes(
        address,
        Needs(output=str(output), storage=flags.storage, scratch=flags.scratch),
        gpus_per_trial=asked,
        wait_s=wait_s,
        say=_say,
    )
    pool.shares = share_nodes(
        [*pool.fit(), *pool.checking()],
        num_samples=trials,
        gpus_per_trial=asked,
        max_concurrent=flags.max_concurrent,
    )
    return ClusterRun(pool=pool, wait_s=wait_s, max_concurrent=flags.max_concurrent), dashboard


def check_images_of_nodes(
    base: TrialConfig, images: str, cluster: ClusterRun, *, store_bytes: dict[str, int], address: str
) -> None:
    """Check that the nodes of a cluster have the images of the search, and room for their stores; returns when one has.

    Args:
        base: says where the images are.
        images: fingerprint of their content.
        cluster: that was joined.
        store_bytes: name -> size of the image stores of the search.
        address: of the cluster, for the message.

    Raises:
        SettingError: if none has.
    """
    cluster.pool.require(cluster.pool.needs.with_images(base.model_dump(), images, store_bytes))
    wait_until_fit(cluster.pool, address, math.inf)  # many images take their time to be read


def _say(line: str) -> None:
    print(line, flush=True)
