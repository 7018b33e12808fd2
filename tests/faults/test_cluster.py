"""A search on a Ray cluster that is already running."""

import signal
import subprocess
import sys

import pytest

CLUSTER = """
import ray
context = ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
print(context.address_info["gcs_address"], flush=True)
input()
"""


@pytest.fixture
def cluster(cheap):
    """The address of a cluster that another process has; its token is in the environment of both."""
    cheap.environment["RAY_AUTH_TOKEN"] = "0123456789abcdef" * 4
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**cheap.environment, "RAY_AUTH_MODE": "token"},
    )
    yield process.stdout.readline().strip()
    process.communicate("\n", timeout=60)


def test_a_search_on_a_running_cluster_is_resumed_on_it(cheap, cluster):
    """Its driver is killed: the cluster ends its trials, stays, and takes the resumed search."""
    cheap.faults({"trial": "001", "epoch": 2, "kind": "hang"})
    process = cheap.start("--num-samples", 3, "--scheduler", "none", "--ray-address", cluster)
    cheap.wait_for_hang("001", process)
    assert "no GPU, 2 cores" in process.log.read_text()
    process.send_signal(signal.SIGKILL)
    process.wait()
    status, said = cheap.resume("--ray-address", cluster)
    assert status == 0, said
    cheap.assert_sound(3)
    assert cheap.lost() == []
    assert len(set(cheap.trained())) == 12
