"""Checks that the images of a node of a cluster are those of the search.

The driver has checked its own images. A node with an incomplete or another copy would train on other classes, and its
trials would be compared with those of the others.
"""

from __future__ import annotations

import platform
from pathlib import Path

from dcml_tune import data
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from trainables.run import Run


def this_node() -> str | None:
    """Return Ray's id of the node of this process; None outside of a cluster."""
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else None


def wrong_images(config: TrialConfig, run: Run) -> str | None:
    """Return why the images of this node are not those of the search, or None.

    The driver's node is not checked again. Another one is checked once in each process.
    """
    checked = (config.dataset, config.dataset_dir, run.stores, run.images)
    if run.images is None or checked in _right or this_node() == run.checked_on:
        return None
    host = platform.node()
    try:
        dataset = data.load(config)
        found = data.Identity.of(dataset, Path(run.stores), opens_test=config.protocol == "paper").compared
    except SettingError as error:
        return f"node {host} cannot use the images of this search ({error}); copy them there, or take the node away"
    if found != run.images:
        return (
            f"the images on node {host} are not those that the search began with (fingerprint of their content {found}, on "
            f"the driver's node {run.images}); copy them there, or take the node away"
        )
    _right.add(checked)
    return None


_right: set[tuple[str | None, ...]] = set()
"""What was found to be right in this process."""
