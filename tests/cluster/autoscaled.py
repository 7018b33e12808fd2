"""A Ray cluster on this machine whose autoscaler brings nodes: Ray's own, with its provider of nodes that are processes."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import psutil
import ray

_HEAD = "f" * 51 + "00000"  # the id that the provider gives to the head
_HEAD_TYPE = "ray.head.default"  # its type there
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
# Version 1 of the autoscaler fails without these, which are for machines that it logs in to.
_COMMANDS = (
    "cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "rsync_exclude", "rsync_filter",
)  # fmt: skip


def _free_port():
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


class Autoscaled:
    """A head without CPUs, and an autoscaler that brings nodes of one CPU when something waits for them."""

    def __init__(self, environment, directory, *, most, version):
        """Start the head; `most` is the largest number of nodes, `version` that of the autoscaler."""
        self.address = f"{ray.util.get_node_ip_address()}:{_free_port()}"
        config = directory / "cluster.json"
        config.write_text(json.dumps(self._config(most)))
        variables = {
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": str(int(version == 2)),
            "RAY_NODE_TYPE_NAME": _HEAD_TYPE,  # as KubeRay sets it
            "RAY_CLOUD_INSTANCE_ID": _HEAD,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD,
        }
        words = [
            shutil.which("ray", path=os.path.dirname(sys.executable)), "start", "--head", "--block", "--num-cpus=0", "--num-gpus=0",
            "--include-dashboard=false", f"--port={self.address.split(':')[1]}", f"--temp-dir={directory}",
            f"--autoscaling-config={config}",
        ]  # fmt: skip
        self._log = directory / "log.txt"
        self._process = subprocess.Popen(
            words,
            env={**environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=self._log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._wait()

    def _config(self, most):
        return {
            "cluster_name": "test",
            "max_workers": most,
            "idle_timeout_minutes": 10,
            "provider": {
                "type": "external",
                "module": _PROVIDER,
                "gcs_address": self.address,
                "head_node_id": _HEAD,
                "launch_multiple": True,
                "use_node_id_as_ip": True,  # all nodes have the address of this machine
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            **{key: {} for key in ("auth", "docker", "file_mounts")},
            **{key: [] for key in _COMMANDS},
            "file_mounts_sync_continuously": False,
            "head_node_type": _HEAD_TYPE,
            "available_node_types": {
                _HEAD_TYPE: {"resources": {}, "node_config": {}, "max_workers": 0},
                "one-cpu": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": most},
            },
        }

    def _wait(self):
        end = time.monotonic() + 120
        while "This command will now block" not in self._log.read_text():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < end, self._log.read_text()
            time.sleep(0.2)

    def close(self):
        """End all processes of the cluster, those of its nodes too."""
        root = psutil.Process(self._process.pid)
        processes = [root, *root.children(recursive=True)]
        for process in processes:
            process.kill()
        self._process.wait(60)
        psutil.wait_procs(processes, timeout=60)
