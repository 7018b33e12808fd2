"""The checks of a search, in the order in which a plan makes them. Each returns what the next ones need.

Cheap checks come first: the settings, then the machine or the cluster, then the disk, then the images, then the space.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dcml_tune.cli.quantities import size
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.remains import store_tests
from dcml_tune.search.disk import CheckpointSpace, fits_the_disk, model_bytes, most_copies, refuse_full_disk
from dcml_tune.search.later_runs import final_runs, units_at_once
from dcml_tune.tracking.checking import check_store
from dcml_tune.tracking.uris import absolute_uri, tracking_uri
from dcml_tune.training.prefixes import most_states
from dcml_tune.training.trial_data import TrialData
from search_spaces.prefixes import count_states
from trainables.resources import Shares, cluster_address
from trainables.warm_start import WarmStart, warm_start

if TYPE_CHECKING:
    from dcml_tune.data import Identity
    from dcml_tune.search.request import Request
    from search_spaces import SearchSpace


@dataclass(frozen=True, kw_only=True)
class CheckedSettings:
    """The addresses, the space and the trial setting of a search."""

    space: SearchSpace
    """The search space without the settings that were given."""
    base: TrialConfig
    """The published setting with the settings that were given, without division."""
    uri: str
    """Of the MLflow store."""
    store_is_up: bool
    """Whether the MLflow store could be reached."""
    address: str | None
    """Of the Ray cluster to join; None: one is started."""

    @property
    def has_test_stage(self) -> bool:
        """Whether the protocol allows final scoring: with `paper`, the test classes chose the epochs already."""
        return self.base.protocol == "held_out"


def checked_settings(request: Request) -> CheckedSettings:
    """Check the MLflow store, the address of the cluster and the settings of a trial.

    Raises:
        SettingError: for a store that takes no records, an invalid address, or settings that contradict each other.
    """
    flags = request.config
    uri = tracking_uri(flags.tracking_uri and absolute_uri(flags.tracking_uri), request.output)
    store_is_up = check_store(uri)
    address = cluster_address(flags.ray_address)
    space = request.space if request.record is not None else request.space.restricted(request.settings)
    base = _without_division(space)
    if base.protocol == "held_out" and base.val_share == 0:
        raise SettingError(
            "val_share=0: trials are compared on training classes that are held out; give a share, or --protocol "
            "paper to choose on the test classes as the original does"
        )
    return CheckedSettings(space=space, base=base, uri=uri, store_is_up=store_is_up, address=address)


def _without_division(space: SearchSpace) -> TrialConfig:
    """The setting of trial 0 without division, before the images are known."""
    point, _ = space.published_point()
    return TrialConfig(**{**space.whole(point), "nb_clusters": 1, "force_full_embedding_epoch": None})


def checkpoint_space(request: Request, settings: CheckedSettings, shares: Shares) -> CheckpointSpace:
    """Check that the checkpoints fit their budget and the disk.

    Raises:
        SettingError: if they do not, or the backbone cannot be built.
    """
    flags = request.config
    scores_test = flags.final == "best" and settings.has_test_stage
    space = CheckpointSpace(
        model_bytes=model_bytes(settings.base),
        copies=most_copies(request.wider or request.space, request.settings),
        concurrent=shares.concurrent,
        planned=request.planned,
        scored=final_runs(request) if scores_test else 0,
        shared=0 if flags.no_share else _shared_states(settings.space, units_at_once(flags), flags.searcher),
    )
    if flags.checkpoint_budget:
        budget = size(flags.checkpoint_budget)
        if not space.has_room(budget):
            space = replace(space, shared=0)
        space = space.within(budget, flags.checkpoint_budget)
    if not fits_the_disk(space, settings.base, request.output, request.stores):
        space = replace(space, shared=0)
    refuse_full_disk(space, settings.base, request.output, request.stores, resumes=request.record is not None)
    return space


def _shared_states(space: SearchSpace, units: int, searcher: str) -> int:
    """Number of states that trials share at once. Units that run together have their own states."""
    config = TrialConfig(**space.whole(space.published_point()[0]))
    most = most_states(config)
    return min(most, units * count_states(config, space.domains, most=most, local=searcher == "local"))


@dataclass(frozen=True)
class CheckedImages:
    """The images of a search: all of them can be decoded."""

    data: TrialData
    identity: Identity
    """Fingerprints of the images."""
    test_lines: list[str]
    """Lines about the test images."""
    store_bytes: dict[str, int]
    """Name -> size of the image stores."""


def images(request: Request, settings: CheckedSettings, *, scores_test: bool) -> CheckedImages:
    """Decode all images into their stores.

    Args:
        request: of the search.
        settings: of the search.
        scores_test: whether the test classes are scored at the end.

    Raises:
        SettingError: if images cannot be decoded and are not to be skipped, or too few classes remain.
    """
    base, stores = settings.base, request.stores
    data = TrialData.open(base, stores, verify=True)
    opens_test = scores_test or base.protocol == "paper"
    lines = store_tests(base, data.dataset, stores, verify=True) if opens_test else []
    return CheckedImages(data, data.identity(base), lines, data.store_bytes(base, tests=opens_test))


@dataclass(frozen=True, kw_only=True)
class CheckedSpace:
    """The search space, restricted to settings that can work, and its published point."""

    space: SearchSpace
    published_point: dict[str, Any]
    starts: list[dict[str, Any]]
    """Further points to try first."""
    lines: list[str]
    """A line for each published value that had to be changed, and for each further point."""


def search_space(request: Request, data: TrialData) -> CheckedSpace:
    """Restrict the space of a new search to what its images allow; widen the space of an extended one.

    Raises:
        SettingError: if no combination works, or the wider space does not contain the recorded one.
    """
    space = request.space
    if request.record is None:
        space = space.restricted(request.settings, data.cannot_train)
    if request.wider is not None:
        space = space.extended(request.wider.restricted(request.settings, data.cannot_train))
    point, lines = space.published_point(data.cannot_train)
    starts, about = space.start_points(point, data.cannot_train) if request.record is None else ([], [])
    return CheckedSpace(space=space, published_point=point, starts=starts, lines=[*lines, *about])


def earlier_searches(request: Request, found: CheckedImages, metrics: list[str], space: SearchSpace) -> WarmStart:
    """Read the trials of the searches of --warm-start; nothing for a resumed search, whose study holds them.

    Raises:
        SettingError: if there is no such search, or it is of other images.
    """
    names = request.config.warm_start
    if request.record is not None or not names:
        return WarmStart()
    return warm_start(
        names,
        request.output,
        data=(found.identity.compared, found.data.dataset.fingerprint_by_time),
        metrics=metrics,
        space=space,
        infeasible_reason=found.data.cannot_train,
    )
