"""ClusterRun: how the trials of a search run on a cluster that was joined, and how many of them at once."""

from __future__ import annotations

from dataclasses import dataclass

from ray.tune.search import Searcher

from trainables.node_pool import NodePool
from trainables.placement import NodeLimiter

_WAITING = 2  # with an autoscaler as many times the trials that fit are sampled, so that some wait and it brings nodes
_FEWEST = 4  # trials that are sampled on an autoscaled cluster that has few nodes yet
_SHARE = 4  # at most a fourth of the trials: a search whose trials all begin at once learns nothing


@dataclass(frozen=True, kw_only=True)
class ClusterRun:
    """A cluster that was joined."""

    pool: NodePool
    """Its nodes."""
    wait_s: float
    """Longest wait for a node that can hold a trial, in seconds."""
    max_concurrent: int | None = None
    """As it was asked for."""

    def limited(self, searcher: Searcher, trials: int) -> NodeLimiter:
        """Let a searcher sample as many trials as `limit` allows.

        Args:
            searcher: samples the trials.
            trials: number of trials.
        """
        return NodeLimiter(searcher, trials, lambda: self.limit(trials))

    def limit(self, trials: int) -> int:
        """Return how many trials may have been sampled and not ended; at least 1.

        Without an autoscaler no more than fit now: a trial that waits was sampled from fewer results. With one, the trials
        that wait bring nodes: --max-concurrent, or twice as many as fit, at most a fourth of all.

        Args:
            trials: number of trials.
        """
        places, asked = self.pool.places(), self.max_concurrent
        most = places
        if self.pool.autoscales:
            most = asked or max(places, min(max(_WAITING * places, _FEWEST), trials // _SHARE))
        return max(1, min(most, asked or most))
