"""What a trial asks for on a cluster whose nodes differ: always something that a node can hold."""

import pytest

from dcml_tune.config.errors import SettingError
from trainables.cluster_run import ClusterRun
from trainables.nodes import Node, able
from trainables.resources import share_nodes


def nodes(*shapes):
    """Nodes with the given numbers of CPUs and GPUs."""
    return [Node(id=f"{number:06d}", host="h", cpus=cpus, gpus=gpus) for number, (cpus, gpus) in enumerate(shapes)]


@pytest.mark.parametrize(
    ("shapes", "options", "concurrent", "cpus", "gpus"),
    [
        ([(8, 0), (2, 1)], {}, 1, 2, 1),
        ([(32, 0)] * 100, {}, 400, 8, 0),
        ([(32, 0)] * 100, {"num_samples": 20}, 20, 32, 0),
        ([(2, 0)], {"num_samples": 3}, 2, 1, 0),
        ([(8, 0)], {"max_concurrent": 8}, 8, 1, 0),
        ([(8, 0)], {"max_concurrent": 1}, 1, 8, 0),
        ([(64, 0), (2, 0)], {}, 4, 16, 0),
        ([(8, 0), (3, 0)], {}, 5, 2, 0),
        ([(64, 8)] * 2, {}, 16, 8, 1),
        ([(64, 8), (8, 8)], {}, 16, 1, 1),
        ([(64, 8), (4, 8)], {}, 16, 0.5, 1),
        ([(64, 8)] * 9 + [(4, 8)], {}, 72, 8, 1),
        ([(0, 8)], {}, 8, 0, 1),
        ([(128, 1)], {}, 1, 16, 1),
        ([(8, 4), (4, 2)], {"gpus_per_trial": 4}, 1, 8, 4),
        ([(128, 8), (128, 8)], {"gpus_per_trial": 4}, 4, 64, 4),
        ([(8, 2)], {"gpus_per_trial": 0.3}, 6, 1, 0.3),
        ([(3, 1)], {"gpus_per_trial": 0.3333}, 3, 1, 0.3333),
        ([(8, 2), (4, 0)], {"gpus_per_trial": 0.0}, 6, 2, 0),
        ([(64, 8)] * 2, {"max_concurrent": 3}, 3, 8, 1),
    ],
)
def test_a_trial_asks_for_what_a_node_has(shapes, options, concurrent, cpus, gpus):
    """Numbers of trials at once and of what each asks for; some node holds one."""
    found = share_nodes(able(nodes(*shapes), options.get("gpus_per_trial")), **{"num_samples": 1000, **options})
    assert (found.concurrent, found.cpus_per_trial, found.gpus_per_trial) == (concurrent, cpus, gpus)
    assert found.threads_per_trial == max(1, int(cpus))
    assert any(node.trials(found.cpus_per_trial, found.gpus_per_trial) for node in nodes(*shapes))


@pytest.mark.parametrize(
    ("shapes", "gpus_per_trial", "expected"),
    [
        ([(0, 0)], None, []),
        ([(0, 0), (4, 0)], None, [1]),
        ([(8, 0), (4, 1)], None, [1]),
        ([(8, 0), (4, 1)], 0.0, [0, 1]),
        ([(8, 0), (4, 0)], 0.5, []),
        ([(8, 1), (4, 1)], 2, []),
        ([(8, 2), (4, 1)], 2, [0]),
        ([(8, 0.5)], None, [0]),
    ],
)
def test_nodes_that_can_hold_a_trial(shapes, gpus_per_trial, expected):
    """A head that only manages the cluster holds none, and where there are GPUs a node without them holds none."""
    assert [int(node.id) for node in able(nodes(*shapes), gpus_per_trial)] == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpus_per_trial": -0.5}, "fraction"),
        ({"gpus_per_trial": 1.5}, "whole number"),
        ({"max_concurrent": 0}, "--max-concurrent 0"),
    ],
)
def test_shares_that_cannot_be(options, words):
    """As on one machine."""
    with pytest.raises(SettingError, match=words):
        share_nodes(nodes((8, 8)), num_samples=20, **options)


class Pool:
    """Nodes with places for a number of trials."""

    def __init__(self, places, autoscales):
        self.autoscales, self._places = autoscales, places

    def places(self):
        return self._places


@pytest.mark.parametrize(
    ("places", "autoscales", "asked", "trials", "limit"),
    [
        (8, False, None, 64, 8),
        (8, False, 3, 64, 3),
        (8, False, 20, 64, 8),
        (0, False, None, 64, 1),
        (0, True, None, 64, 4),
        (0, True, None, 8, 2),
        (0, True, None, 2, 1),
        (8, True, None, 64, 16),
        (8, True, None, 20, 8),
        (32, True, None, 64, 32),
        (2, True, 20, 64, 20),
        (32, True, 20, 64, 20),
    ],
)
def test_how_many_trials_are_sampled(places, autoscales, asked, trials, limit):
    """Without an autoscaler as many as fit now; with one so many that some wait, but not all of a search at once."""
    assert ClusterRun(pool=Pool(places, autoscales), wait_s=1.0, max_concurrent=asked).limit(trials) == limit
