import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from autoscaled import Autoscaled
from scene import Scene

HERE = Path(__file__).parent

# On a busy machine processes of Ray start slowly; those that may be needed are not started.
PATIENCE = {"RAY_worker_register_timeout_seconds": "600", "RAY_enable_worker_prestart": "0"}


def pytest_collection_modifyitems(items):
    """Some of these tests are part of every test run, all of them of `make test-cluster`."""
    for item in items:
        ours = HERE in Path(item.fspath).parents
        if ours and not any(item.get_closest_marker(mark) for mark in ("fast", "slow")):
            item.add_marker(pytest.mark.cluster)


class Nodes:
    """A Ray cluster of several nodes on this machine."""

    def __init__(self, environment, log, **head):
        """Start the head; `environment` is that of its processes, and of all nodes."""
        self.environment, self._log, self._added, self._namespaces = environment, log, [], {}
        self._process = subprocess.Popen(
            [sys.executable, HERE / "cluster_process.py", json.dumps(head)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.address, self.head = self._answer()

    def _answer(self):
        for line in self._process.stdout:
            if line.startswith(('"', "[")):
                return json.loads(line)
        raise AssertionError(self._log.read_text())

    def _ask(self, *words):
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def add(self, cpus=1, gpus=0, **more):
        """Add a node; returns its id."""
        self._added.append(self._ask("add", {"num_cpus": cpus, "num_gpus": gpus, **more}))
        return self._added[-1]

    def kill(self, node):
        """End all processes of a node."""
        self._ask("kill", node)
        self._added.remove(node)

    def add_in_namespace(self, before, *, cpus=1, host="othernode", network=None):
        """Add a node with mounts and a host name of its own; `before` is run there by a shell before it starts.

        Args:
            before: command of the shell.
            cpus: of the node.
            host: its name.
            network: the node's end of a `Link`, which is then its only network.

        Returns:
            What `kill_in_namespace` takes.
        """
        directory = Path(tempfile.mkdtemp(prefix="dcml-", dir="/tmp"))  # paths of sockets must be short
        start = (
            f"{shutil.which('ray', path=os.path.dirname(sys.executable))} start --address={self.address} --block "
            f"--num-cpus={cpus} --num-gpus=0 --temp-dir={directory}"
        )
        if network is not None:
            before, start = f"{before} && {network.setup}", f"{start} --node-ip-address={network.there}"
        shell = f"hostname {host} && {before} && exec {start}"
        own = ["--net"] if network is not None else []
        self._namespaces[directory] = subprocess.Popen(
            ["unshare", *own, "--mount", "--uts", "--fork", "--kill-child", "--pid", "--mount-proc", "sh", "-c", shell],
            stdin=subprocess.DEVNULL,
            stdout=(directory / "node.txt").open("w"),
            stderr=subprocess.STDOUT,
            env=self.environment,
            start_new_session=True,
        )
        if network is not None:
            network.give_to(self._namespaces[directory].pid)
        return directory

    def has_ended(self, directory):
        """Whether all processes of a node with mounts of its own have ended by themselves."""
        return self._namespaces[directory].poll() is not None

    def kill_in_namespace(self, directory):
        """End all processes of a node with mounts of its own."""
        process = self._namespaces.pop(directory)
        process.kill()
        process.wait(60)
        shutil.rmtree(directory, ignore_errors=True)

    def remove_all(self):
        """End all nodes but the head."""
        for directory in list(self._namespaces):
            self.kill_in_namespace(directory)
        for node in self._added:
            self._ask("remove", node)
        self._added.clear()

    def close(self):
        self.remove_all()
        self._process.stdin.close()
        self._process.wait(60)


class Link:
    """A network connection between this machine and a namespace; it has an address at each end."""

    here, there = "10.213.77.1", "10.213.77.2"
    setup = (
        "until ip link show dcml-there > /dev/null 2>&1; do sleep 0.1; done && ip link set lo up && "
        f"ip address add {there}/24 dev dcml-there && ip link set dcml-there up"
    )
    """What the namespace runs before it uses the network."""

    def __init__(self):
        self._ip("link", "add", "dcml-here", "type", "veth", "peer", "name", "dcml-there")
        self._ip("address", "add", f"{self.here}/24", "dev", "dcml-here")
        self._ip("link", "set", "dcml-here", "up")

    @staticmethod
    def _ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def give_to(self, process):
        """Move the other end to the namespace of a process, once that has one."""
        while Path(f"/proc/{process}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
            time.sleep(0.05)
        self._ip("link", "set", "dcml-there", "netns", str(process))

    def cut(self):
        """Carry no more packets; both sides only notice that nothing comes."""
        self._ip("link", "set", "dcml-here", "down")

    def close(self):
        self._ip("link", "delete", "dcml-here")


@pytest.fixture
def scene(tmp_path, folder):
    """A scene whose trials train nothing, on clusters without authentication."""
    made = Scene(tmp_path, folder)
    made.environment |= {"DCML_TEST_TRAINER": "cheap", "HOME": str(tmp_path)}
    for name in [name for name in made.environment if name.startswith("RAY_A")]:
        del made.environment[name]
    yield made
    made.close()


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The head of a cluster without authentication; it has no CPUs, as many heads."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    log = tmp_path_factory.mktemp("head") / "log.txt"
    made = Nodes({**environment, **PATIENCE, "RAY_AUTH_MODE": "disabled"}, log, num_cpus=0, num_gpus=0)
    yield made
    made.close()


@pytest.fixture
def cluster(head, scene):
    """The cluster with its head alone; a test adds nodes."""
    yield head
    scene.close()
    head.remove_all()


@pytest.fixture
def link():
    made = Link()
    yield made
    made.close()


@pytest.fixture
def linked(link, scene, tmp_path):
    """A cluster whose head, without CPUs, has the address of this end of the link; it notices soon that a node is gone."""
    soon = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}
    soon |= {"RAY_health_check_timeout_ms": "2000", "RAY_gcs_rpc_server_reconnect_timeout_s": "20"}
    environment = {**scene.environment, **PATIENCE, **soon, "RAY_AUTH_MODE": "disabled"}
    made = Nodes(environment, tmp_path / "head.txt", num_cpus=0, num_gpus=0, node_ip_address=link.here)
    yield made
    scene.close()
    made.close()


@pytest.fixture(params=[1, 2], ids=["version 1", "version 2"])
def autoscaled(request, scene):
    """A cluster with an autoscaler of each version, which brings at most two nodes of one CPU."""
    directory = Path(tempfile.mkdtemp(prefix="dcml-", dir="/tmp"))  # paths of sockets must be short
    made = Autoscaled(
        {**scene.environment, **PATIENCE, "RAY_AUTH_MODE": "disabled"}, directory, most=2, version=request.param
    )
    yield made
    scene.close()
    made.close()
    shutil.rmtree(directory, ignore_errors=True)
