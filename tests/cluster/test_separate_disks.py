"""A search with --storage s3://... on nodes that share no directory: nodes and the driver die, and the search goes on."""

import re
import shutil

import pytest
from s3_server import S3Server
from test_nodes import TRIALS, failures, may_make_namespaces

BUCKET = "s3://searches/runs"


@pytest.fixture
def s3():
    """An S3 server with an empty bucket; the environment of those that use it."""
    server = S3Server()
    yield server.environment
    server.close()


@pytest.mark.timeout(1200)
@pytest.mark.skipif(not may_make_namespaces(), reason="this user may not make mount namespaces (unshare --mount)")
def test_nodes_and_driver_die(scene, cluster, s3, tmp_path):
    """A trial goes on on another node, whose disk is empty; then the same command goes on on an empty disk of the driver."""
    scene.environment |= {**s3, "DCML_TEST_LEASE": "6"}
    scene.output.mkdir()
    exports = " && ".join(f"export {name}={value}" for name, value in s3.items())
    command = (
        "--num-samples",
        2,
        "--max-concurrent",
        1,
        "--storage",
        BUCKET,
        "--start-or-resume",
        "s",
        *TRIALS,
        cluster.address,
    )
    scene.faults(
        {"trial": "000", "epoch": 2, "kind": "hang"},
        {"trial": "001", "epoch": 3, "kind": "hang"},
    )

    def add(host):
        return cluster.add_in_namespace(f"{exports} && mount -t tmpfs none {scene.output}", host=host)

    first = add("one")
    process = scene.start(*command)
    scene.wait_for_hang("000", process)
    add("two")
    scene.wait_for("node two", process)
    cluster.kill_in_namespace(first)
    scene.wait_for_hang("001", process)
    refused, said = second_driver(scene, command, tmp_path / "second")
    assert refused == 4, said
    assert f"search s: process {process.pid} on " in said
    process.kill()
    process.wait()
    first_said = process.log.read_text()
    assert re.search(r"trial 000 is tried again from its last epoch: (?:the connection to )?node", first_said), (
        first_said
    )
    shutil.rmtree(scene.output)
    scene.output.mkdir()
    status, said = scene.search(*command)
    assert status == 0, said
    assert "ran it, and has recorded no end; waiting up to 6 s" in said
    scene.assert_sound(2)
    assert failures(scene) == []
    assert scene.lost() == []
    assert scene.trained() == [f"{trial} {epoch}" for trial in ("000", "001") for epoch in range(1, 5)]


def second_driver(scene, command, output):
    """Run the same command on another machine, whose disk is empty."""
    own, scene.output = scene.output, output
    try:
        return scene.search(*command)
    finally:
        scene.output = own
